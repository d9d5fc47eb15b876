"""`python -m pretraining.evaluate`: the embedded backbone beside an untrained one, filters, and one of photographs.

The textures of scikit-image get defects that are planted here, by other means than those of the training images.
"""

from __future__ import annotations

import argparse
import csv
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from musc import msm
from musc.config import MuScConfig
from musc.datasets import load_category, planted, synthetic
from musc.datasets.base import Category
from musc.errors import ConfigError
from musc.pipeline import MuSc
from musc.results.evaluation import evaluate, read_truth
from musc.scoring.maps import upsample

TEXTURES = ("brick", "gravel", "grass")
SIDE = 256  # as fixed features see the crops, in pixels
METRICS = ("image_auroc", "before_rscin", "pixel_auroc", "pixel_ap", "pro")


def texture(name: str) -> Category:
    """Sixteen crops of a photograph of scikit-image, a defect planted in each second one.

    Raises ConfigError where scikit-image is not installed.
    """
    try:
        import skimage.data
    except ImportError as error:
        raise ConfigError("the textures are scikit-image's: pip install 'musc[pretrain]'.") from error
    return planted.texture({n: getattr(skimage.data, n)() for n in TEXTURES}, name)


Pixels = Float[Tensor, "B 3 H W"]


def raw_patches(images: Pixels) -> Float[Tensor, "B M C"]:
    """The pixels of each 8 x 8 patch."""
    return rearrange(images, "b c (h p) (w q) -> b (h w) (c p q)", p=8, q=8)


def gabor_energies(images: Pixels) -> Float[Tensor, "B M C"]:
    """Mean colour and mean energy of Gabor filters (3 wavelengths, 4 directions) in each 8 x 8 patch."""
    grey, found = images.mean(1, keepdim=True), [F.avg_pool2d(images, 8)]
    for wavelength in (3.0, 6.0, 12.0):
        reach = math.ceil(wavelength)
        y, x = torch.meshgrid(*[torch.arange(-reach, reach + 1.0)] * 2, indexing="ij")
        window = torch.exp(-(x * x + y * y) / (2 * (0.4 * wavelength) ** 2))
        for turn in range(4):
            along = x * math.cos(math.pi * turn / 4) + y * math.sin(math.pi * turn / 4)
            pair = torch.stack([f(2 * math.pi * along / wavelength) * window for f in (torch.cos, torch.sin)])
            pair = pair - pair.mean((1, 2), keepdim=True)
            kernels = (pair / pair.abs().sum((1, 2), keepdim=True))[:, None]
            padded = F.pad(grey, (reach,) * 4, mode="reflect")
            energy = F.conv2d(padded, kernels).square().sum(1, keepdim=True).sqrt()
            found.append(F.avg_pool2d(energy, 8))
    return rearrange(torch.cat(found, 1), "b c h w -> b (h w) c")


def filters(tokens: Callable[[Tensor], Tensor], category: Category) -> dict[str, float]:
    """MuSc on fixed features, each channel standardised over the category; no class token, so no re-scoring."""
    pictures = []
    for sample in category:
        image = sample.image() if callable(sample.image) else Image.open(sample.image)
        resized = image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        pictures.append(np.asarray(resized, np.float32) / 255)
    found = tokens(rearrange(torch.from_numpy(np.stack(pictures)), "n h w c -> n c h w"))
    found = (found - found.mean((0, 1))) / (found.std((0, 1)) + 1e-6)
    maps = upsample(msm.mutual_scores([found]), (SIDE // 8, SIDE // 8), SIDE)
    scores = maps.flatten(1).amax(1)
    return _row(evaluate(read_truth(category.dataset, category.samples, SIDE), scores, scores, maps))


def _row(measured: dict) -> dict[str, float]:
    pixel = measured["pixel_clean"]
    image = (measured[name]["auroc"] for name in ("image", "image_before_rscin"))
    return dict(zip(METRICS, (*image, pixel["auroc"], pixel["ap"], pixel["pro"]), strict=True))


def methods(deit: Path | None, weights: Path | None) -> dict[str, Callable[[Category], dict[str, float]]]:
    """The rows of the table: name -> category -> metrics."""

    def network(**settings: object) -> Callable[[Category], dict[str, float]]:
        scorer = MuSc(MuScConfig(device="cpu", **settings))  # type: ignore[arg-type]
        return lambda category: _row(dict(scorer.run(category).metrics))

    rows = {
        "raw patches": lambda category: filters(raw_patches, category),
        "Gabor energies": lambda category: filters(gabor_energies, category),
        "untrained": network(weights="random"),
        "procedural": network(weights=str(weights) if weights else None),
    }
    if deit:
        rows["DeiT-Tiny"] = network(backbone="deit_tiny_patch16_224", weights=str(deit))
    return rows


def categories(tile: Path | None, good: int, defects: int, wanted: set[str] | None = None) -> Iterator[Category]:
    """Every category, or those that are `wanted` by their own or their data set's name."""

    def asked(dataset: str, name: str) -> bool:
        return not wanted or bool({dataset, name} & wanted)

    for name in (*synthetic.CATEGORIES, *synthetic.HARD):
        if asked("synthetic", name):
            yield synthetic.category(name, good=good, defects=defects)
    yield from (texture(name) for name in TEXTURES if asked("skimage", name))
    if tile and asked("magnetic_tile", tile.name):
        yield replace(load_category("mvtec_ad", tile.parent, tile.name), dataset="magnetic_tile")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m pretraining.evaluate", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("evaluation.csv"))
    parser.add_argument("--weights", type=Path, help="of the embedded backbone (default: those in the package)")
    parser.add_argument("--deit", type=Path, help="weights of DeiT-Tiny, to measure it too")
    parser.add_argument("--tile", type=Path, help="folder of the magnetic tiles in the MVTec AD layout")
    parser.add_argument("--only", nargs="+", help="rows to measure")
    parser.add_argument("--data", nargs="+", help="categories or data sets to measure")
    parser.add_argument("--good", type=int, default=24)
    parser.add_argument("--defects", type=int, default=16)
    arguments = parser.parse_args(argv)
    with arguments.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["method", "dataset", "category", *METRICS])
        writer.writeheader()
        wanted = set(arguments.data or ())
        for category in categories(arguments.tile, arguments.good, arguments.defects, wanted):
            for name, method in methods(arguments.deit, arguments.weights).items():
                if arguments.only and name not in arguments.only:
                    continue
                row = {k: f"{v:.3f}" for k, v in method(category).items()}
                writer.writerow({"method": name, "dataset": category.dataset, "category": category.name, **row})
                file.flush()
                print(f"{name:15} {category.dataset} {category.name:14}", *row.values(), flush=True)


if __name__ == "__main__":
    main()
