"""Images and masks from files: every format and mode, every kind of bad file, the two mask protocols."""

import concurrent.futures
import hashlib
import io
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from musc.datasets import decode, images
from musc.datasets.images import content_key, image_size, official_rule, preprocess, read_image, read_mask, resize_mask
from musc.errors import ConfigError, DataError

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (5, 7), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)
GREY_AS_RGB = np.repeat(GREY[..., None], 3, axis=2)
LOSSLESS = {"png": {}, "bmp": {}, "tif": {}, "tiff": {"compression": "tiff_lzw"}, "webp": {"lossless": True}}


def saved(path, array_or_image, **options):
    image = array_or_image if isinstance(array_or_image, Image.Image) else Image.fromarray(array_or_image)
    image.save(path, **options)
    return path


def pixels(path):
    image = read_image(path)
    assert image.mode == "RGB"
    return np.array(image)


@dataclass(frozen=True)
class Drawn:
    """An image on demand, as the synthetic data set has them."""

    key: str
    image: Image.Image

    def __call__(self):
        return self.image


# ------------------------------------------------------------------------------------------------ formats and modes
@pytest.mark.parametrize("suffix", [*LOSSLESS, "PNG", "TIF"])
def test_lossless_formats_keep_every_pixel(tmp_path, suffix):
    path = saved(tmp_path / f"a.{suffix}", COLOUR, **LOSSLESS[suffix.lower()])
    np.testing.assert_array_equal(pixels(path), COLOUR)


@pytest.mark.parametrize("suffix", ["jpg", "jpeg", "webp"])
def test_lossy_formats_keep_the_picture(tmp_path, suffix):
    ramp = np.repeat(np.linspace(30, 220, 32)[None, :, None], 32, axis=0) * np.ones(3)
    path = saved(tmp_path / f"a.{suffix}", ramp.astype(np.uint8), quality=95)
    assert np.abs(pixels(path) - ramp).max() < 6


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif"])
def test_grey(tmp_path, suffix):
    np.testing.assert_array_equal(pixels(saved(tmp_path / f"a.{suffix}", GREY)), GREY_AS_RGB)


def test_one_bit(tmp_path):
    path = saved(tmp_path / "a.png", Image.fromarray(GREY > 127))
    np.testing.assert_array_equal(pixels(path), 255 * (GREY_AS_RGB > 127))


@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
def test_alpha_is_dropped_and_hides_nothing(tmp_path, suffix):
    alpha = np.zeros((5, 7, 1), np.uint8)
    options = {"lossless": True, "exact": True} if suffix == "webp" else {}
    path = saved(tmp_path / f"a.{suffix}", np.concatenate([COLOUR, alpha], axis=2), **options)
    np.testing.assert_array_equal(pixels(path), COLOUR)


def test_grey_with_alpha(tmp_path):
    path = saved(tmp_path / "a.png", Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(255 - GREY)]))
    np.testing.assert_array_equal(pixels(path), GREY_AS_RGB)


@pytest.mark.parametrize("transparency", [{}, {"transparency": 3}, {"transparency": bytes(range(35))}])
def test_palette(tmp_path, transparency):
    image = Image.fromarray(np.arange(35, dtype=np.uint8).reshape(5, 7)).convert("P")
    image.putpalette(COLOUR.reshape(-1).tolist())
    path = saved(tmp_path / "a.png", image, **transparency)
    with Image.open(path) as stored:
        assert stored.mode == "P"
    np.testing.assert_array_equal(pixels(path), COLOUR)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bits_are_scaled_by_their_full_range(tmp_path, suffix):
    deep = np.array([[0, 257, 300], [4095, 32896, 65535]], np.uint16)
    path = saved(tmp_path / f"a.{suffix}", deep)
    with Image.open(path) as stored:
        assert stored.mode == "I;16"
    # by hand: 300 / 257 = 1.17, 4095 / 257 = 15.93, 32896 / 257 = 128
    np.testing.assert_array_equal(pixels(path)[..., 0], [[0, 1, 1], [16, 128, 255]])


def test_16_bits_big_endian_and_32_bit_integers(tmp_path):
    wide = np.array([[0, 25700], [65535, 257]])
    motorola = Image.frombytes("I;16B", (2, 2), wide.astype(">u2").tobytes())
    for path in (saved(tmp_path / "b.tif", motorola), saved(tmp_path / "i.tif", wide.astype(np.int32))):
        np.testing.assert_array_equal(pixels(path)[..., 2], [[0, 100], [255, 1]])


@pytest.mark.parametrize("full", [1.0, 255.0, 65535.0])
def test_float_tiff(tmp_path, full):
    values = (GREY / 255 * full).astype(np.float32)
    values[0, 0] = full
    expected = GREY.copy()
    expected[0, 0] = 255
    np.testing.assert_array_equal(pixels(saved(tmp_path / "a.tif", values))[..., 0], expected)


@pytest.mark.parametrize("value", [-0.5, np.nan, np.inf, 1e6])
def test_float_tiff_outside_every_range(tmp_path, value):
    path = saved(tmp_path / "a.tif", np.array([[0, value]], np.float32))
    said = "values from .* rescale it" if np.isfinite(value) else "NaN or infinity: replace"
    with pytest.raises(DataError, match=rf"a\.tif holds {said}"):
        read_image(path)


@pytest.mark.parametrize("suffix", ["jpg", "tif"])
def test_cmyk(tmp_path, suffix):
    flat = np.full((16, 16, 3), (200, 100, 50), np.uint8)
    path = saved(tmp_path / f"a.{suffix}", Image.fromarray(flat).convert("CMYK"))
    assert np.abs(pixels(path).astype(int) - flat).max() <= 3


def test_first_frame_of_several(tmp_path):
    path = tmp_path / "a.tif"
    Image.fromarray(COLOUR).save(path, save_all=True, append_images=[Image.fromarray(255 - COLOUR)])
    np.testing.assert_array_equal(pixels(path), COLOUR)


# By the EXIF standard: row 0 of the stored picture is the visual top, right, ..., column 0 the visual left, ...
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: a.transpose(1, 0, 2)[:, ::-1],
    7: lambda a: a.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda a: a.transpose(1, 0, 2)[::-1],
}


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
def test_exif_orientation(tmp_path, suffix, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path / f"a.{suffix}", COLOUR, exif=exif, **LOSSLESS[suffix])
    np.testing.assert_array_equal(pixels(path), UPRIGHT[orientation](COLOUR))
    assert image_size(path) == read_image(path).size


def test_exif_orientation_of_a_jpeg(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # a phone held upright
    half = np.zeros((16, 32, 3), np.uint8)
    half[:, 16:] = 255
    upright = pixels(saved(tmp_path / "a.jpg", half, exif=exif))
    assert upright.shape == (32, 16, 3)
    assert upright[:12].max() < 10
    assert upright[20:].min() > 245


def test_broken_exif_is_no_obstacle(tmp_path):
    path = saved(tmp_path / "a.jpg", np.full((16, 16, 3), 90, np.uint8), exif=b"Exif\0\0II*\0\xff\xff\xff\x7fgarbage")
    assert np.abs(pixels(path).astype(int) - 90).max() <= 2
    assert image_size(path) == (16, 16)


def test_a_drawn_picture():
    drawn = Drawn("tile/0", Image.fromarray(GREY))
    np.testing.assert_array_equal(np.array(read_image(drawn)), GREY_AS_RGB)
    assert image_size(drawn) == (7, 5)


# -------------------------------------------------------------------------------------------------------- bad files
def noise(suffix):
    buffer = io.BytesIO()
    picture = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(picture).save(buffer, format={"jpg": "JPEG", "tif": "TIFF"}.get(suffix, suffix))
    return buffer.getvalue()


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "tif", "webp"])
def test_truncated(tmp_path, suffix, share):
    data = noise(suffix)
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(DataError, match=rf"a\.{suffix} is damaged or cut short.*"):
        read_image(path)


def test_a_few_bytes_of_a_png(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(noise("png")[:10])
    with pytest.raises(DataError, match=r"a\.png is damaged or cut short near its beginning: export it again"):
        read_image(path)


def test_scrambled_bytes_never_escape_as_another_error(tmp_path):
    path = tmp_path / "a.png"
    rng = np.random.default_rng(2)
    outcomes = set()
    for suffix in ("png", "jpg", "tif", "webp"):
        clean = np.frombuffer(noise(suffix), np.uint8)
        for _ in range(30):
            data = clean.copy()
            data[rng.integers(0, min(400, len(data)), 6)] = rng.integers(0, 256, 6)
            path.write_bytes(data.tobytes())
            try:
                outcomes.add(read_image(path).mode)
            except DataError as error:
                outcomes.add("named" if str(path) in str(error) else "unnamed")
    assert outcomes == {"RGB", "named"}


@pytest.mark.parametrize("read", [read_image, read_mask, content_key, image_size])
def test_files_that_hold_nothing(tmp_path, read):
    empty = tmp_path / "empty.png"
    empty.touch()
    with pytest.raises(DataError, match=r"empty\.png is empty \(0 bytes\)"):
        read(empty)
    with pytest.raises(DataError, match=r"gone\.png does not exist"):
        read(tmp_path / "gone.png")
    with pytest.raises(DataError, match="cannot be read"):
        read(tmp_path)


def test_text_and_other_content_under_an_image_name(tmp_path):
    path = tmp_path / "notes.png"
    path.write_text("These are notes, not pixels.")
    with pytest.raises(DataError, match=r"notes\.png is text, not an image \(it begins 'These are"):
        read_image(path)
    path.write_bytes(bytes(range(128, 200)))
    with pytest.raises(DataError, match=r"not in an image format known here \(it begins with the bytes 80 81"):
        read_image(path)


def test_postscript_is_not_run(tmp_path):
    path = tmp_path / "a.png"
    path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n")
    with pytest.raises(DataError, match="is text, not an image"):
        read_image(path)


def test_no_permission(tmp_path, monkeypatch):  # simulated: whoever runs the tests may be allowed everything
    path = saved(tmp_path / "a.png", GREY)

    def refuse(_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    for read in (read_image, read_mask, content_key):
        with pytest.raises(DataError, match=r"a\.png cannot be read, permission denied: allow reading it"):
            read(path)


def test_a_failing_disk(tmp_path, monkeypatch):
    def fail(_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Path, "read_bytes", fail)
    with pytest.raises(DataError, match=r"a\.png cannot be read \(Input/output error\)"):
        read_image(tmp_path / "a.png")


def test_decompression_bomb_and_a_merely_large_image(tmp_path, monkeypatch):
    path = saved(tmp_path / "a.png", COLOUR)  # 35 pixels
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)  # Pillow would warn from here, and refuse from 20 on
    np.testing.assert_array_equal(pixels(path), COLOUR)
    assert Image.MAX_IMAGE_PIXELS == 10
    monkeypatch.setattr(decode, "MAX_PIXELS", 34)
    with pytest.raises(DataError, match=r"a\.png is too large to decode .*save it as several smaller images"):
        read_image(path)


def test_a_bomb_of_text_chunks(tmp_path):
    info = PngImagePlugin.PngInfo()
    info.add_text("comment", "0" * (PngImagePlugin.MAX_TEXT_CHUNK + 1), zip=True)
    path = saved(tmp_path / "a.png", COLOUR, pnginfo=info)
    with pytest.raises(DataError, match=r"a\.png"):
        read_image(path)


def test_threads_leave_the_warning_filters_as_they_were(tmp_path, monkeypatch):
    path = saved(tmp_path / "a.png", COLOUR)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    before = list(warnings.filters)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        images = list(pool.map(read_image, [path] * 200))
    assert len(images) == 200
    assert warnings.filters == before
    with pytest.raises(Image.DecompressionBombWarning):
        Image.open(path)


# ------------------------------------------------------------------------------------------------- the network input
def test_preprocess_of_a_flat_image_by_hand():
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.25, 0.5)
    got = preprocess(Image.new("RGB", (30, 10), (51, 102, 255)), 4, mean, std, "bilinear")
    expected = torch.tensor([(0.2 - 0.5) / 0.2, (0.4 - 0.4) / 0.25, (1 - 0.3) / 0.5])
    assert got.shape == (3, 4, 4)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, expected[:, None, None].expand(3, 4, 4))


def test_preprocess_squashes_and_crops_nothing():
    wide = np.zeros((20, 60, 3), np.uint8)
    wide[:, :15] = 255  # the left quarter
    got = preprocess(Image.fromarray(wide), 8, (0, 0, 0), (1, 1, 1), "bilinear")
    assert (got[:, :, 0] == 1).all()
    assert (got[:, :, 3:] == 0).all()
    assert got[0, 0].mean().item() == pytest.approx(0.25, abs=0.01)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_preprocess_agrees_with_another_antialiased_resize(interpolation):
    image = np.random.default_rng(3).integers(0, 256, (90, 41, 3), dtype=np.uint8)
    mean, std = torch.tensor([0.48, 0.46, 0.41], dtype=torch.float64), torch.tensor([0.27, 0.26, 0.28]).double()
    exact = torch.nn.functional.interpolate(
        torch.from_numpy(image).double().permute(2, 0, 1)[None], (37, 37), mode=interpolation, antialias=True
    )[0]
    expected = (exact.clamp(0, 255) / 255 - mean[:, None, None]) / std[:, None, None]
    got = preprocess(Image.fromarray(image), 37, mean.tolist(), std.tolist(), interpolation)
    # Pillow rounds to whole grey levels after each of its two passes
    torch.testing.assert_close(got.double(), expected, rtol=0, atol=1.5 / 255 / 0.26)


def test_bicubic_and_bilinear_differ_and_others_are_refused():
    image = Image.fromarray(COLOUR)
    args = (image, 16, (0, 0, 0), (1, 1, 1))
    assert not torch.equal(preprocess(*args, "bicubic"), preprocess(*args, "bilinear"))
    with pytest.raises(ConfigError, match="interpolation = 'lanczos': choose one of bicubic, bilinear"):
        preprocess(*args, "lanczos")


# ------------------------------------------------------------------------------------------------------------- masks
def test_masks_of_every_kind_say_the_same(tmp_path):
    truth = np.zeros((6, 8), bool)
    truth[2:4, 3:7] = True
    grey = truth.astype(np.uint8) * 255
    two = Image.fromarray(truth.astype(np.uint8)).convert("P")
    two.putpalette([0, 0, 0, 255, 255, 255])
    red = np.zeros((6, 8, 3), np.uint8)
    red[truth] = (255, 0, 0)
    kinds = {
        "grey": grey,
        "one_bit": Image.fromarray(truth),
        "indices": truth.astype(np.uint8) * 2,  # VisA: the number of the defect's class
        "deep": truth.astype(np.uint16) * 65535,
        "deep_indices": truth.astype(np.uint16),
        "palette": two,
        "red": red,
        "alpha": np.dstack([grey, grey, grey, np.full_like(grey, 255)]),
    }
    for kind, content in kinds.items():
        got = read_mask(saved(tmp_path / f"{kind}.png", content), (8, 6))
        assert got.dtype == np.uint8
        np.testing.assert_array_equal(got, grey, err_msg=kind)
    np.testing.assert_array_equal(read_mask(saved(tmp_path / "a.bmp", grey)), grey)
    np.testing.assert_array_equal(read_mask(saved(tmp_path / "float.tif", truth.astype(np.float32))), grey)
    np.testing.assert_array_equal(read_mask(Drawn("m", Image.fromarray(truth)), (8, 6)), grey)


def test_an_empty_mask_stays_empty(tmp_path):
    assert not read_mask(saved(tmp_path / "a.png", np.zeros((4, 4), np.uint8))).any()


def test_a_mask_of_another_size_names_both(tmp_path):
    path = saved(tmp_path / "000_mask.png", GREY)
    with pytest.raises(DataError, match=r"000_mask\.png is 7 x 5 pixels, test/cut/000\.png 5 x 7: "):
        read_mask(path, (5, 7), "test/cut/000.png")


LINE = np.zeros((8, 8), np.uint8)  # a block two pixels high and six wide, at an odd row
LINE[3:5, 1:7] = 255


def test_protocols_at_the_native_size_agree():
    for protocol, rule in (("clean", None), ("official", "eroded"), ("official", "dilated")):
        np.testing.assert_array_equal(resize_mask(LINE, 8, protocol, rule).numpy(), LINE > 0)


def test_protocols_by_hand():
    # 8 -> 4: nearest takes the pixels 1, 3, 5, 7 of each axis; antialiased bilinear weights the four pixels
    # 2i-1 .. 2i+2 by 1, 3, 3, 1. Row 1 sees rows 1..4 (weights on 3 and 4: 4/8), row 2 rows 3..6 (4/8).
    clean = resize_mask(LINE, 4, "clean").numpy()
    np.testing.assert_array_equal(clean, [[0, 0, 0, 0], [1, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    assert not resize_mask(LINE, 4, "official", "eroded").any()  # nowhere does all of the support lie in the block
    dilated = resize_mask(LINE, 4, "official", "dilated").numpy()
    np.testing.assert_array_equal(dilated, [[0, 0, 0, 0], [1, 1, 1, 1], [1, 1, 1, 1], [0, 0, 0, 0]])
    solid = np.zeros((8, 8), np.uint8)
    solid[1:7, 1:7] = 255
    eroded = resize_mask(solid, 4, "official", "eroded").numpy()
    np.testing.assert_array_equal(eroded, [[0, 0, 0, 0], [0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]])
    assert resize_mask(solid, 4, "official", "dilated").all()


def test_protocols_are_nested_and_accept_true_and_false():
    rng = np.random.default_rng(4)
    blob = np.zeros((97, 61), bool)
    blob[rng.integers(20, 40) : 70, 10:50] = True
    clean, eroded, dilated = (
        resize_mask(blob, 32, protocol, rule)
        for protocol, rule in (("clean", None), ("official", "eroded"), ("official", "dilated"))
    )
    assert (eroded <= clean).all()
    assert (clean <= dilated).all()
    assert 0 < eroded.sum() < dilated.sum()
    assert clean.dtype == torch.bool
    assert torch.equal(clean, resize_mask(blob.astype(np.uint8) * 255, 32))


def test_grey_levels_count_by_half_whole_or_at_all():
    soft = np.array([[0, 1, 127, 128, 254, 255]] * 6, np.uint8)
    counts = (
        resize_mask(soft, 6, "clean")[0].tolist(),
        resize_mask(soft, 6, "official", "eroded")[0].tolist(),
        resize_mask(soft, 6, "official", "dilated")[0].tolist(),
    )
    assert counts == ([0, 0, 0, 1, 1, 1], [0, 0, 0, 0, 0, 1], [0, 1, 1, 1, 1, 1])


def test_protocol_errors():
    for protocol, rule in (("official", None), ("official", "clean"), ("nearest", None)):
        with pytest.raises(ConfigError, match="choose clean, or official with eroded or dilated"):
            resize_mask(LINE, 4, protocol, rule)


def test_official_rules():
    rules = {name: official_rule(name) for name in ("mvtec_ad", "btad", "visa")}
    assert rules == {"mvtec_ad": "eroded", "btad": "eroded", "visa": "dilated"}


# -------------------------------------------------------------------------------------------------------- content key
def test_content_key_follows_the_bytes_alone(tmp_path):
    a, b = saved(tmp_path / "a.png", GREY), saved(tmp_path / "b.png", GREY)
    assert content_key(a) == content_key(b) == hashlib.blake2b(a.read_bytes(), digest_size=20).hexdigest()
    saved(b, 255 - GREY)
    assert content_key(a) != content_key(b)


def test_content_key_of_a_drawn_picture(tmp_path):
    one, same, other = (Drawn(key, Image.fromarray(GREY)) for key in ("tile/0", "tile/0", "tile/1"))
    assert content_key(one) == content_key(same) != content_key(other)
    file = tmp_path / "key"
    file.write_text("tile/0")
    assert content_key(file) != content_key(one)  # a file that holds the key is another picture


def test_describe(tmp_path):
    assert images.describe(tmp_path / "a.png") == str(tmp_path / "a.png")
    assert images.describe(Drawn("tile/0", Image.fromarray(GREY))) == "tile/0"
