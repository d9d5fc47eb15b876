"""Box sums of Gram rows, and what they say of a token, compiled by numba: 64 columns at a time, in vectors of 8.

Rows to be added up are given by their addresses, the middle one first and then pairs at growing distances from it:
neighbouring tokens of the one image, or one row shifted to neighbouring tokens of the other. Every sum is then one pass
over memory whatever the aggregation degree, and the last one is judged before it is stored.

numba's cache of a caller does not see a change of what it calls in another file: after an edit here, in `products` or
in `kernels`, delete `musc/engines/cpu/__pycache__`.
"""

from __future__ import annotations

from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from musc.engines.cpu.products import _I8, _I64, _F32x8, _larger, _load, _Loop, _same, _store

CHUNK = 64  # columns, in bytes 256
PLACES = range(0, 256, 32)
LOWEST = -8.0


def _pointer(builder, address, k, offset=0):
    """Element k of the addresses at `address`, counted from `offset` bytes on."""
    return _load(builder, builder.add(address, builder.mul(k, _I64(8))), offset, _I64)


def _add_pairs(builder, sums, rows, pairs, at):
    """sums + the rows of the first `pairs` pairs of addresses at `rows`, from byte `at` of each row on."""
    loop = _Loop(builder, pairs, sums, "pairs")
    first = builder.mul(loop.at, _I64(2))
    p, q = (builder.add(_pointer(builder, rows, first, 8 * side), at) for side in (0, 1))
    two = [builder.fadd(_load(builder, p, k, _F32x8), _load(builder, q, k, _F32x8)) for k in PLACES]
    return loop.end([builder.fadd(total, new) for total, new in zip(loop.values, two, strict=True)])


def _middle(builder, rows, at):
    first = builder.add(_pointer(builder, rows, _I64(0)), at)
    return [_load(builder, first, k, _F32x8) for k in PLACES]


def _cosines(builder, at, rows, pairs, scale, factor):
    """Of each vector of a chunk its place and its values, box sum * factor * scale."""
    sums = _add_pairs(builder, _middle(builder, rows, at), builder.add(rows, _I64(8)), pairs, at)
    for total, k in zip(sums, PLACES, strict=True):
        of = _load(builder, builder.add(scale, at), k, _F32x8)
        yield k, builder.fmul(builder.fmul(total, factor), of)


def _hits(builder, values, bounds, address, offset):
    """A byte at address + offset: bit k is set where values[k] >= bounds[k]."""
    bits = builder.bitcast(builder.fcmp_ordered(">=", values, bounds), _I8)
    builder.store(bits, builder.inttoptr(builder.add(address, _I64(offset)), _I8.as_pointer()))


@intrinsic
def _sums(typingctx, chunks, rows, pairs, outs, count):
    def codegen(context, builder, signature, args):
        chunks, rows, pairs, outs, count = args
        loop = _Loop(builder, chunks, [], "chunks")
        at = builder.mul(loop.at, _I64(4 * CHUNK))
        each = _Loop(builder, count, [*_middle(builder, rows, at), builder.add(rows, _I64(8))], "outs")
        number = _pointer(builder, pairs, each.at)
        sums = _add_pairs(builder, each.values[:-1], each.values[-1], number, at)
        out = builder.add(_pointer(builder, outs, each.at), at)
        for total, k in zip(sums, PLACES, strict=True):
            _store(builder, total, out, k)
        each.end([*sums, builder.add(each.values[-1], builder.mul(number, _I64(16)))])
        loop.end([])
        return context.get_dummy_value()

    return types.void(*[types.intp] * 5), codegen


@njit(nogil=True, cache=True)
def sums(n, rows, pairs, outs, count):
    """Row outs[k] = sum of the middle row and of the first pairs[0] + ... + pairs[k] pairs, for k below `count`.

    rows, outs: addresses [1 + 2 * all pairs], [count] of rows of n float32, n a multiple of 64; pairs: [count] int64.
    """
    _sums(n // CHUNK, rows.ctypes.data, pairs.ctypes.data, outs.ctypes.data, count)  # type: ignore[call-arg]


@intrinsic
def _judge(typingctx, chunks, rows, pairs, scale, margin, best, factor, own, values, marks, tops):
    def codegen(context, builder, signature, args):
        chunks, rows, pairs, scale, margin, best, factor, own, values, marks, tops = args
        factor, own = _same(builder, factor, _F32x8), _same(builder, own, _F32x8)
        loop = _Loop(builder, chunks, [ir.Constant(_F32x8, [LOWEST] * 8)], "chunks")
        at = builder.mul(loop.at, _I64(4 * CHUNK))
        mark = builder.add(marks, builder.mul(loop.at, _I64(8)))
        top, floor = None, loop.values[0]
        for k, value in _cosines(builder, at, rows, pairs, scale, factor):
            doubt, known = (_load(builder, builder.add(array, at), k, _F32x8) for array in (margin, best))
            _store(builder, value, builder.add(values, at), k)
            upper = builder.fadd(value, doubt)
            top = upper if top is None else _larger(builder, top, upper)
            lower = builder.fsub(value, doubt)
            # a place without a token has a negative margin: there neither bound may win
            floor = _larger(builder, floor, builder.select(builder.fcmp_ordered("<", upper, lower), upper, lower))
            _hits(builder, builder.fadd(value, own), known, mark, k // 32)
        _store(builder, top, builder.add(tops, builder.mul(loop.at, _I64(32))), 0)
        _store(builder, loop.end([floor])[0], builder.add(tops, builder.mul(chunks, _I64(32))), 0)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 6, types.float32, types.float32, *[types.intp] * 3), codegen


@njit(nogil=True, cache=True)
def judge(rows, pairs, scale, margin, best, factor, own, values, marks, tops):
    """One token's cosines, from the row that `sums` would make of `rows`, and what is to be known of them.

    values [n]: sum * factor * scale. marks [n / 64] int64: a bit where value + own >= best, the columns that this token
    may be the nearest of. tops [n / 8 + 8]: the largest of value + margin over eight columns that lie eight apart; the
    last eight, taken together, hold the largest of value - margin. scale, margin, best: [n].
    """
    _judge(  # type: ignore[call-arg]
        marks.shape[0], rows.ctypes.data, pairs, scale.ctypes.data, margin.ctypes.data, best.ctypes.data,
        factor, own, values.ctypes.data, marks.ctypes.data, tops.ctypes.data,
    )  # fmt: skip


@intrinsic
def _passing(typingctx, chunks, tops, floor, hits):
    def codegen(context, builder, signature, args):
        chunks, tops, floor, hits = args
        loop = _Loop(builder, chunks, [], "chunks")
        top = _load(builder, builder.add(tops, builder.mul(loop.at, _I64(32))), 0, _F32x8)
        _hits(builder, top, _same(builder, floor, _F32x8), builder.add(hits, loop.at), 0)
        loop.end([])
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.float32, types.intp), codegen


@njit(nogil=True, cache=True)
def passing(tops, floor, hits):
    """hits [n / 64] uint8: a bit for each of eight tops that is at least `floor`."""
    _passing(hits.shape[0], tops.ctypes.data, floor, hits.ctypes.data)  # type: ignore[call-arg]


@intrinsic
def _largest(typingctx, chunks, rows, pairs, scale, best, factor, tops):
    def codegen(context, builder, signature, args):
        chunks, rows, pairs, scale, best, factor, tops = args
        factor = _same(builder, factor, _F32x8)
        loop = _Loop(builder, chunks, [ir.Constant(_F32x8, [LOWEST] * 8)], "chunks")
        at = builder.mul(loop.at, _I64(4 * CHUNK))
        top = loop.values[0]
        for k, value in _cosines(builder, at, rows, pairs, scale, factor):
            known = _load(builder, builder.add(best, at), k, _F32x8)
            _store(builder, _larger(builder, value, known), builder.add(best, at), k)
            top = _larger(builder, value, top)
        _store(builder, loop.end([top])[0], tops, 0)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 5, types.float32, types.intp), codegen


@njit(nogil=True, cache=True)
def largest(rows, pairs, scale, factor, best, tops):
    """Raises every column's largest cosine `best` by one token's, sum * factor * scale; returns the token's largest.

    rows, pairs: as for `judge`; scale, best: [n]; tops: at least [8], scratch.
    """
    _largest(  # type: ignore[call-arg]
        scale.shape[0] // CHUNK, rows.ctypes.data, pairs, scale.ctypes.data, best.ctypes.data, factor, tops.ctypes.data
    )
    top = tops[0]
    for i in range(1, 8):
        top = max(top, tops[i])
    return top
