import dataclasses
import math

import numpy as np
import pytest
import torch
from PIL import Image

from musc import MuSc, msm
from musc.datasets.base import Category, Sample
from musc.errors import ConfigError, DataError
from musc.reproduce import experiments
from musc.reproduce.experiments import GRIDS, Distances, Variant, ablate, reduce_sorted


@pytest.fixture
def category(photos):
    Image.fromarray(np.pad(np.full((20, 20), 255, np.uint8), 30)).save(photos / "mask.bmp")
    samples = [Sample(f"{i}.png", photos / f"{i}.png", 0, "good") for i in range(4)]
    samples += [Sample(f"{i}.png", photos / f"{i}.png", 1, "spot", photos / "mask.bmp") for i in (4, 5)]
    return Category("toy", "gradient", tuple(samples))


@pytest.fixture
def musc(tiny_config):
    return MuSc(tiny_config)


@pytest.mark.parametrize(
    ("changes", "variant"),
    [
        ({}, Variant()),
        ({"degrees": (3,)}, Variant(degrees=(3,))),
        ({"interval": (0.4, 0.9), "reduction": "max"}, Variant(interval=(0.4, 0.9), reduction="max")),
        ({"interval": (0.0, 1.0), "reduction": "min"}, Variant(interval=(0.0, 1.0), reduction="min")),
        ({"subsets": 2}, Variant(subsets=2)),
        ({"windows": (2, math.inf)}, Variant(windows=(2, math.inf))),
    ],
)
def test_every_variant_equals_a_run_of_its_own(musc, category, tmp_path, changes, variant):
    frame = ablate(category, musc, tmp_path, {"one": {"row": variant}})
    alone = MuSc(musc.config.replace(**changes)).run(category).metrics
    for line in frame.itertuples():
        # sums in another order may swap two pixels that score the same to the last digit
        assert line.value == pytest.approx(alone[line.group][line.metric], abs=1e-5)
    assert set(frame.group) == set(alone)


def test_all_tables_from_one_pass_and_a_second_call_computes_nothing(musc, category, tmp_path, monkeypatch):
    frame = ablate(category, musc, tmp_path)
    assert list(dict.fromkeys(frame.experiment)) == list(GRIDS)
    for name, rows in GRIDS.items():
        assert list(dict.fromkeys(frame[frame.experiment == name].row)) == list(rows)
    assert not list(tmp_path.glob("distances-*"))
    monkeypatch.setattr(experiments.Distances, "compute", None)
    again = ablate(category, musc, tmp_path)
    assert again.equals(frame)


def test_stored_distances_resume_and_equal_msm(musc, category, tmp_path, monkeypatch):
    features = musc.features(category.samples)
    store = Distances.compute(features, tmp_path / "d", (1, 3))
    expected = msm.stage_distances(features.patch_tokens[1], (1, 3))
    torch.testing.assert_close(torch.tensor(np.array(store[1, 3])), expected[1])
    next((tmp_path / "d").glob("stage1-*.npy")).unlink()  # as if the run had been killed before it
    calls = []
    original = msm.stage_distances
    monkeypatch.setattr(msm, "stage_distances", lambda *a, **k: calls.append(1) or original(*a, **k))
    Distances.compute(features, tmp_path / "d", (1, 3))
    assert len(calls) == 1


def test_size_is_checked_before_the_start(musc, category, tmp_path):
    features = musc.features(category.samples)
    values = 2 * 6 * 5 * 32  # D x N x J x M over both stages
    half = Distances.compute(features, tmp_path / "half", (1, 3), max_bytes=2 * values)
    assert half[0, 1].dtype == np.float16
    with pytest.raises(ConfigError, match="2 x 6 x 5 x 32 values"):
        Distances.compute(features, tmp_path / "none", (1, 3), max_bytes=2 * values - 1)
    assert not list(tmp_path.glob("none/*.npy"))


def test_a_disk_without_room_is_named_and_what_is_finished_counts_as_room(musc, category, tmp_path, monkeypatch):
    features = musc.features(category.samples)
    whole = Distances.compute(features, tmp_path / "whole", (1, 3))
    monkeypatch.setattr(experiments.shutil, "disk_usage", lambda _: type("", (), {"free": 1000})())
    again = Distances.compute(features, tmp_path / "whole", (1, 3))
    assert again.files == whole.files
    with pytest.raises(ConfigError, match=r"need 0.00 GiB, and 0.00 GiB are free: free some space"):
        Distances.compute(features, tmp_path / "none", (1, 3))


@pytest.mark.parametrize("interval", [(0.0, 0.3), (0.1, 0.3), (0.0, 1.0), (0.0, 0.01)])
@pytest.mark.parametrize("reduction", ["mean", "min", "max"])
def test_sorted_reduction_is_the_interval_average(interval, reduction):
    D = torch.rand(3, 17, 5, generator=torch.Generator().manual_seed(0))
    expected = msm.interval_average(D, interval, reduction)
    torch.testing.assert_close(reduce_sorted(D.sort(dim=1).values, interval, reduction), expected)


def test_unlabeled_images_cannot_be_ablated(musc, photos, tmp_path):
    category = Category("toy", "x", tuple(Sample(p.name, p) for p in sorted(photos.iterdir())))
    with pytest.raises(DataError, match="labels"):
        ablate(category, musc, tmp_path)


def test_stored_distances_of_other_degrees_tokens_or_precision_are_not_taken(musc, category, tmp_path):
    features = musc.features(category.samples)
    Distances.compute(features, tmp_path, (1, 3))
    other = Distances.compute(features, tmp_path, (3, 5))
    np.testing.assert_allclose(other[0, 5], msm.stage_distances(features.patch_tokens[0], (5,))[0], atol=1e-6)
    features.patch_tokens[0] = features.patch_tokens[0].flip(0)
    turned = Distances.compute(features, tmp_path, (3, 5))
    np.testing.assert_allclose(turned[0, 5], msm.stage_distances(features.patch_tokens[0], (5,))[0], atol=1e-6)
    assert len(list(tmp_path.glob("stage0-*.npy"))) == 3
    assert len(list(tmp_path.glob("stage1-*.npy"))) == 2


@pytest.mark.parametrize(
    "changes", [{"position_window": 1}, {"references": 2}, {"tiles": 2}, {"consistency": "warn"}, {"degrees": (1,)}]
)
def test_settings_that_an_ablation_cannot_show_are_refused(musc, category, tmp_path, changes):
    (name,) = changes
    with pytest.raises(ConfigError, match=f"{name} = .* is not for ablations"):
        ablate(category, MuSc(musc.config.replace(**changes)), tmp_path)


def test_a_category_of_digits_stays_text_when_it_is_read_again(musc, category, tmp_path):
    digits = dataclasses.replace(category, name="01")
    grids = {"one": {"row": Variant()}}
    first, again = (ablate(digits, musc, tmp_path, grids) for _ in range(2))
    assert set(first.category) == set(again.category) == {"01"}
