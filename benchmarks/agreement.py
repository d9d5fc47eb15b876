"""Writes musc/plugin/clip_agreement.csv: how often neighbours by CLIP's class tokens have an image's own label.

python -m benchmarks.agreement clip_class_tokens.npz

The file holds the class tokens of every test image that the authors of the paper publish, under "mvtec_ad/bottle", ...,
"visa/candle", ..., in the order in which their code loads the images. That order gives the labels: MVTec AD is read by
sorted defect folder, and the folders' sizes are known; VisA in the order of its split_csv/1cls.csv, where the normal
images come first and 100 anomalous ones follow.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

from musc.plugin.agreement import agreement
from musc.plugin.class_tokens import read_class_tokens

ROOT = Path(__file__).resolve().parents[1]
WINDOWS = (2, 3, 8, 9)
VISA_ANOMALOUS = 100
# Test images of MVTec AD by sorted defect folder, and which of the folders is `good`, counted from 0.
MVTEC_AD = {
    "bottle": ((20, 22, 21, 20), 3),
    "cable": ((13, 12, 11, 14, 10, 58, 12, 10, 10), 5),
    "capsule": ((23, 22, 23, 21, 23, 20), 2),
    "carpet": ((19, 17, 28, 17, 17, 19), 2),
    "grid": ((12, 12, 11, 21, 11, 11), 3),
    "hazelnut": ((18, 17, 40, 18, 17), 2),
    "leather": ((19, 19, 17, 19, 32, 18), 4),
    "metal_nut": ((25, 22, 23, 22, 23), 3),
    "pill": ((25, 17, 21, 26, 19, 26, 9, 24), 5),
    "screw": ((41, 24, 24, 25, 23, 23), 0),
    "tile": ((17, 18, 33, 16, 18, 15), 2),
    "toothbrush": ((30, 12), 1),
    "transistor": ((10, 10, 10, 60, 10), 3),
    "wood": ((8, 11, 19, 10, 10, 21), 2),
    "zipper": ((19, 16, 17, 16, 32, 17, 18, 16), 4),
}


def labels_in_order(dataset: str, category: str, images: int) -> np.ndarray:
    """[N], 1 of an anomalous image."""
    if dataset == "visa":
        return (np.arange(images) >= images - VISA_ANOMALOUS).astype(int)
    counts, good = MVTEC_AD[category]
    assert sum(counts) == images, f"{category}: {images} class tokens, but {sum(counts)} test images"
    return (np.repeat(np.arange(len(counts)), counts) != good).astype(int)


def row(key: str, tokens: np.ndarray) -> dict[str, object]:
    """One category, shares in percent."""
    dataset, category = key.split("/")
    N = len(tokens)
    labels = labels_in_order(dataset, category, N)
    unit = tokens.astype(np.float64) / np.linalg.norm(tokens.astype(np.float64), axis=1, keepdims=True)
    shares = agreement(labels, unit, (*WINDOWS, N))
    found = {f"k_{k}": shares[k] for k in WINDOWS} | {"chance": shares[N]}
    counted = {"dataset": dataset, "category": category, "images": N, "normal": int((labels == 0).sum())}
    return counted | {name: round(100 * share, 2) for name, share in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.agreement", description=__doc__.split("\n")[0])
    parser.add_argument("tokens", type=Path, help="the authors' class tokens, as any file that `musc rscin` reads")
    found = read_class_tokens(parser.parse_args().tokens)
    table = pd.DataFrame([row(key, found[key].tokens) for key in sorted(found)])
    table.to_csv(ROOT / "musc/plugin/clip_agreement.csv", index=False, lineterminator="\n")
    print(table.to_string(index=False))


if __name__ == "__main__":
    main()
