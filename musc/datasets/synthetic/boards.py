"""A small circuit board: solder mask over copper tracks, and surface-mounted parts placed by a machine."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from musc.datasets.synthetic import defects as flaw
from musc.datasets.synthetic.defects import Defect
from musc.datasets.synthetic.objects import printed, soft_step
from musc.datasets.synthetic.shot import SHADOW, Shot, Surface, rgb, rotate

# What is where: kind, centre, quarter turns. Half sizes and lead positions follow from the kind.
PARTS: tuple[tuple[str, float, float, int], ...] = (
    ("chip", -0.22, -0.12, 0),
    ("can", 0.58, -0.52, 0),
    ("can", 0.58, -0.08, 0),
    ("diode", 0.56, 0.36, 1),
    ("resistor", -0.72, -0.66, 0),
    ("resistor", -0.72, -0.50, 0),
    ("resistor", -0.40, -0.68, 1),
    ("capacitor", -0.10, -0.70, 0),
    ("capacitor", 0.18, -0.70, 0),
    ("capacitor", -0.76, -0.10, 1),
    ("resistor", -0.76, 0.22, 1),
    ("resistor", -0.50, 0.52, 0),
    ("capacitor", -0.16, 0.52, 0),
    ("resistor", 0.18, 0.54, 0),
    ("resistor", 0.26, 0.20, 1),
    ("capacitor", 0.24, -0.28, 1),
    ("lamp", -0.70, 0.66, 0),
    ("resistor", -0.34, 0.76, 0),
)
HALF = {"chip": (0.25, 0.20), "can": (0.165, 0.165), "diode": (0.125, 0.07), "lamp": (0.075, 0.05)}
SMALL = (0.088, 0.046)  # resistors and ceramic capacitors
PINS = tuple(-0.185 + 0.37 * k / 7 for k in range(8))
MASK, TRACK = rgb(22, 92, 58), rgb(34, 118, 74)
TIN, SILVER = rgb(206, 204, 198), rgb(214, 212, 206)


def _pads(kind: str) -> list[tuple[float, float, float, float]]:
    """The tinned pads of a part: centre and half sizes in the part's own coordinates."""
    if kind == "chip":
        return [(x, side * 0.262, 0.016, 0.040) for x in PINS for side in (-1, 1)]
    if kind == "can":
        return [(side * 0.13, 0.0, 0.065, 0.035) for side in (-1, 1)]
    w, h = HALF.get(kind, SMALL)
    return [(side * (w + 0.006), 0.0, 0.036, h + 0.008) for side in (-1, 1)]


@lru_cache(maxsize=1)
def _artwork() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tracks, pads and legend of the bare board, each [n, n] from 0 to 1: the same on every board."""
    n = 1024
    layers = [Image.new("L", (n, n)) for _ in range(3)]
    tracks, pads, legend = (ImageDraw.Draw(layer) for layer in layers)

    def px(value: float) -> float:
        return (value + 1) * n / 2

    rng = np.random.default_rng(7)
    ends = []
    for kind, x, y, turn in PARTS:
        for px_, py_, w, h in _pads(kind):
            for _ in range(turn):
                px_, py_, w, h = -py_, px_, h, w
            pads.rounded_rectangle([px(x + px_ - w), px(y + py_ - h), px(x + px_ + w), px(y + py_ + h)], 5, fill=255)
            ends.append((x + px_, y + py_))
        w, h = HALF.get(kind, SMALL)
        w, h = (h, w) if turn % 2 else (w, h)
        m = 0.012 if kind == "chip" else 0.055
        frame = [px(x - w - m), px(y - h - 0.03), px(x + w + m), px(y + h + 0.03)]
        legend.rounded_rectangle(frame, 6, outline=150, width=3)
    font = ImageFont.load_default(30)
    for k, (kind, x, y, turn) in enumerate(PARTS):
        w, h = HALF.get(kind, SMALL)
        label = {"resistor": "R", "capacitor": "C", "chip": "U", "can": "C", "diode": "D", "lamp": "D"}[kind]
        below = (w if turn % 2 else h) + 0.065
        legend.text((px(x), px(y + below)), f"{label}{k + 1}", fill=215, font=font, anchor="mm")
    legend.text((px(0.42), px(0.80)), "MB-7 REV C", fill=230, font=ImageFont.load_default(44), anchor="mm")
    # Each end leaves along a 45 degree elbow towards another end or a via.
    for k, (x0, y0) in enumerate(ends):
        via = (x0 + rng.uniform(-0.3, 0.3), y0 + rng.uniform(-0.3, 0.3))
        x1, y1 = np.clip(ends[int(rng.integers(len(ends)))] if k % 2 else via, -0.93, 0.93).tolist()
        elbow = min(abs(x1 - x0), abs(y1 - y0))
        xm, ym = x0 + math.copysign(elbow, x1 - x0), y0 + math.copysign(elbow, y1 - y0)
        tracks.line([px(x0), px(y0), px(xm), px(ym), px(x1), px(y1)], fill=255, width=9, joint="curve")
        if k % 2 == 0:
            tracks.ellipse([px(x1) - 13, px(y1) - 13, px(x1) + 13, px(y1) + 13], fill=255)
            pads.ellipse([px(x1) - 9, px(y1) - 9, px(x1) + 9, px(y1) + 9], fill=255)
    for x in (-0.89, 0.89):
        for y in (-0.89, 0.89):
            pads.ellipse([px(x) - 34, px(y) - 34, px(x) + 34, px(y) + 34], fill=255)
    return tuple(np.asarray(layer.reduce(2), np.float32) / 255 for layer in layers)  # type: ignore[return-value]


def _box(u: np.ndarray, v: np.ndarray, w: float, h: float, r: float) -> np.ndarray:
    """The signed distance to a rounded rectangle of half sizes w, h."""
    x, y = np.abs(u) - (w - r), np.abs(v) - (h - r)
    return np.hypot(np.maximum(x, 0), np.maximum(y, 0)) + np.minimum(np.maximum(x, y), 0) - r


def _place(s: Surface, p: np.ndarray, q: np.ndarray, kind: str, at: tuple[float, float, float], tone: float) -> None:
    """Solder one part at (x, y), turned by an angle, in the small window around it."""
    x, y, angle = at
    w, h = HALF.get(kind, SMALL)
    span = max(w, h) + {"chip": 0.13, "can": 0.16}.get(kind, 0.10)
    near = (np.abs(p - x) < span) & (np.abs(q - y) < span)
    rows, columns = np.flatnonzero(near.any(1)), np.flatnonzero(near.any(0))
    if not len(rows):
        return
    box = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    t, (u, v) = s.window(box), rotate(p[box] - x, q[box] - y, angle)
    c, d = math.cos(angle), math.sin(angle)
    su, sv = SHADOW[0] * c + SHADOW[1] * d, SHADOW[1] * c - SHADOW[0] * d
    tall = {"can": 0.11, "chip": 0.045}.get(kind, 0.03)
    us, vs = u - tall * su, v - tall * sv
    outline = np.hypot(us, vs) - w if kind == "can" else _box(us, vs, w, h, 0.02)
    t.shade *= 1 - 0.62 * soft_step(outline, 0.03 + 0.5 * tall)
    _PAINTERS[kind](t, u, v, tone)


def _two_ends(t: Surface, u: np.ndarray, v: np.ndarray, tone: float, body: np.ndarray, mark: float) -> None:
    w, h = SMALL
    # Solder fillets climb the ends.
    fillet = _box(u, v, w + 0.030, h + 0.002, 0.018)
    t.put(t.cover(fillet), TIN, 0.035 * np.clip(-fillet / 0.03, 0, 1), gloss=0.3, metal=0.8)
    block = _box(u, v, w, h, 0.012)
    relief = 0.03 * np.sqrt(np.clip(-block / 0.014, 0, 1))
    t.put(t.cover(block), SILVER * (1 + 0.04 * tone), relief, gloss=0.3, metal=0.55)
    middle = t.cover(np.maximum(block + 0.001, np.abs(u) - 0.052))
    t.put(middle, body * (1 + 0.08 * tone), relief, gloss=0.22)
    if mark:
        digits = t.cover(np.maximum(np.abs(v) - 0.017, np.abs(np.abs(u) - 0.018) - 0.007))
        t.paint(mark * digits, rgb(214, 212, 206))


def _resistor(t: Surface, u: np.ndarray, v: np.ndarray, tone: float) -> None:
    _two_ends(t, u, v, tone, rgb(36, 36, 38), 0.75)


def _capacitor(t: Surface, u: np.ndarray, v: np.ndarray, tone: float) -> None:
    _two_ends(t, u, v, tone, rgb(176, 142, 102), 0.0)


def _chip(t: Surface, u: np.ndarray, v: np.ndarray, tone: float) -> None:
    w, h = HALF["chip"]
    for x in PINS:
        lead = _box(u - x, np.abs(v) - (h + 0.035), 0.013, 0.045, 0.006)
        relief = 0.016 * np.clip(1 - (np.abs(v) - h) / 0.075, 0, 1)
        relief += 0.4 * np.sqrt(np.clip(0.013**2 - (u - x) ** 2, 0, None))
        t.put(t.cover(lead), TIN, relief, gloss=0.2, metal=0.75)
    block = _box(u, v, w, h, 0.012)
    t.put(t.cover(block), rgb(50, 50, 53) * (1 + 0.06 * tone), 0.05 * np.clip(-block / 0.025, 0, 1), gloss=0.14)
    t.shade *= 1 - 0.5 * t.cover(np.hypot(u + w - 0.055, v - h + 0.055) - 0.020)
    for line, half in ((-0.055, 0.125), (0.005, 0.15), (0.062, 0.09)):  # laser-marked lettering, as bars of strokes
        strokes = np.clip(0.5 + 3 * (np.cos(97 * u + 14 * line) + 0.5 * np.cos(41 * u)), 0, 1)
        bars = t.cover(np.maximum(np.abs(v - line) - 0.017, np.abs(u) - half))
        t.paint(0.42 * strokes * bars, rgb(168, 168, 166))


def _can(t: Surface, u: np.ndarray, v: np.ndarray, tone: float) -> None:
    base = _box(u, v, 0.165, 0.165, 0.05)
    t.put(t.cover(base), rgb(30, 30, 32), 0.02 * np.clip(-base / 0.02, 0, 1), gloss=0.2)
    r = np.hypot(u, v)
    rim = 0.03 * np.sqrt(np.clip((0.150 - r) / 0.022, 0, 1)) - 0.012 * soft_step(r - 0.118, 0.02)
    t.put(t.cover(r - 0.150), rgb(206, 206, 208) * (1 + 0.03 * tone), rim, gloss=0.35, metal=0.5)
    t.paint(0.92 * t.cover(np.maximum(r - 0.140, u + 0.062)), rgb(38, 38, 46))


def _diode(t: Surface, u: np.ndarray, v: np.ndarray, tone: float) -> None:
    lead = _box(u, v, 0.165, 0.035, 0.008)
    t.put(t.cover(lead), TIN, 0.01 * np.clip(-lead / 0.01, 0, 1), gloss=0.2, metal=0.75)
    block = _box(u, v, 0.125, 0.07, 0.014)
    t.put(t.cover(block), rgb(44, 43, 42) * (1 + 0.06 * tone), 0.045 * np.clip(-block / 0.025, 0, 1), gloss=0.25)
    t.paint(0.8 * t.cover(np.maximum(block, np.abs(u + 0.085) - 0.018)), rgb(196, 194, 188))


def _lamp(t: Surface, u: np.ndarray, v: np.ndarray, tone: float) -> None:
    block = _box(u, v, 0.092, 0.052, 0.008)
    t.put(t.cover(block), rgb(226, 224, 214), 0.02 * np.clip(-block / 0.012, 0, 1), gloss=0.2)
    r = np.hypot(u, v)
    dome = np.sqrt(np.clip(0.046**2 - r * r, 0, None))
    t.put(t.cover(r - 0.045), rgb(212, 196, 104) * (1 + 0.05 * tone), 0.7 * dome, gloss=0.9)


_PAINTERS = {"resistor": _resistor, "capacitor": _capacitor, "chip": _chip, "can": _can, "diode": _diode, "lamp": _lamp}


def board(shot: Shot, defect: Defect | None) -> Surface:
    """The populated board; every part sits within the machine's tolerance of its place."""
    p, q = shot.pose(0.012, 0.012, 0.006)
    tracks, pads, legend = (printed(layer, p, q) for layer in _artwork())
    s = Surface.flat(shot, MASK, gloss=0.30)
    s.albedo *= 1 + 0.05 * shot.noise("mask", 8) + 0.03 * shot.noise("fibre", 128)
    s.paint(tracks, TRACK)
    s.raise_by(0.006 * tracks + 0.0005 * shot.noise("weave", 60), limit=0.5)
    tin = TIN * (1 + 0.06 * shot.noise("tin", 60))
    s.put(pads, tin, 0.006 * pads + 0.0015 * shot.noise("solder", 50), gloss=0.2, metal=0.7)
    s.paint(0.85 * legend * (1 - pads), rgb(222, 224, 216))

    victim = -1
    if defect and defect.kind in ("missing", "displaced"):  # large defects hit large parts
        order = sorted(range(len(PARTS)), key=lambda k: HALF.get(PARTS[k][0], SMALL)[0])
        victim = order[min(int(defect.extent * len(order)), len(order) - 1)]
        if defect.kind == "missing" and PARTS[victim][0] == "chip":
            victim = 1
    rng = shot.rng("placement")
    for k, (kind, x, y, turn) in enumerate(PARTS):
        dx, dy, skew, tone = rng.uniform(-1, 1, 4).tolist()
        x, y, angle = x + 0.006 * dx, y + 0.006 * dy, turn * math.pi / 2 + 0.02 * skew
        if k == victim and defect:
            if defect.kind == "missing":
                continue
            away, way = defect.contrast(0.03, 0.075), defect.uniform(0, 2 * math.pi)
            x, y = x + away * math.cos(way), y + away * math.sin(way)
            angle += defect.sign() * defect.contrast(0.15, 0.7) * (0.3 if kind == "chip" else 1)
        _place(s, p, q, kind, (x, y, angle), tone)
    if not defect:
        return s
    center = defect.spot(0.7)
    if defect.kind == "solder_bridge":
        pin, side = int(defect.rng.integers(1, 6)), defect.sign()
        where = (-0.22 + PINS[pin] + 0.026, -0.12 + side * 0.262)
        flaw.crumb(s, defect, p, q, where, TIN, radius=(0.034, 0.06), metal=0.7, rough=0.5)
    elif defect.kind == "scratch":
        flaw.scratch(s, defect, p, q, center, (0.25, 0.8), (0.008, 0.016), color=rgb(190, 170, 120), tone=(0.45, 0.95))
    elif defect.kind == "foreign_body":
        if defect.uniform(0, 1) < 0.5:
            flaw.fibre(s, defect, p, q, center, rgb(210, 196, 176), length=(0.25, 0.7), width=(0.008, 0.014))
        else:
            flaw.crumb(s, defect, p, q, center, rgb(190, 188, 184), radius=(0.03, 0.08), metal=0.6)
    return s
