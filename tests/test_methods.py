"""Other methods on the same tokens against independent implementations in float64."""

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from scipy.spatial.distance import cdist, mahalanobis
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors
from test_baselines import features, plain_tokens

from musc import MuSc, fewshot
from musc.datasets import as_category
from musc.errors import ConfigError, DataError
from musc.features import Features
from musc.methods import base, subspacead
from musc.methods.anomalydino import AnomalyDINO, mean_below_quantile
from musc.methods.base import Method, image_scores, method_maps
from musc.methods.mutual import Mutual
from musc.methods.padim import PaDiM
from musc.methods.patchcore import PatchCore
from musc.methods.spade import Spade
from musc.methods.subspacead import SubspaceAD

GRID = (4, 5)
METHODS = [PatchCore(), Spade(), PaDiM(channels=5), AnomalyDINO(), SubspaceAD()]


@pytest.fixture
def train():
    return features(9, 0)


@pytest.fixture
def test():
    return features(6, 1)


def unit(stage):
    x = stage.double().numpy()
    return x / np.linalg.norm(x, axis=2, keepdims=True)


def test_padim_equals_scipy_s_mahalanobis(train, test):
    method = PaDiM(channels=5, seed=3)
    kept = method.rows(24).tolist()
    assert len(set(kept)) == 5
    got = method.score(test, train).patches[GRID]
    normal, images = (plain_tokens(f, range(4), 1)[..., kept] for f in (train, test))
    for m in range(20):
        inverse = np.linalg.inv(np.cov(normal[:, m].T) + 0.01 * np.eye(5))
        expected = [mahalanobis(x, normal[:, m].mean(0), inverse) for x in images[:, m]]
        np.testing.assert_allclose(got[:, m], expected, rtol=1e-4)
    assert torch.equal(method.rows(24), PaDiM(channels=5, seed=3).rows(24))
    assert PaDiM(channels=100).rows(24).tolist() == list(range(24))


@pytest.mark.parametrize("quantile", [0.001, 0.02, 0.5, 1.0])
def test_anomalydino_batched_equals_brute_force(test, quantile):
    method = AnomalyDINO(quantile=quantile)
    got = method.score(test)
    tokens = unit(test.patch_tokens[-1])
    expected = np.empty((6, 20))
    for i in range(6):
        others = np.concatenate([tokens[j] for j in range(6) if j != i])
        for m in range(20):
            d = np.sort(cdist(tokens[i, m][None], others, "cosine")[0])
            below = d[d < np.quantile(d, quantile)]
            expected[i, m] = below.mean() if len(below) else d[0]
    np.testing.assert_allclose(got.patches[GRID], expected, atol=1e-6)
    np.testing.assert_allclose(got.images, expected.max(1), atol=1e-6)  # 1 % of 20 patches is none: one at least


def test_values_strictly_below_a_quantile():
    d = torch.tensor([[0.0, 0.0, 0.0, 1.0, 2.0], [3.0, 3.0, 3.0, 3.0, 3.0], [0.0, 1.0, 2.0, 3.0, 4.0]])
    assert mean_below_quantile(d, 0.75).tolist() == [0.0, 3.0, 1.0]  # 1, 3 and 3 themselves do not count
    assert mean_below_quantile(d[:, :1], 0.5).tolist() == [0.0, 3.0, 0.0]


def test_anomalydino_few_shot_equals_scikit_learn(train, test):
    got = AnomalyDINO(highest=0.15).score(test, train)
    bank = unit(train.patch_tokens[-1]).reshape(-1, 6)
    nearest = NearestNeighbors(n_neighbors=1, metric="cosine").fit(bank)
    expected = nearest.kneighbors(unit(test.patch_tokens[-1]).reshape(-1, 6))[0].reshape(6, 20)
    np.testing.assert_allclose(got.patches[GRID], expected, atol=1e-6)
    np.testing.assert_allclose(got.images, np.sort(expected, axis=1)[:, -3:].mean(1), atol=1e-6)
    between = cdist(unit(test.patch_tokens[-1])[0], bank) ** 2 / 2  # d = |a - b|^2 / 2
    np.testing.assert_allclose(got.patches[GRID][0], between.min(1), atol=1e-6)


@pytest.mark.parametrize("explained", [0.5, 0.75, 0.99])
@pytest.mark.parametrize("shots", [False, True])
def test_subspacead_equals_scikit_learn_s_pca(train, test, explained, shots):
    got = SubspaceAD(explained=explained).score(test, train if shots else None).patches[GRID]
    x, source = (torch.stack(f.patch_tokens[1:3]).mean(0).double().numpy().reshape(-1, 6) for f in (test, train))
    model = PCA(n_components=explained, svd_solver="full").fit(source if shots else x)
    residual = ((x - model.inverse_transform(model.transform(x))) ** 2).sum(1)
    assert model.n_components_ < 6 or explained == 0.99
    np.testing.assert_allclose(got, residual.reshape(6, 20), atol=1e-5)


def test_the_subspace_needs_two_passes_over_blocks_and_no_more():
    x, calls = torch.randn(50, 4, generator=torch.Generator().manual_seed(0)), []

    def blocks():
        calls.append(0)
        for part in x.split(7):
            calls[-1] += len(part)
            yield part

    space = subspacead.fit(blocks, 0.8)
    assert calls == [50, 50]
    model = PCA(n_components=0.8, svd_solver="full").fit(x.double().numpy())
    np.testing.assert_allclose(
        (space.directions @ space.directions.T).numpy(), model.components_.T @ model.components_, atol=1e-10
    )
    with pytest.raises(ValueError, match="no tokens"):
        subspacead.fit(lambda: [])


def test_constant_tokens_have_no_residual():
    flat = features(3, 0)
    for stage in flat.patch_tokens:
        stage[:] = 2.0
    assert SubspaceAD().score(flat).patches[GRID].abs().max() < 1e-12


def test_maps_are_upsampled_and_blurred_as_the_papers_say(train, test):
    method = PaDiM(channels=5)
    scores = method.score(test, train)
    maps = method_maps(method, scores, 40)
    patches = scores.patches[GRID].reshape(6, 4, 5)
    whole = torch.nn.functional.interpolate(patches[:, None], (40, 40), mode="bilinear")[:, 0].double().numpy()
    for i in range(6):
        np.testing.assert_allclose(maps[i], gaussian_filter(whole[i], 4.0), atol=1e-4)
    assert image_scores(scores, maps).tolist() == maps.flatten(1).amax(1).tolist()
    sub = SubspaceAD(highest=0.1)
    found = sub.score(test)
    maps = method_maps(sub, found, 40)
    whole = torch.nn.functional.interpolate(found.patches[GRID].reshape(6, 1, 4, 5), (40, 40), mode="bilinear")
    line = np.exp(-(np.array([-1, 0, 1]) ** 2) / 32.0)
    kernel = np.outer(line, line) / line.sum() ** 2  # 3 x 3 pixels
    inner = sum(kernel[a, b] * whole[0, 0].double().numpy()[a : a + 38, b : b + 38] for a in range(3) for b in range(3))
    np.testing.assert_allclose(maps[0, 1:-1, 1:-1], inner, atol=1e-4)
    top = np.sort(maps.flatten(1).numpy(), axis=1)[:, -160:].mean(1)
    np.testing.assert_allclose(image_scores(found, maps), top, rtol=1e-5)


@pytest.mark.parametrize("method", METHODS, ids=lambda m: type(m).__name__)
def test_grids_that_differ_and_no_class_token(method):
    grids = ((8, 8), (4, 4), (2, 2))
    train, test = (features(n, n, grids=grids, classes=False) for n in (5, 4))
    assert isinstance(method, Method)
    scores = method.score(test, train)
    maps = method_maps(method, scores, 32)
    assert maps.shape == (4, 32, 32)
    assert image_scores(scores, maps).shape == (4,)
    assert torch.isfinite(maps).all()


@pytest.mark.parametrize("method", METHODS, ids=lambda m: type(m).__name__)
def test_what_is_missing_is_said(method, train, test):
    one = test.take([0])
    if isinstance(method, AnomalyDINO | SubspaceAD):
        with pytest.raises(DataError, match="one image alone cannot be scored by"):
            method.score(one)
    else:
        with pytest.raises(ConfigError, match=r"normal reference images.*none are given"):
            method.score(test)
    assert method_maps(method, method.score(one, train), 16).shape == (1, 16, 16)
    with pytest.raises(ConfigError, match="extract both with the same backbone"):
        method.score(test, features(3, 0, C=7))


def test_padim_wants_two_references(train, test):
    with pytest.raises(ConfigError, match="at least 2, and there are 1"):
        PaDiM().score(test, train.take([0]))


def test_an_image_in_both_is_refused(test):
    twin = Features(test.patch_tokens, test.class_tokens, test.grids, test.samples, keys=tuple("abcdef"))
    with pytest.raises(DataError, match="also a reference image"):
        AnomalyDINO().score(twin, twin)


@pytest.mark.parametrize("preset", ["musc", "plus", "rscon"])
def test_musc_under_the_interface_equals_the_pipeline(tiny_config, tiny_backbone, photos, preset):
    config = {
        "musc": tiny_config, "plus": fewshot.plus(tiny_config),
        "rscon": tiny_config.replace(aggregation="snamd", rescoring="rscon"),
    }[preset]  # fmt: skip
    musc, paths = MuSc(config, backbone=tiny_backbone), sorted(photos.iterdir())
    result = musc.run(paths[2:], paths[:2])
    images, normal = (musc.features(as_category(some).samples) for some in (paths[2:], paths[:2]))
    method = Mutual(config, 64)
    scores = method.score(images, normal)
    np.testing.assert_allclose(method_maps(method, scores, 64), result.anomaly_maps, atol=1e-6)
    np.testing.assert_allclose(image_scores(scores, torch.zeros(4, 1, 1)), result.image_scores, atol=1e-5)
    if preset == "plus":
        with pytest.raises(ConfigError, match=r"MuSc\+ compares with normal reference images"):
            method.score(images)
    with pytest.raises(DataError, match="one image alone"):
        Mutual(tiny_config, 64).score(images.take([0]))


def test_the_mean_of_the_highest():
    assert base.mean_of_highest(torch.arange(200.0)[None]).item() == 198.5
    assert base.mean_of_highest(torch.arange(99.0)[None]).item() == 98
    assert math.isclose(base.mean_of_highest(torch.arange(300.0)[None]).item(), 298)
