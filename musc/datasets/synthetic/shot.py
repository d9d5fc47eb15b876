"""One exposure: the random streams of an image, its coordinates, its light and its camera.

Lengths are in half image widths (x and y run from -1 to 1, y downwards), so that a picture looks the same at any size.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from zlib import crc32

import numpy as np
from PIL import Image


def rgb(red: float, green: float, blue: float) -> np.ndarray:
    """The linear reflectance [3, 1, 1] of a colour given as one sees it (0 to 255); the camera's gamma is 2."""
    return ((np.array([red, green, blue], np.float32) / 255) ** 2).reshape(3, 1, 1)


def rotate(x: np.ndarray, y: np.ndarray, angle: float) -> tuple[np.ndarray, np.ndarray]:
    """The coordinates in axes that are turned by `angle` (radians, clockwise as seen)."""
    c, s = math.cos(angle), math.sin(angle)
    return x * c + y * s, y * c - x * s


def resized(values: np.ndarray, size: int) -> np.ndarray:
    """A coarse field [h, w], bicubically interpolated to [size, size]."""
    image = Image.fromarray(np.ascontiguousarray(values, np.float32))
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC), np.float32)


SHADOW = (0.57, 0.82)
"""Where shadows fall in the picture: the lamp stands at the upper left."""


class Shot:
    """The circumstances of one image. Every random choice has a named stream of its own, so that drawing a defect
    disturbs nothing else: the same identity gives the same part, pose, light and sensor noise."""

    def __init__(self, identity: tuple[int, ...], size: int) -> None:
        self.identity = identity
        self.size = size
        self.px = 2 / size

    def rng(self, stream: str) -> np.random.Generator:
        return np.random.default_rng([*self.identity, crc32(stream.encode())])

    @cached_property
    def xy(self) -> tuple[np.ndarray, np.ndarray]:
        axis = (np.arange(self.size, dtype=np.float32) + 0.5) * self.px - 1
        x, y = np.meshgrid(axis, axis)
        return x, y

    def pose(self, angle: float, shift: float, scale: float) -> tuple[np.ndarray, np.ndarray]:
        """The product's own coordinates, with a pose drawn from ± angle (radians), ± shift, 1 ± scale."""
        (x, y), (turn, zoom, dx, dy) = self.xy, self.rng("pose").uniform(-1, 1, 4).tolist()
        p, q = rotate(x - shift * dx, y - shift * dy, angle * turn)
        return p * (1 + scale * zoom), q * (1 + scale * zoom)

    def noise(self, stream: str, rows: int, columns: int | None = None) -> np.ndarray:
        """Smooth noise of about unit deviation with that many cells across the image, [size, size]."""
        return resized(self.rng(stream).standard_normal((rows, columns or rows), np.float32), self.size)

    def fractal(self, stream: str, rows: int, octaves: int = 3) -> np.ndarray:
        """Noise with detail at `octaves` scales, each twice as fine and half as strong, [size, size]."""
        layers = (self.noise(f"{stream}{k}", rows << k) / (1 << k) for k in range(octaves))
        return sum(layers, start=np.zeros((self.size, self.size), np.float32))


@dataclass
class Surface:
    """What the camera sees, before light falls on it; every method works in place.

    albedo [3, H, W] (linear), slopes sx and sy [H, W] (dz/dx, dz/dy), gloss [H, W] (strength of the highlight of a
    varnish), metal [H, W] (share of light that mirrors the lamps), shade [H, W] (1: unobstructed, 0: no light).
    """

    albedo: np.ndarray
    sx: np.ndarray
    sy: np.ndarray
    gloss: np.ndarray
    metal: np.ndarray
    shade: np.ndarray
    px: float

    @classmethod
    def flat(cls, shot: Shot, color: np.ndarray, gloss: float = 0.0) -> Surface:
        n = (shot.size, shot.size)
        albedo = np.broadcast_to(color, (3, *n)).astype(np.float32)
        zero = [np.zeros(n, np.float32) for _ in range(3)]
        return cls(albedo, zero[0], zero[1], np.full(n, gloss, np.float32), zero[2], np.ones(n, np.float32), shot.px)

    def window(self, box: tuple[slice, slice]) -> Surface:
        """A part of the surface, sharing its memory."""
        return self._of([layer[..., *box] for layer in self._layers()])

    def confined(self, amount: np.ndarray, change: Callable[[Surface], None]) -> None:
        """Apply a change where `amount` is 1 and leave the rest as it is (a scratch ends where the part ends)."""
        changed = self._of([layer.copy() for layer in self._layers()])
        change(changed)
        for layer, new in zip(self._layers(), changed._layers(), strict=True):
            layer += amount * (new - layer)

    def _of(self, layers: list[np.ndarray]) -> Surface:
        albedo, sx, sy, gloss, metal, shade = layers
        return Surface(albedo, sx, sy, gloss, metal, shade, self.px)

    def _layers(self) -> tuple[np.ndarray, ...]:
        return (self.albedo, self.sx, self.sy, self.gloss, self.metal, self.shade)

    def cover(self, distance: np.ndarray) -> np.ndarray:
        """The share of each pixel inside a shape, from the signed distance to its outline: anti-aliasing."""
        return np.clip(0.5 - distance / self.px, 0, 1)

    def raise_by(self, height: np.ndarray, limit: float = 4.0) -> None:
        """Add a relief, in half image widths."""
        dy, dx = np.gradient(height, self.px)
        self.sx += np.clip(dx, -limit, limit)
        self.sy += np.clip(dy, -limit, limit)

    def paint(self, amount: np.ndarray, color: np.ndarray) -> None:
        """Cover with a colour; `amount` in 0..1, `color` [3, 1, 1] or [3, H, W]."""
        self.albedo += amount * (color - self.albedo)

    def put(
        self,
        amount: np.ndarray,
        color: np.ndarray,
        height: np.ndarray | None = None,
        gloss: float | np.ndarray = 0.0,
        metal: float | np.ndarray = 0.0,
    ) -> None:
        """Lay another material on top: its relief and finish replace those beneath, and no shadow falls on it."""
        self.paint(amount, color)
        dy, dx = np.gradient(height, self.px) if height is not None else (np.float32(0), np.float32(0))
        layers = ((self.sx, np.clip(dx, -4, 4)), (self.sy, np.clip(dy, -4, 4)), (self.gloss, gloss))
        for layer, value in (*layers, (self.metal, metal), (self.shade, 1.0)):
            layer += amount * (value - layer)


def photograph(shot: Shot, surface: Surface, *, noise: bool = True) -> np.ndarray:
    """Light the surface and take its picture: [3, size, size], 0 to 255, float.

    Lamp direction and level, a gradient of the illumination, focus and sensor noise are drawn from the shot.
    """
    s, rng = surface, shot.rng("light")
    turn, elevation, level, gx, gy, focus = rng.uniform(-1, 1, 6).tolist()
    azimuth, height = math.radians(-125 + 6 * turn), math.radians(48 + 3 * elevation)
    lx, ly, lz = (math.cos(azimuth) * math.cos(height), math.sin(azimuth) * math.cos(height), math.sin(height))

    nz = 1 / np.sqrt(1 + s.sx**2 + s.sy**2)
    nx, ny = -s.sx * nz, -s.sy * nz
    diffuse = 0.38 + 0.86 * np.maximum(nx * lx + ny * ly + nz * lz, 0)
    # The half vector between lamp and camera (which looks straight down) makes the varnish's highlight.
    h = math.sqrt(2 + 2 * lz)
    glint = np.maximum((nx * lx + ny * ly + nz * (lz + 1)) / h, 0)
    for _ in range(5):  # to the power 32
        glint *= glint

    light = diffuse
    if s.metal.any():
        # What a mirror would show of the room: a bright lamp box, a dimmer one opposite, a dark floor between.
        rx, ry = 2 * nz * nx - 0.15 * turn, 2 * nz * ny
        lamp = 1.45 * np.exp(-(((ry + 0.55) / 0.30) ** 2)) + 0.55 * np.exp(-(((ry - 0.62) / 0.22) ** 2))
        mirror = 0.24 + lamp * np.exp(-((rx / 0.9) ** 2)) + 0.25 * np.exp(-(((rx + 0.7) / 0.25) ** 2))
        light = diffuse + s.metal * (mirror - diffuse)

    x, y = shot.xy
    lamp_field = (1 + 0.06 * level) * (1.0 + 0.05 * gx * x + 0.05 * gy * y - 0.035 * (x * x + y * y))
    lamp_field *= s.shade
    radiance = s.albedo * (light * lamp_field) + 0.55 * s.gloss * glint * lamp_field
    picture = 255 * np.sqrt(np.clip(_blur(radiance, 0.10 + 0.05 * focus), 0, 1))
    if noise:
        grain = shot.rng("sensor")
        picture += 1.5 * grain.standard_normal((1, shot.size, shot.size), np.float32)
        picture += 0.9 * grain.standard_normal((3, shot.size, shot.size), np.float32)
    return picture


def _blur(image: np.ndarray, tap: float) -> np.ndarray:
    """The lens: [tap, 1 - 2 tap, tap] along both axes of an image [3, H, W], edges repeated."""
    for _ in range(2):
        blurred = (1 - 2 * tap) * image
        blurred[:, 1:] += tap * image[:, :-1]
        blurred[:, :-1] += tap * image[:, 1:]
        blurred[:, [0, -1]] += tap * image[:, [0, -1]]
        image = blurred.swapaxes(1, 2)
    return image
