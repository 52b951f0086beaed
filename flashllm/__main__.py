"""`python -m flashllm` is the flashllm command."""

from __future__ import annotations

import sys

from flashllm.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
