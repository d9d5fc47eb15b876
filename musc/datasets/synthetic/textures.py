"""Five materials that fill the frame: woven canvas, wire grid, wood, granite tile and leather.

Each builder draws one normal sample from the shot (phase, grain, slight rotation) and applies the defect, if any.
"""

from __future__ import annotations

import math

import numpy as np

from musc.datasets.synthetic import defects as flaw
from musc.datasets.synthetic.defects import Defect
from musc.datasets.synthetic.shot import Shot, Surface, rgb


def _bump(f: np.ndarray, half: np.ndarray) -> np.ndarray:
    """The cross-section of a thread: 1 in its middle (f = 0), 0 from `half` on."""
    return np.sqrt(np.clip(1 - (f / half) ** 2, 0, 1))


def _per_thread(rng: np.random.Generator, index: np.ndarray) -> np.ndarray:
    """A value of about unit deviation that is constant along each thread, [size, size]."""
    table: np.ndarray = rng.standard_normal(64).astype(np.float32)
    return table[index.astype(np.int32) % 64]


def weave(shot: Shot, defect: Defect | None) -> Surface:
    """Plain-woven linen, 19 threads across; each thread has its own tone and thickness and a visible twist."""
    count = 19 / 2
    p, q = shot.pose(0.02, 0.0, 0.01)
    phase = shot.rng("phase").uniform(0, 64, 2).tolist()
    sway = 0.10
    u = p * count + phase[0] + sway * shot.noise("sway-u", 7)
    v = q * count + phase[1] + sway * shot.noise("sway-v", 7)

    center = defect.spot(0.65) if defect else (0.0, 0.0)
    gone = np.zeros_like(u)
    if defect and defect.kind in ("missing_thread", "pulled_thread"):
        row = math.floor(center[1] * count + phase[1]) + 0.5
        half = defect.size(0.2, 0.6)
        fade = 0.06 if defect.kind == "missing_thread" else 0.3
        inside = np.clip((half - np.abs(p - center[0])) / fade + 0.5, 0, 1)
        if defect.kind == "missing_thread":
            gone = inside * (np.floor(v) == math.floor(row))
        else:  # a tight thread gathers its neighbours
            pull = defect.contrast(0.6, 1.0) * inside
            away = v - row
            v = row + away * (1 + 1.2 * pull * np.exp(-((away / 1.3) ** 2)))
            gone = -0.9 * pull * (np.abs(v - row) < 0.5)

    i, j = np.floor(u), np.floor(v)
    fu, fv = u - i - 0.5, v - j - 0.5
    over = np.where((i + j) % 2 == 0, 1.0, -1.0).astype(np.float32)
    tone_u, tone_v = _per_thread(shot.rng("tone-u"), i), _per_thread(shot.rng("tone-v"), j)
    warp = _bump(fu, 0.47 + 0.015 * tone_v) + 0.75 * over * np.cos(math.pi * fv) * (1 - 0.75 * np.maximum(gone, 0))
    weft = _bump(fv, 0.47 + 0.015 * tone_u) - 0.75 * over * np.cos(math.pi * fu) - 1.6 * gone
    # Three yarns twisted together show as slanted ridges along each thread.
    twist_u = np.cos(2 * math.pi * (2.2 * fu + 1.1 * v + 0.3 * tone_u))
    twist_v = np.cos(2 * math.pi * (2.2 * fv + 1.1 * u + 0.3 * tone_v))
    top = np.clip(0.5 + 4 * (warp - weft), 0, 1)
    height = weft + top * (warp - weft)
    fuzz = shot.noise("fuzz", shot.size)

    s = Surface.flat(shot, rgb(188, 176, 152))
    tone = tone_v + top * (tone_u - tone_v)
    s.albedo *= 1 + 0.07 * tone + 0.04 * fuzz + 0.07 * shot.noise("slub", 40, 40)
    s.albedo *= 1 + (1 - top) * (rgb(242, 245, 251) - 1)
    s.raise_by((0.36 * height + 0.055 * (twist_v + top * (twist_u - twist_v)) + 0.02 * fuzz) / count / 2, limit=1.6)
    s.shade *= np.clip(0.34 + 0.46 * height, 0.16, 1)
    if not defect:
        return s
    if defect.kind == "hole":
        flaw.hole(s, defect, p, q, center, radius=(0.05, 0.16), rough=1.4)
    elif defect.kind == "cut":
        flaw.cut(s, defect, p, q, center)
    elif defect.kind == "stain":
        flaw.stain(s, defect, p, q, center, radius=(0.10, 0.32))
    elif defect.kind == "foreign_fibre":
        color = rgb(*((60, 66, 92), (120, 48, 40), (58, 58, 54))[int(defect.rng.integers(3))])
        flaw.fibre(s, defect, p, q, center, color)
    return s


def grid(shot: Shot, defect: Defect | None) -> Surface:
    """A crimped steel wire cloth over a dark base, wires on the diagonals."""
    count = 9 / 2
    p, q = shot.pose(0.015, 0.0, 0.01)
    center = defect.spot(0.65) if defect else (0.0, 0.0)
    a, b = p, q
    if defect and defect.kind == "bent":  # the cloth has been pushed aside around a point
        r = defect.size(0.12, 0.3)
        direction, push = defect.uniform(0, 2 * math.pi), defect.contrast(0.30, 0.6) * r
        bulge = push * np.exp(-((p - center[0]) ** 2 + (q - center[1]) ** 2) / (r * r))
        a, b = p + bulge * math.cos(direction), q + bulge * math.sin(direction)
    phase = shot.rng("phase").uniform(0, 64, 2).tolist()
    s2 = math.sqrt(0.5)
    u = (a + b) * s2 * count + phase[0] + 0.02 * shot.noise("sway-u", 6)
    v = (b - a) * s2 * count + phase[1] + 0.02 * shot.noise("sway-v", 6)

    i, j = np.floor(u), np.floor(v)
    fu, fv = u - i - 0.5, v - j - 0.5
    half_u = 0.155 + 0.004 * _per_thread(shot.rng("gauge-u"), i)
    half_v = 0.155 + 0.004 * _per_thread(shot.rng("gauge-v"), j)
    if defect and defect.kind == "broken":  # one wire ends, its other end starts further on
        mine = i == math.floor((center[0] + center[1]) * s2 * count + phase[0])
        middle, half = (center[1] - center[0]) * s2 * count + phase[1], defect.size(0.45, 1.6)
        half_u = np.where(mine, half_u * np.clip((np.abs(v - middle) - half) * 8, 0, 1), half_u)

    over = np.where((i + j) % 2 == 0, 1.0, -1.0).astype(np.float32)
    ru, rv = np.maximum(half_u, 1e-4), np.maximum(half_v, 1e-4)
    warp = np.sqrt(np.clip(ru**2 - fu**2, 0, None)) + 0.10 * over * np.cos(math.pi * fv)
    weft = np.sqrt(np.clip(rv**2 - fv**2, 0, None)) - 0.10 * over * np.cos(math.pi * fu)
    cover_u = np.clip(0.5 - (np.abs(fu) - half_u) / (count * shot.px), 0, 1) * (half_u > 0.01)
    cover_v = np.clip(0.5 - (np.abs(fv) - half_v) / (count * shot.px), 0, 1)

    s = Surface.flat(shot, rgb(70, 72, 76))
    s.albedo *= 1 + 0.18 * shot.fractal("felt", 48, 2)
    s.raise_by(0.002 * shot.noise("felt-relief", 128))
    # The wires' soft shadow on the base, below and to the right of them: shift across the wire by the lamp's slant.
    for f, radius in ((fu - 0.14, half_u), (fv - 0.04, half_v)):
        s.shade *= 1 - 0.72 * np.exp(-((f / 0.20) ** 2)) * np.clip(radius / 0.15, 0, 1)
    steel = rgb(196, 196, 192) * (1 + 0.05 * shot.noise("steel", 64))
    # The lower wire first, the upper one over it: which is upper alternates.
    for first in (True, False):
        for cover, height, f, upper in ((cover_u, warp, fu, over > 0), (cover_v, weft, fv, over < 0)):
            part = cover * (~upper if first else upper)
            touch = 1 - 0.55 * first * np.exp(-(((fv if height is warp else fu) / 0.24) ** 2))
            s.put(part, steel, height * 0.8 / count, gloss=0.35, metal=0.72)
            s.shade *= 1 + part * (touch * (1 - 0.35 * (np.abs(f) / 0.16) ** 3) - 1)
    if not defect:
        return s
    if defect.kind == "glue":
        flaw.crumb(s, defect, p, q, center, rgb(190, 176, 132), radius=(0.05, 0.17), gloss=0.9)
    elif defect.kind == "foreign_wire":
        flaw.fibre(s, defect, p, q, center, rgb(176, 122, 70), width=(0.012, 0.022), metal=0.6)
    elif defect.kind == "rust":
        flaw.stain(s, defect, p, q, center, radius=(0.12, 0.34), color=rgb(176, 104, 62), amount=(0.45, 0.95))
    return s


def wood(shot: Shot, defect: Defect | None) -> Surface:
    """Oak, planed: growth rings cut lengthwise, open pores, a thin oil finish."""
    p, q = shot.pose(0.02, 0.0, 0.01)
    rng = shot.rng("rings")
    drift = rng.uniform(0, 40)
    # Rings run along y: the noise that bends them is stretched along the grain.
    bend = 0.40 * shot.noise("bend", 3, 4) + 0.10 * shot.noise("ripple", 6, 14)
    ring = p * 7.5 + drift + bend
    ring = ring + 0.35 * np.sin(0.7 * ring)
    f = ring - np.floor(ring)
    late = f**2.2 * np.clip((1 - f) * 7, 0, 1)  # early wood darkens slowly into late wood, then starts afresh
    fine = shot.noise("fine", 10, 150) + 0.6 * shot.noise("finer", 18, min(256, shot.size))
    pores = np.clip(shot.noise("pores", 26, 190) - 1.15, 0, 1.2) * (0.35 + 0.65 * late)
    rays = np.clip(shot.noise("rays", 30, 60) - 1.5, 0, 1)

    s = Surface.flat(shot, rgb(203, 164, 116), gloss=0.05)
    s.paint(np.clip(0.85 * late + 0.06 * fine, 0, 1), rgb(158, 112, 68))
    s.albedo *= 1 + 0.06 * fine + 0.05 * shot.noise("board", 3, 5) + 0.15 * rays
    s.paint(np.clip(0.75 * pores, 0, 0.8), rgb(92, 60, 36))
    s.raise_by(-0.010 * pores + 0.0022 * fine + 0.004 * late)
    if not defect:
        return s
    center = defect.spot(0.7)
    if defect.kind == "scratch":
        flaw.scratch(s, defect, p, q, center, color=rgb(226, 198, 158), tone=(0.45, 0.9))
    elif defect.kind == "hole":
        flaw.hole(s, defect, p, q, center, radius=(0.03, 0.10), color=rgb(40, 26, 16), rough=0.35)
    elif defect.kind == "stain":
        flaw.stain(s, defect, p, q, center, color=rgb(150, 130, 118), amount=(0.35, 0.85), edge=0.12)
    elif defect.kind == "color":
        tint = rgb(*((196, 104, 86), (110, 132, 170), (120, 160, 112))[int(defect.rng.integers(3))])
        flaw.stain(s, defect, p, q, center, radius=(0.05, 0.16), color=tint, amount=(0.6, 1), edge=0.1)
    elif defect.kind == "dent":
        flaw.dent(s, defect, p, q, center)
    return s


def tile(shot: Shot, defect: Defect | None) -> Surface:
    """Polished granite: pale feldspar, grey quartz and black mica, each in grains of its own size."""
    p, q = shot.pose(0.02, 0.0, 0.01)
    edge = 3.2  # how abruptly one mineral ends
    quartz = np.clip(0.5 + edge * (shot.fractal("quartz", 34, 2) - 0.35), 0, 1)
    pink = np.clip(0.5 + edge * (shot.fractal("pink", 22, 2) - 0.75), 0, 1)
    mica = np.clip(0.5 + edge * (shot.fractal("mica", 52, 2) - 1.20), 0, 1)

    s = Surface.flat(shot, rgb(198, 194, 188), gloss=0.06)
    s.albedo *= 1 + 0.09 * shot.noise("cloud", 24) + 0.07 * shot.noise("grain", 120)
    s.paint(0.75 * quartz, rgb(138, 138, 140))
    s.paint(0.55 * pink, rgb(196, 164, 146))
    s.paint(0.92 * mica, rgb(44, 43, 46))
    s.raise_by(0.0012 * shot.noise("polish", 90) - 0.002 * mica)
    if not defect:
        return s
    center = defect.spot(0.7)
    if defect.kind == "crack":
        path = defect.path(*center, defect.size(0.5, 1.5), wander=0.3, points=15)
        path += defect.rng.normal(0, 0.016, path.shape)
        distance, t = flaw.along(p, q, path)
        half = defect.contrast(0.006, 0.013) * (1.05 - 0.7 * np.abs(2 * t - 1))
        s.raise_by(-1.2 * half * np.exp(-((distance / (1.5 * half)) ** 2)))
        s.paint(defect.contrast(0.75, 0.97) * s.cover(distance - half), rgb(38, 36, 34))
    elif defect.kind == "oil":
        flaw.stain(s, defect, p, q, center, color=rgb(178, 160, 124), amount=(0.45, 0.95), edge=0.15, gloss=0.15)
    elif defect.kind == "chip":
        r = defect.size(0.05, 0.15)
        distance = flaw.blob(defect, p, q, center, r, 1.6)
        amount = s.cover(distance)
        rough = 0.05 * r * defect.mottle(shot.size, 60)
        bowl = -0.6 * r * np.sqrt(np.clip(-distance / r, 0, 1))
        powder = rgb(172, 168, 162) * (1 + 0.08 * defect.mottle(shot.size, 90))
        s.put(amount * defect.contrast(0.55, 0.9), powder, bowl + rough)
    elif defect.kind == "scratch":
        flaw.scratch(s, defect, p, q, center, color=rgb(236, 234, 230), tone=(0.45, 0.85))
    elif defect.kind == "glue_strip":
        wide = defect.size(0.05, 0.13)
        distance, _ = flaw.along(p, q, defect.path(*center, defect.uniform(0.5, 0.9), wander=0.1, points=6))
        amount = s.cover(distance - wide * (1 + 0.3 * defect.mottle(shot.size, 14)))
        s.paint(amount * defect.contrast(0.25, 0.5), rgb(214, 204, 172))
        s.raise_by(0.25 * wide * np.sqrt(np.clip(1 - distance / wide, 0, 1)))
        s.gloss += 0.6 * amount
    return s


def leather(shot: Shot, defect: Defect | None) -> Surface:
    """Full-grain leather: pebbles between creases, dyed brown and lightly waxed."""
    p, q = shot.pose(0.02, 0.0, 0.01)
    # Creases run where a smooth field crosses zero; two fields together close the network into pebbles.
    fields = [shot.noise(f"crease{k}", n) for k, n in enumerate((34, 40, 26))]
    depth = np.minimum(np.minimum(np.abs(fields[0]), np.abs(fields[1])), 1.3 * np.abs(fields[2]))
    pebble = np.sqrt(np.clip(depth / 0.55, 0, 1))
    s = Surface.flat(shot, rgb(140, 88, 58), gloss=0.16)
    s.albedo *= 1 + 0.05 * shot.noise("dye", 5) + 0.06 * shot.noise("grain", 120)
    s.albedo *= 0.62 + 0.38 * pebble
    s.raise_by(0.014 * pebble + 0.0012 * shot.noise("skin", 120), limit=0.9)
    if not defect:
        return s
    center = defect.spot(0.7)
    if defect.kind == "cut":
        flaw.cut(s, defect, p, q, center, color=rgb(58, 34, 24))
    elif defect.kind == "fold":
        distance, t = flaw.along(p, q, defect.path(*center, defect.size(0.6, 1.5), wander=0.2))
        fade = np.sin(math.pi * np.clip(t, 0.03, 0.97))
        wide = defect.contrast(0.03, 0.05)
        s.raise_by(-0.85 * wide * fade * np.exp(-((distance / wide) ** 2)))
        s.paint(0.6 * fade * np.exp(-((distance / (0.35 * wide)) ** 2)), rgb(74, 44, 30))
    elif defect.kind == "poke":
        for _ in range(int(defect.rng.integers(1, 4))):
            near = (center[0] + defect.uniform(-0.15, 0.15), center[1] + defect.uniform(-0.15, 0.15))
            flaw.hole(s, defect, p, q, near, radius=(0.022, 0.05), color=rgb(34, 20, 14), rough=0.3)
    elif defect.kind == "glue":
        flaw.stain(s, defect, p, q, center, color=rgb(300, 290, 280), amount=(0.4, 0.9), edge=0.12, gloss=0.45)
    elif defect.kind == "scratch":
        flaw.scratch(s, defect, p, q, center, color=rgb(196, 152, 112), tone=(0.35, 0.8))
    return s
