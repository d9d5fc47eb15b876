"""What RsCIN adds to PatchCore and SPADE on our tokens (Tab. 11)."""

from __future__ import annotations

import math

import pandas as pd
import torch

from musc import metrics, rscin
from musc.datasets.base import Category
from musc.errors import DataError
from musc.methods.patchcore import PatchCore
from musc.methods.spade import Spade
from musc.pipeline import MuSc


def rscin_gain(category: Category, musc: MuSc) -> pd.DataFrame:
    """Image metrics in percent of both baselines without and with RsCIN, by the windows of the configuration (Tab. 11).

    The memory is the category's normal training images. Columns as in the paper's table: dataset, category, method,
    setting, backbone, rscin ("without" or "with"), image_auroc, image_f1_max, image_ap. Raises DataError where the
    category has no training images, lacks labels, or the backbone has no class token.
    """
    if not category.train:
        raise DataError(f"{category.name} has no normal training images, which PatchCore and SPADE need.")
    if not category.labeled:
        raise DataError(f"{category.name} has images without labels: the gain from RsCIN cannot be measured.")
    train, test = musc.features(category.train), musc.features(category.samples)
    if test.class_tokens is None:
        raise DataError(f"{musc.config.backbone} has no class token, which RsCIN needs: choose another backbone.")
    labels = torch.tensor([sample.label for sample in test.samples])
    rows = []
    for name, method in (("SPADE", Spade()), ("PatchCore", PatchCore(seed=musc.config.seed))):
        before = method.score(test, train).images
        assert before is not None
        windows = [k if k == math.inf else min(k, len(before)) for k in musc.config.windows]
        after = rscin.rescore(before, test.class_tokens.to(before), windows)
        about = {"dataset": category.dataset, "category": category.name, "method": name}
        about |= {"setting": f"{len(train)} normal images", "backbone": musc.config.backbone}
        for word, scores in (("without", before), ("with", after)):
            measured = metrics.image_metrics(labels, scores)
            rows.append(about | {"rscin": word} | {f"image_{m}": 100 * measured[m] for m in ("auroc", "f1_max", "ap")})
    return pd.DataFrame(rows)
