"""Position windows against float64 loops, and on a planted defect that only they find."""

import itertools
import math

import numpy as np
import plain
import pytest
import torch

from musc import MuSc, msm
from musc.engines import windowed
from musc.errors import ConfigError

GRID = (5, 7)


def tokens(N=4, grid=GRID, C=12, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(1, grid[0] * grid[1], C, generator=g) + 0.7 * torch.randn(N, grid[0] * grid[1], C, generator=g)


def brute_force(a, b, grid, window):
    """[M, C], [M, C] -> [M]: every difference formed, those out of the window left out."""
    H, W = grid
    out = np.full(H * W, math.inf)
    for m in range(H * W):
        for n in range(H * W):
            if max(abs(m // W - n // W), abs(m % W - n % W)) <= window:
                out[m] = min(out[m], np.sqrt(((a[m] - b[n]) ** 2).sum()))
    return out


def brute_force_scores(x, degrees, grid, window, references=None):
    parts = []
    for degree in degrees:
        f = plain.aggregate(x, degree, grid)
        r = plain.aggregate(references, degree, grid) if references is not None else []
        pools = [[g for j, g in enumerate(f) if j != i] + list(r) for i in range(len(f))]
        d = np.array([[brute_force(f[i], g, grid, window) for g in pools[i]] for i in range(len(f))])
        parts.append(plain.interval_average(d))
    return np.mean(parts, axis=0)


@pytest.mark.parametrize("window", [0, 1, 2, 5])
@pytest.mark.parametrize("grid", [GRID, (1, 9), (8, 3)])
def test_scores_equal_float64_brute_force(window, grid):
    x = tokens(grid=grid)
    expected = brute_force_scores(x.numpy(), (1, 3), grid, window)
    for dtype, tolerance in ((torch.float32, 1e-6), (torch.float64, 1e-12)):
        got = msm.mutual_scores([x.to(dtype)], (1, 3), grid=grid, position_window=window)
        np.testing.assert_allclose(got, expected, atol=tolerance)


def test_references_and_half_precision_are_windowed_too():
    x, r = tokens(3), tokens(2, seed=9)
    expected = brute_force_scores(x.numpy(), (1,), GRID, 1, r.numpy())
    for precision in ("float32", "bfloat16"):
        got = msm.mutual_scores([x], (1,), grid=GRID, references=[r], position_window=1, precision=precision)
        np.testing.assert_allclose(got, expected, atol=1e-6)


@pytest.mark.parametrize("window", [math.inf, 6, 100])
def test_a_window_over_the_whole_grid_is_the_plain_method(window):
    x = tokens(5)
    plain_scores = msm.mutual_scores([x], grid=GRID)
    assert torch.equal(msm.mutual_scores([x], grid=GRID, position_window=window), plain_scores)
    a, b = x[0].double(), x[1].double()
    whole = windowed.nearest(a, b, grid=GRID, window=6)  # the windowed code itself, not its shortcut
    np.testing.assert_allclose(whole[0], brute_force(a.numpy(), b.numpy(), GRID, math.inf), atol=1e-12)


@pytest.mark.parametrize("values", [1, 300, 700, 1 << 20])
def test_blocks_change_no_distance_and_hold_no_more_than_said(values, monkeypatch):
    x = tokens(2).double()
    a, b = x
    H, W = GRID
    sizes = []
    original = torch.Tensor.masked_fill_
    monkeypatch.setattr(torch.Tensor, "masked_fill_", lambda t, *r: (sizes.append(t.numel()), original(t, *r))[1])
    to_b, to_a = windowed.nearest(a, b, grid=GRID, window=1, values=values)
    np.testing.assert_allclose(to_b, brute_force(a.numpy(), b.numpy(), GRID, 1), atol=1e-12)
    np.testing.assert_allclose(to_a, brute_force(b.numpy(), a.numpy(), GRID, 1), atol=1e-12)
    one_row = W * 3 * W  # cannot be less: a patch row and the rows in its window
    assert max(sizes) <= max(values, one_row)
    assert max(sizes) < (H * W) ** 2


def test_smaller_windows_never_lower_a_distance():
    x = tokens(5)
    by_window = [msm.stage_distances(x, (1, 3), grid=GRID, position_window=w) for w in (0, 1, 3, math.inf)]
    for narrow, wide in itertools.pairwise(by_window):
        assert (narrow >= wide - 1e-6).all()
        assert (narrow > wide + 1e-3).any()


def test_finds_a_displaced_part_that_the_plain_method_misses():
    """Every image has part A on the left and part B on the right; image 7 has a second A in B's place."""
    g = torch.Generator().manual_seed(3)
    H, W, N = 8, 12, 12
    background, A, B = torch.randn(3, 1, 16, generator=g)
    board = background.repeat(H * W, 1).reshape(H, W, 16)
    board[3:5, 1:4], board[3:5, 8:11] = A, B
    images = board.repeat(N, 1, 1, 1) + 0.1 * torch.randn(N, H, W, 16, generator=g)
    images[7, 3:5, 8:11] = A + 0.1 * torch.randn(2, 3, 16, generator=g)
    x = images.reshape(N, H * W, 16)

    def image_scores(window):
        scores = msm.mutual_scores([x], (1,), grid=(H, W), position_window=window)
        where = scores[7].reshape(H, W)[3:5, 8:11]
        return scores.amax(dim=1), where.mean() / scores.mean()

    found, contrast = image_scores(2)
    missed, plain_contrast = image_scores(math.inf)
    assert found.argmax() == 7
    assert found[7] > 2 * found[torch.arange(N) != 7].max()
    assert contrast > 3
    assert plain_contrast < 1.3  # the part looks like its like elsewhere
    assert missed[7] < 1.3 * missed[torch.arange(N) != 7].max()


@pytest.mark.parametrize("window", [-1, 1.5, float("nan")])
def test_impossible_windows_are_refused(window, tiny_config):
    with pytest.raises(ValueError, match="position_window"):
        msm.mutual_scores([tokens()], grid=GRID, position_window=window)
    with pytest.raises(ConfigError, match="position_window"):
        tiny_config.replace(position_window=window)


def test_pipeline_and_json_carry_the_window(tiny_config, photos):
    config = tiny_config.replace(position_window=1)
    assert type(config).from_dict(config.to_dict()) == config
    assert tiny_config.to_dict()["position_window"] == "inf"
    assert type(config).from_dict(tiny_config.to_dict()) == tiny_config
    plain_run, run = MuSc(tiny_config).run(photos), MuSc(config).run(photos)
    assert (run.anomaly_maps >= plain_run.anomaly_maps - 1e-6).all()
    assert (run.anomaly_maps > plain_run.anomaly_maps + 1e-4).any()
    assert run.fingerprint != plain_run.fingerprint
