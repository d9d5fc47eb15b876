import builtins
import contextlib
import csv
import dataclasses
import errno
import io
import os
import re

import numpy as np
import pytest

from musc import saving
from musc.config import MuScConfig
from musc.datasets.base import Sample, Skipped
from musc.errors import ResultError
from musc.results import MuScResult, pictures, result_folder


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


class Killed(BaseException):
    """What no handler of errors sees."""


FAILURES = {"full disk": OSError(errno.ENOSPC, "No space left on device"), "killed": Killed()}


@pytest.fixture
def failing(monkeypatch):
    """`with failing(n, error) as calls`: the n-th call that changes the file system raises `error`, as do all later
    ones where the process was killed. calls: the names of those made."""

    @contextlib.contextmanager
    def start(at, error):
        calls = []

        def counted(name, real):
            def call(*args, **options):
                if "open" not in name or "w" in (args[1] if len(args) > 1 else options.get("mode", "r")):
                    calls.append(name)
                    if len(calls) == at or (len(calls) > at and isinstance(error, Killed)):
                        raise error
                return real(*args, **options)

            return call

        with monkeypatch.context() as patch:
            for module, names in (
                (os, ("mkdir", "rename", "replace", "rmdir", "unlink")),
                (io, ("open",)),
                (builtins, ("open",)),
            ):
                for name in names:
                    patch.setattr(module, name, counted(name, getattr(module, name)))
            patch.setattr(saving, "_at_work", set())  # a process that is killed forgets what it was at
            yield calls

    return start


@pytest.mark.parametrize("failure", FAILURES)
def test_a_result_is_saved_whole_or_not_at_all(result, tmp_path, failing, failure):
    """Every call that changes the file system fails in its turn: the old result or the new one is there, whole."""
    new = dataclasses.replace(result, class_tokens=None, anomaly_maps=1 - result.anomaly_maps, notes=("new",))

    def whole(folder):
        loaded = MuScResult.load(folder)
        expected = {r.notes: r for r in (result, new)}[loaded.notes]
        np.testing.assert_array_equal(loaded.anomaly_maps, expected.anomaly_maps)
        assert (loaded.class_tokens is None) == (expected.class_tokens is None)
        return loaded.notes

    found, at = [], 0
    while True:
        at += 1
        folder = result.save(tmp_path / str(at) / "out")
        (folder / "mine.txt").write_text("kept")
        said = ""
        with failing(at, FAILURES[failure]) as calls:
            try:
                new.save(folder)
            except (ResultError, Killed) as error:
                said = str(error)
        assert re.match(r"(the disk is full: .*out.* --out|$)", said)
        if len(calls) < at:
            break
        found.append(whole(folder))
        assert len(list(folder.parent.rglob("mine.txt"))) == 1
        if failure == "full disk" and found[-1] == result.notes:  # nothing half-written is left
            assert [p.name for p in folder.parent.iterdir()] == ["out"]
        new.save(folder)  # there is space again
        assert whole(folder) == new.notes
        assert (folder / "mine.txt").read_text() == "kept"
    assert whole(folder) == new.notes
    assert [p.name for p in folder.parent.iterdir()] == ["out"]
    assert found == sorted(found)  # "a note" first, then "new": never back
    assert found.count(result.notes) >= 6
    assert found.count(new.notes) >= 1


def test_a_file_of_the_folders_name_stays(result, tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(ResultError, match="cannot be written"):
        result.save(tmp_path / "out")
    assert (tmp_path / "out").read_text() == "mine"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "result.json").unlink(), "no finished result: .*result.json"),
        (lambda f: (f / "anomaly_maps.npy").unlink(), r"no finished result: .*anomaly_maps\.npy"),
        (lambda f: (f / "result.json").write_text("{"), "cannot be read"),
        (lambda f: (f / "result.json").write_text('{"format": 99}'), "format 99"),
        (lambda f: (f / "scores.csv").write_text("path,score\n"), "no column 'rank'"),
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


def test_a_threshold_beyond_what_is_possible_is_said(result):
    assert "no score can reach it" in result.decide(2.5).note
    assert "no score can reach it" not in result.decide(1.5).note


def test_folders_of_one_name_have_results_of_their_own(result, tmp_path):
    """Also where another program's folder, or nobody's result, has the name; and each finds its own again."""
    out, roots = tmp_path / "out", [tmp_path / line / "cups" for line in ("lineA", "lineB", "line C")]

    def place(root):
        return result_folder(out, "folder", "cups", root)

    (out / "folder").mkdir(parents=True)
    for root in roots:
        dataclasses.replace(result, root=str(root)).save(place(root))
    assert len({place(root) for root in roots}) == 3
    for root in roots:
        assert MuScResult.load(place(root)).root == str(root)
    (out / "folder/plates").mkdir()
    (out / "folder/plates/result.json").write_text('{"mine": 1}')
    assert result_folder(out, "folder", "plates", tmp_path / "plates") != out / "folder/plates"
