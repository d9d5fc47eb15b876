"""Properties of every engine over drawn sizes: equal to float64 loops, whatever the tokens."""

import numpy as np
import plain
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from test_msm import ENGINES, kernels, use_engine  # noqa: F401

from musc import msm

DRAWN = settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@st.composite
def cases(draw):
    """Tokens [N, M, C] of which some repeat, nearly repeat, or are large, their grid, and degrees."""
    N, H, W = draw(st.integers(2, 4)), draw(st.integers(1, 7)), draw(st.integers(1, 7))
    C = draw(st.sampled_from([2, 3, 8, 17, 64, 130, 300]))
    assume(H * W * C > 4)
    degrees = draw(st.lists(st.sampled_from([1, 3, 5, 7]), min_size=1, max_size=3, unique=True))
    g = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    x = torch.randn(1, H * W, C, generator=g) + draw(st.sampled_from([0.01, 0.5, 3.0])) * torch.randn(
        N, H * W, C, generator=g
    )
    kind = draw(st.sampled_from(["plain", "repeated", "nearly", "copied", "channel", "offset"]))
    some = torch.rand(H * W, generator=g) < 0.5
    if kind == "repeated":
        x[:, some] = x[0, 0].clone()
    elif kind == "nearly":
        x[:, some] = x[0, 0].clone() + 1e-3 * x[:, some]
    elif kind == "copied":
        x[1] = x[0].clone()
    elif kind == "channel":
        x[:, :, 0] += 30
    elif kind == "offset":
        x += 10
    return x * 10.0 ** draw(st.integers(-2, 3)), (H, W), tuple(degrees)


def brute_force(x, grid, degrees, references=None):
    """Distances [D, N, J, M] in float64; J: the others, then references."""
    out = []
    for r in degrees:
        f = plain.aggregate(x, r, grid)
        d = plain.distances(f)
        if references is not None:
            d = np.concatenate([d, plain.distances(f, plain.aggregate(references, r, grid))], axis=1)
        out.append(d)
    return np.stack(out)


def cancelled(x, grid, degrees):
    """Whether a neighbourhood's tokens so nearly cancel that float32 has no direction for their sum."""
    for r in degrees:
        for image in x.double().numpy():
            centred = (image - image.mean()).reshape(*grid, -1)
            padded = np.pad(centred, [(r // 2, r // 2)] * 2 + [(0, 0)])
            around = np.lib.stride_tricks.sliding_window_view(padded, (r, r), axis=(0, 1))
            sums, lengths = around.sum(axis=(-1, -2)), np.abs(image).max()
            if np.linalg.norm(sums, axis=-1).min() < 0.05 * r**2 * lengths:
                return True
    return False


@pytest.mark.parametrize("name", ENGINES)
def test_every_engine_equals_float64_loops(name, monkeypatch):
    use_engine(name, monkeypatch)

    @DRAWN
    @given(cases())
    def equal(case):
        x, grid, degrees = case
        assume(not cancelled(x, grid, degrees))
        expected = brute_force(x, grid, degrees)
        np.testing.assert_allclose(msm.stage_distances(x, degrees, grid=grid), expected, atol=2e-6)
        if name.startswith("8 bits") and x.shape[2] <= 256:
            return  # likely margins count on many channels: up to so many, 16 bits are taken
        loose = msm.stage_distances(x, degrees, grid=grid, precision="bfloat16")
        np.testing.assert_allclose(loose, expected, atol=2e-3)
        score = msm.mutual_scores([x], degrees, grid=grid, precision="bfloat16")
        parts = [plain.interval_average(d) for d in expected]
        # of so few images one distance counts at each degree, and is as far off as a distance may be
        np.testing.assert_allclose(score, np.mean(parts, axis=0), atol=2e-3 if len(degrees) == 1 else 1e-3)

    equal()
