"""The paper's rivals that are in this package, measured as its tables print them: k-shot, over draws of the references.

`measured` runs one of them on a category's tokens. Where the category has too few normal training images, or CLIP's
weights are not on the machine, there is nothing: the paper's number then stands alone.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from musc import fewshot
from musc.backbones import fetch, find_backbone
from musc.reproduce.profiles import Profile
from musc.saving import whole

METHODS = {"PatchCore": "patchcore", "SPADE": "spade", "PaDiM": "padim", "WinCLIP": "winclip"}  # printed name: ours
WINCLIP = "ViT-B-16-plus-240"  # the network of its paper
DRAWS = {"demo": 2, "paper": 5}  # of the references, where not all of them are taken

Metrics = dict[str, dict[str, float]]  # by group and name, as `MuScResult.metrics` keeps them


def changes(lab: Profile, method: str) -> dict[str, Any] | None:
    """The settings of a profile that a printed method takes; None where its weights are not on the machine.

    WinCLIP takes the network of its paper, or a CLIP network that was chosen for the profile.
    """
    found: dict[str, Any] = {"method": METHODS[method]}
    if method != "WinCLIP" or (lab.chosen_backbone and find_backbone(lab.config.backbone).library == "open_clip"):
        return found
    if fetch.present(find_backbone(WINCLIP)) is None:
        return None
    return found | {"backbone": WINCLIP, "weights": None, "image_size": None, "stages": None}


def measured(lab: Profile, dataset: str, name: str, method: str, setting: str) -> Metrics | None:
    """A method's metrics on one category, the mean over the draws of its references; None where it cannot be run.

    setting: "0-shot", "4-shot" or the like, or "full-shot", all normal training images. What is finished is taken from
    the profile's folder.
    """
    settings, category = changes(lab, method), lab.category(dataset, name)
    k = None if setting == "full-shot" else int(setting.removesuffix("-shot"))
    if settings is None or len(category.train) < (1 if k is None else k):
        return None
    pipeline, runs = lab.musc(dataset, **settings), []
    for seed in range(DRAWS[lab.name] if k else 1):
        pool = None if k == 0 else fewshot.reference_category(category, k, seed)
        file = lab.place / "others" / f"{pipeline.fingerprint(category, pool)}.json"
        if not file.exists():
            found = pipeline.run(category, pool).metrics
            with whole(file) as partial:
                partial.write_text(json.dumps(found), encoding="utf-8")
        runs.append(json.loads(file.read_text(encoding="utf-8")))
    return {group: {m: float(np.mean([run[group][m] for run in runs])) for m in first}
            for group, first in runs[0].items()}  # fmt: skip
