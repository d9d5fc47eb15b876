"""Pictures twice as wide as high: squashed to a square against kept in their proportions, on drawn images.

python -m benchmarks.rectangles [--networks procedural focus_vits14] [--images 20] [--out FILE]

A strip shows two drawings of one product side by side, and of a defective strip one of the two is defective, so that
the defects are small. "kept" has the square's side as its short one, and so twice the patches; "kept, as many patches"
costs what the square costs. Time is CPU seconds per image of one thread, network and scoring.
"""

import argparse
import csv
import os
import time
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

from PIL import Image

from musc import MuSc, MuScConfig, datasets
from musc.datasets.base import Category, Rendered, Sample
from musc.sizes import Size, rows_columns, written

SIZES: dict[str, tuple[Size, Size, Size]] = {  # squashed, kept, kept with as many patches
    "procedural": (160, (160, 320), (112, 224)),
    "focus_vits14": (280, (280, 560), (196, 392)),
}
WAYS = ("squashed", "kept", "kept, as many patches")
PRODUCTS = ("tile", "leather", "capsule", "board")
COLUMNS = ("network", "input", "pixels", "patches", "image AUROC", "pixel AP", "PRO", "seconds")
HERE = Path(__file__).parent / "results" / "rectangles.csv"


@dataclass(frozen=True)
class Strip:
    """Two drawings side by side; `None` is black, for the half of a mask without a defect."""

    left: Rendered | None
    right: Rendered | None

    @property
    def key(self) -> str:
        """Names both."""
        return f"strip {self.left.key if self.left else ''} | {self.right.key if self.right else ''}"

    def __call__(self) -> Image.Image:
        parts = [part() if part else None for part in (self.left, self.right)]
        known = next(part for part in parts if part is not None)
        out = Image.new(known.mode, (2 * known.width, known.height))
        for place, part in enumerate(parts):
            if part is not None:
                out.paste(part, (place * known.width, 0))
        return out


def strips(name: str, images: int) -> Category:
    """`images` strips of a product, two fifths of them with a defect, on the left or on the right in turn."""
    bad = 2 * images // 5
    drawn = datasets.load_category("synthetic", None, name, good=2 * images - bad, defects=bad, train=0)
    good = [s for s in drawn.samples if not s.label]
    samples = []
    for n, flawed in enumerate(s for s in drawn.samples if s.label):
        pair = (flawed.image, good.pop().image)
        masks = (flawed.mask, None)
        image, mask = (Strip(*(p if n % 2 else p[::-1])) for p in (pair, masks))
        samples.append(Sample(flawed.name, image, 1, flawed.defect, mask))
    while len(good) > 1:
        samples.append(Sample(good[-1].name, Strip(good.pop().image, good.pop().image), 0, "good"))
    return Category("strips", name, tuple(samples))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rectangles", description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="*", default=list(SIZES))
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--out", type=Path, default=HERE)
    args = parser.parse_args()
    rows = []
    for name in args.networks:
        for way, size in zip(WAYS, SIZES[name], strict=True):
            rows.append(measure(name, way, size, args.images))
            print(rows[-1], flush=True)
            with args.out.open("w", newline="") as file:
                table = csv.DictWriter(file, COLUMNS, lineterminator="\n")
                table.writeheader()
                table.writerows(rows)


def measure(name: str, way: str, size: Size, images: int) -> dict[str, str]:
    """One row: means over the products."""
    musc = MuSc(MuScConfig(backbone=name, image_size=size, device="cpu", workers=0, map_size=160))
    rows, columns = rows_columns(size)
    patches = rows * columns // musc.backbone.spec.patch_size**2
    found, seconds = [], 0.0
    for product in PRODUCTS:
        category = strips(product, images)
        start = time.process_time()
        features = musc.features(category.samples)
        maps = musc.anomaly_maps(features)
        seconds += time.process_time() - start
        metrics = musc.assemble(category, features, maps).metrics
        pixel = metrics["pixel_clean"]
        found.append((metrics["image"]["auroc"], pixel["ap"], pixel["pro"]))
    means = [f"{100 * sum(values) / len(values):.1f}" for values in zip(*found, strict=True)]
    each = f"{seconds / images / len(PRODUCTS):.3f}"
    return dict(zip(COLUMNS, (name, way, written(size), str(patches), *means, each), strict=True))


if __name__ == "__main__":
    main()
