"""Thresholds from marked images: against brute force, and against the truth where it is known."""

import csv
import json
from statistics import NormalDist

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from musc import MuScResult, cli
from musc.errors import ConfigError, DataError
from musc.results.marks import exact_interval, from_marks, marks_beside, read_marks


def drawn(seed, good=30, bad=20):
    g = np.random.default_rng(seed)
    scores = np.float32(np.r_[g.normal(0, 1, good), g.normal(2, 1, bad)].round(1))  # with ties
    return scores, np.r_[np.zeros(good, int), np.ones(bad, int)]


def rates(scores, labels, t):
    flagged = scores >= t
    return flagged[labels == 1].mean(), flagged[labels == 0].mean()


@pytest.mark.parametrize("seed", range(8))
def test_the_aim_is_met_and_no_other_threshold_meets_it_better(seed):
    scores, labels = drawn(seed)
    levels = [*np.unique(scores), scores.max() + 1]
    for aim in (0.5, 0.8, 0.95, 1.0):
        recall, alarms = rates(scores, labels, from_marks(scores, labels, recall=aim).value)
        assert recall >= aim
        assert alarms == min(a for r, a in (rates(scores, labels, t) for t in levels) if r >= aim)
    for aim in (0.01, 0.1, 0.5, 1.0):
        recall, alarms = rates(scores, labels, from_marks(scores, labels, false_alarms=aim).value)
        assert alarms <= aim
        assert recall == max(r for r, a in (rates(scores, labels, t) for t in levels) if a <= aim)

    def f1(t):
        flagged = scores >= t
        return 2 * (flagged & (labels == 1)).sum() / (flagged.sum() + labels.sum())

    assert f1(from_marks(scores, labels).value) == max(map(f1, levels))


def test_thresholds_lie_halfway_between_marked_scores():
    scores, labels = np.float32([1, 2, 4, 8]), [0, 0, 1, 1]
    assert [from_marks(scores, labels, **aim).value for aim in ({}, {"recall": 1}, {"recall": 0.5})] == [3, 3, 6]
    assert [from_marks(scores, labels, false_alarms=r).value for r in (0.4, 0.5)] == [3, 1.5]
    assert from_marks(scores, [1, 1, 1, 1], recall=1).value == 1
    t = from_marks(scores, [0, 0, 0, 0], false_alarms=0.1)
    assert t.value > 8
    assert t.false_alarm_rate == 0


def test_exact_intervals_are_those_of_scipy():
    for n in (1, 7, 30):
        for k in range(n + 1):
            expected = stats.binomtest(k, n).proportion_ci(0.95, "exact")
            assert exact_interval(k, n) == pytest.approx((expected.low, expected.high))


@pytest.mark.parametrize("aim", [{"recall": 0.9}, {"false_alarms": 0.1}])
def test_intervals_hold_although_the_threshold_was_chosen_by_the_same_marks(aim):
    """The true rates of drawn scores are known; the interval holds them in at least 95 % of the draws."""
    held, g = [], np.random.default_rng(0)
    for _ in range(300):
        good, bad = g.normal(0, 1, 15), g.normal(2, 1, 12)
        t = from_marks(np.r_[good, bad], np.r_[np.zeros(15), np.ones(12)], **aim).value
        if "recall" in aim:
            true, (low, high) = 1 - NormalDist(2, 1).cdf(t), exact_interval(int((bad >= t).sum()), 12)
        else:
            true, (low, high) = 1 - NormalDist(0, 1).cdf(t), exact_interval(int((good >= t).sum()), 15)
        held.append(low <= true <= high)
    assert np.mean(held) >= 0.95


def test_the_note_says_how_far_it_can_be_trusted():
    t = from_marks([1, 2, 3, 4, 8, 9], [0, 0, 0, 0, 1, 1])
    assert t.method == "marks-f1"
    assert "from 6 marked images (2 bad, 4 good)" in t.note
    assert "found 2 of 2 (16 to 100 % with 95 % confidence)" in t.note
    assert "false alarms 0 of 4 (0 to 60 %" in t.note
    assert "F1 1.00 (" in t.note


@pytest.mark.parametrize(
    ("labels", "aim", "said"),
    [
        ([1, 1], {}, "best F1 needs both"),
        ([0, 0], {"recall": 0.9}, "no image is marked bad"),
        ([1, 1], {"false_alarms": 0.1}, "no image is marked good"),
        ([0, 1], {"recall": 0}, "recall = 0: give a share"),
        ([0, 1], {"false_alarms": 1.5}, "false alarms = 1.5"),
        ([0, 1], {"false_alarms": 0.1, "recall": 0.9}, "cannot be set by both"),
        ([0], {}, "one finite score per label"),
    ],
)
def test_what_cannot_be_chosen_is_said(labels, aim, said):
    with pytest.raises(ConfigError, match=said):
        from_marks([1.0, 2.0], labels, **aim)


PATHS = ("bad/1.png", "good/1.png", "good/2.png", "a, b.png", "日本.png")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("path,label\nbad/1.png,1\ngood/2.png,0\n", {"bad/1.png": 1, "good/2.png": 0}),
        ('\ufeffPath;Label;x\r\n"a, b.png";bad;\r\n日本.png;OK;\r\n2.png;;\r\n', {"a, b.png": 1, "日本.png": 0}),
        ("label\tpath\nn.i.O.\tC:\\photos\\good\\2.png\ngood\t./bad/1.png\n", {"good/2.png": 1, "bad/1.png": 0}),
        ("path,label\n2.png,1\n/data/x/good/1.png,0\nno such.png,1\n", {"good/2.png": 1, "good/1.png": 0}),
    ],
)
def test_tables_of_marks_as_people_write_them(tmp_path, text, expected):
    (tmp_path / "marked.csv").write_text(text, encoding="utf-8")
    found, notes = read_marks(tmp_path / "marked.csv", PATHS)
    assert found == expected
    assert bool(notes) == ("no such" in text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty"),
        ("name,label\n", "needs the columns path and label"),
        ("path,label\nbad/1.png,perhaps\n", "line 2: the label 'perhaps'"),
        ("path,label\nbad/1.png,1\nbad/1.png,0\n", "marked good and bad"),
        ("path,label\n1.png,1\n", "marks no image of this result, such as '1.png'"),  # it fits two images
        (b"\xff\xfe", "not UTF-8 text"),
    ],
)
def test_a_table_that_is_none_is_named(tmp_path, text, said):
    (tmp_path / "marked.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match=said):
        read_marks(tmp_path / "marked.csv", PATHS)
    assert marks_beside(tmp_path, PATHS) == {}


def test_from_the_shell_decisions_masks_regions_and_report_follow_the_marks(photos, tmp_path, capsys):
    out = tmp_path / "out"
    small = ["--backbone", "deit_tiny_patch16_224", "--weights", "random", "--image-size", "64", "--stages", "1,2",
             "--device", "cpu", "--workers", "0", "--no-cache"]  # fmt: skip

    def musc(*words):
        code = cli.main([str(w) for w in words])
        return code, capsys.readouterr()

    def decisions(folder):
        with (folder / "scores.csv").open(newline="") as file:
            return {row["path"]: row["decision"] for row in csv.DictReader(file)}

    assert musc("run", photos, *small, "--out", out, "--threshold", "none")[0] == 0
    folder = out / "folder/photos"
    assert (out / "index.html").exists()
    assert not (folder / "regions.csv").exists()
    result = MuScResult.load(folder)
    order = [result.paths[i] for i in np.argsort(-result.raw_image_scores)]
    code, said = musc("threshold", folder)
    assert code == 1
    assert "keeps no marks: give --labels" in said.err
    (tmp_path / "mine.csv").write_text(f"path,label\n{order[0]},bad\n{order[1]},1\n{order[3]},0\nother.png,1\n")
    code, said = musc("threshold", folder, "--labels", tmp_path / "mine.csv")
    assert code == 0
    assert "1 marks are of no image" in said.err
    assert "marks-f1" in said.out
    assert "anomalous: 2 of 6" in said.out or "anomalous: 3 of 6" in said.out
    again = MuScResult.load(folder)
    assert (again.raw_image_scores == result.raw_image_scores).all()
    found = decisions(folder)
    assert [found[name] for name in order] == [str(int(s >= again.threshold.value)) for s in sorted(
        result.raw_image_scores, reverse=True)]  # fmt: skip
    flagged = {name for name in order if found[name] == "1"}
    assert flagged >= set(order[:2])
    for name in order:
        assert np.asarray(Image.open(folder / f"masks/{name}.png")).any() == (name in flagged)
    with (folder / "regions.csv").open(newline="") as file:
        assert {row["path"] for row in csv.DictReader(file)} == flagged
    page = (folder / "report.html").read_text()
    data = json.loads(page.split('id="data">')[1].split("</script>")[0])
    assert data["threshold"] == again.threshold.value
    assert data["marks"] == {order[0]: 1, order[1]: 1, order[3]: 0}

    assert musc("run", photos, *small, "--out", out)[0] == 0  # the same command again keeps what was set
    assert MuScResult.load(folder).threshold == again.threshold
    code, said = musc("threshold", folder, "--recall", "0.5", "--min-region", "100000")  # by the marks of last time
    assert code == 0
    assert decisions(folder)[order[0]] == "1"
    assert len((folder / "regions.csv").read_text().splitlines()) == 1
    assert musc("report", out)[0] == 0
    assert len((folder / "regions.csv").read_text().splitlines()) > 1
    (folder / "report.html").unlink()
    for path in photos.iterdir():
        path.unlink()
    code, said = musc("report", folder)
    assert code == 0
    assert (folder / "report.html").exists()
    assert len(list((folder / "report/thumbnails").iterdir())) == 6
    assert musc("run", photos.parent / "photos", *small, "--out", out)[0] == 1
    assert musc("report", tmp_path / "nothing")[0] == 1


def test_pictures_and_report_only_where_they_are_wanted(photos, tmp_path, capsys):
    words = ["run", str(photos), "--backbone", "deit_tiny_patch16_224", "--weights", "random", "--image-size", "64",
             "--stages", "1", "--device", "cpu", "--workers", "0", "--no-cache", "--out", str(tmp_path)]  # fmt: skip
    folder = tmp_path / "folder/photos"
    for more, there in (([], True), (["--no-report"], False), ([], True), (["--no-overlays"], False)):
        assert cli.main([*words, *more]) == 0
        assert ("report:" in capsys.readouterr().out) == there
        assert (folder / "report.html").exists() == (folder / "report").exists() == there
        assert (folder / "regions.json").exists()
    for wrong in (["--min-region", "0"], ["--merge-regions", "-1"], ["--merge-regions", "inf"]):
        with pytest.raises(SystemExit):
            cli.main([*words, *wrong])
        assert f"{wrong[0]} {wrong[1]}: give" in capsys.readouterr().err
