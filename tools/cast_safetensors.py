"""Write a Hugging Face folder of float16 safetensors anew in bfloat16, for a peer that computes so.

    python tools/cast_safetensors.py DIR OUT

Both have two bytes for an element, so that only dtypes change in the headers. Models larger than
memory can be cast, too: a piece of a file is in memory at a time.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import ml_dtypes
import numpy as np

PIECE = 1 << 26


def main() -> None:
    """Cast the folder."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path, help="a new folder")
    options = parser.parse_args()
    options.out.mkdir(parents=True)
    for file in sorted(options.folder.iterdir()):
        if file.suffix == ".safetensors":
            cast(file, options.out / file.name)
        elif file.name == "config.json":
            config = json.loads(file.read_text()) | {"torch_dtype": "bfloat16"}
            (options.out / file.name).write_text(json.dumps(config, indent=1))
        else:
            shutil.copy(file, options.out)


def cast(source: Path, target: Path) -> None:
    """Write the float16 tensors of the file `source` to `target`, in bfloat16."""
    with source.open("rb") as file, target.open("wb") as out:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        for name, entry in header.items():
            if name != "__metadata__":
                if entry["dtype"] != "F16":
                    raise SystemExit(f"{source}: {name} is {entry['dtype']}, not F16")
                entry["dtype"] = "BF16"
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        out.write(len(text).to_bytes(8, "little") + text)
        while piece := file.read(PIECE):
            numbers = np.frombuffer(piece, np.float16).astype(np.float32)
            out.write(numbers.astype(ml_dtypes.bfloat16).tobytes())


if __name__ == "__main__":
    main()
