"""Damaged and hostile image files: nothing but our error comes out of reading them, soon and without much memory."""

import io
import os
import struct
import tempfile
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, features
from plain_tiff import tiff

from musc.datasets import Sample
from musc.datasets.images import image_size, read_image
from musc.datasets.masks import load_mask, mask_like
from musc.datasets.values import value_range
from musc.errors import DataError

MUTATIONS = int(os.environ.get("MUSC_MUTATIONS", "250"))  # a nightly run sets thousands
RNG = np.random.default_rng(11)
SECONDS = 5


def originals():
    colour = Image.fromarray(RNG.integers(0, 256, (24, 20, 3), dtype=np.uint8))
    deep = Image.fromarray(RNG.integers(0, 4096, (24, 20)).astype(np.uint16))
    kinds = {
        "a.png": (colour, {}), "b.png": (colour.convert("P"), {"transparency": 3}), "c.png": (deep, {}),
        "d.jpg": (colour, {}), "e.jpg": (colour, {"progressive": True}), "f.tif": (colour, {"compression": "tiff_lzw"}),
        "g.tif": (deep, {}), "h.bmp": (colour, {}), "i.gif": (colour, {}), "j.webp": (colour, {}),
        "k.webp": (colour, {"lossless": True}), "l.ppm": (colour, {}), "m.tga": (colour, {"compression": "tga_rle"}),
        "n.jp2": (colour, {}), "o.pcx": (colour, {}), "p.dds": (colour, {}), "q.ico": (colour, {}),
        "r.sgi": (colour, {}),
    }  # fmt: skip
    if features.check("avif"):
        kinds["s.avif"] = (colour, {})
    files = {}
    for name, (image, options) in kinds.items():
        buffer = io.BytesIO()
        form = {"jpg": "JPEG", "tif": "TIFF", "jp2": "JPEG2000"}.get(name[2:], name[2:])
        image.save(buffer, format=form, **options)
        files[name] = buffer.getvalue()
    files["t.tif"] = tiff(RNG.random((12, 9, 5)).astype(np.float32))
    files["u.tif"] = tiff(RNG.random((12, 9)), deflate=True)
    files["v.tif"] = b"II+\0\x08\0\0\0" + struct.pack("<Q", 16) + files["t.tif"][8:]  # a BigTIFF, as far as that goes
    return files


ORIGINALS = originals()
NUMBERS = st.sampled_from([0, 1, 2, 127, 255, 256, 65535, 65536, 2**31 - 1, 2**32 - 1, 20_000, 100_000])


@st.composite
def damaged(draw):
    """(file name, bytes): one of the files, cut, spliced, or with bytes and numbers written over."""
    name = draw(st.sampled_from(sorted(ORIGINALS)))
    data = bytearray(ORIGINALS[name])
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        at = at % 96 if draw(st.booleans()) else at  # headers matter most
        match draw(st.sampled_from(["byte", "number", "short", "cut", "drop", "repeat", "noise"])):
            case "byte":
                data[at : at + 1] = bytes([draw(st.integers(0, 255))])
            case "number":
                data[at : at + 4] = struct.pack(draw(st.sampled_from("<>")) + "I", draw(NUMBERS))
            case "short":
                data[at : at + 2] = struct.pack(draw(st.sampled_from("<>")) + "H", draw(NUMBERS) % 65536)
            case "cut":
                del data[max(at, 1) :]
            case "drop":
                del data[at : at + draw(st.integers(1, 16))]
            case "repeat":
                data[at:at] = data[at : at + draw(st.integers(1, 64))]
            case "noise":
                data[at : at + 8] = draw(st.binary(min_size=8, max_size=8))
    return name, bytes(data)


@settings(max_examples=MUTATIONS, derandomize=True, deadline=None, database=None)
@given(damaged())
def test_only_our_errors_come_out(file):
    name, data = file
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(data)
        start = time.perf_counter()
        unnamed = 0
        for read in (read_image, image_size, load_mask, mask_like, lambda p: value_range([Sample(p.name, p)], None, 1)):
            try:
                found = read(path)
            except DataError as error:
                unnamed += name not in str(error)
            else:
                assert read is not read_image or found.mode == "RGB"
        assert unnamed == 0
        assert time.perf_counter() - start < SECONDS


def png(width, height, body=b""):
    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(body)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("width", "height"), [(2**31 - 1, 2**31 - 1), (60_000, 60_000), (30_000, 30_000), (1, 2**30)])
def test_bombs_are_refused_before_memory_is_taken(tmp_path, width, height):
    path = tmp_path / "bomb.png"
    path.write_bytes(png(width, height, bytes(10_000)))
    start = time.perf_counter()
    for read in (read_image, image_size, load_mask):
        with pytest.raises(DataError, match=r"bomb\.png is (too large to decode .*|damaged)"):
            read(path)
    assert time.perf_counter() - start < 1
    assert value_range([Sample("bomb", path)]).full_scale is None


def test_a_large_scan_is_read(tmp_path, monkeypatch):
    """Pillow refuses 179 megapixels; here its limit is scaled down, not the picture up."""
    path = tmp_path / "scan.jpg"
    Image.fromarray(RNG.integers(0, 256, (300, 400), dtype=np.uint8)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 300 * 400 // 3)
    assert read_image(path).size == image_size(path) == (400, 300)
    with pytest.raises(Image.DecompressionBombError):
        Image.open(path)


def test_too_little_memory_is_said(tmp_path, monkeypatch):
    from musc.datasets import decode

    path = tmp_path / "scan.jpg"
    Image.fromarray(RNG.integers(0, 256, (300, 400), dtype=np.uint8)).save(path)
    monkeypatch.setattr(decode, "LARGE", 1000)
    monkeypatch.setattr(decode, "_free_memory", lambda: 100_000)
    with pytest.raises(DataError, match=r"400 x 300 pixels, and 0\.0 GB of memory are free"):
        read_image(path)
    monkeypatch.setattr(decode, "_free_memory", lambda: None)  # not known here
    assert read_image(path).size == (400, 300)
