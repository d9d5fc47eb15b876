"""SNAMD and RsCon (MuSc-V2) against loops in float64, and through every way to run the method."""

import math

import numpy as np
import plain
import pytest
import torch
from scipy.spatial.distance import cdist

from musc import MuSc, fewshot, lnamd, msm, rscin, snamd
from musc.backbones import Backbone, find_backbone
from musc.datasets import as_category
from musc.datasets.base import Category, Sample
from musc.errors import ConfigError
from musc.reproduce.experiments import Variant, ablate
from musc.scoring.aggregation import SalientTokens
from musc.scoring.tiles import cut
from musc.stream import Stream, score_against


def tokens(seed, N, M=20, C=6, scale=1.0):
    return scale * torch.randn(N, M, C, generator=torch.Generator().manual_seed(seed)) + 0.3


def plain_snamd(stage, degrees, grid, scale=1.0):
    """Patch by patch and neighbour by neighbour; the padding is a zero vector like any other."""
    H, W = grid
    half = max(degrees) // 2
    out = np.zeros(stage.shape)
    for n, image in enumerate(np.asarray(stage, dtype=np.float64)):
        padded = np.pad(image.reshape(H, W, -1), [(half, half), (half, half), (0, 0)])
        for y in range(H):
            for x in range(W):
                own = padded[y + half, x + half]
                for r in degrees:
                    h = r // 2
                    around = padded[y + half - h : y + half + h + 1, x + half - h : x + half + h + 1].reshape(r * r, -1)
                    weights = np.exp(-np.linalg.norm(around - own, axis=1) / scale)
                    out[n, y * W + x] += (weights[:, None] * around).sum(0) / weights.sum() / len(degrees)
    return out


@pytest.mark.parametrize("degrees", [(1, 3, 5), (3,), (1,), (5, 1), (1, 3, 7)])
@pytest.mark.parametrize("grid", [(4, 5), (5, 4), (1, 20), (10, 2)])
def test_snamd_equals_a_float64_loop(degrees, grid):
    stage = tokens(0, 2, scale=0.7)
    got = snamd.aggregate(stage, degrees, grid=grid, normalize=False)
    expected = plain_snamd(stage, degrees, grid)
    np.testing.assert_allclose(got, expected, atol=1e-5)
    unit = snamd.aggregate(stage.double(), degrees, grid=grid)
    np.testing.assert_allclose(unit, expected / np.linalg.norm(expected, axis=2, keepdims=True), atol=1e-7)


def test_the_temperature_counts_in_medians():
    stage = tokens(1, 3, M=12, scale=4)
    grid, found = (3, 4), []
    for image in stage.double().numpy():
        between = cdist(image, image)
        for p in range(12):
            for q in range(p):
                if max(abs(p // 4 - q // 4), abs(p % 4 - q % 4)) <= 2:
                    found.append(between[p, q])
    found.sort()
    for temperature in (0.5, 1.0, 3.0):
        got = snamd.aggregate(stage, temperature=temperature, grid=grid, normalize=False)
        scale = temperature * found[(len(found) - 1) // 2]  # of an even number, torch takes the lower one
        np.testing.assert_allclose(got, plain_snamd(stage, (1, 3, 5), grid, scale), atol=1e-5)


def test_tokens_that_are_all_alike_have_a_median_of_zero():
    alike = torch.full((1, 9, 4), 3.0)
    got = snamd.aggregate(alike, temperature=1.0, normalize=False)
    torch.testing.assert_close(got, alike)  # the padding is infinitely many medians away


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"degrees": ()}, "no degrees"),
        ({"degrees": (2,)}, "aggregation degree 2"),
        ({"temperature": 0.0}, "temperature 0.0"),
        ({"temperature": math.nan}, "temperature nan"),
        ({"grid": (3, 3)}, "grid 3 x 3"),
    ],
)
def test_settings_that_cannot_be(arguments, said):
    with pytest.raises(ValueError, match=said):
        snamd.aggregate(tokens(0, 1), **{"grid": (4, 5), **arguments})


@pytest.mark.parametrize("C", [3, 6, 300])
def test_mutual_scoring_of_snamd_is_eq_1_to_3_of_its_tokens(C):
    stages = [tokens(seed, 5, C=C, scale=0.5) for seed in (2, 3)]
    raw = [snamd.as_raw(snamd.aggregate(stage, grid=(4, 5))) for stage in stages]
    got = msm.mutual_scores(raw, (1,), grid=(4, 5))
    parts = []
    for stage in stages:
        z = plain_snamd(stage, (1, 3, 5), (4, 5))
        z /= np.linalg.norm(z, axis=2, keepdims=True)
        parts.append(plain.interval_average(plain.distances(z)))
    np.testing.assert_allclose(got, np.mean(parts, axis=0), atol=1e-5)


def test_salient_tokens_and_eq_5():
    scores, z = torch.rand(6, 20, generator=torch.Generator().manual_seed(4)), tokens(5, 6).abs()
    salient = rscin.salient_tokens(scores, z)
    S = np.array([z[i, int(scores[i].argmax())].double().numpy() for i in range(6)])
    S /= np.linalg.norm(S, axis=1, keepdims=True)
    np.testing.assert_allclose(salient, S, atol=1e-6)
    c = scores.amax(dim=1).double().numpy()
    c = (c - c.min()) / (c.max() - c.min())
    W, smoothed = S @ S.T, []
    for k in (1, 4):  # the windows of MuSc-V2 count the image itself, and k = 1 is it alone
        mask = np.zeros_like(W)
        for i in range(6):
            mask[i, np.argsort(-W[i])[:k]] = 1
        smoothed.append((mask * W) / (mask * W).sum(1, keepdims=True) @ c)
    got = rscin.rescore(scores.amax(dim=1), salient, windows=(4,))
    np.testing.assert_allclose(got, np.mean(smoothed, axis=0), atol=1e-6)
    with pytest.raises(ValueError, match="same patches"):
        rscin.salient_tokens(scores[:, :5], z)


@pytest.fixture
def v2(tiny_config):
    return tiny_config.replace(aggregation="snamd", rescoring="rscon", windows=(3,), degrees=(1, 3))


def by_hand(features, config, size=64):
    """Maps and salient tokens of the tiny network's two stages, from the maths alone."""
    z = [plain_snamd(stage, config.degrees, (4, 4)) for stage in features.patch_tokens]
    z = [part / np.linalg.norm(part, axis=2, keepdims=True) for part in z]
    scores = np.mean([plain.interval_average(plain.distances(part)) for part in z], axis=0)
    return scores, np.array([part[m] for part, m in zip(z[0], scores.argmax(1), strict=True)])


def test_the_pipeline(v2, tiny_backbone, photos):
    musc = MuSc(v2, backbone=tiny_backbone)
    result = musc.run(photos)
    scores, salient = by_hand(musc.features(as_category(photos).samples), v2)
    np.testing.assert_allclose(result.raw_image_scores, scores.max(1), atol=1e-5)
    np.testing.assert_allclose(result.class_tokens, salient, atol=1e-5)
    expected = rscin.rescore(torch.tensor(scores.max(1)), torch.tensor(salient), (3,))
    np.testing.assert_allclose(result.image_scores, expected, atol=1e-3)
    assert not result.notes


def test_few_shot_and_musc_plus(v2, tiny_backbone, photos):
    musc = MuSc(fewshot.plus(v2), backbone=tiny_backbone)
    paths = sorted(photos.iterdir())
    result = musc.run(paths[2:], references=paths[:2])
    stages = musc.features(as_category(paths).samples).patch_tokens
    parts = []
    for stage in stages:
        z = plain_snamd(stage, v2.degrees, (4, 4))
        z /= np.linalg.norm(z, axis=2, keepdims=True)
        parts.append(plain.distances(z[2:], z[:2]).min(axis=1))
    np.testing.assert_allclose(result.raw_image_scores, np.mean(parts, axis=0).max(1), atol=1e-5)


@pytest.mark.parametrize("pool", ["position", "all"])
def test_tiles_take_the_most_anomalous_tile(v2, tiny_backbone, photos, pool):
    config = v2.replace(tiles=2, tile_pool=pool)
    musc = MuSc(config, backbone=tiny_backbone)
    samples = as_category(photos).samples
    maps, salient = musc.maps_and_tokens(musc.features(samples))
    tiles = [musc.features([cut(s, 2, config.tile_overlap)[t] for s in samples]) for t in range(4)]
    best, expected = np.full(6, -1.0), np.zeros((6, 192))
    for t, tile in enumerate(tiles):
        z = plain_snamd(tile.patch_tokens[0], v2.degrees, (4, 4))
        scores = by_hand(tile, v2)[0] if pool == "position" else among_all(tiles, t, v2)
        for i in range(6):
            if scores[i].max() > best[i]:
                best[i], vector = scores[i].max(), z[i, scores[i].argmax()]
                expected[i] = vector / np.linalg.norm(vector)
    np.testing.assert_allclose(salient, expected, atol=1e-4)
    assert (maps.flatten(1).amax(1).numpy() <= best + 1e-5).all()


def among_all(tiles, t, config):
    parts = []
    for n in range(2):
        every = []
        for tile in tiles:
            z = plain_snamd(tile.patch_tokens[n], config.degrees, (4, 4))
            every.append(z / np.linalg.norm(z, axis=2, keepdims=True))
        found = np.min([plain.distances(every[t], other) for other in every], axis=0)  # [6, 6, 16]
        parts.append(plain.interval_average(np.array([np.delete(found[i], i, axis=0) for i in range(6)])))
    return np.mean(parts, axis=0)


def test_a_stream_ends_with_the_batch_s_scores(v2, tiny_backbone, photos, tmp_path):
    musc = MuSc(v2, backbone=tiny_backbone, cache=tmp_path)
    stream = Stream(musc)
    for path in sorted(photos.iterdir()):
        last = stream.push(path)
    batch, found = musc.run(photos), stream.result()
    np.testing.assert_allclose(found.anomaly_maps, batch.anomaly_maps, atol=1e-5)
    np.testing.assert_allclose(found.image_scores, batch.image_scores, atol=1e-3)
    np.testing.assert_allclose(found.class_tokens, batch.class_tokens, atol=1e-5)
    assert last.raw_score == pytest.approx(batch.raw_image_scores[-1], abs=1e-5)


def test_new_images_against_an_earlier_result(v2, tiny_backbone, photos, tmp_path, monkeypatch):
    monkeypatch.setattr("musc.pipeline.load_backbone", lambda *_, **__: tiny_backbone)
    musc = MuSc(v2, backbone=tiny_backbone, cache=tmp_path)
    paths = sorted(photos.iterdir())
    earlier, batch = musc.run(paths[:5]), musc.run(paths)
    new = score_against([paths[5]], earlier, device="cpu")
    assert new.raw_image_scores[0] == pytest.approx(batch.raw_image_scores[5], abs=1e-5)
    np.testing.assert_allclose(new.class_tokens[0], batch.class_tokens[5], atol=1e-5)
    joint = torch.tensor([*earlier.raw_image_scores, new.raw_image_scores[0]])
    expected = rscin.rescore(joint, torch.tensor(np.concatenate([earlier.class_tokens, new.class_tokens])), (3,))
    assert new.image_scores[0] == pytest.approx(float(expected[5]), abs=1e-5)


@pytest.fixture
def labeled(photos):
    return Category("toy", "gradient", tuple(Sample(f"{i}.png", photos / f"{i}.png", int(i > 3)) for i in range(6)))


@pytest.mark.parametrize("variant", [Variant(), Variant(degrees=(3,)), Variant(subsets=2), Variant(degrees=(1, 5))])
def test_ablations_equal_runs_of_their_own(v2, tiny_backbone, labeled, tmp_path, variant):
    musc = MuSc(v2.replace(degrees=(1, 3, 5)), backbone=tiny_backbone)
    frame = ablate(labeled, musc, tmp_path, {"one": {"row": variant, "other": Variant(degrees=(1, 3))}})
    changes = {"degrees": variant.degrees, "subsets": variant.subsets}
    alone = MuSc(musc.config.replace(**changes), backbone=tiny_backbone).run(labeled).metrics
    for line in frame[frame.row == "row"].itertuples():
        assert line.value == pytest.approx(alone[line.group][line.metric], abs=1e-5)


def test_sweeps_equal_runs_of_their_own(v2, tiny_backbone, labeled, photos):
    musc = MuSc(v2, backbone=tiny_backbone)
    few = Category("toy", "gradient", labeled.samples[2:])
    pool = Category("toy", "normal", labeled.samples[:2])
    frame = fewshot.sweep(few, musc, references=pool, shots=(0, None))
    for method, setting, config, references in (
        ("MuSc", "0-shot", v2, None), ("MuSc", "full-shot", v2, pool), ("MuSc+", "full-shot", fewshot.plus(v2), pool)
    ):  # fmt: skip
        alone = MuSc(config, backbone=tiny_backbone).run(few, references).metrics
        for line in frame[(frame.method == method) & (frame.setting == setting)].itertuples():
            assert line.value == pytest.approx(alone[line.group][line.metric], abs=1e-5)


def test_rscon_works_on_grids_that_differ_and_without_class_tokens(tiny_config, photos):
    swin = Backbone(find_backbone("swin_base"), TwoStages(), image_size=64, stages=(1, 2, 3), weights_id="none")
    config = tiny_config.replace(rescoring="rscon", windows=(2,))
    result = MuSc(config, backbone=swin).run(photos)
    assert result.class_tokens.shape == (6, 8)
    np.testing.assert_allclose(np.linalg.norm(result.class_tokens, axis=1), 1, atol=1e-5)
    assert not result.notes
    assert MuSc(config.replace(rescoring="rscin"), backbone=swin).run(photos).notes


class TwoStages(torch.nn.Module):
    """Three stages of 16, 8 and 4 patches a side, of the pixels alone, and no class token."""

    def forward_intermediates(self, images, **_):
        grey = images.mean(dim=1, keepdim=True)
        mixed = torch.cat([torch.sin(k * grey) for k in range(1, 9)], dim=1)
        return None, [torch.nn.functional.adaptive_avg_pool2d(mixed, side) for side in (16, 8, 4)]


def test_salient_tokens_with_lnamd_are_the_mean_over_its_degrees(tiny_config, tiny_backbone, photos):
    features = MuSc(tiny_config, backbone=tiny_backbone).features(as_category(photos).samples)
    scores = torch.rand(6, 16, generator=torch.Generator().manual_seed(0))
    got = SalientTokens(tiny_config).add(features, {(4, 4): scores})
    mean = sum(lnamd.aggregate(features.patch_tokens[0], r) for r in (1, 3, 5))
    expected = torch.nn.functional.normalize(mean[torch.arange(6), scores.argmax(1)], dim=1)
    torch.testing.assert_close(got, expected)


def test_other_words(tiny_config):
    for name in ("aggregation", "rescoring"):
        with pytest.raises(ConfigError, match=f"{name} = 'other': choose one of"):
            tiny_config.replace(**{name: "other"})
