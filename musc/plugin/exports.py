"""A result for other programs: anomalib's folders and prediction fields, and FiftyOne's JSON.

Neither is needed here. What is written is what they document: anomalib's `Folder` data module and the fields of its
`NumpyImageBatch`; FiftyOne's `FiftyOneImageClassificationDataset`, whose images stay where they are.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from musc.datasets import located
from musc.datasets.images import image_size
from musc.errors import ConfigError, DataError, ResultError
from musc.results import MuScResult
from musc.results.folders import legal_names, replacing
from musc.results.pictures import binary_mask

FORMATS = ("anomalib", "fiftyone")
WORDS = ("normal", "anomalous")


def export(result: MuScResult, folder: Path | str, form: str) -> Path:
    """Write a result with decisions into a new folder, all or nothing.

    form: "anomalib": normal/, abnormal/ and mask/ hold the images by decision and the predicted masks, for
    `Folder(root=folder, normal_dir="normal", abnormal_dir="abnormal", mask_dir="mask")`; predictions.npz has image_path
    [N], pred_score [N] (before RsCIN, on the scale of the maps), pred_label [N], anomaly_map [N, H, W], pred_mask
    [N, H, W] and, where labels are known, gt_label [N]. "fiftyone": data.json has the images' paths and labels.json
    their labels, with the scores as attributes.

    Raises:
        ConfigError: no such format, no threshold, or a folder that is not empty.
        DataError: the images are not where they were.
        ResultError: the folder cannot be written.
    """
    folder = Path(folder)
    if form not in FORMATS:
        raise ConfigError(f"format {form!r}: choose one of {', '.join(FORMATS)}.")
    if result.decisions is None:
        raise ConfigError("the result has no threshold, and so no decisions: give one with --threshold.")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} is there already: name a folder that is new or empty.")
    files = _files(result)
    try:
        with replacing(folder, ()) as new:
            (_anomalib if form == "anomalib" else _fiftyone)(result, files, new)
    except OSError as error:
        raise ResultError(f"{folder} cannot be written ({error.strerror or error}): choose another.") from error
    return folder


def _files(result: MuScResult) -> list[Path]:
    found = located(result.paths, result.dataset, result.root) if result.root else {}
    files = [found[name].image for name in result.paths if name in found]
    if len(files) < len(result):
        first = next(name for name in result.paths if name not in found)
        where = f"{first} in {result.root}" if result.root else "in no folder"
        raise DataError(f"the images of {result.category} are not where they were ({where}): run them again.")
    return [file for file in files if isinstance(file, Path)]


def _anomalib(result: MuScResult, files: list[Path], folder: Path) -> None:
    assert result.threshold is not None
    assert result.decisions is not None
    flat = [Path(name.replace("/", "_")) for name in result.paths]
    stems = legal_names([name.stem for name in flat])  # a mask is found by its image's, so no two images share one
    cut = np.float64(result.threshold.value)
    masks = []
    for i, (file, stem, decision) in enumerate(zip(files, stems, result.decisions, strict=True)):
        target = folder / ("abnormal" if decision else "normal") / f"{stem}{file.suffix}"
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(file, target)
        masks.append(np.asarray(result.anomaly_maps[i]) >= cut)
        if decision:
            mask = binary_mask(result.anomaly_maps[i], result.threshold.value, image_size(file))
            (folder / "mask").mkdir(exist_ok=True)
            Image.fromarray(mask).save(folder / "mask" / f"{stem}.png")
    fields: dict[str, Any] = {
        "image_path": np.array([str(file) for file in files]),
        "pred_score": result.raw_image_scores,
        "pred_label": result.decisions.astype(bool),
        "anomaly_map": np.asarray(result.anomaly_maps),
        "pred_mask": np.stack(masks),
    }
    if result.labels is not None:
        fields["gt_label"] = result.labels.astype(bool)
    np.savez_compressed(folder / "predictions.npz", **fields)


def _fiftyone(result: MuScResult, files: list[Path], folder: Path) -> None:
    assert result.decisions is not None
    ids = legal_names([Path(name).with_suffix("").as_posix().replace(".", "_") for name in result.paths])
    labels: dict[str, dict[str, Any]] = {}
    for i, (name, decision) in enumerate(zip(ids, result.decisions.tolist(), strict=True)):
        score = float(result.image_scores[i])
        attributes: dict[str, Any] = {"score": score, "raw_score": float(result.raw_image_scores[i])}
        if result.labels is not None:
            attributes |= {"ground_truth": WORDS[result.labels[i]], "defect": result.defects[i]}
        labels[name] = {
            "label": WORDS[decision], "confidence": score if decision else 1 - score, "attributes": attributes,
        }  # fmt: skip
    written = {"data.json": {n: str(f) for n, f in zip(ids, files, strict=True)}, "labels.json": {"labels": labels}}
    for file, content in written.items():
        (folder / file).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
