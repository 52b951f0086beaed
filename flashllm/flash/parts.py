"""Parts: what the units of a group hold, a matrix or a feed-forward network."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from flashllm.errors import CorruptModel
from flashllm.flash.layout import (
    BITMAP_SCALE_BYTES,
    DTYPES,
    GRAINS,
    TILE_COLS,
    TILE_ROWS,
    bitmap_bytes,
    ceil_div,
    even_split,
    exact_split,
    grain_bytes,
    least_split,
    panel_bytes,
    unit_target,
)

MAX_SIDE = 1 << 24
UNITS_KEY = {
    "tile": "blocks_per_unit",
    "row": "neurons_per_unit",
    "bitmap": "blocks_per_unit",
}


@dataclasses.dataclass(frozen=True)
class Runs:
    """Panels of tiles that follow one another in a unit: how many, and tiles in each."""

    dtype: str
    panels: int
    tiles: int

    def bitmap_bytes(self, density: float) -> int:
        """Bytes of them in codec `bitmap`, if this share of the weights is not zero."""
        return self.panels * (8 + bitmap_bytes(self.dtype, self.tiles, density))


@dataclasses.dataclass(frozen=True)
class MatrixPart:
    """W [rows, cols] in units of panels_per_unit panels of 16 rows; the last may hold fewer.

    Codec tile or bitmap.
    """

    role: str
    codec: str
    dtype: str
    rows: int
    cols: int
    panels_per_unit: int
    first_unit: int
    units: int
    kind: ClassVar[str] = "matrix"

    @classmethod
    def plan(
        cls, role: str, dtype: str, rows: int, cols: int, first_unit: int, codec: str = "tile"
    ) -> MatrixPart:
        """The part with units of about the target size."""
        panels = ceil_div(rows, TILE_ROWS)
        per_unit = even_split(panels, panel_bytes(dtype, cols), unit_target(codec))
        units = ceil_div(panels, per_unit)
        return cls(role, codec, dtype, rows, cols, per_unit, first_unit, units)

    @property
    def dtypes(self) -> tuple[str, ...]:
        """The dtype, as FFNPart has those of its matrices."""
        return (self.dtype,)

    @property
    def panels(self) -> int:
        """Panels of 16 rows in the whole matrix."""
        return ceil_div(self.rows, TILE_ROWS)

    def lengths(self, density: float = 1.0) -> NDArray[np.int64]:
        """Bytes of each unit, without padding: int64 [units]. density: see Part."""
        nbytes = panel_bytes(self.dtype, self.cols)
        if self.codec == "bitmap":
            nbytes = Runs(self.dtype, 1, ceil_div(self.cols, TILE_COLS)).bitmap_bytes(density)
        return _lengths(self.panels, self.panels_per_unit, nbytes)

    def runs(self, unit: int) -> tuple[Runs, ...]:
        """What unit `unit` of the part holds."""
        panels = min(self.panels_per_unit, self.panels - unit * self.panels_per_unit)
        return (Runs(self.dtype, panels, ceil_div(self.cols, TILE_COLS)),)

    def expected_units(self) -> int:
        """How many units the shape implies."""
        return ceil_div(self.panels, self.panels_per_unit)

    def to_json(self) -> dict[str, Any]:
        """The manifest's object for this part."""
        return {"kind": self.kind, **dataclasses.asdict(self)}


@dataclasses.dataclass(frozen=True)
class FFNPart:
    """Gate, up [neurons, width] and down [width, neurons], in units of consecutive neurons.

    A network without gates has gate_dtype None.
    """

    role: str
    codec: str
    gate_dtype: str | None
    up_dtype: str
    down_dtype: str
    neurons: int
    width: int
    grains_per_unit: int
    first_unit: int
    units: int
    kind: ClassVar[str] = "ffn"

    @classmethod
    def plan(
        cls,
        role: str,
        codec: str,
        dtypes: tuple[str | None, str, str],
        neurons: int,
        width: int,
        first_unit: int,
    ) -> FFNPart:
        """The part with units of the codec's size; dtypes are those of gate, up, down."""
        count = ceil_div(neurons, GRAINS[codec])
        nbytes = grain_bytes(codec, *dtypes, width)
        if codec == "row":
            per_unit = least_split(count, nbytes)
        else:
            per_unit = exact_split(count, nbytes, unit_target(codec))
        units = ceil_div(count, per_unit)
        return cls(role, codec, *dtypes, neurons, width, per_unit, first_unit, units)

    @property
    def dtypes(self) -> tuple[str, ...]:
        """The dtypes of the matrices there are, in the order gate, up, down."""
        named = (self.gate_dtype, self.up_dtype, self.down_dtype)
        return tuple(dtype for dtype in named if dtype is not None)

    @property
    def neurons_per_unit(self) -> int:
        """Neurons in a unit, padding included."""
        return self.grains_per_unit * GRAINS[self.codec]

    @property
    def blocks_per_unit(self) -> int:
        """Blocks of 32 neurons in a unit of codec `tile` or `bitmap`."""
        return self.neurons_per_unit // GRAINS["tile"]

    @property
    def grain_bytes(self) -> int:
        """Bytes of a block of 32 neurons (tile) or of one neuron (row). Not of codec `bitmap`."""
        return grain_bytes(self.codec, self.gate_dtype, self.up_dtype, self.down_dtype, self.width)

    def lengths(self, density: float = 1.0) -> NDArray[np.int64]:
        """Bytes of each unit, without padding: int64 [units]. density: see Part.

        Units of `tile` and `bitmap` are all full.
        """
        if self.codec == "bitmap":
            nbytes = sum(runs.bitmap_bytes(density) for runs in self.runs(0))
            return np.full(self.expected_units(), nbytes, np.int64)
        return _lengths(self._grains(), self.grains_per_unit, self.grain_bytes)

    def runs(self, unit: int) -> tuple[Runs, ...]:
        """What unit `unit` of the part, of codec `tile` or `bitmap`, holds."""
        tiles, blocks = ceil_div(self.width, TILE_COLS), self.blocks_per_unit
        inputs = Runs(self.up_dtype, (len(self.dtypes) - 1) * 2 * blocks, tiles)
        return inputs, Runs(self.down_dtype, ceil_div(self.width, TILE_ROWS), blocks)

    def expected_units(self) -> int:
        """How many units the shape implies."""
        return ceil_div(self._grains(), self.grains_per_unit)

    def to_json(self) -> dict[str, Any]:
        """The manifest's object for this part."""
        data = dataclasses.asdict(self)
        per_unit = data.pop("grains_per_unit")
        return {"kind": self.kind, **data, UNITS_KEY[self.codec]: per_unit}

    def _grains(self) -> int:
        count = ceil_div(self.neurons, GRAINS[self.codec])
        if self.codec == "row":
            return count
        return ceil_div(count, self.grains_per_unit) * self.grains_per_unit


Part = MatrixPart | FFNPart
"""What units hold. Those of codec `bitmap` are as long as their zeros leave them: `lengths` tells
how long about, if a share `density` of the weights is not zero; with 1 and with 0, the limits.
"""


def part_from_json(data: Any, where: str) -> Part:
    """The part a manifest describes. Raises CorruptModel, beginning with `where`."""
    if not isinstance(data, Mapping):
        raise CorruptModel(f"{where}: a part is {type(data).__name__}, expected an object")
    fields = dict(data)
    kind = fields.pop("kind", None)
    codec = fields.get("codec")
    if not isinstance(codec, str) or codec not in GRAINS:
        raise CorruptModel(f"{where}: unknown codec {codec!r}; written by a newer flashllm?")
    part: type[MatrixPart] | type[FFNPart]
    if kind == "matrix" and codec != "row":
        part = MatrixPart
    elif kind == "ffn":
        part = FFNPart
        fields["grains_per_unit"] = fields.pop(UNITS_KEY[codec], None)
    else:
        raise CorruptModel(f"{where}: unknown part {kind!r} of codec {codec!r}")
    if set(fields) != {field.name for field in dataclasses.fields(part)}:
        raise CorruptModel(f"{where}: a {kind} part has the keys {sorted(fields)}")
    for name, value in fields.items():
        _check_field(name, value, where)
    made = part(**fields)
    if codec == "bitmap":
        _check_bitmaps(made, where)
    expected = made.expected_units()
    if made.units != expected:
        raise CorruptModel(
            f"{where}: {made.role} claims {made.units} units, its shape makes {expected}"
        )
    return made


def _check_bitmaps(part: Part, where: str) -> None:
    dtypes = part.dtypes
    if not set(dtypes) <= set(BITMAP_SCALE_BYTES) or len(set(dtypes[:-1])) > 1:
        raise CorruptModel(f"{where}: {part.role} has bitmaps of {', '.join(dtypes)}")


def _check_field(name: str, value: Any, where: str) -> None:
    if name == "gate_dtype" and value is None:
        return
    if name.endswith("dtype"):
        if value not in DTYPES:
            raise CorruptModel(f"{where}: unknown weight dtype {value!r}")
    elif name in ("role", "codec"):
        if not isinstance(value, str):
            raise CorruptModel(f"{where}: {name} is {value!r}, expected text")
    else:
        least = 0 if name == "first_unit" else 1
        if type(value) is not int or not least <= value <= MAX_SIDE:
            raise CorruptModel(f"{where}: {name} is {value!r}, expected {least} to {MAX_SIDE}")


def _lengths(count: int, per_unit: int, nbytes: int) -> NDArray[np.int64]:
    units = ceil_div(count, per_unit)
    lengths = np.full(units, per_unit * nbytes, np.int64)
    lengths[-1] = (count - (units - 1) * per_unit) * nbytes
    return lengths
