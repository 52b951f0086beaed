"""Hold the GGUF writer of the tests to llama.cpp: its logits of every tiny model, and the goldens.

    python tools/check_family_ggufs.py LLAMA_LOGITS

LLAMA_LOGITS is what build_llama_cpp.sh makes of llama_logits.cpp. Its keys and values are float16,
so that errors of 1e-3 are its own. Known to differ: it has no window for Llama's and Phi-3's
architectures, takes the tanh form of GELU for Falcon and NeoX, and does not read yarn_attn_factor.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from family_gguf import INEXPRESSIBLE
from family_models import golden, variants, write_gguf


def main() -> None:
    """Print the relative error of every variant that GGUF can express."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("llama_logits", type=Path)
    options = parser.parse_args()
    for name in variants():
        if name in INEXPRESSIBLE:
            print(f"{name:24} not in GGUF: {INEXPRESSIBLE[name]}")
            continue
        tokens, expected, columns = golden(name)
        found = run(options.llama_logits, name, tokens)
        if isinstance(found, str):
            print(f"{name:24} {found}")
        else:
            error = np.abs(found[:, columns] - expected).max() / np.abs(expected).max()
            print(f"{name:24} {error:.1e}")


def run(program: Path, name: str, tokens: np.ndarray) -> np.ndarray | str:
    """llama.cpp's logits [positions, vocabulary] of a variant, or what it said instead."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_gguf(name, folder / "model.gguf")
        tokens.astype(np.int32).tofile(folder / "tokens")
        np.array([0, len(tokens)], np.int32).tofile(folder / "windows")
        files = [str(folder / part) for part in ("model.gguf", "tokens", "windows", "logits")]
        done = subprocess.run(
            [str(program), *files, "1", "0"], capture_output=True, text=True, check=False
        )
        if done.returncode:
            return done.stderr.strip().splitlines()[-1][:150]
        return np.fromfile(folder / "logits", np.float32).reshape(len(tokens), -1)


if __name__ == "__main__":
    main()
