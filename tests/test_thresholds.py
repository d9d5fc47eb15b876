import csv
import json

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import precision_recall_curve

from musc import MuScResult, cli
from musc.errors import ConfigError
from musc.results import pictures
from musc.results.thresholds import Threshold, check, choose, f1_max_threshold, fixed, mixture, robust

NORMAL = {
    "lognormal": lambda g, n: np.exp(g.normal(-1, 0.15, n)),
    "gamma": lambda g, n: g.gamma(30, 0.01, n),
}


def planted(name, n, contamination, seed):
    """Scores of n images, their labels, and many more normal scores that tell the true false-alarm rate."""
    g = np.random.default_rng(seed)
    k = round(contamination * n)
    more = NORMAL[name](g, 4000)
    anomalous = more.mean() + more.std() * g.uniform(2.5, 9, k)
    return np.r_[NORMAL[name](g, n - k), anomalous], np.r_[np.zeros(n - k, int), np.ones(k, int)], more


def measured(method, name, n, contamination, repeats=20):
    """Means over seeds: true false-alarm rate, estimated one, share of the anomalies found."""
    rows = []
    for seed in range(repeats):
        scores, labels, more = planted(name, n, contamination, seed)
        t = method(scores)
        found = (scores[labels == 1] >= t.value).mean() if labels.any() else np.nan
        rows.append(((more >= t.value).mean(), t.false_alarm_rate, found))
    return np.mean(rows, axis=0)


@pytest.mark.parametrize("name", NORMAL)
@pytest.mark.parametrize("contamination", [0, 0.1, 0.3, 0.5])
@pytest.mark.parametrize("method", [robust, mixture])
def test_estimated_false_alarms_are_near_the_true_ones(method, name, contamination):
    true, estimated, found = measured(method, name, 150, contamination)
    assert abs(true - estimated) < 0.02
    assert true < 0.04
    if contamination:
        assert found > 0.75


@pytest.mark.parametrize("n", [24, 40])
@pytest.mark.parametrize("name", NORMAL)
def test_small_batches_of_normal_images_raise_few_alarms(n, name):
    """One image of the batch is aimed at; a rate that is given is kept to."""
    assert measured(robust, name, n, 0, repeats=200)[0] < 1.3 / n
    assert measured(lambda x: robust(x, 0.01), name, n, 0, repeats=200)[0] < 0.03


def test_robust_aims_at_a_percent_and_no_less_than_one_image():
    for n, rate in ((10, 0.1), (40, 0.025), (100, 0.01), (150, 0.01)):
        scores, _, _ = planted("gamma", n, 0, 1)
        assert robust(scores) == robust(scores, rate)
        assert robust(scores).false_alarm_rate == rate


def test_two_clear_groups_are_parted_and_counted():
    scores, labels, _ = planted("lognormal", 200, 0.3, 0)
    scores[labels == 1] += 2
    for method in (robust, mixture):
        t = method(scores)
        assert (scores[labels == 1] >= t.value).all()
        assert (scores[labels == 0] >= t.value).mean() < 0.03
    assert "two components: 30 %" in mixture(scores).note


def test_a_mixture_rarely_splits_normal_images():
    single = [
        "one component" in mixture(planted("lognormal", n, 0, seed)[0]).note for n in (40, 150) for seed in range(20)
    ]
    assert np.mean(single) >= 0.85


@pytest.mark.parametrize("method", [robust, mixture])
def test_thresholds_follow_the_scale_of_the_scores(method):
    scores, _, _ = planted("gamma", 80, 0.2, 3)
    assert method(10 * scores).value == pytest.approx(10 * method(scores).value, rel=1e-4)
    below_zero = method(np.log(scores))  # not positive: used as they are
    assert below_zero.value == pytest.approx(np.log(method(scores).value), abs=1e-4)


def test_a_lower_false_alarm_rate_gives_a_higher_threshold():
    scores, _, _ = planted("gamma", 80, 0.2, 3)
    values = [robust(scores, rate).value for rate in (0.2, 0.05, 0.01, 0.001)]
    assert values == sorted(values)
    for rate, value in zip((0.2, 0.05, 0.01, 0.001), values, strict=True):
        assert fixed(value, scores).false_alarm_rate == pytest.approx(rate, rel=1e-3)
    assert fixed(-1.0, scores).false_alarm_rate == 1


def test_f1_max_is_that_of_scikit_learn():
    g = np.random.default_rng(0)
    for _ in range(20):
        labels = g.integers(0, 2, 30)
        labels[:2] = 0, 1
        scores = g.integers(0, 12, 30) + 3 * labels  # with ties
        t = f1_max_threshold(labels, scores)
        flagged = scores >= t.value
        f1 = 2 * (flagged & (labels == 1)).sum() / (flagged.sum() + labels.sum())
        precision, recall, _ = precision_recall_curve(labels, scores)
        assert f1 == pytest.approx((2 * precision * recall / np.maximum(precision + recall, 1e-9)).max())
        assert t.false_alarm_rate == flagged[labels == 0].mean()
    assert f1_max_threshold([0, 0, 1, 1], [1, 2, 4, 5]).value == 3  # halfway between the classes


@pytest.mark.parametrize("scores", [[0.4], [0.1, 0.2, 0.3, 0.4], [0.5] * 40])
@pytest.mark.parametrize("method", [robust, mixture])
def test_where_nothing_can_be_said_nothing_is_flagged(method, scores):
    t = method(np.float32(scores))
    assert not (np.float32(scores) >= t.value).any()
    assert t.false_alarm_rate is None
    assert "nothing is flagged" in t.note


def test_choose_by_name_and_by_number():
    scores, labels, _ = planted("gamma", 60, 0.2, 0)
    assert choose("robust", scores) == robust(scores)
    assert choose("mixture", scores) == mixture(scores)
    assert choose("f1-max", scores, labels) == f1_max_threshold(labels, scores)
    assert choose("none", scores) is None
    assert isinstance(choose(0.4, scores), Threshold)
    assert choose(0.4, scores).value == 0.4


@pytest.mark.parametrize(
    ("method", "labels", "message"),
    [
        ("f1-max", None, "needs labels"),
        ("f1-max", [0, 0], "both normal and anomalous"),
        ("f1-max", [0, None], "both normal and anomalous"),
        ("otsu", None, "'otsu': choose one of robust"),
        (float("nan"), None, "finite number"),
    ],
)
def test_what_cannot_be_chosen_is_named(method, labels, message):
    with pytest.raises(ConfigError, match=message):
        check(method, labels)


def test_scores_must_be_finite():
    with pytest.raises(ConfigError, match="finite scores"):
        robust([0.1, float("nan")])


@pytest.fixture
def planted_photos(tmp_path):
    """Sixteen photographs of 96 x 80 pixels, a gradient with noise; the last two have a dark spot."""
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(16):
        pixels = np.linspace(60, 200, 80)[:, None, None] + rng.normal(0, 4, (80, 96, 3))
        if i >= 14:
            pixels[34:44, 28:38] -= 60
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{i:02}.png")
    return folder


SMALL = ["--backbone", "procedural", "--image-size", "112", "--degrees", "1", "--device", "cpu", "--workers", "0"]


def test_a_planted_defect_is_flagged_masked_and_outlined(planted_photos, tmp_path, capsys):
    out = tmp_path / "out"

    def run(*words):
        assert cli.main(["run", str(planted_photos), *SMALL, "--out", str(out), *words]) == 0
        (folder,) = {p.parent for p in out.rglob("result.json")}
        with (folder / "scores.csv").open(newline="") as file:
            return folder, [row["decision"] for row in csv.DictReader(file)], capsys.readouterr()

    folder, decisions, printed = run()
    flagged = [int(d) for d in decisions]
    assert flagged[14:] == [1, 1]
    assert sum(flagged[:14]) <= 2
    assert f"anomalous: {sum(flagged)} of 16" in printed.out
    header = json.loads((folder / "result.json").read_text())
    result = MuScResult.load(folder)
    assert header["threshold"]["method"] == "robust"
    assert result.threshold == Threshold(**header["threshold"])
    assert result.decisions.tolist() == flagged
    for i, name in enumerate(result.paths):
        mask = np.asarray(Image.open(folder / "masks" / f"{name}.png"))
        assert mask.shape == (80, 96)
        assert mask.dtype == bool
        assert mask.any() == flagged[i]
        overlay = np.asarray(Image.open(folder / "overlays" / f"{name}.png"))
        assert (overlay == pictures.CONTOUR).all(axis=2).any() == flagged[i]
        if i >= 14:
            assert mask[34:44, 28:38].mean() > 0.5
            assert not mask[:, 80:].any()  # the far side of the photograph

    maps = (folder / "anomaly_maps.npy").read_bytes()
    high = float(result.raw_image_scores.max())
    _, decisions, printed = run("--threshold", str(high))  # decided again, not computed again
    assert "finished before" in printed.err
    assert decisions.count("1") == 1
    assert sum(np.asarray(Image.open(p)).any() for p in (folder / "masks").iterdir()) == 1
    assert (folder / "anomaly_maps.npy").read_bytes() == maps
    _, decisions, printed = run("--threshold", "none")
    assert decisions == [""] * 16
    assert not (folder / "masks").exists()
    assert MuScResult.load(folder).threshold is None
    assert cli.main(["run", str(planted_photos), *SMALL, "--out", str(out), "--threshold", "f1-max"]) == 1
    assert "needs labels" in capsys.readouterr().err


def test_a_mask_never_loses_the_peak_that_was_decided_on():
    values = np.zeros((40, 40), np.float32)
    values[21, 33] = 0.5
    for size in ((40, 40), (123, 57), (10, 10), (7, 300)):
        mask = pictures.binary_mask(values, 0.5, size)
        assert mask.shape == size[::-1]
        assert mask.any()
        rows, columns = np.nonzero(mask)
        assert abs((rows.mean() + 0.5) / size[1] - 21.5 / 40) <= 0.5 / size[1]
        assert abs((columns.mean() + 0.5) / size[0] - 33.5 / 40) <= 0.5 / size[0]
    assert not pictures.binary_mask(values, 0.6, (123, 57)).any()


def test_a_contour_lies_around_its_region():
    mask = np.zeros((30, 40), bool)
    mask[10:15, 20:30] = True
    drawn = (np.asarray(pictures.contour(Image.new("RGB", (40, 30)), mask)) == pictures.CONTOUR).all(axis=2)
    expected = np.zeros_like(mask)
    expected[8:17, 18:32] = True
    np.testing.assert_array_equal(drawn, expected & ~mask)
