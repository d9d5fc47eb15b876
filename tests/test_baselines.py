import math
from pathlib import Path

import numpy as np
import pytest
import torch

from musc import MuSc, metrics, rscin
from musc.datasets import load_category
from musc.datasets.base import Category, Sample
from musc.errors import ConfigError, DataError
from musc.features import Features
from musc.methods.patchcore import PatchCore, greedy_coreset
from musc.methods.spade import Spade
from musc.methods.tokens import locally_aware_tokens
from musc.reproduce.plugged_in import rscin_gain


def features(n, seed, grids=((4, 5),) * 4, C=6, classes=True):
    g = torch.Generator().manual_seed(seed)
    stages = [3 * torch.randn(n, h * w, C, generator=g) + 1 for h, w in grids]
    tokens = torch.nn.functional.normalize(torch.randn(n, 8, generator=g), dim=1) if classes else None
    return Features(stages, tokens, tuple(grids), tuple(Sample(f"{i}.png", Path(f"{i}.png")) for i in range(n)))


@pytest.fixture
def train():
    return features(7, 0)


@pytest.fixture
def test():
    return features(5, 1)


def plain_tokens(f, stages, degree):
    """Joint LayerNorm, then the mean over the neighbours that exist, in float64, patch by patch."""
    parts = []
    for n in stages:
        (H, W), x = f.grids[n], f.patch_tokens[n].double().numpy()
        x = (x - x.mean((1, 2), keepdims=True)) / np.sqrt(x.var((1, 2), keepdims=True) + 1e-5)
        x = x.reshape(len(x), H, W, -1)
        out, r = np.empty_like(x), degree // 2
        for y in range(H):
            for z in range(W):
                out[:, y, z] = x[:, max(0, y - r) : y + r + 1, max(0, z - r) : z + r + 1].mean((1, 2))
        parts.append(out.reshape(len(x), H * W, -1))
    return np.concatenate(parts, axis=2)


def plain_distances(a, b):
    return np.sqrt(((a[:, None] - b[None]) ** 2).sum(2))


@pytest.mark.parametrize("degree", [1, 3, 5])
def test_locally_aware_tokens(train, degree):
    got = locally_aware_tokens(train, [1, 2], degree)
    np.testing.assert_allclose(got.numpy(), plain_tokens(train, [1, 2], degree), atol=1e-5)


def test_coarser_stages_are_brought_to_the_finest_grid():
    f = features(3, 2, grids=((8, 8), (4, 4)))
    f.patch_tokens[1][:] = torch.arange(16.0)[None, :, None]  # rises along rows and columns, and must go on doing so
    got = locally_aware_tokens(f, [0, 1], 1)
    assert got.shape == (3, 64, 12)
    rising = got[0, :, 6].reshape(8, 8)
    assert (rising.diff(dim=0) >= 0).all()
    assert (rising.diff(dim=1) >= 0).all()


def test_greedy_coreset_equals_the_naive_search():
    x = torch.randn(60, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    rows = greedy_coreset(x, 12, projected=None).tolist()
    between, chosen = plain_distances(x.numpy(), x.numpy()), rows[:1]
    while len(chosen) < 12:
        chosen.append(max(set(range(60)) - set(chosen), key=lambda i: between[i, chosen].min()))
    assert rows == chosen
    assert sorted(greedy_coreset(x, 60, projected=None).tolist()) == list(range(60))


def test_a_coreset_covers_better_than_chance():
    """k-center is within twice the best cover; projected distances hardly change that."""
    g = torch.Generator().manual_seed(4)
    centres = torch.randn(20, 256, generator=g)
    x = centres[torch.randint(20, (400,), generator=g)] + 0.05 * torch.randn(400, 256, generator=g)
    for projected in (None, 64):
        rows = greedy_coreset(x, 20, projected=projected)
        assert torch.cdist(x, x[rows]).min(dim=1).values.max() < 2.5  # 20 clusters: one row lies in each
        assert torch.equal(rows, greedy_coreset(x, 20, projected=projected))
    with pytest.raises(ConfigError, match="coreset of 0 among 400"):
        greedy_coreset(x, 0)


def test_equal_patches_are_not_chosen_twice():
    assert sorted(greedy_coreset(torch.ones(6, 3), 6).tolist()) == list(range(6))


@pytest.mark.parametrize("neighbors", [1, 2, 3, 1000])
def test_patchcore_equals_brute_force(train, test, neighbors):
    method = PatchCore(fraction=0.25, neighbors=neighbors)
    scores = method.score(test, train)
    image_scores, patch_scores = scores.images, scores.patches[4, 5]
    memory = method.memory(train).double().numpy()
    assert len(memory) == 35
    for i, image in enumerate(plain_tokens(test, (1, 2), 3)):
        d = plain_distances(image, memory)
        np.testing.assert_allclose(patch_scores[i].numpy(), d.min(1), rtol=1e-5)
        far = d.min(1).argmax()
        star, score = d[far].argmin(), d.min(1).max()
        around = np.argsort(plain_distances(memory[star : star + 1], memory)[0])[:neighbors]
        assert star in around
        weight = 1 - math.exp(score) / np.exp(d[far, around]).sum() if neighbors > 1 else 1
        assert image_scores[i].item() == pytest.approx(weight * score, rel=1e-4)


def test_the_memory_is_made_of_normal_patches(train):
    bank = locally_aware_tokens(train, [1, 2], 3).flatten(0, 1)
    assert torch.cdist(PatchCore(fraction=0.1).memory(train), bank).min(dim=1).values.max() < 1e-2
    scores = PatchCore(fraction=1.0).score(train, train)
    assert scores.patches[4, 5].max() < 1e-2  # the whole bank knows every training patch


@pytest.mark.parametrize(("K", "kappa"), [(50, 1), (3, 1), (3, 4), (1, 1000)])
@pytest.mark.parametrize("classes", [True, False])
def test_spade_equals_brute_force(K, kappa, classes):
    train, test = features(7, 0, classes=classes), features(5, 1, classes=classes)
    scores = Spade(K=K, kappa=kappa).score(test, train)
    image_scores, patch_scores = scores.images, scores.patches[4, 5]
    level = [(f.class_tokens if classes else f.patch_tokens[-1].mean(1)).double().numpy() for f in (train, test)]
    bank, images = (plain_tokens(f, range(4), 1) for f in (train, test))
    for i in range(5):
        away = plain_distances(level[1][i : i + 1], level[0])[0]
        nearest = np.argsort(away)[:K]
        assert image_scores[i].item() == pytest.approx((away[nearest] ** 2).mean(), rel=1e-4)
        d = np.sort(plain_distances(images[i], bank[nearest].reshape(-1, 24)) ** 2, axis=1)[:, :kappa]
        np.testing.assert_allclose(patch_scores[i].numpy(), d.mean(1), rtol=1e-4)


def test_gain_on_the_synthetic_data_set(tiny_config):
    category = load_category("synthetic", None, "leather", good=5, defects=1, train=4, size=64)
    musc = MuSc(tiny_config.replace(windows=(2,)))
    table = rscin_gain(category, musc)
    assert list(table["method"]) == ["SPADE", "SPADE", "PatchCore", "PatchCore"]
    assert list(table["rscin"]) == ["without", "with"] * 2
    features_of = [musc.features(samples) for samples in (category.train, category.samples)]
    before = Spade().score(features_of[1], features_of[0]).images
    labels = torch.tensor([s.label for s in category.samples])
    for row, scores in ((0, before), (1, rscin.rescore(before, features_of[1].class_tokens, (2,)))):
        for name, value in metrics.image_metrics(labels, scores).items():
            assert table[f"image_{name}"][row] == pytest.approx(100 * value)


def test_gain_says_what_is_missing(tiny_config, photos):
    samples = tuple(Sample(f"{i}.png", photos / f"{i}.png", int(i == 5)) for i in range(6))
    musc = MuSc(tiny_config)
    with pytest.raises(DataError, match="cup has no normal training images"):
        rscin_gain(Category("toy", "cup", samples), musc)
    unlabeled = tuple(Sample(s.name, s.image) for s in samples)
    with pytest.raises(DataError, match="without labels"):
        rscin_gain(Category("toy", "cup", unlabeled, train=samples[:4]), musc)
    with pytest.raises(ConfigError, match="K = 0"):
        Spade(K=0)
