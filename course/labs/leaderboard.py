"""The leaderboard of the final project: does a way to score patches beat plain MuSc?

    python leaderboard.py SUBMISSIONS --seed 7    a folder of notebooks (or .py files); prints and writes leaderboard.csv

A submission defines `patch_scores(stages, class_tokens)`. Of a notebook the answer cells alone are run, of a file all of it.
The held-out products are other ones than the public ones, and the lecturer's seed draws images that nobody has seen.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch

from musc import MuSc, MuScConfig, lnamd, msm, rscin
from musc.datasets import synthetic
from musc.metrics import image_metrics, pixel_metrics
from musc.scoring.maps import upsample

PUBLIC = ("bottle_top", "leather")
HELD_OUT = ("capsule", "screw", "wood")
SIZE = 112  # pixels, of the images and of their maps
Method = Callable[[Sequence[torch.Tensor], torch.Tensor], torch.Tensor]


def plain(stages: Sequence[torch.Tensor], class_tokens: torch.Tensor) -> torch.Tensor:
    """MuSc as published: Eq. 1-3."""
    return msm.mutual_scores(stages)


@cache
def tokens(product: str, seed: int) -> tuple:
    """Stages, class tokens, labels and masks of thirteen images, five of them defective."""
    category = synthetic.category(product, good=8, defects=5, train=0, size=SIZE, seed=seed)
    features = MuSc(MuScConfig(image_size=SIZE)).features(category.samples)
    masks = [np.zeros((SIZE, SIZE), bool) if s.mask is None else np.asarray(s.mask()) > 0 for s in category.samples]
    return features.patch_tokens, features.class_tokens, np.array([s.label for s in category.samples]), np.stack(masks)


def measure(method: Method, products: Sequence[str] = PUBLIC, seed: int = 0) -> dict[str, float]:
    """Image AUROC and pixel AP of a method in percent, means over products, and the mean of the two: its score."""
    found = []
    for product in products:
        stages, classes, labels, masks = tokens(product, seed)
        N, M, _ = stages[0].shape
        scores = method([stage.clone() for stage in stages], classes.clone())
        if not isinstance(scores, torch.Tensor) or scores.shape != (N, M) or not torch.isfinite(scores).all():
            raise ValueError(f"patch_scores must return finite scores [{N}, {M}], one per patch.")
        side = math.isqrt(M)
        maps = upsample(scores, (side, side), SIZE).numpy()
        image = image_metrics(labels, scores.amax(dim=1).numpy())["auroc"]
        found.append((100 * image, 100 * pixel_metrics(masks, maps)["ap"]))
    image, pixel = np.mean(found, axis=0)
    return {"score": (image + pixel) / 2, "image AUROC": float(image), "pixel AP": float(pixel)}


def load(path: Path) -> Method:
    """The function patch_scores of a submission; torch, F, lnamd, msm and rscin are within its reach."""
    if path.suffix == ".ipynb":
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        answers = [c for c in cells if "otter_answer_cell" in c["metadata"].get("tags", [])]
        source = "\n\n".join("".join(c["source"]) for c in answers)
    else:
        source = path.read_text(encoding="utf-8")
    space: dict = {"torch": torch, "F": torch.nn.functional, "lnamd": lnamd, "msm": msm, "rscin": rscin}
    exec(compile(source, path.name, "exec"), space)
    return space["patch_scores"]


def board(paths: Sequence[Path], seed: int) -> list[dict]:
    """Rows of the leaderboard, the best first; plain MuSc takes part. What fails is named and comes last."""
    rows = [{"name": "plain MuSc", **measure(plain, HELD_OUT, seed)}]
    for path in paths:
        try:
            rows.append({"name": path.stem, **measure(load(path), HELD_OUT, seed)})
        except Exception as error:  # a stranger's code may fail in any way, and must not stop the others
            print(f"{path.name}: {type(error).__name__}: {error}", file=sys.stderr)
            rows.append({"name": path.stem, "score": math.nan})
    return sorted(rows, key=lambda row: -np.nan_to_num(row["score"], nan=-1))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("submissions", type=Path, help="a folder of .ipynb or .py files")
    parser.add_argument("--seed", type=int, required=True, help="which images are drawn: keep it to yourself")
    args = parser.parse_args(argv)
    paths = sorted(p for p in args.submissions.iterdir() if p.suffix in (".ipynb", ".py"))
    rows = board(paths, args.seed)
    with open("leaderboard.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["name", "score", "image AUROC", "pixel AP"])
        writer.writeheader()
        writer.writerows(rows)
    for place, row in enumerate(rows, 1):
        numbers = "  ".join(f"{key} {row.get(key, math.nan):5.1f}" for key in ("score", "image AUROC", "pixel AP"))
        print(f"{place:2}  {numbers}  {row['name']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
