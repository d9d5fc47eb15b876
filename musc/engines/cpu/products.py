"""The CPU engine's products of two images' tokens in integers, by instructions of AVX2 or of AVX-512 VNNI."""

from __future__ import annotations

from functools import lru_cache

from llvmlite import binding, ir
from numba import types
from numba.extending import intrinsic

from musc.engines.cpu.compiling import kernel

ROWS = 6  # of a register tile
COLS, COLS_WIDE = 16, 64  # of it: 12 of 16 registers of 8 integers hold its sums, 24 of 32 registers of 16
SPAN = 16  # steps of four 8-bit products between two carries from 16-bit sums into 32-bit ones
TOP8 = 90  # of an 8-bit integer: (90 + 90) * 90 * 2 is the most that VPMADDUBSW adds without saturation
TOP8_WIDE = 127  # VPDPBUSD adds in 32 bits
LINE = 64  # bytes that come from memory at a time
LANE = 181.0  # of the length of what one 16-bit sum holds of a token: 181^2 < 2^15


@lru_cache
def has_wide_products() -> bool:
    """True where the processor has AVX-512's products of integers."""
    features = binding.get_host_cpu_features()
    return all(features.get(name) for name in ("avx2", "avx512bw", "avx512vnni"))


I8, I16, I32, I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
I8x32, I16x16, I32x8 = ir.VectorType(I8, 32), ir.VectorType(I16, 16), ir.VectorType(I32, 8)
F32, I32x16 = ir.FloatType(), ir.VectorType(I32, 16)
F32x8 = ir.VectorType(F32, 8)


def load(builder, address, offset, kind, align=4):
    pointer = builder.inttoptr(builder.add(address, I64(offset)), kind.as_pointer())
    value = builder.load(pointer)
    value.align = align
    return value


def store(builder, value, address, offset):
    builder.store(value, builder.inttoptr(builder.add(address, I64(offset)), value.type.as_pointer())).align = 4


@intrinsic
def _prefetch(typingctx, address, lines):
    def codegen(context, builder, signature, args):
        pointer = I8.as_pointer()
        fetch = builder.module.declare_intrinsic(
            "llvm.prefetch", [pointer], ir.FunctionType(ir.VoidType(), [pointer, *[I32] * 3])
        )
        loop = Loop(builder, args[1], [], "lines")
        at = builder.inttoptr(builder.add(args[0], builder.mul(loop.at, I64(LINE))), pointer)
        builder.call(fetch, [at, I32(0), I32(3), I32(1)])  # to be read, into the nearest cache
        loop.end([])
        return context.get_dummy_value()

    return types.void(types.intp, types.intp), codegen


@kernel(forceinline=True, _nrt=False)
def prefetch(row):
    """Has the memory of a contiguous array brought into the cache, while other things are done."""
    _prefetch(row.ctypes.data, (row.nbytes + LINE - 1) // LINE)  # type: ignore[call-arg]


def same(builder, scalar, vector):
    """A vector of equal elements."""
    single = builder.insert_element(ir.Constant(vector, ir.Undefined), scalar, I32(0))
    return builder.shuffle_vector(single, single, ir.Constant(ir.VectorType(I32, vector.count), [0] * vector.count))


def larger(builder, a, b):
    return builder.select(builder.fcmp_ordered(">", a, b), a, b)


class Loop:
    """A counted loop of LLVM instructions; `values` holds what it carries, and its end values afterwards."""

    def __init__(self, builder, count, start, name):
        self.builder, self.count = builder, count
        entry = builder.block
        self.body, self.done = builder.append_basic_block(name), builder.append_basic_block(name + ".done")
        some = builder.icmp_signed(">", count, I64(0))
        builder.cbranch(some, self.body, self.done)
        builder.position_at_end(self.body)
        self.at = builder.phi(I64)
        self.at.add_incoming(I64(0), entry)
        self.values = [builder.phi(value.type) for value in start]
        for phi, value in zip(self.values, start, strict=True):
            phi.add_incoming(value, entry)
        self.entry, self.start = entry, start

    def end(self, new):
        builder = self.builder
        following = builder.add(self.at, I64(1))
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
        self.madd = declare("llvm.x86.avx2.pmadd.wd", (), ir.FunctionType(I32x8, [I16x16, I16x16]))
        self.madd8 = declare("llvm.x86.avx2.pmadd.ub.sw", (), ir.FunctionType(I16x16, [I8x32, I8x32]))

    def start(self, total, offset):
        return self.builder.bitcast(offset, I16x16)

    def step8(self, total, a, b):
        a, b = (self.builder.bitcast(x, I8x32) for x in (a, b))
        return self.builder.add(total, self.builder.call(self.madd8, [a, b]))

    def carry(self, total, sums):
        ones = ir.Constant(I16x16, [1] * 16)
        return self.builder.add(total, self.builder.call(self.madd, [sums, ones]))

    def step16(self, total, a, b):
        a, b = (self.builder.bitcast(x, I16x16) for x in (a, b))
        return self.builder.add(total, self.builder.call(self.madd, [a, b]))


class _Avx512:
    """Sums of six rows and 64 columns: four registers of 16 per row; all products add up in 32 bits (VNNI)."""

    vectors, lanes = 4, 16

    def __init__(self, builder):
        self.builder = builder
        declare, kind = builder.module.declare_intrinsic, ir.FunctionType(I32x16, [I32x16] * 3)
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
    columns = [load(builder, b_at, 4 * kind.count * v, kind) for v in range(vectors)]
    new = []
    for row in range(ROWS):
        word = same(builder, load(builder, a_at, 4 * row, I32), kind)
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
        if unit is _Avx512 and not has_wide_products():
            return context.get_dummy_value()  # never reached, and not to be compiled
        a, b, offset, out, stride, spans, steps, ratio = args
        do, vectors, step = unit(builder), unit.vectors, 4 * unit.lanes * unit.vectors
        whole, real = ir.VectorType(I32, unit.lanes), ir.VectorType(F32, unit.lanes)
        places = [(row, 4 * unit.lanes * v) for row in range(ROWS) for v in range(vectors)]
        zeros = [ir.Constant(whole, [0] * unit.lanes)] * len(places)
        outer = Loop(builder, spans, zeros, "spans")
        offset_at = builder.add(offset, builder.mul(outer.at, I64(step)))
        starts = [load(builder, offset_at, at, whole) for _, at in places[:vectors]] * ROWS
        a_span = builder.add(a, builder.mul(outer.at, I64(SPAN * 4 * ROWS)))
        b_span = builder.add(b, builder.mul(outer.at, I64(SPAN * step)))
        inner = Loop(builder, I64(SPAN), list(map(do.start, outer.values, starts)), "steps8")
        a_at = builder.add(a_span, builder.mul(inner.at, I64(4 * ROWS)))
        b_at = builder.add(b_span, builder.mul(inner.at, I64(step)))
        sums = inner.end(_each_product(builder, do.step8, a_at, b_at, inner.values, whole))
        low = outer.end(list(map(do.carry, outer.values, sums)))
        factor = same(builder, ratio, real)
        row_at = [builder.add(out, builder.mul(stride, I64(row))) for row in range(ROWS)]
        for (row, at), value in zip(places, low, strict=True):  # parked there while the registers hold the other sums
            store(builder, builder.fmul(builder.sitofp(value, real), factor), row_at[row], at)
        a_high = builder.add(a, builder.mul(spans, I64(SPAN * 4 * ROWS)))
        b_high = builder.add(b, builder.mul(spans, I64(SPAN * step)))
        loop = Loop(builder, steps, zeros, "steps16")
        a_at = builder.add(a_high, builder.mul(loop.at, I64(4 * ROWS)))
        b_at = builder.add(b_high, builder.mul(loop.at, I64(step)))
        high = loop.end(_each_product(builder, do.step16, a_at, b_at, loop.values, whole))
        for (row, at), value in zip(places, high, strict=True):
            parked = load(builder, row_at[row], at, real)
            store(builder, builder.fadd(parked, builder.sitofp(value, real)), row_at[row], at)
        return context.get_dummy_value()

    return intrinsic(tile)


_tile_avx2, _tile_avx512 = _tile(_Avx2), _tile(_Avx512)


@kernel(_nrt=False)
def multiply(a, b, offset, ratio, gram, first, last):
    """Gram rows of the panels first..last of image a with all of image b, into rows of `gram` (modulo their number).

    a: [panels, steps, 6] int32, of which SPAN * spans steps are four 8-bit integers and the others two 16-bit ones; b:
    [panels, steps, 16 or 64]; offset: [panels of b, spans, 16 or 64] int32; gram: [panels of b, rows, 16 or 64]
    float32.
    """
    spans, stride, R = offset.shape[1], gram.strides[1], gram.shape[1]
    steps = a.shape[1] - SPAN * spans
    for q in range(b.shape[0]):
        b_at, offset_at = b.ctypes.data + q * b.strides[0], offset.ctypes.data + q * offset.strides[0]
        row = first * ROWS % R
        for p in range(first, last):
            a_at, out = a.ctypes.data + p * a.strides[0], gram.ctypes.data + q * gram.strides[0] + row * stride
            # numba supplies the typing context, which mypy takes for the first argument
            if b.shape[2] == COLS_WIDE:
                _tile_avx512(a_at, b_at, offset_at, out, stride, spans, steps, ratio)
            else:
                _tile_avx2(a_at, b_at, offset_at, out, stride, spans, steps, ratio)
            row = row + ROWS if row + ROWS < R else 0
