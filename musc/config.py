"""Every setting of a run, in one frozen record that travels with its results."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from musc.errors import ConfigError

PRECISIONS = ("float32", "bfloat16", "float16")
REDUCTIONS = ("mean", "min", "max")
MASK_PROTOCOLS = ("clean", "official")
TILE_POOLS = ("position", "all")
CONSISTENCY = ("off", "warn", "correct")
PAPER_WINDOWS: dict[str, tuple[float, ...]] = {"mvtec_ad": (2, 3), "btad": (2, 3), "visa": (8, 9)}


@dataclass(frozen=True)
class MuScConfig:
    """The settings of MuSc; the defaults are the paper's (Sec. 4) wherever the paper names a value.

    backbone: a name that `musc backbones` lists. weights: a local file, or "random" for an untrained network
    (None: the backbone's own, from the package or the hub). image_size: side in pixels of the square input
    (None: the backbone's own). stages: 1-based blocks whose output is used (None: four equal parts).
    degrees: r of LNAMD (Sec. 3.1). interval: the part of the sorted distances that Eq. 2 averages.
    reduction: "mean" in the paper; "min" and "max" are Tab. 4. windows: k of RsCIN, counting the image itself
    ((2, 3) on MVTec AD and BTAD, (8, 9) on VisA; () switches RsCIN off). references: score against that many
    randomly drawn images instead of all (None); 0: only given reference images score. subsets: s of Tab. 6, 7 and 13.
    precision: of the products in MSM.
    mask_protocol: which of the two kinds of resized masks heads the report (both are measured).
    position_window: compare a patch only with those within so many patches of its own place (inf: anywhere).
    tiles: cut every image into tiles x tiles parts that overlap by the share tile_overlap of their side, for small
    defects in large images; tile_pool: "position" compares a tile with those at its place, "all" with all of them.
    consistency: "warn" of images that share a defect and so vouch for each other, or "correct" their scores too.
    full_scale: what white is in images of more than 8 bits per channel, 4095 for a camera of 12 (None: from the values
    of all images of the run and their files' tags; the result's config then holds what was decided).
    map_size: side in pixels of the anomaly maps (None: image_size, or so large that every tile has image_size).
    block: images per MSM block (None: automatic).
    """

    backbone: str = "procedural"
    weights: str | None = None
    image_size: int | None = None
    stages: tuple[int, ...] | None = None
    degrees: tuple[int, ...] = (1, 3, 5)
    interval: tuple[float, float] = (0.0, 0.3)
    reduction: str = "mean"
    windows: tuple[float, ...] = (2, 3)
    references: int | None = None
    subsets: int = 1
    precision: str = "float32"
    mask_protocol: str = "clean"
    position_window: float = math.inf
    tiles: int = 1
    tile_overlap: float = 0.25
    tile_pool: str = "position"
    consistency: str = "off"
    full_scale: float | None = None
    map_size: int | None = None
    batch_size: int = 8
    workers: int = 2
    block: int | None = None
    device: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        def require(ok: bool, field: str, remedy: str) -> None:
            if not ok:
                raise ConfigError(f"{field} = {getattr(self, field)!r}: {remedy}")

        for name in ("degrees", "windows", "stages", "interval"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, tuple(value))
        if isinstance(self.weights, Path):
            object.__setattr__(self, "weights", str(self.weights))

        low, high = self.interval if len(self.interval) == 2 else (math.nan, math.nan)
        require(
            0 <= low < high <= 1,
            "interval",
            "give two fractions, 0 <= low < high <= 1; the paper's is (0, 0.3).",
        )
        require(
            bool(self.degrees) and all(isinstance(r, int) and r > 0 and r % 2 for r in self.degrees),
            "degrees",
            "give odd whole numbers, such as 1, 3, 5.",
        )
        require(
            all(k >= 1 and (k == math.inf or k == int(k)) for k in self.windows),
            "windows",
            "give whole numbers from 1 (the image itself), or inf for all images.",
        )
        require(
            self.stages is None or (bool(self.stages) and all(s >= 1 for s in self.stages)),
            "stages",
            "blocks are counted from 1.",
        )
        require(self.precision in PRECISIONS, "precision", f"choose one of {', '.join(PRECISIONS)}.")
        require(self.reduction in REDUCTIONS, "reduction", f"choose one of {', '.join(REDUCTIONS)}.")
        require(
            self.mask_protocol in MASK_PROTOCOLS,
            "mask_protocol",
            f"choose one of {', '.join(MASK_PROTOCOLS)}.",
        )
        require(
            self.references is None or self.references >= 0,
            "references",
            "give the number of images that score each image, 0 for the reference images alone, or leave it out.",
        )
        for name in ("image_size", "map_size", "block"):
            value = getattr(self, name)
            require(value is None or value >= 1, name, "give a whole number from 1, or leave it out.")
        white = self.full_scale
        require(white is None or 0 < white < math.inf, "full_scale", "give the value that is white, such as 4095 or 1.")
        window = self.position_window
        require(
            window == math.inf or (window >= 0 and window == int(window)),
            "position_window",
            "give a whole number of patches from 0, or inf for none.",
        )
        require(0 <= self.tile_overlap <= 0.5, "tile_overlap", "give a share of the tile's side, from 0 to 0.5.")
        require(self.tile_pool in TILE_POOLS, "tile_pool", f"choose one of {', '.join(TILE_POOLS)}.")
        plain = self.position_window == math.inf and self.subsets == 1 and self.references is None
        require(
            self.tiles == 1 or self.tile_pool == "position" or plain,
            "tile_pool",
            'with position_window, subsets or references only "position" works.',
        )
        require(self.consistency in CONSISTENCY, "consistency", f"choose one of {', '.join(CONSISTENCY)}.")
        require(
            self.consistency == "off" or (self.references is None and (self.tiles == 1 or self.tile_pool != "all")),
            "consistency",
            "every image must score every other: leave references out, and compare tiles by position.",
        )
        for name in ("subsets", "tiles", "batch_size"):
            require(getattr(self, name) >= 1, name, "give a whole number from 1.")
        require(self.workers >= 0, "workers", "give 0 (decode in this process) or more.")

    def replace(self, **changes: Any) -> MuScConfig:
        """The same settings but for `changes`."""
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Plain types only, for JSON; infinity is written "inf"."""
        plain = dataclasses.asdict(self)
        plain["windows"] = ["inf" if k == math.inf else k for k in self.windows]
        if self.position_window == math.inf:
            plain["position_window"] = "inf"
        return {k: list(v) if isinstance(v, tuple) else v for k, v in plain.items()}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> MuScConfig:
        """The inverse of `to_dict`. Raises ConfigError on a name that is no setting."""
        known = {f.name for f in dataclasses.fields(cls)}
        if unknown := sorted(set(plain) - known):
            raise ConfigError(f"unknown settings {', '.join(unknown)}; the known ones are {', '.join(sorted(known))}.")
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in plain.items()
        }
        if "windows" in values:
            values["windows"] = tuple(math.inf if k == "inf" else k for k in values["windows"])
        if values.get("position_window") == "inf":
            values["position_window"] = math.inf
        return cls(**values)
