# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
#   musc:
#     minutes: 40
#     smoke:
#       category: weave
#       good: 5
#       defects: 1
#       counts: [4, 6]
# ---

# %% [markdown]
# # After MuSc: what came next
#
# :::{admonition} In this chapter
# - You compute SNAMD and RsCon, the parts of MuSc-V2 that replace LNAMD and RsCIN for pictures, and measure what they change.
# - You see why a defect that many images share escapes MuSc, and by which trace it can be found.
# - You compare mutual scoring, quadratic in the number of images, with a method that is linear in it.
#
# **Time**: 25 minutes to read, 15 for the exercises. **Needs**: [LNAMD](02_lnamd.ipynb), [MSM](03_msm.ipynb), [RsCIN](04_rscin.ipynb),
# [before MuSc](20_before_musc.ipynb).
# :::
#
# Three questions were left open by the paper, and each has found answers since.
#
# | question | answer | where |
# |:--|:--|:--|
# | Must every degree be scored on its own? | no: MuSc-V2 {cite}`li2025muscv2` averages them before | `aggregation="snamd"` |
# | What if the network has no class token? | RsCon: the most salient patch stands for the image {cite}`li2025muscv2` | `rescoring="rscon"` |
# | What if a defect is in many images? | its links are too close, which a graph shows {cite}`codegraph2025` | `consistency="correct"` |
# | What about thousands of images? | one subspace for all patches {cite}`subspacead2026` | `methods.subspacead` |

# %% tags=["parameters"]
category = "bottle_top"  # of the synthetic set
good = 20  # normal test images
defects = 4  # anomalous ones of each kind
counts = (12, 24, 36)  # numbers of images whose time is measured
backbone = "procedural"

# %%
import time

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

from musc import MuSc, MuScConfig, datasets, lnamd, metrics, msm, rscin, snamd
from musc.methods.subspacead import SubspaceAD
from musc.results import figures
from musc.scoring.maps import anomaly_maps
from musc.verdicts import verdict

# %matplotlib inline

musc = MuSc(MuScConfig(backbone=backbone))
product = datasets.load_category("synthetic", name=category, good=good, defects=defects)
images = musc.features(product.samples)
labels = np.array([sample.label for sample in product.samples])
grid = images.grids[0]
masks = figures.masks_at(product.samples, musc.backbone.image_size)
print(f"{len(images)} images, {labels.sum()} of them anomalous, {grid[0]} x {grid[1]} patches")

# %% [markdown]
# ## SNAMD: neighbours by their likeness
#
# LNAMD (Sec. 3.1) replaces a token by the plain mean of its $r \times r$ neighbourhood: a defect of one patch is diluted by 8 normal
# neighbours at $r = 3$. SNAMD weighs each neighbour $q$ of patch $p$ by how like it is,
#
# $$w_{pq} = e^{-\lVert F_q - F_p \rVert_2}, \qquad F_p^r = \frac{\sum_q w_{pq} F_q}{\sum_q w_{pq}}, \qquad Z_p = \frac{1}{3} \sum_{r \in \{1, 3, 5\}} F_p^r ,$$
#
# and averages the degrees **before** scoring, so that one pass per stage is enough where LNAMD needs three.

# %% mystnb={"figure": {"caption": "The weights of one patch's 5 x 5 neighbourhood inside a defect (left, the patch is framed): as published, where tokens are long and hardly any neighbour counts, and with distances divided by their median.", "name": "fig-after-snamd"}, "image": {"alt": "A picture with a marked patch; two 5 by 5 grids of weights. In the first the centre alone is bright, in the second like neighbours are bright too."}}
def weights(tokens, patch, scale):
    """w of the 5 x 5 neighbourhood of a patch: [5, 5], NaN beyond the border."""
    field = tokens.reshape(*grid, -1)
    y, x = divmod(patch, grid[1])
    found = np.full((5, 5), np.nan)
    for a in range(-2, 3):
        for b in range(-2, 3):
            if 0 <= y + a < grid[0] and 0 <= x + b < grid[1]:
                away = (field[y + a, x + b] - field[y, x]).norm()
                found[a + 2, b + 2] = float(torch.exp(-away / scale))
    return found


defective = int(np.flatnonzero(labels)[0])
shares = figures.patch_labels(masks, grid)
patch = int(np.flatnonzero(shares[defective].ravel() == 1)[0])
stage = images.patch_tokens[1]
median = (stage[:, 1:] - stage[:, :-1]).norm(dim=2).median()
