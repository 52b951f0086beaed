"""Kernels over bitmaps: how fast they decompress, and what a product gains over whole tiles.

    python tools/bench_bitmaps.py [--only expand|product|bytes|groups] [--size-mb 1024]

expand: one core, from a unit in the second-level cache to a panel of tiles that is used again and
again; GB/s of what is read and of what is written. product: a matrix-vector product on 1 and 2
threads, weights larger than the caches, in turns with the product of the same tiles stored whole.
bytes: bits a weight beside other formats. groups: scales shared by place or by order.
NUMBA_CPU_FEATURES hides instructions, as check_isa.sh does. Run it on a quiet machine.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np

from flashllm import kernels
from flashllm.flash.bitmaps import squeeze_unit
from flashllm.flash.codecs import pack_matrix
from flashllm.flash.parts import MatrixPart
from flashllm.flash.quantize import dequantize, quantize
from flashllm.kernels import jit
from flashllm.kernels.cpu.bitmaps import expand_run
from flashllm.kernels.cpu.panels import panel_bytes
from flashllm.kernels.cpu.tiles import BF16_BITMAP, F16_BITMAP, Q4_BITMAP, Q8_BITMAP
from flashllm.kernels.memory import huge_buffer
from flashllm.kernels.weights import TILE_BYTES, Activations, TileMatrix, padded

DTYPES = ("f16", "bf16", "q8", "q4")
SPARSITIES = (0.5, 0.7, 0.9)
ROWS, COLS = 11008, 4096
EXPANDED = (256, 1024)
"""Rows and columns of the matrix that is decompressed, from the second-level cache to the first."""


def pruned_units(
    rows: int, cols: int, dtype: str, sparsity: float
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Units of a random matrix, in codec tile and in codec bitmap."""
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((rows, cols), dtype=np.float32) / np.float32(64)
    weights[rng.random(weights.shape, np.float32) < sparsity] = 0
    part = MatrixPart("w", "bitmap", dtype, rows, cols, rows // 16, 0, 1)
    tiles = list(pack_matrix(quantize(weights, dtype), part))
    return tiles, [squeeze_unit(unit, part, i) for i, unit in enumerate(tiles)]


def best(run: Callable[[], None], repeats: int = 15) -> float:
    """The least seconds of some runs."""
    run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


@jit.inline
def again(fmt, panel, panels, tiles, out, times):
    """Expand panels, each to the same place, `times` times."""
    for _ in range(times):
        for i in range(panels):
            expand_run(fmt, panel + i * panel_bytes(fmt, tiles), tiles, out)


@jit.entry
def again_f16(panel, panels, tiles, out, times):
    again(F16_BITMAP, panel, panels, tiles, out, times)


@jit.entry
def again_bf16(panel, panels, tiles, out, times):
    again(BF16_BITMAP, panel, panels, tiles, out, times)


@jit.entry
def again_q8(panel, panels, tiles, out, times):
    again(Q8_BITMAP, panel, panels, tiles, out, times)


@jit.entry
def again_q4(panel, panels, tiles, out, times):
    again(Q4_BITMAP, panel, panels, tiles, out, times)


EXPAND = {"f16": again_f16, "bf16": again_bf16, "q8": again_q8, "q4": again_q4}


def expand_rates(dtype: str, sparsity: float) -> tuple[float, float]:
    """GB/s of what is read, and of what is written."""
    rows, cols = EXPANDED
    _, [unit] = pruned_units(rows, cols, dtype, sparsity)
    unit = np.append(unit, np.zeros(64, np.uint8))
    tiles, panels = cols // 32, rows // 16
    out = np.empty(tiles * TILE_BYTES[dtype], np.uint8)
    run = EXPAND[dtype]
    seconds = best(lambda: run(unit.ctypes.data, panels, tiles, out.ctypes.data, 50)) / 50
    return len(unit) / seconds / 1e9, panels * out.nbytes / seconds / 1e9


def expand_table() -> None:
    """Print GB/s of decompressing, on one core."""
    kind = "expand instruction" if "avx512vbmi2" in jit.cpu_features() else "table or loads"
    print(f"decompressing on one core ({kind}): GB/s compressed in, dense out")
    for dtype in DTYPES:
        cells = []
        for sparsity in SPARSITIES:
            compressed, dense = expand_rates(dtype, sparsity)
            cells.append(f"{sparsity:.0%}: {compressed:5.1f} in {dense:5.1f} out")
        print(f"{dtype:5} {'   '.join(cells)}", flush=True)


class Product:
    """Copies of a matrix, enough to overflow the caches, and a program over all of them."""

    def __init__(
        self, backend: kernels.Backend, dtype: str, unit: np.ndarray, size: int, bitmap: bool
    ):
        whole = len(unit) + -len(unit) % 4096
        copies = max(1, size // whole)
        self.bytes = len(unit)
        self.copies = copies
        self._buffer = huge_buffer(copies * whole + 64)
        x, out = Activations(1, COLS), np.zeros((1, padded(ROWS)), np.float32)
        x.values[:] = np.random.default_rng(1).standard_normal(x.values.shape)
        self._program = backend.program(1)
        quantising = backend.program(1)
        quantising.quantize(x)
        quantising.run(1)
        for i in range(copies):
            begin = i * whole
            self._buffer[begin : begin + len(unit)] = unit
            table = np.array([self._buffer.ctypes.data + begin], np.int64)
            weight = TileMatrix(dtype, ROWS, COLS, ROWS // 16, table, bitmap=bitmap)
            self._program.matmul(x, weight, out)

    def seconds(self) -> float:
        """Of one product."""
        start = time.perf_counter()
        self._program.run(1)
        return (time.perf_counter() - start) / self.copies


def product_table(dtypes: list[str], size: int, repeats: int) -> None:
    """Print how many times as long the product of whole tiles takes."""
    print(f"{ROWS} x {COLS}, one token: ms of whole tiles / ms of bitmaps = ratio (pairs)")
    for dtype in dtypes:
        for threads in (1, 2):
            cells = []
            for sparsity in SPARSITIES:
                [tiles], [bitmaps] = pruned_units(ROWS, COLS, dtype, sparsity)
                backend = kernels.load("cpu", threads)
                dense = Product(backend, dtype, tiles, size, False)
                sparse = Product(backend, dtype, bitmaps, size, True)
                dense.seconds(), sparse.seconds()
                pairs = [(dense.seconds(), sparse.seconds()) for _ in range(repeats)]
                backend.close()
                a, b = (1e3 * statistics.median(times) for times in zip(*pairs, strict=True))
                ratios = sorted(whole / packed for whole, packed in pairs)
                cells.append(
                    f"{sparsity:.0%}: {a:.2f} / {b:.2f} = {statistics.median(ratios):.2f} "
                    f"({ratios[0]:.2f} to {ratios[-1]:.2f})"
                )
            print(f"{dtype:5} {threads} threads   {'   '.join(cells)}", flush=True)


def bytes_table() -> None:
    """Print the bits a weight of files, and by how much they are smaller than dense ones."""
    print(
        "bits a weight (times smaller than whole tiles): bitmap as written; the rest by arithmetic"
    )
    print(
        "of the same values: CSR with 2-byte columns, COO with 2 + 2 bytes, 2:4 with 2 bits a value"
    )
    for dtype in ("f16", "q8", "q4"):
        for sparsity in SPARSITIES:
            [tiles], [unit] = pruned_units(1024, COLS, dtype, sparsity)
            weights = 1024 * COLS
            dense = 8 * len(tiles) / weights
            scale = 0 if dtype == "f16" else 0.5
            value, kept = dense - scale, 1 - sparsity
            others = {
                "bitmap": 8 * len(unit) / weights,
                "CSR": kept * (value + 16) + scale + 32 / COLS,
                "COO": kept * (value + 32) + scale,
            }
            if sparsity == 0.5:
                others["2:4"] = kept * (value + 2) + scale
            cells = [f"{name} {bits:5.2f} ({dense / bits:.2f})" for name, bits in others.items()]
            print(f"{dtype:4} {sparsity:.0%}  dense {dense:5.2f}  {'  '.join(cells)}")


def groups_table() -> None:
    """Print what sharing a scale by place costs, and by order among the weights that stay.

    By place, 32 columns side by side share one, as in codec tile, however few of them stay; by
    order each 32 that stay. The smallest weights are those that go.
    """
    print("relative RMS error of the weights that stay, bits a weight of scales and codes:")
    rng = np.random.default_rng(0)
    for dtype in ("q8", "q4"):
        for sparsity in SPARSITIES[:2]:
            weights = rng.standard_normal((256, COLS), dtype=np.float32)
            kept = int(COLS * (1 - sparsity)) // 32 * 32
            places = np.sort(np.argsort(-np.abs(weights), axis=1)[:, :kept], axis=1)
            pruned = np.zeros_like(weights)
            order = np.take_along_axis(weights, places, axis=1)
            np.put_along_axis(pruned, places, order, axis=1)
            cells = []
            for name, matrix, scales in (
                ("by place", pruned, COLS / 32),
                ("by order", np.ascontiguousarray(order), kept / 32),
            ):
                off = dequantize(quantize(matrix, dtype)) - matrix
                error = np.sqrt(np.square(off).sum() / np.square(matrix).sum())
                bits = (16 * scales + kept * (8 if dtype == "q8" else 4)) / COLS
                cells.append(f"{name} {error:.2%}, {bits:.2f}")
            print(f"{dtype} {sparsity:.0%}  {'   '.join(cells)}")


def main() -> None:
    """Print the tables asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=("expand", "product", "bytes", "groups"))
    parser.add_argument("--dtypes", default=",".join(DTYPES), help="of the products")
    parser.add_argument("--size-mb", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    if options.only in (None, "expand"):
        expand_table()
    if options.only in (None, "product"):
        product_table(options.dtypes.split(","), options.size_mb << 20, options.repeats)
    if options.only in (None, "bytes"):
        bytes_table()
    if options.only in (None, "groups"):
        groups_table()


if __name__ == "__main__":
    main()
