"""On what a table is made: the data sets, the settings, and the measurements that several tables share."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from musc import datasets
from musc.config import MASK_PROTOCOLS, PAPER_WINDOWS, MuScConfig
from musc.datasets.base import Category
from musc.datasets.synthetic import HARD
from musc.errors import ConfigError, ResultError
from musc.features import Features
from musc.pipeline import MuSc
from musc.reproduce import experiments
from musc.reproduce.paper import table
from musc.results import MuScResult
from musc.saving import whole
from musc.sources import numerical_version

NAMES = ("demo", "paper")
SYNTHETIC = "synthetic"
WHERE = """\
  MVTec AD: CATEGORY/test/DEFECT/*.png and CATEGORY/ground_truth/DEFECT/*_mask.png
            https://www.mvtec.com/company/research/datasets/mvtec-ad
  VisA:     split_csv/1cls.csv and CATEGORY/Data/Images/..., or the prepared CATEGORY/test/{good,bad}
            https://github.com/amazon-science/spot-diff
  BTAD:     CATEGORY/test/{ok,ko}
            https://github.com/pankajmishra000/VT-ADL"""
# Tables that share distances are measured together.
GROUPS = {
    "lnamd": ("table_3", "table_9"),
    "msm": ("table_4", "table_10", "figure_7"),
    "rscin": ("table_5", "figure_8"),
    "subsets": ("table_7",),
}


@dataclass(frozen=True)
class Profile:
    """Data, settings and the folder of finished measurements; make one with `profile`.

    name: "demo" or "paper". roots: folder of each data set. categories: only these; limit: at most that many
    categories of a data set; images: at most that many of a category. protocol: the masks of the pixel metrics.
    """

    name: str
    config: MuScConfig
    roots: dict[str, Path | None] = field(hash=False)
    categories: tuple[str, ...] = ()
    limit: int | None = None
    images: int | None = None
    protocol: str = "clean"
    folder: Path = Path("results/reproduce")
    progress: bool = False
    chosen_backbone: bool = False
    _pipelines: dict[Any, MuSc] = field(default_factory=dict, hash=False, compare=False, repr=False)

    def names(self, dataset: str, *, hard: bool = False) -> list[str]:
        """The categories of a data set that are measured; of the synthetic one, the hard ones only on request."""
        if dataset not in self.roots:
            return []
        found = datasets.list_categories(dataset, self.roots[dataset])
        if dataset == SYNTHETIC and not hard:
            found = [name for name in found if name not in HARD]
        found = [name for name in found if not self.categories or name in self.categories]
        return found[: self.limit]

    def category(self, dataset: str, name: str) -> Category:
        """One category, thinned evenly to `images` where it has more, so that all kinds of defect stay."""
        if dataset == SYNTHETIC and self.images:
            half = self.images // 2
            return datasets.load_category(SYNTHETIC, None, name, good=half, defects=self.images - half, train=half)
        found = datasets.load_category(dataset, self.roots[dataset], name)
        step = math.ceil(len(found) / self.images) if self.images else 1
        return dataclasses.replace(found, samples=found.samples[::step])

    def musc(self, dataset: str, **changes: Any) -> MuSc:
        """The pipeline with the windows of the data set and some settings changed; backbones are loaded once."""
        config = self.config.replace(windows=PAPER_WINDOWS.get(dataset, self.config.windows))
        config = config.replace(**changes)
        if config not in self._pipelines:
            network = (config.backbone, config.weights, config.image_size, config.stages, config.device)
            self._pipelines[config] = self._pipelines[network] = MuSc(
                config,
                backbone=self._pipelines[network].backbone if network in self._pipelines else None,
                cache=self.folder / "tokens" if self.name == "demo" else None,
                progress=self.progress,
            )
        return self._pipelines[config]

    @property
    def place(self) -> Path:
        """Where measurements of this version of the code are kept."""
        return self.folder / f"{self.name}-{numerical_version()}"

    def result(self, dataset: str, name: str, **changes: Any) -> MuScResult:
        """MuSc's result on one category; a finished one is read from disk."""
        pipeline, category = self.musc(dataset, **changes), self.category(dataset, name)
        folder = self.place / "results" / pipeline.fingerprint(category)
        try:
            return MuScResult.load(folder)
        except ResultError:
            result = pipeline.run(category)
            result.save(folder)
            return result

    def features(self, dataset: str, name: str) -> Features:
        """The tokens of one category."""
        return self.musc(dataset).features(self.category(dataset, name).samples)

    def ablation(self, dataset: str, experiment: str, **changes: Any) -> pd.DataFrame:
        """`experiments.ablate` over the categories: columns category, row, group, metric, value (a fraction)."""
        group = next(g for g in GROUPS.values() if experiment in g)
        grids = {name: experiments.GRIDS[name] for name in group}
        frames = [
            experiments.ablate(
                self.category(dataset, n), self.musc(dataset, **changes), self.place / "ablations", grids
            )
            for n in self.names(dataset)
        ]
        return pd.concat(frames).query("experiment == @experiment") if frames else pd.DataFrame()

    def cost(self, dataset: str, subsets: int, **changes: Any) -> tuple[float, float]:
        """Milliseconds per image and MiB of GPU memory (NaN without a GPU) of the largest category; kept on disk.

        Metrics are not counted; some images are run before, to warm up, and the faster of two runs is taken.
        """
        category = max((self.category(dataset, n) for n in self.names(dataset)), key=len)
        usual = self.musc(dataset, **changes)
        pipeline = MuSc(usual.config.replace(subsets=subsets), backbone=usual.backbone)
        file = self.place / "cost" / f"{pipeline.fingerprint(category)}.csv"
        if file.exists():
            row = pd.read_csv(file).iloc[0]
            return float(row["time_ms"]), float(row["gpu_mb"])
        pipeline.run(dataclasses.replace(category, samples=category.samples[: max(2 * subsets, 4)]))
        cuda = pipeline.device.type == "cuda"
        if cuda:
            torch.cuda.reset_peak_memory_stats(pipeline.device)
        seconds = math.inf
        for _ in range(2):  # the faster of two
            start = time.perf_counter()
            took = pipeline.run(category).timings
            seconds = min(seconds, time.perf_counter() - start - took["metrics"])
        memory = torch.cuda.max_memory_allocated(pipeline.device) / 2**20 if cuda else math.nan
        with whole(file) as path:
            pd.DataFrame([{"time_ms": 1000 * seconds / len(category), "gpu_mb": memory}]).to_csv(path, index=False)
        return 1000 * seconds / len(category), memory

    def coverage(self, dataset: str) -> str:
        """How much of a data set is measured: "" where it is all that the paper measured."""
        names = self.names(dataset)
        number = {"mvtec_ad": 17, "visa": 18}.get(dataset)
        printed = set(table(number)["category"]) - {"mean"} if number else set(names)
        parts = [f"{len(printed & set(names))} of {len(printed)} categories"] if set(names) != printed else []
        if self.images:
            parts.append(f"at most {self.images} images each")
        return ", ".join(parts)

    def describe(self) -> str:
        """Profile, data, backbone and weights: what belongs beside every number, in four lines."""
        where = []
        for dataset in self.roots:
            names = self.names(dataset)
            what = f"{len(names)} categor{'y' if len(names) == 1 else 'ies'}"
            where.append(f"{dataset} ({what}{f', at most {self.images} images each' if self.images else ''})")
        first = self.musc(next(iter(self.roots)))
        size = first.backbone.image_size
        return (
            f"profile   {self.name}, masks {self.protocol}\ndata      {', '.join(where)}\n"
            f"backbone  {self.config.backbone} at {size} px\nweights   {first.backbone.weights_id}"
        )


def profile(
    name: str = "demo",
    data_root: str | Path | Sequence[str | Path] | None = None,
    *,
    backbone: str | None = None,
    weights: str | None = None,
    image_size: int | None = None,
    device: str = "auto",
    categories: Sequence[str] | None = None,
    limit_categories: int | None = None,
    images: int | None = None,
    protocol: str | None = None,
    folder: str | Path = "results/reproduce",
    progress: bool = False,
    **settings: Any,
) -> Profile:
    """The profile `demo` (the synthetic data set, the embedded backbone) or `paper` (your copies of the data sets).

    Args:
        data_root: one folder or several, each MVTec AD, VisA or BTAD (the layout is recognised). A data set of your own
            in such a layout is taken for the data set whose layout it has.
        backbone, image_size: as in MuScConfig. None: ViT-L-14-336 at 518 pixels on `paper`, the embedded backbone at
            160 on `demo`.
        weights, device, settings: as in MuScConfig.
        categories, limit_categories, images: only these categories, so many of them, so many images of each.
        protocol: masks "official", as the paper's numbers were made (default on `paper`), or "clean".
        folder: where results are kept and finished ones found.

    Raises ConfigError: an unknown name, no data root on `paper`, or a folder in none of the three layouts.
    """
    if isinstance(image_size, str):
        raise ConfigError(f"image_size = {image_size!r}: one size serves all categories; give a side such as 518.")
    if name not in NAMES:
        raise ConfigError(f"profile = {name!r}: choose demo (synthetic data) or paper (MVTec AD, VisA, BTAD).")
    protocol = protocol or ("clean" if name == "demo" else "official")
    if protocol not in MASK_PROTOCOLS:
        raise ConfigError(f"protocol = {protocol!r}: choose one of {', '.join(MASK_PROTOCOLS)}.")
    if name == "demo":
        roots: dict[str, Path | None] = {SYNTHETIC: None}
        image_size, images = image_size or (160 if backbone in (None, "procedural") else None), images or 16
    else:
        roots = _roots(data_root)
    default = "procedural" if name == "demo" else "ViT-L-14-336"
    config = MuScConfig(backbone=backbone or default, weights=weights, image_size=image_size, device=device, **settings)
    chosen = tuple(categories or ())
    made = Profile(
        name, config, roots, chosen, limit_categories, images, protocol, Path(folder), progress, bool(backbone)
    )
    known = {n for dataset in roots for n in datasets.list_categories(dataset, roots[dataset])}
    if unknown := sorted(set(chosen) - known):
        raise ConfigError(f"no category {', '.join(unknown)}: there are {', '.join(sorted(known))}.")
    return made


def _roots(data_root: str | Path | Sequence[str | Path] | None) -> dict[str, Path | None]:
    given = [data_root] if isinstance(data_root, str | Path) else list(data_root or ())
    if not given:
        raise ConfigError(f"the profile paper needs a data root, a folder in one of these layouts:\n{WHERE}")
    roots: dict[str, Path | None] = {}
    for root in given:
        path = Path(root).expanduser()
        if not path.is_dir():
            raise ConfigError(f"data root {path} is no folder. The profile paper takes these layouts:\n{WHERE}")
        layout = datasets.detect_layout(path)
        if layout not in PAPER_WINDOWS:
            raise ConfigError(f"data root {path} has none of the layouts that the profile paper takes:\n{WHERE}")
        if layout in roots:
            raise ConfigError(f"data roots {roots[layout]} and {path} are both in the layout {layout}: give one.")
        roots[layout] = path
    return roots
