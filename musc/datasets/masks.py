"""Ground-truth masks: what of a file is the mask, and the two protocols that bring it to the size of the maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, UInt8
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from torch import Tensor

from musc.datasets.base import Source
from musc.datasets.decode import content_key, decode, describe
from musc.datasets.values import WIDE_MODES, to_rgb, visible
from musc.errors import ConfigError, DataError
from musc.sizes import Size, rows_columns

FEW = 16  # distinct values of a mask that are still classes, and no grey levels of a soft edge
IN_ALPHA = "the mask is in the alpha channel"
NO_BLACK = "is a mask in colours without black"
NOISY = ("JPEG", "MPO")  # formats that invent values around those that were drawn


@dataclass(frozen=True)
class Mask:
    """Grey levels [H, W], 255 being fully anomalous, and in words how they were taken from the file ("" if plainly)."""

    grey: UInt8[np.ndarray, "H W"]
    how: str = ""


@dataclass(frozen=True)
class Union:
    """One mask that lies in several files, a region each: a pixel is anomalous where one of them says so."""

    parts: tuple[Path, ...]

    @property
    def key(self) -> str:
        return "union of " + " ".join(content_key(part) for part in self.parts)

    def __call__(self) -> Image.Image:
        masks = [load_mask(part).grey for part in self.parts]
        if len({mask.shape for mask in masks}) > 1:
            raise DataError(f"{describe(self.parts[0])} and the masks beside it differ in size: export them again.")
        return Image.fromarray(np.max(masks, axis=0))


def read_mask(
    source: Source, image_size: tuple[int, int] | None = None, image_name: str = "its image"
) -> UInt8[np.ndarray, "H W"]:
    """The ground-truth mask at its native size in grey levels, 255 being fully anomalous; see `load_mask`."""
    return load_mask(source, image_size, image_name).grey


def load_mask(source: Source, image_size: tuple[int, int] | None = None, image_name: str = "its image") -> Mask:
    """A mask, and how it was taken from its file, decided by what the file holds.

    The largest colour channel counts. Alpha counts where it varies and the colours say nothing: one colour all over,
    or a photograph. At most 16 distinct values are class indices, any of them but 0 anomalous, unless the values
    between are a soft edge (each touches a larger one); other grey levels stay as they are.

    Args:
        source: the mask's file, or a drawn mask.
        image_size: (width, height) in pixels of the image it belongs to, upright; None leaves it unchecked.
        image_name: the image's name for the error's text.

    Raises:
        DataError: as `read_image`; where the mask's size is not the image's; and for a mask in colours without any
            black, whose background nobody could tell.
    """
    try:
        if isinstance(source, Path):
            mask = decode(
                source, lambda i: _mask(_channels(i), i.format), other=lambda c: _mask(_narrow(c.values), "TIFF")
            )
        else:
            mask = _mask(_channels(source()), None)
    except DataError as error:
        name = describe(source)
        raise DataError(str(error) if name in str(error) else f"{name} {error}") from None
    height, width = mask.grey.shape
    if image_size is not None and (width, height) != tuple(image_size):
        raise DataError(
            f"the mask {describe(source)} is {width} x {height} pixels, {image_name} {image_size[0]} x "
            f"{image_size[1]}: they must cover the same pixels, so export the mask again at the image's size."
        )
    return mask


def _channels(image: Image.Image) -> NDArray[Any]:
    """[H, W] of indices or grey levels, or [H, W, 3 or 4] with colours (and alpha), 8 bits each."""
    if image.mode in WIDE_MODES:
        return _narrow(np.array(image)[..., None])
    if image.mode in ("P", "PA", "LA") or "transparency" in image.info:
        colours = np.array(image.convert("RGBA"))
        if image.mode == "P" and np.ptp(colours[..., :3].reshape(-1, 3), axis=0).max() == 0:
            return np.array(image)  # a palette that paints every index alike: the indices are the mask
        return colours
    if image.mode in ("L", "RGBA"):
        return np.array(image)
    return np.array(image.convert("RGB"))


def _narrow(channels: NDArray[Any]) -> NDArray[np.uint8]:
    """Values of more than 8 bits [H, W, C] in 8: few distinct ones (classes) keep their order, others are scaled."""
    values = visible(channels)
    distinct = np.unique(values)
    if values.dtype.kind != "f" and len(distinct) <= FEW and distinct[0] >= 0 and distinct[-1] < 128:
        return values.astype(np.uint8)
    return np.array(to_rgb(values))


def _mask(pixels: NDArray[Any], file_format: str | None) -> Mask:
    how = ""
    grey = pixels if pixels.ndim == 2 else pixels[..., :3].max(axis=2)
    if pixels.ndim == 3:
        alpha = pixels[..., 3] if pixels.shape[2] == 4 else None
        if alpha is not None and alpha.min() < alpha.max():
            painted = np.minimum(grey, alpha)
            if grey.min() == grey.max() or len(np.unique(grey)) > FEW or not painted.any():
                grey, how = alpha, IN_ALPHA
            else:
                grey = painted  # what is transparent is not painted
        elif grey.min() == grey.max() > 0 and np.ptp(pixels[..., :3].reshape(-1, 3), axis=0).max() > 0:
            raise DataError(f"{NO_BLACK}, and which of them is normal cannot be told: paint what is normal black.")
    classes = np.unique(grey)
    if grey.max() < 128:
        return Mask(np.where(grey > 0, np.uint8(255), np.uint8(0)), how)
    between = classes[(classes > 0) & (classes < classes[-1])]
    if len(classes) <= FEW and file_format not in NOISY and not _soft(grey, between):
        if len(between):
            listed = ", ".join(map(str, classes[classes > 0]))
            how = f"{how}; " * bool(how) + f"the values {listed} are classes, and every one is anomalous"
        return Mask(np.where(grey > 0, np.uint8(255), np.uint8(0)), how)
    return Mask(np.ascontiguousarray(grey), how)


def _soft(grey: UInt8[np.ndarray, "H W"], between: NDArray[Any]) -> bool:
    """Whether the values between 0 and the largest are the soft edge of it: each touches a larger value."""
    inner = np.isin(grey, between)
    return bool(len(between)) and bool((ndimage.maximum_filter(grey, size=3)[inner] > grey[inner]).all())


def mask_like(source: Path) -> bool | None:
    """Whether a file holds at most a few flat values, as masks do and photographs do not; None where it is unreadable.

    Two values, up to 16 of a class map, or soft or compressed forms of two: nearly all pixels near 0 or the largest.
    """
    try:
        pixels = decode(source, _channels, other=lambda found: _narrow(found.values))
        in_alpha = _mask(pixels, None).how.startswith(IN_ALPHA)
    except DataError as error:
        return True if NO_BLACK in str(error) else None
    if pixels.ndim == 3:
        pixels = pixels[..., 3] if in_alpha else pixels[..., :3] @ np.array([0.299, 0.587, 0.114])
    step = 1 + max(pixels.shape) // 1000
    values = pixels[::step, ::step].round()
    if len(np.unique(values)) <= FEW:
        return True
    high = values.max()
    return bool(((values <= 24) | (values >= high - 24)).mean() > 0.97) and bool(high > 100)


def resize_mask(
    mask: UInt8[np.ndarray, "h w"] | Bool[np.ndarray, "h w"],
    size: Size,
    protocol: str = "clean",
    rule: str | None = None,
) -> Bool[Tensor, "H W"]:
    """The mask at the size of the anomaly maps, squashed as the images are, in one of two protocols.

    `clean`: nearest neighbour, then > 0.5: a pixel is anomalous where the mask says so. The one for new data.
    `official`: what the authors' released code does. Bilinear with antialiasing, on 8-bit values, then by `rule`:
    "eroded" keeps the pixels that are still fully positive (= 1.0; MVTec AD, BTAD), "dilated" every pixel > 0
    (VisA). Fine defects shrink under the first (a line thinner than a pixel of the map vanishes) and grow under the
    second, so pixel metrics of the two protocols are not comparable. The paper mentions neither.

    Args:
        mask: grey levels 0..255 as `read_mask` gives them, or True where anomalous.
        size: side of the result in pixels, or (rows, columns).
        rule: see above and `official_rule`; only the official protocol uses it.

    Raises:
        ConfigError: unknown protocol, or the official one without its rule.
    """
    grey = Image.fromarray(mask.astype(np.uint8) * 255 if mask.dtype == bool else mask)
    rows, columns = rows_columns(size)
    if protocol == "clean":
        chosen = np.array(grey.resize((columns, rows), Image.Resampling.NEAREST)) > 127.5
    elif protocol == "official" and rule in ("eroded", "dilated"):
        soft = np.array(grey.resize((columns, rows), Image.Resampling.BILINEAR))
        chosen = soft == 255 if rule == "eroded" else soft > 0
    else:
        raise ConfigError(
            f"mask protocol {protocol!r} with rule {rule!r}: choose clean, or official with eroded or dilated."
        )
    return torch.from_numpy(chosen)


def official_rule(dataset: str) -> Literal["eroded", "dilated"]:
    """How the released code makes a resized mask binary: "dilated" for VisA, "eroded" for the MVTec layout's others."""
    return "dilated" if dataset == "visa" else "eroded"


def how_masks_were_read(hows: Sequence[str]) -> list[str]:
    """One note per way in which masks were taken from their files, with the number of masks."""
    ways = dict.fromkeys(how for how in hows if how)
    return [f"masks: {how} ({sum(h == how for h in hows)} of {len(hows)})." for how in ways]
