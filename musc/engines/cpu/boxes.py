"""Box sums of Gram rows, and what they say of a token, compiled by numba: 64 columns at a time, in vectors of 8.

Rows to be added up are given by their addresses, the middle one first and then pairs at growing distances from it:
neighbouring tokens of the one image, or one row shifted to neighbouring tokens of the other. Every sum is then one pass
over memory whatever the aggregation degree, and the last one is read before it is stored.
"""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from musc.engines.cpu.compiling import kernel
from musc.engines.cpu.products import I8, I64, F32x8, Loop, larger, load, same, store

CHUNK = 64  # columns, in bytes 256
PLACES = range(0, 256, 32)
LOWEST = -8.0


def _pointer(builder, address, k, offset=0):
    """Element k of the addresses at `address`, counted from `offset` bytes on."""
    return load(builder, builder.add(address, builder.mul(k, I64(8))), offset, I64)


def _add_pairs(builder, sums, rows, pairs, at):
    """sums + the rows of the first `pairs` pairs of addresses at `rows`, from byte `at` of each row on."""
    loop = Loop(builder, pairs, sums, "pairs")
    first = builder.mul(loop.at, I64(2))
    p, q = (builder.add(_pointer(builder, rows, first, 8 * side), at) for side in (0, 1))
    two = [builder.fadd(load(builder, p, k, F32x8), load(builder, q, k, F32x8)) for k in PLACES]
    return loop.end([builder.fadd(total, new) for total, new in zip(loop.values, two, strict=True)])


def _middle(builder, rows, at):
    first = builder.add(_pointer(builder, rows, I64(0)), at)
    return [load(builder, first, k, F32x8) for k in PLACES]


@intrinsic
def _sums(typingctx, chunks, rows, pairs, outs, count):
    def codegen(context, builder, signature, args):
        chunks, rows, pairs, outs, count = args
        loop = Loop(builder, chunks, [], "chunks")
        at = builder.mul(loop.at, I64(4 * CHUNK))
        each = Loop(builder, count, [*_middle(builder, rows, at), builder.add(rows, I64(8))], "outs")
        number = _pointer(builder, pairs, each.at)
        sums = _add_pairs(builder, each.values[:-1], each.values[-1], number, at)
        out = builder.add(_pointer(builder, outs, each.at), at)
        for total, k in zip(sums, PLACES, strict=True):
            store(builder, total, out, k)
        each.end([*sums, builder.add(each.values[-1], builder.mul(number, I64(16)))])
        loop.end([])
        return context.get_dummy_value()

    return types.void(*[types.intp] * 5), codegen


@kernel
def box_sums(n, rows, pairs, outs, count):
    """Row outs[k] = sum of the middle row and of the first pairs[0] + ... + pairs[k] pairs, for k below `count`.

    n: numbers in a row, a multiple of 64. rows, pairs, outs: addresses of [1 + 2 * all pairs] addresses of rows, of
    [count] int64 and of [count] addresses of rows.
    """
    _sums(n // CHUNK, rows, pairs, outs, count)  # type: ignore[call-arg]


@intrinsic
def _score(typingctx, chunks, rows, pairs, arrays, factor, own):
    def codegen(context, builder, signature, args):
        chunks, rows, pairs, arrays, factor, own = args
        scale, margin, best, upper, marks, tops = (_pointer(builder, arrays, I64(k)) for k in range(6))
        fma = builder.module.declare_intrinsic("llvm.fma.v8f32", (), ir.FunctionType(F32x8, [F32x8] * 3))
        factor, own = same(builder, factor, F32x8), same(builder, own, F32x8)
        loop = Loop(builder, chunks, [ir.Constant(F32x8, [LOWEST] * 8)], "chunks")
        at = builder.mul(loop.at, I64(4 * CHUNK))
        mark = builder.add(marks, builder.mul(loop.at, I64(8)))
        sums = _add_pairs(builder, _middle(builder, rows, at), builder.add(rows, I64(8)), pairs, at)
        top = None
        for total, k in zip(sums, PLACES, strict=True):
            of, doubt, known = (load(builder, builder.add(array, at), k, F32x8) for array in (scale, margin, best))
            most = builder.call(fma, [builder.fmul(total, factor), of, doubt])
            store(builder, most, builder.add(upper, at), k)
            top = most if top is None else larger(builder, top, most)
            bits = builder.bitcast(builder.fcmp_ordered(">=", builder.fadd(most, own), known), I8)
            builder.store(bits, builder.inttoptr(builder.add(mark, I64(k // 32)), I8.as_pointer()))
        store(builder, top, builder.add(tops, builder.mul(loop.at, I64(32))), 0)
        found = loop.end([larger(builder, loop.values[0], top)])[0]
        store(builder, found, builder.add(tops, builder.mul(chunks, I64(32))), 0)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 4, types.float32, types.float32), codegen


@kernel
def score(n, rows, pairs, arrays, factor, own):
    """One token's cosines, from the row that `box_sums` would make of `rows`, and what is to be known of them.

    arrays: address of six addresses. Of scale, margin, best [n]; upper [n], made sum * factor * scale + margin; marks
    [n / 64] int64, made a bit where upper + own >= best; and tops [n / 8 + 8], made the largest of `upper` of eight
    columns that lie eight apart, the last eight, taken together, the largest of all.
    """
    _score(n // CHUNK, rows, pairs, arrays, factor, own)  # type: ignore[call-arg]
