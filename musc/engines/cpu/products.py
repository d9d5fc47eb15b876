"""The CPU engine's products of two images' tokens in integers, by instructions of AVX2 or of AVX-512 VNNI."""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from musc.engines.cpu.compiling import has, kernel

ROWS = 6  # of a register tile
COLS, COLS_WIDE = 16, 64  # of it: 12 of 16 registers of 8 integers hold its sums, 24 of 32 registers of 16
SPAN = 16  # steps of four 8-bit products between two carries from 16-bit sums into 32-bit ones
TOP8 = 90  # of an 8-bit integer: (90 + 90) * 90 * 2 is the most that VPMADDUBSW adds without saturation
TOP8_WIDE = 127  # VPDPBUSD adds in 32 bits
LANE = 181.0  # of the length of what one 16-bit sum holds of a token: 181^2 < 2^15
I8, I16, I32, I64, F32 = *(ir.IntType(bits) for bits in (8, 16, 32, 64)), ir.FloatType()
I8x32, I16x16, I32x8, I32x16 = (ir.VectorType(*kind) for kind in ((I8, 32), (I16, 16), (I32, 8), (I32, 16)))


def place(builder, start, number, step):
    """The address start + number * step."""
    return builder.add(start, builder.mul(number, step))


def load(builder, address, offset, kind):
    value = builder.load(builder.inttoptr(builder.add(address, I64(offset)), kind.as_pointer()))
    value.align = 4
    return value


def store(builder, value, address, offset=0):
    builder.store(value, builder.inttoptr(builder.add(address, I64(offset)), value.type.as_pointer())).align = 4


def same(builder, scalar, vector):
    """A vector of equal elements."""
    single = builder.insert_element(ir.Constant(vector, ir.Undefined), scalar, I32(0))
    return builder.shuffle_vector(single, single, ir.Constant(ir.VectorType(I32, vector.count), [0] * vector.count))


class Loop:
    """A loop of LLVM instructions, `count` > 0 times; `values`: what a turn leaves to the next, at first `start`."""

    def __init__(self, builder, count, start):
        self.builder, self.count, entry = builder, count, builder.block
        self.body, self.done = builder.append_basic_block("loop"), builder.append_basic_block("done")
        builder.branch(self.body)
        builder.position_at_end(self.body)
        self.carried = [builder.phi(value.type) for value in (I64(0), *start)]
        for phi, value in zip(self.carried, (I64(0), *start), strict=True):
            phi.add_incoming(value, entry)
        self.at, *self.values = self.carried

    def end(self, new):
        """Ends the turn; what it leaves is there after the loop too."""
        builder, following = self.builder, self.builder.add(self.at, I64(1))
        for phi, value in zip(self.carried, (following, *new), strict=True):
            phi.add_incoming(value, builder.block)
        builder.cbranch(builder.icmp_signed("<", following, self.count), self.body, self.done)
        builder.position_at_end(self.done)
        return new


class Avx2:
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


class Avx512:
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


def tile_by(unit):
    """out[6, cols] = ratio * (sum of 8-bit products) + (sum of 16-bit products), as float32, by `unit`'s instructions.

    a: address of [SPAN * spans, 6, 4] uint8 (values + top), then [steps, 6, 2] int16; b: of [SPAN * spans, cols, 4]
    int8, then [steps, cols, 2] int16; offset: of [spans, cols] int32, where each span's sums start, so that they end
    without top's part; out: of float32 rows that lie `stride` bytes apart.
    """

    def tile(typingctx, a, b, offset, out, stride, spans, steps, ratio):
        return types.void(*[types.intp] * 7, types.float32), codegen

    def codegen(context, builder, signature, args):
        if unit is Avx512 and not has("avx512vnni"):
            return context.get_dummy_value()  # never reached, and not to be compiled
        a, b, offset, out, stride, spans, steps, ratio = args
        do, step_a, step_b = unit(builder), I64(4 * ROWS), I64(4 * unit.lanes * unit.vectors)
        whole, real = ir.VectorType(I32, unit.lanes), ir.VectorType(F32, unit.lanes)
        across = [4 * unit.lanes * v for v in range(unit.vectors)]
        places = [(place(builder, out, I64(row), stride), at) for row in range(ROWS) for at in across]
        zeros = [ir.Constant(whole, [0] * unit.lanes)] * len(places)

        def each_product(product, step, sums):
            """Adds the products of six words of a and of the columns of b to the sums."""
            a_at, b_at = place(builder, a, step, step_a), place(builder, b, step, step_b)
            columns = [load(builder, b_at, at, whole) for at in across]
            words = [same(builder, load(builder, a_at, 4 * row, I32), whole) for row in range(ROWS)]
            pairs = [(word, column) for word in words for column in columns]
            return [product(total, *pair) for total, pair in zip(sums, pairs, strict=True)]

        some = builder.icmp_signed(">", spans, I64(0))
        with builder.if_then(some):
            outer = Loop(builder, spans, zeros)
            offset_at = place(builder, offset, outer.at, step_b)
            starts = [load(builder, offset_at, at, whole) for at in across] * ROWS
            inner = Loop(builder, I64(SPAN), list(map(do.start, outer.values, starts)))
            sums = inner.end(each_product(do.step8, place(builder, inner.at, outer.at, I64(SPAN)), inner.values))
            low, factor = outer.end(list(map(do.carry, outer.values, sums))), same(builder, ratio, real)
            for (row, at), value in zip(places, low, strict=True):  # parked there: the registers hold the other sums
                store(builder, builder.fmul(builder.sitofp(value, real), factor), row, at)
        loop = Loop(builder, steps, zeros)
        high = loop.end(each_product(do.step16, place(builder, loop.at, spans, I64(SPAN)), loop.values))
        nothing = ir.Constant(real, [0.0] * unit.lanes)
        for (row, at), value in zip(places, high, strict=True):
            parked = builder.select(some, load(builder, row, at, real), nothing)
            store(builder, builder.fadd(parked, builder.sitofp(value, real)), row, at)
        return context.get_dummy_value()

    return intrinsic(tile)


tile_avx2, tile_avx512 = tile_by(Avx2), tile_by(Avx512)


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
                tile_avx512(a_at, b_at, offset_at, out, stride, spans, steps, ratio)
            else:
                tile_avx2(a_at, b_at, offset_at, out, stride, spans, steps, ratio)
            row = row + ROWS if row + ROWS < R else 0
