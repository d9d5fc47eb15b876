"""A watched folder: each file once, whole, with the scores of a batch, whatever kills the process in between."""

import csv
import json
import os
import re
import shutil
import threading
import time

import numpy as np
import pytest
from PIL import Image

from musc import MuSc
from musc.cli import main
from musc.errors import ConfigError, DataError
from musc.results import MuScResult
from musc.results.pictures import shared_scale
from musc.results.report.images import levels
from musc.saving import alone
from musc.stream import Against, score_against
from musc.watch import COLUMNS, Watch


def photograph(number, side=48):
    rng = np.random.default_rng(number)
    pixels = np.linspace(60, 200, side)[:, None, None] + rng.normal(0, 4, (side, side, 3))
    if number % 5 == 4:
        pixels[20:30, 20:30] = 10
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def earlier(tmp_path_factory, tiny_config, tiny_backbone):
    """The result of six photographs, on disk with its tokens."""
    place = tmp_path_factory.mktemp("earlier")
    (place / "photos").mkdir()
    for n in range(6):
        photograph(100 + n).save(place / "photos" / f"{n}.png")
    result = MuSc(tiny_config, backbone=tiny_backbone, cache=place / "cache").run(place / "photos")
    result.decide("robust")
    return result.save(place / "results")


@pytest.fixture(scope="module")
def against(earlier):
    return Against(MuScResult.load(earlier), device="cpu")


def rows(out):
    with (out / "scores.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def settle(watch):
    return [*watch.look(), *watch.look()]


def page(out):
    """The text of the report, and what its script reads."""
    text = (out / "report.html").read_text()
    return text, json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)[1])


def test_scores_are_those_of_the_batch_and_each_file_is_scored_once(tmp_path, against, earlier):
    (tmp_path / "in").mkdir()
    for n in range(5):
        photograph(n).save(tmp_path / "in" / f"{n}.png")
    watch = Watch(tmp_path / "in", against, tmp_path / "out")
    assert [*watch.look()] == []  # nothing is known to be complete yet
    assert not watch.settled
    assert sorted(a.name for a in watch.look()) == [f"{n}.png" for n in range(5)]
    assert watch.settled
    assert settle(watch) == []
    batch = score_against(tmp_path / "in", MuScResult.load(earlier), device="cpu")
    found = {row["path"]: row for row in rows(tmp_path / "out")}
    assert tuple(found["0.png"]) == COLUMNS
    for i, name in enumerate(batch.paths):
        assert float(found[name]["score"]) == pytest.approx(batch.image_scores[i], abs=2e-6)
        assert float(found[name]["raw_score"]) == pytest.approx(batch.raw_image_scores[i], abs=2e-6)
        assert int(found[name]["decision"]) == batch.decisions[i]
        assert (tmp_path / "out/overlays" / f"{name}.png").is_file()


def test_the_report_shows_what_was_scored_and_grows(tmp_path, against, earlier):
    (tmp_path / "in").mkdir()
    out = tmp_path / "out"
    for n in range(3):
        photograph(n).save(tmp_path / "in" / f"{n}.png")
    watch = Watch(tmp_path / "in", against, out)
    assert watch.write_page() is None
    settle(watch)
    watch.write_page()
    batch = score_against(tmp_path / "in", MuScResult.load(earlier), device="cpu")
    text, data = page(out)
    order = np.argsort(-batch.raw_image_scores)
    assert data["paths"] == [batch.paths[i] for i in order]
    np.testing.assert_allclose(data["raw"], batch.raw_image_scores[order], atol=2e-6)
    assert data["threshold"] == batch.threshold.value
    assert data["sizes"] == [[48, 48]] * 3
    scale = shared_scale(MuScResult.load(earlier))
    for k, i in enumerate(order):
        thumbnail, copy, grey, truth = (files[k] for files in data["files"])
        assert truth == ""
        drawn = np.asarray(Image.open(out / grey)).astype(int)
        assert np.abs(drawn - levels(batch.anomaly_maps[i], scale)).max() <= 1
        assert np.abs(np.asarray(Image.open(out / copy)).astype(int) - np.asarray(photograph(i)).astype(int)).mean() < 9
        assert np.asarray(Image.open(out / thumbnail)).shape == (48, 48, 3)
    assert "scored against 6 images" in text.lower()
    assert "musc threshold" not in text  # no result lies here

    pictures = {p: p.stat().st_mtime_ns for p in (out / "report").rglob("*.*g")}
    photograph(4).save(tmp_path / "in/1.png")  # another photograph under a name that was there
    photograph(5, side=24).resize((96, 48)).save(tmp_path / "in/wide.png")
    photograph(6, side=24).resize((48, 96)).save(tmp_path / "in/tall.png")
    (tmp_path / "in/bad.png").write_text("no picture")
    watch.cost = 1e9  # a page that takes long to write waits
    notes = [a.note for a in settle(watch) if a.note]
    assert page(out)[1] == data
    watch.write_page()
    text, data = page(out)
    assert sorted(data["paths"]) == ["0.png", "1.png", "2.png", "tall.png", "wide.png"]
    newest = {row["path"]: float(row["raw_score"]) for row in rows(out)}
    np.testing.assert_allclose(data["raw"], [newest[name] for name in data["paths"]], rtol=1e-6)
    assert {p: p.stat().st_mtime_ns for p in pictures} == pictures  # each is written once
    assert len(notes) == 1
    assert re.match(r"(wide.png \(48 x 96\)|tall.png \(96 x 48\)) has other proportions than 64 pixels", notes[0])
    assert "2 of 5 images have other proportions" in text
    assert "1 left out" in text
    assert "bad.png" in text
    Watch(tmp_path / "in", against, out, pictures=False)
    again = Watch(tmp_path / "in", against, out)  # the page is a view of the table
    (out / "report.html").unlink()
    settle(again)
    again.write_page()
    assert page(out) == (text, data)
    shutil.rmtree(out / "report/maps")
    assert Watch(tmp_path / "in", against, out).write_page() is None


def test_a_file_that_is_being_written_waits_and_a_changed_one_is_another(tmp_path, against):
    (tmp_path / "in").mkdir()
    watch = Watch(tmp_path / "in", against, tmp_path / "out", pictures=False)
    photograph(0).save(tmp_path / "whole.png")
    for kind in ("jpg", "bmp", "tif", "webp", "png"):  # a writer that pauses longer than a look
        target = tmp_path / "in" / f"slow.{kind}"
        photograph(0).save(tmp_path / f"whole.{kind}", **({"lossless": True} if kind == "webp" else {}))
        content = (tmp_path / f"whole.{kind}").read_bytes()
        before = rows(tmp_path / "out")
        for end in (0, 100, len(content) // 2, len(content) - 20, len(content) - 2):
            target.write_bytes(content[:end])
            assert all(a.reason for a in settle(watch)), (kind, end)
            assert rows(tmp_path / "out") == before
        assert settle(watch) == []  # it is said once
        target.write_bytes(content)
        assert [(a.name, a.reason) for a in settle(watch)] == [(target.name, "")]
        if kind != "png":
            target.unlink()
    os.utime(target, ns=(1, 1))  # touched: the same picture
    assert settle(watch) == []
    photograph(4).save(target)  # the next photograph under the same name
    assert [a.name for a in settle(watch)] == ["slow.png"]
    assert [row["path"] for row in rows(tmp_path / "out")][-2:] == ["slow.png", "slow.png"]
    shutil.copy(tmp_path / "whole.png", tmp_path / "in" / ".hidden.png")
    (tmp_path / "in/notes.txt").write_text("no picture")
    assert settle(watch) == []
    os.rename(tmp_path / "whole.png", tmp_path / "in" / "moved.png")  # a writer that renames
    assert [a.name for a in settle(watch)] == ["moved.png"]


def test_half_a_row_goes_and_its_image_is_scored_again(tmp_path, against):
    (tmp_path / "in").mkdir()
    for n in range(3):
        photograph(n).save(tmp_path / "in" / f"{n}.png")
    settle(Watch(tmp_path / "in", against, tmp_path / "out", pictures=False))
    table = tmp_path / "out/scores.csv"
    whole = table.read_bytes()
    scores = {row["path"]: row["raw_score"] for row in rows(tmp_path / "out")}
    for cut in (1, 30, whole.index(b"\n", 90) - 10):
        table.write_bytes(whole[:-cut])
        settle(Watch(tmp_path / "in", against, tmp_path / "out", pictures=False))
        assert {row["path"]: row["raw_score"] for row in rows(tmp_path / "out")} == scores
        assert len(rows(tmp_path / "out")) == 3


def test_what_is_in_the_pool_is_named_and_an_own_picture_is_no_photograph(tmp_path, against, earlier):
    (tmp_path / "in").mkdir()
    shutil.copy(earlier.parent / "photos/0.png", tmp_path / "in/again.png")
    photograph(1).save(tmp_path / "in/1.png")
    watch = Watch(tmp_path / "in", against, tmp_path / "in" / "out")
    said = {a.name: a.reason for a in settle(watch)}
    assert "in the pool already" in said.pop("again.png")
    assert said == {"1.png": ""}
    assert settle(watch) == settle(watch) == []


def test_tables_of_another_pool_and_second_watchers_are_refused(tmp_path, against, earlier, capsys):
    (tmp_path / "in").mkdir()
    Watch(tmp_path / "in", against, tmp_path / "out")
    other = MuScResult.load(earlier)
    other.fingerprint = "other"
    with pytest.raises(ConfigError, match="fingerprint"):
        Watch(tmp_path / "in", Against(other, device="cpu"), tmp_path / "out")
    with pytest.raises(ConfigError, match="another --out"):
        Watch(tmp_path, against, tmp_path / "out")
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs/scores.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ConfigError, match="no table"):
        Watch(tmp_path / "in", against, tmp_path / "theirs")
    words = ["watch", str(tmp_path / "in"), "--against", str(earlier), "--out", str(tmp_path), "--once"]
    with alone(tmp_path / "watch/in"):
        assert main(words) == 1
    assert "another process watches there" in capsys.readouterr().err
    with alone(tmp_path / "watch/other"):  # another folder's
        assert main([*words, "--device", "cpu", "--every", "0.01"]) == 0
    (tmp_path / "in").rmdir()
    with pytest.raises(DataError, match="does not exist"):
        list(Watch(tmp_path / "in", against, tmp_path / "out").look())


def test_files_that_come_while_it_is_killed_twice_are_each_scored_once(tmp_path, disturbed, earlier):
    """The command itself, killed at two moments while a thread copies: slowly, in pieces, or by renaming."""
    (tmp_path / "in").mkdir()
    (tmp_path / "made").mkdir()
    for n in range(16):
        photograph(n).save(tmp_path / "made" / f"{n:02d}.png")

    def bring():
        for path in sorted((tmp_path / "made").iterdir()):
            number, target = int(path.stem), tmp_path / "in" / path.name
            if number % 3 == 0:
                shutil.copy(path, target.with_name(f".{path.name}.part"))
                os.rename(target.with_name(f".{path.name}.part"), target)
            else:
                content = path.read_bytes()
                with target.open("wb", buffering=0) as file:
                    for start in range(0, len(content), 1 + len(content) // 3):
                        file.write(content[start : start + 1 + len(content) // 3])
                        time.sleep(0.03 * (number % 2))
            time.sleep(0.05)

    words = ["watch", str(tmp_path / "in"), "--against", str(earlier), "--every", "0.02", "--out", "out"]
    words += ["--device", "cpu"]
    writer = threading.Thread(target=bring)
    writer.start()
    codes = [disturbed(words, tmp_path, after=seconds)["code"] for seconds in (0.6, 1.0)]
    writer.join()
    answer = disturbed([*words, "--once"], tmp_path)
    assert codes == [-9, -9]
    assert answer["code"] == 0, answer["said"]
    (tmp_path / "in/late.png").write_bytes(b"\x89PNG\r\n")
    found = rows(tmp_path / "out/watch/in")
    assert sorted(row["path"] for row in found) == [f"{n:02d}.png" for n in range(16)]
    batch = score_against(tmp_path / "made", MuScResult.load(earlier), device="cpu")
    expected = dict(zip(batch.paths, batch.raw_image_scores, strict=True))
    for row in found:
        assert float(row["raw_score"]) == pytest.approx(expected[row["path"]], abs=2e-6)
    (tmp_path / "in/late.png").unlink()
    os.rename(tmp_path / "out", tmp_path / "killed")
    assert disturbed([*words, "--once"], tmp_path)["code"] == 0

    def report(out):
        there = (p for p in (out / "watch/in").rglob("*") if p.suffix in (".html", ".png", ".jpg"))
        return {p.relative_to(out): p.read_bytes() for p in there}

    assert len(report(tmp_path / "killed")) == 1 + 4 * 16
    assert report(tmp_path / "killed") == report(tmp_path / "out")  # as if nothing had happened


def test_words_that_cannot_work_are_refused(tmp_path, earlier, capsys):
    assert main(["watch", str(tmp_path / "gone"), "--against", str(earlier)]) == 1
    assert "no such folder" in capsys.readouterr().err
    (tmp_path / "in").mkdir()
    assert main(["watch", str(tmp_path / "in"), "--against", str(tmp_path)]) == 1
    assert "there is no result" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["watch", str(tmp_path / "in"), "--against", str(earlier), "--every", "0"])
