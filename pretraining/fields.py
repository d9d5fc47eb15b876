"""Formulas for surfaces: each function draws the parameters of one product and returns how to draw one image of it.

A field is `field(rng, x, y) -> [S, S] values in [0, 1]`: `rng` draws what differs between images of a product, `x` and
`y` are coordinates in which the image is about one unit wide (turned, shifted and warped by the caller).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Array = NDArray[np.floating[Any]]
Field = Callable[[Generator, Array, Array], Array]


def log_uniform(rng: Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def unit(values: Array) -> Array:
    """Stretch to [0, 1]."""
    low, high = values.min(), values.max()
    return ((values - low) / (high - low + 1e-6)).astype(np.float32)


def spectral_noise(
    rng: Generator, size: int, slope: float, peak: float = 0.0, stretch: float = 1.0, angle: float = 0.0
) -> Array:
    """Gaussian noise of standard deviation 1 whose amplitude falls as frequency**-slope; `peak` > 0 (cycles per image)
    keeps a band around it; `stretch` > 1 draws it out along `angle`: brushed metal, fibres."""
    fy = np.fft.fftfreq(size).astype(np.float32)[:, None] * size
    fx = np.fft.rfftfreq(size).astype(np.float32)[None, :] * size
    along = fx * np.cos(angle) + fy * np.sin(angle)
    across = fy * np.cos(angle) - fx * np.sin(angle)
    radius = np.sqrt((along * stretch) ** 2 + across**2)
    gain = np.maximum(radius, 1.0) ** -slope
    if peak:
        gain = gain * np.exp(-(np.log((radius + 0.3) / peak) ** 2) * 4)
    spectrum = np.fft.rfft2(rng.standard_normal((size, size), dtype=np.float32)) * gain
    spectrum[0, 0] = 0
    values = np.fft.irfft2(spectrum, (size, size)).astype(np.float32)
    return values / (values.std() + 1e-6)


def noise_field(product: Generator) -> Field:
    """1/f noise, band-limited blobs, brushed metal; ridges and plateaus by folding."""
    slope, fold = product.uniform(0.0, 2.2), product.integers(4)
    peak = log_uniform(product, 3, 40) if product.random() < 0.5 else 0.0
    stretch = log_uniform(product, 3, 40) if product.random() < 0.5 else 1.0
    angle, gain = product.uniform(0, np.pi), product.uniform(0.4, 2.0)

    def draw(rng: Generator, x: Array, y: Array) -> Array:
        values = spectral_noise(rng, len(x), slope, peak, stretch, angle)
        if fold == 0:
            return np.clip(np.abs(values) * 0.4, 0, 1)
        if fold == 1:
            return 1 / (1 + np.exp(-4 * gain * values))
        return np.clip(0.5 + values / 6 * gain, 0, 1)

    return draw


def wave(phase: Array, shape: int, duty: float) -> Array:
    """A periodic profile of period 1 with values in [0, 1]."""
    t = phase - np.floor(phase)
    if shape == 0:
        return 0.5 - 0.5 * np.cos(2 * np.pi * t)
    if shape == 1:
        return np.clip((0.5 * duty - np.abs(t - 0.5)) * 12 + 0.5, 0, 1)
    if shape == 2:
        return np.abs(2 * t - 1)
    return np.exp(-(((t - 0.5) / (0.12 + 0.2 * duty)) ** 2))


def waves_field(product: Generator) -> Field:
    """One to three periodic profiles, added, multiplied or the larger of them: stripes, checks, grids, meshes."""
    count, how = product.integers(1, 4), product.integers(3)
    frequency = [log_uniform(product, 2.5, 24) for _ in range(count)]
    first = product.uniform(0, np.pi)
    step = product.choice([np.pi / 2, np.pi / 3, product.uniform(0.2, 1.5)])
    if product.random() < 0.6:
        frequency = [frequency[0]] * count
    shape, duty = product.integers(4, size=count), product.uniform(0.15, 0.8, size=count)
    wobble = product.uniform(0, 0.25) if product.random() < 0.4 else 0.0

    def draw(rng: Generator, x: Array, y: Array) -> Array:
        bend = spectral_noise(rng, len(x), 2.0) * wobble if wobble else 0.0
        total = None
        for i in range(count):
            angle = first + i * step
            value = wave((x * np.cos(angle) + y * np.sin(angle)) * frequency[i] + bend, int(shape[i]), duty[i])
            total = value if total is None else (total + value, total * value, np.maximum(total, value))[how]
        assert total is not None
        return (total / (count if how == 0 else 1)).astype(np.float32)

    return draw


def cells(table: Array, x: Array, y: Array) -> tuple[Array, Array, Array]:
    """Distances to the nearest two of the points jittered about the unit lattice, and the nearest one's value.

    table: [T, T, 3], a point's offset in its lattice square and its value.
    """
    i, j = np.floor(x).astype(np.int32), np.floor(y).astype(np.int32)
    side = len(table)
    first = np.full(x.shape, 9.0, np.float32)
    second, value = first.copy(), np.zeros(x.shape, np.float32)
    for di in (-1, 0, 1):
        for dj in (-1, 0, 1):
            point = table[(i + di) % side, (j + dj) % side]
            dx, dy = i + di + point[..., 0] - x, j + dj + point[..., 1] - y
            distance = dx * dx + dy * dy
            nearer = distance < first
            second = np.where(nearer, first, np.minimum(second, distance))
            value = np.where(nearer, point[..., 2], value)
            first = np.where(nearer, distance, first)
    return np.sqrt(first), np.sqrt(second), value


def cells_field(product: Generator) -> Field:
    """Voronoi cells: pebbles, leather, cracked mud, honeycomb, mosaic, terrazzo."""
    frequency, kind, jitter = log_uniform(product, 3, 20), product.integers(6), product.uniform(0, 1)
    seed, fixed = product.integers(2**31), product.random() < 0.3
    gap = product.uniform(0.05, 0.25)

    def draw(rng: Generator, x: Array, y: Array) -> Array:
        own = np.random.default_rng(seed) if fixed else rng
        table = own.random((32, 32, 3), dtype=np.float32)
        table[..., :2] = 0.5 + (table[..., :2] - 0.5) * jitter
        first, second, value = cells(table, x * frequency, y * frequency)
        edge = np.clip((second - first) / gap, 0, 1)
        pebble = np.clip(1.1 - first**2 * 1.6, 0, 1) * edge
        options = (first, edge, 0.2 + 0.8 * value * edge, pebble, value, pebble * (0.5 + 0.5 * value))
        return np.clip(options[kind], 0, 1).astype(np.float32)

    return draw


def bricks_field(product: Generator) -> Field:
    """Courses of bricks, tiles, planks: joints, a tone per brick, an offset per course."""
    rows, aspect = log_uniform(product, 3, 14), product.uniform(0.8, 4)
    joint, offset = product.uniform(0.03, 0.15), product.choice([0.0, 0.5, 0.33])
    tone, bevel = product.uniform(0, 0.5), product.uniform(0, 0.4)

    def draw(rng: Generator, x: Array, y: Array) -> Array:
        course = np.floor(y * rows)
        u = x * rows / aspect + offset * course
        tones = rng.random((64, 64), dtype=np.float32)
        value = tones[course.astype(int) % 64, np.floor(u).astype(int) % 64]
        v, w = y * rows - course, u - np.floor(u)
        inside = np.minimum(np.minimum(v, 1 - v), np.minimum(w, 1 - w) * aspect)
        mortar = np.clip((inside - joint / 2) * 14 + 0.5, 0, 1)
        face = 0.7 + tone * (value - 0.5) + bevel * (v - 0.5)
        return np.clip(mortar * face, 0, 1).astype(np.float32)

    return draw


def weave_field(product: Generator) -> Field:
    """Threads over and under each other, with round shading: cloth, carpet, basket, screen."""
    count, twill = log_uniform(product, 4, 22), product.integers(2, 5)
    thickness, contrast = product.uniform(0.5, 0.98), product.uniform(-0.4, 0.4)

    def draw(rng: Generator, x: Array, y: Array) -> Array:
        u, v = x * count, y * count
        i, j = np.floor(u), np.floor(v)
        warp = np.sqrt(np.clip(1 - ((u - i - 0.5) * 2 / thickness) ** 2, 0, 1)) * (0.75 + contrast)
        weft = np.sqrt(np.clip(1 - ((v - j - 0.5) * 2 / thickness) ** 2, 0, 1)) * (0.75 - contrast)
        over = (i + j) % twill < max(1, twill // 2)
        top, under = np.where(over, warp, weft), np.where(over, weft, warp)
        return np.where(top > 0, top, under * 0.7).astype(np.float32)

    return draw


def rings_field(product: Generator) -> Field:
    """Distances from a line or a point, bent by noise, through a saw-tooth: wood, agate, turned metal, marble."""
    centre = product.uniform(-1.5, 2.5, 2) if product.random() < 0.7 else np.array([0.5, 0.5])
    frequency, flat = log_uniform(product, 4, 25), log_uniform(product, 0.05, 1)
    bend, smooth, saw = log_uniform(product, 0.02, 1.0), product.uniform(1.3, 2.5), product.random() < 0.6

    def draw(rng: Generator, x: Array, y: Array) -> Array:
        radius = np.sqrt((x - centre[0]) ** 2 + ((y - centre[1]) * flat) ** 2)
        phase = radius * frequency + bend * spectral_noise(rng, len(x), smooth)
        t = phase - np.floor(phase)
        return (t**2 if saw else 0.5 + 0.5 * np.sin(2 * np.pi * phase)).astype(np.float32)

    return draw


def strokes_field(product: Generator) -> Field:
    """Many short strokes or discs painted over each other (dead leaves): grass, fur, felt, straw, chips, gravel."""
    count, length = int(log_uniform(product, 60, 500)), log_uniform(product, 0.04, 0.5)
    angle, spread, width = product.uniform(0, np.pi), log_uniform(product, 0.05, 3.0), log_uniform(product, 1, 5)
    kind, levels = product.integers(4), product.integers(2, 8)

    def draw(rng: Generator, x: Array, y: Array) -> Array:
        size = len(x)
        canvas = Image.new("L", (size, size), 90)
        pen = ImageDraw.Draw(canvas)
        centres = rng.uniform(-0.1, 1.1, (count, 2)) * size
        angles = angle + spread * rng.standard_normal(count)
        lengths = length * size * rng.uniform(0.4, 1, count) / 2
        tones = (rng.integers(levels, size=count) * 255 // (levels - 1)).astype(int)
        for (cx, cy), a, r, tone in zip(centres.tolist(), angles, lengths, tones.tolist(), strict=True):
            dx, dy = r * np.cos(a), r * np.sin(a)
            if kind < 2:
                pen.line((cx - dx, cy - dy, cx + dx, cy + dy), fill=tone, width=round(width))
            elif kind == 2:
                pen.ellipse((cx - r / 2, cy - r / 3, cx + r / 2, cy + r / 3), fill=tone)
            else:
                corners = [(cx + dx / 2, cy + dy / 2), (cx - dy / 3, cy + dx / 3), (cx - dx / 2, cy - dy / 2)]
                pen.polygon([*corners, (cx + dy / 4, cy - dx / 4)], fill=tone)
        return np.asarray(canvas, np.float32) / 255

    return draw


def flame_field(product: Generator) -> Field:
    """The density of the points of a random iterated function system (a fractal), as in FractalDB."""
    maps = product.integers(2, 6)
    matrix = product.uniform(-0.8, 0.8, (maps, 2, 2)).astype(np.float32)
    for k in range(maps):
        largest = np.linalg.svd(matrix[k], compute_uv=False)[0]
        matrix[k] *= min(1.0, product.uniform(0.6, 0.9) / largest)
    shift = product.uniform(-1, 1, (maps, 2)).astype(np.float32)
    weight = product.dirichlet(np.ones(maps) * 4)
    turn = product.uniform(0, np.pi) if product.random() < 0.3 else 0.0

    def draw(rng: Generator, x: Array, y: Array) -> Array:
        size = len(x)
        point, kept = rng.uniform(-1, 1, (400, 2)).astype(np.float32), []
        for step in range(40):
            k = rng.choice(maps, size=400, p=weight)
            point = np.einsum("nij,nj->ni", matrix[k], point) + shift[k]
            if step >= 8:
                kept.append(point)
        points = np.concatenate(kept)
        a = rng.uniform(-turn, turn)
        points = points @ np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]], np.float32)
        low, high = points.min(0), points.max(0)
        place = ((points - low) / (high - low + 1e-6) * (size * 0.9) + size * 0.05).astype(int)
        density = np.bincount(place[:, 1] * size + place[:, 0], minlength=size * size)[: size * size]
        return unit(np.log1p(density.reshape(size, size).astype(np.float32)))

    return draw


def contour_field(product: Generator) -> Field:
    """Closed curves, radius a sum of sines, nested or scattered (visual atoms); drawn as lines or filled."""
    count, harmonics = product.integers(1, 7), product.integers(1, 6)
    order = product.integers(2, 12, harmonics)
    gain = product.uniform(0, 0.35, harmonics) / harmonics
    radius, place = product.uniform(0.08, 0.42, count), product.uniform(0.25, 0.75, (count, 2))
    if product.random() < 0.5:
        place[:] = place[0]
    filled, width = product.random() < 0.5, product.uniform(0.01, 0.05)

    def draw(rng: Generator, x: Array, y: Array) -> Array:
        total = np.zeros(x.shape, np.float32)
        for (cx, cy), r in zip(place, radius, strict=True):
            dx, dy = x - cx, y - cy
            angle = np.arctan2(dy, dx)
            edge = r * (1 + sum(g * np.sin(o * angle) for g, o in zip(gain, order, strict=True)))
            inside = edge - np.sqrt(dx * dx + dy * dy)
            line = np.clip(1.5 - np.abs(inside) / width, 0, 1)
            total = np.maximum(total * 0.9, np.clip(inside * 60 + 0.5, 0, 1) if filled else line)
        return total.astype(np.float32)

    return draw


def marks_field(product: Generator) -> Field:
    """Text-like marks: a few glyphs of random strokes, in lines; the same text on each image, or another."""
    glyphs = [product.uniform(0, 1, (product.integers(2, 5), 2, 2)) for _ in range(8)]
    rows, columns = product.integers(1, 7), product.integers(2, 9)
    text, fixed = product.integers(8, size=(rows, columns)), product.random() < 0.6
    width = product.integers(1, 4)

    def draw(rng: Generator, x: Array, y: Array) -> Array:
        size = len(x)
        canvas = Image.new("L", (size, size), 0)
        pen = ImageDraw.Draw(canvas)
        chosen = text if fixed else rng.integers(8, size=(rows, columns))
        dx, dy = rng.normal(0, 1.0, 2)
        for row in range(rows):
            for column in range(columns):
                corner = np.array([(column + 0.2) / columns, (row + 0.2) / rows]) * size + [dx, dy]
                scale = np.array([0.65 / columns, 0.65 / rows]) * size
                for stroke in glyphs[chosen[row, column]]:
                    pen.line([tuple(corner + end * scale) for end in stroke], fill=255, width=int(width))
        return np.asarray(canvas, np.float32) / 255

    return draw


def plain_field(product: Generator) -> Field:
    """A bare surface: hardly any structure of its own."""
    slope, gain = product.uniform(1.0, 2.5), product.uniform(0.0, 0.15)

    def draw(rng: Generator, x: Array, y: Array) -> Array:
        return np.clip(0.5 + gain * spectral_noise(rng, len(x), slope), 0, 1)

    return draw


def speckle_field(product: Generator) -> Field:
    """Grains of several minerals, each of its own size and tone, over one another: granite, terrazzo, chipboard."""
    count, ground = int(product.integers(2, 5)), product.uniform(0, 1)
    peak = [log_uniform(product, 8, 60) for _ in range(count)]
    level, tone = product.uniform(0.2, 1.5, count), product.uniform(0, 1, count)
    edge, cover, cloud = log_uniform(product, 1.5, 8), product.uniform(0.4, 1, count), product.uniform(0, 0.1)

    def draw(rng: Generator, x: Array, y: Array) -> Array:
        size = len(x)
        values = ground + cloud * spectral_noise(rng, size, 0.5)
        for p, at, shade, share in zip(peak, level, tone, cover, strict=True):
            grain = np.clip(0.5 + edge * (spectral_noise(rng, size, 0.0, p) - at), 0, 1)
            values = values + share * grain * (shade - values)
        return np.clip(values, 0, 1).astype(np.float32)

    return draw


FIELDS: tuple[tuple[Callable[[Generator], Field], float], ...] = (
    (noise_field, 3.0),
    (waves_field, 3.0),
    (cells_field, 3.0),
    (bricks_field, 1.5),
    (weave_field, 1.5),
    (rings_field, 2.0),
    (strokes_field, 2.5),
    (flame_field, 1.0),
    (contour_field, 1.5),
    (marks_field, 1.0),
    (plain_field, 1.5),
)


def random_field(product: Generator, speckle: float) -> Field:
    """A field of a random family; speckle: the weight of `speckle_field` among them."""
    families = [*FIELDS, (speckle_field, speckle)]
    weight = np.array([w for _, w in families])
    return families[product.choice(len(families), p=weight / weight.sum())][0](product)
