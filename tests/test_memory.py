"""Arrays and PIL images are images like any others."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from musc import MuSc
from musc.datasets import as_category, load_category
from musc.datasets.images import content_key, image_size, read_image
from musc.errors import DataError

RNG = np.random.default_rng(8)
COLOUR = RNG.integers(0, 256, (6, 9, 3), dtype=np.uint8)


def shown(picture):
    return np.array(read_image(as_category([picture]).samples[0].image))


def test_every_kind_of_picture():
    grey = COLOUR[..., 0]
    np.testing.assert_array_equal(shown(COLOUR), COLOUR)
    np.testing.assert_array_equal(shown(np.dstack([COLOUR, grey])), COLOUR)
    np.testing.assert_array_equal(shown(COLOUR / 255), COLOUR)
    np.testing.assert_array_equal(shown((COLOUR / 255).astype(np.float16))[..., 0] // 2, grey // 2)
    for picture in (grey, grey[..., None], torch.from_numpy(grey), Image.fromarray(grey), grey[::1, ::-1][:, ::-1]):
        np.testing.assert_array_equal(shown(picture), np.dstack([grey] * 3))
    np.testing.assert_array_equal(shown(grey > 99)[..., 1], 255 * (grey > 99))
    np.testing.assert_array_equal(shown(Image.fromarray(COLOUR)), COLOUR)


@pytest.mark.parametrize(
    ("picture", "text"),
    [
        (np.zeros((3, 8, 8), np.uint8), r"image_000 is an array of shape \(3, 8, 8\) \(channels come last: transpose"),
        (np.zeros(5), r"shape \(5,\): give \[H, W\]"),
        (np.zeros((0, 5)), r"shape \(0, 5\)"),
        (np.full((4, 4), 1.5), r"image_000 holds floats from 1.5 to 1.5: divide all images by the same number"),
        (np.full((4, 4), np.nan), r"holds floats from nan"),
        (np.zeros((4, 4), np.int64), r"array of int64, shape \(4, 4\)"),
        (np.zeros((4, 4, 3), np.uint16), r"array of uint16, shape \(4, 4, 3\)"),
        (np.array([["a", "b"]]), "array of <U1"),
        ({"a": 1}, "image_000 is a dict: give"),
        (None, "image_000 is a NoneType: give"),
        (b"\x89PNG", "image_000 is a bytes: give"),
        ([[1, 2], [3]], "image_000 is no array .*inhomogeneous"),
    ],
)
def test_what_is_no_image_is_described(picture, text):
    with pytest.raises(DataError, match=text):
        as_category([picture])


def test_one_image_alone():
    for one in (COLOUR, COLOUR[..., 0], Image.fromarray(COLOUR)):
        with pytest.raises(DataError, match="one image alone is given: give a list"):
            as_category(one)
    assert len(as_category(np.stack([COLOUR] * 3))) == 3
    assert len(as_category(np.zeros((5, 8, 9)))) == 5


def test_names_and_mixtures(photos):
    paths = sorted(photos.iterdir())[:2]
    names = [s.name for s in as_category([paths[0], COLOUR, str(paths[1])])]
    assert names == [paths[0].as_posix(), "image_001", paths[1].as_posix()]
    assert [s.name for s in as_category({"left": COLOUR, "right": paths[0]})] == ["left", "right"]
    with pytest.raises(DataError, match="is given 2 times"):
        as_category([paths[0], paths[0]])


def test_samples_of_a_category_keep_what_they_know():
    some = load_category("synthetic", None, "weave", good=2, defects=2).samples
    assert as_category(some).samples == some
    mixed = as_category([COLOUR, some[0]]).samples
    assert mixed[0].name == "image_000"
    assert mixed[1] == some[0]
    with pytest.raises(DataError, match="is given 2 times"):
        as_category([some[0], some[0]])


def test_later_changes_of_the_array_change_nothing():
    array = COLOUR.copy()
    sample = as_category([array]).samples[0]
    key = content_key(sample.image)
    array[:] = 0
    np.testing.assert_array_equal(np.array(read_image(sample.image)), COLOUR)
    assert content_key(sample.image) == key == content_key(as_category([COLOUR]).samples[0].image)
    assert image_size(sample.image) == (9, 6)


def test_a_lazily_opened_and_damaged_pil_image():
    buffer = io.BytesIO()
    Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(buffer, format="PNG")
    cut = Image.open(io.BytesIO(buffer.getvalue()[:2000]))
    with pytest.raises(DataError, match="image_000 cannot be decoded"):
        as_category([cut])


def test_a_run_on_arrays_equals_one_on_files(photos, tiny_config, tiny_backbone):
    musc = MuSc(tiny_config, backbone=tiny_backbone)
    paths = sorted(photos.iterdir())
    from_files = musc.run(photos)
    arrays = [np.array(Image.open(path)) for path in paths]
    for given in (
        arrays,
        [Image.fromarray(a) for a in arrays],
        {p.name: a for p, a in zip(paths, arrays, strict=True)},
    ):
        result = musc.run(given)
        np.testing.assert_array_equal(result.raw_image_scores, from_files.raw_image_scores)
    assert result.paths == from_files.paths


def test_arrays_of_12_bits_share_one_scale(tiny_config, tiny_backbone):
    frames = [RNG.integers(0, 4096, (32, 32)).astype(np.uint16) for _ in range(4)]
    result = MuSc(tiny_config, backbone=tiny_backbone).run(frames)
    assert result.config.full_scale == 4095
