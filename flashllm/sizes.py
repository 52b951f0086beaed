"""Byte sizes as people write and read them: 6GB, 512MiB, 0.5x of a model."""

from __future__ import annotations

import dataclasses
import re

from flashllm.errors import InvalidInput

_UNITS = {"": 1, "B": 1}
_UNITS |= {
    f"{letter}{end}": 1000**power for power, letter in enumerate("KMGT", 1) for end in ("", "B")
}
_UNITS |= {
    f"{letter}{end}": 1024**power for power, letter in enumerate("KMGT", 1) for end in ("I", "IB")
}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?|\.\d+)\s*([A-Za-z]*)\s*")
_LARGEST = 1 << 60

SHARE_OVERHEAD = 200_000_000
"""What a share of a model comes on top of: about what a program takes that runs a small one."""


@dataclasses.dataclass(frozen=True)
class Size:
    """An amount of memory: so many bytes, or (exactly one of the two is set) a share of a model."""

    bytes: int | None = None
    share: float | None = None

    def resolve(self, model_bytes: int) -> int:
        """Bytes meant, for a model of `model_bytes`: 0.5x is SHARE_OVERHEAD + half of them."""
        if self.share is not None:
            return SHARE_OVERHEAD + int(self.share * model_bytes)
        return self.bytes or 0


def parse_size(text: str) -> Size:
    """The size written in `text`: 6GB (10^9), 512MiB (2^20), 4096 (bytes), 0.5x (of the model).

    Raises InvalidInput, showing what is accepted.

    >>> parse_size("6GB").bytes
    6000000000
    >>> parse_size("0.5x").resolve(model_bytes=1_000_000)
    200500000
    """
    match = _SIZE.fullmatch(text)
    unit = match[2].upper() if match else "?"
    if match and unit == "X" and 0 < float(match[1]) <= 1000:
        return Size(share=float(match[1]))
    if match and unit in _UNITS and 1 <= (amount := float(match[1]) * _UNITS[unit]) <= _LARGEST:
        return Size(bytes=int(amount))
    raise InvalidInput(
        f"{text!r} is not a size; write for example 6GB, 512MiB or 0.5x (of the model)"
    )


def format_size(count: float) -> str:
    """`count` bytes for human eyes, in powers of 1000.

    >>> format_size(98_362_432)
    '98.4 MB'
    """
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.0f} B" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB" if count < 999.5 else f"{count:.0f} TB"
