"""`pool = R`: which images score which, that each is prepared about once, and their scores against loops."""

from collections import Counter

import numpy as np
import plain
import pytest
import torch
from test_msm import GRID, tokens

from musc import engines, msm
from musc.engines import memory
from musc.engines.pairs import plan_pool

SIZES = [(N, R) for N in (4, 7, 8, 12) for R in (1, 2, 3, 5) if R < N - 1]


@pytest.mark.parametrize(("N", "R"), SIZES)
def test_images_are_scored_by_their_neighbours_in_a_circle(N, R):
    """R others each; as many comparisons as can be where each serves both images, and some more on odd circles."""
    plan = plan_pool(N, 2, R, seed=3)
    assert sorted(plan.order) == list(range(N + 2))
    assert plan.order[N:] == (N, N + 1)  # the references, which all are scored by
    scored = (plan.slot[:, :N] >= 0).sum(dim=1)
    assert (scored == R).all()
    pairs = [(i, p) for i, p in plan.pairs() if p < N]
    assert plan.count == len(plan.pairs()) == len(pairs) + 2 * N
    assert len(pairs) == (N * R // 2 if R % 2 == 0 or N % 2 == 0 else N * (R + 1) // 2)
    seat = {image: k for k, image in enumerate(plan.order)}
    apart = Counter(min((seat[i] - seat[p]) % N, (seat[p] - seat[i]) % N) for i, p in pairs)
    near = set(range(1, R // 2 + 1))
    assert near <= set(apart) <= near | {N // 2 if N % 2 == 0 else R // 2 + 1}
    assert torch.equal(plan.seated().slot >= 0, (plan.slot >= 0)[list(plan.order[:N])][:, list(plan.order)])


def test_every_other_image_is_drawn_equally_often():
    N, R, draws = 6, 2, 1500
    counts = sum((plan_pool(N, 0, R, seed).slot >= 0).double() for seed in range(draws))
    share = R / (N - 1)
    others = counts[~torch.eye(N, dtype=torch.bool)]
    assert (counts.diagonal() == 0).all()
    # none of 30 counts is off by more than four and a half standard deviations
    assert ((others - draws * share).abs() < 4.5 * (draws * share * (1 - share)) ** 0.5).all()


@pytest.mark.parametrize("cut", [None, memory.Cut(2, 3, 4, 5), memory.Cut(2, 9, 11, 9)], ids=str)
def test_scores_by_drawn_images_are_those_of_loops(cut, monkeypatch):
    x, r = tokens(9), tokens(2, seed=5)
    drawn = plan_pool(9, 2, 4, seed=1).slot >= 0
    expected = np.zeros((9, x.shape[1]))
    for degree in (1, 3):
        own = plain.aggregate(x, degree, GRID)
        every = np.concatenate([own, plain.aggregate(r, degree, GRID)])
        for i in range(9):
            found = plain.distances(own[i : i + 1], every[drawn[i].numpy()])
            expected[i] += plain.interval_average(found)[0] / 2
    monkeypatch.setattr(memory, "cut", lambda *_, **__: cut)
    got = msm.mutual_scores([x], (1, 3), grid=GRID, references=[r], pool=4, seed=1)
    np.testing.assert_allclose(got, expected, atol=1e-6)


def test_each_image_is_prepared_about_once():
    """However few are held: 60 images, ten held at a time, each scored by four others."""
    plan, used = plan_pool(60, 0, 4).seated(), Counter()
    x = tokens(60, (2, 2), C=4).double()

    def image(k):
        used[k] += 1
        return x[k]

    out = torch.empty(1, 60, 4, 4, dtype=torch.float64)
    engines.compare(image, plan, (1,), (2, 2), out, "float32", 5, float("inf"), new=0)
    assert set(used) == set(range(60))
    assert sum(used.values()) < 1.3 * 60
