"""Local deviations that formulas make: scratches, cracks, holes, stains, foreign texture, missing parts, distortion."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage

from pretraining.fields import Array, log_uniform, spectral_noise

Mask = NDArray[np.bool_]

# Of lines, spots, stains, foreign matter, smeared, bent structure and coarse grain among the defects.
SHARES = (0.33, 0.22, 0.10, 0.12, 0.10, 0.07, 0.06)


def line_alpha(rng: Generator, size: int) -> Array:
    """A scratch (smooth curve) or a crack (branching random walk) as an opacity in [0, 1], antialiased."""
    scale = 3
    canvas = Image.new("L", (size * scale, size * scale), 0)
    pen = ImageDraw.Draw(canvas)
    wild = rng.choice([0.03, 0.12, 0.5])
    width = max(1, round(scale * log_uniform(rng, 0.5, 3.0) * size / 112))
    branches = 1 if wild < 0.3 else int(rng.integers(1, 4))
    start, angle = rng.uniform(0.1, 0.9, 2), rng.uniform(0, 2 * np.pi)
    for _ in range(branches):
        steps = int(rng.integers(5, 24))
        angles = angle + np.cumsum(rng.normal(0, wild, steps))
        reach = log_uniform(rng, 0.1, 0.8) / steps
        path = start + np.cumsum(np.stack([np.cos(angles), np.sin(angles)], 1) * reach, 0)
        points = [tuple(p) for p in (np.vstack([start, path]) * size * scale).tolist()]
        pen.line(points, fill=255, width=width, joint="curve")
        start, angle = path[rng.integers(steps)], angle + rng.normal(0, 0.8)
    return np.asarray(canvas.resize((size, size), Image.Resampling.BOX), np.float32) / 255


def blob_alpha(rng: Generator, size: int, low: float = 0.02, high: float = 0.22) -> Array:
    """A compact region: an ellipse or a rectangle, its edge ragged by noise, hard or soft."""
    radius, aspect = log_uniform(rng, low, high) * size, log_uniform(rng, 0.4, 2.5) ** 0.5
    cx, cy = rng.uniform(0.08, 0.92, 2) * size
    turn, ragged = rng.uniform(0, np.pi), rng.uniform(0, 0.5) * (rng.random() < 0.6)
    y, x = np.mgrid[:size, :size].astype(np.float32)
    u = ((x - cx) * np.cos(turn) + (y - cy) * np.sin(turn)) / (radius * aspect)
    v = ((y - cy) * np.cos(turn) - (x - cx) * np.sin(turn)) / (radius / aspect)
    distance = np.sqrt(u * u + v * v) if rng.random() < 0.7 else np.maximum(np.abs(u), np.abs(v))
    if ragged:
        distance = distance + ragged * spectral_noise(rng, size, 1.2)
    edge = rng.uniform(0.3, 0.9) if rng.random() < 0.3 else 1.0 / max(radius, 1)
    return np.clip((1 - distance) / edge + (0.5 if edge < 0.3 else 0), 0, 1).astype(np.float32)


def add_defect(
    rng: Generator,
    image: Array,
    strength: float,
    foreign: Callable[[Generator], Array],
    shares: tuple[float, ...],
) -> tuple[Array, Mask]:
    """One random defect on `image` [S, S, 3]; the mask [S, S] holds the pixels that it visibly changed.

    strength: contrast of the fainter kinds; foreign: draws an image of another product. The change may turn out to be
    invisible: the mask is then empty.
    """
    size, kind = len(image), int(np.searchsorted(np.cumsum(shares[:-1]), rng.random(), side="right"))
    opacity = np.clip(strength * rng.uniform(0.6, 1.6), 0.05, 1)
    if kind == 0:
        alpha, colour = line_alpha(rng, size), rng.uniform(0, 1) * np.ones(3)
        if rng.random() < 0.5:
            colour = np.zeros(3) if rng.random() < 0.7 else np.ones(3)
        changed = image + (alpha * opacity)[..., None] * (colour - image)
    elif kind == 1:  # spot, hole, drop: one colour, near to the image's own or not
        alpha = blob_alpha(rng, size, 0.012, 0.15)
        colour = rng.uniform(0, 1, 3) if rng.random() < 0.5 else rng.choice([0.05, 0.95]) * np.ones(3)
        changed = image + (alpha * opacity)[..., None] * (colour - image)
    elif kind == 2:  # stain, wear, fading: the structure shows through
        alpha, gain = blob_alpha(rng, size, 0.04, 0.25)[..., None], np.exp(rng.normal(0, 0.5) * (0.3 + opacity))
        flat = ndimage.gaussian_filter(image, (6, 6, 0))
        tinted = image * gain * rng.uniform(0.9, 1.1, 3) if rng.random() < 0.6 else flat + (image - flat) * gain
        changed = image + alpha * (tinted - image)
    elif kind == 3:  # foreign matter
        alpha = blob_alpha(rng, size)[..., None] * max(opacity, 0.4)
        changed = image + alpha * (foreign(rng) - image)
    elif kind == 4:  # missing or smeared structure
        alpha, spread = blob_alpha(rng, size)[..., None], rng.uniform(2, 8)
        along = (spread, spread, 0) if rng.random() < 0.6 else (spread, 0.3, 0)
        changed = image + alpha * (ndimage.gaussian_filter(image, along) - image)
    elif kind == 5:  # bent or displaced structure
        alpha = ndimage.gaussian_filter(blob_alpha(rng, size, 0.06, 0.25), 2)
        y, x = np.mgrid[:size, :size].astype(np.float32)
        dx, dy = rng.normal(0, 0.06, 2) * size
        at = [y + alpha * dy, x + alpha * dx]
        changed = np.stack([ndimage.map_coordinates(image[..., c], at, order=1, mode="nearest") for c in range(3)], 2)
    else:  # coarse grain, fraying
        alpha = blob_alpha(rng, size)[..., None]
        grain = spectral_noise(rng, size, rng.uniform(0, 1))[..., None]
        changed = image + alpha * grain * rng.uniform(0.05, 0.4) * max(opacity, 0.3)
    changed = np.clip(changed, 0, 1).astype(np.float32)
    difference = np.abs(changed - image).max(-1)
    # What nobody could see under the usual grain is no defect: the change must stand out over a few pixels.
    mask = ndimage.uniform_filter(difference, 3) > 0.025
    return changed, mask
