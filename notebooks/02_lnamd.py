# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
#   musc:
#     minutes: 35
#     smoke:
#       category: tile
#       limit: 8
# ---

# %% [markdown]
# # LNAMD: one neighbourhood is not enough
#
# :::{admonition} In this chapter
# - You can write the neighbourhood aggregation of Sec. 3.1 as a loop, and know what `lnamd.aggregate` does beyond the formula.
# - You see what the degrees $r = 1, 3, 5$ do to small and to large defects (Fig. 3 of the paper).
# - You can say why the normalisation is joint, and what the border does.
#
# **Time**: 15 minutes to read, 20 for the exercises. **Needs**: [patch tokens](01_patch_and_class_tokens.ipynb).
# :::
#
# A patch token describes one patch. A defect may be smaller than that, or cover a hundred patches of which each looks
# harmless by itself. *Local neighbourhood aggregation with multiple degrees* (LNAMD) describes every place at several scales: the token of
# patch $m$ is replaced by the mean over the $r \times r$ patches around it,
#
# $$\hat{p}_{i,l}^{m,r} = \frac{1}{r^2} \sum_{u \in U_r(m)} p_{i,l}^{u}, \qquad r \in \{1, 3, 5\} .$$
#
# | Paper | Code |
# |:------|:-----|
# | $F_i \in \mathbb{R}^{M \times C}$, patch tokens of a stage | `patch_tokens`, `[N, M, C]` |
# | $\hat{p}_{i,l}^{m,r}$, aggregated patch token | `lnamd.aggregate(patch_tokens, r)`, `[N, M, C]` |
# | $r$, aggregation degree | `degree` |

# %% tags=["parameters"]
profile = "demo"  # "demo": the synthetic data set; "paper": a data set on disk
data_root = None  # folder of MVTec AD, VisA or BTAD, for the profile "paper"
category = "leather"
limit = 14  # images; None: all
backbone = "procedural"

# %%
from dataclasses import replace
from math import ceil
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

from musc import MuSc, MuScConfig, datasets, lnamd, msm
from musc.results import figures
from musc.scoring.maps import upsample

# %matplotlib inline

layout = "synthetic" if profile == "demo" else None
product = datasets.load_category(
    layout, data_root and Path(data_root), category
)
if limit:  # every n-th, so that all kinds of defect stay
    step = ceil(len(product) / limit)
    product = replace(product, samples=product.samples[::step])

musc = MuSc(MuScConfig(backbone=backbone))
features = musc.features(product.samples)
grid, size = features.grids[0], musc.backbone.image_size
raw = features.patch_tokens[1]  # stage 2
N, M, C = raw.shape
print(
    f"profile {profile}: {N} images of {product.name}, {M} patches ({grid[0]} x {grid[1]}) of {C} channels"
)

# %% [markdown]
# ## The loop
#
# Three things are not in the formula, and all three decide whether published numbers are met. They are as in the released code:
#
# 1. Before the mean, a LayerNorm over *all* patches and channels of an image at once, without learned parameters.
# 2. Beyond the border there are zeros, and they count: the sum is divided by $r^2$ everywhere.
# 3. After the mean, each token is scaled to unit length.

# %%
r = 3
image = raw[0].double()
normed = (image - image.mean()) / (image.var(correction=0) + 1e-5).sqrt()
H, W = grid
square = normed.reshape(H, W, C)

by_hand = torch.zeros(H, W, C, dtype=torch.float64)
for y in range(H):
    for x in range(W):
        for dy in range(-(r // 2), r // 2 + 1):
            for dx in range(-(r // 2), r // 2 + 1):
                if 0 <= y + dy < H and 0 <= x + dx < W:
                    by_hand[y, x] += square[y + dy, x + dx] / r**2
        by_hand[y, x] /= by_hand[y, x].norm()

packaged = lnamd.aggregate(raw[:1].double(), r, grid=grid)[0]
assert torch.allclose(by_hand.reshape(M, C), packaged)
gap = float((by_hand.reshape(M, C) - packaged).abs().max())
print(f"loop and lnamd.aggregate agree to 1e-12: {gap < 1e-12}")

# %% [markdown]
# ## What a degree sees
#
# Colours below are the first three principal components of the aggregated tokens: equal colour, similar token. With growing $r$ the
# picture becomes smoother, and a small defect melts into its surroundings.

# %% mystnb={"figure": {"caption": "Aggregated tokens as colours. Each picture has its own components: compare shapes, not hues.", "name": "fig-lnamd-pca"}, "image": {"alt": "Two images and their tokens at degrees 1, 3, 5 and 9, smoother from left to right."}}
masks = figures.masks_at(features.samples, size)
areas = masks.sum(axis=(1, 2))
defective = np.flatnonzero(areas)
small = int(defective[areas[defective].argmin()])
large = int(defective[areas[defective].argmax()])
pictures = figures.as_seen(features.samples, size)

degrees = (1, 3, 5, 9)
colours = {
    r: figures.pca_rgb(lnamd.aggregate(raw, r, grid=grid), grid)
    for r in degrees
}
figures.panels(
    [[pictures[n], *(colours[r][n] for r in degrees)] for n in (small, large)],
    titles=[["image", *(f"$r$ = {r}" for r in degrees)], []],
    names=["small defect", "large defect"],
    side=1.7,
)

# %% [markdown]
# ## What a degree finds
#
# Now let the images score each other ([next chapter](03_msm.ipynb)) at one degree at a time. This is Fig. 3 of the paper on our data:
# the smallest defect of the set and the largest.

# %% mystnb={"figure": {"caption": "Anomaly maps at single degrees and their mean. The outline is the mask. Compare how sharply the small defect stands out, and how evenly the large one is filled.", "name": "fig-lnamd-degrees"}, "image": {"alt": "Two rows of maps: small and large defect at degrees 1, 3, 5 and all three."}}
distances = [
    msm.stage_distances(tokens, (1, 3, 5), grid=grid)
    for tokens in features.patch_tokens
]  # one array [3, N, N-1, M] per stage, for all degrees at once
by_degree = {}
for d, r in enumerate((1, 3, 5)):
    parts = [msm.interval_average(stage[d]) for stage in distances]
    by_degree[r] = torch.stack(parts).mean(dim=0)  # [N, M]
together = sum(by_degree.values()) / 3
maps = {
    **{f"$r$ = {r}": upsample(s, grid, size) for r, s in by_degree.items()},
    "mean": upsample(together, grid, size),
}


def filled(n):
    """The image beside its maps, each map on its own scale from its median to its maximum."""
    out = []
    for stack in maps.values():
        values = stack[n].numpy()
        low, high = np.median(values), values.max()
        out.append(np.clip((values - low) / (high - low), 0, 1))
    return out


shown = (small, large)
figures.panels(
    [[pictures[n], *filled(n)] for n in shown],
    titles=[["image", *maps]] * 2,
    names=[
        f"{name} defect: {features.samples[n].defect}"
        for name, n in zip(("small", "large"), shown, strict=True)
    ],
    outlines=[[None] + [masks[n]] * len(maps) for n in shown],
    label="median to maximum",
    limits=(0, 1),
    side=1.7,
)

# %% [markdown]
# A single image is an anecdote. Over all defective images: how far does the mean score inside the mask lie above the mean outside of it, in
# units of the standard deviation outside? Patches on the rim are left out.

# %%
kind = figures.patch_labels(masks, grid)
contrast = []
for n in defective:
    inside, outside = kind[n] == 1, kind[n] == 0
    if inside.any():
        row = {"image": n, "patches": int(inside.sum())}
        for r, s in {**by_degree, "mean": together}.items():
            v = s[n].numpy()
            row[r] = (v[inside].mean() - v[outside].mean()) / v[outside].std()
        contrast.append(row)
contrast = pd.DataFrame(contrast).set_index("image").sort_values("patches")
contrast.rename(columns={r: f"r = {r}" for r in (1, 3, 5)}).round(2)

# %% mystnb={"figure": {"caption": "Contrast of each defect at each degree, by the defect's size.", "name": "fig-lnamd-contrast"}, "image": {"alt": "Points per defect for degrees 1, 3, 5 over the size of the defect in patches."}}
figure, ax = plt.subplots(figsize=(5.6, 3.4), layout="constrained")
styles = {1: ("#0072B2", "o"), 3: ("#E69F00", "s"), 5: ("#CC79A7", "^")}
for r, (colour, marker) in styles.items():
    ax.plot(
        contrast["patches"],
        contrast[r],
        linestyle="none",
        marker=marker,
        markersize=8,
        color=colour,
        label=f"$r$ = {r}",
    )
ax.set_xscale("log")
ax.xaxis.set_major_formatter("{x:.0f}")
ax.xaxis.set_minor_formatter("{x:.0f}")
ax.axhline(0, color="#888888", linewidth=0.8)
ax.set_xlabel("size of the defect [patches]")
ax.set_ylabel("contrast [standard deviations]")
ax.spines[["top", "right"]].set_visible(False)
_ = ax.legend(frameon=False)

# %% [markdown]
# Aggregation averages out what differs from patch to patch, which steadies the background. A defect that fills the window keeps its
# level and gains; one that does not is diluted by its neighbours. Nobody knows the sizes beforehand, hence all three degrees, and
# the mean of the three scores (Eq. 3). Averaging *scores* is not averaging *tokens*: each degree has its own nearest neighbours.
#
# ## Exercises
#
# ```{exercise} What does the joint LayerNorm do?
# :label: ex-lnamd-norm
#
# The joint LayerNorm subtracts one number and divides by one number per image. Leave it out, and compare the cosines of tokens with and
# without. Does the division matter? Does the subtraction?
# ```
#
# ````{solution-start} ex-lnamd-norm
# :class: dropdown
# ````

# %% tags=["solution"]
unit = torch.nn.functional.normalize
x = raw[:1].double()
full = lnamd.aggregate(x, 1, grid=grid)[0]
divided_only = unit(x[0] / x.std(), dim=-1)
plain = unit(x[0], dim=-1)
centred_only = unit(x[0] - x.mean(), dim=-1)
assert torch.allclose(divided_only, plain)
assert torch.allclose(centred_only, full, atol=1e-6)
angle = (plain * full).sum(dim=1).clamp(-1, 1).arccos().rad2deg()
print(
    f"the subtraction turns tokens by {float(angle.mean()):.2f} degrees on average"
)

# %% [markdown]
# The final L2 norm undoes any division. What stays is the subtraction of one number from every channel, the mean over the whole
# image, which turns the tokens a little. Normalised per token instead, each token would lose its own mean, another matter.
#
# ````{solution-end}
# ````
#
# ```{exercise} Zeros at the border
# :label: ex-lnamd-border
#
# The padding counts in the mean. Average over the patches that exist instead. Which tokens change, and by how much after the L2 norm?
# ```
#
# ````{solution-start} ex-lnamd-border
# :class: dropdown
# ````

# %% tags=["solution"]
chart = lnamd.layer_norm(x).reshape(1, H, W, C).permute(0, 3, 1, 2)
pool = torch.nn.functional.avg_pool2d
existing = pool(chart, 5, 1, 2, count_include_pad=False)
existing = unit(existing.flatten(2)[0].T, dim=-1)
largest = float((existing - lnamd.aggregate(x, 5, grid=grid)[0]).abs().max())
assert largest < 1e-9
print(f"largest change of a token below 1e-9: {largest < 1e-9}")

# %% [markdown]
# None. The two means differ by a factor per token, and the L2 norm takes it away. The rule matters only with `normalize=False`.
#
# ````{solution-end}
# ````
#
# ```{exercise} Three degrees, or one wide kernel?
# :label: ex-lnamd-kernel
#
# Let $u_r$ be the sum over $r \times r$ patches. Build *one* token as the mean of the unit tokens of the three degrees, score with it, and
# compare the pixel AUROC with the mean of three scores. What is cheaper?
# ```
#
# ````{solution-start} ex-lnamd-kernel
# :class: dropdown
# ````

# %% tags=["solution"]
from musc.metrics import pixel_metrics

mixed_scores = []
for tokens in features.patch_tokens:
    mixed = sum(lnamd.aggregate(tokens, r, grid=grid) for r in (1, 3, 5))
    distances = msm.patch_to_image_distances(unit(mixed, dim=-1))
    mixed_scores.append(msm.interval_average(distances))
mixed_map = upsample(sum(mixed_scores) / len(mixed_scores), grid, size)
measured = {
    "mean of three scores": pixel_metrics(masks, maps["mean"]),
    "score of one mixed token": pixel_metrics(masks, mixed_map),
}
(100 * pd.DataFrame(measured).T).round(1)  # in percent

# %% [markdown]
# The mixed token is one comparison instead of three, but one nearest neighbour has to fit at all scales at once. With one Gram matrix for all
# degrees (next chapter) the three scores cost little more than one.
#
# ````{solution-end}
# ````
#
# ## Summary
#
# - LNAMD replaces each token by the mean over $r \times r$ patches, after a joint LayerNorm and before an L2 norm.
# - Small degrees keep small defects, large degrees steady the background and fill large defects.
# - Each degree is scored by itself, and the scores are averaged.
#
# **What next**: [MSM](03_msm.ipynb), where these tokens are compared across images.
