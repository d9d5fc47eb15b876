"""The GPU engine's kernels in Triton's interpreter, on CPU tensors: run in a process of its own by test_msm_gpu.py."""

import numpy as np
import plain
import pytest
import torch

from musc import lnamd
from musc.engines import gpu
from musc.engines.pairs import plan_pool
from musc.errors import ConfigError

GRID = (5, 4)  # 20 patches and 24 channels: no multiples of the tile
SMALL = gpu.Tile(16, 16, 32, winners=32)
ATOL = {"bfloat16": 2e-3, "float16": 1e-6}


def tokens(N, seed=0, grid=GRID, C=24):
    g = torch.Generator().manual_seed(seed)
    M = grid[0] * grid[1]
    return torch.randn(1, M, C, generator=g) + 0.7 * torch.randn(N, M, C, generator=g)


def run(x, degrees=(1, 3), *, references=None, grid=GRID, block=None, precision="float16", pool=None, tile=SMALL):
    pool_images = x if references is None else torch.cat([x, references])
    plan = plan_pool(len(x), len(pool_images) - len(x), pool)
    out = torch.full((len(degrees), len(x), plan.J, x.shape[1]), -1.0)
    done = []
    gpu.stage_distances(lambda p: pool_images[p], plan, degrees, grid, block, out, done.append, precision, tile)
    assert sum(done) == len(plan.pairs())
    return out


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
@pytest.mark.parametrize(("N", "R"), [(2, 0), (3, 0), (5, 0), (1, 2)])
def test_distances_equal_float64_brute_force(N, R, precision):
    x, references = tokens(N), tokens(R, seed=5)
    got = run(x, references=references if R else None, precision=precision)
    for d, degree in enumerate((1, 3)):
        parts = [plain.distances(plain.aggregate(x, degree, GRID))] if N > 1 else []
        if R:
            parts.append(plain.distances(*(plain.aggregate(t, degree, GRID) for t in (x, references))))
        expected = np.concatenate(parts, axis=1)
        np.testing.assert_allclose(got[d], expected, atol=ATOL[precision])
        assert (got[d].numpy() > expected - 1e-6).all()  # never below the minimum, whatever the rounding


@pytest.mark.parametrize(("grid", "C"), [((1, 1), 3), ((3, 11), 40)])
@pytest.mark.parametrize("tile", [SMALL, gpu.Tile(32, 16, 16, winners=4)])
def test_shapes_and_tiles(grid, C, tile):
    x = tokens(2, grid=grid, C=C)
    expected = plain.distances(plain.aggregate(x, 3, grid))
    np.testing.assert_allclose(run(x, (3,), grid=grid, tile=tile)[0], expected, atol=1e-6)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_duplicates_and_ties(precision):
    x = tokens(3)
    x[2] = x[0]
    x[:, 7:19] = x[:1, 7:8]  # equal patches across tiles
    got = run(x, (1,), precision=precision)[0]
    assert (got[0, 1] == 0).all()
    assert (got[2, 0] == 0).all()
    np.testing.assert_allclose(got, plain.distances(lnamd.aggregate(x, 1, grid=GRID)), atol=2e-3)
    assert torch.equal(got, run(x, (1,), precision=precision)[0])


def test_block_size_changes_nothing():
    x = tokens(4)
    whole = run(x, (1,))
    for block in (1, 3):
        assert torch.equal(run(x, (1,), block=block), whole)


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
            sizes.append(shape[0])
            if shape[0] > 2:
                raise torch.cuda.OutOfMemoryError("too much")
        return empty(*shape, **options)

    monkeypatch.setattr(torch, "empty", small)
    assert torch.equal(run(x, (1,), block=4), expected)
    assert sizes == [4, 4, 2]


def test_pairs_done_before_memory_ran_out_stay_done(monkeypatch):
    x = tokens(4)
    expected = run(x, (1,))
    nearest, calls = gpu.nearest, []

    def once(*arguments):
        calls.append(len(arguments[1]))
        if len(calls) == 2:
            raise torch.cuda.OutOfMemoryError("another program took it")
        return nearest(*arguments)

    monkeypatch.setattr(gpu, "nearest", once)
    assert torch.equal(run(x, (1,), block=2), expected)
    assert sum(calls) - calls[1] == 6  # each pair is computed once


def test_one_pair_that_does_not_fit(monkeypatch):
    def never(*_):
        raise torch.cuda.OutOfMemoryError("full")

    monkeypatch.setattr(gpu, "nearest", never)
    with pytest.raises(ConfigError, match=r"one pair of images with 20 patches.*smaller image_size"):
        run(tokens(3), (1,))
