"""Every method that the weights here allow, on the synthetic products and on magnetic tiles: metrics, seconds, memory.

    python -m benchmarks.methods [--only synthetic tiles ...] [--products ...] [--data FOLDER] [--out FILE]

What `musc compare` does, with the time of this process's CPU in place of the clock's, so that other work on the machine
does not count: for comparable figures run it with OMP_NUM_THREADS=1. Methods that need normal images get 16: training
images of the synthetic product, or tiles without a defect that are not tested; the others get none. FOLDER holds
magnetic_tile in the layout of MVTec AD, of which every fourth image is scored. What an earlier run measured is kept.
"""

import argparse
import os
import time
from dataclasses import replace
from pathlib import Path
from unittest import mock

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pandas as pd
import torch

from benchmarks.__main__ import HERE
from musc import MuScConfig, compare, datasets, fewshot
from musc.config import METHODS, NEED_REFERENCES
from musc.datasets.base import Category

SHOTS = 16
SETS = {  # by name: network, side of the input
    "synthetic": ("procedural", 128),
    "tiles": ("focus_vits14", 280),
    "tiles, embedded": ("procedural", 160),
}


def tiles(data: Path) -> list[Category]:
    """Every fourth tile; the others that have no defect are the training images."""
    whole = datasets.load_category("mvtec_ad", data / "magnetic_tile", "tile")
    rest = tuple(s for n, s in enumerate(whole.samples) if n % 4 and not s.label)
    return [replace(whole, samples=whole.samples[::4], train=rest)]


def rows(name: str, data: Path, work: Path, products: list[str] | None = None) -> pd.DataFrame:
    """The table of one set, a row per method; products: of the synthetic set, None for all."""
    network, size = SETS[name]
    categories = datasets.load(None, "synthetic", products) if name == "synthetic" else tiles(data)
    config = MuScConfig(backbone=network, image_size=size, workers=0, device="cpu")

    def references(category: Category, method: str) -> Category | None:
        return fewshot.reference_category(category, SHOTS) if method in NEED_REFERENCES else None

    with mock.patch.object(time, "perf_counter", time.process_time):
        frame = compare.compare(
            categories, [m for m in METHODS if m != "winclip"], config, work / name, references=references,
            cache=work / "tokens", say=lambda line: print(line, flush=True),
        )  # fmt: skip
    table = compare.summary(frame)
    about = {"data": name, "products": ", ".join(category.name for category in categories)}
    about |= {"network": network, "pixels": size, "images": frame.groupby("method")["images"].sum().max()}
    about["extraction s"] = frame["extraction s"].sum()
    for at, (column, value) in enumerate(about.items()):
        table.insert(at, column, value)
    return table.reset_index()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.methods", description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=list(SETS), choices=list(SETS))
    parser.add_argument("--products", nargs="*", help="of the synthetic set (default: all)")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder that holds magnetic_tile")
    parser.add_argument("--work", type=Path, default=Path("results/methods"), help="folder of finished measurements")
    parser.add_argument("--out", type=Path, default=HERE / "methods.csv")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for name in args.only:
        old = pd.read_csv(args.out) if args.out.exists() else pd.DataFrame({"data": []})
        table = pd.concat([old[old["data"] != name], rows(name, args.data, args.work, args.products)])
        table.to_csv(args.out, index=False, float_format="%.3f", lineterminator="\n")
        print(table.to_string())


if __name__ == "__main__":
    main()
