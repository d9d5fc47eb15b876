"""What is an image, a mask, a folder of normal images: recognised by name and content, and said."""

import os
import socket

import numpy as np
import pytest
from PIL import Image, features

from musc.datasets import detect_layout, load, load_category
from musc.datasets.base import printable
from musc.datasets.images import read_image, read_mask
from musc.datasets.masks import load_mask
from musc.datasets.words import is_masks, kind
from musc.errors import DataError

RNG = np.random.default_rng(3)


def photo(path, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RNG.integers(0, 256, (24, 32, 3), dtype=np.uint8)).save(path, **options)
    return path


def mask(path, values=(0, 255), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((24, 32), values[0], np.uint8)
    for i, value in enumerate(values[1:]):
        pixels[4 : 12 + i, 5 + 6 * i : 9 + 6 * i] = value
    Image.fromarray(pixels).save(path, **options)
    return path


def make(root, photos=(), masks=()):
    for name in photos:
        photo(root / name)
    for name in masks:
        mask(root / name)
    return root


def said(category):
    return " ".join(s.reason for s in (*category.skipped, *category.notes))


def names(category):
    return [s.name for s in category]


# ------------------------------------------------------------------------------------------------------- what is read
def test_every_format_that_pillow_reads(tmp_path):
    root = tmp_path / "mix"
    picture = Image.fromarray(RNG.integers(0, 256, (16, 16, 3), dtype=np.uint8))
    root.mkdir()
    kinds = {"a.gif": "GIF", "b.ppm": "PPM", "c.pgm": "PPM", "d.jfif": "JPEG", "e.jp2": "JPEG2000", "f.tga": "TGA",
             "g.dib": "DIB", "h.mpo": "MPO", "i.pcx": "PCX", "j.sgi": "SGI", "k.ico": "ICO",
             "n.dds": "DDS", "o.png": "PNG", "p.icns": "ICNS", "q.blp": "BLP"}  # fmt: skip
    if features.check("avif"):
        kinds["m.avif"] = "AVIF"
    for name, form in kinds.items():
        (picture.convert("P") if form == "BLP" else picture).save(root / name, format=form)
    category = load_category(None, root)
    assert names(category) == sorted(kinds)
    assert {read_image(s.image).size for s in category} <= {(16, 16), (1024, 1024)}
    assert category.skipped == ()


def test_content_counts_where_the_name_says_nothing(tmp_path):
    root = make(tmp_path / "p", ["a.png"])
    photo(root / "IMG_0001", format="JPEG")
    photo(root / "scan.dat", format="TIFF")
    photo(root / "x.png.bak", format="PNG")
    (root / "notes").write_text("P1 and P2 are good parts")
    (root / "layout.gbr").write_text("%FSLAX36Y36*%")  # Gerber, which shares its suffix with GIMP's brushes
    category = load_category(None, root)
    assert names(category) == ["IMG_0001", "a.png", "scan.dat", "x.png.bak"]
    assert "left out, no images: " in category.skipped[0].reason
    assert "notes" in category.skipped[0].reason


def test_what_is_left_out_is_named_in_groups(tmp_path):
    root = make(tmp_path / "p", ["a.png", "b/c.png"])
    for name in ("1.txt", "2.TXT", "b/3.txt", "table.csv", "IMG_1.HEIC", "IMG_2.heic", "film.mp4"):
        (root / name).write_bytes(b"x")
    for name in (".DS_Store", "Thumbs.db", "desktop.ini", "._a.png", "b/.DS_Store", "b/thumbs.db", ".hidden.png"):
        (root / name).write_bytes(b"x")
    make(root, ["__MACOSX/a.png", "@eaDir/a.png/thumb.png"])
    category = load_category(None, root)
    assert names(category) == ["a.png", "b/c.png"]
    assert [s.reason for s in category.skipped] == [
        "left out, no images: 3 .txt, table.csv.",
        "left out, in formats that cannot be read here: 2 .heic, film.mp4. Convert them to PNG.",
    ]


def test_system_files_alone_leave_nothing_to_say(tmp_path):
    root = make(tmp_path / "cup", ["test/good/0.png", "test/dent/0.png", "train/good/1.png"])
    for where in ("", "test", "test/good", "train", "train/good"):
        for name in (".DS_Store", "Thumbs.db"):
            (root / where / name).write_bytes(b"x")
    category = load_category(None, root)
    assert len(category) == 2
    assert category.skipped == category.notes == ()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_pipes_sockets_and_devices_are_never_opened(tmp_path, monkeypatch):
    root = make(tmp_path / "p", ["a.png", "b.png"])
    os.mkfifo(root / "pipe.png")
    os.mkfifo(root / "result.json.png")
    (root / "null.jpg").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as listener:
        monkeypatch.chdir(root)  # a socket's path must be short
        listener.bind("s.png")
        category = load_category(None, root)
    assert names(category) == ["a.png", "b.png"]
    assert [s.name for s in category.skipped] == ["null.jpg", "pipe.png", "result.json.png", "s.png"]
    assert "is a pipe, socket or device" in said(category)
    with pytest.raises(DataError, match=r"pipe\.png is a pipe, socket or device, not a file"):
        read_image(root / "pipe.png")


def test_names_that_are_no_utf8(tmp_path):
    root = make(tmp_path / "p", ["a.png"])
    raw = os.fsencode(root)
    try:
        for name in (b"Pr\xfcfling.png", b"Pr\\xfcfling.png", b"\xb2\xe2.png", b"line\nbreak.png"):
            os.link(root / "a.png", raw + b"/" + name)
    except OSError:
        pytest.skip("this file system takes no such names")
    category = load_category(None, root)
    assert len(category) == len(set(names(category))) == 5
    assert all(name.encode("utf-8") and name.isprintable() for name in names(category))
    assert r"Pr\xfcfling.png" in names(category)
    assert all(read_image(s.image).size == (32, 24) for s in category)
    (root / os.fsdecode(b"broken\xff.png")).write_bytes(b"\x89PNG")
    with pytest.raises(DataError, match=r"broken\\xff\.png is damaged") as raised:
        read_image(root / os.fsdecode(b"broken\xff.png"))
    str(raised.value).encode("utf-8")


def test_printable_leaves_other_writing_alone():
    for name in ("Prüfling.png", "部品.png", "Bild 10.30\u202fAM.png", "naïve$x$.png", "a\\b.png"):
        assert printable(name) == name
    assert printable("\x1b[31m.png") == r"\x1b[31m.png"
    assert printable("\ud800") == r"\ud800"


# -------------------------------------------------------------------------------------------------- good and bad words
@pytest.mark.parametrize(
    ("good", "bad"),
    [("OK", "NG"), ("normal", "abnormal"), ("Pass", "Fail"), ("iO", "niO"), ("good", "NOK"), ("0_clean", "1_defect"),
     ("ok_front", "def_front"), ("GOOD", "ko"), ("Normal Images", "Anomaly Images"), ("良品", "不良品")],
)  # fmt: skip
def test_usual_words_for_good_and_bad(tmp_path, good, bad):
    root = make(tmp_path / "part", [f"test/{good}/0.png", f"test/{bad}/0.png", f"test/{bad}/1.png"])
    category = load_category(None, root)
    assert {s.name.split("/")[1]: s.label for s in category} == {good: 0, bad: 1}
    assert {s.defect for s in category} == {"good", bad}
    said_so = [n.reason for n in category.notes]
    assert said_so == ([] if good.lower() == "good" else [f"by its folders, {good} is normal, {bad} anomalous."])


@pytest.mark.parametrize("folders", [["A", "B"], ["camera"], ["scratch", "dent"], ["NG", "camera1"], ["0", "1"]])
def test_where_everything_would_be_anomalous(tmp_path, folders):
    root = make(tmp_path / "part", [f"test/{f}/0.png" for f in folders])
    with pytest.raises(DataError, match=r"part/test holds .*every image would count as anomalous\. Call") as e:
        load_category(None, root)
    assert all(f in str(e.value) for f in folders)
    make(root, masks=[f"ground_truth/{folders[0]}/0_mask.png"])  # now it is certain
    assert all(s.label for s in load_category(None, root))


def test_only_normal_images(tmp_path):
    category = load_category(None, make(tmp_path / "part", ["test/Good/0.png", "test/Good/1.png"]))
    assert [s.label for s in category] == [0, 0]


@pytest.mark.parametrize("folders", ["train/Good", "Train/good", "TRAIN/OK", "train/normal"])
def test_normal_training_images_in_any_case(tmp_path, folders):
    root = make(tmp_path / "part", ["Test/Good/0.png", "Test/dent/0.png", f"{folders}/5.png", f"{folders}/6.png"])
    make(root, masks=["Ground_Truth/dent/0_mask.png"])
    category = load_category(None, root)
    assert len(category.train) == 2
    assert category.has_masks


def test_what_lies_beside_the_test_folder_is_said(tmp_path):
    root = make(tmp_path / "d", ["cup/test/good/0.png", "cup/test/bad/0.png", "cup/a.png", "cup/validation/good/1.png"])
    make(root, ["loose.png", "more/x.png", "mug/test/good/0.png"])
    (root / "readme.txt").write_text("x")
    cup = load_category(None, root, "cup")
    text = said(cup)
    for part in (
        "1 images beside the test folder are left out (a.png)",
        "the folder validation holds images",
        "1 images beside the categories are left out (loose.png)",
        "the folder more holds images",
    ):
        assert part in text
    assert "readme" not in text
    assert [c.name for c in load(root)] == ["cup", "mug"]


def test_words():
    assert [kind(w) for w in ("n.i.O.", "not ok", "Defect-free", "OKs", "1-abnormal", "good_parts")] == [
        "bad", "bad", "good", "good", "bad", "good",
    ]  # fmt: skip
    assert [kind(w) for w in ("scratch", "1", "goodyear", "okra", "passport", "bent")] == [None] * 6
    assert all(map(is_masks, ("GroundTruth", "Masks", "ground-truth", "Segmentation_Mask", "gt")))


# --------------------------------------------------------------------------------------------------------------- masks
NAMES = [
    ("x.jpg", "x.png"), ("x.png", "x_mask.png"), ("x.jpg", "x-gt.bmp"), ("x.png", "x_label.png"),
    ("x.png", "mask_x.png"), ("x.bmp", "x_GroundTruth.tif"), ("x.png", "x.mask.png"), ("x.jpg", "x_Seg.png"),
]  # fmt: skip


@pytest.mark.parametrize(("image", "label"), NAMES)
def test_masks_beside_their_images_are_left_out(tmp_path, image, label):
    root = make(tmp_path / "p", [image, "y.png", "z.png"], [label])
    category = load_category(None, root)
    assert names(category) == sorted([image, "y.png", "z.png"])
    assert "1 files are taken for masks" in said(category)
    assert label in said(category)


@pytest.mark.parametrize("folder", ["mask", "Masks", "ground_truth", "gt", "Labels", "annotations", "segmentation"])
def test_folders_of_masks_are_left_out(tmp_path, folder):
    root = make(tmp_path / "p", ["a/0.png", "a/1.png"], [f"{folder}/0.png", f"{folder}/deep/1.png"])
    category = load_category(None, root)
    assert names(category) == ["a/0.png", "a/1.png"]
    assert "2 files are taken for masks" in said(category)


def test_folders_that_repeat_the_names_of_another(tmp_path):
    root = make(tmp_path / "p", ["img/0.jpg", "img/1.jpg", "img/2.jpg"], ["binary/0.png", "binary/1.png"])
    assert names(load_category(None, root)) == ["img/0.jpg", "img/1.jpg", "img/2.jpg"]
    photographs = make(tmp_path / "q", ["left/0.jpg", "left/1.jpg", "right/0.png", "right/1.png"])
    assert len(load_category(None, photographs)) == 4


def test_photographs_stay_photographs(tmp_path):
    root = make(tmp_path / "p", ["x.jpg", "x.png", "bottle.png", "bottle_label.png", "label/1.png", "masks/0.png"])
    mask(root / "silhouette.png")  # two values, and no other sign
    mask(root / "back_light.png")
    category = load_category(None, root)
    assert len(category) == 8
    assert category.skipped == ()
    assert len(load_category(None, make(tmp_path / "q", [], ["masks/0.png", "masks/1.png"]))) == 2  # nothing else


def test_class_maps_and_compressed_masks_are_masks_too(tmp_path):
    root = make(tmp_path / "p", ["x.png", "y.png"])
    mask(root / "x_mask.png", (0, 60, 120, 180))
    mask(root / "y_mask.jpg", quality=80)
    assert names(load_category(None, root)) == ["x.png", "y.png"]


def test_anomalibs_folders(tmp_path):
    root = make(tmp_path / "hazelnut", ["good/0.jpg", "good/1.jpg", "crack/0.jpg", "crack/1.jpg"])
    make(root, masks=["mask/crack/0.png", "mask/crack/1.png"])
    toy = load_category(None, root)
    assert (toy.dataset, detect_layout(root)) == ("folder", "folder")
    assert {(s.name, s.label, s.mask and s.mask.relative_to(root).as_posix()) for s in toy} == {
        ("crack/0.jpg", 1, "mask/crack/0.png"), ("crack/1.jpg", 1, "mask/crack/1.png"),
        ("good/0.jpg", 0, None), ("good/1.jpg", 0, None),
    }  # fmt: skip
    assert "good is normal, crack anomalous" in said(toy)
    assert toy.skipped == ()
    flat = make(tmp_path / "flat", ["normal/a.png", "abnormal/b.png", "abnormal/c.png"], ["mask/b.png", "mask/c.png"])
    category = load_category(None, flat)
    assert category.has_masks
    assert [s.label for s in category] == [1, 1, 0]
    make(flat, masks=["mask/of_another.png"])
    assert "1 files are taken for masks" in said(load_category(None, flat))


def test_visa_without_its_csv(tmp_path):
    root = make(tmp_path / "candle", ["Data/Images/Normal/0.JPG", "Data/Images/Anomaly/0.JPG"],
                ["Data/Masks/Anomaly/0.png"])  # fmt: skip
    candle = load_category("folder", root)
    assert [(s.label, s.mask and s.mask.name) for s in candle] == [(1, "0.png"), (0, None)]


def test_words_for_only_one_kind_label_nothing(tmp_path):
    category = load_category(None, make(tmp_path / "p", ["good/0.png", "good/1.png", "other/2.png"]))
    assert [s.label for s in category] == [None] * 3
    assert category.notes == ()


def test_three_dimensional_layout(tmp_path):
    root = tmp_path / "bagel"
    for defect in ("crack", "good"):
        for i in range(2):
            make(root, [f"test/{defect}/rgb/00{i}.png"], [f"test/{defect}/gt/00{i}.png"])
            (root / f"test/{defect}/xyz").mkdir(exist_ok=True)
            (root / f"test/{defect}/xyz/00{i}.tiff").write_bytes(b"II*\0")
    category = load_category(None, root)
    assert {(s.name, s.mask and s.mask.relative_to(root).as_posix()) for s in category if s.label} == {
        (f"test/crack/rgb/00{i}.png", f"test/crack/gt/00{i}.png") for i in range(2)
    }
    assert len(category) == 4
    assert "hold other measurements of the same scenes" in said(category)


def test_masks_in_a_folder_of_their_image(tmp_path):
    root = make(tmp_path / "loco", ["test/good/0.png", "test/logical/000.png", "test/logical/001.png"])
    mask(root / "ground_truth/logical/000/000.png")
    one, two = np.zeros((24, 32), np.uint8), np.zeros((24, 32), np.uint8)
    one[:3], two[:, :4] = 255, 200
    (root / "ground_truth/logical/001").mkdir()
    Image.fromarray(one).save(root / "ground_truth/logical/001/000.png")
    Image.fromarray(two).save(root / "ground_truth/logical/001/001.png")
    category = load_category(None, root)
    assert category.has_masks
    masks = {s.name: s.mask for s in category}
    assert masks["test/logical/000.png"] == root / "ground_truth/logical/000/000.png"
    np.testing.assert_array_equal(read_mask(masks["test/logical/001.png"]) > 0, (one > 0) | (two > 0))


@pytest.mark.parametrize(
    "place", ["ground_truth/crack_7.png", "gt/crack/crack_7_mask.png", "masks/test/crack/crack_7.png",
              "test/mask/crack/crack_7.png", "test/crack/masks/crack_7.png", "GroundTruth/Crack/CRACK_7_mask.PNG"]
)  # fmt: skip
def test_other_places_of_masks(tmp_path, place):
    root = make(tmp_path / "cup", ["test/good/1.png", "test/crack/crack_7.jpg"], [place])
    category = load_category(None, root)
    assert {s.name: s.mask and s.mask.relative_to(root).as_posix() for s in category} == {
        "test/crack/crack_7.jpg": place, "test/good/1.png": None,
    }  # fmt: skip


def test_a_flat_folder_of_masks_and_two_images_of_one_name(tmp_path):
    root = make(tmp_path / "cup", ["test/good/1.png", "test/a/7.png", "test/a/8.png"], ["ground_truth/7.png"])
    assert [s.mask is not None for s in load_category(None, root)] == [True, False, False]


# --------------------------------------------------------------------------------------- what of a file is the mask
TRUTH = np.zeros((24, 32), bool)
TRUTH[5:15, 8:20] = True


def rgba(colour, alpha):
    return np.dstack([np.broadcast_to(colour, (*TRUTH.shape, 3)), alpha]).astype(np.uint8)


PHOTO = RNG.integers(0, 256, (*TRUTH.shape, 3))
ALPHA = {
    "white": rgba((255, 255, 255), TRUTH * 255), "black": rgba((0, 0, 0), TRUTH * 255), 
    "half": rgba(PHOTO, TRUTH * 200),
    "red_on_white": rgba(np.where(TRUTH[..., None], (255, 0, 0), (255, 255, 255)), TRUTH * 255),
    "black_on_white": rgba(np.where(TRUTH[..., None], 0, 255), TRUTH * 255),
    "painted": rgba(np.where(TRUTH[..., None], 255, 0), TRUTH * 255),
    "opaque": rgba(np.where(TRUTH[..., None], 255, 0), np.full(TRUTH.shape, 255)),
    "forgotten": rgba(np.where(TRUTH[..., None], 255, 0), np.zeros(TRUTH.shape)),
}  # fmt: skip


@pytest.mark.parametrize("name", ALPHA)
def test_masks_in_the_alpha_channel(tmp_path, name):
    Image.fromarray(ALPHA[name]).save(tmp_path / "m.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "m.png"), TRUTH * np.uint8(255))


def test_a_mask_in_grey_and_alpha(tmp_path):
    Image.merge("LA", [Image.new("L", (32, 24), 255), Image.fromarray(TRUTH.astype(np.uint8) * 255)]).save(
        tmp_path / "m.png"
    )
    found = load_mask(tmp_path / "m.png")
    np.testing.assert_array_equal(found.grey > 0, TRUTH)
    assert found.how == "the mask is in the alpha channel"


@pytest.mark.parametrize("values", [(0, 60, 120, 180), (0, 1, 2, 255), (0, 100, 200), (0, 3, 250)])
@pytest.mark.parametrize("mode", ["L", "P"])
def test_class_values_all_count(tmp_path, values, mode):
    path = mask(tmp_path / "m.png", values)
    if mode == "P":
        indices = np.searchsorted(values, np.array(Image.open(path))).astype(np.uint8)
        image = Image.fromarray(indices).convert("P")
        image.putpalette([channel for v in values for channel in (v, v, v)])
        image.save(path)
    found = load_mask(path)
    np.testing.assert_array_equal(found.grey > 0, np.array(Image.open(path).convert("L")) > 0)
    assert "are classes, and every one is anomalous" in found.how


def test_thin_lines_of_a_class_count_and_soft_edges_do_not(tmp_path):
    drawn = np.zeros((24, 32), np.uint8)
    drawn[3, 2:30] = 60  # a crack of one pixel
    drawn[10:20, 10:20] = 180
    Image.fromarray(drawn).save(tmp_path / "c.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "c.png") > 0, drawn > 0)
    soft = np.zeros((24, 32), np.uint8)
    soft[9:21, 9:21] = 85
    soft[10:20, 10:20] = 255
    Image.fromarray(soft).save(tmp_path / "s.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "s.png"), soft)  # half and more counts, as before
    Image.fromarray(TRUTH.astype(np.uint8) * 255).save(tmp_path / "j.jpg", quality=60)
    assert (read_mask(tmp_path / "j.jpg") > 127).sum() == pytest.approx(TRUTH.sum(), abs=8)


def test_a_palette_without_colours_and_colours_without_black(tmp_path):
    image = Image.fromarray(TRUTH.astype(np.uint8)).convert("P")
    image.putpalette([7, 7, 7] * 256)
    image.save(tmp_path / "p.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "p.png") > 0, TRUTH)
    Image.fromarray(np.where(TRUTH[..., None], (255, 0, 0), (0, 0, 255)).astype(np.uint8)).save(tmp_path / "c.png")
    with pytest.raises(DataError, match=r"c\.png is a mask in colours without black"):
        read_mask(tmp_path / "c.png")
