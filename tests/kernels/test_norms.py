"""RMSNorm and LayerNorm: whole rows and groups, with biases, in place, added."""

from __future__ import annotations

import numpy as np
import pytest
from comparing import both, relative

from flashllm import kernels
from flashllm.errors import InvalidInput
from flashllm.kernels.weights import padded

KINDS = ("rms_norm", "layer_norm")


def rows(rng, count, width, magnitude=30.0, offset=0.0):
    x = np.zeros((count, padded(width)), np.float32)
    x[:, :width] = rng.standard_normal((count, width)) * magnitude + offset
    return x


def exact(kind, x, weight, bias, eps):
    """In float64, x [..., size]."""
    x = x.astype(np.float64)
    if kind == "layer_norm":
        x = x - x.mean(axis=-1, keepdims=True)
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + eps) * weight + bias


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("width", [16, 32, 48, 100, 576])
@pytest.mark.parametrize("kind", KINDS)
def test_norms_of_rows(cpu, twin, kind, width, with_bias):
    rng = np.random.default_rng(1)
    x = rows(rng, 5, width, offset=100.0)
    x[1] = 0
    weight, bias = rng.standard_normal((2, width)).astype(np.float32)

    def record(program):
        out = np.zeros_like(x)
        getattr(program, kind)(x, weight, 1e-5, out, bias=bias if with_bias else None)
        return out

    ours, theirs = both(cpu, twin, 5, record)
    expected = exact(kind, x[:, :width], weight, bias if with_bias else 0, 1e-5)
    for result in (ours, theirs):
        assert relative(result[:, :width], expected) < 3e-6
        assert not result[:, width:].any()


@pytest.mark.parametrize(("groups", "size"), [(1, 48), (3, 16), (4, 64), (5, 80)])
@pytest.mark.parametrize("kind", KINDS)
def test_norms_of_groups_in_place(cpu, twin, kind, groups, size):
    """Each group by itself, with its own weights: what one norm of it alone gives, bitwise."""
    rng = np.random.default_rng(2)
    width = groups * size
    start = rows(rng, 3, width)
    start[0, :size] *= 1000
    weight, bias = rng.standard_normal((2, width)).astype(np.float32)

    def record(program):
        x = start.copy()
        getattr(program, kind)(x, weight, 1e-6, x, bias=bias, groups=groups)
        return x

    ours, theirs = both(cpu, twin, 3, record)
    assert relative(ours, theirs) < 1e-6
    for group in range(groups):
        part = slice(group * size, (group + 1) * size)
        alone = np.zeros((3, padded(size)), np.float32)
        alone[:, :size] = start[:, part]
        program = cpu.program(3)
        weight_of, bias_of = (np.ascontiguousarray(v[part]) for v in (weight, bias))
        getattr(program, kind)(alone, weight_of, 1e-6, alone, bias=bias_of)
        program.run(3)
        assert np.array_equal(ours[:, part], alone[:, :size])


@pytest.mark.parametrize("kind", KINDS)
def test_norms_are_added_to_what_is_there(cpu, twin, kind):
    rng = np.random.default_rng(3)
    x, start = rows(rng, 4, 72), rows(rng, 4, 72)
    weight = rng.standard_normal(72).astype(np.float32)

    def record(program):
        out = start.copy()
        getattr(program, kind)(x, weight, 1e-5, out, accumulate=True)
        return out

    ours, theirs = both(cpu, twin, 4, record)
    assert relative(ours, theirs) < 1e-6
    assert relative(ours[:, :72] - start[:, :72], exact(kind, x[:, :72], weight, 0, 1e-5)) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_does_not_depend_on_its_company_or_on_threads(kind):
    rng = np.random.default_rng(4)
    x = rows(rng, 7, 96)
    weight = rng.standard_normal(96).astype(np.float32)

    def compute(threads, chunks):
        backend = kernels.load("cpu", threads)
        source, out = np.zeros_like(x), np.zeros_like(x)
        program = backend.program(7)
        getattr(program, kind)(source, weight, 1e-5, out, groups=3)
        results, start = [], 0
        for count in chunks:
            source[:count] = x[start : start + count]
            program.run(count)
            results.append(out[:count].copy())
            start += count
        backend.close()
        return np.concatenate(results)

    expected = compute(1, [1] * 7)
    for threads, chunks in ((2, [7]), (3, [2, 5])):
        assert np.array_equal(compute(threads, chunks), expected)


def test_sizes_are_checked(cpu):
    program = cpu.program(2)
    x = np.zeros((2, 128), np.float32)
    weight = np.ones(96, np.float32)
    for kind in KINDS:
        norm = getattr(program, kind)
        for groups in (0, 5, 4):  # 4 groups of 24: not whole vectors
            with pytest.raises(InvalidInput, match="groups"):
                norm(x, weight, 1e-5, x, groups=groups)
        with pytest.raises(InvalidInput, match="bias"):
            norm(x, weight, 1e-5, x, bias=np.ones(95, np.float32))
        with pytest.raises(InvalidInput, match="out"):
            norm(x, weight, 1e-5, np.zeros((1, 128), np.float32))
