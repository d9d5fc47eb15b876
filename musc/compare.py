"""Methods side by side on one data set: features once, then every method's metrics, time and memory."""

from __future__ import annotations

import gc
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from matplotlib.figure import Figure

from musc.backbones import AUTO, choose_backbone
from musc.config import METHODS, OTHER_METHODS, MuScConfig
from musc.datasets.base import Category
from musc.distributed.cluster import Cluster
from musc.errors import ConfigError, DataError
from musc.features import Features
from musc.methods import registry
from musc.methods.base import image_scores, method_maps
from musc.pipeline import MuSc
from musc.results.evaluation import evaluate, read_truth
from musc.results.tables import COLUMNS
from musc.saving import whole

References = Callable[[Category, str], Category | None]  # of a category, for a method
METRICS = {name: where for name, where in COLUMNS.items() if name not in ("image AUROC before RsCIN", "PRO (official)")}
COST = ("seconds", "GiB")
GIB = 1 << 30


def check(methods: Sequence[str], config: MuScConfig, has_references: Callable[[str], bool]) -> dict[str, MuScConfig]:
    """The configuration of every method. Raises ConfigError, before any work, on a name that is none and where one of
    them cannot run: without references, or without a text tower.

    Example:
        >>> configs = check(["musc", "muscv2"], MuScConfig(), lambda name: False)
        >>> [(c.aggregation, c.windows) for c in configs.values()]
        [('lnamd', (2, 3)), ('snamd', (7,))]
    """
    if unknown := [name for name in methods if name not in METHODS]:
        raise ConfigError(f"method {unknown[0]!r}: choose from {', '.join(METHODS)}.")
    if not methods:
        raise ConfigError(f"no methods: name some of {', '.join(METHODS)}.")
    configs = {name: of_method(config, name) for name in methods}
    for name, chosen in configs.items():
        registry.check(chosen, has_references(name))
    return configs


def runnable(config: MuScConfig, has_references: Callable[[str], bool]) -> tuple[list[str], list[str]]:
    """The methods that can run, and what keeps each of the others from it."""
    names, reasons = [], []
    for name in METHODS:
        try:
            check([name], config, has_references)
            names.append(name)
        except ConfigError as error:
            reasons.append(str(error))
    return names, reasons


def of_method(config: MuScConfig, name: str) -> MuScConfig:
    """The settings of `config` with another method; methods without mutual scoring take none of its settings."""
    if name not in OTHER_METHODS:
        return config.replace(method=name)
    kept = ("backbone", "weights", "image_size", "stages", "backbone_precision", "mask_protocol", "full_scale",
            "map_size", "batch_size", "workers", "decoding", "device", "seed")  # fmt: skip
    return MuScConfig(method=name, **{field: getattr(config, field) for field in kept})


@dataclass
class Peak:
    """gib: memory at most in use beyond what was before, in GiB; None where the system does not tell."""

    gib: float | None = None


@contextmanager
def peak_memory(device: torch.device) -> Iterator[Peak]:
    """Measures the peak inside the block: of the GPU's memory there, on a CPU of the process's (Linux alone)."""
    found = Peak()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield found
        found.gib = (torch.cuda.max_memory_allocated(device) - before) / GIB
        return
    gc.collect()
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak falls to what is in use now
        before = _high_water()
    except (OSError, IndexError, ValueError):
        yield found
        return
    yield found
    found.gib = max(0, _high_water() - before) / GIB  # pages that the system took back meanwhile are no gain


def _high_water() -> int:
    return 1024 * int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])


@dataclass
class Tokens:
    """The tokens of a category and of its references, extracted when they are first asked for, and kept."""

    musc: MuSc
    category: Category
    seconds: float = 0.0
    features: Features | None = None
    normal: dict[tuple[str, ...], Features] = field(default_factory=dict)

    def of_images(self) -> Features:
        """Of the images to be scored."""
        if self.features is None:
            start = time.perf_counter()
            self.features = self.musc.features(self.category.samples)
            self.seconds = time.perf_counter() - start
        return self.features

    def of_references(self, pool: Category | None) -> Features | None:
        """Of normal images; the same ones are extracted once."""
        if pool is None:
            return None
        names = tuple(sample.name for sample in pool.samples)
        if names not in self.normal:
            self.normal[names] = self.musc.features(pool.samples)
        return self.normal[names]


def compare(
    categories: Sequence[Category],
    methods: Sequence[str],
    config: MuScConfig,
    folder: Path,
    *,
    references: References = lambda category, method: None,
    cache: Path | None = None,
    backbone: Any = None,
    cluster: Cluster | None = None,
    say: Callable[[str], None] = lambda line: None,
    force: bool = False,
) -> pd.DataFrame:
    """Measure every method on every category; what `folder` holds of an earlier run with the same settings is taken.

    Args:
        categories: labeled.
        methods: names of `config.METHODS`.
        config: backbone, sizes, seed, and MuSc's own settings.
        folder: for one JSON file per category and method.
        references: normal images of a category for a method.
        cache: folder of extracted tokens.
        backbone: a network that is loaded already.
        cluster: does the mutual scoring.
        say: takes what is being done.
        force: measure what is there again.

    Returns:
        A row per category and method: dataset, category, method, setting, images, the metrics in percent (NaN where
        they could not be measured), "extraction s" (0 where the tokens were not needed or had been extracted for
        another method), "seconds" of scoring, and "GiB", the peak beyond the tokens.

    Raises:
        DataError: images without labels, one alone, or no references where a method needs some.
        ConfigError: as `check`.

    Example:
        >>> import tempfile
        >>> from musc.datasets import load_category
        >>> tile = load_category("synthetic", name="tile", good=3, defects=1, size=64)
        >>> config = MuScConfig(weights="random", image_size=64, workers=0, device="cpu")
        >>> table = compare([tile], ["musc", "subspacead"], config, Path(tempfile.mkdtemp()))
        >>> table["method"].tolist(), table["setting"].tolist()
        (['musc', 'subspacead'], ['0-shot', '0-shot'])
    """
    config.check_unused(("roi",), "comparisons")
    if config.backbone == AUTO:
        config = config.replace(backbone=choose_backbone(config.weights))
    rows = []
    for category in categories:
        if not category.labeled:
            raise DataError(f"{category.name} has images without labels: a comparison measures, and needs them.")
        base = MuSc(config, backbone=backbone, cache=cache, progress=False, scheduler=cluster)
        base, _ = base.fitted(category.samples)
        backbone = base.backbone  # loaded once
        tokens = Tokens(base, category)
        for name in methods:
            chosen = of_method(base.config, name)
            pool = references(category, name)
            registry.check(chosen, pool is not None)
            file = folder / f"{category.name}-{name}-{_digest(MuSc(chosen, backbone=backbone), category, pool)}.json"
            if file.exists() and not force:
                say(f"{category.name} {name}: measured before, taken from {file}")
                rows.append(json.loads(file.read_text(encoding="utf-8")))
                continue
            say(f"{category.name} {name}")
            rows.append(_measure(category, name, chosen, pool, tokens))
            with whole(file) as partial:
                partial.write_text(json.dumps(rows[-1], indent=1) + "\n", encoding="utf-8")
    return pd.DataFrame(rows)


def _digest(musc: MuSc, category: Category, pool: Category | None) -> str:
    return hashlib.blake2b(musc.fingerprint(category, pool).encode(), digest_size=6).hexdigest()


def _measure(category: Category, name: str, config: MuScConfig, pool: Category | None, tokens: Tokens) -> dict:
    musc = tokens.musc
    if name == "winclip":  # it needs the images alone
        tokens = Tokens(MuSc(config, backbone=musc.backbone, progress=False), category)
    before = tokens.seconds
    features, normal = tokens.of_images(), tokens.of_references(pool)
    method = registry.build(config, musc.backbone, category.name, musc.scorer if musc.elsewhere else None)
    with peak_memory(musc.device) as peak:
        start = time.perf_counter()
        scores = method.score(features, normal)
        seconds = time.perf_counter() - start
    maps = method_maps(method, scores, musc.map_size)
    final = image_scores(scores, maps)
    found = evaluate(read_truth(category.dataset, features.samples, (maps.shape[1], maps.shape[2])), final, final, maps)
    groups = {**found, "pixel": found.get(f"pixel_{config.mask_protocol}", {})}
    shots = 0 if normal is None else len(normal)
    row: dict[str, Any] = {"dataset": category.dataset, "category": category.name, "method": name}
    row |= {"setting": f"{shots}-shot", "images": len(features)}
    row |= {column: _percent(groups.get(group, {}).get(key)) for column, (group, key) in METRICS.items()}
    return row | {"extraction s": tokens.seconds - before, "seconds": seconds, "GiB": peak.gib}


def _percent(value: float | None) -> float | None:
    return None if value is None else 100 * value


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """A row per method: the mean of its metrics over the categories, its seconds in all, and the largest GiB.

    Example:
        >>> row = {"dataset": "d", "method": "musc", "setting": "0-shot", "images": 5, "seconds": 1.0, "GiB": 0.5}
        >>> row |= dict.fromkeys(METRICS, 50.0)
        >>> frame = pd.DataFrame([row | {"category": "a"}, row | {"category": "b", "image AUROC": 100.0}])
        >>> summary(frame).loc["MuSc", ["image AUROC", "seconds", "GiB"]].tolist()
        [75.0, 2.0, 0.5]
    """
    how = dict.fromkeys(METRICS, "mean") | {"seconds": "sum", "GiB": "max"}
    numbers = frame.astype(dict.fromkeys(how, float))
    table = numbers.groupby("method", sort=False).agg(how)
    shots = frame.groupby("method", sort=False)["setting"].agg(lambda s: ", ".join(dict.fromkeys(s)))
    table.insert(0, "setting", shots)
    table.index = pd.Index([registry.TITLES[name] for name in table.index], name="method")
    return table


def plot(table: pd.DataFrame) -> Figure:
    """Image AUROC and pixel AP of every method over the seconds that it took, from `summary`'s table."""
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    for ax, column in zip(figure.subplots(1, 2), ("image AUROC", "pixel AP"), strict=True):
        for n, (name, line) in enumerate(table.iterrows()):
            ax.scatter(line["seconds"], line[column], color=f"C{n % 10}", s=45)
            ax.annotate(str(name), (line["seconds"], line[column]), xytext=(5, 4), textcoords="offset points")
        ax.set_xscale("log")
        ax.margins(x=0.25)
        ax.set_xlabel("seconds of scoring, without extraction")
        ax.set_ylabel(f"{column} [%]")
        ax.grid(alpha=0.3)
    return figure
