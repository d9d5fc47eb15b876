"""The image program: products drawn by formulas, photographed under varying conditions, some with defects.

`batch(seed, step, ...)` depends on nothing but its arguments, so a run can be resumed and repeated.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.random import Generator
from PIL import Image
from scipy import ndimage

from pretraining.defects import SHARES, add_defect
from pretraining.fields import Array, Field, log_uniform, random_field, spectral_noise

Draw = Callable[[Generator, int], Array]


@dataclass(frozen=True)
class Program:
    """What is drawn how often. speckle: weight of that family of surfaces, the others having 1 to 3; defects: shares of
    the kinds of `add_defect`, in their order."""

    speckle: float = 0.0
    defects: tuple[float, ...] = SHARES

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> Program:
        return cls(**plain | {"defects": tuple(plain.get("defects", SHARES))})


def palette(product: Generator) -> Array:
    """Colours [256, 3] along a path through 2 to 5 random ones: grey, of one hue, or of any."""
    count, kind = product.integers(2, 6), product.random()
    colours = product.uniform(0, 1, (count, 3))
    if kind < 0.4:
        colours[:] = colours[:, :1]
    elif kind < 0.75:
        colours = colours[:, :1] * 0.8 + 0.35 * (colours[0] - 0.3)
    if product.random() < 0.6:
        colours = colours[np.argsort(colours.sum(1))]
    contrast = log_uniform(product, 0.08, 1.0)
    colours = colours.mean(0) + (colours - colours.mean(0)) * contrast
    at = np.linspace(0, count - 1, 256)
    path = np.stack([np.interp(at, np.arange(count), colours[:, c]) for c in range(3)], axis=1)
    return np.clip(path, 0.02, 0.98).astype(np.float32)


def paint(colours: Array, values: Array) -> Array:
    return colours[np.clip(values * 255, 0, 255).astype(np.uint8)]


def shading(height: Array, light: Array, gloss: float) -> tuple[Array, Array]:
    """Diffuse factor and highlight of a relief `height` (pixels) under a distant `light` (unit vector)."""
    dy, dx = np.gradient(height)
    length = np.sqrt(dx * dx + dy * dy + 1)
    diffuse = np.clip((-dx * light[0] - dy * light[1] + light[2]) / length, 0, None)
    return (0.35 + 0.75 * diffuse).astype(np.float32), (gloss * diffuse**24).astype(np.float32)


def solid(product: Generator) -> Callable[[Array, Array], tuple[Array, Array]]:
    """An object about the origin, |x|, |y| < 1: signed inside distance and relief, of random outline and profile."""
    kind, profile = product.integers(4), product.integers(4)
    lobes, depth = product.integers(3, 9), product.uniform(0, 0.25)
    aspect, power = product.uniform(0.5, 1.0), product.uniform(1.5, 8)
    hole = product.uniform(0.2, 0.6) if product.random() < 0.4 else 0.0

    def draw(x: Array, y: Array) -> tuple[Array, Array]:
        y = y / aspect
        radius, angle = np.sqrt(x * x + y * y), np.arctan2(y, x)
        if kind == 0:
            inside = 1 - (np.abs(x) ** power + np.abs(y) ** power) ** (1 / power)
        elif kind == 1:
            inside = 1 - radius / (1 - depth + depth * np.cos(lobes * angle))
        elif kind == 2:
            sector = np.pi / lobes
            inside = 1 - radius * np.cos((angle % (2 * sector)) - sector) / np.cos(sector)
        else:
            inside = 1 - np.maximum(np.abs(x), np.abs(y) * (1 + depth * np.cos(3 * x)))
        if hole:
            inside = np.minimum(inside, radius - hole)
        rim = np.clip(inside, 0, 1)
        relief = (np.sqrt(rim), np.minimum(rim, 0.15) * 3, rim, np.sin(rim * np.pi * 3) * 0.15)[profile]
        return inside.astype(np.float32), relief.astype(np.float32)

    return draw


@dataclass(frozen=True)
class Pose:
    """How one image of a product is taken: x' = zoom * R(turn) (x - 1/2) + shift, in image widths."""

    turn: float
    zoom: float
    shift: tuple[float, float]

    def grid(self, size: int) -> tuple[Array, Array]:
        at = (np.arange(size, dtype=np.float32) + 0.5) / size - 0.5
        y, x = np.meshgrid(at, at, indexing="ij")
        c, s = np.cos(self.turn) * self.zoom, np.sin(self.turn) * self.zoom
        u, v = c * x - s * y + self.shift[0], s * x + c * y + self.shift[1]
        return u.astype(np.float32), v.astype(np.float32)


def surface(product: Generator, speckle: float) -> tuple[Callable[[Generator, Array, Array], Array], Field]:
    """A coloured surface from one field, or two: added, masked by one another, or in relief."""
    first, second = random_field(product, speckle), random_field(product, speckle)
    colours, others = palette(product), palette(product)
    how, share = product.random(), product.uniform(0.1, 0.6)
    warp = product.uniform(0.005, 0.06) if product.random() < 0.3 else 0.0
    relief, light = product.uniform(0.5, 6), product.normal(size=3)

    def draw(rng: Generator, x: Array, y: Array) -> Array:
        if warp:
            x = x + warp * spectral_noise(rng, len(x), 2.0)
            y = y + warp * spectral_noise(rng, len(x), 2.0)
        values = first(rng, x, y)
        if how < 0.5:
            return paint(colours, values)
        if how < 0.65:
            return paint(colours, (1 - share) * values + share * second(rng, x, y))
        if how < 0.8:
            return np.where((values > share)[..., None], paint(colours, values), paint(others, second(rng, x, y)))
        if how < 0.9:
            return paint(colours, values) * (1 - share + share * second(rng, x, y)[..., None])
        vector = np.array([light[0], light[1], abs(light[2]) + 1])
        lit, shine = shading(values * relief, vector / np.linalg.norm(vector), 0.3)
        return paint(others, np.full_like(values, 0.5)) * lit[..., None] + shine[..., None]

    return draw, first


def objects(product: Generator, speckle: float) -> Callable[[Generator, Array, Array, Array], Array]:
    """Solids before a background, lit, with a shadow: one, or some in a lattice."""
    shape, (skin, _) = solid(product), surface(product, speckle)
    count = 1 if product.random() < 0.6 else int(product.integers(2, 5))
    extent, bump = product.uniform(0.25, 0.47) / count, product.uniform(5, 30) / count
    gloss, shade, base = product.uniform(0, 0.5), product.uniform(0.2, 0.8), product.uniform(0, 2 * np.pi)
    far, scatter = product.uniform(0.0, 0.06), product.uniform(0, 0.15)

    def draw(rng: Generator, x: Array, y: Array, background: Array) -> Array:
        size = len(x)
        u, v = x * count, y * count
        i, j = np.clip(np.floor(u), 0, count - 1), np.clip(np.floor(v), 0, count - 1)
        jitter = rng.normal(0, scatter, (count, count, 2)).astype(np.float32) * 0.2
        jx, jy = jitter[i.astype(int), j.astype(int)].transpose(2, 0, 1)
        radius = extent * count
        inside, relief = shape((u - i - 0.5 + jx) / radius, (v - j - 0.5 + jy) / radius)
        turn = base + rng.normal(0, 0.15)
        light = np.array([np.cos(turn), np.sin(turn), 1.2])
        lit, shine = shading(relief * bump * size / 112, light / np.linalg.norm(light), gloss)
        cover = np.clip(inside * extent * size + 0.5, 0, 1)
        move = (np.sin(turn) * far * size, np.cos(turn) * far * size)
        shadow = ndimage.gaussian_filter(ndimage.shift(cover, move, order=1), 0.02 * size)
        ground = background * (1 - shade * shadow[..., None])
        body = skin(rng, x, y) * lit[..., None] + shine[..., None]
        return ground * (1 - cover[..., None]) + body * cover[..., None]

    return draw


def make_product(product: Generator, speckle: float) -> Draw:
    """The parameters of one product; the result draws an image [S, S, 3] of a specimen, in [0, 1], without defects."""
    ground, _ = surface(product, speckle)
    solids = objects(product, speckle) if product.random() < 0.4 else None
    aligned = solids is not None or product.random() < 0.25
    turn, zoom = product.uniform(-np.pi, np.pi), log_uniform(product, 0.5, 1.3)
    loose = log_uniform(product, 0.002, 0.05)
    any_turn = product.random() < 0.1
    origin = product.uniform(-20, 20, 2)
    tone = product.uniform(0, 0.06)

    def draw(rng: Generator, size: int) -> Array:
        wander = 0.02 * rng.normal(size=2) if aligned else rng.uniform(-20, 20, 2)
        angle = rng.uniform(-np.pi, np.pi) if any_turn else rng.normal(0, loose)
        scale = float(np.exp(rng.normal(0, loose / 2)))
        x, y = Pose(turn + angle, zoom * scale, tuple(origin + wander)).grid(size)
        image = ground(rng, x, y)
        if solids is not None:
            moved = tuple(0.5 + loose * rng.normal(size=2))
            image = solids(rng, *Pose(angle, scale, moved).grid(size), image)
        return np.clip(image * (1 + tone * rng.normal()), 0, 1).astype(np.float32)

    return draw


def make_camera(product: Generator) -> Callable[[Generator, Array], Array]:
    """Photographic nuisance of a product's images: light, vignetting, gamma, blur, noise, JPEG, in their ranges."""
    slope, vignette = log_uniform(product, 0.01, 0.25), product.uniform(0, 0.3) * (product.random() < 0.4)
    grain, soft = log_uniform(product, 0.002, 0.04), product.uniform(0, 0.9) * (product.random() < 0.6)
    gain, jpeg, tint = product.uniform(0, 0.12), product.random() < 0.25, product.uniform(0, 0.03)

    def shoot(rng: Generator, image: Array) -> Array:
        size = len(image)
        at = np.linspace(-1, 1, size, dtype=np.float32)
        a, b, c = rng.normal(0, slope, 3) * [1, 1, 0.5]
        light = 1 + a * at[:, None] + b * at[None, :] + c * at[:, None] * at[None, :]
        light = light * (1 - vignette * (at[:, None] ** 2 + at[None, :] ** 2) / 2) * (1 + gain * rng.normal())
        image = np.clip(image * light[..., None] * (1 + tint * rng.normal(size=3)), 0, 1)
        image = image ** np.exp(rng.normal(0, 0.08))
        if soft:
            blur = soft * rng.uniform(0.7, 1.2)
            image = ndimage.gaussian_filter(image, (blur, blur, 0))
        noise = rng.standard_normal((size, size, 1 if rng.random() < 0.5 else 3), dtype=np.float32)
        image = np.clip(image + grain * rng.uniform(0.6, 1.4) * noise, 0, 1)
        if jpeg:
            file = io.BytesIO()
            Image.fromarray((image * 255).astype(np.uint8)).save(file, "JPEG", quality=int(rng.integers(50, 96)))
            image = np.asarray(Image.open(file), np.float32) / 255
        return image.astype(np.float32)

    return shoot


def product_images(
    product: Generator, count: int, size: int, program: Program, defective: float = 0.7
) -> tuple[Array, np.ndarray]:
    """`count` images [K, S, S, 3] of one new product, a share of them `defective`, and the masks [K, S, S] of what was
    changed."""
    draw, foreign = make_product(product, program.speckle), make_product(product, program.speckle)
    shoot = make_camera(product)
    lasting = log_uniform(product, 0.2, 1.0)  # how strong this product's defects are
    images, masks = [], []
    for number in range(count):
        rng = np.random.default_rng(product.integers(2**63))
        image, mask = draw(rng, size), np.zeros((size, size), bool)
        # One clean image at least, and which ones are defective is left to the order: images are exchangeable.
        if number > 0 and rng.random() < defective:
            for _ in range(rng.integers(1, 5)):
                image, changed = add_defect(rng, image, lasting, lambda r: foreign(r, size), program.defects)
                mask |= changed
        images.append(shoot(rng, image))
        masks.append(mask)
    return np.stack(images), np.stack(masks)


def batch(
    seed: int, step: int, products: int, count: int, size: int, program: Program = Program()
) -> tuple[np.ndarray, np.ndarray]:
    """Images [P, K, S, S, 3] uint8 and masks [P, K, S, S] bool of `products` new products, `count` images of each."""
    drawn = [
        product_images(np.random.default_rng([seed, step, number]), count, size, program) for number in range(products)
    ]
    images = np.stack([np.round(images * 255).astype(np.uint8) for images, _ in drawn])
    return images, np.stack([masks for _, masks in drawn])
