"""A crown cap (a bottle top, seen from above) and a gelatine capsule; each builder draws one part."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from musc.datasets.synthetic import defects as flaw
from musc.datasets.synthetic.defects import Defect
from musc.datasets.synthetic.shot import SHADOW, Shot, Surface, rgb


def soft_step(distance: np.ndarray, width: float) -> np.ndarray:
    """1 well inside, 0 well outside, a smooth edge `width` wide."""
    t = np.clip(0.5 - distance / width, 0, 1)
    return t * t * (3 - 2 * t)


def sampled(print_: np.ndarray, p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """A picture of the whole square from -1 to 1, read at (p, q) with bilinear interpolation, [H, W]."""
    n = len(print_)
    u, v = (np.clip((c + 1) * (n / 2) - 0.5, 0, n - 1.001) for c in (p, q))
    i, j = v.astype(np.int32), u.astype(np.int32)
    fv, fu = v - i, u - j
    upper = print_[i, j] + fu * (print_[i, j + 1] - print_[i, j])
    lower = print_[i + 1, j] + fu * (print_[i + 1, j + 1] - print_[i + 1, j])
    return upper + fv * (lower - upper)


def printed(print_: np.ndarray, p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """The same for a flat print, where p and q are linear in the picture: faster."""
    half = len(print_) / 2
    rows = []
    for c in (p, q):
        dx, dy = float(c[0, -1] - c[0, 0]) / (c.shape[1] - 1), float(c[-1, 0] - c[0, 0]) / (c.shape[0] - 1)
        rows += [half * dx, half * dy, half * (float(c[0, 0]) - 0.5 * (dx + dy) + 1)]
    image = Image.fromarray(print_).transform(p.shape[::-1], Image.Transform.AFFINE, rows, Image.Resampling.BILINEAR)
    return np.asarray(image, np.float32)


def cast(s: Surface, distance: np.ndarray, strength: float, width: float) -> None:
    s.shade *= 1 - strength * soft_step(distance, width)


def _table(shot: Shot, color: np.ndarray) -> Surface:
    s = Surface.flat(shot, color)
    s.albedo *= 1 + 0.012 * shot.noise("paper", shot.size) + 0.02 * shot.noise("cloth", 5)
    s.raise_by(0.0005 * shot.noise("paper-relief", 120))
    return s


@lru_cache(maxsize=1)
def _cap_print() -> np.ndarray:
    """The brewery's mark: a ring, a star and the name around it."""
    n = 768
    image = Image.new("L", (n, n))
    draw = ImageDraw.Draw(image)

    def at(radius: float, angle: float) -> tuple[float, float]:
        return n / 2 * (1 + radius * math.cos(angle)), n / 2 * (1 + radius * math.sin(angle))

    for radius, width in ((0.50, 8), (0.285, 6)):
        box = [n / 2 * (1 - radius), n / 2 * (1 - radius), n / 2 * (1 + radius), n / 2 * (1 + radius)]
        draw.ellipse(box, outline=255, width=width)
    star = [at(0.22 if k % 2 == 0 else 0.095, math.pi * (k / 5 - 0.5)) for k in range(10)]
    draw.polygon(star, fill=255)
    font = ImageFont.load_default(62)
    for text, start, turn in (("HOLLERBRAU", -math.pi / 2, 1), ("1862", math.pi / 2, -1)):
        for k, letter in enumerate(text):
            angle = start + turn * (k - (len(text) - 1) / 2) * 0.255
            glyph = Image.new("L", (110, 110))
            ImageDraw.Draw(glyph).text((55, 55), letter, fill=255, font=font, anchor="mm", stroke_width=1)
            tilt = -math.degrees(angle - start)
            x, y = at(0.39, angle)
            turned = glyph.rotate(tilt, Image.Resampling.BICUBIC)
            image.paste(255, (round(x) - 55, round(y) - 55), turned)
    return np.asarray(image.reduce(2), np.float32) / 255


def bottle_top(shot: Shot, defect: Defect | None) -> Surface:
    """A crown cap from above: 21 flutes, lacquered sheet, printed mark, on a dark conveyor."""
    p, q = shot.pose(0.035, 0.015, 0.008)
    rng = shot.rng("part")
    center = defect.spot(0.3) if defect else (0.0, 0.0)
    theta = np.arctan2(q, p)
    r = np.hypot(p, q)
    flutes = np.cos(21 * theta)
    edge = 0.765 + 0.028 * flutes + 0.003 * np.cos(3 * theta + rng.uniform(0, 6))
    if defect and defect.kind == "bent_flute":
        angle, half = defect.uniform(-math.pi, math.pi), defect.size(0.09, 0.28)
        away = np.abs((theta - angle + math.pi) % (2 * math.pi) - math.pi)
        bend = np.exp(-((away / half) ** 4))
        edge = edge + bend * (defect.contrast(0.05, 0.11) * defect.sign())
        flutes = flutes * (1 - 0.8 * bend)

    s = _table(shot, rgb(92, 94, 98))
    cast(s, np.hypot(p - 0.10 * SHADOW[0], q - 0.10 * SHADOW[1]) - 0.77, 0.62, 0.14)
    cast(s, r - edge, 0.35, 0.06)
    inside = s.cover(r - edge)

    skirt = np.clip((r - 0.575) / (edge - 0.575), 0, 1)
    height = -0.20 * skirt**1.6 + 0.030 * flutes * np.clip(skirt * 1.6, 0, 1)
    height += 0.020 * np.exp(-(((r - 0.575) / 0.035) ** 2)) - 0.05 * r * r
    if defect and defect.kind == "dent":
        wide = defect.size(0.07, 0.2)
        u, v = p - center[0], (q - center[1]) * defect.uniform(0.8, 1.6)
        height -= defect.contrast(0.10, 0.28) * wide * np.exp(-((u * u + v * v) / (wide * wide)))

    ink = printed(_cap_print(), p + 0.006 * rng.uniform(-1, 1), q + 0.006 * rng.uniform(-1, 1))
    if defect and defect.kind == "print":
        ink = _misprint(shot, defect, ink, p, q)
    lacquer = rgb(164, 34, 36) * (1 + 0.03 * shot.noise("lacquer", 6) + 0.02 * shot.noise("peel", 100))
    s.put(inside, lacquer, height + 0.0003 * shot.noise("orange-peel", 70), gloss=0.55, metal=0.10)
    s.paint(0.95 * inside * ink, rgb(236, 222, 190))
    worn = np.clip((skirt - 0.86) * 6, 0, 1) * inside
    s.paint(0.45 * worn, rgb(186, 176, 170))
    s.shade *= 1 - inside * 0.45 * np.clip(skirt * 1.3, 0, 1) * (0.5 - 0.5 * flutes)
    if not defect:
        return s
    if defect.kind == "scratch":
        bare = rgb(208, 206, 204)
        s.confined(inside, lambda t: flaw.scratch(t, defect, p, q, center, (0.2, 0.8), color=bare, tone=(0.4, 0.95)))
    elif defect.kind == "rust":
        angle = defect.uniform(-math.pi, math.pi)
        rim = (0.66 * math.cos(angle), 0.66 * math.sin(angle))
        brown = rgb(120, 74, 46)
        s.confined(inside, lambda t: _rust(t, defect, p, q, rim, brown))
    return s


def _misprint(shot: Shot, defect: Defect, ink: np.ndarray, p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """A patch of the ink is missing, or the whole mark has slipped."""
    angle = defect.uniform(-math.pi, math.pi)
    if defect.uniform(0, 1) < 0.3:
        slip = defect.size(0.035, 0.11)
        return printed(_cap_print(), p + slip * math.cos(angle), q + slip * math.sin(angle))
    where = (0.36 * math.cos(angle), 0.36 * math.sin(angle))
    gone = soft_step(flaw.blob(defect, p, q, where, defect.size(0.10, 0.26), 1.2), 0.05)
    flecks = np.clip(0.8 + 0.8 * defect.mottle(shot.size, 60), 0, 1)
    return ink * (1 - defect.contrast(0.7, 1.0) * gone * flecks)


def _rust(s: Surface, defect: Defect, p: np.ndarray, q: np.ndarray, center: flaw.Pair, color: np.ndarray) -> None:
    r = defect.size(0.05, 0.16)
    distance = flaw.blob(defect, p, q, center, r, 1.5)
    pits = defect.mottle(len(p), 70)
    amount = defect.contrast(0.6, 0.95) * np.clip(0.5 - distance / (0.5 * r) + 0.35 * pits, 0, 1)
    s.paint(amount, color * (1 + 0.3 * pits))
    s.gloss *= 1 - amount
    s.raise_by(0.004 * pits * amount)


@lru_cache(maxsize=1)
def _capsule_print() -> np.ndarray:
    n = 512
    image = Image.new("L", (n, n))
    font = ImageFont.load_default(62)
    ImageDraw.Draw(image).text((150, n / 2), "M 500", fill=255, font=font, anchor="mm", stroke_width=1)
    return np.asarray(image, np.float32) / 255


def capsule(shot: Shot, defect: Defect | None) -> Surface:
    """A two-piece gelatine capsule, dark body and orange cap, printed, on white."""
    p, q = shot.pose(0.03, 0.02, 0.01)
    rng = shot.rng("part")
    center = defect.spot(0.5, 0.14) if defect else (0.0, 0.0)
    a, b = p, q
    if defect and defect.kind == "squeeze":
        wide, deep = defect.size(0.12, 0.3), defect.contrast(0.10, 0.28)
        side = defect.sign()
        pinch = deep * np.exp(-(((p - center[0]) / wide) ** 2)) * soft_step(-side * q - 0.05, 0.25)
        b = q * (1 + 1.2 * pinch)

    seam = 0.06 + 0.006 * rng.uniform(-1, 1)
    reach = 0.80 + 0.004 * rng.uniform(-1, 1)
    radius = np.where(a > seam, np.float32(0.305), np.float32(0.288))  # the cap slips over the body
    along = np.maximum(np.abs(a) - (reach - radius), 0)
    profile = np.hypot(along, b)
    distance = profile - radius
    dome = np.sqrt(np.clip(radius**2 - profile**2, 0, None))

    s = _table(shot, rgb(214, 214, 212))
    dx, dy = 0.15 * SHADOW[0], 0.15 * SHADOW[1]
    cast(s, np.hypot(np.maximum(np.abs(a - dx) - 0.5, 0), b - dy) - 0.285, 0.42, 0.16)
    cast(s, distance, 0.30, 0.08)
    inside = s.cover(distance)

    ink = sampled(_capsule_print(), p + 0.012 * rng.uniform(-1, 1), np.arcsin(np.clip(b / 0.30, -1, 1)) * 0.30)
    if defect and defect.kind == "print":
        where = (defect.uniform(-0.58, -0.25), defect.uniform(-0.05, 0.05))
        gone = flaw.blob(defect, p, q, where, defect.size(0.06, 0.2), 1.2)
        ink = ink * (1 - defect.contrast(0.75, 1) * soft_step(gone, 0.04))
    edge = np.clip(0.5 + (a - seam) / s.px, 0, 1)
    gelatine = rgb(58, 64, 52) + edge * (rgb(214, 118, 34) - rgb(58, 64, 52))
    # Gelatine lets light through: thin at the outline, so paler there.
    pale = np.clip(profile / radius, 0, 1) ** 4
    gelatine = gelatine * (1 + 0.35 * pale + 0.02 * shot.noise("powder", 30))
    relief = 0.75 * dome + 0.00015 * shot.noise("skin", 40)
    if defect and defect.kind == "poke":
        wide = defect.size(0.03, 0.075)
        bowl = np.exp(-(((p - center[0]) ** 2 + (q - center[1]) ** 2) / (wide * wide)))
        relief = relief - defect.contrast(0.5, 1.0) * wide * bowl
        gelatine = gelatine * (1 - 0.45 * bowl)
    s.put(inside, gelatine, relief, gloss=0.95)
    s.paint(0.85 * inside * ink, rgb(206, 204, 190))
    # Where the cap ends over the body: a bright lip, a thin shadow beside it, a locking groove on either side.
    s.shade *= 1 - inside * 0.55 * np.exp(-(((a - seam + 0.012) / 0.010) ** 2)) * (a < seam)
    for groove in (-0.06, 0.16):
        s.raise_by(inside * -0.005 * np.exp(-(((a - groove) / 0.016) ** 2)))
    if not defect:
        return s
    if defect.kind == "crack":
        path = defect.path(*center, defect.size(0.16, 0.5), wander=0.5, points=13)
        path += defect.rng.normal(0, 0.009, path.shape)
        s.confined(inside, lambda t: _crack(t, defect, p, q, path))
    elif defect.kind == "scratch":
        s.confined(inside, lambda t: flaw.scratch(t, defect, p, q, center, (0.2, 0.6), (0.007, 0.014), tone=(0.45, 1)))
    return s


def _crack(s: Surface, defect: Defect, p: np.ndarray, q: np.ndarray, path: np.ndarray) -> None:
    distance, t = flaw.along(p, q, path)
    half = defect.contrast(0.008, 0.02) * (1.05 - np.abs(2 * t - 1))
    s.raise_by(0.7 * half * np.exp(-(((distance - half) / 0.012) ** 2)))
    s.put(s.cover(distance - half), rgb(16, 15, 12))
