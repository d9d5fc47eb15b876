"""Images and masks from files to arrays: decoding, the square input of the network, the two mask protocols."""

from __future__ import annotations

import hashlib
import io
import os
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from musc.datasets.base import Source
from musc.errors import ConfigError, DataError

RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
FULL_RANGE_16 = 65535
TURNS = {  # by EXIF orientation; 5 to 8 swap width and height
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "GIF")  # by content; the other decoders are never tried
SIGNATURES = (b"\x89PNG", b"\xff\xd8\xff", b"BM", b"II*\0", b"MM\0*", b"RIFF", b"GIF8")
WIDE_MODES = ("I", "I;16", "I;16L", "I;16B", "I;16N", "F")  # what 8 bits cannot hold


def read_image(source: Source) -> Image.Image:
    """The picture of `source` in 8-bit RGB, upright.

    The EXIF orientation is applied. Grey, palette, CMYK and the like become RGB. 16-bit values v become
    round(v / 257): the full range 0..65535 is scaled, never clipped and never stretched to the values at hand, so
    that images stay comparable with each other. Of float images, values up to 1 mean 0..1, up to 255 mean 0..255,
    and larger ones 0..65535. Alpha is dropped, not blended, as in the paper's code path: in the files of inspection
    cameras it holds depth, validity or nothing but zeros, and blending would hide the product. Of several frames
    the first is read.

    Raises:
        DataError: the file is missing, unreadable, empty, cut short, no image, or has values outside these ranges.
    """
    return _decode(source, _to_rgb)


def image_size(source: Source) -> tuple[int, int]:
    """(width, height) in pixels of the upright picture, as `read_image(source).size` but without decoding it."""
    if not isinstance(source, Path):
        return source().size

    def upright(image: Image.Image) -> Image.Image:
        if image.format == "TIFF":  # which Pillow turns by itself, and whose size it swaps early or late
            image.load()
        width, height = image.size
        return Image.new("1", (height, width) if _orientation(image) >= 5 else (width, height))

    return _decode(source, upright, turn=False).size


def preprocess(
    image: Image.Image,
    size: int,
    mean: Sequence[float],
    std: Sequence[float],
    interpolation: str = "bicubic",
) -> Float[Tensor, "3 {size} {size}"]:
    """The square network input: squash to size x size, scale to [0, 1], subtract `mean`, divide by `std` (Sec. 4).

    The whole picture is squashed whatever its aspect, never cropped, so every pixel gets a score. The resampling is
    Pillow's, which antialiases, on 8-bit values: what the authors' released code does with `bicubic` for CLIP and
    with `bilinear` for DINO and DINOv2.

    Args:
        image: the picture; any mode that converts to RGB.
        size: side of the input in pixels.
        mean, std: three values each, in units of the [0, 1] range.
        interpolation: "bicubic" or "bilinear"; anything else raises ConfigError.
    """
    if interpolation not in RESAMPLING:
        raise ConfigError(f"interpolation = {interpolation!r}: choose one of {', '.join(RESAMPLING)}.")
    squashed = image.convert("RGB").resize((size, size), RESAMPLING[interpolation])
    pixels = torch.from_numpy(np.array(squashed)).permute(2, 0, 1).float() / 255  # [3, size, size]
    return (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


def read_mask(
    source: Source, image_size: tuple[int, int] | None = None, image_name: str = "its image"
) -> UInt8[np.ndarray, "H W"]:
    """The ground-truth mask at its native size in grey levels, 255 being fully anomalous.

    A mask whose values all lie below 128 holds class indices, as VisA's files do: any value but 0 counts as 255.
    Of a mask in colour the largest channel counts; the rest is as in `read_image`.

    Args:
        source: the mask's file, or a drawn mask.
        image_size: (width, height) in pixels of the image it belongs to, upright; None leaves it unchecked.
        image_name: the image's name for the error's text.

    Raises:
        DataError: as `read_image`, and where the mask's size is not the image's.
    """
    grey = np.array(_decode(source, _to_mask))
    height, width = grey.shape
    if image_size is not None and (width, height) != tuple(image_size):
        raise DataError(
            f"the mask {describe(source)} is {width} x {height} pixels, {image_name} {image_size[0]} x "
            f"{image_size[1]}: they must cover the same pixels, so export the mask again at the image's size."
        )
    return np.where(grey > 0, np.uint8(255), np.uint8(0)) if grey.max() < 128 else grey


def resize_mask(
    mask: UInt8[np.ndarray, "h w"] | Bool[np.ndarray, "h w"],
    size: int,
    protocol: str = "clean",
    rule: str | None = None,
) -> Bool[Tensor, "{size} {size}"]:
    """The mask at the size of the anomaly maps, squashed as the images are, in one of two protocols.

    `clean`: nearest neighbour, then > 0.5: a pixel is anomalous where the mask says so. The one for new data.
    `official`: what the authors' released code does. Bilinear with antialiasing, on 8-bit values, then by `rule`:
    "eroded" keeps the pixels that are still fully positive (= 1.0; MVTec AD, BTAD), "dilated" every pixel > 0
    (VisA). Fine defects shrink under the first (a line thinner than a pixel of the map vanishes) and grow under the
    second, so pixel metrics of the two protocols are not comparable. The paper mentions neither.

    Args:
        mask: grey levels 0..255 as `read_mask` gives them, or True where anomalous.
        size: side of the result in pixels.
        rule: see above and `official_rule`; only the official protocol uses it.

    Raises:
        ConfigError: unknown protocol, or the official one without its rule.
    """
    grey = Image.fromarray(mask.astype(np.uint8) * 255 if mask.dtype == bool else mask)
    if protocol == "clean":
        chosen = np.array(grey.resize((size, size), Image.Resampling.NEAREST)) > 127.5
    elif protocol == "official" and rule in ("eroded", "dilated"):
        soft = np.array(grey.resize((size, size), Image.Resampling.BILINEAR))
        chosen = soft == 255 if rule == "eroded" else soft > 0
    else:
        raise ConfigError(
            f"mask protocol {protocol!r} with rule {rule!r}: choose clean, or official with eroded or dilated."
        )
    return torch.from_numpy(chosen)


def official_rule(dataset: str) -> Literal["eroded", "dilated"]:
    """How the released code makes a resized mask binary: "dilated" for VisA, "eroded" for the MVTec layout's others."""
    return "dilated" if dataset == "visa" else "eroded"


def content_key(source: Source) -> str:
    """Hexadecimal BLAKE2b digest of the file's bytes, or of a drawn picture's key: equal keys mean equal pixels.

    File names and times take no part, so an image that was changed in place has another key. Raises DataError where
    the file cannot be read.
    """
    if isinstance(source, Path):
        return hashlib.blake2b(_bytes(source), digest_size=20).hexdigest()
    return hashlib.blake2b(source.key.encode(), digest_size=20, person=b"drawn").hexdigest()


def describe(source: Source) -> str:
    """The name of a source in messages: its path, or the key of a drawn picture."""
    return str(source) if isinstance(source, Path) else source.key


def _decode(source: Source, convert: Callable[[Image.Image], Image.Image], *, turn: bool = True) -> Image.Image:
    """The picture of `source` after `convert`; whatever the decoder dislikes becomes a DataError."""
    if not isinstance(source, Path):
        return convert(source())
    data = _bytes(source)
    try:
        with _quiet(), Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if turn:
                image.load()
            return convert(_upright(image) if turn else image)
    except DataError as error:
        raise DataError(f"{source} {error}") from None
    except UnidentifiedImageError:
        raise DataError(f"{source} {_what_it_is(data)}: export it again, or remove it.") from None
    except (Image.DecompressionBombError, MemoryError) as error:
        raise DataError(
            f"{source} is too large to decode ({str(error) or 'out of memory'}): cut it into tiles, or scale it down."
        ) from None
    except Exception as error:  # on damaged bytes Pillow's decoders raise nearly any class
        raise DataError(
            f"{source} is damaged or cut short ({error}): copy it again from where it came, or remove it."
        ) from None


def _bytes(path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path} does not exist: check the path, or list the folder again.") from None
    except PermissionError:
        raise DataError(f"{path} cannot be read, permission denied: allow reading it (chmod +r).") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read ({os.strerror(error.errno or 0)}): is it a readable file?") from None
    if not data:
        raise DataError(f"{path} is empty (0 bytes): copy it again from where it came, or remove it.")
    return data


def _what_it_is(data: bytes) -> str:
    head = data[:512]
    printable = sum(32 <= byte < 127 or byte in (9, 10, 13) for byte in head)
    if head.startswith(SIGNATURES):
        return "is damaged or cut short near its beginning"
    if printable > 0.95 * len(head):
        return f"is text, not an image (it begins {head[:24].decode(errors='replace')!r})"
    return f"is not in an image format known here (it begins with the bytes {head[:8].hex(' ')})"


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(0x0112, 1))
    except Exception:  # a broken EXIF block does not make the pixels bad
        return 1


def _upright(image: Image.Image) -> Image.Image:
    turn = TURNS.get(_orientation(image))
    return image if turn is None else image.transpose(turn)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in WIDE_MODES:
        return Image.fromarray(_eight_bits(image)).convert("RGB")
    if image.mode in ("P", "PA", "LA"):  # by way of RGBA: what is transparent keeps its own colour
        image = image.convert("RGBA")
    return image.convert("RGB")


def _to_mask(image: Image.Image) -> Image.Image:
    if image.mode in WIDE_MODES and image.mode != "F" and (values := np.array(image)).max() < 128:
        return Image.fromarray(values.clip(0).astype(np.uint8))  # class indices in a wide file: not to be scaled away
    return Image.fromarray(np.array(_to_rgb(image)).max(axis=2))  # the largest channel: a red mark is a mark


def _eight_bits(image: Image.Image) -> UInt8[np.ndarray, "H W"]:
    """A one-channel picture of more than 8 bits in 8 bits, its full range scaled (see `read_image`)."""
    values = np.array(image).astype(np.float64)
    low, high = values.min(), values.max()
    if not (np.isfinite(values).all() and low >= 0 and high <= FULL_RANGE_16):
        raise DataError(
            f"holds values from {low:g} to {high:g}, and images here have 0..1, 0..255 or 0..65535: rescale it, the "
            "same way for every image."
        )
    full = FULL_RANGE_16
    if image.mode == "F":
        full = 1 if high <= 1 else 255 if high <= 255 else FULL_RANGE_16
    return np.rint(values * (255 / full)).astype(np.uint8)


_reading = 0
_reading_lock = threading.Lock()


@contextmanager
def _quiet() -> Iterator[None]:
    """Pillow's own warnings (odd EXIF, large images) are off while a picture is read.

    A filter that the first reader sets and the last removes: `warnings.catch_warnings` restores the wrong state when
    threads, which read ahead, leave it in another order than they came.
    """
    global _reading
    with _reading_lock:
        _reading += 1
        if _reading == 1:
            warnings.filterwarnings("ignore", module=r"PIL\.")
    try:
        yield
    finally:
        with _reading_lock:
            _reading -= 1
            if _reading == 0:
                mine = [f for f in warnings.filters if f[0] == "ignore" and getattr(f[3], "pattern", "") == r"PIL\."]
                for entry in mine:
                    warnings.filters.remove(entry)  # type: ignore[attr-defined]
