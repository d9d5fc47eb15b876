"""Pictures belong to one result with one threshold, and to the images that it has."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from musc.config import MuScConfig
from musc.datasets.base import Sample
from musc.errors import ResultError
from musc.results import MuScResult, pictures
from musc.results.pictures import save_pictures


@pytest.fixture
def result():
    maps = np.linspace(0, 1, 4 * 64, dtype=np.float32).reshape(4, 8, 8)
    found = MuScResult(
        dataset="folder",
        category="cups",
        paths=("a.png", "b/a.png", "/abs/a.png", "$x_$.png"),
        image_scores=np.float32([0, 0.3, 0.6, 1]),
        raw_image_scores=maps.max((1, 2)),
        anomaly_maps=maps,
        class_tokens=None,
        labels=None,
        defects=("",) * 4,
        config=MuScConfig(),
        fingerprint="f",
    )
    found.decide(0.5)
    return found


@pytest.fixture
def samples(result, photos):
    return [Sample(name, photos / f"{i}.png") for i, name in enumerate(result.paths)]


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "result"


def stamps(folder):
    return {p.relative_to(folder).as_posix(): p.stat().st_mtime_ns for p in folder.rglob("*.png")}


def test_every_picture_lies_in_the_folder(result, samples, folder):
    names = save_pictures(result, samples, folder)
    assert list(names.values()) == ["a.png.png", "b/a.png.png", "abs/a.png.png", "$x_$.png.png"]
    expected = {"overview.png", "overlays/legend.png"}
    expected |= {f"{kind}/{name}" for kind in ("overlays", "masks") for name in names.values()}
    assert set(stamps(folder)) == expected


def test_what_is_there_of_the_same_result_is_kept_and_what_is_missing_made(result, samples, folder):
    save_pictures(result, samples, folder)
    (folder / "masks/a.png.png").unlink()
    before = stamps(folder)
    save_pictures(result, samples, folder)
    after = stamps(folder)
    assert {name for name in after if after[name] != before.get(name)} == {"masks/a.png.png"}


@pytest.mark.parametrize("change", ["scores", "threshold", "no threshold", "settings", "an image less", "style"])
def test_pictures_of_anything_else_are_made_anew(result, samples, folder, change, monkeypatch):
    save_pictures(result, samples, folder)
    (folder / "overlays/stranger.png").write_bytes(b"of an image that is gone")
    before = stamps(folder)
    if change == "scores":
        result = replace(result, anomaly_maps=result.anomaly_maps + 1, raw_image_scores=result.raw_image_scores + 1)
    elif change in ("threshold", "no threshold"):
        result.decide(0.7 if change == "threshold" else "none")
    elif change == "settings":
        result = replace(result, fingerprint="another")
    elif change == "an image less":
        rows = ("paths", "image_scores", "raw_image_scores", "anomaly_maps", "defects")
        result = replace(result, **{name: getattr(result, name)[:3] for name in rows})
    else:
        monkeypatch.setattr(pictures, "meaning", lambda path: "another version of how they are drawn")
    save_pictures(result, samples, folder)
    after = stamps(folder)
    assert not [name for name in after if after[name] == before.get(name)]
    assert not (folder / "overlays/stranger.png").exists()
    assert (folder / "masks").exists() == (change != "no threshold")
    assert len(list((folder / "overlays").rglob("*a.png.png"))) == 3


def test_an_interrupted_run_leaves_no_picture_of_the_earlier_result(result, samples, folder, monkeypatch):
    save_pictures(result, samples, folder)
    calls, overlay = [], pictures.overlay

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == 7:  # four in the overview, then the third overlay
            raise KeyboardInterrupt
        return overlay(*arguments)

    other = replace(result, anomaly_maps=result.anomaly_maps[::-1].copy(), fingerprint="g")
    monkeypatch.setattr(pictures, "overlay", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_pictures(other, samples, folder)
    monkeypatch.undo()
    kept = stamps(folder)
    save_pictures(other, samples, folder)
    now = {p.relative_to(folder): np.asarray(Image.open(p)) for p in folder.rglob("*.png")}
    save_pictures(other, samples, folder / "fresh")
    for name, pixels in now.items():
        np.testing.assert_array_equal(pixels, np.asarray(Image.open(folder / "fresh" / name)))
    assert {name: kept[name] for name in kept} == {n: t for n, t in stamps(folder).items() if n in kept}


def test_a_damaged_note_means_new_pictures(result, samples, folder):
    save_pictures(result, samples, folder)
    (folder / "pictures.json").write_text("{")
    before = stamps(folder)
    save_pictures(result, samples, folder)
    assert all(time != before[name] for name, time in stamps(folder).items())
    assert json.loads((folder / "pictures.json").read_text())["pictures"]["a.png"] == "a.png.png"


def test_a_folder_that_cannot_be_written_is_our_error(result, samples, folder):
    folder.mkdir()
    (folder / "overlays").write_text("a file where a folder belongs")
    with pytest.raises(ResultError, match="cannot be written"):
        save_pictures(result, samples, folder)
