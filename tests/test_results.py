import csv
import errno

import numpy as np
import pytest

from musc.config import MuScConfig
from musc.datasets.base import Sample, Skipped
from musc.errors import ResultError
from musc.results import MuScResult, pictures


@pytest.fixture
def result():
    rng = np.random.default_rng(0)
    maps = rng.random((4, 12, 12), dtype=np.float32)
    return MuScResult(
        dataset="toy",
        category="cup",
        paths=("good/0.png", "good/1, two.png", "crack/0.png", "crack/ä.png"),
        image_scores=np.float32([0.1, 0.0, 1.0, 0.1]),
        raw_image_scores=maps.max((1, 2)),
        anomaly_maps=maps,
        class_tokens=rng.random((4, 8), dtype=np.float32),
        labels=np.array([0, 0, 1, 1]),
        defects=("good", "good", "crack", "crack"),
        config=MuScConfig(windows=(2, float("inf"))),
        metrics={"image": {"auroc": 0.75}},
        notes=("a note",),
        skipped=(Skipped("x.png", "x.png is empty"),),
        fingerprint="f",
    )


def test_load_reads_back_what_was_saved(result, tmp_path):
    back = MuScResult.load(result.save(tmp_path / "out"))
    for name in ("image_scores", "raw_image_scores", "anomaly_maps", "class_tokens", "labels"):
        np.testing.assert_array_equal(getattr(back, name), getattr(result, name))
    for name in ("paths", "defects", "config", "metrics", "notes", "skipped", "fingerprint", "dataset", "category"):
        assert getattr(back, name) == getattr(result, name)


def test_csv_holds_scores_and_predicted_order(result, tmp_path):
    with (result.save(tmp_path / "out") / "scores.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(r["rank"]) for r in rows] == [2, 4, 1, 3]
    assert rows[1]["path"] == "good/1, two.png"
    assert np.float32(rows[0]["score"]) == np.float32(0.1)


def test_unlabeled_results_keep_empty_labels(result, tmp_path):
    result.labels, result.class_tokens = None, None
    result.save(tmp_path / "out")
    back = MuScResult.load(tmp_path / "out")
    assert back.labels is None
    assert back.class_tokens is None


def test_full_disk_keeps_the_earlier_result(result, tmp_path, monkeypatch):
    result.save(tmp_path / "out")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(ResultError, match=r"disk is full: .*out.* --out"):
        result.save(tmp_path / "out")
    assert MuScResult.load(tmp_path / "out").paths == result.paths
    assert [p.name for p in tmp_path.iterdir()] == ["out"]  # nothing half-written is left


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "result.json").unlink(), "no finished result: .*result.json"),
        (lambda f: (f / "anomaly_maps.npy").unlink(), r"no finished result: .*anomaly_maps\.npy"),
        (lambda f: (f / "result.json").write_text("{"), "cannot be read"),
        (lambda f: (f / "result.json").write_text('{"format": 99}'), "format 99"),
        (lambda f: (f / "scores.csv").write_text("path,score\n"), "0 rows"),
    ],
)
def test_a_damaged_result_says_what_is_wrong(result, tmp_path, damage, message):
    damage(result.save(tmp_path / "out"))
    with pytest.raises(ResultError, match=message):
        MuScResult.load(tmp_path / "out")


def test_overlays_share_one_scale(result, photos, tmp_path):
    result.paths = tuple(f"{i}.png" for i in range(4))
    samples = [Sample(f"{i}.png", photos / f"{i}.png") for i in range(4)]
    scale = pictures.shared_scale(result)
    assert scale.vmax == pytest.approx(result.raw_image_scores.max())
    pictures.save_pictures(result, samples, tmp_path / "o")
    assert sorted(p.name for p in (tmp_path / "o/overlays").iterdir()) == [
        *(f"{i}.png.png" for i in range(4)),
        "legend.png",
    ]
    # equal values look equal in every picture, whatever else its map holds
    low, high = (np.full((12, 12), v, dtype=np.float32) for v in (scale.vmin, scale.vmax))
    image = pictures.read_image(samples[0].image)
    plain, hot = np.asarray(pictures.overlay(image, low, scale)), np.asarray(pictures.overlay(image, high, scale))
    np.testing.assert_allclose(plain, np.asarray(image.convert("L").convert("RGB")), atol=1)
    assert hot.mean() != pytest.approx(plain.mean(), abs=5)
