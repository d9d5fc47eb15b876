"""The GPU engine's two kernels, in Triton. Imported by `gpu` where triton is installed, never by `import musc`.

`TRITON_INTERPRET=1`, set before triton is imported, runs them on CPU tensors: so they are tested.

A cosine travels as a 32-bit key: 27 bits of fixed point, in steps of 2^-17, and in the low 5 bits where in its sub-tile
it stands. Keys are ordered as their cosines are, positive, and unequal within a sub-tile; 0 stands for none.
"""

import triton
import triton.language as tl

BLOCK = tl.constexpr(32)  # tokens of one block of the half-precision layout
BITS = tl.constexpr(5)


@triton.jit
def probe(out):
    """Whether kernels can be compiled and run here."""
    tl.store(out, 1)


@triton.jit
def _largest_two(best, second, other_best, other_second):
    low = tl.minimum(best, other_best)
    return tl.maximum(best, other_best), tl.maximum(low, tl.maximum(second, other_second))


@triton.jit
def _store_largest(keys, best, second, token, sub, tokens, subs, AXIS: tl.constexpr, SECOND: tl.constexpr):
    """best, second [tokens, subs]: the two largest keys of every sub-tile, which lies along AXIS of `keys`."""
    if SECOND:
        first, other = tl.reduce((keys, tl.zeros_like(keys)), AXIS, _largest_two)
    else:
        first = tl.max(keys, axis=AXIS)
        other = first
    place = token * subs + sub
    inside = (token < tokens) & (sub < subs)
    tl.store(best + place, first, mask=inside)
    if SECOND:
        tl.store(second + place, other, mask=inside)


# one machine code for all sizes
@triton.jit(do_not_specialize=["D", "S", "A", "B", "slot_a", "slot_b", "image_a", "image_b", "P", "blocks", "steps"])
def tile_maxima(
    half_a, half_b, wanted, row_best, row_second, col_best, col_second,
    D, S, A, B, slot_a, slot_b, image_a, image_b, P, blocks, steps,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, SUB_ROWS: tl.constexpr, SUB_COLS: tl.constexpr,
    GROUP: tl.constexpr, DESCRIPTOR: tl.constexpr, PERSISTENT: tl.constexpr, DENSE: tl.constexpr, SECOND: tl.constexpr,
):  # fmt: skip
    """The two largest cosines of every row and of every column of all sub-tiles of A x B pairs of images.

    half_a = half_b: [D S, 32 blocks, BK steps] float16 (or their descriptors), the tokens of slot s at degree d in
    image d S + s. Rows are the images from slot_a on, columns those from slot_b on: one matrix of A M x B M cosines per
    degree (here M = 32 blocks), in BM x BN tiles that may lie across images; sub-tiles never do. wanted: [.., P], which
    pairs of images matter, read from (image_a, image_b) on unless DENSE. row_best, row_second: [D, A M, B M / SUB_COLS]
    keys; col_best, col_second: [D, B M, A M / SUB_ROWS] keys. A tile never leaves the registers.
    """
    M = blocks * BLOCK
    C = steps * BK
    tiles_m, tiles_n = tl.cdiv(A * M, BM), tl.cdiv(B * M, BN)
    total = D * tiles_m * tiles_n
    if PERSISTENT:
        for tile in tl.range(tl.program_id(0), total, tl.num_programs(0), flatten=True):
            _tile(
                half_a, half_b, wanted, row_best, row_second, col_best, col_second, tile, tiles_m, tiles_n,
                D, S, A, B, slot_a, slot_b, image_a, image_b, P, M, C, steps,
                BM, BN, BK, SUB_ROWS, SUB_COLS, GROUP, DESCRIPTOR, DENSE, SECOND,
            )  # fmt: skip
    else:
        _tile(
            half_a, half_b, wanted, row_best, row_second, col_best, col_second, tl.program_id(0), tiles_m, tiles_n,
            D, S, A, B, slot_a, slot_b, image_a, image_b, P, M, C, steps,
            BM, BN, BK, SUB_ROWS, SUB_COLS, GROUP, DESCRIPTOR, DENSE, SECOND,
        )  # fmt: skip


@triton.jit
def _tile(
    half_a, half_b, wanted, row_best, row_second, col_best, col_second, tile, tiles_m, tiles_n,
    D, S, A, B, slot_a, slot_b, image_a, image_b, P, M, C, steps,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, SUB_ROWS: tl.constexpr, SUB_COLS: tl.constexpr,
    GROUP: tl.constexpr, DESCRIPTOR: tl.constexpr, DENSE: tl.constexpr, SECOND: tl.constexpr,
):  # fmt: skip
    degree, tile = tile // (tiles_m * tiles_n), tile % (tiles_m * tiles_n)
    # GROUP rows of tiles at a time, column by column: what runs at once shares its operands in the L2 cache
    top = tile // (GROUP * tiles_n) * GROUP
    high = tl.minimum(tiles_m - top, GROUP)
    row = (top + tile % (GROUP * tiles_n) % high) * BM
    col = tile % (GROUP * tiles_n) // high * BN
    if DENSE:
        needed = 1
    else:
        i = tl.minimum((row + BLOCK * tl.arange(0, BM // BLOCK)) // M, A - 1)
        p = tl.minimum((col + BLOCK * tl.arange(0, BN // BLOCK)) // M, B - 1)
        needed = tl.max(tl.load(wanted + ((image_a + i) * P)[:, None] + (image_b + p)[None, :]).to(tl.int32))
    if needed > 0:
        first_a, first_b = (degree * S + slot_a) * M + row, (degree * S + slot_b) * M + col
        cosine = tl.zeros((BM, BN), dtype=tl.float32)
        if DESCRIPTOR:
            for k in range(0, steps):
                cosine = tl.dot(half_a.load([first_a, k * BK]), half_b.load([first_b, k * BK]).T, cosine)
        else:
            last = (D * S * M - 1).to(tl.int64)
            k = tl.arange(0, BK)
            a = half_a + (tl.minimum(first_a + tl.arange(0, BM), last) * C)[:, None] + k[None, :]
            b = half_b + (tl.minimum(first_b + tl.arange(0, BN), last) * C)[None, :] + k[:, None]
            for _ in range(0, steps):
                cosine = tl.dot(tl.load(a), tl.load(b), cosine)
                a += BK
                b += BK
        # of numbers in [64, 128) a float32 keeps 2^-17
        keys = (cosine + 96.0).to(tl.int32, bitcast=True) << BITS
        m, n = row + tl.arange(0, BM), col + tl.arange(0, BN)
        subs = B * M // SUB_COLS
        _store_largest(
            tl.reshape(keys + (tl.arange(0, BN) % SUB_COLS)[None, :], (BM, BN // SUB_COLS, SUB_COLS)),
            row_best + degree * A * M * subs, row_second + degree * A * M * subs,
            m[:, None], (col // SUB_COLS + tl.arange(0, BN // SUB_COLS))[None, :], A * M, subs, 2, SECOND,
        )  # fmt: skip
        subs = A * M // SUB_ROWS
        _store_largest(
            tl.reshape(keys + (tl.arange(0, BM) % SUB_ROWS)[:, None], (BM // SUB_ROWS, SUB_ROWS, BN)),
            col_best + degree * B * M * subs, col_second + degree * B * M * subs,
            n[None, :], (row // SUB_ROWS + tl.arange(0, BM // SUB_ROWS))[:, None], B * M, subs, 1, SECOND,
        )  # fmt: skip


@triton.jit
def _token(position, M, blocks):
    """The token at a position of the half-precision layout: neighbours on the grid lie in different blocks."""
    return tl.minimum(position % BLOCK * blocks + position // BLOCK, M - 1)


@triton.jit
def _square_distances(a, b, inside, C, BC: tl.constexpr):
    """|| a - b ||^2 [n] of the float32 rows at pointers a, b [n]; where not inside, 0."""
    c = tl.arange(0, BC)
    square = tl.zeros((a.shape[0], BC), dtype=tl.float32)
    for start in range(0, C, BC):
        some = inside[:, None] & (start + c < C)[None, :]
        x = tl.load(a[:, None] + (start + c)[None, :], mask=some, other=0.0)
        y = tl.load(b[:, None] + (start + c)[None, :], mask=some, other=0.0)
        square += (x - y) * (x - y)
    return tl.sum(square, axis=1)


@triton.jit(
    do_not_specialize=(
        ["starts", "out", "out_degree", "S", "A", "B", "slot_a", "slot_b", "start_a", "start_b", "M", "blocks"]
    )
)
def nearest_distances(
    exact, error, best, second, starts, out, out_degree, slack,
    S, A, B, slot_a, slot_b, start_a, start_b, M, C, blocks,
    ROWS: tl.constexpr, SUBS: tl.constexpr, SUB: tl.constexpr, BC: tl.constexpr, PARTNERS: tl.constexpr,
):  # fmt: skip
    """The float32 distance of every token of A images to its nearest token in each of B images, into `out`.

    exact: [D, S, M, C] float32, of the slots from slot_a and from slot_b on. error: [D, S], how far the cosines of an
    image's tokens may be off. best, second: [D, A 32 blocks, B 32 blocks / SUB] keys of `tile_maxima`. Of image a seen
    from b the M distances at degree d start at out[d out_degree + starts[a start_a + b start_b]]; negative: not wanted.

    Where the best key of a sub-tile comes within the margin of the token's best of all, its token is measured; where
    the second does, all tokens of the sub-tile are.
    """
    groups, chunks = tl.cdiv(M, ROWS), tl.cdiv(B, PARTNERS)
    program = tl.program_id(0)
    chunk, program = program % chunks, program // chunks
    row, program = program % groups * ROWS, program // groups
    a, degree = program % A, (program // A).to(tl.int64)
    m, r, t = row + tl.arange(0, ROWS), tl.arange(0, ROWS), tl.arange(0, SUBS)
    inside = m < M
    subs = blocks * (BLOCK // SUB)
    position = m % blocks * BLOCK + m // blocks
    mine = exact + (degree * S + slot_a + a) * M * C
    keys = ((degree * A + a) * blocks * BLOCK + position) * B * subs
    some = inside[:, None] & (t < subs)[None, :]
    for b in range(chunk * PARTNERS, tl.minimum((chunk + 1) * PARTNERS, B)):
        start = tl.load(starts + a * start_a + b * start_b)
        if start >= 0:
            other = exact + (degree * S + slot_b + b) * M * C
            margin = 2 * (tl.load(error + degree * S + slot_a + a) + tl.load(error + degree * S + slot_b + b) + slack)
            steps = (tl.where(margin < 4.0, margin, 4.0) * 2**17).to(tl.int32) + 1
            left = tl.load(best + (keys + b * subs)[:, None] + t[None, :], mask=some, other=0)
            top = tl.max(left, axis=1)
            least = tl.where(margin == margin, (top >> BITS) - steps, 2**31 - 1)[:, None]
            left = tl.where(some & ((left >> BITS) >= least), left, 0)
            square = tl.full((ROWS,), float("inf"), dtype=tl.float32)
            more = tl.max(left)
            while more > 0:
                pick, sub = tl.max(left, axis=1, return_indices=True)
                token = _token(sub * SUB + (pick & (BLOCK - 1)), M, blocks)
                near = pick > 0
                found = _square_distances(mine + m.to(tl.int64) * C, other + token.to(tl.int64) * C, near, C, BC)
                square = tl.where(near, tl.minimum(square, found), square)
                left = tl.where(t[None, :] == sub[:, None], 0, left)
                more = tl.max(left)
            crowded = tl.load(second + (keys + b * subs)[:, None] + t[None, :], mask=some, other=0)
            crowded = tl.where(some & ((crowded >> BITS) >= least), r[:, None] * SUBS + t[None, :] + 1, 0)
            more = tl.max(crowded)
            while more > 0:
                one = (more - 1) // SUBS
                token = _token((more - 1) % SUBS * SUB + tl.arange(0, SUB), M, blocks)
                from_one = mine + (row + one).to(tl.int64) * C + tl.zeros((SUB,), dtype=tl.int64)
                all_of = tl.full((SUB,), 1, dtype=tl.int1)
                found = tl.min(_square_distances(from_one, other + token.to(tl.int64) * C, all_of, C, BC * ROWS // SUB))
                square = tl.where(r == one, tl.minimum(square, found), square)
                crowded = tl.where(crowded == more, 0, crowded)
                more = tl.max(crowded)
            # a margin that is no number: neither are the tokens
            distance = tl.where(margin == margin, tl.sqrt(square), margin)
            tl.store(out + degree * out_degree + start + m, distance, mask=inside)
