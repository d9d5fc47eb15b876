"""Images of more than 8 bits share one scale; kinds of pixels that Pillow has no mode for are read, or explained."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile, TiffImagePlugin
from plain_tiff import tiff

from musc import MuSc
from musc.datasets import Sample, altered, load_category
from musc.datasets.images import content_key, image_size, read_image
from musc.datasets.values import Scaled, value_range
from musc.errors import DataError
from musc.stream import Stream, score_against

RNG = np.random.default_rng(5)
GREY = RNG.integers(0, 256, (6, 9), dtype=np.uint8)


def samples(folder, **pictures):
    """One sample per picture: an array (PNG, or TIFF where it holds floats) or the bytes of a file."""
    folder.mkdir(exist_ok=True)
    found = []
    for name, picture in pictures.items():
        if isinstance(picture, bytes):
            path = folder / f"{name}.tif"
            path.write_bytes(picture)
        else:
            path = folder / f"{name}.{'tif' if picture.dtype.kind == 'f' else 'png'}"
            Image.fromarray(picture).save(path)
        found.append(Sample(path.name, path))
    return found


def read(given, **options):
    """(grey levels of each, what was decided)"""
    values = value_range(given, **options)
    return [np.array(read_image(s.image))[..., 0] for s in values.applied(given)], values


def deep_png(pixels, bits=16, sbit=None):
    """The bytes of a colour PNG with 16 bits per channel, which Pillow does not write."""
    H, W, C = pixels.shape

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    head = struct.pack(">IIBBBBB", W, H, bits, {1: 0, 3: 2, 4: 6}[C], 0, 0, 0)
    said = chunk(b"sBIT", bytes([sbit] * C)) if sbit else b""
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + said + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )


# ------------------------------------------------------------------------------------------------------------ integers
@pytest.mark.parametrize("bits", [8, 10, 12, 14])
def test_the_bits_of_the_brightest_image_count_for_all(tmp_path, bits):
    full = 2**bits - 1
    bright, dark = np.rint(GREY / 255 * full).astype(np.uint16), np.rint(GREY / 255 * full / 8).astype(np.uint16)
    bright[0, 0] = full
    (a, b), values = read(samples(tmp_path, a=bright, b=dark))
    expected = GREY.copy()
    expected[0, 0] = 255
    np.testing.assert_array_equal(a, expected)
    assert np.abs(b.astype(int) - np.rint(GREY / 8)).max() <= 1  # an eighth as bright, not stretched
    assert values.full_scale == full
    assert f"values need {bits} bits: read as {bits} bits, 0..{full}" in values.notes[0]


def test_the_full_range_of_16_bits_stays_what_it_was(tmp_path):
    given = samples(tmp_path, a=np.array([[0, 257, 65535]], np.uint16), b=np.array([[0, 300, 4095]], np.uint16))
    values = value_range(given)
    assert values.applied(given) == tuple(given)
    assert (values.full_scale, values.notes[1:]) == (65535, ())
    np.testing.assert_array_equal(read(given)[0][1], [[0, 1, 16]])


def test_eight_bits_are_left_alone_and_not_decoded(tmp_path, monkeypatch):
    given = samples(tmp_path, a=GREY, b=np.dstack([GREY] * 3), c=(GREY * 16.0).astype(np.uint16))
    loaded = []
    load = ImageFile.ImageFile.load
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: loaded.append(self.mode) or load(self))
    applied = value_range(given).applied(given)
    assert set(loaded) <= {"I;16"}
    assert applied[:2] == tuple(given[:2])
    assert isinstance(applied[2].image, Scaled)


def test_few_bright_values_are_said(tmp_path):
    frames = {f"f{i}": RNG.integers(0, 4096, (60, 60)).astype(np.uint16) for i in range(3)}
    frames["f1"][5, 5] = 65535  # a dead pixel
    values = value_range(samples(tmp_path, **frames))
    assert values.full_scale == 65535
    assert "99.9 % of the values lie below 409" in values.notes[0]
    assert value_range(samples(tmp_path, **frames), 4095).notes == ()


def test_tags_say_more_than_dark_values(tmp_path):
    dark = (GREY // 4).astype(np.uint16)
    folder = tmp_path / "png"
    given = samples(folder, a=dark)
    grey = np.repeat(dark[..., None], 1, axis=2)
    given[0].image.write_bytes(deep_png(grey, sbit=12))
    assert value_range(given).full_scale == 4095
    for name, tags in (("smax", {341: [1023]}), ("max", {281: [1000]})):
        assert value_range(samples(tmp_path / name, a=tiff(dark, tags=tags))).full_scale == 1023
    lying = samples(tmp_path / "lying", a=tiff(dark + np.uint16(5000), tags={341: [1023]}))
    assert value_range(lying).full_scale == 2**14 - 1  # the values exceed what the tag allows


def test_pgm_says_its_largest_value_itself(tmp_path):
    path = tmp_path / "a.pgm"
    path.write_bytes(b"P5\n4 1\n1023\n" + np.array([0, 100, 200, 300], ">u2").tobytes())
    (grey,), _ = read([Sample("a", path)])
    np.testing.assert_array_equal(grey, np.rint(np.array([[0, 100, 200, 300]]) / 1023 * 255))


@pytest.mark.parametrize("channels", [3, 4])
def test_colour_of_12_bits_in_16(tmp_path, channels):
    deep = RNG.integers(0, 4096, (7, 5, channels)).astype(np.uint16)
    deep[0, 0] = 4095
    png, tif = tmp_path / "a.png", tmp_path / "b.tif"
    png.write_bytes(deep_png(deep))
    tif.write_bytes(tiff(deep[..., :3]))
    given = [Sample("a", png), Sample("b", tif)]
    values = value_range(given)
    assert values.full_scale == 4095
    for s in values.applied(given):
        np.testing.assert_array_equal(np.array(read_image(s.image)), np.rint(deep[..., :3] / 4095 * 255))
        assert image_size(s.image) == (5, 7)


def test_colour_in_the_full_range_is_read_as_ever(tmp_path):
    path = tmp_path / "a.png"
    deep = RNG.integers(0, 65536, (7, 5, 3)).astype(np.uint16)
    path.write_bytes(deep_png(deep))
    (s,) = value_range([Sample("a", path)]).applied([Sample("a", path)])
    assert s.image == path
    np.testing.assert_array_equal(np.array(read_image(s.image)), deep >> 8)


def test_more_than_16_bits_want_to_be_told(tmp_path):
    given = samples(tmp_path, a=tiff(np.array([[0, 100_000]], np.uint32)))
    with pytest.raises(DataError, match=r"a\.tif holds values up to 100000, more than 16 bits: give .* as full_scale"):
        value_range(given)
    np.testing.assert_array_equal(read(given, full_scale=200_000)[0][0], [[0, 128]])


def test_a_value_above_white_is_named(tmp_path):
    given = samples(tmp_path, a=np.array([[0, 5000]], np.uint16))
    (s,) = value_range(given, 4095).applied(given)
    with pytest.raises(DataError, match=r"a\.png holds values from 0 to 5000, .* 0\.\.4095 \(full_scale\)") as raised:
        read_image(s.image)
    assert str(raised.value).count("a.png") == 1


# -------------------------------------------------------------------------------------------------------------- floats
@pytest.mark.parametrize("white", [1.0, 255.0, 65535.0])
def test_floats_share_their_unit(tmp_path, white):
    given = samples(tmp_path, a=(GREY / 255 * white).astype(np.float32), b=np.zeros((4, 4), np.float32))
    given[0].image.write_bytes(tiff((np.maximum(GREY, 1) / 255 * white).astype(np.float32)))
    (a, b), values = read(given)
    assert values.full_scale == (1 if GREY.max() / 255 * white <= 1 else white)
    np.testing.assert_array_equal(a, np.maximum(GREY, 1))
    assert not b.any()


def test_black_floats_and_black_integers(tmp_path):
    assert value_range(samples(tmp_path, a=np.zeros((4, 4), np.float32))).full_scale == 1
    assert value_range(samples(tmp_path / "whole", a=np.zeros((4, 4), np.uint16))).full_scale == 255


@pytest.mark.parametrize(("odd", "value"), [(1.02, "1.02"), (200.0, "200")])
def test_one_pixel_changes_no_scale_in_silence(tmp_path, odd, value):
    frames = {f"f{i}": RNG.random((5, 5)).astype(np.float32) for i in range(8)}
    frames["f3"][2, 2] = odd
    with pytest.raises(
        DataError, match=rf"f3\.tif holds values up to {value}, and 7 of 8 float images lie within 0\.\.1"
    ):
        value_range(samples(tmp_path, **frames))
    assert value_range(samples(tmp_path, **frames), 255).full_scale == 255


def test_floats_beside_wide_integers(tmp_path):
    given = samples(tmp_path, a=RNG.random((5, 5)).astype(np.float32), b=np.full((5, 5), 3000, np.uint16))
    with pytest.raises(DataError, match=r"a\.tif holds floats and b\.png whole numbers .* full_scale"):
        value_range(given)


def test_a_file_of_nan_does_not_stop_the_others(tmp_path):
    broken = np.array([[np.nan, 1]], np.float32)
    given = samples(tmp_path, a=RNG.random((5, 5)).astype(np.float32), b=broken, c=-np.ones((2, 2), np.float32))
    applied = value_range(given).applied(given)
    assert read_image(applied[0].image).size == (5, 5)
    for s, why in zip(applied[1:], (r"b\.tif holds NaN or infinity", "rescale it"), strict=True):
        with pytest.raises(DataError, match=why):
            read_image(s.image)


@pytest.mark.parametrize("content", [b"", b"words", b"II*\0", b"MM\0*\0\0\0\x08\0\x05", b"\x89PNG\r\n\x1a\n"])
def test_what_cannot_be_read_decides_nothing(tmp_path, content):
    given = samples(tmp_path, a=(GREY * 16.0).astype(np.uint16), b=content)
    given.append(Sample("gone", tmp_path / "gone.png"))
    assert value_range(given).full_scale == 4095


# ------------------------------------------------------------------------------ kinds that Pillow has no mode for
KINDS = {
    "float64": RNG.random((6, 4)), "float16": RNG.random((6, 4)).astype(np.float16),
    "float_rgb": RNG.random((6, 4, 3)).astype(np.float32), "float64_rgb": RNG.random((6, 4, 3)),
    "five": RNG.integers(0, 256, (6, 4, 5), dtype=np.uint8), "two": RNG.integers(0, 256, (6, 4, 2), dtype=np.uint8),
    "wide_two": RNG.integers(0, 65536, (6, 4, 2), dtype=np.uint16), "seven": RNG.random((6, 4, 7)).astype(np.float32),
    "int64": RNG.integers(0, 65536, (6, 4)).astype(np.int64),
}  # fmt: skip


@pytest.mark.parametrize(
    "options", [{}, {"order": ">"}, {"deflate": True}, {"strips": 3}, {"planar": True, "strips": 2}]
)
@pytest.mark.parametrize("kind", KINDS)
def test_unusual_tiffs(tmp_path, kind, options):
    array = KINDS[kind]
    path = tmp_path / "a.tif"
    path.write_bytes(tiff(array, **options))
    shown = array if array.ndim == 2 else array[..., 0] if array.shape[2] < 3 else array[..., :3]
    scale = {"f": 255, "u": 1 if array.itemsize == 1 else 255 / 65535, "i": 255 / 65535}[array.dtype.kind]
    expected = np.rint(shown.astype(float) * scale)
    got = np.array(read_image(path))
    np.testing.assert_array_equal(got if expected.ndim == 3 else got[..., 0], expected)
    assert image_size(path) == (4, 6)


def test_what_cannot_be_read_is_described(tmp_path):
    path = tmp_path / "a.tif"
    path.write_bytes(tiff(RNG.random((6, 4)), deflate=True, tags={317: [3]}))  # a predictor
    with pytest.raises(
        DataError, match=r"a\.tif is a TIFF of 4 x 6 pixels with 1 channel of 64 bits \(floats, compress"
    ):
        read_image(path)
    path.write_bytes(tiff(RNG.random((6, 4)))[:-100])
    with pytest.raises(DataError, match=r"a\.tif is damaged or cut short"):
        read_image(path)


WRITTEN_BY_OTHERS = {
    "float64 in tiles": (RNG.random((32, 48)), {"tile": (16, 16)}, "in tiles"),
    "five channels in tiles": (RNG.integers(0, 9, (32, 48, 5), np.uint16), {"tile": (16, 16)}, "in tiles"),
    "deflated, in tiles": (RNG.random((32, 48)), {"tile": (16, 16), "compression": "zlib"}, "in tiles"),
    "float64 as a BigTIFF": (RNG.random((32, 48)), {"bigtiff": True}, "as a BigTIFF"),
    "colour floats as a BigTIFF": (RNG.random((32, 48, 3)), {"bigtiff": True}, "as a BigTIFF"),
    "the other byte order": (RNG.random((32, 48)), {"bigtiff": True, "byteorder": ">"}, "big-endian BigTIFF"),
    "8 bits as a BigTIFF": (RNG.integers(0, 256, (32, 48), np.uint8), {"bigtiff": True}, None),
    "8 bits in tiles": (RNG.integers(0, 256, (32, 48, 3), np.uint8), {"tile": (16, 16)}, None),
    "8 bits with a predictor": (RNG.integers(0, 256, (32, 48, 3), np.uint8), {"predictor": 2, "compression": 8}, None),
}


@pytest.mark.parametrize("kind", WRITTEN_BY_OTHERS)
def test_tiffs_of_another_writer_are_read_or_what_stands_in_the_way_is_named(kind, tmp_path):
    tifffile = pytest.importorskip("tifffile", reason="comes with scikit-image, the extra `pretrain`")
    array, options, obstacle = WRITTEN_BY_OTHERS[kind]
    meaning = {"photometric": "rgb"} if array.shape[2:] == (3,) else {"photometric": "minisblack"}
    tifffile.imwrite(
        tmp_path / "a.tif", array, planarconfig="contig" if array.ndim == 3 else None, **meaning, **options
    )
    if obstacle is None:
        got = np.array(read_image(tmp_path / "a.tif"))
        np.testing.assert_array_equal(got if array.ndim == 3 else got[..., 0], array)
    else:
        with pytest.raises(DataError, match=rf"a\.tif is .*{obstacle}.*save it"):
            read_image(tmp_path / "a.tif")


# ----------------------------------------------------------------------------------------------------- in the pipeline
@pytest.fixture
def mono12(tmp_path):
    """Frames of a 12-bit camera in 16-bit files, and the same scene in 8 bits."""
    y, x = np.mgrid[:64, :64]
    for i in range(7):
        scene = 0.4 + 0.1 * np.sin(x / 6 + 0.1 * i) + 0.08 * np.cos(y / 9) + RNG.normal(0, 0.01, (64, 64))
        if i == 0:
            scene[20:30, 20:30] += 0.06
        for kind, full, dtype in (("eight", 255, np.uint8), ("twelve", 4095, np.uint16)):
            (tmp_path / kind).mkdir(exist_ok=True)
            Image.fromarray(np.rint(scene * full).astype(dtype)).save(tmp_path / kind / f"{i}.png")
    return tmp_path


def test_a_run_reads_twelve_bits_as_eight_and_stores_it(mono12, tiny_config, tiny_backbone):
    musc = MuSc(tiny_config, backbone=tiny_backbone)
    eight, twelve = musc.run(mono12 / "eight"), musc.run(mono12 / "twelve")
    assert twelve.config.full_scale == 4095
    assert eight.config == tiny_config
    assert any("need 12 bits" in note for note in twelve.notes)
    np.testing.assert_allclose(twelve.raw_image_scores, eight.raw_image_scores, rtol=0.15)
    again = MuSc(twelve.config, backbone=tiny_backbone).run(mono12 / "twelve")
    np.testing.assert_array_equal(again.raw_image_scores, twelve.raw_image_scores)
    assert musc.fingerprint(load_category(None, mono12 / "twelve")) == twelve.fingerprint


def test_references_and_images_share_the_scale(mono12, tmp_path, tiny_config, tiny_backbone):
    bright = samples(tmp_path / "normal", a=np.full((8, 8), 16000, np.uint16))
    pool = [s.image for s in bright]
    result = MuSc(tiny_config, backbone=tiny_backbone).run(mono12 / "twelve", pool)
    assert result.config.full_scale == 2**14 - 1


def test_new_images_are_read_as_their_pool(mono12, tmp_path, tiny_config, tiny_backbone):
    cache = tmp_path / "cache"
    config = tiny_config.replace(windows=())
    earlier = MuSc(config, backbone=tiny_backbone, cache=cache).run(mono12 / "twelve")
    pixels = np.array(Image.open(mono12 / "twelve/1.png")) // 8  # dark: alone it would pass for 8 or 10 bits
    given = samples(tmp_path / "new", dark=pixels, glare=np.full((64, 64), 5000, np.uint16))
    result = score_against([s.image for s in given], earlier, device="cpu")
    assert result.config.full_scale == 4095
    assert len(result) == 1
    assert "5000" in result.skipped[0].reason
    keys = {content_key(Scaled(given[0].image, 4095))}
    assert set(result.keys) == keys


def test_the_first_image_of_a_stream_decides(mono12, tiny_config, tiny_backbone):
    stream = Stream(MuSc(tiny_config, backbone=tiny_backbone))
    paths = sorted((mono12 / "twelve").iterdir())
    for path in paths:
        stream.push(path)
    batch = MuSc(tiny_config, backbone=tiny_backbone).run(paths)
    np.testing.assert_allclose(stream.result().raw_image_scores, batch.raw_image_scores, atol=1e-5)
    assert stream.result().config.full_scale == 4095


def test_keys_depend_on_white(mono12):
    path = mono12 / "twelve/0.png"
    keys = {content_key(path), content_key(Scaled(path, 4095)), content_key(Scaled(path, 1023))}
    assert len(keys) == 3
    (sample,) = value_range([Sample("0", path)]).applied([Sample("0", path)])
    assert content_key(altered.lit(sample, 0.5).image) != content_key(altered.lit(Sample("0", path), 0.5).image)


def test_a_tiff_of_12_bits_per_sample(tmp_path):
    """Pillow reads packed 12 bits; the tag says that they are 12, however dark they are."""
    W, H = 4, 2
    values = np.array([[1, 2, 3, 100], [5, 6, 7, 200]])
    packed = bytearray()
    for a, b in values.reshape(-1, 2):
        packed += bytes([a >> 4, ((a & 15) << 4) | (b >> 8), b & 255])
    data = tiff(np.frombuffer(bytes(packed), np.uint8).reshape(H, -1), tags={256: [W], 258: [12]})
    path = tmp_path / "a.tif"
    path.write_bytes(data)
    with Image.open(path) as image:
        assert isinstance(image, TiffImagePlugin.TiffImageFile)
    (grey,), found = read([Sample("a", path)])
    assert found.full_scale == 4095
    np.testing.assert_array_equal(grey, np.rint(values / 4095 * 255))
