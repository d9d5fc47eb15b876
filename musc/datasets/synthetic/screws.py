"""A zinc-plated wood screw, seen from the side, at a fixed or at a random angle."""

from __future__ import annotations

import math

import numpy as np

from musc.datasets.synthetic import defects as flaw
from musc.datasets.synthetic.defects import Defect
from musc.datasets.synthetic.objects import soft_step
from musc.datasets.synthetic.shot import SHADOW, Shot, Surface, rgb, rotate

HEAD, NECK, THREAD, CONE, TIP = -0.70, -0.50, -0.22, 0.52, 0.70  # places along the axis
PITCH = 0.072
SHANK, CREST, WASHER = 0.085, 0.118, 0.235  # radii
_AXIS = np.linspace(HEAD - 0.1, TIP + 0.1, 2048)


def _radius(p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The radius of the body and of the thread's crests at each place along the axis."""
    body, ridge = (np.interp(p, _AXIS, values) for values in _profile(_AXIS))
    return body.astype(np.float32), ridge.astype(np.float32)


def _profile(p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    taper = np.clip((TIP - p) / (TIP - CONE), 0, 1) ** 0.8
    head = WASHER * np.sqrt(np.clip(1 - ((NECK - 0.04 - p) / 0.165).clip(0, None) ** 2, 0, 1))
    sink = SHANK + (WASHER - SHANK) * np.clip(1 - (p - NECK + 0.04) / 0.115, 0, 1) ** 1.5
    body = np.where(p < NECK - 0.04, head, np.maximum(sink, SHANK)) * np.where(p > THREAD, taper, 1)
    start = np.clip((p - THREAD) / 0.05, 0, 1)
    return body, start * (CREST - SHANK) * taper**0.7


def _drawn(shot: Shot, angle: float, p: np.ndarray, q: np.ndarray, defect: Defect | None) -> Surface:
    """The screw in its own coordinates p (from head to tip) and q, turned by `angle` in the picture."""
    rng = shot.rng("part")
    roll, zoom = rng.uniform(), 0.87 + 0.008 * rng.uniform(-1, 1)
    p, q = p * zoom, q * zoom
    if defect:
        p, q = _deformed(defect, p, q)
    body, ridge = _radius(p)
    if defect and defect.kind == "thread":  # crests sheared off or mashed along a stretch
        middle, half = defect.uniform(THREAD + 0.1, CONE - 0.08), defect.size(0.05, 0.16)
        worn = np.clip((half - np.abs(p - middle)) / 0.02 + 0.5, 0, 1)
        ridge = ridge * (1 - defect.contrast(0.6, 1.0) * worn)
        body = body + 0.012 * worn * np.sin(38 * p + defect.uniform(0, 6)) * (q < 0)
    reach = np.maximum(body + ridge, 1e-4)
    around = np.arcsin(np.clip(q / reach, -1, 1)) / (2 * math.pi)
    phase = (p - THREAD) / PITCH + around + roll
    tooth = (0.5 + 0.5 * np.cos(2 * math.pi * phase)) ** 1.5
    radius = body + ridge * tooth
    height = np.sqrt(np.clip(radius**2 - q**2, 0, None))
    ends = np.maximum(HEAD - p, p - TIP)
    inside = np.maximum(np.abs(q) - radius, ends)

    s = Surface.flat(shot, rgb(206, 206, 203))
    s.albedo *= 1 + 0.012 * shot.noise("paper", shot.size) + 0.02 * shot.noise("cloth", 5)
    s.raise_by(0.0005 * shot.noise("paper-relief", 120))
    c, d = math.cos(angle), math.sin(angle)
    along, across = 0.09 * (SHADOW[0] * c + SHADOW[1] * d), 0.09 * (SHADOW[1] * c - SHADOW[0] * d)
    cast_body, cast_ridge = _radius(p - along)
    cast = np.maximum(np.abs(q - across) - cast_body - 0.6 * cast_ridge, np.abs(p - along - 0.5 * (HEAD + TIP)) - 0.7)
    s.shade *= 1 - 0.50 * soft_step(cast, 0.13)
    s.shade *= 1 - 0.30 * soft_step(inside, 0.07)

    metal = s.cover(inside)
    grain = shot.noise("zinc", 90)
    steel = rgb(206, 204, 198) * (1 + 0.05 * grain + 0.05 * shot.noise("passivation", 9))
    s.put(metal, steel, height + 0.0004 * grain, gloss=0.25, metal=0.85)
    s.shade *= 1 - metal * (0.45 * np.clip(ridge / 0.03, 0, 1) * (1 - tooth))
    if defect and defect.kind in ("scratch_head", "scratch_neck"):  # through the zinc, already rusting
        start, end, side = (HEAD + 0.08, NECK, 0.1) if defect.kind == "scratch_head" else (NECK + 0.12, THREAD, 0.03)
        where = (defect.uniform(start, end), defect.uniform(-side, side))
        length, width, bare = (0.13, 0.32), (0.010, 0.021), rgb(90, 64, 45)
        s.confined(metal, lambda t: flaw.scratch(t, defect, p, q, where, length, width, bare, (0.5, 0.95)))
    return s


def _deformed(defect: Defect, p: np.ndarray, q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The coordinates of a screw that is bent, or lacks its tip."""
    if defect.kind == "bent":
        start, side = defect.uniform(0.0, 0.35), defect.sign()
        q = q - side * defect.contrast(0.16, 0.40) * np.maximum(p - start, 0) ** (1.5 - 0.35 * defect.extent)
    elif defect.kind == "tip":  # squashed or snapped off, along a ragged slanted edge
        end, slant = TIP - defect.size(0.06, 0.2), defect.uniform(-0.6, 0.6)
        ragged = 0.012 * np.sin(55 * q + defect.uniform(0, 6))
        p = np.where(p + slant * q + ragged > end, p + 10, p)
    return p, q


def screw(shot: Shot, defect: Defect | None) -> Surface:
    """The screw lies as a feeder would put it, within two degrees."""
    angle = math.radians(-24)
    p, q = shot.pose(0.035, 0.02, 0.01)
    return _drawn(shot, angle, *rotate(p, q, angle), defect)


def screw_random(shot: Shot, defect: Defect | None) -> Surface:
    """The same screw, thrown down: any angle, and off centre (the paper's hard case, App. A.3, Tab. 12)."""
    angle = float(shot.rng("orientation").uniform(0, 2 * math.pi))
    p, q = shot.pose(0.0, 0.12, 0.02)
    return _drawn(shot, angle, *rotate(p, q, angle), defect)
