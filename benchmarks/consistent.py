"""Defects that many images share: what the plain method loses by them, and what the correction gives back.

    python -m benchmarks.consistent [--networks procedural focus_vits14] [--seeds 0 1 2 3] [--out FILE]

A pool holds normal images of a product, images with one identical defect, images with that kind of defect drawn anew
for each, and images of various kinds. A set takes 20 of them: "same" and "fresh" at 10, 20, 30 and 40 % of the images,
"clean" without any, and "mixed", an ordinary set with 40 % of various kinds. Products: the synthetic ones and
crops of scikit-image's brick, gravel and grass. Every set is scored plainly and corrected; metrics before
re-scoring. Finished pools of an earlier run are kept; `summary` makes the figures of the report from the rows.
"""

import argparse
import os
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from benchmarks.__main__ import HERE
from musc import MuSc, MuScConfig, datasets
from musc.datasets import planted, synthetic
from musc.datasets.base import Category, Sample
from musc.metrics import image_metrics, pixel_metrics
from musc.results import figures
from musc.scoring import choices
from musc.scoring.maps import upsample

SIZES = {"procedural": 112, "focus_vits14": 168}  # pixels: 14 x 14 and 12 x 12 patches
SHARES = (0.1, 0.2, 0.3, 0.4)
PHOTOGRAPHS = ("brick", "gravel", "grass")
PRODUCTS = (*synthetic.PRODUCTS, *PHOTOGRAPHS)
N = 20
SIDE = 128  # pixels of the maps that are measured
METRICS = ("image AUROC", "image F1-max", "image AP", "pixel AUROC", "pixel F1-max", "pixel AP", "PRO")
FILE = HERE / "consistent.csv"


def pool_of(product: str, seed: int) -> tuple[list[Sample], dict[str, list[int]]]:
    """All images of a pool, and the rows of each kind."""
    n = round(max(SHARES) * N)
    if product in PHOTOGRAPHS:
        import skimage.data

        pictures = {name: getattr(skimage.data, name)() for name in PHOTOGRAPHS}
        parts = {"good": planted.shared(pictures, product, 0.0).samples[-N:]}
        for name, alike in (("same", True), ("fresh", False)):
            parts[name] = planted.shared(pictures, product, n / 25, seed=seed, alike=alike).samples[-n:]
        kinds = [planted.shared(pictures, product, n / 25, seed=seed + k, alike=False).samples[-n:] for k in range(5)]
        parts["mixed"] = tuple(kinds[k % 5][k] for k in range(n))
    else:
        parts = {"good": _drawn(product, seed, good=N, defects=0).samples}
        parts["same"] = _drawn(product, seed, good=0, defects=n, same_defect=1.0).samples
        parts["fresh"] = tuple(_fresh(sample, i) for i, sample in enumerate(parts["same"]))
        parts["mixed"] = tuple(s for s in _drawn(product, seed, good=0, defects=n) if s.label)
    samples, rows = [], {}
    for name, part in parts.items():
        rows[name] = list(range(len(samples), len(samples) + len(part)))
        samples += part
    return samples, rows


def _fresh(sample: Sample, number: int) -> Sample:
    """The sample with a defect of its own: of the same kind, at another place, of another size and strength."""
    photo = replace(sample.image, planted=False)
    return replace(sample, name=f"fresh/{number:03}.png", image=photo, mask=synthetic.Mask(photo))


def _drawn(product: str, seed: int, **counts: object) -> Category:
    return datasets.load_category("synthetic", None, product, train=0, seed=seed, **counts)


def sets_of(rows: dict[str, list[int]]) -> dict[tuple[str, float], list[int]]:
    """The rows of every set, by kind and share. A photograph's crop is there once: with its defect, or without."""
    found = {("clean", 0.0): rows["good"]}
    for share in SHARES:
        n = round(share * N)
        for kind in ("same", "fresh"):
            found[kind, share] = rows["good"][: N - n] + rows[kind][-n:]
    n = len(rows["mixed"])
    found["mixed", n / N] = rows["good"][: N - n] + rows["mixed"]
    return found


def measured(scores: Tensor, masks: np.ndarray, labels: np.ndarray, grid: tuple[int, int]) -> dict[str, float]:
    """Metrics in percent of patch scores [N, M]; none where no image is anomalous."""
    if not labels.any():
        return {}
    maps = upsample(scores, grid, SIDE)
    image = image_metrics(labels, maps.flatten(1).amax(dim=1).numpy())
    pixel = pixel_metrics(masks, maps.numpy())
    values = [image["auroc"], image["f1_max"], image["ap"]]
    values += [pixel["auroc"], pixel["f1_max"], pixel["ap"], pixel["pro"]]
    return {name: 100 * value for name, value in zip(METRICS, values, strict=True)}


def distances(network: MuSc, product: str, seed: int, cache: Path | None) -> dict[str, object]:
    """All that the sets of a pool are made of; distances in half precision, kept in `cache`."""
    file = cache / f"{network.config.backbone}-{product}-{seed}.pt" if cache else None
    if file and file.exists():
        return torch.load(file, weights_only=False)
    samples, rows = pool_of(product, seed)
    features = network.features(samples)
    full = choices.all_distances(features, network.config.degrees).half()
    masks = figures.masks_at(samples, SIDE)
    found = {"full": full, "rows": rows, "masks": np.packbits(masks), "shape": masks.shape, "grid": features.grids[0]}
    found["labels"] = np.array([sample.label for sample in samples])
    if file:
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save(found, file)
    return found


def rows_of_pool(network: MuSc, product: str, seed: int, cache: Path | None = None) -> list[dict[str, object]]:
    """Two rows per set: plain and corrected."""
    pool = distances(network, product, seed, cache)
    full, labels, shape = pool["full"].float(), pool["labels"], pool["shape"]
    masks = np.unpackbits(pool["masks"])[: int(np.prod(shape))].reshape(shape).astype(bool)
    out = []
    for (kind, share), chosen in sets_of(pool["rows"]).items():
        plain, better, groups = choices.corrected_scores(full, chosen)
        right = set(np.flatnonzero(labels[chosen]))
        about = {"network": network.config.backbone, "product": product, "seed": seed, "set": kind, "share": share}
        about |= {"images": len(chosen), "groups": len(groups), "members": sum(len(g.images) for g in groups)}
        about["right"] = sum(len(right & set(g.images)) for g in groups)
        values: dict[str, float] = {}
        for name, scores in (("plain", plain), ("corrected", better)):
            if name == "plain" or groups:
                values = measured(scores, masks[chosen], labels[chosen], pool["grid"])
            out.append(about | {"scores": name} | values)
    return out


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """By network: pixel AP that one identical defect costs, the part of it that is recovered, what else is changed."""
    found = {}
    for network, part in table.groupby("network", sort=False):
        ap = part.pivot_table(index=["product", "seed", "share"], columns=["set", "scores"], values="pixel AP")
        same = ap.xs("same", level="set", axis=1).dropna()
        fresh = ap["fresh", "plain"].loc[same.index]
        lost = fresh - same["plain"]
        line = {"lost": lost.mean(), "recovered %": 100 * (same["corrected"] - same["plain"]).sum() / lost.sum()}
        for share in SHARES:
            at = lost.index.get_level_values("share") == share
            back = (same["corrected"] - same["plain"])[at].sum()
            line |= {f"lost at {100 * share:.0f} %": lost[at].mean()}
            line |= {f"recovered at {100 * share:.0f} %": 100 * back / lost[at].sum()}
        clean = part[(part["set"] == "clean") & (part["scores"] == "plain")]
        line["clean sets touched %"] = 100 * (clean["groups"] > 0).mean()
        for kind in ("fresh", "mixed"):
            both = part[part["set"] == kind].groupby("scores")[list(METRICS)].mean()
            line[f"{kind}: largest loss"] = (both.loc["plain"] - both.loc["corrected"]).max()
        found[network] = line
    return pd.DataFrame(found)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.consistent", description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="*", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2, 3])
    parser.add_argument("--products", nargs="*", default=list(PRODUCTS), choices=PRODUCTS)
    parser.add_argument("--cache", type=Path, help="folder in which distances are kept, 10 MB a pool")
    parser.add_argument("--out", type=Path, default=FILE)
    args = parser.parse_args()
    table = pd.read_csv(args.out) if args.out.exists() else pd.DataFrame(columns=["network", "product", "seed"])
    done = set(table[["network", "product", "seed"]].itertuples(index=False, name=None))
    torch.set_num_threads(1)
    for name in args.networks:
        network = MuSc(MuScConfig(backbone=name, image_size=SIZES[name], workers=0, device="cpu"))
        for seed in args.seeds:
            for product in args.products:
                if (name, product, seed) not in done:
                    rows = pd.DataFrame(rows_of_pool(network, product, seed, args.cache))
                    table = pd.concat([table, rows], ignore_index=True) if len(table) else rows
                    table.to_csv(args.out, index=False, float_format="%.2f", lineterminator="\n")
                    print(name, product, seed, flush=True)
    print(summary(table).round(1).to_string())


if __name__ == "__main__":
    main()
