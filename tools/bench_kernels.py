"""Kernels against memory bandwidth: weights larger than the caches, read rates in the same run.

For each dtype, GB/s of weight bytes at T = 1 of the matmul and of the two halves of the
feed-forward, on 1 and 2 threads, interleaved with the machine's read rate; then the same of the
sparse feed-forward, whose neurons lie here and there; then matmul rates in Gop/s for many tokens.
Run it on a quiet machine:

    python tools/bench_kernels.py [--size-mb 1024] [--shape 11008x4096] [--only sparse]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np

from flashllm import kernels
from flashllm.kernels import bandwidth
from flashllm.kernels.memory import huge_buffer
from flashllm.kernels.weights import (
    TILE_BYTES,
    Activations,
    RowFFN,
    TileFFN,
    TileMatrix,
    padded,
    row_part_bytes,
)

SPARSE_SHAPE = (16384, 4096)
"""Neurons and width of OPT-6.7B's feed-forward."""
FIRING = 1600
"""Neurons computed: a tenth, as a predictor of its 3 % that fire says."""
ROW_DTYPES = ("f16", "q8", "q4")

DTYPES = ("f32", "f16", "bf16", "q8", "q4", "q4m")


def fill(buffer: np.ndarray, dtype: str, tiles: int) -> None:
    """Plausible tiles: normal numbers everywhere, since subnormal ones are slow on some CPUs."""
    rng = np.random.default_rng(0)
    size = TILE_BYTES[dtype]
    tile = rng.integers(0, 256, size, np.uint8)
    if dtype in ("f32", "f16", "bf16"):
        stored = {"f32": np.float32(0.01), "f16": np.float16(0.01), "bf16": np.uint16(0x3C24)}
        value = stored[dtype]
        tile.view(value.dtype)[:] = value
    else:
        codes = 512 if dtype == "q8" else 256
        tile[codes:].view(np.float16)[:] = 0.01
    buffer[: tiles * size].reshape(tiles, size)[:] = tile


class Case:
    """Copies of one weight, enough to overflow the caches, and a program over all of them."""

    def __init__(self, backend: kernels.Backend, kind: str, dtype: str, rows: int, cols: int,
                 buffer: np.ndarray, tokens: int = 1, per_unit_blocks: int = 0):  # fmt: skip
        blocks, panels = cols // 32, rows // 16
        size = TILE_BYTES[dtype]
        x = Activations(tokens, cols)
        x.values[:] = 1
        self.program = backend.program(tokens)
        self.program.quantize(x)
        if kind == "matmul":
            one = panels * blocks * size
            copies = max(1, len(buffer) // one) if tokens == 1 else 1
            out = np.zeros((tokens, padded(rows)), np.float32)
            for i in range(copies):
                table = np.array([buffer.ctypes.data + i * one], np.int64)
                weight = TileMatrix(dtype, rows, cols, panels, table)
                self.program.matmul(x, weight, out)
            self.bytes = copies * one
        else:
            g = per_unit_blocks or unit_blocks(rows, cols, dtype)
            units = rows // (32 * g)
            one = (4 * blocks + cols // 16) * g * size
            copies = max(1, len(buffer) // (one * units))
            h = Activations(tokens, rows)
            h.values[:] = 1
            out = np.zeros((tokens, padded(cols)), np.float32)
            down = backend.program(tokens)
            down.quantize(h)
            for i in range(copies):
                base = buffer.ctypes.data + i * one * units
                table = np.array([base + u * one for u in range(units)], np.int64)
                ffn = TileFFN(dtype, dtype, cols, rows, g, table)
                if kind == "hidden":
                    self.program.ffn_hidden(x, ffn, "silu", h)
                else:
                    down.ffn_down(h, ffn, out, accumulate=True)
            part = 4 * blocks if kind == "hidden" else cols // 16
            self.bytes = copies * units * g * part * size
            if kind == "down":
                self.program = down
        self.tokens = tokens
        self.run: Callable[[], None] = lambda: self.program.run(tokens)
        self.run()


def fill_rows(buffer: np.ndarray, dtype: str, width: int) -> None:
    """Plausible rows of codec `row`, as many as fit."""
    size, codes = row_part_bytes(dtype, width), {"q8": width, "q4": width // 2}.get(dtype, 0)
    row = np.random.default_rng(0).integers(0, 256, size, np.uint8)
    row[codes:].view(np.float16)[:] = 0.01
    rows = len(buffer) // size
    buffer[: rows * size].reshape(rows, size)[:] = row


class SparseCase:
    """Sparse feed-forwards of random neurons, none of which is used twice in a run; those of one
    are used in the order of their addresses."""

    def __init__(self, backend: kernels.Backend, dtype: str, gated: bool, buffer: np.ndarray):
        neurons, width = SPARSE_SHAPE
        record = (3 if gated else 2) * row_part_bytes(dtype, width)
        layers = len(buffer) // (record * neurons)
        x, h = Activations(1, width), Activations(1, FIRING)
        x.values[:] = 1
        h.values[:] = 1
        bias = np.full(FIRING, 1e4, np.float32)  # all of them do fire
        out = np.zeros((1, padded(width)), np.float32)
        self.programs = {kind: backend.program(1) for kind in ("hidden", "down", "both")}
        self.programs["hidden"].quantize(x)
        self.programs["hidden"].run(1)
        self.bytes = dict.fromkeys(self.programs, 0)
        for turn in range(neurons // FIRING):
            for layer in range(layers):
                order = np.random.default_rng(layer).permutation(neurons)
                ids = np.sort(order[turn * FIRING : (turn + 1) * FIRING])
                table = buffer.ctypes.data + (layer * neurons + ids) * record
                ffn = RowFFN(dtype, width, table, gated)
                for kind in ("hidden", "both"):
                    self.programs[kind].ffn_hidden(
                        x, ffn, "relu", h, up_bias=bias, gate_bias=bias if gated else None
                    )
                    self.bytes[kind] += ffn.input_bytes * FIRING
                for kind in ("down", "both"):
                    self.programs[kind].ffn_down(h, ffn, out)
                    self.bytes[kind] += ffn.part_bytes * FIRING


def unit_blocks(neurons: int, width: int, dtype: str, target: int = 160 << 10) -> int:
    """Blocks of 32 neurons in a unit, as convert chooses them."""
    block = (4 * (width // 32) + width // 16) * TILE_BYTES[dtype]
    count = neurons // 32
    divisors = [g for g in range(1, count + 1) if count % g == 0]
    return min(divisors, key=lambda g: abs(g * block - target))


def best(run: Callable[[], None], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


def sparse_table(buffer: np.ndarray, options: argparse.Namespace) -> None:
    """Print GB/s of the neurons computed, and their share of the read rate."""
    neurons, width = SPARSE_SHAPE
    print(f"\n{FIRING} of {neurons} neurons of {width}; GB/s of what they take (share of reads)")
    print(f"{'dtype':10} {'threads':7} {'read':>7} {'hidden':>14} {'down':>14} {'both':>14}")
    for dtype in ROW_DTYPES:
        fill_rows(buffer, dtype, width)
        for gated in (False, True):
            for threads in (1, 2):
                backend = kernels.load("cpu", threads)
                case = SparseCase(backend, dtype, gated, buffer)
                rates, reads = {}, [bandwidth.measure(threads, len(buffer), 3)]
                for kind, program in case.programs.items():
                    program.run(1)
                    seconds = best(lambda program=program: program.run(1), options.repeats)
                    rates[kind] = case.bytes[kind] / seconds / 1e9
                    reads.append(bandwidth.measure(threads, len(buffer), 3))
                read = max(reads)
                shown = " ".join(f"{rate:6.1f} ({rate / read:4.0%})" for rate in rates.values())
                name = f"{dtype} gated" if gated else dtype
                print(f"{name:10} {threads:7} {read:7.1f} {shown}", flush=True)
                backend.close()


def dense_table(buffer: np.ndarray, options: argparse.Namespace) -> None:
    """Print GB/s of the weights of every dense product of one token."""
    rows, cols = (int(n) for n in options.shape.split("x"))
    print(f"{rows} x {cols}, {options.size_mb} MiB; GB/s of weights (share of reads in this row)")
    print(f"{'dtype':6} {'threads':7} {'read':>7} {'matmul':>14} {'hidden':>14} {'down':>14}")
    for dtype in options.dtypes.split(","):
        fill(buffer, dtype, len(buffer) // TILE_BYTES[dtype])
        for threads in (1, 2):
            backend = kernels.load("cpu", threads)
            cells = []
            reads = [bandwidth.measure(threads, len(buffer), 3)]
            for kind in ("matmul", "hidden", "down"):
                case = Case(
                    backend, kind, dtype, rows, cols, buffer, per_unit_blocks=options.unit_blocks
                )
                cells.append(case.bytes / best(case.run, options.repeats) / 1e9)
                reads.append(bandwidth.measure(threads, len(buffer), 3))
            read = max(reads)
            shown = " ".join(f"{rate:6.1f} ({rate / read:4.0%})" for rate in cells)
            print(f"{dtype:6} {threads:7} {read:7.1f} {shown}", flush=True)
            backend.close()


def tokens_table(buffer: np.ndarray, options: argparse.Namespace) -> None:
    """Print the matmul's rate for many tokens."""
    rows, cols = (int(n) for n in options.shape.split("x"))
    print(f"\n{options.tokens} tokens, Gop/s (a multiplication and an addition are two)")
    for dtype in options.dtypes.split(","):
        fill(buffer, dtype, rows * cols // 512)
        rates = []
        for threads in (1, 2):
            backend = kernels.load("cpu", threads)
            case = Case(backend, "matmul", dtype, rows, cols, buffer, tokens=options.tokens)
            rates.append(2 * rows * cols * options.tokens / best(case.run, 3) / 1e9)
            backend.close()
        print(f"{dtype:6} {rates[0]:8.0f} {rates[1]:8.0f}", flush=True)


TABLES = {"dense": dense_table, "sparse": sparse_table, "tokens": tokens_table}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size-mb", type=int, default=1024)
    parser.add_argument("--shape", default="11008x4096", help="neurons x width, of dense products")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--dtypes", default=",".join(DTYPES), help="of dense products")
    parser.add_argument("--tokens", type=int, default=256, help="rows of the last table")
    parser.add_argument("--unit-blocks", type=int, default=0)
    parser.add_argument("--only", choices=TABLES, help="this table alone")
    options = parser.parse_args()
    buffer = huge_buffer(options.size_mb << 20)
    for name, table in TABLES.items():
        if options.only in (None, name):
            table(buffer, options)


if __name__ == "__main__":
    main()
