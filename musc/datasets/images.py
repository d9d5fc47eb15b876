"""Images from files to arrays: decoding, and the input of the network. Masks are in `masks`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from musc.datasets.base import Sample, Source
from musc.datasets.decode import content_key, decode, describe, orientation
from musc.datasets.masks import official_rule, read_mask, resize_mask
from musc.datasets.values import WIDE_MODES, Scaled, to_rgb, visible
from musc.errors import ConfigError, DataError
from musc.sizes import Size, rows_columns

PAGED = (".tif", ".tiff", ".gif", ".webp", ".png", ".apng", ".avif")
NAMED = 4
RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}

__all__ = [
    "content_key", "describe", "frames_note", "image_size", "official_rule", "preprocess", "read_image", "read_mask",
    "resize_mask",
]  # fmt: skip


def read_image(source: Source) -> Image.Image:
    """The picture of `source` in 8-bit RGB, upright.

    The EXIF orientation is applied. Grey, palette, CMYK and the like become RGB. 16-bit values v become
    round(v / 257): the full range 0..65535 is scaled, never clipped and never stretched to the values at hand, so
    that images stay comparable with each other. Of float images, values up to 1 mean 0..1, up to 255 mean 0..255,
    and larger ones 0..65535. A run decides both for all its images at once instead (`values.value_range`). Alpha is
    dropped, not blended, as in the paper's code path: in the files of inspection cameras it holds depth, validity or
    nothing but zeros, and blending would hide the product. Of several frames the first is read, of more than four
    channels the first three.

    Raises:
        DataError: the file is missing, unreadable, empty, cut short, no image, or has values outside these ranges.
    """
    if not isinstance(source, Path):
        return _to_rgb(source())
    return decode(source, _to_rgb, other=lambda found: to_rgb(visible(found.values)))


def image_size(source: Source) -> tuple[int, int]:
    """(width, height) in pixels of the upright picture, as `read_image(source).size` but without decoding it."""
    if isinstance(source, Scaled):
        source = source.source
    if not isinstance(source, Path):
        return source().size

    def size(image: Image.Image) -> tuple[int, int]:
        if image.format == "TIFF":  # which Pillow turns by itself, and whose size it swaps early or late
            image.load()
        width, height = image.size
        return (height, width) if orientation(image) >= 5 else (width, height)

    return decode(source, size, load=False, other=lambda found: (found.values.shape[1], found.values.shape[0]))


def frames_note(samples: Sequence[Sample]) -> list[str]:
    """The note on images of several frames or pages, of which the first is read (of a camera's MPO the others are its
    own copies and thumbnails); none where there are none."""
    several = [s.name for s in samples if isinstance(s.image, Path) and _frames(s.image) > 1]
    if not several:
        return []
    named = ", ".join(several[:NAMED]) + ", ..." * (len(several) > NAMED)
    return [f"{len(several)} images have several frames or pages ({named}): the first of each is scored."]


def _frames(path: Path) -> int:
    if path.suffix.lower() not in PAGED:
        return 1
    try:
        return decode(path, lambda image: getattr(image, "n_frames", 1) if image.format != "MPO" else 1, load=False)
    except DataError:  # said when it is read
        return 1


def preprocess(
    image: Image.Image,
    size: Size,
    mean: Sequence[float],
    std: Sequence[float],
    interpolation: str = "bicubic",
) -> Float[Tensor, "3 H W"]:
    """The network input: squash to `size`, scale to [0, 1], subtract `mean`, divide by `std` (Sec. 4).

    The whole picture is squashed whatever its aspect, never cropped, so every pixel gets a score; a size in the
    picture's own proportions squashes nothing. The resampling is Pillow's, which antialiases, on 8-bit values: what the
    authors' released code does with `bicubic` for CLIP and with `bilinear` for DINO and DINOv2.

    Args:
        image: the picture; any mode that converts to RGB.
        size: side of the square input in pixels, or (rows, columns).
        mean, std: three values each, in units of the [0, 1] range.
        interpolation: "bicubic" or "bilinear"; anything else raises ConfigError.
    """
    if interpolation not in RESAMPLING:
        raise ConfigError(f"interpolation = {interpolation!r}: choose one of {', '.join(RESAMPLING)}.")
    rows, columns = rows_columns(size)
    squashed = image.convert("RGB").resize((columns, rows), RESAMPLING[interpolation])
    pixels = torch.from_numpy(np.array(squashed)).permute(2, 0, 1).float() / 255  # [3, rows, columns]
    return (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in WIDE_MODES:
        return to_rgb(np.array(image))
    if image.mode in ("P", "PA", "LA"):  # by way of RGBA: what is transparent keeps its own colour
        image = image.convert("RGBA")
    return image.convert("RGB")
