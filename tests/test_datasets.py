"""Every layout is listed as its authors ship it; what is missing, ambiguous or forbidden is named."""

import os
import sys
import types
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from musc.datasets import Category, Sample, detect_layout, list_categories, load, load_category
from musc.errors import ConfigError, DataError


def touch(root, *names):
    """Listing decodes nothing, so the files need no content."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return root


def listed(category):
    return [(s.name, s.label, s.defect, s.mask and s.mask.relative_to(category.root).as_posix()) for s in category]


@pytest.fixture
def mvtec(tmp_path):
    """Files are created out of order, with a mask folder whose order is not the images'."""
    return touch(
        tmp_path / "mvtec",
        *(f"bottle/test/{name}" for name in ("good/001.png", "crack/010.png", "crack/002.png", "good/000.png")),
        *(f"bottle/ground_truth/crack/{name}" for name in ("010_mask.png", "002_mask.png", "000_mask.png")),
        *("bottle/test/bent/000.png", "bottle/ground_truth/bent/000_mask.png"),
        *("bottle/train/good/001.png", "bottle/train/good/000.png", "bottle/readme.txt", "license.txt"),
        *("zipper/test/good/000.png", "zipper/test/teeth/000.png", "zipper/ground_truth/teeth/000_mask.png"),
    )


# ------------------------------------------------------------------------------------------------------------ MVTec AD
def test_mvtec_ad(mvtec):
    assert detect_layout(mvtec) == "mvtec_ad"
    assert list_categories(None, mvtec) == ["bottle", "zipper"]
    bottle = load_category("mvtec_ad", mvtec, "bottle")
    assert (bottle.dataset, bottle.name, bottle.root) == ("mvtec_ad", "bottle", mvtec / "bottle")
    assert listed(bottle) == [
        ("test/bent/000.png", 1, "bent", "ground_truth/bent/000_mask.png"),
        ("test/crack/002.png", 1, "crack", "ground_truth/crack/002_mask.png"),
        ("test/crack/010.png", 1, "crack", "ground_truth/crack/010_mask.png"),
        ("test/good/000.png", 0, "good", None),
        ("test/good/001.png", 0, "good", None),
    ]
    assert [(s.name, s.label, s.defect) for s in bottle.train] == [
        ("train/good/000.png", 0, "good"),
        ("train/good/001.png", 0, "good"),
    ]
    assert bottle.samples[1].image == mvtec / "bottle/test/crack/002.png"
    assert bottle.has_masks
    assert bottle.skipped == bottle.notes == ()
    assert [c.name for c in load(mvtec)] == ["bottle", "zipper"]


def test_one_category_is_a_root_of_its_own(mvtec, monkeypatch):
    from_above = load_category("mvtec_ad", mvtec, "bottle")
    assert load_category(None, mvtec / "bottle") == from_above
    assert load_category(None, str(mvtec / "bottle") + "/", "bottle") == from_above
    monkeypatch.chdir(mvtec / "bottle")
    assert load_category(None, ".") == from_above
    assert load(Path("."))[0].name == "bottle"


def test_without_good_without_masks(tmp_path):
    root = touch(tmp_path / "cup", "test/dent/0.png", "test/dent/1.png")
    with pytest.raises(DataError, match=r"cup/test holds dent, and no folder with a usual name for normal images"):
        load_category(None, root)
    touch(root, "train/good/0.png")  # the layout's own names: dent is a defect
    cup = load_category(None, root)
    assert listed(cup) == [("test/dent/0.png", 1, "dent", None), ("test/dent/1.png", 1, "dent", None)]
    assert cup.labeled
    assert not cup.has_masks
    assert cup.notes == ()  # nothing was promised, so nothing is missing


def test_images_right_in_the_test_folder_are_unlabeled(tmp_path):
    cup = load_category(None, touch(tmp_path / "cup", "test/1.png", "test/0.png", "test/dent/0.png", "test/a.txt"))
    assert listed(cup) == [
        ("test/0.png", None, "", None),
        ("test/1.png", None, "", None),
        ("test/dent/0.png", 1, "dent", None),
    ]
    assert not cup.labeled


@pytest.mark.parametrize("mask", ["7_mask.png", "7_mask.bmp", "7.png", "7.PNG", "7-mask.tif", "7_gt.jpg"])
def test_names_that_a_mask_may_have(tmp_path, mask):
    root = touch(tmp_path / "cup", "test/dent/7.jpg", "test/dent/17.jpg", f"ground_truth/dent/{mask}")
    touch(root, "ground_truth/dent/17_mask.png")
    masks = {s.name: s.mask for s in load_category(None, root)}
    assert masks["test/dent/7.jpg"] == root / "ground_truth/dent" / mask
    assert masks["test/dent/17.jpg"] == root / "ground_truth/dent/17_mask.png"


def test_a_missing_mask_is_never_replaced_by_its_neighbour(tmp_path):
    root = touch(tmp_path / "cup", *(f"test/dent/{i}.png" for i in range(3)), "test/good/0.png")
    touch(root, "ground_truth/dent/0_mask.png", "ground_truth/dent/2_mask.png", "ground_truth/dent/5_mask.png")
    cup = load_category(None, root)
    assert [s.mask and s.mask.name for s in cup] == ["0_mask.png", None, "2_mask.png", None]
    assert len(cup) == 4
    assert [n.name for n in cup.notes] == ["test/dent/1.png"]
    assert "ground_truth/dent/1_mask.png is missing" in cup.notes[0].reason
    assert not cup.has_masks
    assert cup.labeled


def test_a_defect_without_any_mask_is_one_note(tmp_path):
    root = touch(tmp_path / "cup", *(f"test/dent/{i}.png" for i in range(9)), "test/hole/0.png")
    cup = load_category(None, touch(root, "ground_truth/hole/0_mask.png"))
    assert [(n.name, n.reason.split(":")[0]) for n in cup.notes] == [
        ("test/dent", "none of its 9 images has a mask in ground_truth/dent")
    ]


def test_two_images_of_one_name_do_not_share_a_mask(tmp_path):
    root = touch(tmp_path / "cup", "test/dent/0.png", "test/dent/0.jpg", "test/dent/1.png")
    touch(root, "ground_truth/dent/0_mask.png", "ground_truth/dent/1_mask.png", "ground_truth/dent/1_mask.bmp")
    cup = load_category(None, root)
    assert {s.name: s.mask and s.mask.name for s in cup} == {
        "test/dent/0.jpg": None,
        "test/dent/0.png": None,
        "test/dent/1.png": "1_mask.png",  # of two masks, the one in the image's own format
    }
    assert [n.name for n in cup.notes] == ["test/dent/0.jpg", "test/dent/0.png"]
    assert all("ground_truth/dent/0_mask.png could be the mask of more than one image" in n.reason for n in cup.notes)
    touch(root, "ground_truth/dent/0_mask.jpg")
    assert load_category(None, root).has_masks


def test_two_masks_and_no_way_to_tell(tmp_path):
    root = touch(tmp_path / "cup", "test/dent/0.png", "ground_truth/dent/0_mask.bmp", "ground_truth/dent/0_mask.tif")
    cup = load_category(None, root)
    assert cup.samples[0].mask is None
    assert "0_mask.bmp and ground_truth/dent/0_mask.tif" in cup.notes[0].reason


def test_subfolders_of_a_defect(tmp_path):
    root = touch(tmp_path / "cup", "test/dent/a/0.png", "test/dent/b/0.png", "test/dent/0.png")
    touch(root, *(f"ground_truth/dent/{name}_mask.png" for name in ("a/0", "b/0", "0")))
    assert [(n, m) for n, _, _, m in listed(load_category(None, root))] == [
        (f"test/dent/{name}.png", f"ground_truth/dent/{name}_mask.png") for name in ("0", "a/0", "b/0")
    ]


# ---------------------------------------------------------------------------------------------------------------- BTAD
def test_btad(tmp_path):
    root = touch(
        tmp_path / "btad",
        *("01/test/ok/0001.bmp", "01/test/ko/0003.bmp", "01/test/ko/0000.bmp", "01/train/ok/0002.bmp"),
        *("01/ground_truth/ko/0000.png", "01/ground_truth/ko/0003.png"),
        *("03/test/ok/0001.bmp", "03/test/ko/0000.bmp", "03/ground_truth/ko/0000.bmp"),
    )
    assert detect_layout(root) == detect_layout(root / "03") == "btad"
    one, three = load(root)
    assert (one.dataset, one.name, three.name) == ("btad", "01", "03")
    assert listed(one) == [
        ("test/ko/0000.bmp", 1, "ko", "ground_truth/ko/0000.png"),
        ("test/ko/0003.bmp", 1, "ko", "ground_truth/ko/0003.png"),
        ("test/ok/0001.bmp", 0, "good", None),
    ]
    assert three.samples[0].mask.suffix == ".bmp"
    assert [s.name for s in one.train] == ["train/ok/0002.bmp"]


# ---------------------------------------------------------------------------------------------------------------- VisA
HEADER = "object,split,label,image,mask\n"


@pytest.fixture
def visa(tmp_path):
    rows = [
        "candle,train,normal,candle/Data/Images/Normal/0001.JPG,",
        "candle,test,normal,candle/Data/Images/Normal/0000.JPG,",
        "candle,test,anomaly,candle/Data/Images/Anomaly/001.JPG,candle/Data/Masks/Anomaly/001.png",
        "candle,test,anomaly,candle/Data/Images/Anomaly/000.JPG,candle/Data/Masks/Anomaly/000.png",
        "pcb1,test,normal,pcb1/Data/Images/Normal/0000.JPG,",
    ]
    root = touch(tmp_path / "VisA", *(path for row in rows for path in row.split(",")[3:] if path))
    (root / "split_csv").mkdir()
    (root / "split_csv/1cls.csv").write_text(HEADER + "\n".join(rows) + "\n")
    return root


def add_rows(root, *rows):
    with (root / "split_csv/1cls.csv").open("a") as file:
        file.writelines(f"{row}\n" for row in rows)


def test_visa(visa):
    assert detect_layout(visa) == "visa"
    assert list_categories("visa", visa) == ["candle", "pcb1"]
    candle = load_category(None, visa, "candle")
    assert listed(candle) == [
        ("Data/Images/Anomaly/000.JPG", 1, "anomaly", "Data/Masks/Anomaly/000.png"),
        ("Data/Images/Anomaly/001.JPG", 1, "anomaly", "Data/Masks/Anomaly/001.png"),
        ("Data/Images/Normal/0000.JPG", 0, "good", None),
    ]
    assert [s.name for s in candle.train] == ["Data/Images/Normal/0001.JPG"]
    assert candle.has_masks
    assert candle.skipped == candle.notes == ()


def test_visa_names_what_its_split_lists_in_vain(visa):
    add_rows(
        visa,
        "candle,test,normal,candle/Data/Images/Normal/0009.JPG,",
        "candle,test,normal,candle/Data/Images/Normal/0000.JPG,",
        "candle,test,anomaly,candle\\Data\\Images\\Anomaly\\002.JPG,candle/Data/Masks/Anomaly/002.png",
        "candle,test,anomaly,candle/Data/Images/Anomaly/003.JPG,",
    )
    touch(visa, "candle/Data/Images/Anomaly/002.JPG", "candle/Data/Images/Anomaly/003.JPG")
    candle = load_category("visa", visa, "candle")
    assert len(candle) == 5
    assert [s.name for s in candle.skipped] == ["Data/Images/Normal/0009.JPG"]
    notes = {n.name: n.reason for n in candle.notes}
    assert "listed more than once" in notes["Data/Images/Normal/0000.JPG"]
    assert "002.png is missing" in notes["Data/Images/Anomaly/002.JPG"]
    assert "has no mask in the split" in notes["Data/Images/Anomaly/003.JPG"]
    assert not candle.has_masks


def test_visa_with_a_broken_split(visa):
    split = visa / "split_csv/1cls.csv"
    split.write_text("object,split,image\n")
    with pytest.raises(DataError, match=r"1cls\.csv lacks the columns label, mask: use the file that VisA ships"):
        load(visa)
    split.write_bytes(b"\xff\xfe\x00binary")
    with pytest.raises(DataError, match=r"1cls\.csv cannot be read"):
        load(visa)
    split.write_text(HEADER)
    with pytest.raises(DataError, match="no category in the visa layout"):
        load(visa)
    split.write_text(HEADER + "candle,test,normal,candle/gone.JPG,\n")
    with pytest.raises(DataError, match=r"lists no test image of candle that is there: unpack VisA whole into"):
        load(visa)


@pytest.mark.parametrize("below", ["", "1cls/"])
def test_visa_as_prepared_by_others(tmp_path, below):
    root = touch(
        tmp_path / "prepared",
        *(f"{below}pcb1/{name}" for name in ("test/bad/000.JPG", "test/good/0000.JPG", "ground_truth/bad/000.png")),
    )
    assert detect_layout(root) == "visa"
    (pcb1,) = load(root)
    assert pcb1.dataset == "visa"
    assert [(s.name, s.mask and s.mask.name) for s in pcb1] == [
        ("test/bad/000.JPG", "000.png"),
        ("test/good/0000.JPG", None),
    ]


# -------------------------------------------------------------------------------------------------------------- folder
def test_a_flat_folder(tmp_path):
    formats = ("b.png", "a.JPG", "c.jpeg", "d.bmp", "e.TIF", "f.tiff", "g.WebP")
    root = touch(tmp_path / "photos", *formats, "notes.txt", ".hidden.png", "movie.mp4", "data", "Thumbs.db")
    assert detect_layout(root) == "folder"
    photos = load_category(None, root)
    assert (photos.dataset, photos.name, photos.root) == ("folder", "photos", root)
    assert photos.samples == tuple(Sample(name, root / name) for name in sorted(formats))
    assert not photos.labeled
    assert list_categories(None, root) == ["photos"]


def test_a_nested_folder(tmp_path):
    root = touch(tmp_path / "photos", "b/1.png", "a/2.png", "z.png", ".git/0.png", "a/deep/1.png", "empty/notes.txt")
    assert [s.name for s in load_category(None, root)] == ["z.png", "a/2.png", "a/deep/1.png", "b/1.png"]


def test_links_that_run_in_circles(tmp_path):
    root = touch(tmp_path / "photos", "a/1.png")
    elsewhere = touch(tmp_path / "elsewhere", "2.png")
    (root / "a/back").symlink_to(root)
    (root / "b").symlink_to(elsewhere)
    (root / "broken.png").symlink_to(tmp_path / "gone.png")  # is named when it is read
    assert [s.name for s in load_category(None, root)] == ["broken.png", "a/1.png", "b/2.png"]


def test_pictures_of_an_earlier_run_are_no_input(tmp_path):
    from musc import MuScConfig, MuScResult

    root = touch(tmp_path, "0.png", "results/folder/x/overlays/0.png.png")
    zero = np.zeros(1, np.float32)
    MuScResult(
        "folder", "x", ("0.png",), zero, zero, np.zeros((1, 2, 2), np.float32), None, None, ("",), MuScConfig()
    ).save(root / "results/folder/x")
    assert [s.name for s in load_category(None, root)] == ["0.png"]


@pytest.mark.parametrize("text", ['{"operator": 7}', "[1]", "", "not JSON", '{"format": 1, "config": {}}', "null"])
def test_a_users_own_result_json_hides_nothing(tmp_path, text):
    root = touch(tmp_path / "p", "a/1.png", "a/2.png")
    (root / "a/result.json").write_text(text)
    category = load_category(None, root)
    assert [s.name for s in category] == ["a/1.png", "a/2.png"]
    assert category.skipped[0].reason == "left out, no images: a/result.json."


# ----------------------------------------------------------------------------------------------------------- bad input
def test_no_folder_no_images(tmp_path):
    with pytest.raises(DataError, match=r"gone does not exist: check the path"):
        load(tmp_path / "gone")
    file = touch(tmp_path, "a.png") / "a.png"
    with pytest.raises(DataError, match=r"a\.png is a file: name the folder that holds the images"):
        load_category(None, file)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty holds no image \(png, .*\)\. Name a folder with at least two images"):
        load(tmp_path / "empty")
    touch(tmp_path / "phone", "IMG_1.heic")
    with pytest.raises(DataError, match=r"it does hold IMG_1\.heic, and other formats must be converted"):
        load(tmp_path / "phone")
    touch(tmp_path / "cup", "test/good/notes.txt")
    with pytest.raises(DataError, match=r"cup/test holds no image"):
        load(tmp_path / "cup")


def test_the_category_is_checked(mvtec):
    with pytest.raises(DataError, match="has no category 'botle'; it has bottle, zipper"):
        load_category(None, mvtec, "botle")
    with pytest.raises(DataError, match="has no category capsule, cup; it has bottle, zipper"):
        load(mvtec, categories=["bottle", "capsule", "cup"])
    with pytest.raises(DataError, match="holds 2 categories: name one of bottle, zipper"):
        load_category(None, mvtec)
    with pytest.raises(DataError, match="has no category 'other'; it has bottle"):
        load_category(None, mvtec / "bottle", "other")
    assert [c.name for c in load(mvtec, categories=["zipper"])] == ["zipper"]


def test_the_layout_and_its_options_are_checked(mvtec, photos):
    with pytest.raises(ConfigError, match="layout = 'mvtec': choose one of mvtec_ad, visa, btad, folder, synthetic"):
        load(mvtec, "mvtec")
    with pytest.raises(ConfigError, match="seed, size: only the synthetic data set has such options"):
        load(mvtec, size=3, seed=0)
    with pytest.raises(ConfigError, match="the layout visa needs the folder"):
        load(None, "visa")
    with pytest.raises(DataError, match=r"no category in the mvtec_ad layout .*use the layout `folder`"):
        load(photos, "mvtec_ad")


def test_an_empty_category_does_not_stop_the_others(mvtec):
    (mvtec / "cable/test/good").mkdir(parents=True)
    found = {c.name: c for c in load(mvtec)}
    assert list(found) == ["bottle", "cable", "zipper"]
    assert len(found["cable"]) == 0
    assert "cable/test holds no image" in found["cable"].skipped[0].reason
    assert len(found["bottle"]) == 5
    with pytest.raises(DataError, match="cable/test holds no image"):
        load(mvtec, categories=["cable"])


@pytest.fixture
def forbid(monkeypatch):
    """Makes folders unreadable. Simulated, since whoever runs the tests may be allowed everything."""
    closed = set()
    scandir, stat, access = os.scandir, os.stat, os.access

    def inside(path):
        return closed & {str(path), *map(str, Path(str(path)).parents)}

    def refuse_scan(path):
        if inside(path):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    def refuse_stat(path, *args, **kwargs):
        if closed & set(map(str, Path(str(path)).parents)):
            raise PermissionError(13, "Permission denied", str(path))
        return stat(path, *args, **kwargs)

    monkeypatch.setattr(os, "scandir", refuse_scan)
    monkeypatch.setattr(os, "stat", refuse_stat)
    monkeypatch.setattr(os, "access", lambda path, mode: not inside(path) and access(path, mode))
    return lambda folder: closed.add(str(folder))


def test_a_forbidden_folder(photos, forbid):
    forbid(photos)
    with pytest.raises(DataError, match=r"photos cannot be listed, permission denied: allow reading it \(chmod \+rx\)"):
        load_category(None, photos)


def test_a_forbidden_subfolder_is_skipped_by_name(mvtec, photos, forbid):
    touch(photos, "closed/9.png")
    forbid(photos / "closed")
    flat = load_category(None, photos)
    assert len(flat) == 6
    assert [s.name for s in flat.skipped] == ["closed"]
    forbid(mvtec / "bottle/test/bent")
    forbid(mvtec / "bottle/train/good")
    bottle = load_category(None, mvtec, "bottle")
    assert Counter(s.defect for s in bottle) == {"crack": 2, "good": 2}
    assert [s.name for s in bottle.skipped] == ["test/bent", "train/good"]
    assert "permission denied" in bottle.skipped[0].reason


def test_a_forbidden_category_is_named_and_the_rest_loaded(mvtec, forbid):
    forbid(mvtec / "zipper")
    bottle, zipper = load(mvtec)
    assert len(bottle) == 5
    assert len(zipper) == 0
    assert "permission denied" in zipper.skipped[0].reason


def test_a_folder_of_closed_folders(tmp_path, forbid):
    forbid(touch(tmp_path / "photos", "closed/0.png") / "closed")
    with pytest.raises(DataError, match=r"photos holds no image .* and parts of it were left out: .*closed cannot be"):
        load(tmp_path / "photos")


# ----------------------------------------------------------------------------------------------------------- synthetic
@pytest.fixture
def drawn(monkeypatch):
    """A stand-in for the synthetic module: what is asked of it counts here, not its pictures."""
    import musc.datasets

    asked = []

    def category(name, **options):
        asked.append((name, options))
        return Category("synthetic", name, (Sample("0", Path("0")),))

    module = types.SimpleNamespace(CATEGORIES=("weave", "grid"), HARD=("screw_random",), category=category)
    monkeypatch.setitem(sys.modules, "musc.datasets.synthetic", module)
    monkeypatch.setattr(musc.datasets, "synthetic", module, raising=False)
    return asked


def test_synthetic_is_the_default_and_takes_options(drawn):
    assert list_categories("synthetic") == ["weave", "grid", "screw_random"]
    assert [c.name for c in load()] == ["weave", "grid", "screw_random"]
    drawn.clear()
    load(None, "synthetic", ["grid"], size=64, seed=3)
    assert drawn == [("grid", {"size": 64, "seed": 3})]
    with pytest.raises(DataError, match="synthetic has no category 'rope'; it has weave, grid, screw_random"):
        load_category("synthetic", name="rope")


# ----------------------------------------------------------------------------------------------------------- real data
@pytest.mark.realdata
def test_magnetic_tile(shared):
    from musc.datasets.images import image_size, read_mask

    (tile,) = load(shared / "data/magnetic_tile")
    assert (tile.dataset, tile.name) == ("mvtec_ad", "tile")
    assert Counter(s.defect for s in tile) == {"good": 200, "blowhole": 40, "break": 40, "crack": 40, "fray": 32}
    assert len(tile.train) == 64
    assert tile.has_masks
    assert tile.skipped == tile.notes == ()
    for sample in tile.samples[::23]:
        if sample.mask is not None:
            mask = read_mask(sample.mask, image_size(sample.image))
            assert 0 < (mask > 127).mean() < 0.6
