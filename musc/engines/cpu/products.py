"""The CPU engine's products of two images' tokens in integers, compiled by numba.

`products` and `products_wide` alone need a particular processor (AVX2, AVX-512 VNNI); they are compiled only where they
are called.
"""

from __future__ import annotations

from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

ROWS = 6  # of a register tile
COLS, COLS_WIDE = 16, 64  # of it: 12 of 16 registers of 8 integers hold its sums, 24 of 32 registers of 16
SPAN = 16  # steps of four 8-bit products between two carries from 16-bit sums into 32-bit ones
TOP8 = 90  # of an 8-bit integer: (90 + 90) * 90 * 2 is the most that VPMADDUBSW adds without saturation
TOP8_WIDE = 127  # VPDPBUSD adds in 32 bits
LANE = 181.0  # of the length of what one 16-bit sum holds of a token: 181^2 < 2^15

_I8, _I16, _I32, _I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
_I8x32, _I16x16, _I32x8 = ir.VectorType(_I8, 32), ir.VectorType(_I16, 16), ir.VectorType(_I32, 8)
_F32, _I32x16 = ir.FloatType(), ir.VectorType(_I32, 16)
_F32x8 = ir.VectorType(_F32, 8)


def _load(builder, address, offset, kind, align=4):
    pointer = builder.inttoptr(builder.add(address, _I64(offset)), kind.as_pointer())
    value = builder.load(pointer)
    value.align = align
    return value


def _store(builder, value, address, offset):
    builder.store(value, builder.inttoptr(builder.add(address, _I64(offset)), value.type.as_pointer())).align = 4


def _same(builder, scalar, vector):
    """A vector of equal elements."""
    single = builder.insert_element(ir.Constant(vector, ir.Undefined), scalar, _I32(0))
    return builder.shuffle_vector(single, single, ir.Constant(ir.VectorType(_I32, vector.count), [0] * vector.count))


def _larger(builder, a, b):
    return builder.select(builder.fcmp_ordered(">", a, b), a, b)


class _Loop:
    """A counted loop of LLVM instructions; `values` holds what it carries, and its end values afterwards."""

    def __init__(self, builder, count, start, name):
        self.builder, self.count = builder, count
        entry = builder.block
        self.body, self.done = builder.append_basic_block(name), builder.append_basic_block(name + ".done")
        some = builder.icmp_signed(">", count, _I64(0))
        builder.cbranch(some, self.body, self.done)
        builder.position_at_end(self.body)
        self.at = builder.phi(_I64)
        self.at.add_incoming(_I64(0), entry)
        self.values = [builder.phi(value.type) for value in start]
        for phi, value in zip(self.values, start, strict=True):
            phi.add_incoming(value, entry)
        self.entry, self.start = entry, start

    def end(self, new):
        builder = self.builder
        following = builder.add(self.at, _I64(1))
        last = builder.block
        builder.cbranch(builder.icmp_signed("<", following, self.count), self.body, self.done)
        self.at.add_incoming(following, last)
        for phi, value in zip(self.values, new, strict=True):
            phi.add_incoming(value, last)
        builder.position_at_end(self.done)
        out = []
        for value, first in zip(new, self.start, strict=True):
            phi = builder.phi(value.type)
            phi.add_incoming(first, self.entry)
            phi.add_incoming(value, last)
            out.append(phi)
        return out


class _Avx2:
    """Sums of six rows and 16 columns: two registers of 8 per row; 8-bit products add up in 16 bits for a span."""

    vectors, lanes = 2, 8

    def __init__(self, builder):
        self.builder = builder
        declare = builder.module.declare_intrinsic
        self.madd = declare("llvm.x86.avx2.pmadd.wd", (), ir.FunctionType(_I32x8, [_I16x16, _I16x16]))
        self.madd8 = declare("llvm.x86.avx2.pmadd.ub.sw", (), ir.FunctionType(_I16x16, [_I8x32, _I8x32]))

    def start(self, total, offset):
        return self.builder.bitcast(offset, _I16x16)

    def step8(self, total, a, b):
        a, b = (self.builder.bitcast(x, _I8x32) for x in (a, b))
        return self.builder.add(total, self.builder.call(self.madd8, [a, b]))

    def carry(self, total, sums):
        ones = ir.Constant(_I16x16, [1] * 16)
        return self.builder.add(total, self.builder.call(self.madd, [sums, ones]))

    def step16(self, total, a, b):
        a, b = (self.builder.bitcast(x, _I16x16) for x in (a, b))
        return self.builder.add(total, self.builder.call(self.madd, [a, b]))


class _Avx512:
    """Sums of six rows and 64 columns: four registers of 16 per row; all products add up in 32 bits (VNNI)."""

    vectors, lanes = 4, 16

    def __init__(self, builder):
        self.builder = builder
        declare, kind = builder.module.declare_intrinsic, ir.FunctionType(_I32x16, [_I32x16] * 3)
        self.dot8 = declare("llvm.x86.avx512.vpdpbusd.512", (), kind)
        self.dot16 = declare("llvm.x86.avx512.vpdpwssd.512", (), kind)

    def start(self, total, offset):
        return self.builder.add(total, offset)

    def step8(self, total, a, b):
        return self.builder.call(self.dot8, [total, a, b])

    def carry(self, total, sums):
        return sums

    def step16(self, total, a, b):
        return self.builder.call(self.dot16, [total, a, b])


def _each_product(builder, step, a_at, b_at, sums, kind):
    """step(sum, six broadcast words of a, words of b) for every one of the sums."""
    vectors = len(sums) // ROWS
    columns = [_load(builder, b_at, 4 * kind.count * v, kind) for v in range(vectors)]
    new = []
    for row in range(ROWS):
        word = _same(builder, _load(builder, a_at, 4 * row, _I32), kind)
        new += [step(sums[vectors * row + v], word, columns[v]) for v in range(vectors)]
    return new


def _tile(unit):
    """out[6, cols] = ratio * (sum of 8-bit products) + (sum of 16-bit products), as float32, by `unit`'s instructions.

    a: address of [SPAN * spans, 6, 4] uint8 (values + top), then [steps, 6, 2] int16; b: of [SPAN * spans, cols, 4]
    int8, then [steps, cols, 2] int16; offset: of [spans, cols] int32, where each span's sums start, so that they end
    without top's part; out: of float32 rows that lie `stride` bytes apart.
    """

    def tile(typingctx, a, b, offset, out, stride, spans, steps, ratio):
        return types.void(*[types.intp] * 7, types.float32), codegen

    def codegen(context, builder, signature, args):
        a, b, offset, out, stride, spans, steps, ratio = args
        do, vectors, step = unit(builder), unit.vectors, 4 * unit.lanes * unit.vectors
        whole, real = ir.VectorType(_I32, unit.lanes), ir.VectorType(_F32, unit.lanes)
        places = [(row, 4 * unit.lanes * v) for row in range(ROWS) for v in range(vectors)]
        zeros = [ir.Constant(whole, [0] * unit.lanes)] * len(places)
        outer = _Loop(builder, spans, zeros, "spans")
        offset_at = builder.add(offset, builder.mul(outer.at, _I64(step)))
        starts = [_load(builder, offset_at, at, whole) for _, at in places[:vectors]] * ROWS
        a_span = builder.add(a, builder.mul(outer.at, _I64(SPAN * 4 * ROWS)))
        b_span = builder.add(b, builder.mul(outer.at, _I64(SPAN * step)))
        inner = _Loop(builder, _I64(SPAN), list(map(do.start, outer.values, starts)), "steps8")
        a_at = builder.add(a_span, builder.mul(inner.at, _I64(4 * ROWS)))
        b_at = builder.add(b_span, builder.mul(inner.at, _I64(step)))
        sums = inner.end(_each_product(builder, do.step8, a_at, b_at, inner.values, whole))
        low = outer.end(list(map(do.carry, outer.values, sums)))
        factor = _same(builder, ratio, real)
        row_at = [builder.add(out, builder.mul(stride, _I64(row))) for row in range(ROWS)]
        for (row, at), value in zip(places, low, strict=True):  # parked there while the registers hold the other sums
            _store(builder, builder.fmul(builder.sitofp(value, real), factor), row_at[row], at)
        a_high = builder.add(a, builder.mul(spans, _I64(SPAN * 4 * ROWS)))
        b_high = builder.add(b, builder.mul(spans, _I64(SPAN * step)))
        loop = _Loop(builder, steps, zeros, "steps16")
        a_at = builder.add(a_high, builder.mul(loop.at, _I64(4 * ROWS)))
        b_at = builder.add(b_high, builder.mul(loop.at, _I64(step)))
        high = loop.end(_each_product(builder, do.step16, a_at, b_at, loop.values, whole))
        for (row, at), value in zip(places, high, strict=True):
            parked = _load(builder, row_at[row], at, real)
            _store(builder, builder.fadd(parked, builder.sitofp(value, real)), row_at[row], at)
        return context.get_dummy_value()

    return intrinsic(tile)


_tile_avx2, _tile_avx512 = _tile(_Avx2), _tile(_Avx512)


@njit(nogil=True, cache=True)
def products(a, b, offset, ratio, ring, first, last):
    """Gram rows of the panels first..last of image a with all of image b, into rows of `ring` (modulo its length).

    a: [panels, steps, 6] int32, of which SPAN * spans steps are four 8-bit integers and the others two 16-bit ones; b:
    [panels, steps, 16]; offset: [panels of b, spans, 16] int32; ring: [rows, n] float32.
    """
    spans, stride = offset.shape[1], ring.strides[0]
    steps = a.shape[1] - SPAN * spans
    for q in range(b.shape[0]):
        b_at, offset_at = b.ctypes.data + q * b.strides[0], offset.ctypes.data + q * offset.strides[0]
        for p in range(first, last):
            out = ring.ctypes.data + ((p * ROWS) % ring.shape[0]) * stride + q * b.strides[1]
            # numba supplies the typing context, which mypy takes for the first argument
            _tile_avx2(a.ctypes.data + p * a.strides[0], b_at, offset_at, out, stride, spans, steps, ratio)


@njit(nogil=True, cache=True)
def products_wide(a, b, offset, ratio, ring, first, last):
    """As `products`, where the processor has AVX-512 VNNI; b: [panels, steps, 64], offset: [panels, spans, 64]."""
    spans, stride = offset.shape[1], ring.strides[0]
    steps = a.shape[1] - SPAN * spans
    for q in range(b.shape[0]):
        b_at, offset_at = b.ctypes.data + q * b.strides[0], offset.ctypes.data + q * offset.strides[0]
        for p in range(first, last):
            out = ring.ctypes.data + ((p * ROWS) % ring.shape[0]) * stride + q * b.strides[1]
            _tile_avx512(a.ctypes.data + p * a.strides[0], b_at, offset_at, out, stride, spans, steps, ratio)
