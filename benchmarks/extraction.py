"""Extraction: pictures decoded by this thread, by threads or by processes; the network in float32, bfloat16 and int8.

python -m benchmarks.extraction [decode] [network] [loss --photographs FOLDER] [--images 48] [--workers 2] [--turns 5]

decode: PNG pictures of a drawn texture with noise, read and resized to 518 x 518 with nothing else to do, in turns.
Processes have started when their time begins; how long that took has a column of its own. Images a second, medians;
processor seconds per image, starting included, say what it costs where other programs take part of the machine.
network: a ViT-S and a ViT-B of random weights on one thread of a processor, 224 x 224 pixels. Seconds of processor time
per image, the least of the turns, since other load only adds.

loss: each third of the photographs of a category in the MVTec AD layout, by focus_vits14, in float32 and in int8.

Writes extraction_decode.csv, extraction_network.csv and extraction_loss.csv.
"""

import argparse
import csv
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np
import torch
from PIL import Image

from benchmarks.__main__ import HERE
from musc import MuSc, MuScConfig, datasets
from musc.backbones import load_backbone
from musc.backbones.quantized import in_int8
from musc.datasets import load_category
from musc.decoding import Preparation, read_ahead

PARTS = ("decode", "network", "loss")
WAYS = {"this thread": (0, False), "threads": (None, False), "processes": (None, True)}


def pictures(N: int, side: int, folder: Path) -> list[Path]:
    """N different photographs, as far as their decoding is concerned."""
    noise = np.random.default_rng(0)
    drawn = load_category("synthetic", name="tile", good=2, defects=1, size=256).samples
    paths = []
    for n in range(N):
        pixels = np.asarray(drawn[n % len(drawn)].image().resize((side, side)), dtype=np.int16)
        pixels = (pixels + noise.integers(-3, 4, pixels.shape)).clip(0, 255).astype(np.uint8)
        paths.append(folder / f"{n}.png")
        Image.fromarray(pixels).save(paths[-1])
    return paths


def processor() -> float:
    """Seconds of this process and those that it has ended."""
    return sum(os.times()[:4])


def decode(N: int, side: int, workers: int, turns: int) -> Iterator[tuple[object, ...]]:
    """Rows: way, workers, images a second, seconds until the first image."""
    how = Preparation(518, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bicubic")
    taken: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
    torch.set_num_threads(1)
    load = f"{os.getloadavg()[0]:.1f}"
    with tempfile.TemporaryDirectory() as folder:
        paths = pictures(N + 4 * workers, side, Path(folder))
        for _ in range(turns):
            for way, (count, processes) in WAYS.items():
                start, used = time.perf_counter(), processor()
                count = workers if count is None else count
                reading = read_ahead(paths, how, lambda key: None, count, processes, ahead=2 * workers)
                for _ in range(4 * workers):  # what was read while processes started is not counted
                    next(reading)
                    first = time.perf_counter()
                rate = sum(1 for _ in reading) / (time.perf_counter() - first)
                taken[way].append((rate, first - start, (processor() - used) / len(paths)))
    for way, rows in taken.items():
        rate, begun, cost = (median(column) for column in zip(*rows, strict=True))
        yield way, 1 if way == "this thread" else workers, f"{rate:.1f}", f"{begun:.1f}", f"{cost:.3f}", load


def network(turns: int) -> Iterator[tuple[object, ...]]:
    """Rows: network, number format, seconds of processor time per image, how many times faster than float32."""
    torch.set_num_threads(1)
    for name in ("dinov2_vits14", "dinov2_vitb14"):
        backbone = load_backbone(name, weights="random", image_size=224)
        images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
        plain = backbone.network
        networks = {"float32": plain, "bfloat16": plain, "int8": in_int8(backbone).network}
        least = dict.fromkeys(networks, float("inf"))
        for turn in range(turns + 1):
            for kind, backbone.network in networks.items():
                start = time.thread_time()
                with torch.autocast("cpu", torch.bfloat16, enabled=kind == "bfloat16"):
                    backbone(images)
                if turn:  # the first one warms up
                    least[kind] = min(least[kind], (time.thread_time() - start) / len(images))
        for kind, seconds in least.items():
            yield name, kind, f"{seconds:.3f}", f"{least['float32'] / seconds:.2f}"


def loss(photographs: Path) -> Iterator[tuple[object, ...]]:
    """Rows: number format, images, image AUROC and AP after RsCIN, pixel AP and F1 of the clean masks; percent."""
    category = datasets.load(photographs, "mvtec_ad")[0]
    category = replace(category, samples=category.samples[::3])
    plain = MuScConfig(backbone="focus_vits14", image_size=140, device="cpu", workers=0)
    for kind in ("float32", "int8"):
        metrics = MuSc(plain.replace(backbone_precision=kind)).run(category).metrics
        image, pixel = metrics["image"], metrics["pixel_clean"]
        values = (image["auroc"], image["ap"], pixel["ap"], pixel["f1_max"])
        yield kind, len(category.samples), *(f"{100 * value:.1f}" for value in values)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.extraction", description=__doc__.splitlines()[0])
    parser.add_argument(
        "parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; the first two where none is named"
    )
    parser.add_argument("--photographs", type=Path, metavar="FOLDER", help="of the part loss, in the MVTec AD layout")
    parser.add_argument("--images", type=int, default=48)
    parser.add_argument("--side", type=int, default=1024, help="of the pictures, in pixels")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--out", type=Path, default=HERE, help="folder of the tables")
    a = parser.parse_args()
    if unknown := set(a.parts) - set(PARTS):
        parser.error(f"no part {', '.join(sorted(unknown))}: choose from {', '.join(PARTS)}")
    if "loss" in a.parts and not a.photographs:
        parser.error("the part loss takes --photographs FOLDER")
    tables = {
        "decode": (("decoded by", "workers", "images a second", "seconds until all work",
                    "processor seconds per image", "load before"),
                   lambda: decode(a.images, a.side, a.workers, a.turns)),
        "network": (("network", "numbers", "seconds per image", "times faster"), lambda: network(a.turns)),
        "loss": (("numbers", "images", "image AUROC", "image AP", "pixel AP", "pixel F1"), lambda: loss(a.photographs)),
    }  # fmt: skip
    a.out.mkdir(parents=True, exist_ok=True)
    for part in a.parts or PARTS[:2]:
        columns, rows = tables[part]
        found = list(rows())
        for row in found:
            print(part, *row)
        with (a.out / f"extraction_{part}.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows([columns, *found])


if __name__ == "__main__":
    main()
