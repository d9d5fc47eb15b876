import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import plain
import pytest
import torch
from PIL import Image

from musc import MuSc, datasets, fewshot, msm
from musc.datasets.base import Category, Sample
from musc.errors import ConfigError, DataError
from musc.fewshot import Draw, draw, draw_maps, plan_draws, plus, reference_category, reference_scores, summary, sweep

GRID = (3, 4)


def tokens(seed, N, C=5):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(N, GRID[0] * GRID[1], C, generator=generator) * 3 + 1


@pytest.fixture
def stages():
    """Test images and references: two stages of unequal width."""
    return [tokens(1, 6), tokens(2, 6, 7)], [tokens(3, 4), tokens(4, 4, 7)]


@pytest.fixture
def loaded(monkeypatch, tiny_backbone):
    """The session's network serves every pipeline."""
    monkeypatch.setattr("musc.pipeline.load_backbone", lambda *_, **__: tiny_backbone)


@pytest.fixture
def category(photos):
    """Four normal test images with noise, one with a spot, and six normal training images of other noise."""
    rng = np.random.default_rng(7)
    train = photos.parent / "train"
    train.mkdir()
    for i in range(6):
        pixels = np.linspace(60, 200, 80)[:, None, None] + rng.normal(0, 4, (80, 80, 3))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(train / f"{i}.png")
    samples = [Sample(f"{i}.png", photos / f"{i}.png", int(i == 5), "spot" if i == 5 else "good") for i in range(1, 6)]
    normal = tuple(Sample(f"train/{i}.png", train / f"{i}.png", 0, "good") for i in range(6))
    return Category("toy", "gradient", tuple(samples), normal)


def plus_plain(stages, references, degrees=(1, 3, 5)):
    """Eq. 9-11 in float64."""
    parts = []
    for stage, other in zip(stages, references, strict=True):
        for r in degrees:
            a, b = plain.aggregate(stage, r, GRID), plain.aggregate(other, r, GRID)
            parts.append(plain.distances(a, b).min(axis=1))
    return np.mean(parts, axis=0)


def test_k_shot_musc_equals_brute_force(stages):
    images, references = stages
    found = msm.mutual_scores(images, references=references, grid=GRID)
    expected = plain.mutual_scores([s.double() for s in images], grid=GRID, references=[r.double() for r in references])
    np.testing.assert_allclose(found, expected, atol=1e-6)
    without = plain.mutual_scores(images, grid=GRID)
    assert np.abs(expected - without).max() > 0.01  # the references matter


def test_musc_plus_equals_brute_force(stages):
    images, references = stages
    np.testing.assert_allclose(
        reference_scores(images, references, grid=GRID), plus_plain(images, references), atol=1e-6
    )
    exact = reference_scores([s.double() for s in images], [r.double() for r in references], grid=GRID)
    np.testing.assert_allclose(exact, plus_plain(images, references), atol=1e-12)


def test_musc_plus_does_not_look_at_the_other_test_images(stages):
    images, references = stages
    together = reference_scores(images, references, grid=GRID)
    alone = torch.cat([reference_scores([s[i : i + 1] for s in images], references, grid=GRID) for i in range(6)])
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=0)


def test_more_references_never_raise_a_score_of_musc_plus(stages):
    images, references = stages
    few = reference_scores(images, [r[:2] for r in references], grid=GRID)
    assert (reference_scores(images, references, grid=GRID) <= few + 1e-6).all()


def test_without_references_musc_plus_has_nothing_to_say(stages):
    images, references = stages
    with pytest.raises(ValueError, match=r"pool = 0.*from 0 with references"):
        reference_scores(images, [r[:0] for r in references], grid=GRID)


@pytest.mark.parametrize(("interval", "reduction"), [((0.0, 0.3), "mean"), ((0.2, 0.7), "max"), ((0.1, 0.5), "min")])
def test_draws_reduce_shared_distances_as_brute_force_does(stages, interval, reduction):
    (images, *_), (references, *_) = stages
    mutual = msm.stage_distances(images, grid=GRID)
    reference = msm.stage_distances(images, grid=GRID, references=references, pool=0)
    draws = [Draw("MuSc", "2-shot", 0, (3, 1)), Draw("MuSc", "0-shot", 0, ()), Draw("MuSc+", "2-shot", 0, (3, 1))]
    found = fewshot.draw_scores(mutual, reference, draws, interval, reduction)
    low, high = (round(100 * x) for x in interval)
    settings = {"grid": GRID, "low": low, "high": high, "reduction": getattr(np, reduction)}
    chosen = references[[3, 1]]
    np.testing.assert_allclose(
        found[draws[0]], plain.mutual_scores([images], references=[chosen], **settings), atol=1e-6
    )
    np.testing.assert_allclose(found[draws[1]], plain.mutual_scores([images], **settings), atol=1e-6)
    np.testing.assert_allclose(found[draws[2]], plus_plain([images], [chosen]), atol=1e-6)


def test_the_sweep_scores_as_the_pipeline_does(tiny_config, category, loaded):
    musc = MuSc(tiny_config.replace(degrees=(1, 3)))
    draws = plan_draws(6, (0, 2), seeds=1)
    assert [(d.method, d.setting) for d in draws] == [("MuSc", "0-shot"), ("MuSc", "2-shot"), ("MuSc+", "2-shot")]
    maps = draw_maps(musc.features(category.samples), musc.features(category.train), draws, musc)
    for d in draws:
        one = musc if d.method == "MuSc" else MuSc(plus(musc.config))
        pool = reference_category(category, len(d.rows), seed=0) if d.rows else None
        result = one.run(category, references=pool)
        np.testing.assert_allclose(maps[d], result.anomaly_maps, atol=1e-5)
        how = "too" if one is musc else "alone"
        assert not d.rows or result.notes[0] == f"2 reference images scored {how}."


def test_settings_that_a_sweep_cannot_have_are_named(tiny_config, category, loaded):
    for settings, message in (({"subsets": 2}, "subsets = 2"), ({"references": 3}, "references = 3 is not for sweeps")):
        with pytest.raises(ConfigError, match=message):
            sweep(category, MuSc(tiny_config.replace(**settings)), pixels=False)


def test_draws_are_seeded_and_nested():
    assert draw(20, 4, 1) == draw(20, 4, 1) != draw(20, 4, 2)
    assert draw(20, 8, 1)[:4] == draw(20, 4, 1)
    assert len(set(draw(20, 20, 1))) == 20
    plan = plan_draws(16, seeds=3)  # the default shots
    settings = {d.setting for d in plan if d.method == "MuSc+"}
    assert settings == {"1-shot", "2-shot", "4-shot", "8-shot", "full-shot"}  # 16 is all, 32 cannot be
    assert sum(d.setting == "8-shot" for d in plan) == 6
    assert sum(d.setting == "full-shot" for d in plan) == 2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: draw(4, 5, 0), "5 shots of 4 normal reference images"),
        (lambda: draw(4, 0, 0), "from 1 to 4"),
        (lambda: plan_draws(4, (-1,)), "whole numbers from 0"),
        (lambda: plan_draws(4, (8,)), "leaves nothing to measure"),
        (lambda: plan_draws(4, methods=("PatchCore",)), "'PatchCore'.*MuSc, MuSc+"),
    ],
)
def test_impossible_draws_are_named(call, message):
    with pytest.raises(ConfigError, match=message):
        call()


def test_sweep_measures_keeps_and_reuses(tiny_config, category, tmp_path, monkeypatch, loaded):
    musc = MuSc(tiny_config, cache=tmp_path / "cache")
    first = sweep(category, musc, tmp_path, shots=(0, 1, None), seeds=3, pixels=False)
    auroc = first[(first["group"] == "image_before_rscin") & (first["metric"] == "auroc")]
    assert len(auroc) == 1 + 3 + 1 + 3 + 1  # the spot is plain to see
    assert (auroc["value"] == 1).all()
    assert set(first["shots"]) == {0, 1, 6}
    monkeypatch.setattr(MuSc, "features", lambda *_: pytest.fail("computed again"))
    again = sweep(category, musc, tmp_path, shots=(0, 1, None), seeds=3, pixels=False)
    assert again.equals(first)


def test_summary_takes_categories_first_then_draws(tiny_config, category, loaded):
    frame = sweep(category, MuSc(tiny_config), shots=(1,), seeds=3, methods=("MuSc+",), pixels=False)
    chosen = frame[(frame["group"] == "image") & (frame["metric"] == "ap")].reset_index(drop=True)
    chosen["value"] = [0.5, 0.7, 0.9]
    both = summary(pd.concat([chosen, chosen.assign(category="other", value=[0.7, 0.9, 1.1])]))
    assert len(both) == 1
    assert both.loc[0, "mean"] == pytest.approx(0.8)
    assert both.loc[0, "spread"] == pytest.approx(0.2)  # of 0.6, 0.8, 1.0
    assert both.loc[0, "draws"] == 3


def test_every_synthetic_category_has_normal_references():
    for name in datasets.list_categories("synthetic"):
        category = datasets.load_category("synthetic", None, name)
        pool = reference_category(category, 3, seed=1)
        assert len(pool) == 3
        assert all(s.label == 0 and s.name.startswith("train/good/") for s in pool)


def test_references_that_cannot_serve_are_named(tiny_config, category, photos, loaded):
    musc = MuSc(tiny_config)
    with pytest.raises(DataError, match=r"gradient has no normal training images .*train/good"):
        reference_category(replace(category, train=()))
    with pytest.raises(DataError, match="no reference images"):
        musc.run(category, references=[])
    with pytest.raises(ConfigError, match="references = 0 lets reference images score alone, and none are given"):
        MuSc(plus(tiny_config)).run(category)
    with pytest.raises(DataError, match=r"0\.png is given 2 times"):
        musc.run(category, references=[photos / "0.png", photos / "0.png"])
    copied = photos.parent / "copy.png"
    shutil.copy(photos / "2.png", copied)
    with pytest.raises(DataError, match=r"2\.png is also a reference image \(.*copy\.png\).*Leave it out"):
        musc.run(category, references=[copied])


def test_references_of_another_backbone_or_size_are_named(tiny_config, category):
    musc = MuSc(tiny_config)
    features = musc.features(category.samples)
    other = MuSc(tiny_config.replace(image_size=96)).features(category.train)
    with pytest.raises(ConfigError, match=r"6 x 6 x 192.*4 x 4 x 192.*same backbone, image size and stages"):
        musc.anomaly_maps(features, other)
    fewer = MuSc(tiny_config.replace(stages=(1,))).features(category.train)
    with pytest.raises(ConfigError, match=r"1 stages.*2 stages"):
        musc.anomaly_maps(features, fewer)
