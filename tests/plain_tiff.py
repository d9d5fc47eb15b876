"""A TIFF writer of a few lines, for kinds of pixels that Pillow cannot write."""

import struct
import zlib

import numpy as np


def tiff(array, *, order="<", deflate=False, planar=False, strips=1, tags=None):
    """The bytes of a TIFF with the values of `array` [H, W] or [H, W, C]; `tags`: further ones, number to integers."""
    array = array[..., None] if array.ndim == 2 else array
    H, W, C = array.shape
    array = array.astype(array.dtype.newbyteorder(order))
    planes = [array[..., c] for c in range(C)] if planar else [array]
    rows = H // strips
    parts = [plane[r : r + rows].tobytes() for plane in planes for r in range(0, H, rows)]
    parts = [zlib.compress(part) for part in parts] if deflate else parts
    offsets = np.cumsum([8, *map(len, parts)])
    entries = {
        256: [W], 257: [H], 258: [8 * array.itemsize] * C, 259: [8 if deflate else 1], 262: [2 if C == 3 else 1],
        273: offsets[:-1].tolist(), 277: [C], 278: [rows], 279: [len(part) for part in parts],
        284: [2 if planar else 1], 339: [{"u": 1, "i": 2, "f": 3}[array.dtype.kind]] * C,
    } | (tags or {})  # fmt: skip
    start = int(offsets[-1])
    directory, behind = struct.pack(f"{order}H", len(entries)), b""
    for number, values in sorted(entries.items()):
        packed = struct.pack(f"{order}{len(values)}I", *values)
        if len(packed) > 4:
            at = start + 6 + 12 * len(entries) + len(behind)
            packed, behind = struct.pack(f"{order}I", at), behind + packed
        directory += struct.pack(f"{order}HHI", number, 4, len(values)) + packed
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", start)
    return head + b"".join(parts) + directory + b"\0\0\0\0" + behind
