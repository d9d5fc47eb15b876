"""Pictures of a data set, changed on purpose: moved, lit otherwise, or with one of their parts copied to another place.

For planting what a method should or should not find. Masks move with their pictures.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageDraw

from musc.datasets.base import Sample, Source
from musc.datasets.images import content_key, read_image

Box = tuple[float, float, float, float]  # left, top, right, bottom, as fractions of the picture's sides


@dataclass(frozen=True)
class Altered:
    """`source` after `change`, which `name` tells apart from other changes."""

    source: Source
    name: str
    change: Callable[[Image.Image], Image.Image]

    @property
    def key(self) -> str:
        return f"{content_key(self.source)}/{self.name}"

    def __call__(self) -> Image.Image:
        return self.change(read_image(self.source))


def _altered(sample: Sample, name: str, change: Callable[[Image.Image], Image.Image], mask: bool = False) -> Sample:
    moved = Altered(sample.mask, name, change) if mask and sample.mask is not None else sample.mask
    return replace(sample, image=Altered(sample.image, name, change), mask=moved)


def shifted(sample: Sample, dx: float, dy: float) -> Sample:
    """The picture moved by fractions of its width and height; what enters repeats the border (a mask's is black)."""

    def move(image: Image.Image) -> Image.Image:
        pixels = np.asarray(image)
        H, W = pixels.shape[:2]
        rows = (np.arange(H) - round(dy * H)).clip(0, H - 1)
        columns = (np.arange(W) - round(dx * W)).clip(0, W - 1)
        return Image.fromarray(np.ascontiguousarray(pixels[rows][:, columns]))

    return _altered(sample, f"shifted {dx:.6f} {dy:.6f}", move, mask=True)


def lit(sample: Sample, level: float, slope: float = 0.0) -> Sample:
    """The picture in another light: `level` times as bright, times 1 + and 1 - `slope` at its right and left border."""

    def light(image: Image.Image) -> Image.Image:
        pixels = np.asarray(image, dtype=np.float32)
        across = 1 + slope * np.linspace(-1, 1, pixels.shape[1], dtype=np.float32)[:, None]
        return Image.fromarray((pixels * level * across).clip(0, 255).round().astype(np.uint8))

    return _altered(sample, f"lit {level:.6f} {slope:.6f}", light)


def copied(sample: Sample, part: Box, to: tuple[float, float], defect: str = "copied") -> Sample:
    """The picture with `part` pasted a second time, its corner at `to`: right in itself, and in the wrong place.

    The mask covers what was pasted, and the label is 1.
    """

    def corner(image: Image.Image) -> tuple[int, int]:
        return round(to[0] * image.width), round(to[1] * image.height)

    def cut(image: Image.Image) -> Image.Image:
        W, H = image.size
        return image.crop((round(part[0] * W), round(part[1] * H), round(part[2] * W), round(part[3] * H)))

    def paste(image: Image.Image) -> Image.Image:
        out = image.copy()
        out.paste(cut(image), corner(image))
        return out

    def mark(image: Image.Image) -> Image.Image:
        out = Image.new("L", image.size)
        (x, y), (width, height) = corner(image), cut(image).size
        ImageDraw.Draw(out).rectangle((x, y, x + width - 1, y + height - 1), fill=255)
        return out

    name = f"copied {part} {to}"
    image, mask = Altered(sample.image, name, paste), Altered(sample.image, f"{name} mask", mark)
    return replace(sample, name=f"{defect}/{sample.name}", image=image, label=1, defect=defect, mask=mask)


def dotted(sample: Sample, at: tuple[float, float], width: int, color: tuple[int, int, int] = (40, 32, 30)) -> Sample:
    """The picture with a round spot, `width` pixels wide, its corner at the fractions `at`; mask and label with it."""

    def box(image: Image.Image) -> tuple[int, int, int, int]:
        x, y = round(at[0] * image.width), round(at[1] * image.height)
        return x, y, x + width, y + width

    def dot(image: Image.Image) -> Image.Image:
        out = image.copy()
        ImageDraw.Draw(out).ellipse(box(image), fill=color)
        return out

    def mark(image: Image.Image) -> Image.Image:
        out = Image.new("L", image.size)
        ImageDraw.Draw(out).ellipse(box(image), fill=255)
        return out

    name = f"dotted {at} {width} {color}"
    image, mask = Altered(sample.image, name, dot), Altered(sample.image, f"{name} mask", mark)
    return replace(sample, name=f"dotted/{sample.name}", image=image, label=1, defect="dotted", mask=mask)
