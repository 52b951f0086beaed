"""Random weights packed for kernels by plain loops, written from docs/format.md alone."""

from __future__ import annotations

import itertools

import ml_dtypes
import numpy as np

from flashllm.kernels.weights import RowFFN, TileFFN, TileMatrix

STORED = {"f32": np.float32, "f16": np.float16, "bf16": ml_dtypes.bfloat16}
DTYPES = ("f32", "f16", "bf16", "q8", "q4", "q4m")
SLACK = 64


class Quantized:
    """Random codes with full range, scales and minimums: groups of 32 along the columns."""

    def __init__(self, rng, rows, cols, dtype, spread=1.0):
        self.dtype, self.rows, self.cols = dtype, rows, cols
        if dtype in STORED:
            self.values = (rng.standard_normal((rows, cols)) * spread).astype(STORED[dtype])
            return
        top = 256 if dtype == "q8" else 16
        self.codes = rng.integers(0, top, (rows, cols), np.uint8)
        groups = -(-cols // 32)
        self.scales = (rng.uniform(0.2, 1, (rows, groups)) * spread / top).astype(np.float16)
        self.minimums = (rng.standard_normal((rows, groups)) * spread).astype(np.float16)

    def dense(self):
        """The weights as float32 [rows, cols]."""
        if self.dtype in STORED:
            return self.values.astype(np.float32)
        scale, minimum = (
            np.repeat(part.astype(np.float32), 32, axis=1)[:, : self.cols]
            for part in (self.scales, self.minimums)
        )
        codes = self.codes.astype(np.float32)
        if self.dtype == "q4m":
            return codes * scale + minimum
        return (codes - (128 if self.dtype == "q8" else 8)) * scale


def tile(w, row0, col0):
    """The bytes of one 16 x 32 tile; outside the matrix weights are zero."""
    if w.dtype in STORED:
        block = np.zeros((32, 16), STORED[w.dtype])
        part = w.values[row0 : row0 + 16, col0 : col0 + 32].T
        block[: part.shape[0], : part.shape[1]] = part
        return block.tobytes()
    codes = np.full((16, 32), {"q8": 128, "q4": 8, "q4m": 0}[w.dtype], np.uint8)
    part = w.codes[row0 : row0 + 16, col0 : col0 + 32]
    codes[: part.shape[0], : part.shape[1]] = part
    scales, minimums = np.zeros(16, np.float16), np.zeros(16, np.float16)
    present = w.scales[row0 : row0 + 16]
    if col0 // 32 < present.shape[1]:
        scales[: len(present)] = present[:, col0 // 32]
        minimums[: len(present)] = w.minimums[row0 : row0 + 16, col0 // 32]
    data = bytearray()
    if w.dtype == "q8":
        for j in range(8):
            data += codes[:, 4 * j : 4 * j + 4].tobytes()
    else:
        for j in range(4):
            low, high = codes[:, 4 * j : 4 * j + 4], codes[:, 16 + 4 * j : 20 + 4 * j]
            data += (low | (high << 4)).tobytes()
    data += scales.tobytes()
    return bytes(data + (minimums.tobytes() if w.dtype == "q4m" else b""))


def panel(w, row0):
    """The tiles of 16 rows."""
    return b"".join(tile(w, row0, c) for c in range(0, w.cols, 32))


def place(units):
    """Units in memory, and the table of their addresses."""
    owners = [np.frombuffer(bytes(u) + bytes(SLACK), np.uint8) for u in units]
    return owners, np.array([o.ctypes.data for o in owners], np.int64)


def tile_matrix(w, per_unit):
    """(TileMatrix, owners of its memory)."""
    panels = [panel(w, r) for r in range(0, w.rows, 16)]
    units = [b"".join(panels[i : i + per_unit]) for i in range(0, len(panels), per_unit)]
    owners, table = place(units)
    return TileMatrix(w.dtype, w.rows, w.cols, per_unit, table), owners


def tile_ffn(gate, up, down, per_unit):
    """(TileFFN, owners): gate (or None), up [neurons, width]; down [width, neurons]."""
    units = []
    for first in range(0, up.rows, 32 * per_unit):
        unit = b""
        for block in range(first, first + 32 * per_unit, 32):
            for matrix in (gate, up) if gate else (up,):
                unit += panel(matrix, block) + panel(matrix, block + 16)
        for row in range(0, down.rows, 16):
            for block in range(first, first + 32 * per_unit, 32):
                unit += tile(down, row, block)
        units.append(unit)
    owners, table = place(units)
    gated = gate is not None
    return TileFFN(up.dtype, down.dtype, up.cols, up.rows, per_unit, table, gated), owners


def pruned(w, rng, sparsity):
    """The weights with about such a share of them zero; the first tile has none but zeros."""
    gone = rng.random((w.rows, w.cols)) < sparsity
    gone[:16, :32] = True
    if w.dtype in STORED:
        w.values[gone] = 0
    else:
        w.codes[gone] = {"q8": 128, "q4": 8}[w.dtype]
    return w


def squeezed(sets):
    """A unit of codec bitmap. sets: (dtype, panels), a panel the bytes of its tiles."""
    panels = [(dtype, panel) for dtype, some in sets for panel in some]
    found = [squeezed_panel(dtype, panel) for dtype, panel in panels]
    heads = sum(8 + len(bitmaps) for bitmaps, _ in found)
    at, end, unit = 0, heads, b""
    for bitmaps, values in found:
        unit += int(end - at).to_bytes(8, "little") + bitmaps
        at += 8 + len(bitmaps)
        end += len(values)
    return unit + b"".join(values for _, values in found)


def squeezed_panel(dtype, tiles):
    """(bitmaps, scales and values) of a panel."""
    size = {"f16": 1024, "bf16": 1024, "q8": 544, "q4": 288}[dtype]
    zero = {"f16": 0, "bf16": 0, "q8": 128, "q4": 8}[dtype]
    bitmaps, scales, values = bytearray(), bytearray(), bytearray()
    for begin in range(0, len(tiles), size):
        tile = tiles[begin : begin + size]
        if dtype in STORED:
            codes = [int.from_bytes(tile[i : i + 2], "little") for i in range(0, 1024, 2)]
        elif dtype == "q8":
            codes = list(tile[:512])
            scales += tile[512:]
        else:
            codes = [b & 15 for b in tile[:256]] + [b >> 4 for b in tile[:256]]
            scales += tile[256:]
        words = [codes[first : first + 64] for first in range(0, 512, 64)]
        for word in words:
            bits = sum(1 << i for i, code in enumerate(word) if code != zero)
            bitmaps += bits.to_bytes(8, "little")
        kept = [[code for code in word if code != zero] for word in words]
        if dtype in STORED:
            values += b"".join(code.to_bytes(2, "little") for word in kept for code in word)
        elif dtype == "q8":
            values += b"".join(map(bytes, kept))
        else:
            for low, high in zip(kept[:4], kept[4:], strict=True):
                pairs = itertools.zip_longest(low, high, fillvalue=0)
                values += bytes(a | b << 4 for a, b in pairs)
    return bytes(bitmaps), bytes(scales + values)


def bitmap_matrix(w, per_unit):
    """(TileMatrix, owners) of the same as tile_matrix, as bitmaps."""
    panels = [panel(w, r) for r in range(0, w.rows, 16)]
    units = [
        squeezed([(w.dtype, panels[i : i + per_unit])]) for i in range(0, len(panels), per_unit)
    ]
    owners, table = place(units)
    return TileMatrix(w.dtype, w.rows, w.cols, per_unit, table, bitmap=True), owners


def bitmap_ffn(gate, up, down, per_unit):
    """(TileFFN, owners) of the same as tile_ffn, as bitmaps."""
    units = []
    for first in range(0, up.rows, 32 * per_unit):
        blocks = range(first, first + 32 * per_unit, 32)
        inputs = [
            panel(matrix, row)
            for block in blocks
            for matrix in ((gate, up) if gate else (up,))
            for row in (block, block + 16)
        ]
        outputs = [
            b"".join(tile(down, row, block) for block in blocks) for row in range(0, down.rows, 16)
        ]
        units.append(squeezed([(up.dtype, inputs), (down.dtype, outputs)]))
    owners, table = place(units)
    gated = gate is not None
    ffn = TileFFN(up.dtype, down.dtype, up.cols, up.rows, per_unit, table, gated, bitmap=True)
    return ffn, owners


def row_part(w, n):
    """One neuron's row of codec `row`; columns are padded to 64."""
    width = -(-w.cols // 64) * 64
    if w.dtype in STORED:
        row = np.zeros(width, STORED[w.dtype])
        row[: w.cols] = w.values[n]
        return row.tobytes()
    codes = np.full(width, {"q8": 128, "q4": 8, "q4m": 0}[w.dtype], np.uint8)
    codes[: w.cols] = w.codes[n]
    scales, minimums = np.zeros(width // 32, np.float16), np.zeros(width // 32, np.float16)
    scales[: w.scales.shape[1]] = w.scales[n]
    minimums[: w.scales.shape[1]] = w.minimums[n]
    if w.dtype == "q8":
        data = codes.tobytes()
    else:
        halves = codes.reshape(-1, 2, 32)
        data = (halves[:, 0] | (halves[:, 1] << 4)).tobytes()
    data += scales.tobytes()
    return data + (minimums.tobytes() if w.dtype == "q4m" else b"")


def row_ffn(gate, up, down_t, neurons):
    """(RowFFN of the given neuron ids, owners): matrices [neurons, width]; gate may be None."""
    matrices = (gate, up, down_t) if gate else (up, down_t)
    owners, table = place([b"".join(row_part(w, n) for w in matrices) for n in neurons])
    return RowFFN(up.dtype, up.cols, table, gate is not None), owners
