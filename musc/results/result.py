"""What a run leaves behind: scores, maps, metrics, and all that is needed to know where they came from."""

from __future__ import annotations

import csv
import errno
import hashlib
import importlib.metadata
import json
import math
import os
import platform
from dataclasses import asdict, dataclass, field, replace
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from musc.config import MuScConfig
from musc.datasets.base import Skipped, printable
from musc.datasets.listing import result_header
from musc.errors import ResultError
from musc.results.folders import legal_names, recover, replacing
from musc.results.thresholds import DEFAULT, Threshold, choose

FORMAT = 2
COLUMNS = ("path", "score", "rank", "raw_score", "decision", "label", "defect")
DATA = ("result.json", "scores.csv", "anomaly_maps.npy", "class_tokens.npy", "region.npy")
PICTURES = (
    "overview.png", "overlays", "masks", "pictures.json", "report.html", "regions.csv", "regions.json",
)  # fmt: skip
LARGEST = 2.0  # distance of unit vectors, and so the largest score
Metrics = dict[str, dict[str, float]]


@dataclass
class MuScResult:
    """Scores and maps of the N images of one category.

    Attributes:
        paths: names of the images, relative to the category's folder; every array below has its rows in this order.
        image_scores: [N] float32, after RsCIN (Eq. 5), unitless in [0, 1] over the category. Where RsCIN was
            switched off or impossible (see `notes`): the min-max of raw_image_scores.
        raw_image_scores: [N] float32, before RsCIN: the maximum of each anomaly map (c_i, Sec. 3.2), a distance
            between unit vectors, 0 to 2. Of another method (config.method): its own image scores, like image_scores.
        anomaly_maps: [N, H, W] float32, Eq. 3 upsampled to H x W pixels, on the same scale as raw_image_scores.
        class_tokens: [N, D] float32, or None where the backbone has none; with rescoring = "rscon" the tokens of the
            most anomalous patches, which are compared in their place.
        labels: [N] (0 normal, 1 anomalous), or None where unknown. defects: name of each image's defect, or "".
        metrics: {"image": ..., "image_before_rscin": ..., "pixel_clean": ..., "pixel_official": ...}, each a dict of
            fractions in [0, 1]; the pixel ones hold "pro" (exact) and "pro_official". Empty without labels.
        threshold: on the scale of raw_image_scores and of the maps, with its estimated false-alarm rate; see `decide`.
        config, weights, environment, timings, notes, skipped: where all this came from, in seconds where it is time.
        fingerprint: digest of settings, weights and image contents; a rerun with an equal one is reused.
        keys, reference_keys, cache: contents' digests of the images and of the references, and the folder where their
            tokens are kept: what `stream.score_against` needs to score further images ("": no tokens were kept).
        root: absolute path of the category's folder, or "".
        region: [N, H, W], or [1, H, W] for all images: True inside of the region of interest; None: everywhere.
    """

    dataset: str
    category: str
    paths: tuple[str, ...]
    image_scores: NDArray[np.float32]
    raw_image_scores: NDArray[np.float32]
    anomaly_maps: NDArray[np.float32]
    class_tokens: NDArray[np.float32] | None
    labels: NDArray[np.int64] | None
    defects: tuple[str, ...]
    config: MuScConfig
    metrics: Metrics = field(default_factory=dict)
    weights: str = ""
    environment: dict[str, str] = field(default_factory=dict)
    timings: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    fingerprint: str = ""
    keys: tuple[str, ...] = ()
    reference_keys: tuple[str, ...] = ()
    cache: str = ""
    root: str = ""
    threshold: Threshold | None = None
    region: NDArray[np.bool_] | None = None

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def ranks(self) -> NDArray[np.int64]:
        """[N], 1 for the image that looks most anomalous; ties in the order of the paths."""
        order = np.argsort(-self.image_scores, kind="stable")
        ranks = np.empty(len(order), dtype=np.int64)
        ranks[order] = np.arange(1, len(order) + 1)
        return ranks

    def decide(self, method: str | float = DEFAULT) -> Threshold | None:
        """Choose the threshold: by a method of `musc.results.thresholds.METHODS`, or as a number on the maps' scale.

        It compares raw_image_scores, since c_i is the maximum of the map: an image is anomalous exactly where a pixel
        of its map is. Raises ConfigError where the method is unknown, or needs labels that are not there.
        """
        chosen = choose(method, self.raw_image_scores, self.labels)
        if chosen is not None and self.config.mutual and chosen.value > LARGEST:
            beyond = f"no score can reach it, since distances end at {LARGEST:g}: take another method, or a number."
            chosen = replace(chosen, note=f"{chosen.note} {beyond}".strip())
        self.threshold = chosen
        return self.threshold

    @property
    def decisions(self) -> NDArray[np.int64] | None:
        """[N], 1 where raw_image_scores reach the threshold, else 0; None without a threshold."""
        if self.threshold is None:
            return None
        return (self.raw_image_scores >= np.float64(self.threshold.value)).astype(np.int64)

    def save(self, folder: Path | str) -> Path:
        """Write everything into `folder`, all or nothing: an earlier result there stays whole until this one is.

        Files: result.json, scores.csv, anomaly_maps.npy, and class_tokens.npy and region.npy where there are some.
        Pictures of the earlier result go with it, and files that are not of a result stay. Raises ResultError where the
        disk is full, the folder cannot be written, or holds files of these names that are of something else; nothing is
        lost then.
        """
        folder = Path(folder)
        if (strange := [name for name in DATA if (folder / name).exists()]) and result_header(folder) is None:
            raise ResultError(f"{folder} holds a {strange[0]} that no run of musc made: choose another folder.")
        try:
            with replacing(folder, (*DATA, *PICTURES)) as new:
                np.save(new / "anomaly_maps.npy", self.anomaly_maps)
                if self.class_tokens is not None:
                    np.save(new / "class_tokens.npy", self.class_tokens)
                if self.region is not None:
                    np.save(new / "region.npy", self.region)
                self._write_csv(new / "scores.csv")
                text = json.dumps(self._header(folder), indent=1) + "\n"
                (new / "result.json").write_text(text, encoding="utf-8")
        except OSError as error:
            raise ResultError(_cannot_write(folder, error)) from error
        return folder

    @classmethod
    def load(cls, folder: Path | str) -> MuScResult:
        """Read a result back; the maps stay on disk until they are used. Raises ResultError naming what is wrong."""
        folder = Path(folder)
        try:
            recover(folder, (*DATA, *PICTURES))
            header = json.loads((folder / "result.json").read_text(encoding="utf-8"))
            if header["format"] != FORMAT:
                raise ResultError(f"{folder} has result format {header['format']!r}, not {FORMAT}: run it again.")
            _check_header(header)
            rows = _rows(folder / "scores.csv", header.get("paths"))
            maps = np.load(folder / "anomaly_maps.npy", mmap_mode="r")
            region = np.load(folder / "region.npy") if (folder / "region.npy").exists() else None
            result = cls(
                dataset=header["dataset"],
                category=header["category"],
                paths=tuple(row["path"] for row in rows),
                image_scores=np.array([row["score"] for row in rows], dtype=np.float32),
                raw_image_scores=np.array([row["raw_score"] for row in rows], dtype=np.float32),
                anomaly_maps=maps,
                class_tokens=np.load(folder / "class_tokens.npy") if header["class_tokens"] else None,
                labels=np.array([int(row["label"]) for row in rows], dtype=np.int64) if header["labeled"] else None,
                defects=tuple(row["defect"] for row in rows),
                config=MuScConfig.from_dict(header["config"]),
                metrics=header["metrics"],
                weights=header["weights"],
                environment=header["environment"],
                timings=header["timings"],
                notes=tuple(header["notes"]),
                skipped=tuple(Skipped(**s) for s in header["skipped"]),
                fingerprint=header["fingerprint"],
                keys=tuple(header["keys"]),
                reference_keys=tuple(header["reference_keys"]),
                cache=header["cache"],
                root=_root_of(folder, header),
                region=region,
                threshold=Threshold(**header["threshold"]) if header["threshold"] else None,
            )
            result._check_arrays()
        except FileNotFoundError as error:
            raise ResultError(
                f"{folder} holds no finished result: {error.filename} is missing. Run it again."
            ) from error
        except PermissionError as error:
            raise ResultError(f"{error.filename or folder} cannot be read: allow reading it (chmod +rX).") from error
        except ResultError:
            raise
        except Exception as error:  # damaged JSON, CSV and arrays fail in many ways
            raise ResultError(f"{folder} cannot be read as a result ({_said(error)}): run it again.") from error
        return result

    def _check_arrays(self) -> None:
        """Raises ValueError where what was read does not belong together."""
        N, maps, tokens, region = len(self), self.anomaly_maps, self.class_tokens, self.region
        if not N == len(maps) == len(self.defects):
            raise ValueError(f"{N} rows of scores.csv but {len(maps)} maps")
        faults = {
            "scores.csv names an image twice": len(set(self.paths)) < N,
            "scores.csv holds scores that are not finite": not np.isfinite(
                [self.image_scores, self.raw_image_scores]
            ).all(),
            f"anomaly_maps.npy is {maps.dtype} {maps.shape}": maps.ndim != 3 or maps.dtype.kind != "f",
            "class_tokens.npy does not fit": tokens is not None
            and (tokens.ndim != 2 or len(tokens) != N or tokens.dtype.kind != "f"),
            "region.npy does not fit": region is not None
            and (region.dtype != bool or len(region) not in (1, N) or region.shape[1:] != maps.shape[1:]),
            "result.json does not have the keys of all images": bool(self.keys) and len(self.keys) != N,
        }
        if wrong := [said for said, true in faults.items() if true]:
            raise ValueError(wrong[0])

    def _header(self, folder: Path) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "dataset": self.dataset,
            "category": self.category,
            "images": len(self),
            "paths": [printable(path) for path in self.paths],
            "labeled": self.labels is not None,
            "class_tokens": self.class_tokens is not None,
            "root": _relative(self.root, folder),
            "metrics": self.metrics,
            "config": self.config.to_dict(),
            "weights": self.weights,
            "environment": self.environment,
            "timings": self.timings,
            "notes": list(self.notes),
            "skipped": [asdict(s) for s in self.skipped],
            "fingerprint": self.fingerprint,
            "cache": self.cache,
            "keys": list(self.keys),
            "reference_keys": list(self.reference_keys),
            "threshold": asdict(self.threshold) if self.threshold else None,
        }

    def _write_csv(self, path: Path) -> None:
        labels = [""] * len(self) if self.labels is None else [str(int(label)) for label in self.labels]
        decisions = [""] * len(self) if self.decisions is None else self.decisions.tolist()
        columns = (self.paths, self.image_scores, self.ranks, self.raw_image_scores, decisions, labels, self.defects)
        with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            writer = csv.writer(file)
            writer.writerow(COLUMNS)
            # repr of a float32 is the shortest text that reads back to the same float32
            writer.writerows([str(v) for v in row] for row in zip(*columns, strict=True))


def result_folder(out: Path, dataset: str, category: str, root: Path | str | None = None) -> Path:
    """The folder below `out` for the result of a category; one of its own where that of another root lies there."""
    folder = out / legal_names([dataset or "images"])[0] / legal_names([category or "images"])[0]
    where = os.path.abspath(root) if root else ""
    if not folder.exists():
        return folder
    header = result_header(folder)
    if header is not None and _root_of(folder, header) == where:
        return folder
    digest = hashlib.blake2b(where.encode(errors="surrogatepass"), digest_size=4).hexdigest()
    return folder.with_name(f"{folder.name}~{digest}")


def _relative(root: str, folder: Path) -> str:
    """How a result names the folder of its images: from its own, so that both can be moved together."""
    try:
        return Path(os.path.relpath(root, folder)).as_posix() if root else ""
    except ValueError:  # on another drive
        return root


def _root_of(folder: Path, header: dict[str, Any]) -> str:
    root = header.get("root")
    return os.path.abspath(folder / root) if root and isinstance(root, str) else ""


def _rows(table: Path, paths: list[str] | None) -> list[dict[str, str]]:
    """The rows of scores.csv in the order of the arrays, also where somebody sorted them; paths: in that order, None
    in results of earlier versions. Raises ValueError where it is no such table, or of other images."""
    with table.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    if missing := [name for name in COLUMNS if name not in (reader.fieldnames or ())]:
        raise ValueError(f"scores.csv has no column {missing[0]!r}, but {', '.join(reader.fieldnames or ['nothing'])}")
    if paths is None:
        return rows
    place = {path: n for n, path in enumerate(paths)}
    if sorted(place) != sorted(printable(row["path"]) for row in rows):
        raise ValueError("scores.csv has not a row for each image that result.json names")
    return sorted(rows, key=lambda row: place[printable(row["path"])])


def _said(error: Exception) -> str:
    return str(error) if type(error) is ValueError else repr(error)


def _check_header(header: dict[str, Any]) -> None:
    """Raises ValueError where something in result.json is of another kind than what `MuScResult.save` writes."""

    def is_map(value: Any, kind: type) -> bool:
        return isinstance(value, dict) and all(isinstance(v, kind) for v in value.values())

    def texts(value: Any) -> bool:
        return isinstance(value, list) and all(isinstance(v, str) for v in value)

    words = ("dataset", "category", "weights", "fingerprint", "cache", "root")
    right = {name: isinstance(header[name], str) for name in words}
    right |= {name: texts(header[name]) for name in ("notes", "keys", "reference_keys")}
    right["environment"], right["timings"] = is_map(header["environment"], str), is_map(header["timings"], Real)
    right["metrics"] = is_map(header["metrics"], dict) and all(is_map(m, Real) for m in header["metrics"].values())
    skipped, cut = header["skipped"], header["threshold"]
    right["skipped"] = isinstance(skipped, list) and all(is_map(s, str) for s in skipped)
    number = cut is None or (isinstance(cut["value"], Real) and math.isfinite(cut["value"]))
    right["threshold"] = number and (cut is None or isinstance(cut["method"], str))
    if wrong := [name for name, true in right.items() if not true]:
        raise ValueError(f"{wrong[0]} = {header[wrong[0]]!r} in result.json")


def _cannot_write(folder: Path, error: OSError) -> str:
    # numpy says how much it could not write, and not why: there is no other reason than room
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, None):
        return f"the disk is full: {folder} was not written. Free some space, or choose another folder with --out."
    return f"{folder} cannot be written ({error.strerror or error}): choose another folder with --out."


def environment(device: torch.device) -> dict[str, str]:
    """Versions and hardware, as every result and page of the book quotes them."""
    found = {"python": platform.python_version(), "platform": platform.platform(), "cpu": cpu_name()}
    found["cores"] = str(os.cpu_count())
    found["device"] = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    for package in ("musc", "torch", "numpy", "timm", "open_clip_torch"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def cpu_name() -> str:
    """The processor's name as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
