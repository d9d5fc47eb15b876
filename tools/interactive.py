"""The data of the interactive page: ten images, all their patch distances, for a script that runs MuSc in the browser.

    python -m tools.interactive     writes book/_static/interactive/data.js, unless it is up to date

A page opened from disk may not read other files, but it may load scripts: so the data are one. Distances are stored in
256 steps from 0 to their largest, everything else as it is.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from PIL import Image

from musc import MuSc, MuScConfig, datasets, lnamd, msm, rscin
from musc.features import Features
from musc.metrics import image_metrics
from musc.plugin.agreement import agreement
from musc.results import figures
from musc.verdicts import verdict
from tools.notebooks import ROOT

DATA = ROOT / "book/_static/interactive/data.js"
CATEGORY, OF_A_KIND = "bottle_top", 5
DEGREES = (1, 3, 5)
# Whatever may change the numbers.
SOURCES = (
    "musc/**/*.py", "musc/backbones/procedural.safetensors", "tools/interactive.py", "tools/report_page.py",
    "musc/results/report/*",
)  # fmt: skip


def stamp() -> str:
    """SHA-256 over the sources."""
    digest = hashlib.sha256()
    for pattern in SOURCES:
        for path in sorted(path for path in ROOT.glob(pattern) if path.is_file()):
            digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def chosen() -> datasets.Category:
    """The first five normal images of the category, and five anomalous ones of different kinds where there are."""
    category = datasets.load_category("synthetic", None, CATEGORY)
    normal = [s for s in category if not s.label][:OF_A_KIND]
    anomalous = [s for s in category if s.label]
    return replace(category, samples=(*normal, *anomalous[:: len(anomalous) // OF_A_KIND][:OF_A_KIND]))


def distances(features: Features) -> np.ndarray:
    """Eq. 1 for every stage and degree: [S, D, N, N - 1, M]."""
    (H, W), *_ = features.grids
    return np.stack([msm.stage_distances(s, DEGREES, grid=(H, W)).numpy() for s in features.patch_tokens])


def nearest(features: Features) -> np.ndarray:
    """Which patch of another image is the nearest one, at the last stage: [D, N, N - 1, M]."""
    found = []
    for degree in DEGREES:
        tokens = lnamd.aggregate(features.patch_tokens[-1], degree, grid=features.grids[-1])
        for i, image in enumerate(tokens):
            found += [torch.cdist(image, other).argmin(dim=1) for j, other in enumerate(tokens) if j != i]
    N, M, _ = features.patch_tokens[-1].shape
    return torch.stack(found).reshape(len(DEGREES), N, N - 1, M).numpy()


def image_scores(measured: np.ndarray, degrees: Sequence[int], share: float) -> np.ndarray:
    """The largest patch score of every image, [N], from [S, D, N, N - 1, M] distances."""
    chosen = [DEGREES.index(r) for r in degrees]
    parts = [msm.interval_average(torch.from_numpy(stage[d]), (0, share)) for stage in measured for d in chosen]
    return torch.stack(parts).mean(dim=0).amax(dim=1).numpy()


def findings(measured: np.ndarray, tokens: np.ndarray, labels: np.ndarray) -> dict[str, str]:
    """What a reader will see on the page, found true of the data that it is made with. Raises FalseVerdict."""
    bad, N = labels == 1, len(labels)

    def gap(scores: np.ndarray) -> float:
        """From the highest normal image to the lowest with a defect, as a share of the scores' range."""
        return float((scores[bad].min() - scores[~bad].max()) / np.ptp(scores))

    part, whole = (image_scores(measured, DEGREES, share) for share in (0.3, 1.0))
    normal, defective = (float((whole[m] - part[m]).mean()) for m in (~bad, bad))
    alone = {r: gap(image_scores(measured, (r,), 0.3)) for r in DEGREES}
    before = image_metrics(labels, part)["auroc"]
    after = image_metrics(
        labels, rscin.rescore(torch.from_numpy(part), torch.from_numpy(tokens), MuScConfig().windows).numpy()
    )["auroc"]
    same = agreement(labels, tokens, (2, N))
    found = {
        "interval": verdict(
            f"Normal images rise by {normal:.2f} on average, those with a defect by {defective:.2f}, and the gap "
            f"between them shrinks from {gap(part):.3f} to {gap(whole):.3f} of the range. No defect is lost by it on "
            f"these images: the {int(bad.sum())} keep the first ranks.",
            normal > defective,
            gap(part) > gap(whole) > 0,
        ),
        "degrees": verdict(
            f"The gap between the images with a defect and the normal ones is {alone[1]:.2f} of the range with r = 1 "
            f"alone, {alone[3]:.2f} with r = 3 and {alone[5]:.2f} with r = 5: a single patch is noisy, a wide window "
            "blurs, and r = 3 lies between.",
            alone[3] > alone[5] > alone[1],
        ),
        "rscin": verdict(
            f"With the windows 2 and 3 the image AUROC falls from {before:.2f} to {after:.2f}.",
            after < before,
        ),
        "rscin-why": verdict(
            f"The nearest image has the same label for {100 * same[2]:.0f} % of these images, by chance it would for "
            f"{100 * same[N]:.0f} %: on this product the embedded network's class tokens do not follow defects, and "
            f"{N} images hold few neighbours.",
            same[2] < same[N],
        ),
    }
    return {name: text.text for name, text in found.items()}


def packed(array: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()


def picture(pixels: np.ndarray) -> str:
    """An image as an address that holds it."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def collect() -> dict[str, Any]:
    """All that the page needs."""
    category = chosen()
    musc = MuSc(MuScConfig())
    features = musc.features(category.samples)
    assert features.class_tokens is not None
    tokens = torch.nn.functional.normalize(features.class_tokens.double(), dim=1)
    measured = distances(features)
    top = float(measured.max())
    size = musc.backbone.image_size
    masks = figures.masks_at(features.samples, size)
    H, W = features.grids[0]
    cells = masks[:, : size // H * H, : size // W * W].reshape(len(masks), H, size // H, W, size // W).any(axis=(2, 4))
    colours = (matplotlib.colormaps[figures.CMAP](np.linspace(0, 1, 64))[:, :3] * 255).round().astype(int)
    labels = np.array([int(s.label or 0) for s in features.samples])
    return {
        "category": category.name,
        "findings": findings(measured, tokens.numpy(), labels),
        "backbone": musc.config.backbone,
        "grid": [H, W],
        "size": size,
        "degrees": list(DEGREES),
        "stages": len(measured),
        "top": top,
        "distances": packed(np.round(measured / top * 255).astype(np.uint8)),
        "nearest": packed(nearest(features).astype("<u2")),
        "similarity": (tokens @ tokens.T).tolist(),
        "labels": labels.tolist(),
        "defects": [s.defect for s in features.samples],
        "masks": packed(cells.astype(np.uint8)),
        "pictures": [picture(p) for p in figures.as_seen(features.samples, size)],
        "colours": colours.tolist(),
    }


def write() -> Path:
    """data.js, made anew where a source has changed."""
    first = f"// {stamp()}\n"
    if DATA.is_file():
        with DATA.open(encoding="utf-8") as file:
            if file.readline() == first:
                return DATA
    content = first + "window.MUSC_DATA = " + json.dumps(collect()) + ";\n"
    DATA.parent.mkdir(parents=True, exist_ok=True)
    temporary = DATA.with_suffix(".tmp")
    temporary.write_text(content, encoding="utf-8")
    temporary.replace(DATA)
    return DATA


if __name__ == "__main__":
    print(write())
