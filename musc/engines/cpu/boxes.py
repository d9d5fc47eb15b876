"""Box sums of Gram rows, and what they say of a token, as LLVM instructions: 8 columns in a vector.

A sum over 2h + 1 neighbours is read once: while a loop runs along an axis, the last 2h + 1 values stay in registers. So
h is a constant of the code, and there is a piece of code for each h from 0 to WIDEST.
"""

from functools import wraps

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from musc.engines.cpu.products import F32, I8, I32, I64, Loop, load, place, same, store

LANES = 8  # columns of a vector
WIDEST = 4  # h of degree 9
F32x8 = ir.VectorType(F32, LANES)
ZEROS, ZEROS16 = (ir.Constant(ir.VectorType(F32, lanes), [0.0] * lanes) for lanes in (LANES, 2 * LANES))
HALVES = [ir.Constant(ir.VectorType(I32, LANES), [*range(at, at + LANES)]) for at in (0, LANES)]
LOWEST = ir.Constant(F32x8, [-8.0] * LANES)


def for_every_width(piece):
    """A function of h and other numbers, whose instructions `piece` writes for one h."""

    @wraps(piece)
    def choose(typingctx, *numbers):
        return types.void(*[types.float32 if kind == types.float32 else types.intp for kind in numbers]), codegen

    def codegen(context, builder, signature, args):
        done = builder.append_basic_block("done")
        switch = builder.switch(args[0], done)
        for h in range(WIDEST + 1):
            block = builder.append_basic_block(f"h{h}")
            switch.add_case(I64(h), block)
            builder.position_at_end(block)
            piece(builder, h, *args[1:])
            builder.branch(done)
        builder.position_at_end(done)
        return context.get_dummy_value()

    return intrinsic(choose)


def total(builder, values):
    """Their sum, from the middle outwards."""
    h, found = len(values) // 2, values[len(values) // 2]
    for t in range(1, h + 1):
        found = builder.fadd(found, builder.fadd(values[h - t], values[h + t]))
    return found


@for_every_width
def sum_rows(builder, h, rows, step, W, first, second, stride):
    """Of 16 columns, the sums over 2h + 1 y and the x from k - 2h to k, for k < W + h: one `stride` apart.

    rows: address of [2h + 1] addresses, of x = 0 in patch rows y - h to y + h; step: bytes from one x to the next.
    first, second: addresses of the sums of eight columns each for k = 0.
    """
    around, outs = [load(builder, rows, 8 * k, I64) for k in range(2 * h + 1)], [first, second]
    window = [ZEROS16] * (2 * h)
    for number, inside in ((W, True), (I64(h), False))[: 1 + (h > 0)]:  # beyond the border zeros come in
        loop = Loop(builder, number, window)
        seen = [load(builder, place(builder, start, loop.at, step), 0, ZEROS16.type) for start in around]
        known = [*loop.values, total(builder, seen) if inside else ZEROS16]
        sums = total(builder, known)
        for out, half in zip(outs, HALVES, strict=True):
            store(builder, builder.shuffle_vector(sums, sums, half), place(builder, out, loop.at, stride))
        window, outs = loop.end(known[1:]), [place(builder, out, W, stride) for out in outs]


@for_every_width
def score(builder, h, row, H, vectors, stride, arrays, factor, own):
    """One token's cosines, from its sums over a's neighbourhood, and what is to be known of them.

    row: address of those with b's token (0, 0), `stride` bytes from one patch row of b to the next, zeros around them.
    arrays: address of six addresses. Of scale, margin, best [H, 8 vectors]; upper [H, 8 vectors], made sum * factor *
    scale + margin; marks [H, vectors] bytes, made a bit where upper + own >= best; and tops [8 vectors + 8], made the
    largest of `upper` in each column of patches, the last eight, taken together, the largest upper - 2 margin of all.
    """
    scale, margin, best, upper, marks, tops = (load(builder, arrays, 8 * k, I64) for k in range(6))
    fma = builder.module.declare_intrinsic("llvm.fma.v8f32", (), ir.FunctionType(F32x8, [F32x8] * 3))
    factor, own, size = same(builder, factor, F32x8), same(builder, own, F32x8), I64(4 * LANES)

    def larger(a, b):
        return builder.select(builder.fcmp_ordered(">", a, b), a, b)

    outer = Loop(builder, vectors, [LOWEST])  # column of vectors after column
    start = place(builder, row, outer.at, size)

    def over_x(y):
        at = place(builder, start, y, stride)
        return total(builder, [load(builder, at, 4 * t, F32x8) for t in range(-h, h + 1)])

    inner = Loop(builder, H, [ZEROS] * h + [over_x(I64(y)) for y in range(h)] + [LOWEST, *outer.values])  # along y
    *window, top, floor = inner.values
    window.append(over_x(builder.add(inner.at, I64(h))))
    vector = place(builder, outer.at, inner.at, vectors)
    of, doubt, known = (load(builder, place(builder, array, vector, size), 0, F32x8) for array in (scale, margin, best))
    most = builder.call(fma, [builder.fmul(total(builder, window), factor), of, doubt])
    store(builder, most, place(builder, upper, vector, size))
    bits = builder.bitcast(builder.fcmp_ordered(">=", builder.fadd(most, own), known), I8)
    builder.store(bits, builder.inttoptr(builder.add(marks, vector), I8.as_pointer()))
    least = builder.call(fma, [doubt, ir.Constant(F32x8, [-2.0] * LANES), most])
    floor = larger(floor, builder.select(builder.fcmp_ordered("<", least, most), least, most))  # no token: margin < 0
    *_, top, floor = inner.end([*window[1:], larger(top, most), floor])
    store(builder, top, place(builder, tops, outer.at, size))
    outer.end([floor])
    store(builder, floor, place(builder, tops, vectors, size))
