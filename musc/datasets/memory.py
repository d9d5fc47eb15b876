"""Images in memory: numpy arrays and PIL images as sources of samples."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from PIL import Image

from musc.errors import DataError

REMEDY = "give [H, W] or [H, W, 3] as uint8 or as floats in 0..1, or [H, W] as uint16"


@dataclass(frozen=True, eq=False)
class InMemory:
    """A picture held in memory; a copy, so that what happens to the given array later changes nothing."""

    image: Image.Image

    @cached_property
    def key(self) -> str:
        """Digest of mode, size and pixels."""
        head = f"{self.image.mode} {self.image.size}".encode()
        return hashlib.blake2b(head + self.image.tobytes(), digest_size=20).hexdigest()

    @property
    def mode(self) -> str:
        """Pillow's mode: "I;16" for 16 bits."""
        return self.image.mode

    def __call__(self) -> Image.Image:
        return self.image


def in_memory(picture: Any, name: str) -> InMemory:
    """The source that an array [H, W], [H, W, 3] or [H, W, 4] (alpha is dropped) or a PIL image makes.

    uint8, bool (True is white), floats in 0..1 (rounded to 256 levels), or uint16 [H, W], which share one scale with
    all other images of the run (`values`). name: for messages.

    Raises:
        DataError: another shape or type, or values outside; the text names both and the remedy.

    Example:
        >>> in_memory(np.ones((4, 6)), "white")().size
        (6, 4)
    """
    if isinstance(picture, Image.Image):
        try:
            picture.load()
        except Exception as error:  # a file opened lazily, and damaged
            raise DataError(f"{name} cannot be decoded ({error}).") from None
        return InMemory(picture.copy())
    try:
        array = np.asarray(picture)
    except Exception as error:  # rows of several lengths, a tensor on a GPU: what the type says
        raise DataError(f"{name} is no array ({error}): {REMEDY}.") from None
    if array.dtype.kind not in "buif" and not isinstance(picture, np.ndarray):
        raise DataError(f"{name} is a {type(picture).__name__}: {REMEDY}.")
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    channels = array.ndim == 3 and array.shape[-1] in (3, 4)
    if not (array.ndim == 2 or channels) or 0 in array.shape:
        swapped = array.ndim == 3 and array.shape[0] in (1, 3, 4)
        hint = " (channels come last: transpose it)" if swapped else ""
        raise DataError(f"{name} is an array of shape {array.shape}{hint}: {REMEDY}.")
    if channels:
        array = array[..., :3]
    if array.dtype.kind == "b":
        array = array.astype(np.uint8) * np.uint8(255)
    elif array.dtype.kind == "f":
        low, high = float(array.min()), float(array.max())
        if not (low >= 0 and high <= 1):
            remedy = "divide all images by the same number" if np.isfinite(high - low) else "replace NaN and infinity"
            raise DataError(f"{name} holds floats from {low:g} to {high:g}: {remedy}.")
        array = np.rint(array.astype(np.float64) * 255).astype(np.uint8)
    elif array.dtype != np.uint8 and not (array.dtype == np.uint16 and array.ndim == 2):
        raise DataError(f"{name} is an array of {array.dtype}, shape {array.shape}: {REMEDY}.")
    return InMemory(Image.fromarray(np.ascontiguousarray(array)))
