"""Bytes to pictures: what Pillow reads is read, and whatever it dislikes becomes one DataError with a remedy.

Nothing but regular files is opened, no format that would start another program, and no picture that claims more pixels
than its bytes or the memory can hold.
"""

from __future__ import annotations

import hashlib
import io
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TypeVar

from PIL import Image, UnidentifiedImageError

from musc.datasets import tiff
from musc.datasets.base import Source, printable
from musc.errors import DataError
from musc.saving import is_special, regular_file

MAX_PIXELS = 2**30  # a scan of 188 megapixels is real; a file that claims more than this is not
MAX_RATIO = 2000  # pixels per byte of a large file: more is a decompression bomb
LARGE = 2**26  # pixels from which on ratio and memory are looked at
# Formats that Pillow hands to another program (EPS to Ghostscript), or only recognises and cannot decode.
NEVER = frozenset(["EPS", "PDF", "WMF", "MPEG", "BUFR", "GRIB", "HDF5"])
SIGNATURES = (b"\x89PNG", b"\xff\xd8\xff", b"BM", *tiff.SIGNATURES, b"RIFF", b"GIF8")
TURNS = {  # by EXIF orientation; 5 to 8 swap width and height
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
T = TypeVar("T")


@cache
def readable_suffixes() -> dict[str, str]:
    """Format by file suffix (".png", lower case) of all that is read, plug-ins of Pillow included."""
    Image.init()
    return {s: f for s, f in Image.registered_extensions().items() if f in Image.OPEN and f not in NEVER} | {
        ".mpo": "JPEG"
    }


def formats_for(path: Path) -> tuple[str, ...]:
    """The decoders that are tried on a file: those that know their format by content, whatever the name says, and
    the one that the name asks for where a format has no signature (TGA)."""
    asked = readable_suffixes().get(path.suffix.lower())
    return tuple(f for f, (_, accept) in Image.OPEN.items() if f not in NEVER and (accept is not None or f == asked))


def is_picture(path: Path) -> bool:
    """Whether a file without an image's name is one by its content; only its header is read."""
    try:
        with regular_file(path) as file, quiet(), Image.open(file, formats=formats_for(path)):
            return True
    except Exception:  # whatever is wrong with it: no picture that we could read
        return False


def content_key(source: Source) -> str:
    """Hexadecimal BLAKE2b digest of the file's bytes, or of a drawn picture's key: equal keys mean equal pixels.

    File names and times take no part, so an image that was changed in place has another key. Raises DataError where
    the file cannot be read.
    """
    if isinstance(source, Path):
        return hashlib.blake2b(file_bytes(source), digest_size=20).hexdigest()
    return hashlib.blake2b(source.key.encode(), digest_size=20, person=b"drawn").hexdigest()


def describe(source: Source) -> str:
    """The name of a source in messages, printable: its path, or the key of a drawn picture."""
    return printable(str(source)) if isinstance(source, Path) else source.key


def file_bytes(path: Path) -> bytes:
    """The content of a file. Raises DataError where it is missing, unreadable, empty, or no regular file."""
    name = describe(path)
    if is_special(path):
        raise DataError(f"{name} is a pipe, socket or device, not a file: remove it from the images.")
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{name} does not exist: check the path, or list the folder again.") from None
    except PermissionError:
        raise DataError(f"{name} cannot be read, permission denied: allow reading it (chmod +r).") from None
    except OSError as error:
        raise DataError(f"{name} cannot be read ({os.strerror(error.errno or 0)}): is it a readable file?") from None
    except ValueError as error:  # a NUL byte in the name
        raise DataError(f"{name} cannot be read ({error}): check the path.") from None
    except MemoryError:
        raise DataError(f"{name} is larger than the free memory: save it as several smaller images.") from None
    if not data:
        raise DataError(f"{name} is empty (0 bytes): copy it again from where it came, or remove it.")
    return data


def decode(
    source: Path,
    convert: Callable[[Image.Image], T],
    *,
    load: bool = True,
    other: Callable[[tiff.Channels], T] | None = None,
    data: bytes | None = None,
) -> T:
    """`convert` of the picture in a file; with `load` its pixels are decoded and turned upright first.

    other: of the channels of a TIFF whose kind of pixels Pillow has no mode for (None: such a file is refused).
    Raises DataError, whatever the decoder dislikes.
    """
    data = file_bytes(source) if data is None else data
    name = describe(source)
    try:
        with quiet(), Image.open(io.BytesIO(data), formats=formats_for(source)) as image:
            check_size(image.size, len(data))
            if load:
                image.load()
            return convert(upright(image) if load else image)
    except DataError as error:
        raise DataError(f"{name} {error}") from None
    except UnidentifiedImageError:
        if data[:4] in tiff.SIGNATURES and other is not None:
            return _decode_tiff(name, data, other)
        raise DataError(f"{name} {_what_it_is(data)}: export it again, or remove it.") from None
    except (Image.DecompressionBombError, MemoryError) as error:
        raise DataError(f"{name} {_too_large(str(error) or 'out of memory')}") from None
    except Exception as error:  # on damaged bytes Pillow's decoders raise nearly any class
        raise DataError(
            f"{name} is damaged or cut short ({error}): copy it again from where it came, or remove it."
        ) from None


def _decode_tiff(name: str, data: bytes, convert: Callable[[tiff.Channels], T]) -> T:
    try:
        with quiet():
            return convert(tiff.channels(data, lambda size: check_size(size, len(data))))
    except DataError as error:
        raise DataError(f"{name} {error}") from None
    except Exception:
        raise DataError(
            f"{name} is damaged or cut short near its beginning: copy it again from where it came, or remove it."
        ) from None


def check_size(size: tuple[int, int], file_size: int) -> None:
    """Raises DataError, before memory is taken, where so many pixels cannot be meant or do not fit."""
    pixels = size[0] * size[1]
    if pixels > MAX_PIXELS or (pixels > LARGE and pixels > MAX_RATIO * file_size):
        raise DataError(_too_large(f"it claims {size[0]} x {size[1]} pixels in {file_size} bytes"))
    free = _free_memory() if pixels > LARGE else None
    if free is not None and 8 * pixels > free:  # decoded and converted: two copies of up to 4 bytes a pixel
        raise DataError(_too_large(f"{size[0]} x {size[1]} pixels, and {free / 1e9:.1f} GB of memory are free"))


def _too_large(why: str) -> str:
    return f"is too large to decode ({why}): save it as several smaller images, or scale it down."


def _free_memory() -> int | None:
    try:
        with open("/proc/meminfo", encoding="ascii", errors="replace") as file:
            found = next(line for line in file if line.startswith("MemAvailable"))
        return int(found.split()[1]) * 1024
    except (OSError, StopIteration, ValueError, IndexError):  # no Linux
        return None


def _what_it_is(data: bytes) -> str:
    head = data[:512]
    printables = sum(32 <= byte < 127 or byte in (9, 10, 13) for byte in head)
    if head.startswith(SIGNATURES):
        return "is damaged or cut short near its beginning"
    if printables > 0.95 * len(head):
        return f"is text, not an image (it begins {head[:24].decode(errors='replace')!r})"
    return f"is not in an image format known here (it begins with the bytes {head[:8].hex(' ')})"


def orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 where there is none or its block is broken, which makes no pixel bad."""
    try:
        return int(image.getexif().get(0x0112, 1))
    except Exception:
        return 1


def upright(image: Image.Image) -> Image.Image:
    """The picture as its EXIF orientation wants it shown."""
    turn = TURNS.get(orientation(image))
    return image if turn is None else image.transpose(turn)


_reading = 0
_reading_lock = threading.Lock()
_pillows_limit: int | None = None


@contextmanager
def quiet() -> Iterator[None]:
    """While a picture is read, Pillow's own warnings (odd EXIF, large images) are off, and its limit of 179 megapixels
    is ours (`MAX_PIXELS`).

    The first reader sets both and the last restores them: `warnings.catch_warnings` restores the wrong state when
    threads, which read ahead, leave it in another order than they came.
    """
    global _reading, _pillows_limit
    with _reading_lock:
        _reading += 1
        if _reading == 1:
            warnings.filterwarnings("ignore", module=r"PIL\.")
            _pillows_limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, MAX_PIXELS // 2  # it raises from twice on
    try:
        yield
    finally:
        with _reading_lock:
            _reading -= 1
            if _reading == 0:
                mine = [f for f in warnings.filters if f[0] == "ignore" and getattr(f[3], "pattern", "") == r"PIL\."]
                for entry in mine:
                    warnings.filters.remove(entry)  # type: ignore[attr-defined]
                Image.MAX_IMAGE_PIXELS = _pillows_limit
