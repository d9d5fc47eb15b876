"""Copies are found however they were saved; photographs of equal parts are none; a run says what copies do."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from musc import MuSc
from musc.datasets import Sample, altered, load_category
from musc.datasets.copies import copies, copies_note
from musc.datasets.images import read_image


@pytest.fixture(scope="module")
def boards(tmp_path_factory):
    """Nine drawn boards, one with a defect, as PNG files of 160 pixels."""
    folder = tmp_path_factory.mktemp("boards")
    for i, s in enumerate(load_category("synthetic", None, "board", good=8, defects=1, train=0, size=160)):
        read_image(s.image).save(folder / f"{i}.png")
    return folder


def samples(folder):
    return [Sample(path.name, path) for path in sorted(folder.iterdir())]


def found(given, **options):
    return [[given[row].name for row in rows] for rows in copies(given, **options)]


AGAIN = {
    "same.png": lambda image, path: image.save(path),
    "other.bmp": lambda image, path: image.save(path),
    "q85.jpg": lambda image, path: image.save(path, quality=85),
    "lossy.webp": lambda image, path: image.save(path, quality=80),
    "half.png": lambda image, path: image.resize((80, 80), Image.Resampling.LANCZOS).save(path),
    "large.tif": lambda image, path: image.resize((301, 301), Image.Resampling.BICUBIC).save(path),
    "squashed.png": lambda image, path: image.resize((200, 120), Image.Resampling.BILINEAR).save(path),
    "alpha.png": lambda image, path: image.convert("RGBA").save(path),
}


@pytest.mark.parametrize("kind", AGAIN)
def test_a_copy_is_found_however_it_was_saved(boards, tmp_path, kind):
    folder = shutil.copytree(boards, tmp_path / "b")
    AGAIN[kind](Image.open(folder / "4.png"), folder / kind)
    assert [sorted(group) for group in found(samples(folder))] == [sorted(["4.png", kind])]


def test_equal_bytes_and_several_copies(boards, tmp_path):
    folder = shutil.copytree(boards, tmp_path / "b")
    shutil.copy(folder / "2.png", folder / "2 (1).png")
    Image.open(folder / "2.png").save(folder / "2 again.jpg", quality=90)
    shutil.copy(folder / "7.png", folder / "x.png")
    assert found(samples(folder)) == [["2 (1).png", "2 again.jpg", "2.png"], ["7.png", "x.png"]]


def test_pictures_of_equal_parts_are_no_copies(boards):
    assert found(samples(boards)) == []
    for name in ("leather", "grid", "screw"):
        drawn = load_category("synthetic", None, name, good=8, defects=4, train=0, size=96).samples
        assert found(list(drawn)) == []


def test_a_product_that_hardly_varies(photos):
    """Noise alone tells these apart, and the last one has a spot."""
    assert found(samples(photos)) == []
    shutil.copy(photos / "5.png", photos / "5 copy.png")
    assert found(samples(photos)) == [["5 copy.png", "5.png"]]


def test_a_defect_tells_two_pictures_apart():
    drawn = load_category("synthetic", None, "board", good=8, defects=0, train=0, size=128).samples
    spoiled = [altered.dotted(drawn[0], (0.4, 0.4), 9), altered.lit(drawn[1], 0.93), altered.shifted(drawn[2], 0.1, 0)]
    assert found([*drawn, *spoiled]) == []


def test_flat_and_unreadable_pictures(tmp_path):
    for i in range(5):
        Image.new("L", (20, 20), 100 + i).save(tmp_path / f"{i}.png")
    (tmp_path / "9.png").write_bytes(b"\x89PNG")
    assert found(samples(tmp_path)) == []
    assert copies([]) == []


def test_a_run_names_its_copies(boards, tmp_path, tiny_config, tiny_backbone):
    folder = shutil.copytree(boards, tmp_path / "b")
    musc = MuSc(tiny_config, backbone=tiny_backbone)
    assert not any("copies" in note for note in musc.run(folder).notes)
    shutil.copy(folder / "8.png", folder / "8 (1).png")
    Image.open(folder / "3.png").save(folder / "3.jpg", quality=90)
    (note,) = [note for note in musc.run(folder).notes if "copies" in note]
    assert "4 images are copies of each other" in note
    assert "3.jpg = 3.png; 8 (1).png = 8.png" in note
    assert "a defect in both may rank last" in note


def test_a_copy_among_the_references(boards, tmp_path, tiny_config, tiny_backbone):
    folder = shutil.copytree(boards, tmp_path / "b")
    (tmp_path / "normal").mkdir()
    Image.open(folder / "0.png").save(tmp_path / "normal/reference.bmp")
    Image.open(folder / "5.png").transpose(Image.Transpose.FLIP_TOP_BOTTOM).save(tmp_path / "normal/other.png")
    notes = MuSc(tiny_config, backbone=tiny_backbone).run(folder, tmp_path / "normal").notes
    assert any("0.png = reference.bmp" in note for note in notes)


def test_many_groups_are_cut_short():
    given = [Sample(f"{i}", Path(f"{i}")) for i in range(20)]
    (note,) = copies_note(given, [(2 * i, 2 * i + 1) for i in range(10)])
    assert "20 images" in note
    assert "6 = 7, ..." in note
    assert copies_note(given, []) == []
    assert np.all([g in note for g in ("0 = 1", "2 = 3")])
