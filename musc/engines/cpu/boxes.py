"""Box sums of Gram rows, and what they say of a token, compiled by numba: 8 columns in a vector.

A sum over 2h + 1 neighbours is read once: while a loop runs along an axis, the last 2h + 1 values stay in registers. So
h is a constant of the code, and there is a piece of code for each h from 0 to WIDEST.
"""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from musc.engines.cpu.compiling import kernel
from musc.engines.cpu.products import I8, I64, F32x8, Loop, larger, load, same, store

LANES = 8  # columns of a vector
WIDEST = 4  # h of degree 9
ZEROS = ir.Constant(F32x8, [0.0] * LANES)
LOWEST = ir.Constant(F32x8, [-8.0] * LANES)


def _total(builder, values):
    """Their sum, from the middle outwards."""
    h, total = len(values) // 2, values[len(values) // 2]
    for t in range(1, h + 1):
        total = builder.fadd(total, builder.fadd(values[h - t], values[h + t]))
    return total


def _sum_rows(h):
    """Of 16 columns, sums over y and x of a's tokens: the x come one after the other, then some zeros."""

    def sum_rows(typingctx, rows, step, W, first, second, stride):
        return types.void(*[types.intp] * 6), codegen

    def codegen(context, builder, signature, args):
        rows, step, W, *outs, stride = args
        columns = [load(builder, rows, 8 * k, I64) for k in range(2 * h + 1)]
        window = [ZEROS] * (4 * h)  # of the first eight columns, then of the others
        for number, inside in ((W, True), (I64(h), False)):
            loop = Loop(builder, number, window, "x")
            at, to = builder.mul(loop.at, step), builder.mul(loop.at, stride)
            window = []
            for side, out in enumerate(outs):
                new, places = ZEROS, [builder.add(column, at) for column in columns]
                if inside:
                    new = _total(builder, [load(builder, place, 4 * LANES * side, F32x8) for place in places])
                known = [*loop.values[2 * h * side : 2 * h * (side + 1)], new]
                store(builder, _total(builder, known), builder.add(out, to), 0)
                window += known[1:]
            window = loop.end(window)
            outs = [builder.add(out, builder.mul(W, stride)) for out in outs]
        return context.get_dummy_value()

    return intrinsic(sum_rows)


_sum0, _sum1, _sum2, _sum3, _sum4 = (_sum_rows(h) for h in range(WIDEST + 1))


@kernel(forceinline=True, _nrt=False)
def sum_rows(h, rows, step, W, first, second, stride):
    """Of 16 columns, the sums over 2h + 1 y and the x from k - 2h to k, for k < W + h: one `stride` apart.

    rows: address of [2h + 1] addresses, of x = 0 in patch rows y - h to y + h; step: bytes from one x to the next.
    first, second: addresses of the sums of eight columns each for k = 0.
    """
    if h == 0:
        _sum0(rows, step, W, first, second, stride)  # type: ignore[call-arg]
    elif h == 1:
        _sum1(rows, step, W, first, second, stride)  # type: ignore[call-arg]
    elif h == 2:
        _sum2(rows, step, W, first, second, stride)  # type: ignore[call-arg]
    elif h == 3:
        _sum3(rows, step, W, first, second, stride)  # type: ignore[call-arg]
    else:
        _sum4(rows, step, W, first, second, stride)  # type: ignore[call-arg]


def _score(h):
    """Of one token, sums over x and y of b's tokens, and from these its cosines, column of vectors after column."""

    def score(typingctx, row, H, vectors, stride, arrays, factor, own):
        return types.void(*[types.intp] * 5, types.float32, types.float32), codegen

    def codegen(context, builder, signature, args):
        row, H, vectors, stride, arrays, factor, own = args
        scale, margin, best, upper, marks, tops = (load(builder, arrays, 8 * k, I64) for k in range(6))
        fma = builder.module.declare_intrinsic("llvm.fma.v8f32", (), ir.FunctionType(F32x8, [F32x8] * 3))
        factor, own = same(builder, factor, F32x8), same(builder, own, F32x8)
        outer = Loop(builder, vectors, [LOWEST], "columns")
        across = builder.mul(outer.at, I64(4 * LANES))
        start = builder.add(row, across)

        def over_x(y):
            address = builder.add(start, builder.mul(y, stride))
            return _total(builder, [load(builder, address, 4 * t, F32x8) for t in range(-h, h + 1)])

        window = [ZEROS] * h + [over_x(I64(y)) for y in range(h)]
        inner = Loop(builder, H, [*window, LOWEST], "rows")
        *window, top = inner.values
        window = [*window, over_x(builder.add(inner.at, I64(h)))]
        place = builder.add(builder.mul(inner.at, vectors), outer.at)
        at = builder.mul(place, I64(4 * LANES))
        of, doubt, known = (load(builder, builder.add(array, at), 0, F32x8) for array in (scale, margin, best))
        total = _total(builder, window)
        most = builder.call(fma, [builder.fmul(total, factor), of, doubt])
        store(builder, most, builder.add(upper, at), 0)
        bits = builder.bitcast(builder.fcmp_ordered(">=", builder.fadd(most, own), known), I8)
        builder.store(bits, builder.inttoptr(builder.add(marks, place), I8.as_pointer()))
        top = inner.end([*window[1:], larger(builder, top, most)])[-1]
        store(builder, top, builder.add(tops, across), 0)
        found = outer.end([larger(builder, outer.values[0], top)])[0]
        store(builder, found, builder.add(tops, builder.mul(vectors, I64(4 * LANES))), 0)
        return context.get_dummy_value()

    return intrinsic(score)


_score0, _score1, _score2, _score3, _score4 = (_score(h) for h in range(WIDEST + 1))


@kernel(forceinline=True, _nrt=False)
def score(h, row, H, vectors, stride, arrays, factor, own):
    """One token's cosines, from its sums over a's neighbourhood, and what is to be known of them.

    row: address of those with b's token (0, 0), `stride` bytes from one patch row of b to the next, zeros around them.
    arrays: address of six addresses. Of scale, margin, best [H, 8 vectors]; upper [H, 8 vectors], made sum * factor *
    scale + margin; marks [H, vectors] bytes, made a bit where upper + own >= best; and tops [8 vectors + 8], made the
    largest of `upper` in each column of patches, the last eight, taken together, the largest of all.
    """
    if h == 0:
        _score0(row, H, vectors, stride, arrays, factor, own)  # type: ignore[call-arg]
    elif h == 1:
        _score1(row, H, vectors, stride, arrays, factor, own)  # type: ignore[call-arg]
    elif h == 2:
        _score2(row, H, vectors, stride, arrays, factor, own)  # type: ignore[call-arg]
    elif h == 3:
        _score3(row, H, vectors, stride, arrays, factor, own)  # type: ignore[call-arg]
    else:
        _score4(row, H, vectors, stride, arrays, factor, own)  # type: ignore[call-arg]
