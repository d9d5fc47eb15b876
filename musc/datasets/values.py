"""Images of more than 8 bits per channel: one scale for all images of a run, from their values or their files' tags.

A camera's 10 or 12 bits come in 16-bit files. Divided by 257 as full 16 bits they would keep a few grey levels, and
scaled one by one they could not be compared with each other.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from musc.datasets import tiff
from musc.datasets.base import Sample, Source
from musc.datasets.decode import content_key, decode, describe, file_bytes, formats_for, quiet, regular_file, upright
from musc.datasets.memory import InMemory
from musc.errors import DataError

BITS = (8, 10, 12, 14, 16)
UNITS = (1.0, 255.0, 65535.0)  # what white may be in a file of floats
FULL_RANGE_16 = 65535
WIDE_MODES = ("I", "I;16", "I;16L", "I;16B", "I;16N", "F")  # what 8 bits cannot hold
DEEP_COLOUR = ("RGB;16", "RGBA;16", "RGBX;16")  # Pillow keeps the upper 8 of 16 bits
S_MAX_SAMPLE, MAX_SAMPLE, BITS_PER_SAMPLE = 341, 281, 258  # TIFF tags


@dataclass(frozen=True)
class Values:
    """The numbers in a file as they are: pixels [H, W] or [H, W, 3]; declared: the largest that its tags allow."""

    pixels: NDArray[Any]
    declared: float | None = None

    @property
    def floats(self) -> bool:
        return self.pixels.dtype.kind == "f"

    @property
    def largest(self) -> float:
        return float(self.pixels.max())


@dataclass(frozen=True)
class Scaled:
    """A picture of more than 8 bits per channel, read with `full_scale` as white."""

    source: Path | InMemory
    full_scale: float

    @property
    def key(self) -> str:
        return f"{content_key(self.source)}, white {self.full_scale:g}"

    def __call__(self) -> Image.Image:
        try:
            return to_rgb(exact(self.source).pixels, self.full_scale)
        except DataError as error:
            name = describe(self.source)
            raise DataError(str(error) if str(error).startswith(name) else f"{name} {error}") from None


@dataclass(frozen=True)
class ValueRange:
    """What white is in the pictures of more than 8 bits: `full_scale`, None where there are none; notes say it."""

    full_scale: float | None
    notes: tuple[str, ...] = ()
    scaled: frozenset[Source] = frozenset()

    def applied(self, samples: Sequence[Sample]) -> tuple[Sample, ...]:
        """The samples, those of `scaled` read with `full_scale` as white."""
        white = self.full_scale
        return tuple(
            replace(s, image=Scaled(s.image, white)) if white and s.image in self.scaled else s  # type: ignore[arg-type]
            for s in samples
        )


def value_range(samples: Sequence[Sample], full_scale: float | None = None, workers: int = 2) -> ValueRange:
    """Decide once what white is for all images of more than 8 bits; the others are looked at by their header only.

    Integers: the smallest of 8, 10, 12, 14 and 16 bits that holds the largest value of all images, where their tags
    (BitsPerSample, SMaxSampleValue, sBIT) do not say more. Integers in the full range of 16 bits are what `read_image`
    takes them for, and stay as they are. Floats: 1, 255 or 65535.

    Args:
        full_scale: white, where it is known (None: decided here).
        workers: threads.

    Raises:
        DataError: float images that disagree on their range, or integers beside floats; the text names them.
    """
    with ThreadPoolExecutor(max(workers, 1)) as pool:
        kinds = list(pool.map(_kind, [s.image for s in samples]))
        wide = [s for s, kind in zip(samples, kinds, strict=True) if kind]
        notes: tuple[str, ...] = ()
        if full_scale is None and wide:
            measured = [m for m in pool.map(_measure, wide) if m is not None]
            full_scale, notes = _decided(measured) if measured else (None, ())
    plain = "whole" if full_scale == FULL_RANGE_16 else ""  # what is read so anyway
    scaled = frozenset(s.image for s, kind in zip(samples, kinds, strict=True) if kind and kind != plain)
    return ValueRange(full_scale, notes, scaled)


def as_read(samples: Sequence[Sample], full_scale: float | None) -> tuple[Sample, ...]:
    """The samples as a run with that `full_scale` in its result's configuration read them."""
    return value_range(samples, full_scale).applied(samples) if full_scale else tuple(samples)


def exact(source: Path | InMemory) -> Values:
    """The values of a picture of more than 8 bits, whole; raises DataError as `read_image` does."""
    if isinstance(source, InMemory):
        return Values(np.array(source()))
    data = file_bytes(source)

    def values(image: Image.Image) -> Values:
        if _is_deep(image):
            pixels = 256 * _half(source, data, upper=True) + _half(source, data, upper=False)
            return Values(pixels, _declared(image, data))
        image.load()
        return Values(np.array(upright(image)), _declared(image, data))

    return decode(source, values, load=False, other=lambda found: Values(visible(found.values)), data=data)


def visible(channels: NDArray[Any]) -> NDArray[Any]:
    """[H, W, C] as grey [H, W] (of C = 2, the second is taken for alpha and dropped), or its first three [H, W, 3]."""
    return channels[..., 0] if channels.shape[-1] < 3 else channels[..., :3]


def to_rgb(pixels: NDArray[Any], full_scale: float | None = None) -> Image.Image:
    """Values [H, W] or [H, W, 3] in 8-bit RGB, `full_scale` being white (None: for floats 1, 255 or 65535, whichever
    holds them; for integers 65535). Raises DataError where they are negative, not finite, or above white."""
    if pixels.dtype == np.uint8 and full_scale is None:
        return Image.fromarray(pixels).convert("RGB")
    low, high = float(pixels.min()), float(pixels.max())
    own = 255 if pixels.dtype.itemsize == 1 else _own_scale(pixels.dtype.kind == "f", high)
    full = full_scale or own
    if not (np.isfinite(low) and np.isfinite(high)):
        raise DataError("holds NaN or infinity: replace these values, or leave the image out.")
    if not 0 <= low <= high <= full:
        wanted = f"0..{full:g} (full_scale)" if full_scale else "0..1, 0..255 or 0..65535"
        raise DataError(
            f"holds values from {low:g} to {high:g}, and images here have {wanted}: rescale it, the "
            "same way for every image, or give their largest possible value as full_scale."
        )
    grey: UInt8[np.ndarray, "..."] = np.rint(pixels.astype(np.float64) * (255 / full)).astype(np.uint8)
    return Image.fromarray(grey).convert("RGB")


def _own_scale(floats: bool, high: float) -> float:
    return next((unit for unit in UNITS if high <= unit), UNITS[-1]) if floats else FULL_RANGE_16


def _kind(source: Source) -> str:
    """ "floats" or "whole" numbers of more than 8 bits; "" for others, and for what cannot be read (said then)."""
    if isinstance(source, InMemory):
        return _kind_of_mode(source.mode)
    if not isinstance(source, Path):
        return ""
    try:
        with regular_file(source) as file, quiet(), Image.open(file, formats=formats_for(source)) as image:
            return "whole" if _is_deep(image) else _kind_of_mode(image.mode)
    except UnidentifiedImageError:
        bits, letter = _kind_of_tiff(source)
        return "" if bits <= 8 else "floats" if letter == "f" else "whole"
    except Exception:
        return ""


def _kind_of_tiff(path: Path) -> tuple[int, str]:
    try:
        data = file_bytes(path)
    except DataError:
        return 0, ""
    return tiff.kind_of(data) if data[:4] in tiff.SIGNATURES else (0, "")


def _kind_of_mode(mode: str) -> str:
    return "floats" if mode == "F" else "whole" if mode in WIDE_MODES else ""


def _is_deep(image: Any) -> bool:
    """Whether a colour image has 16 bits per channel, of which Pillow's own reading keeps the upper 8."""
    return image.format in ("PNG", "TIFF") and any(_raw_mode(t.args)[:-1] in DEEP_COLOUR for t in image.tile)


def _raw_mode(args: Any) -> str:
    return str(args[0] if isinstance(args, tuple) and args else args)


def _half(source: Path, data: bytes, upper: bool) -> NDArray[np.int64]:
    """The upper or lower bytes [H, W, 3] of 16-bit colour: for the lower ones, Pillow is told the other byte order."""

    def read(image: Any) -> NDArray[np.int64]:
        if not upper:
            own = _raw_mode(image.tile[0].args)
            order = own[-1] if own[-1] != "N" else "L" if sys.byteorder == "little" else "B"
            other = own[:-1] + {"B": "L", "L": "B"}[order]
            image.tile = [
                t._replace(args=(other, *t.args[1:]) if isinstance(t.args, tuple) else other) for t in image.tile
            ]
        image.load()
        return np.array(upright(image).convert("RGB")).astype(np.int64)

    return decode(source, read, load=False, data=data)


def _declared(image: Any, data: bytes) -> float | None:
    """The largest value that a file's tags allow, where they say it."""
    if image.format == "TIFF" and image.mode != "F":
        tags = image.tag_v2
        said = [np.max(tags[number]) for number in (S_MAX_SAMPLE, MAX_SAMPLE) if number in tags]
        bits = int(np.max(tags.get(BITS_PER_SAMPLE, 16)))
        return float(min([*said, 2**bits - 1])) if said or bits < 16 else None
    if image.format == "PNG" and (at := data[:4096].find(b"sBIT")) > 0:
        bits = max(data[at + 4 : at + 4 + int.from_bytes(data[at - 4 : at])], default=0)
        return float(2**bits - 1) if 8 < bits <= 16 else None
    if image.format == "PPM" and image.tile and image.tile[0].args[-1] != FULL_RANGE_16:
        return FULL_RANGE_16  # Pillow has scaled it by the largest value that its header names
    return None


@dataclass(frozen=True)
class Measured:
    """What one wide image says: its largest value, the one that 99.9 % of its values do not exceed, and its tags."""

    sample: Sample
    floats: bool
    largest: float
    most: float
    declared: float | None


def _measure(sample: Sample) -> Measured | None:
    try:
        found = exact(sample.image)  # type: ignore[arg-type]
    except DataError:  # said by name when it is read
        return None
    low, high = float(found.pixels.min()), found.largest
    if not (np.isfinite(low) and np.isfinite(high) and low >= 0):
        return None
    flat = found.pixels.ravel()[:: max(1, found.pixels.size // 100_000)]
    return Measured(sample, found.floats, high, float(np.quantile(flat, 0.999)), found.declared)


def _decided(measured: Sequence[Measured]) -> tuple[float, tuple[str, ...]]:
    floats = [m for m in measured if m.floats]
    whole = [m for m in measured if not m.floats]
    if floats and whole:
        raise DataError(
            f"{floats[0].sample.name} holds floats and {whole[0].sample.name} whole numbers of more than 8 bits: save "
            "all images in one format, or give the value that is white in all of them as full_scale."
        )
    if floats:
        return _unit(floats), ()
    bits, note = _bits(whole)
    return float(2**bits - 1), (note,) if note else ()


def _bits(measured: Sequence[Measured]) -> tuple[int, str]:
    """The bits that all values need, and the note that says so."""
    worst = max(measured, key=lambda m: m.largest)
    if worst.largest > FULL_RANGE_16:
        raise DataError(
            f"{worst.sample.name} holds values up to {worst.largest:g}, more than 16 bits: give the largest possible "
            "value of these images as full_scale."
        )
    needed = max(m.declared if m.declared and m.declared >= m.largest else m.largest for m in measured)
    bits = next((b for b in BITS if needed < 2**b), BITS[-1])
    if bits < BITS[-1]:
        return bits, f"16-bit files whose values need {bits} bits: read as {bits} bits, 0..{2**bits - 1}."
    most = max(m.most for m in measured)
    if most >= FULL_RANGE_16 / 8:
        return bits, ""
    return bits, (
        f"16-bit files: 99.9 % of the values lie below {most:.0f}, single ones reach {worst.largest:.0f}. They are "
        "read as 16 bits; where the camera has fewer, give its largest value as full_scale."
    )


def _unit(measured: Sequence[Measured]) -> float:
    units = {m.sample.name: _own_scale(True, m.largest) for m in measured if m.largest > 0}  # black fits every unit
    if not units:
        return UNITS[0]
    largest = max(measured, key=lambda m: m.largest)
    if largest.largest > UNITS[-1]:
        raise DataError(
            f"{largest.sample.name} holds values up to {largest.largest:g}: give the largest possible value of these "
            "images as full_scale."
        )
    low = next((m for m in measured if units.get(m.sample.name, np.inf) < units[largest.sample.name]), None)
    if low is None:
        return units[largest.sample.name]
    others = sum(unit == units[low.sample.name] for unit in units.values())
    raise DataError(
        f"{largest.sample.name} holds values up to {largest.largest:g}, and {others} of {len(measured)} float images "
        f"lie within 0..{units[low.sample.name]:g} ({low.sample.name}: up to {low.largest:g}): clip or rescale it, or "
        "give the value that is white in all of them as full_scale."
    )
