"""How what a step is given becomes the int64 words that its kernel unpacks."""

from __future__ import annotations

import struct
from typing import Any

from numpy.typing import NDArray

from flashllm.kernels.cpu.activation import FUNCTIONS
from flashllm.kernels.jit import Op
from flashllm.kernels.weights import Activations, Floats, Nonlinearity, TileMatrix

Encoded = tuple[Op, list[int]]
"""A step's kernel and its words."""


def pick(module: Any, kernel: str, dtype: str) -> Op:
    """The variant of a kernel for weights or keys of a dtype."""
    op: Op = getattr(module, f"{kernel}_{dtype}")
    return op


def address(array: NDArray[Any]) -> int:
    """Where an array begins."""
    return int(array.ctypes.data)


def rows(array: Floats) -> list[int]:
    """Where rows are, and the elements from one to the next."""
    return [address(array), array.shape[1]]


def panels(weight: TileMatrix) -> list[int]:
    """A matrix."""
    return [address(weight.table), weight.panels, weight.panels_per_unit, weight.blocks]


def floats_alone(values: Floats) -> list[int]:
    """Activations that have no int8 form."""
    return [address(values), 0, 0, 0, values.shape[1]]


def activations(x: Activations) -> list[int]:
    """Activations in both forms."""
    return [address(x.values), address(x.codes), address(x.scales), address(x.sums), x.stride]


def bits(value: float) -> int:
    """The bits of a float32."""
    return int(struct.unpack("<I", struct.pack("<f", value))[0])


def nonlinearity(act: Nonlinearity) -> list[int]:
    """What activate and rectify take."""
    return [FUNCTIONS[act.function], bits(act.threshold), int(act.up_relu)]
