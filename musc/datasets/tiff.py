"""TIFF files whose kind of pixels Pillow has no mode for: float64, float16, colour in floats, any number of channels.

Pillow unpacks strips and tiles of any file whose directory it likes. So the file gets a second directory that calls
the same bytes one channel of 8, 16 or 32 bits, and the values are taken out of what Pillow then returns.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin

from musc.errors import DataError

SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # the last two: BigTIFF
COMPRESSIONS = {1: "none", 5: "LZW", 8: "deflate", 32946: "deflate", 32773: "PackBits"}  # lossless, by the byte
WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, STRIPS, SAMPLES = 256, 257, 258, 259, 262, 273, 277
ROWS, STRIP_BYTES, PLANAR, PREDICTOR, TILE_WIDTH, SAMPLE_FORMAT = 278, 279, 284, 317, 322, 339
KINDS = {1: "u", 2: "i", 3: "f"}  # SampleFormat to numpy's letter
NAMES = {"u": "whole numbers", "i": "signed whole numbers", "f": "floats"}


@dataclass(frozen=True)
class Channels:
    """values [H, W, C] in the file's own type."""

    values: NDArray[Any]


def kind_of(data: bytes) -> tuple[int, str]:
    """(bits, "u", "i" or "f") of a TIFF's first channel; (0, "") where its directory cannot be parsed."""
    try:
        tags = _tags(data)
        bits, number = tags.get(BITS, (1,))[0], tags.get(SAMPLE_FORMAT, 1)
        return int(bits), KINDS.get(number[0] if isinstance(number, tuple) else number, "")
    except Exception:  # said when the file is read
        return 0, ""


def channels(data: bytes, check: Callable[[tuple[int, int]], None]) -> Channels:
    """The values of a TIFF of one depth per channel. check: raises where (width, height) is too large.

    Raises DataError that says what the file holds, and the remedy, where Pillow cannot be brought to unpack it.
    """
    if data[:4] == SIGNATURES[3]:
        raise DataError("is a big-endian BigTIFF, which cannot be read here: save it as an ordinary TIFF.")
    tags = _tags(data)

    def tag(number: int, default: int) -> int:
        value = tags.get(number, default)
        return int(value[0] if isinstance(value, tuple) else value)

    W, H, C = tag(WIDTH, 0), tag(HEIGHT, 0), tag(SAMPLES, 1)
    bits, kind = tag(BITS, 1), KINDS.get(tag(SAMPLE_FORMAT, 1), "")
    check((W, H))
    depths = tags.get(BITS, (1,))
    holds = (
        f"is a TIFF of {W} x {H} pixels with {C} channel{'s' * (C > 1)} of {bits} bits "
        f"({NAMES.get(kind, 'another kind of number')}, compression {COMPRESSIONS.get(tag(COMPRESSION, 1), 'other')})"
    )
    strips, offsets = tags.get(STRIP_BYTES, ()), tags.get(STRIPS, ())
    if not (W and H and (offsets or TILE_WIDTH in tags)):
        raise ValueError("the directory is cut short")
    planes = C if tag(PLANAR, 1) == 2 else 1
    rows = min(tag(ROWS, H), H)
    plain = (
        0 < C <= 64 and kind and bits in (8, 16, 32, 64) and (kind, bits) != ("f", 8)
        and len(set(depths)) == 1 and tag(COMPRESSION, 1) in COMPRESSIONS and tag(PREDICTOR, 1) == 1
        and TILE_WIDTH not in tags and len(strips) == len(offsets) > 0 and (planes == 1 or H % rows == 0)
    )  # fmt: skip
    big = data[:4] in SIGNATURES[2:]
    if not plain or big:
        how = {"as a BigTIFF": big, "in tiles": TILE_WIDTH in tags, "with a predictor": tag(PREDICTOR, 1) != 1}
        said = "".join(f", {word}" for word, true in how.items() if true)
        raise DataError(
            f"{holds}{said}, which cannot be read here: save it in strips without a predictor, or as 8-bit grey or "
            "RGB, or as 16-bit grey."
        )
    order = "<" if data[:2] == b"II" else ">"
    word = min(bits, 32)  # what Pillow shall see: L, I;16 or I
    across = W * (C // planes) * (bits // word)
    directory = {
        WIDTH: [across], HEIGHT: [H * planes], BITS: [word], COMPRESSION: [tag(COMPRESSION, 1)], PHOTOMETRIC: [1],
        STRIPS: [int(o) for o in offsets], SAMPLES: [1], ROWS: [rows], STRIP_BYTES: [int(n) for n in strips],
        SAMPLE_FORMAT: [2 if word == 32 else 1],
    }  # fmt: skip
    with Image.open(io.BytesIO(_with_directory(data, directory, order)), formats=("TIFF",)) as image:
        image.load()
        words = np.array(image)  # [H * planes, across]
    words = words.astype(words.dtype.newbyteorder("="))
    if bits == 64 and order == ">":  # a number's two halves come in the file's order
        words = words.reshape(*words.shape[:-1], -1, 2)[..., ::-1].reshape(words.shape)
    values = np.ascontiguousarray(words).view(f"{kind}{bits // 8}")
    if planes > 1:
        return Channels(np.moveaxis(values.reshape(C, H, W), 0, -1))
    return Channels(values.reshape(H, W, C))


def _tags(data: bytes) -> dict[int, Any]:
    """The first directory as Pillow parses it; single values and tuples as they come."""
    directory = TiffImagePlugin.ImageFileDirectory_v2(data[: 16 if data[:4] == SIGNATURES[2] else 8])
    file = io.BytesIO(data)
    file.seek(directory.next)
    directory.load(file)
    many = (BITS, STRIPS, STRIP_BYTES)
    found = {number: directory.get(number) for number in list(directory)}
    return {n: (v if isinstance(v, tuple) else (v,)) if n in many else v for n, v in found.items() if v is not None}


def _with_directory(data: bytes, tags: dict[int, list[int]], order: str) -> bytes:
    """The file with a directory of its own at the end, which the header names as the first one; all values LONG."""
    start = len(data) + len(data) % 2
    size = 2 + 12 * len(tags) + 4
    entries, behind = b"", b""
    for number, values in sorted(tags.items()):
        packed = struct.pack(f"{order}{len(values)}I", *values)
        if len(packed) > 4:
            packed, behind = struct.pack(f"{order}I", start + size + len(behind)), behind + packed
        entries += struct.pack(f"{order}HHI", number, 4, len(values)) + packed
    header = data[:4] + struct.pack(f"{order}I", start) + data[8:].ljust(start - 8, b"\0")
    return header + struct.pack(f"{order}H", len(tags)) + entries + b"\0\0\0\0" + behind
