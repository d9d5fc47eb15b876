"""Input size of the three networks that "auto" chooses from: time and accuracy, on drawn images and on photographs.

python -m benchmarks.input_size --tiles FOLDER [--every 8] [--out FILE]

FOLDER is in the MVTec AD layout. Times are CPU seconds per image of one thread, so that other load does not count; two
cores need somewhat more than half of it on the clock. A network whose weights are not on this machine is timed with
random ones, which cost the same, and its accuracy is left empty. Finished rows of an earlier run are kept.
"""

import argparse
import csv
import os
import time
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

from musc import MuSc, MuScConfig, datasets
from musc.backbones import BACKBONES
from musc.backbones.fetch import present
from musc.datasets.base import Category

SIZES = {
    "procedural": (192, 256, 320),
    "focus_vits14": (224, 280, 336, 392),
    "dinov2_vits14": (280, 392, 518),
}
PRODUCTS = ("bottle_top", "tile", "capsule", "screw")
COLUMNS = ("network", "pixels", "images", "data", "image AUROC", "pixel AP", "PRO", "network (s)", "scoring (s)")
HERE = Path(__file__).parent / "results" / "input_size.csv"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.input_size", description=__doc__.splitlines()[0])
    parser.add_argument("--tiles", type=Path, help="photographs in the MVTec AD layout; without, drawn images alone")
    parser.add_argument("--every", type=int, default=8, help="take each so many of the photographs")
    parser.add_argument("--networks", nargs="*", default=list(SIZES))
    parser.add_argument("--out", type=Path, default=HERE)
    args = parser.parse_args()
    data: dict[str, list[Category]] = {}
    if args.tiles:
        (tiles,) = datasets.load(args.tiles, "mvtec_ad")
        data["photographs"] = [replace(tiles, samples=tiles.samples[:: args.every])]
    data["drawn"] = [datasets.load_category("synthetic", None, name, good=16) for name in PRODUCTS]
    rows = list(csv.DictReader(args.out.open())) if args.out.exists() else []
    done = {(row["network"], row["pixels"], row["data"]) for row in rows}
    for kind, categories in data.items():
        for name in args.networks:
            for size in SIZES[name]:
                if (name, str(size), kind) in done:
                    continue
                rows.append(measure(name, size, kind, categories))
                print(rows[-1], flush=True)
                with args.out.open("w", newline="") as file:
                    table = csv.DictWriter(file, COLUMNS, lineterminator="\n")
                    table.writeheader()
                    table.writerows(rows)


def measure(name: str, size: int, kind: str, categories: list[Category]) -> dict[str, str]:
    """One row: means over the categories."""
    known = present(BACKBONES[name]) is not None
    musc = MuSc(
        MuScConfig(backbone=name, weights=None if known else "random", image_size=size, device="cpu", workers=0)
    )
    musc.run(replace(categories[0], samples=categories[0].samples[-2:]))  # loads and compiles
    if not known:
        categories = categories[:1]
    images, found = 0, []
    seconds = {"network": 0.0, "scoring": 0.0}
    for category in categories:
        start = time.process_time()
        features = musc.features(category.samples)
        middle = time.process_time()
        maps = musc.anomaly_maps(features)
        end = time.process_time()
        seconds["network"] += middle - start
        seconds["scoring"] += end - middle
        images += len(features)
        if known:
            metrics = musc.assemble(category, features, maps).metrics
            pixel = metrics["pixel_clean"]
            found.append((metrics["image"]["auroc"], pixel["ap"], pixel["pro"]))
    means = [f"{100 * sum(values) / len(values):.1f}" for values in zip(*found, strict=True)] or ["", "", ""]
    times = [f"{value / images:.3f}" for value in seconds.values()]
    return dict(zip(COLUMNS, (name, str(size), str(images), kind, *means, *times), strict=True))


if __name__ == "__main__":
    main()
