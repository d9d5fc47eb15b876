"""How far mutual scoring scales: accuracy against cost of comparing less, time over N, and memory below a bound.

python -m benchmarks.scale [accuracy] [time] [memory] [--photographs FOLDER] [--most 2000] [--out FOLDER]
python -m benchmarks.scale gpu --devices cuda:0[,cuda:1] [--most 2000]

accuracy: image AUROC, pixel AP (of each second row and column) and the share of pairs that are compared, for exact
scoring, shortlists of look-alikes, random references and coresets. All distances of a data set are computed once, kept
in the work folder in half precision, and every way is a choice of them. Data: a synthetic texture, 400 images; a
synthetic product, 400 images, of which 12 normal ones have other colours (a rare variant); and, where FOLDER is given,
photographs in the MVTec AD layout, by focus_vits14.

time: one stage of drawn tokens, 14 x 14 x 384, degrees 1, 3, 5. CPU seconds of one thread, so that other load does not
count much. memory: the same tokens below a bound, in a process of its own; the scores of some images against float64.

gpu: the same tokens and ways, N = 200 to 2000, on the devices that are named: seconds on the clock, from tokens in the
host's memory to scores in it, bytes at the peak of any device, tokens included, the scores of some images against
float64. "exact in 2 GiB": mutual scoring may take so much beyond the tokens.

Every row is written when it is measured, and a row that is there is not measured again.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from PIL import Image
from sklearn.metrics import average_precision_score, roc_auc_score

from benchmarks.__main__ import machine
from benchmarks.metrics import peak_memory, resident_memory
from benchmarks.msm import DEGREES, draw_tokens
from musc import MuSc, MuScConfig, datasets, lnamd, msm
from musc.datasets.altered import Altered
from musc.datasets.base import Category
from musc.distributed import devices
from musc.engines import memory
from musc.engines.pairs import plan_pool
from musc.engines.settings import Settings
from musc.features import Features
from musc.results.evaluation import read_truth
from musc.scoring import neighbours
from musc.scoring.maps import anomaly_maps

PARTS = ("accuracy", "time", "memory")
WAYS = ("20 references", "5 % look-alikes", "exact")
BOUNDED = "exact in 2 GiB"
GPU_IMAGES = (200, 500, 1000, 2000)
HERE = Path(__file__).parent / "results"
VARIANTS = 12
MIB = 1 << 20


class Table:
    """Rows of a CSV file that are measured once."""

    def __init__(self, path: Path, keys: tuple[str, ...], values: tuple[str, ...]) -> None:
        self.path, self.keys, self.columns = path, keys, (*keys, *values)
        self.rows = list(csv.DictReader(path.read_text().splitlines())) if path.exists() else []

    def has(self, *key: object) -> bool:
        return any(tuple(row[k] for k in self.keys) == tuple(map(str, key)) for row in self.rows)

    def add(self, *values: object) -> None:
        self.rows.append(dict(zip(self.columns, map(str, values), strict=True)))
        print(self.path.stem, *values, flush=True)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("w", newline="") as file:
            table = csv.DictWriter(file, self.columns, lineterminator="\n")
            table.writeheader()
            table.writerows(self.rows)


# -- accuracy against cost


class Way(NamedTuple):
    """name, setting and seed as in the table; pool: [N, S] images that score each (None: all); kept: how many of S
    distances are averaged."""

    name: str
    setting: str
    seed: int
    pool: torch.Tensor | None
    kept: int


def ways(features: Features) -> Iterator[Way]:
    """Exact scoring, and ways to compare less."""
    N = len(features)
    K = msm.interval_bounds(N - 1)[1]
    yield Way("exact", "all", 0, None, K)
    apart = neighbours.differences(neighbours.sketches(features.patch_tokens[-1], features.grids[-1]))
    for share in (0.5, 0.2, 0.1, 0.05):
        S = neighbours.count(share, N) or N - 1
        yield Way("look-alikes", f"{share:g}", 0, neighbours.shortlists(apart, S), min(K, S))
    for share in (0.2, 0.1, 0.05, 0.025):
        R = round(share * (N - 1))
        for seed in range(3):
            pool = torch.stack([row.argsort()[-R:] for row in plan_pool(N, 0, R, seed).slot])
            yield Way("references", f"{share:g}", seed, pool, msm.interval_bounds(R)[1])
    for share in (0.1, 0.05, 0.025):
        R = round(share * (N - 1))
        yield Way("coreset", f"{share:g}", 0, neighbours.coreset(apart, R), msm.interval_bounds(R)[1])


def recoloured(image: Image.Image) -> Image.Image:
    """The same product in another colour: its channels change places."""
    return Image.fromarray(np.ascontiguousarray(np.asarray(image)[..., [2, 0, 1]]))


def data(photographs: Path | None) -> Iterator[tuple[str, Callable[[], Category], MuScConfig]]:
    """Each data set: name, images, network."""
    drawn = MuScConfig(backbone="procedural", image_size=128, device="cpu", workers=0)

    def texture() -> Category:
        return datasets.load_category("synthetic", name="tile", good=300, defects=100, size=128)

    def product() -> Category:
        category = datasets.load_category("synthetic", name="capsule", good=300, defects=100, size=96)
        rare = [n for n, sample in enumerate(category.samples) if not sample.label][:VARIANTS]
        changed = list(category.samples)
        for n in rare:
            changed[n] = replace(changed[n], image=Altered(changed[n].image, "hue", recoloured), defect="variant")
        return replace(category, samples=tuple(changed))

    yield "texture", texture, drawn
    yield "product with a rare variant", product, drawn.replace(image_size=96)
    if photographs:
        found = datasets.load(photographs, "mvtec_ad")[0]
        yield "photographs", lambda: found, drawn.replace(backbone="focus_vits14", image_size=140)


def all_distances(features: Features, path: Path) -> np.ndarray:
    """[L, D, N, N - 1, M] in half precision, from an earlier run where it is there."""
    if not path.exists():
        start = time.process_time()
        stages = [
            msm.stage_distances(tokens, DEGREES, grid=grid).half().numpy()
            for tokens, grid in zip(features.patch_tokens, features.grids, strict=True)
        ]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".json").write_text(json.dumps({"seconds": time.process_time() - start}))
        np.save(path.with_suffix(".part.npy"), np.stack(stages))
        path.with_suffix(".part.npy").rename(path)
    return np.load(path, mmap_mode="r")


def scores_of(distances: np.ndarray, chosen: list[Way]) -> list[np.ndarray]:
    """[N, M] by each way: Eq. 2 over the way's images, Eq. 3 over stages and degrees."""
    L, D, N, _, M = distances.shape
    found = [np.zeros((N, M)) for _ in chosen]
    for stage in distances:
        for degree in stage:
            for i, row in enumerate(degree):
                every = row.astype(np.float32)  # [N - 1, M]
                for way, total in zip(chosen, found, strict=True):
                    part = every
                    if way.pool is not None:
                        others = way.pool[i].numpy()
                        part = every[others - (others > i)]
                    total[i] += np.partition(part, way.kept - 1, axis=0)[: way.kept].mean(axis=0)
    return [total / (L * D) for total in found]


def accuracy(photographs: Path | None, work: Path, out: Path) -> None:
    table = Table(
        out / "scale_accuracy.csv",
        ("data", "way", "setting", "seed"),
        ("images", "pairs", "image AUROC", "pixel AP", "variants", "seconds of all pairs"),
    )
    for name, load, config in data(photographs):
        if table.has(name, "coreset", "0.025", 0):
            continue
        category, musc = load(), MuSc(config, cache=work / "tokens")
        features = musc.features(category.samples)
        path = work / f"{name.replace(' ', '_')}.npy"
        distances = all_distances(features, path)
        seconds = json.loads(path.with_suffix(".json").read_text())["seconds"]
        truth = read_truth(category.dataset, features.samples, config.image_size)
        masks = truth.masks["clean"].numpy()[:, ::2, ::2].ravel()
        labels = np.array([sample.label for sample in features.samples])
        rare = np.array([sample.defect == "variant" for sample in features.samples])
        usual = (labels == 0) & ~rare
        chosen = [way for way in ways(features) if not table.has(name, way.name, way.setting, way.seed)]
        for way, scores in zip(chosen, scores_of(distances, chosen), strict=True):
            size = config.image_size or 0
            maps = anomaly_maps({features.grids[0]: torch.from_numpy(scores).float()}, size)
            image = musc.rescored(maps.flatten(1).amax(dim=1), features.class_tokens)[0].numpy()
            ap = average_precision_score(masks, maps[truth.rows, ::2, ::2].numpy().ravel())
            # how many of the usual normal images a variant exceeds, on average: 50 where it is like them
            above = 100 * (image[rare][:, None] > image[usual]).mean() if rare.any() else float("nan")
            figures = (100 * compared(way.pool, len(labels)), 100 * roc_auc_score(labels, image), 100 * ap, above)
            shown = [f"{value:.2f}" for value in figures]
            table.add(name, way.name, way.setting, way.seed, len(labels), *shown, f"{seconds:.0f}")


def compared(pool: torch.Tensor | None, N: int) -> float:
    """Share of all pairs of images of which at least one scores the other: each is compared once."""
    if pool is None:
        return 1.0
    wanted = torch.zeros(N, N, dtype=torch.bool).scatter_(1, pool, value=True)
    return float((wanted | wanted.T).sum() / (N * (N - 1)))


# -- time over N


def tokens_of(N: int) -> torch.Tensor:
    """[N, 196, 384], drawn in parts."""
    return torch.cat([draw_tokens(min(100, N - n), 14, 384, seed=n) for n in range(0, N, 100)])


def score_by(way: str, tokens: torch.Tensor, score: Callable[..., torch.Tensor] = msm.scores) -> torch.Tensor:
    """Patch scores, the choice of images included; score: as `msm.scores`."""
    if way in ("exact", BOUNDED):
        return score([tokens], Settings(DEGREES, max_bytes=2 << 30 if way == BOUNDED else None))
    if way == "20 references":
        return score([tokens], Settings(DEGREES), pool=20)
    pool = neighbours.chosen(0.05, tokens, (14, 14))
    assert pool is not None
    return score([tokens], Settings(DEGREES, (0.0, 1.0)), pool=pool)


def over_N(most: int, out: Path) -> None:
    table = Table(out / "scale_time.csv", ("way", "images"), ("seconds",))
    score_by("exact", tokens_of(3))  # loads kernels
    for N in (125, 250, 500, 1000, 2000):
        for way in WAYS if most >= N else ():
            if not table.has(way, N):
                tokens = tokens_of(N)
                start = time.process_time()
                score_by(way, tokens)
                table.add(way, N, f"{time.process_time() - start:.1f}")


# -- memory below a bound


def memory_row(N: int, bound: int, sample: int) -> dict[str, float]:
    """In this process: bytes at the peak beyond the features, CPU seconds, the largest error of `sample` images."""
    score_by("exact", tokens_of(3))
    tokens = tokens_of(N)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before, start = resident_memory(), time.process_time()
    got = msm.mutual_scores([tokens], DEGREES, max_bytes=bound)
    seconds, peak = time.process_time() - start, peak_memory() - before
    some = torch.linspace(0, N - 1, sample).long().unique()
    off = max((got[i] - alone(tokens, int(i))).abs().max().item() for i in some)
    return {"peak": peak, "seconds": seconds, "off": off, "features": tokens.nbytes}


def alone(tokens: torch.Tensor, i: int) -> torch.Tensor:
    """[M]: the scores of one image by Eq. 1-3 as they stand, in float64, without an engine."""
    others = [j for j in range(len(tokens)) if j != i]
    found: list[torch.Tensor] = []
    for degree in DEGREES:
        own = lnamd.aggregate(tokens[i : i + 1].double(), degree)[0]
        nearest = [torch.cdist(own, lnamd.aggregate(tokens[j : j + 1].double(), degree)[0]).amin(dim=1) for j in others]
        found.append(msm.interval_average(torch.stack(nearest)[None])[0])
    return torch.stack(found).mean(dim=0)


def within(N: int, bound: int, sample: int, out: Path) -> None:
    table = Table(
        out / "scale_memory.csv",
        ("images", "bound (MiB)"),
        ("all distances (MiB)", "peak (MiB)", "seconds", "pairs compared (%)", "largest error", "images checked"),
    )
    if table.has(N, bound // MIB):
        return
    command = f"import json; from benchmarks import scale; print(json.dumps(scale.memory_row({N}, {bound}, {sample})))"
    done = subprocess.run([sys.executable, "-c", command], stdout=subprocess.PIPE, text=True, check=True)
    row: dict[str, Any] = json.loads(done.stdout)
    problem = memory.Problem(torch.device("cpu"), torch.float32, N, N, N - 1, (14, 14), 384, DEGREES)
    cut = memory.cut(problem, bound)
    figures = [f"{x:.0f}" for x in (problem.unit * N * (N - 1) / MIB, row["peak"] / MIB, row["seconds"])]
    table.add(
        N, bound // MIB, *figures, f"{100 * memory.pairs_compared(problem, cut):.0f}", f"{row['off']:.0e}", sample
    )


# -- on one GPU or several


def on_devices(names: str, sizes: tuple[int, ...], sample: int, out: Path) -> None:
    chosen = [torch.device(name) for name in names.split(",")]
    gpus = [device for device in chosen if device.type == "cuda"]
    kind = torch.cuda.get_device_name(chosen[0]) if gpus else machine()["cpu"]

    def score(stages: list[torch.Tensor], settings: Settings, pool: Any = None) -> torch.Tensor:
        if len(chosen) > 1:
            return devices.mutual_scores(stages, settings, devices=chosen, pool=pool)
        return msm.scores([tokens.to(chosen[0]) for tokens in stages], settings, pool=pool).cpu()

    table = Table(
        out / "scale_gpu.csv",
        ("devices", "way", "images"),
        ("device", "seconds", "peak (MiB)", "largest error", "images checked"),
    )
    score_by("exact", tokens_of(4 * len(chosen)), score)  # compiles
    for N in sizes:
        tokens = tokens_of(N)
        for way in (*WAYS, BOUNDED):
            if table.has(len(chosen), way, N):
                continue
            for gpu in gpus:
                torch.cuda.reset_peak_memory_stats(gpu)
            start = time.perf_counter()
            # one device has the tokens before images are chosen, as in the pipeline
            got = score_by(way, tokens.to(chosen[0]) if len(chosen) == 1 else tokens, score)
            seconds = time.perf_counter() - start
            peak = f"{max(torch.cuda.max_memory_allocated(gpu) for gpu in gpus) / MIB:.0f}" if gpus else ""
            some = torch.linspace(0, N - 1, sample).long().unique().tolist() if way.startswith("exact") else []
            there = tokens.to(chosen[0]) if some else tokens
            off = [(got[i] - alone(there, i).cpu()).abs().max().item() for i in some]
            del there  # the next peak is without it
            table.add(len(chosen), way, N, kind, f"{seconds:.2f}", peak, f"{max(off):.0e}" if off else "", len(some))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__.splitlines()[0])
    parser.add_argument(
        "parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}, which all run where none is named; or gpu"
    )
    parser.add_argument("--photographs", type=Path, metavar="FOLDER", help="in the MVTec AD layout")
    parser.add_argument("--work", type=Path, default=Path("results/scale"), help="folder of tokens and distances")
    parser.add_argument("--most", type=int, default=2000, help="images of the largest run over N")
    parser.add_argument("--images", type=int, default=2000, help="of the run below a bound of memory")
    parser.add_argument("--bound", type=int, default=2048, metavar="MIB", help="of that run")
    parser.add_argument("--sample", type=int, default=50, help="images whose scores are checked")
    parser.add_argument("--devices", metavar="NAMES", help="of the part gpu, such as cuda:0 or cuda:0,cuda:1")
    parser.add_argument("--out", type=Path, default=HERE, help="folder of the tables")
    args = parser.parse_args()
    if unknown := set(args.parts) - {*PARTS, "gpu"}:
        parser.error(f"no part {', '.join(sorted(unknown))}: choose from {', '.join(PARTS)}, gpu")
    if ("gpu" in args.parts) != bool(args.devices):
        parser.error("the part gpu takes --devices, such as cuda:0, and no other part does")
    parts = args.parts or PARTS
    if "gpu" in parts:
        on_devices(args.devices, tuple(N for N in GPU_IMAGES if args.most >= N) or (args.most,), args.sample, args.out)
    if "accuracy" in parts:
        accuracy(args.photographs, args.work, args.out)
    if "time" in parts:
        over_N(args.most, args.out)
    if "memory" in parts:
        within(args.images, args.bound * MIB, args.sample, args.out)
    if set(parts) == {"gpu"}:
        return
    about = machine()
    (args.out / "scale_machine.json").write_text(json.dumps(about, indent=2) + "\n")


if __name__ == "__main__":
    main()
