"""Predictions of other programs as a table of scores: anomalib's fields, and FiftyOne's JSON.

anomalib: its fields image_path, pred_score and perhaps gt_label, as arrays in a .npz file, or in JSON as a list of
images, a batch (a list per field), or a list of batches. FiftyOne: labels.json of a classification data set (with
data.json beside it, for paths), or samples.json of a whole one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from musc.datasets.words import kind
from musc.errors import ConfigError, DataError
from musc.saving import regular_file

FIELDS = {"image_path": "path", "pred_score": "score", "gt_label": "label"}  # anomalib's names and ours


def is_predictions(path: Path) -> bool:
    """Whether a file is read here, by its name."""
    return path.suffix.lower() in (".json", ".npz")


def read_predictions(path: Path, column: str | None = None) -> pd.DataFrame:
    """A table of text with the columns path and score, and label where it is known.

    column: of FiftyOne's samples, the field of the predictions; of its labels, the attribute that is the score
    (default: raw_score or score, else the confidence that an image is anomalous).

    Raises:
        DataError: no such file, not of these formats, or fields that are missing or of unequal lengths.
        ConfigError: several fields could be the predictions.
    """
    try:
        with regular_file(path) as file:
            if path.suffix.lower() == ".npz":
                with np.load(file, allow_pickle=False) as arrays:
                    content: Any = {name: arrays[name] for name in arrays.files if name in FIELDS}
            else:
                content = json.loads(file.read().decode("utf-8-sig"))
    except FileNotFoundError as error:
        raise DataError(f"{path} is not there: name the file of the predictions.") from error
    except Exception as error:  # a damaged archive can fail in any way
        raise DataError(f"{path} cannot be read as predictions ({type(error).__name__}: {error}).") from error
    if isinstance(content, dict) and isinstance(content.get("labels"), dict):
        rows = _classification(content["labels"], path, column)
    elif isinstance(content, dict) and isinstance(content.get("samples"), list):
        rows = _samples(content["samples"], path, column)
    else:
        rows = _anomalib(content, path)
    if not rows:
        raise DataError(f"{path} holds no predictions.")
    table = pd.DataFrame(rows)
    if "label" in table and table["label"].isna().any():
        table = table.drop(columns="label")
    return table.map(str)


def _anomalib(content: Any, path: Path) -> list[dict[str, Any]]:
    rows = []
    for part in content if isinstance(content, list) else [content]:
        known = {ours: part[theirs] for theirs, ours in FIELDS.items() if theirs in part} if _is_map(part) else {}
        if not {"path", "score"} <= set(known):
            raise DataError(
                f"{path} has no image_path and pred_score, as anomalib's predictions do, and is none of FiftyOne's: "
                "give a CSV file with the columns path and score."
            )
        many = {name: np.atleast_1d(np.asarray(values)).ravel() for name, values in known.items()}
        if len({len(values) for values in many.values()}) > 1:
            raise DataError(f"{path}: fields of unequal lengths { ({k: len(v) for k, v in many.items()}) }.")
        for values in zip(*many.values(), strict=True):
            row = dict(zip(many, values, strict=True))
            if "label" in row:
                row["label"] = None if row["label"] is None else _label(row["label"])
            rows.append(row)
    return rows


def _label(value: Any) -> str:
    """A label as text: 0 and 1 as whole numbers, whatever type they have; words as they are, judged later."""
    try:
        return str(value) if isinstance(value, str) else str(int(value))
    except (TypeError, ValueError):
        return str(value)


def _classification(labels: Mapping[str, Any], path: Path, column: str | None) -> list[dict[str, Any]]:
    """FiftyOneImageClassificationDataset: {"labels": {uuid: {"label", "confidence", "attributes"}}}."""
    beside = path.with_name("data.json")
    try:
        places = json.loads(beside.read_text(encoding="utf-8")) if beside.exists() else {}
    except (OSError, ValueError) as error:
        raise DataError(f"{beside} cannot be read ({error}).") from error
    rows = []
    for name, target in labels.items():
        if not _is_map(target):
            raise DataError(f"{path}: {name} has no confidence, and so no score: export the predictions with it.")
        attributes = target.get("attributes") if _is_map(target.get("attributes")) else {}
        given = next((attributes[a] for a in ([column] if column else ["raw_score", "score"]) if a in attributes), None)
        if column and given is None:
            raise DataError(f"{path}: {name} has no attribute {column!r}; it has {', '.join(attributes) or 'none'}.")
        truth = attributes.get("ground_truth")
        rows.append({"path": places.get(name, name), "score": _score(target, path, name) if given is None else given,
                     "label": truth})  # fmt: skip
    return rows


def _samples(samples: list[Any], path: Path, column: str | None) -> list[dict[str, Any]]:
    """FiftyOneDataset: {"samples": [{"filepath", FIELD: {"_cls": "Classification", "label", "confidence"}}]}."""

    def classified(sample: Any, with_confidence: bool) -> list[str]:
        fields = [k for k, v in sample.items() if _is_map(v) and v.get("_cls") == "Classification"]
        return [k for k in fields if (sample[k].get("confidence") is not None) == with_confidence]

    found = list(dict.fromkeys(k for s in samples if _is_map(s) for k in classified(s, True)))
    if column is None and len(found) != 1:
        which = f"the fields {', '.join(found)} are" if found else "no field is a"
        raise ConfigError(f"{path}: {which} classification with a confidence: name one with --score-column.")
    field, rows = column or found[0], []
    for sample in samples:
        if not _is_map(sample) or not _is_map(sample.get(field)) or "filepath" not in sample:
            raise DataError(f"{path}: a sample has no filepath or no {field}: export all with their predictions.")
        truth = [sample[k].get("label") for k in classified(sample, False)]
        score = _score(sample[field], path, sample["filepath"])
        rows.append({"path": sample["filepath"], "score": score, "label": truth[0] if len(truth) == 1 else None})
    return rows


def _score(target: Mapping[str, Any], path: Path, name: str) -> float:
    """How sure it is that an image is anomalous: FiftyOne's confidence is in the label, whichever that is."""
    confidence = target.get("confidence")
    if not isinstance(confidence, int | float):
        raise DataError(f"{path}: {name} has no confidence, and so no score: export the predictions with it.")
    return confidence if kind(str(target.get("label"))) == "bad" else 1 - confidence


def _is_map(value: Any) -> bool:
    return isinstance(value, Mapping)
