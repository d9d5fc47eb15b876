"""The GPU engine's three kernels, in Triton. Imported by `gpu` where triton is installed, never by `import musc`.

`TRITON_INTERPRET=1`, set before triton is imported, runs them on CPU tensors: so they are tested.

A cosine travels as a 32-bit key: 27 bits of fixed point, in steps of 2^-17, and in the low 5 bits where in its sub-tile
it stands. Keys are ordered as their cosines are, positive, and unequal within a sub-tile; 0 stands for none.
"""

import triton
import triton.language as tl

BLOCK = tl.constexpr(32)  # tokens of one block of the half-precision layout
BITS = tl.constexpr(5)


@triton.jit
def _held(m, M, blocks):
    """Token m, and past the last one that of the first which belongs into the next block: were it another of its own
    block, or one and the same for all, sub-tiles would have equal keys, and all of their tokens would be measured."""
    return tl.where(m < M, m, tl.where(blocks > 1, m - M // blocks * blocks + 1, M - 1))


@triton.jit(do_not_specialize=["M", "H", "W", "blocks"])
def aggregate(
    tokens, mean, scale, exact, half, error, M, H, W, C, half_C, blocks,
    R: tl.constexpr, TOKENS: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Patch tokens under an R x R mean with zeros beyond the border, at unit length: `lnamd.aggregate` in one pass.

    tokens: [n, M = H W, C] float32, raw; mean, scale: [n], of each image's LayerNorm. exact: [n, M, C] float32. half:
    [n, 32 blocks, half_C] float16, in its order of tokens. error: [n, M], how far a token's cosines may be off by half
    precision. Program (., n): TOKENS tokens of image n, BC >= C.
    """
    n = tl.program_id(1).to(tl.int64)
    m, c = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS), tl.arange(0, BC)
    token = _held(m, M, blocks)
    y, x = token // W, token % W
    mean_n = tl.load(mean + n)
    total = tl.zeros((TOKENS, BC), dtype=tl.float32)
    for dy in range(-(R // 2), R // 2 + 1):
        for dx in tl.static_range(-(R // 2), R // 2 + 1):
            i, j = y + dy, x + dx
            inside = (i >= 0) & (i < H) & (j >= 0) & (j < W)
            some = inside[:, None] & (c < C)[None, :]
            near = tl.load(tokens + n * M * C + ((i * W + j) * C)[:, None] + c[None, :], mask=some, other=0.0)
            total += tl.where(some, near - mean_n, 0.0)
    total *= tl.load(scale + n) / (R * R)
    length = tl.sqrt_rn(tl.sum(total * total, axis=1))
    unit = tl.div_rn(total, tl.zeros_like(total) + tl.maximum(length, 1e-12)[:, None])
    rounded = unit.to(tl.float16)
    rounding = unit - rounded.to(tl.float32)
    off = 1.01 * tl.sqrt_rn(tl.sum(rounding * rounding, axis=1)) + tl.abs(tl.sum(unit * unit, axis=1) - 1) / 2
    position = m % blocks * BLOCK + m // blocks
    kept = (m < M)[:, None] & (c < C)[None, :]
    tl.store(exact + n * M * C + (token * C)[:, None] + c[None, :], unit, mask=kept)
    place = (n * blocks * BLOCK + position) * half_C
    tl.store(half + place[:, None] + c[None, :], rounded, mask=(m < blocks * BLOCK)[:, None] & (c < C)[None, :])
    tl.store(error + n * M + token, off, mask=m < M)


@triton.jit
def _largest_two(best, second, other_best, other_second):
    low = tl.minimum(best, other_best)
    return tl.maximum(best, other_best), tl.maximum(low, tl.maximum(second, other_second))


@triton.jit
def _store_largest(keys, best, second, token, sub, tokens, subs, AXIS: tl.constexpr):
    """best, second [tokens, subs]: the two largest keys of every sub-tile, which lies along AXIS of `keys`."""
    # no key is as small: the compiler drops the comparisons with it
    first, other = tl.reduce((keys, tl.full(keys.shape, -(2**31), tl.int32)), AXIS, _largest_two)
    place = token * subs + sub
    inside = (token < tokens) & (sub < subs)
    tl.store(best + place, first, mask=inside)
    tl.store(second + place, other, mask=inside)


# one machine code for all sizes
@triton.jit(do_not_specialize=["D", "S", "A", "B", "slot_a", "slot_b", "image_a", "image_b", "P", "blocks", "steps"])
def tile_maxima(
    half_a, half_b, wanted, row_best, row_second, col_best, col_second,
    D, S, A, B, slot_a, slot_b, image_a, image_b, P, blocks, steps,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, SUB_ROWS: tl.constexpr, SUB_COLS: tl.constexpr,
    GROUP: tl.constexpr, DESCRIPTOR: tl.constexpr, PERSISTENT: tl.constexpr, DENSE: tl.constexpr,
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
                BM, BN, BK, SUB_ROWS, SUB_COLS, GROUP, DESCRIPTOR, DENSE,
            )  # fmt: skip
    else:
        _tile(
            half_a, half_b, wanted, row_best, row_second, col_best, col_second, tl.program_id(0), tiles_m, tiles_n,
            D, S, A, B, slot_a, slot_b, image_a, image_b, P, M, C, steps,
            BM, BN, BK, SUB_ROWS, SUB_COLS, GROUP, DESCRIPTOR, DENSE,
        )  # fmt: skip


@triton.jit
def _tile(
    half_a, half_b, wanted, row_best, row_second, col_best, col_second, tile, tiles_m, tiles_n,
    D, S, A, B, slot_a, slot_b, image_a, image_b, P, M, C, steps,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, SUB_ROWS: tl.constexpr, SUB_COLS: tl.constexpr,
    GROUP: tl.constexpr, DESCRIPTOR: tl.constexpr, DENSE: tl.constexpr,
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
            m[:, None], (col // SUB_COLS + tl.arange(0, BN // SUB_COLS))[None, :], A * M, subs, 2,
        )  # fmt: skip
        subs = A * M // SUB_ROWS
        _store_largest(
            tl.reshape(keys + (tl.arange(0, BM) % SUB_ROWS)[:, None], (BM // SUB_ROWS, SUB_ROWS, BN)),
            col_best + degree * B * M * subs, col_second + degree * B * M * subs,
            n[None, :], (row // SUB_ROWS + tl.arange(0, BM // SUB_ROWS))[:, None], B * M, subs, 1,
        )  # fmt: skip


@triton.jit
def _token(position, M, blocks):
    """The token at a position of the half-precision layout: neighbours on the grid lie in different blocks."""
    return _held(position % BLOCK * blocks + position // BLOCK, M, blocks)


@triton.jit
def _square_distances(a, b, inside, C: tl.constexpr, BC: tl.constexpr):
    """|| a - b ||^2 [m, n] of the float32 rows at pointers a [m, 1], b [m, n]; where not inside, b's are not read."""
    c = tl.arange(0, BC)
    square = tl.zeros((b.shape[0], b.shape[1], BC), dtype=tl.float32)
    for start in range(0, C, BC):
        some = (start + c < C)[None, None, :]
        x = tl.load(a[:, :, None] + (start + c)[None, None, :], mask=some, other=0.0)
        y = tl.load(b[:, :, None] + (start + c)[None, None, :], mask=inside[:, :, None] & some, other=0.0)
        square += (x - y) * (x - y)
    return tl.sum(square, axis=2)


@triton.jit(
    do_not_specialize=(
        ["starts", "out", "out_degree", "S", "A", "B", "slot_a", "slot_b", "start_a", "start_b", "M", "blocks"]
    )
)
def nearest_distances(
    exact, error, best, second, starts, out, out_degree, slack,
    S, A, B, slot_a, slot_b, start_a, start_b, M, blocks,
    C: tl.constexpr, TOKENS: tl.constexpr, PARTNERS: tl.constexpr, SUBS: tl.constexpr, SUB: tl.constexpr,
    BC: tl.constexpr,
):  # fmt: skip
    """The float32 distance of every token of A images to its nearest token in each of B images, into `out`.

    exact: [D, S, M, C] float32, of the slots from slot_a and from slot_b on. error: [D, S], how far the cosines of an
    image's tokens may be off. best, second: [D, A 32 blocks, B 32 blocks / SUB] keys of `tile_maxima`. Of image a seen
    from b the M distances at degree d start at out[d out_degree + starts[a start_a + b start_b]]; negative: not wanted.
    A program takes TOKENS tokens of image a, and PARTNERS images b at a time.

    Where the best key of a sub-tile comes within the margin of the token's best of all, its token is measured; where
    the second does, all tokens of the sub-tile are.
    """
    groups = tl.cdiv(M, TOKENS)
    program = tl.program_id(0)
    row, program = program % groups * TOKENS, program // groups
    a, degree = program % A, (program // A).to(tl.int64)
    m, t = row + tl.arange(0, TOKENS), tl.arange(0, SUBS)[None, None, :]
    position = m % blocks * BLOCK + m // blocks
    subs = blocks * (BLOCK // SUB)
    mine = exact + ((degree * S + slot_a + a) * M + tl.minimum(m, M - 1)) * C
    # what runs at once reads the same few images b: they stay in the L2 cache
    for first in range(0, B, PARTNERS):
        b = first + tl.arange(0, PARTNERS)
        start = tl.load(starts + a * start_a + b * start_b, mask=b < B, other=-1)  # [PARTNERS]
        if tl.max(start) >= 0:
            wanted = (m < M)[:, None] & (start >= 0)[None, :]  # [TOKENS, PARTNERS]
            some = wanted[:, :, None] & (t < subs)
            place = (((degree * A + a) * blocks * BLOCK + position)[:, None] * B + b[None, :]) * subs
            keys = tl.load(best + place[:, :, None] + t, mask=some, other=0)  # [TOKENS, PARTNERS, SUBS]
            their_error = tl.load(error + degree * S + slot_b + b, mask=b < B, other=0.0)
            margin = 2 * (tl.load(error + degree * S + slot_a + a) + their_error + slack)
            steps = (tl.where(margin < 4.0, margin, 4.0) * 2**17).to(tl.int32) + 1
            least = (tl.max(keys, axis=2) >> BITS) - steps[None, :]
            least = tl.where((margin == margin)[None, :], least, 2**31 - 1)[:, :, None]
            near = some & ((keys >> BITS) >= least)
            other = exact + (degree * S + slot_b + b) * M * C
            square = tl.full((TOKENS, PARTNERS), float("inf"), dtype=tl.float32)
            left = tl.where(near, t * SUB + (keys & (BLOCK - 1)) + 1, 0)  # positions, from 1 on
            again = tl.load(second + place[:, :, None] + t, mask=near, other=0)  # its latency hides behind the loop's
            pick = tl.max(left, axis=2)
            while tl.max(pick) > 0:
                token = _token(pick - 1, M, blocks).to(tl.int64)
                found = _square_distances(mine[:, None], other[None, :] + token * C, pick > 0, C, BC)
                square = tl.where(pick > 0, tl.minimum(square, found), square)
                left = tl.where(left == pick[:, :, None], 0, left)
                pick = tl.max(left, axis=2)
            r = tl.arange(0, TOKENS)[:, None] * PARTNERS + tl.arange(0, PARTNERS)[None, :]
            crowded = tl.where(near & ((again >> BITS) >= least), r[:, :, None] * SUBS + t + 1, 0)
            more = tl.max(crowded)
            while more > 0:
                one = (more - 1) // SUBS  # of r
                token = _token((more - 1) % SUBS * SUB + tl.arange(0, SUB), M, blocks)[None, :].to(tl.int64)
                of_one = exact + ((degree * S + slot_a + a) * M + row + one // PARTNERS) * C
                others = exact + ((degree * S + slot_b + first + one % PARTNERS) * M + token) * C  # [1, SUB]
                found = _square_distances(of_one + tl.zeros((1, 1), tl.int64), others, token >= 0, C, min(BC, 32))
                square = tl.where(r == one, tl.minimum(square, tl.min(found)), square)
                crowded = tl.where(crowded == more, 0, crowded)
                more = tl.max(crowded)
            # a margin that is no number: neither are the tokens
            distance = tl.where((margin == margin)[None, :], tl.sqrt_rn(square), margin[None, :])
            tl.store(out + degree * out_degree + start[None, :] + m[:, None], distance, mask=wanted)
