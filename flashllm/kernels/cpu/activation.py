"""Functions of 16 floats, e^x, tanh, erf and activations; and quantising to int8."""

from __future__ import annotations

from numba import float32

from flashllm.kernels import jit
from flashllm.kernels.cpu.work import share, unpack
from flashllm.kernels.simd import (
    absolute,
    add,
    add_i32,
    div,
    float_from_bits,
    fma,
    load_f32,
    load_float,
    max_lanes,
    maximum,
    minimum,
    mul,
    power_of_two,
    splat,
    store_f32,
    store_float,
    store_i8,
    store_i32,
    sub,
    sum_lanes_i32,
    to_int,
    where_below,
    zero,
)

SILU, GELU, GELU_ERF, RELU, RELU2 = 0, 1, 2, 3, 4
FUNCTIONS = {"silu": SILU, "gelu": GELU, "gelu_erf": GELU_ERF, "relu": RELU, "relu2": RELU2}

TINY = float32(1e-30)
"""A group of activations below this is rounded to zero: 127 / it could overflow."""

_ROUND = float32(12582912.0)
"""1.5 * 2^23: adding and subtracting it rounds a float of magnitude < 2^22 to the nearest even
integer with the two operations every CPU has."""


@jit.inline
def round_nearest(x):
    """The nearest even integer, for |x| < 2^22."""
    return sub(add(x, splat(_ROUND)), splat(_ROUND))


@jit.inline
def exp(x):
    """e^x to about 1 ulp; below -87 it is e^-87, above 88 it is e^88.

    Cody and Waite's reduction x = n ln 2 + r, |r| <= ln 2 / 2, then a Taylor polynomial of degree
    7 in r, whose remainder there is below 6e-9.
    """
    x = minimum(maximum(x, splat(float32(-87.0))), splat(float32(88.0)))
    n = round_nearest(mul(x, splat(float32(1.4426950408889634))))
    r = fma(n, splat(float32(-0.693145751953125)), x)
    r = fma(n, splat(float32(-1.428606765330187e-06)), r)
    p = splat(float32(1.0 / 5040.0))
    p = fma(p, r, splat(float32(1.0 / 720.0)))
    p = fma(p, r, splat(float32(1.0 / 120.0)))
    p = fma(p, r, splat(float32(1.0 / 24.0)))
    p = fma(p, r, splat(float32(1.0 / 6.0)))
    p = fma(p, r, splat(float32(0.5)))
    p = fma(p, r, splat(float32(1.0)))
    p = fma(p, r, splat(float32(1.0)))
    return mul(p, power_of_two(to_int(n)))


@jit.inline
def _sigmoid(x):
    one = splat(float32(1.0))
    return div(one, add(one, exp(sub(zero(), x))))


@jit.inline
def tanh(x):
    """The hyperbolic tangent, to about 2e-7 of its value.

    1 - 2 / (e^2x + 1); near 0, where that cancels, the Taylor polynomial of degree 11, whose next
    term is 1.3e-8 of the value at 0.35.
    """
    s = mul(x, x)
    p = splat(float32(-1382.0 / 155925.0))
    p = fma(p, s, splat(float32(62.0 / 2835.0)))
    p = fma(p, s, splat(float32(-17.0 / 315.0)))
    p = fma(p, s, splat(float32(2.0 / 15.0)))
    p = fma(p, s, splat(float32(-1.0 / 3.0)))
    near = fma(mul(p, s), x, x)
    one = splat(float32(1.0))
    far = sub(one, div(splat(float32(2.0)), add(exp(add(x, x)), one)))
    return where_below(absolute(x), splat(float32(0.35)), near, far)


@jit.inline
def erf_of_positive(x):
    """erf(x) for x >= 0, to 1.4e-7.

    1 - e^(-x g(x)) with g(x) = -ln(erfc(x)) / x as a polynomial of degree 7: a minimax fit on
    [0, 4] in float64, off by 1.6e-8; float32 rounding is the rest. Beyond 4 erf is 1 in float32.
    """
    x = minimum(x, splat(float32(4.0)))
    g = splat(float32(3.14401842e-05))
    g = fma(g, x, splat(float32(-0.000308802371)))
    g = fma(g, x, splat(float32(0.00103240229)))
    g = fma(g, x, splat(float32(0.000536932294)))
    g = fma(g, x, splat(float32(-0.0195839593)))
    g = fma(g, x, splat(float32(0.102919613)))
    g = fma(g, x, splat(float32(0.636597734)))
    g = fma(g, x, splat(float32(1.12838025)))
    return sub(splat(float32(1.0)), exp(sub(zero(), mul(x, g))))


@jit.inline
def activate(x, function, threshold):
    """silu, gelu (the tanh form), gelu_erf, relu or relu2 of 16 floats.

    relu: x where it exceeds the float whose bits are `threshold`, else 0.
    gelu: 0.5 x (1 + tanh(z)) = x sigmoid(2 z), z = sqrt(2 / pi) (x + 0.044715 x^3).
    gelu_erf: 0.5 x (1 + erf(x / sqrt(2))) = 0.5 (x + |x| erf(|x| / sqrt(2))), as erf is odd.
    """
    if function == RELU:
        return where_below(splat(float_from_bits(threshold)), x, x, zero())
    if function == RELU2:
        positive = maximum(x, zero())
        return mul(positive, positive)
    if function == GELU_ERF:
        size = absolute(x)
        erf = erf_of_positive(mul(size, splat(float32(0.7071067811865476))))
        return mul(splat(float32(0.5)), fma(size, erf, x))
    if function == GELU:
        cube = mul(mul(x, x), x)
        z2 = mul(fma(cube, splat(float32(0.044715)), x), splat(float32(1.5957691216057308)))
        return mul(x, _sigmoid(z2))
    return mul(x, _sigmoid(x))


@jit.inline
def rectify(x, wanted):
    """relu of 16 floats, if wanted."""
    return maximum(x, zero()) if wanted else x


@jit.inline
def quantize_block(x, codes, scale, total):
    """32 floats to int8 codes, one scale (largest magnitude / 127) and the sum of the codes.

    Returns the rounded numbers, in two vectors.
    """
    low, high = load_f32(x), load_f32(x + 64)
    largest = max_lanes(maximum(absolute(low), absolute(high)))
    store_float(scale, float32(largest / float32(127.0)))
    inverse = splat(float32(float32(127.0) / largest if largest > TINY else 0.0))
    low, high = round_nearest(mul(low, inverse)), round_nearest(mul(high, inverse))
    store_i8(codes, to_int(low))
    store_i8(codes + 16, to_int(high))
    store_i32(total, sum_lanes_i32(add_i32(to_int(low), to_int(high))))
    return low, high


@jit.op
def quantize(args, rows, thread, threads):
    """Activations' int8 form from its floats: the groups of all tokens are shared out."""
    values, codes, scales, sums, groups = unpack(args, 5)
    first, last = share(rows * groups, thread, threads)
    for g in range(first, last):
        quantize_block(values + 128 * g, codes + 32 * g, scales + 4 * g, sums + 4 * g)


@jit.op
def quantize_fine(args, rows, thread, threads):
    """FineActivations: row 2t is row t in int8, row 2t + 1 what that left over, in int8 as well."""
    x, values, codes, scales, sums, groups = unpack(args, 6)
    first, last = share(rows * groups, thread, threads)
    for task in range(first, last):
        t = task // groups
        g = task + t * groups
        rest = g + groups
        source, to = x + 128 * task, values + 128 * g
        store_f32(to, load_f32(source))
        store_f32(to + 64, load_f32(source + 64))
        low, high = quantize_block(to, codes + 32 * g, scales + 4 * g, sums + 4 * g)
        step, to = splat(float32(-load_float(scales + 4 * g))), values + 128 * rest
        store_f32(to, fma(low, step, load_f32(source)))
        store_f32(to + 64, fma(high, step, load_f32(source + 64)))
        quantize_block(to, codes + 32 * rest, scales + 4 * rest, sums + 4 * rest)
