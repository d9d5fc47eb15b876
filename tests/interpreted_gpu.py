"""The GPU engine's kernels in Triton's interpreter, on CPU tensors: run in a process of its own by test_msm_gpu.py."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import plain
import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from triton.runtime import interpreter

from musc import lnamd
from musc.engines import gpu
from musc.engines.gpu import tiles
from musc.engines.gpu.tokens import Held
from musc.engines.pairs import Job, plan_pool
from musc.errors import ConfigError

GRID = (5, 4)  # 20 patches and 24 channels: no multiples of the tile
SMALL = gpu.Tile(32, 32, 32, descriptor=False, resident=0, tokens=64, partners=8)
PATCHED: set[str] = set()


@pytest.fixture(autouse=True)
def _quick_interpreter(monkeypatch):
    """Triton's interpreter reduces element by element, patches its language anew for every function that a kernel
    calls, and reads scalars in a way that numpy 2.4 refuses. A GPU of two multiprocessors stands for the CPU."""
    patch = interpreter._patch_lang_tensor

    def readable(tensor, scope):
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    def call(self, *arguments, **options):
        if self.fn.__module__ not in PATCHED:
            PATCHED.add(self.fn.__module__)
            interpreter._patch_lang(self.fn)
        return self.rewrite()(*arguments, **options)

    def reduce(self, tensors):
        def part(i):
            return tuple(self.to_tensor(np.take(t.handle.data, i, self.axis), t.dtype) for t in tensors)

        found = part(0)
        for i in range(1, tensors[0].handle.data.shape[self.axis]):
            found = self.combine_fn.fn(*found, *part(i))
        return found

    monkeypatch.setattr(interpreter, "_patch_lang_tensor", readable)
    monkeypatch.setattr(interpreter.ReduceOps, "generic_reduce", reduce)
    monkeypatch.setattr(interpreter.InterpretedFunction, "__call__", call)
    properties = SimpleNamespace(multi_processor_count=2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)


def tokens(N, seed=0, grid=GRID, C=24):
    g = torch.Generator().manual_seed(seed)
    M = grid[0] * grid[1]
    return torch.randn(1, M, C, generator=g) + 0.7 * torch.randn(N, M, C, generator=g)


def run(x, degrees=(1, 3), *, references=None, grid=GRID, block=None, pool=None, tile=SMALL, out=None):
    pool_images = x if references is None else torch.cat([x, references])
    plan = plan_pool(len(x), len(pool_images) - len(x), pool)
    out = torch.empty(len(degrees), len(x), plan.J, x.shape[1]) if out is None else out
    out.fill_(-1)
    done = []
    job = Job(pool_images.__getitem__, plan, degrees, grid, lambda images, slots, found: None, done.append, block)
    gpu.stage_distances(job, out, tile)
    assert sum(done) == len(plan.pairs())
    return out


def exact(x, degree, grid=GRID):
    return plain.distances(plain.aggregate(x, degree, grid))


@pytest.mark.parametrize(("N", "R"), [(4, 0), (1, 2), (2, 2)])
def test_distances_equal_float64_brute_force(N, R):
    x, references = tokens(N), tokens(R, seed=5)
    got = run(x, references=references if R else None)
    for d, degree in enumerate((1, 3)):
        parts = [exact(x, degree)] if N > 1 else []
        if R:
            parts.append(plain.distances(*(plain.aggregate(t, degree, GRID) for t in (x, references))))
        np.testing.assert_allclose(got[d], np.concatenate(parts, axis=1), atol=1e-6)


SUB_TILES = gpu.Tile(64, 32, 32, descriptor=False, resident=0, sub_rows=32, tokens=32, partners=1)
DESCRIBED = replace(SMALL, cols=128, group=1, descriptor=True, resident=1, partners=2)


@pytest.mark.parametrize(
    ("tile", "grid", "C"),
    [
        (SMALL, (6, 7), 70), (SUB_TILES, (3, 11), 40),
        *((DESCRIBED, grid, C) for grid, C in (((1, 1), 3), ((3, 11), 40), ((6, 7), 70))),
    ],
)  # fmt: skip
def test_shapes_and_tiles(tile, grid, C):
    """Tiles that hold several images, that lie across images, and that are parts of one; by descriptors, and by
    programs that take several."""
    x = tokens(3, grid=grid, C=C)
    np.testing.assert_allclose(run(x, (3,), grid=grid, tile=tile)[0], exact(x, 3, grid), atol=1e-6)


def test_duplicates_and_ties():
    x = tokens(3)
    x[2] = x[0]
    x[:, 7:19] = x[:1, 7:8]  # equal patches across sub-tiles
    got = run(x, (1,))[0]
    assert (got[0, 1] == 0).all()
    assert (got[2, 0] == 0).all()
    np.testing.assert_allclose(got, plain.distances(lnamd.aggregate(x, 1, grid=GRID)), atol=1e-6)
    assert torch.equal(got, run(x, (1,))[0])


def near_ties(apart, grid, C=24):
    """Two images of a few directions each, and of neighbours that half precision cannot tell apart."""
    g = torch.Generator().manual_seed(1)
    M = grid[0] * grid[1]
    directions = torch.randn(4, C, generator=g, dtype=torch.float64)
    x = directions[torch.randint(4, (2, M), generator=g)]
    x += apart * torch.randn(2, M, C, generator=g, dtype=torch.float64)
    x[1] += 0.3 * torch.randn(C, generator=g, dtype=torch.float64)
    return x.float()


@pytest.mark.parametrize("apart", [1e-2, 1e-4, 0])
def test_candidates_closer_than_half_precision(apart, monkeypatch):
    """In one sub-tile and in different ones, of rows and of columns; and the margin is what makes it right."""
    grid = (5, 8)
    x = near_ties(apart, grid)
    expected = exact(x, 1, grid)
    np.testing.assert_allclose(run(x, (1,), grid=grid)[0], expected, atol=1e-6)
    if apart == 1e-2:
        monkeypatch.setattr(gpu, "slack", lambda C: -1.0)
        assert np.abs(run(x, (1,), grid=grid)[0].numpy() - expected).max() > 1e-5


def test_neighbours_in_one_sub_tile():
    """Each patch's second nearest lies in the sub-tile of its nearest and within the margin: all of it is measured."""
    grid, C = (8, 8), 32
    g = torch.Generator().manual_seed(2)
    x = torch.randn(2, 64, C, generator=g)
    x[:, 2::4] = x[:, ::4] + 2e-4 * torch.randn(2, 16, C, generator=g)  # 2 blocks of 32: even and odd tokens
    x[1, ::2] = x[0, ::2] + 0.2 * torch.randn(16, C, generator=g).repeat_interleave(2, dim=0)
    np.testing.assert_allclose(run(x, (1,), grid=grid)[0], exact(x, 1, grid), atol=1e-6)


def test_tokens_of_zeros():
    """No direction: at distance 1 from all others, where its cosines say sqrt(2)."""
    x = tokens(3)
    x[1] = 4.0  # constant: LayerNorm leaves nothing
    np.testing.assert_allclose(run(x, (1,))[0], plain.distances(lnamd.aggregate(x, 1, grid=GRID)), atol=1e-6)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_tokens_that_are_no_numbers_score_none(bad):
    x = tokens(3)
    x[1, 4, 2] = bad
    got = run(x, (1,))[0]  # image 1 is row 0 of image 0 and of image 2, and both rows of its own
    assert got[1].isnan().all()
    assert got[0, 0].isnan().all()
    assert got[2, 1].isnan().all()
    assert got[[0, 2], [1, 0]].isfinite().all()


@pytest.mark.parametrize(("grid", "degree", "C"), [((5, 4), 1, 24), ((3, 11), 3, 40), ((1, 2), 5, 7)])
def test_aggregation_equals_float64(grid, degree, C):
    """Also in half precision, in its order of tokens, and what that rounding does to any cosine."""
    x = tokens(2, grid=grid, C=C)
    x[1] *= 1e-3  # so that LayerNorm's eps counts
    x[1, :, 0] += 1.0
    expected = plain.aggregate(x, degree, grid)
    held = Held(lambda p: x[p], 2, 2, (degree,), grid, SMALL)
    held.hold(0, keep=0)
    np.testing.assert_allclose(held.exact[0], expected, atol=3e-7)
    np.testing.assert_allclose(held.exact[0], lnamd.aggregate(x, degree, grid=grid), atol=3e-7)
    M = grid[0] * grid[1]
    blocks = -(-M // 32)
    order = [i % 32 * blocks + i // 32 for i in range(32 * blocks)]
    own = [i for i, token in enumerate(order) if token < M]
    assert torch.equal(held.half[0, :, own, :C], held.exact[0][:, [order[i] for i in own]].half())
    more = [i for i, token in enumerate(order) if token >= M]
    assert (held.half[0, :, more, None, :C] == held.exact[0, :, None].half()).all(dim=-1).any(dim=-1).all()
    for block in held.half[0].flatten(0, 1).split(32) if blocks > 1 else ():
        assert len(block.unique(dim=0)) == 32  # no token stands twice where equal keys would have all of it measured
    assert (held.half[..., C:] == 0).all()
    rounding = (held.exact[0].double() - held.exact[0].half().double()).norm(dim=-1).amax(dim=1)
    assert (held.error[0] >= rounding).all()
    assert (held.error[0] <= 1.02 * rounding + 1e-6).all()


def test_block_size_changes_nothing():
    x = tokens(4, grid=(2, 3))
    whole = run(x, (1,), grid=(2, 3))
    assert torch.equal(run(x, (1,), grid=(2, 3), block=1), whole)
    assert torch.equal(run(x, (1,), grid=(2, 3), block=2), whole)


class Peak(TorchDispatchMode):
    """The most bytes that tensors made under it, and not given, held at a time."""

    def __init__(self, *given):
        super().__init__()
        self.given = [tensor.untyped_storage().data_ptr() for tensor in given]
        self.made, self.most = {}, 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        found = function(*arguments, **(options or {}))
        for tensor in found if isinstance(found, tuple | list) else [found]:
            storage = tensor.untyped_storage() if isinstance(tensor, torch.Tensor) else None
            if storage and storage.data_ptr() not in self.given:
                self.made[storage.data_ptr()] = StorageWeakRef(storage), storage.nbytes()
        self.made = {at: held for at, held in self.made.items() if not held[0].expired()}
        self.most = max(self.most, sum(size for _, size in self.made.values()))
        return found


@pytest.mark.parametrize("block", [2, 4, 8])
def test_what_it_holds_is_within_what_it_says(block):
    """Measured: images held, a launch's keys (of several launches, one after the other), and what prepares images."""
    grid = (8, 8)
    x = tokens(8, grid=grid, C=3)
    out = torch.empty(1, 8, 7, 64)
    with Peak(x, out) as peak:
        run(x, (3,), grid=grid, block=block, out=out)
    image, passing = tiles.bytes_needed(1, 64, 3, SMALL, block)
    account = 100 * 8 * 8  # of pairs: half of what `memory.Problem.whole` says
    assert image * min(2 * block, 8) < peak.most <= image * min(2 * block, 8) + passing + account


def test_out_elsewhere():
    """Of another type the kernel cannot write itself; strided it can."""
    x = tokens(4)
    x, references = x[:3], x[3:]
    whole = run(x, (1,), references=references)
    narrow = torch.empty(whole.shape, dtype=torch.float16)
    assert torch.equal(run(x, (1,), references=references, out=narrow), whole.half())
    wide = torch.empty(1, 3, 6, 20)[:, :, ::2]
    assert torch.equal(run(x, (1,), references=references, out=wide), whole)


def test_a_pool_scores_by_just_those_images():
    x = tokens(5)
    pool = torch.tensor([[1, 2], [0, 3], [4, 1], [0, 2], [1, 3]])
    whole, some = run(x, (1,)), run(x, (1,), pool=pool)
    for i, row in enumerate(pool.sort(dim=1).values):
        others = [j for j in range(5) if j != i]
        assert torch.equal(some[0, i], whole[0, i, [others.index(j) for j in row]])


def test_memory_that_runs_out_means_a_smaller_block(monkeypatch):
    x = tokens(4)
    expected = run(x, (1,))
    empty, sizes = torch.empty, []

    def small(*shape, **options):
        if len(shape) == 4 and shape[-1] == 24:  # the tokens held
            sizes.append(shape[1])
            if shape[1] > 2:
                raise torch.cuda.OutOfMemoryError("too much")
        return empty(*shape, **options)

    out = torch.empty(1, 4, 3, 20)
    monkeypatch.setattr(torch, "empty", small)
    assert torch.equal(run(x, (1,), block=4, out=out), expected)
    assert sizes == [4, 4, 2]


def test_pairs_done_before_memory_ran_out_stay_done(monkeypatch):
    x = tokens(4)
    expected = run(x, (1,))
    largest_cosines, calls = gpu.largest_cosines, []

    def once(held, wanted, region, tile):
        calls.append(region.pairs)
        if len(calls) == 2:
            raise torch.cuda.OutOfMemoryError("another program took it")
        return largest_cosines(held, wanted, region, tile)

    monkeypatch.setattr(gpu, "largest_cosines", once)
    assert torch.equal(run(x, (1,), block=2), expected)
    assert sum(calls) - calls[1] == 6  # each pair is computed once


def test_one_pair_that_does_not_fit(monkeypatch):
    def never(*_):
        raise torch.cuda.OutOfMemoryError("full")

    monkeypatch.setattr(gpu, "largest_cosines", never)
    with pytest.raises(ConfigError, match=r"one pair of images with 20 patches.*smaller image_size"):
        run(tokens(3), (1,))
