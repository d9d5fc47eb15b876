"""The GPU engine's two kernels, in Triton. Imported by `gpu` where triton is installed, never by `import musc`.

`TRITON_INTERPRET=1`, set before triton is imported, runs them on CPU tensors: so they are tested.
"""

import triton
import triton.language as tl


@triton.jit
def tile_maxima(
    half, slot_a, slot_b, row_best, row_arg, col_best, col_arg, D, M, C,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """The largest cosine of every row and of every column of one BM x BN tile of one pair at one degree.

    half: [slots, D, M, C], C a multiple of BK. row_best, row_arg: [pairs, D, tiles of columns, M]; col_best, col_arg:
    [pairs, D, tiles of rows, M]. The tile itself never leaves the registers. Each place is written once, by one
    program, and of equal cosines the first wins: nothing depends on the order in which programs run. WIDEN: products of
    float32 copies, for the interpreter, which multiplies the bit patterns of bfloat16 as integers.
    """
    rows, cols = tl.cdiv(M, BM), tl.cdiv(M, BN)
    program = tl.program_id(0)
    tile, which = program % (rows * cols), (program // (rows * cols)).to(tl.int64)  # which: pair * D + degree
    tm, tn = tile // cols, tile % cols
    pair, degree = which // D, which % D
    m, n = tm * BM + tl.arange(0, BM), tn * BN + tl.arange(0, BN)
    k = tl.arange(0, BK)
    # beyond the last token the last one is read again: a mask in the loop would cost more than the minimum here
    a = half + (tl.load(slot_a + pair).to(tl.int64) * D + degree) * M * C + (tl.minimum(m, M - 1) * C)[:, None] + k
    b = half + (tl.load(slot_b + pair).to(tl.int64) * D + degree) * M * C + (tl.minimum(n, M - 1) * C)[None, :]
    b += k[:, None]
    cosine = tl.zeros((BM, BN), dtype=tl.float32)
    for _ in range(0, C, BK):
        x, y = tl.load(a), tl.load(b)
        if WIDEN:
            x, y = x.to(tl.float32), y.to(tl.float32)
        cosine = tl.dot(x, y, cosine)
        a += BK
        b += BK
    cosine = tl.where((m < M)[:, None] & (n < M)[None, :], cosine, -4.0)
    best, arg = tl.max(cosine, axis=1, return_indices=True)
    out = (which * cols + tn) * M + m
    tl.store(row_best + out, best, mask=m < M)
    tl.store(row_arg + out, arg + tn * BN, mask=m < M)
    best, arg = tl.max(cosine, axis=0, return_indices=True)
    out = (which * rows + tm) * M + n
    tl.store(col_best + out, best, mask=n < M)
    tl.store(col_arg + out, arg + tm * BM, mask=n < M)


@triton.jit
def winners(
    exact, slot_a, slot_b, best, arg, out, margin, D, M, C, tiles,
    ROWS: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """out [pairs, D, M]: the float32 distance of every token of a to the nearest of the tiles' winners in b.

    exact: [slots, D, M, C] float32. best, arg: [pairs, D, tiles, M] of `tile_maxima`. Of the tiles' winners those
    within `margin` of the largest cosine are measured, as || a - b ||.
    """
    blocks = tl.cdiv(M, ROWS)
    program = tl.program_id(0)
    which = (program // blocks).to(tl.int64)
    pair, degree = which // D, which % D
    m = (program % blocks) * ROWS + tl.arange(0, ROWS)
    inside = m < M
    c = tl.arange(0, BC)
    a = exact + (tl.load(slot_a + pair).to(tl.int64) * D + degree) * M * C
    b = exact + (tl.load(slot_b + pair).to(tl.int64) * D + degree) * M * C
    place = which * tiles * M + m
    top = tl.full((ROWS,), -4.0, dtype=tl.float32)
    for t in range(0, tiles):
        top = tl.maximum(top, tl.load(best + place + t * M, mask=inside, other=-4.0))
    nearest = tl.full((ROWS,), 8.0, dtype=tl.float32)
    for t in range(0, tiles):
        near = inside & (tl.load(best + place + t * M, mask=inside, other=-8.0) >= top - margin)
        if tl.sum(near.to(tl.int32)) > 0:
            j = tl.load(arg + place + t * M, mask=near, other=0)
            square = tl.zeros((ROWS,), dtype=tl.float32)
            for start in range(0, C, BC):
                some = near[:, None] & (start + c < C)[None, :]
                x = tl.load(a + (m * C)[:, None] + (start + c)[None, :], mask=some, other=0.0)
                y = tl.load(b + (j * C)[:, None] + (start + c)[None, :], mask=some, other=0.0)
                square += tl.sum((x - y) * (x - y), axis=1)
            nearest = tl.where(near, tl.minimum(nearest, square), nearest)
    tl.store(out + which * M + m, tl.sqrt(nearest), mask=inside)
