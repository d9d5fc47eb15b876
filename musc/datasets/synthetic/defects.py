"""What goes wrong on any surface: scratches, stains, holes, cuts, dents and foreign bodies.

Each function changes a `Surface` in place, near a point in the product's own coordinates (p, q); all that is random
in a defect comes from the defect's own stream, so that two images with the same `Defect` show the same one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from musc.datasets.synthetic.shot import Surface, resized, rgb, rotate

Field = np.ndarray  # [H, W], or a colour [3, 1, 1] or [3, H, W]
Pair = tuple[float, float]  # a place (p, q), or the least and the greatest value of a measure


@dataclass
class Defect:
    """One flaw: its kind, and how large and how strong it is within what its kind allows (both 0 to 1)."""

    kind: str
    seed: tuple[int, ...]
    extent: float
    strength: float
    rng: np.random.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)

    def size(self, low: float, high: float) -> float:
        return low * (high / low) ** self.extent

    def contrast(self, low: float, high: float) -> float:
        return low + (high - low) * self.strength

    def uniform(self, low: float, high: float) -> float:
        return float(self.rng.uniform(low, high))

    def sign(self) -> int:
        return 1 if self.uniform(0, 1) < 0.5 else -1

    def spot(self, width: float, height: float | None = None) -> tuple[float, float]:
        """A place within ± width, ± height of the product's centre."""
        return self.uniform(-width, width), self.uniform(-1, 1) * (width if height is None else height)

    def path(self, p: float, q: float, length: float, wander: float = 0.25, points: int = 11) -> np.ndarray:
        """A curved line of that length through (p, q) in a random direction, [points, 2]."""
        angle, bend, wave = self.uniform(0, math.pi), self.uniform(-1, 1), self.uniform(-1, 1)
        t = np.linspace(-0.5, 0.5, points)
        side = wander * (bend * (t * t - 0.08) * 2 + 0.25 * wave * np.sin(2 * math.pi * t))
        c, s = math.cos(angle), math.sin(angle)
        return np.stack([p + length * (t * c - side * s), q + length * (t * s + side * c)], 1)

    def mottle(self, size: int, cells: int) -> np.ndarray:
        """Smooth noise that belongs to the defect, [size, size]."""
        return resized(self.rng.standard_normal((cells, cells), np.float32), size)


def along(p: Field, q: Field, path: np.ndarray) -> tuple[Field, Field]:
    """The distance to a polyline [n, 2] and the place of the nearest point on it (0: start, 1: end)."""
    nearest, place = np.full_like(p, np.inf), np.zeros_like(p)
    steps = len(path) - 1
    for k in range(steps):
        (ax, ay), (bx, by) = path[k].tolist(), path[k + 1].tolist()
        dx, dy = bx - ax, by - ay
        t = np.clip(((p - ax) * dx + (q - ay) * dy) / (dx * dx + dy * dy), 0, 1)
        squared = (p - ax - t * dx) ** 2 + (q - ay - t * dy) ** 2
        closer = squared < nearest
        nearest = np.where(closer, squared, nearest)
        place = np.where(closer, (k + t) / steps, place)
    return np.sqrt(nearest), place


def blob(d: Defect, p: np.ndarray, q: np.ndarray, center: Pair, radius: float, rough: float = 1.0) -> Field:
    """The signed distance to an irregular outline around `center`, about `radius` wide, [H, W]."""
    u, v = rotate(p - center[0], q - center[1], d.uniform(0, math.pi))
    stretch = d.uniform(1.0, 1.5)
    u, v = u / stretch, v * stretch**0.5
    theta, rim = np.arctan2(v, u), np.ones_like(u)
    for k in range(2, 9):
        rim += rough * 0.28 / k * np.cos(k * theta + d.uniform(0, 2 * math.pi)) * d.uniform(0.3, 1)
    return np.hypot(u, v) - radius * rim


def scratch(
    s: Surface,
    d: Defect,
    p: Field,
    q: Field,
    center: Pair,
    length: Pair = (0.25, 0.9),
    width: Pair = (0.008, 0.018),
    color: Field | None = None,
    tone: Pair = (0.35, 0.9),
) -> None:
    """A groove with a torn edge; `color` is the material that it lays bare (None: the surface, brightened)."""
    distance, t = along(p, q, d.path(*center, d.size(*length)))
    half = d.size(*width) * (0.35 + 0.65 * np.sin(math.pi * np.clip(t, 0.02, 0.98)) ** 0.6)
    amount = d.contrast(*tone) * s.cover(distance - half)
    bare = np.clip(1.9 * s.albedo + 0.06, 0, 0.95) if color is None else color
    s.paint(amount, bare)
    s.raise_by(-0.9 * half * np.exp(-((distance / half) ** 2)))


def stain(
    s: Surface,
    d: Defect,
    p: Field,
    q: Field,
    center: Pair,
    radius: Pair = (0.09, 0.3),
    color: Field | None = None,
    amount: Pair = (0.3, 0.75),
    edge: float = 0.25,
    gloss: float = 0.0,
) -> None:
    """A liquid that has soaked in or dried on: soft, mottled, darker at its rim. `color` multiplies the albedo."""
    r = d.size(*radius)
    distance = blob(d, p, q, center, r)
    soft = np.clip(0.5 - distance / (edge * r), 0, 1)
    rim = np.exp(-((distance / (0.10 * r) + 0.6) ** 2))
    mottle = 1 + 0.16 * d.mottle(len(p), 24)
    tint = rgb(189, 165, 135) if color is None else color
    weight = np.clip(d.contrast(*amount) * (soft * mottle * 0.85 + 0.25 * rim * soft), 0, 1)
    s.albedo *= 1 + weight * (tint - 1)
    s.gloss += gloss * soft


def hole(
    s: Surface,
    d: Defect,
    p: Field,
    q: Field,
    center: Pair,
    radius: Pair = (0.035, 0.12),
    color: Field | None = None,
    rough: float = 0.8,
) -> None:
    """A hole through the surface, with a pressed-in rim and darkness inside."""
    r = d.size(*radius)
    distance = blob(d, p, q, center, r, rough)
    inside = s.cover(distance)
    s.raise_by(0.3 * r * np.exp(-((distance / (0.22 * r)) ** 2)))
    s.put(inside, rgb(28, 27, 26) if color is None else color)
    s.shade *= 1 - 0.35 * np.exp(-((np.maximum(distance, 0) / (0.2 * r)) ** 2)) * (1 - inside)


def cut(
    s: Surface,
    d: Defect,
    p: Field,
    q: Field,
    center: Pair,
    length: Pair = (0.25, 0.8),
    width: Pair = (0.010, 0.03),
    color: Field | None = None,
) -> None:
    """A slash that gapes in its middle: dark inside, lips raised and bright towards the lamp."""
    distance, t = along(p, q, d.path(*center, d.size(*length), wander=0.15))
    half = d.size(*width) * np.sin(math.pi * np.clip(t, 0.02, 0.98)) ** 0.8
    half *= 1 + 0.18 * d.mottle(len(p), 48)
    s.raise_by(0.8 * half * np.exp(-(((distance - half) / (0.012 + 0.6 * half)) ** 2)))
    s.paint(d.contrast(0.75, 0.97) * s.cover(distance - half), rgb(36, 33, 31) if color is None else color)


def dent(
    s: Surface, d: Defect, p: Field, q: Field, center: Pair, radius: Pair = (0.06, 0.2), depth: Pair = (0.15, 0.45)
) -> None:
    """A knock that deforms the surface and takes nothing away: only light and shade tell."""
    r = d.size(*radius)
    distance = np.maximum(blob(d, p, q, center, 0.4 * r, 0.6), 0)
    s.raise_by(-d.contrast(*depth) * r * np.exp(-((distance / (0.6 * r)) ** 2)))


def cast_shadow(s: Surface, amount: np.ndarray, reach: float, strength: float = 0.55) -> None:
    """Darken the side away from the lamp (below and to the right) of a thing that covers `amount` of each pixel."""
    step = max(1, round(reach / s.px))
    for k in (1, 2):
        shifted = np.zeros_like(amount)
        dx, dy = max(1, round(0.6 * step * k / 2)), max(1, round(step * k / 2))
        shifted[dy:, dx:] = amount[:-dy, :-dx]
        s.shade *= 1 - 0.5 * strength * shifted


def fibre(
    s: Surface,
    d: Defect,
    p: Field,
    q: Field,
    center: Pair,
    color: Field,
    length: Pair = (0.35, 1.0),
    width: Pair = (0.008, 0.018),
    metal: float = 0.0,
    wander: float = 0.9,
) -> None:
    """A foreign thread or wire, lying on the surface."""
    distance, _ = along(p, q, d.path(*center, d.size(*length), wander=wander, points=15))
    half = d.size(*width)
    amount = s.cover(distance - half) * d.contrast(0.7, 1)
    cast_shadow(s, amount, 1.6 * half)
    relief = np.sqrt(np.maximum(half * half - distance * distance, 0))
    s.put(amount, color, relief, gloss=0.15, metal=metal)


def crumb(
    s: Surface,
    d: Defect,
    p: Field,
    q: Field,
    center: Pair,
    color: Field,
    radius: Pair = (0.035, 0.11),
    metal: float = 0.0,
    gloss: float = 0.3,
    rough: float = 1.0,
) -> None:
    """A foreign lump (swarf, plastic, dirt) on the surface, with its shadow."""
    r = d.size(*radius)
    distance = blob(d, p, q, center, r, rough)
    amount = s.cover(distance)
    cast_shadow(s, amount, 0.35 * r)
    depth = np.clip(-distance / r, 0, 1)  # steep at the outline, level in the middle
    dome = r * (0.35 * np.sqrt(1 - (1 - depth) ** 4) + 0.03 * d.mottle(len(p), 36))
    s.put(amount, color, dome, gloss=gloss, metal=metal)
