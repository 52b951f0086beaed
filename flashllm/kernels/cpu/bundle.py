"""The feed-forward over `row` units: only the neurons a table names are read and computed.

A neuron is one contiguous record, its gate row (if any), up row and down column (the row-column
bundle of "LLM in a flash", section 3.2). Two phases: threads split the neurons for h, then the
columns of the result, where neurons are added in the table's order; so the result does not depend
on the threads.
"""

from __future__ import annotations

from numba import float32

from flashllm.kernels import jit
from flashllm.kernels.cpu.activation import activate
from flashllm.kernels.cpu.panels import put
from flashllm.kernels.cpu.rows import add_column, add_columns, row_dot
from flashllm.kernels.cpu.tiles import BF16, F16, F32, Q4, Q4M, Q8
from flashllm.kernels.cpu.work import share, unpack
from flashllm.kernels.simd import (
    first_lane,
    load_f32,
    load_float,
    load_int,
    splat,
    store_float,
)

_AHEAD = 2
"""Neurons between the one computed and the one prefetched: records are too short for the hardware
prefetcher to run ahead; without software prefetch the kernel reached half its rate.

Lines are asked for as their counterparts are used. Measured on 1,600 of 16,384 neurons of 4096,
one thread, share of the read bandwidth, with a neuron's lines asked for at once and so: f16 0.58
and 0.76, q8 with gates 0.48 and 0.60, q4 0.31 and 0.41."""


@jit.inline
def _row_hidden(fmt, args, rows, thread, threads):
    """h[t, n] = act(gate_n x[t]) * (up_n x[t]) for the table's first neurons, as many as are at
    `count`; without gates act(up_n x[t]). Biases: `step` bytes a neuron, 0 where there is none."""
    x = unpack(args, 5)
    table, count, part, width, h, h_stride = unpack(args + 40, 6)
    function, threshold, up_relu, gated = unpack(args + 88, 4)
    bias, step, up_bias, up_step = unpack(args + 120, 4)
    first, last = share(load_int(count), thread, threads)
    for n in range(first, last):
        neuron = load_int(table + 8 * n)
        ahead = load_int(table + 8 * min(n + _AHEAD, last - 1))
        b, up_b = load_float(bias + step * n), load_float(up_bias + up_step * n)
        for t in range(rows):
            y = float32(row_dot(fmt, neuron, ahead, x, t, width) + b)
            active = first_lane(activate(splat(y), function, threshold))
            if gated:
                u = float32(row_dot(fmt, neuron + part, ahead + part, x, t, width) + up_b)
                active *= max(u, float32(0.0)) if up_relu else u
            store_float(h + 4 * (t * h_stride + n), active)


@jit.inline
def _next_firing(h, stride, rows, n, neurons):
    """The first neuron from n on that is not 0 for every token; `neurons` or more if none is."""
    while n < neurons:
        for t in range(rows):
            if load_float(h + 4 * (t * stride + n)) != 0.0:
                return n
        n += 1
    return n


@jit.inline
def _column(table, n, neurons, skip):
    """Where the column of neuron n is; of the last one if there is none such."""
    return load_int(table + 8 * min(n, neurons - 1)) + skip


@jit.inline
def _down_alone(fmt, h, table, neurons, skip, y, first, last, width):
    """y[first:last] += the columns of the neurons that are not 0, for one token: two at a time."""
    n = _next_firing(h, 0, 1, 0, neurons)
    m = _next_firing(h, 0, 1, n + 1, neurons)
    while m < neurons:
        p = _next_firing(h, 0, 1, m + 1, neurons)
        q = _next_firing(h, 0, 1, p + 1, neurons)
        add_columns(
            fmt,
            _column(table, n, neurons, skip),
            _column(table, m, neurons, skip),
            _column(table, p, neurons, skip),
            _column(table, q, neurons, skip),
            load_float(h + 4 * n),
            load_float(h + 4 * m),
            y,
            first,
            last,
            width,
        )
        n, m = p, q
    if n < neurons:
        column = _column(table, n, neurons, skip)
        add_column(fmt, column, column, load_float(h + 4 * n), y, first, last, width)


@jit.inline
def _row_down(fmt, args, rows, thread, threads):
    """out[t] (+)= bias + sum over the same neurons, in the table's order, of h[t, n] * down_n."""
    h, h_stride, table, count, skip, width, out, stride = unpack(args, 8)
    accumulate, bias, step = unpack(args + 64, 3)
    neurons = load_int(count)
    first, last = share(width >> 6, thread, threads)
    for t in range(rows):
        for p in range(4 * first, 4 * last):
            put(out + 4 * (t * stride + 16 * p), load_f32(bias + step * p), accumulate)
    if rows == 1:
        _down_alone(fmt, h, table, neurons, skip, out, 64 * first, 64 * last, width)
        return
    n = _next_firing(h, h_stride, rows, 0, neurons)
    after = _next_firing(h, h_stride, rows, n + 1, neurons)
    while n < neurons:
        later = _next_firing(h, h_stride, rows, after + 1, neurons)
        column = load_int(table + 8 * n) + skip
        ahead = load_int(table + 8 * (later if later < neurons else n)) + skip
        for t in range(rows):
            active = load_float(h + 4 * (t * h_stride + n))
            if active != 0.0:
                y = out + 4 * t * stride
                add_column(fmt, column, ahead, active, y, 64 * first, 64 * last, width)
        n, after = after, later


@jit.op
def row_hidden_f32(args, rows, thread, threads):
    _row_hidden(F32, args, rows, thread, threads)


@jit.op
def row_hidden_f16(args, rows, thread, threads):
    _row_hidden(F16, args, rows, thread, threads)


@jit.op
def row_hidden_bf16(args, rows, thread, threads):
    _row_hidden(BF16, args, rows, thread, threads)


@jit.op
def row_hidden_q8(args, rows, thread, threads):
    _row_hidden(Q8, args, rows, thread, threads)


@jit.op
def row_hidden_q4(args, rows, thread, threads):
    _row_hidden(Q4, args, rows, thread, threads)


@jit.op
def row_hidden_q4m(args, rows, thread, threads):
    _row_hidden(Q4M, args, rows, thread, threads)


@jit.op
def row_down_f32(args, rows, thread, threads):
    _row_down(F32, args, rows, thread, threads)


@jit.op
def row_down_f16(args, rows, thread, threads):
    _row_down(F16, args, rows, thread, threads)


@jit.op
def row_down_bf16(args, rows, thread, threads):
    _row_down(BF16, args, rows, thread, threads)


@jit.op
def row_down_q8(args, rows, thread, threads):
    _row_down(Q8, args, rows, thread, threads)


@jit.op
def row_down_q4(args, rows, thread, threads):
    _row_down(Q4, args, rows, thread, threads)


@jit.op
def row_down_q4m(args, rows, thread, threads):
    _row_down(Q4M, args, rows, thread, threads)
