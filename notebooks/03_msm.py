# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
#   musc:
#     minutes: 50
#     smoke:
#       category: capsule
#       limit: 8
#       stage: 3
# ---

# %% [markdown]
# # MSM: images that score each other
#
# :::{admonition} In this chapter
# - You can compute Eq. 1-3 by hand, and know that the engine gives the same numbers.
# - You can explain why one matrix of inner products serves every aggregation degree.
# - You see the paper's histograms (Fig. 4) on this data: what makes an anomalous patch different, and what the interval does.
#
# **Time**: 25 minutes to read, 25 for the exercises. **Needs**: [LNAMD](02_lnamd.ipynb), whose tokens are compared here.
# :::
#
# The *mutual scoring mechanism* (Sec. 3.2) is the heart of MuSc, and it is short:
#
# | Eq. | Paper | Code |
# |:----|:------|:-----|
# | 1 | $a_{i,l}^{m,r}(I_j) = \min_n \lVert \hat{p}_{i,l}^{m,r} - \hat{p}_{j,l}^{n,r} \rVert_2$: how far is patch $m$ of image $i$ from the nearest patch of image $j$? | `msm.patch_to_image_distances` |
# | 2 | $\bar{a}_{i,l}^{m,r} = \frac{1}{K} \sum_{k=1}^{K} a_{i,l}^{m,r}(\bar{I}_k)$: mean of the smallest 30 % over the other images | `msm.interval_average` |
# | 3 | $\mathbf{a}_i^m = \frac{1}{L} \sum_l \frac{1}{3} \sum_r \bar{a}_{i,l}^{m,r}$: mean over stages and degrees | `msm.mutual_scores` |

# %% tags=["parameters"]
profile = "demo"  # "demo": the synthetic data set; "paper": a data set on disk
data_root = None  # folder of MVTec AD, VisA or BTAD, for the profile "paper"
category = "bottle_top"
limit = 14  # images; None: all
backbone = "procedural"
stage = 2  # of the backbone's four, counted from 1, for the histograms

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
N, M, C = features.patch_tokens[0].shape
print(
    f"profile {profile}: {N} images of {product.name}, {M} patches ({grid[0]} x {grid[1]}) of {C} channels, {len(features.grids)} stages"
)

# %% [markdown]
# ## Eq. 1 on two images, by hand
#
# Take a defective image and a normal one, and the tokens of one stage at degree $r = 3$. For one patch the equation is a loop
# over the other image's patches; for all patches it is two loops. That is all:

# %%
labels = np.array([s.label for s in features.samples])
i, j = int(np.flatnonzero(labels == 1)[0]), int(np.flatnonzero(labels == 0)[0])
tokens = lnamd.aggregate(features.patch_tokens[stage - 1], 3, grid=grid)
mine, other = tokens[i], tokens[j]  # [M, C] each

by_hand = torch.empty(M)
for m in range(M):
    nearest = float("inf")
    for p in other.split(64):  # 64 patches at once, or the loop takes minutes
        nearest = min(nearest, float((mine[m] - p).norm(dim=1).min()))
    by_hand[m] = nearest

both = msm.patch_to_image_distances(tokens[[i, j]])  # [2, 1, M]
assert torch.allclose(both[0, 0], by_hand, atol=1e-5)
gap = float((both[0, 0] - by_hand).abs().max())
print(f"largest difference between loop and package below 1e-5: {gap < 1e-5}")

# %% mystnb={"figure": {"caption": "One image is scored by one other: bright where the other has nothing alike. The outline is the true defect.", "name": "fig-msm-pair"}, "image": {"alt": "A defective image, a normal image, and the map of distances of the first to the second."}}
masks = figures.masks_at(features.samples, size)
pictures = figures.as_seen([features.samples[i], features.samples[j]], size)
figures.panels(
    [[pictures[0], pictures[1], by_hand.reshape(grid).numpy()]],
    titles=[["scored image $I_i$", "scoring image $I_j$", "$a_i^m(I_j)$"]],
    outlines=[None, None, masks[i]],
    label="distance",
    side=2.4,
)

# %% [markdown]
# A single witness is unreliable: where the two parts differ for harmless reasons, its map is bright as well. So ask everyone.
#
# ## From all images: Eq. 2 and Eq. 3
#
# `msm.stage_distances` does Eq. 1 for every pair of images and every degree of a stage. It gives one array, `[D, N, N-1, M]`. Eq. 2
# sorts over the images and averages the lowest part, Eq. 3 averages what comes out of degrees and stages. Below, both by hand
# from that array, and then `msm.mutual_scores`, which does all three.

# %%
degrees, interval = (1, 3, 5), (0.0, 0.3)
distances = [
    msm.stage_distances(stage_tokens, degrees, grid=grid)
    for stage_tokens in features.patch_tokens
]  # L arrays [D, N, N-1, M]

K = max(1, int(interval[1] * (N - 1)))
lowest = [d.sort(dim=2).values[:, :, :K] for d in distances]
averaged = torch.stack([d.mean(dim=2) for d in lowest])  # Eq. 2: [L, D, N, M]
scores = averaged.mean(dim=(0, 1))  # Eq. 3: [N, M]

engine = msm.mutual_scores(features.patch_tokens, degrees, interval, grid=grid)
assert torch.allclose(scores, engine, atol=1e-5)
slot = j - 1 if j > i else j  # image i itself is left out
assert torch.allclose(distances[stage - 1][1, i, slot], by_hand, atol=1e-4)
print(f"K = {K} of {N - 1} images; loop, array and engine agree")

# %% mystnb={"figure": {"caption": "The anomaly map appears. Top: image, Eq. 3 on the patch grid, upsampled. The image score is the map's maximum.", "name": "fig-msm-maps"}, "image": {"alt": "Four images, their patch scores and their smooth anomaly maps; the defects are bright."}}
maps = upsample(scores, grid, size)
anomalous, normal = np.flatnonzero(labels == 1), np.flatnonzero(labels == 0)
chosen = [*anomalous[:3], *normal[:2]]
figures.panels(
    [
        figures.as_seen([features.samples[n] for n in chosen], size),
        [scores[n].reshape(grid).numpy() for n in chosen],
        [maps[n].numpy() for n in chosen],
    ],
    titles=[
        [features.samples[n].defect.replace("_", " ") for n in chosen],
        [],
        [f"$c_i$ = {float(maps[n].max()):.2f}" for n in chosen],
    ],
    outlines=[masks[n] for n in chosen],
    names=["image", "patch scores", "anomaly map"],
    label="anomaly score",
    side=1.7,
)

# %% [markdown]
# ## The histograms: why it works
#
# The paper's Fig. 4 collects the distances of all *normal* patches and of all *anomalous* patches. A patch counts as anomalous
# here if at least half of it lies in the mask, as normal if none of it does. Masks are used for this picture only.

# %%
kind = figures.patch_labels(masks, grid)  # [N, M]: 1, 0, or -1 on the rim
one = distances[stage - 1][1]  # r = 3: [N, N-1, M]
witness = one.permute(0, 2, 1).numpy()  # [N, M, N-1]
whole = msm.interval_average(one, (0, 1)).numpy()  # [N, M]
part = msm.interval_average(one, interval).numpy()

# %% tags=["hide-input"] mystnb={"figure": {"caption": "As Fig. 4 of the paper. Left: each distance by itself. Middle: mean over all other images. Right: mean over the smallest 30 %.", "name": "fig-msm-histograms"}, "image": {"alt": "Three pairs of histograms; normal patches lie lower, and the overlap shrinks to the right."}}
figure, axes = plt.subplots(
    1, 3, figsize=(9, 2.8), layout="constrained", sharex=True
)
shown = {
    "every $a_i^m(I_j)$": (
        witness[kind == 0].ravel(),
        witness[kind == 1].ravel(),
    ),
    "mean of all (0 to 100 %)": (whole[kind == 0], whole[kind == 1]),
    "interval 0 to 30 %": (part[kind == 0], part[kind == 1]),
}
for ax, (title, (low, high)) in zip(axes, shown.items(), strict=True):
    figures.two_histograms(ax, low, high)
    ax.set_title(title, fontsize=10)
    ax.set_xlabel("distance")
axes[0].legend(frameon=False)
for ax in axes[1:]:
    ax.set_ylabel("")


# %%
def overlap(low, high):
    """Area that two densities share: 1 where they are equal, 0 where they are apart."""
    edges = np.histogram_bin_edges(np.concatenate([low, high]), 60)
    p, q = (np.histogram(v, edges, density=True)[0] for v in (low, high))
    return float(np.minimum(p, q).sum() * (edges[1] - edges[0]))


pd.Series(
    {name: overlap(*pair) for name, pair in shown.items()}, name="overlap"
).round(2).to_frame()

# %% [markdown]
# Three things to see. Normal patches find something alike almost everywhere. Anomalous patches find little, and the few small
# values come from images with a similar defect or from chance. And normal patches have a tail: a highlight or an edge that some
# images lack. The interval average keeps the best 30 % of the witnesses, so a normal patch needs look-alikes in only a
# third of the images. A defect would need them too, and has not got them.
#
# ## What the interval does
#
# The same distances, reduced in five ways. Nothing is computed again: one array serves all ablations of the interval (Tab. 4, 10).

# %% mystnb={"figure": {"caption": "One defective image under five intervals, all stages and degrees.", "name": "fig-msm-intervals"}, "image": {"alt": "Five anomaly maps of one image; the background grows brighter as the interval widens."}}
intervals = [(0, 0.05), (0, 0.3), (0, 0.6), (0, 1), (0.3, 1)]


def reduced(bounds):
    parts = [
        msm.interval_average(d[r], bounds) for d in distances for r in range(3)
    ]
    return torch.stack(parts).mean(dim=0)  # [N, M]


by_interval = {bounds: reduced(bounds) for bounds in intervals}
figures.panels(
    [[s[i].reshape(grid).numpy() for s in by_interval.values()]],
    titles=[[f"{100 * a:.0f} to {100 * b:.0f} %" for a, b in intervals]],
    outlines=[masks[i]] * len(intervals),
    label="patch score",
    side=1.7,
)

# %%
from musc.metrics import pixel_metrics

rows = {}
for (a, b), s in by_interval.items():
    measured = pixel_metrics(masks, upsample(s, grid, size))
    rows[f"{100 * a:.0f} to {100 * b:.0f} %"] = measured
(100 * pd.DataFrame(rows).T.rename_axis("interval")).round(1)  # percent

# %% [markdown]
# ## One Gram matrix for all degrees
#
# Unit vectors have $\lVert a - b \rVert^2 = 2 - 2 \langle a, b \rangle$, so Eq. 1 needs inner products: an $M \times M$ matrix per pair of
# images and stage, by far the largest cost. The obvious way computes it three times, for $r = 1, 3, 5$. It is not necessary. A neighbourhood sum
# is linear, so for sums over windows $U_m$ and $U_n$
#
# $$\Bigl\langle \sum_{u \in U_m} p_i^u,\ \sum_{v \in U_n} p_j^v \Bigr\rangle = \sum_{u \in U_m} \sum_{v \in U_n} \langle p_i^u, p_j^v \rangle .$$
#
# The right side is a box sum over the $r = 1$ matrix, seen as an array $[H, W, H, W]$: a **4-D box filter**, additions only. Dividing by the
# lengths of the two sums gives the cosine of the aggregated tokens. On a small grid:

# %%
import torch.nn.functional as F

H = W = 6
generator = torch.Generator().manual_seed(0)
a, b = torch.randn(2, 1, H * W, 8, generator=generator, dtype=torch.float64)


def box(x, r):
    """Sum over r x r windows of the last two axes, zeros beyond the border."""
    *front, h, w = x.shape
    flat = F.avg_pool2d(x.reshape(-1, 1, h, w), r, 1, r // 2) * r * r
    return flat.reshape(*front, h, w)


normed = [lnamd.layer_norm(t)[0] for t in (a, b)]
gram = (normed[0] @ normed[1].T).reshape(H, W, H, W)  # the only product
for r in (1, 3, 5):
    filtered = box(gram, r)  # over b's patches
    filtered = box(filtered.permute(2, 3, 0, 1), r).permute(
        2, 3, 0, 1
    )  # and a's
    sums = [box(t.T.reshape(8, H, W), r).flatten(1).norm(dim=0) for t in normed]
    cosine = filtered.reshape(H * W, H * W) / (sums[0][:, None] * sums[1])
    direct = lnamd.aggregate(a, r)[0] @ lnamd.aggregate(b, r)[0].T
    assert torch.allclose(cosine, direct)
print(
    "box-filtered Gram matrix = product of aggregated tokens, for r = 1, 3, 5"
)

# %% [markdown]
# The engine does this for every pair of images, and takes each pair once: the row minima of $(i, j)$ are image $j$'s scores for $i$, and
# the column minima are $i$'s for $j$.
#
# ## Exercises
#
# ```{exercise} How many witnesses?
# :label: ex-msm-k
#
# How many images does Eq. 2 average for $N = 3, 4, 5, 14, 200$ with the interval $(0, 0.3)$? The released code takes
# $K = \lfloor 0.3 (N - 1) \rfloor$ and prints NaN for small $N$. Where, and what does `msm.interval_average` do there?
# ```
#
# ````{solution-start} ex-msm-k
# :class: dropdown
# ````

# %% tags=["solution"]
counts = {}
for n in (3, 4, 5, 14, 200):
    low, high = msm.interval_bounds(n - 1, (0.0, 0.3))
    counts[n] = {
        "floor(0.3 (N - 1))": int(0.3 * (n - 1)),
        "taken here": high - low,
    }
few = torch.tensor([[[0.2], [0.1], [0.4]]])  # N = 1 scored by J = 3
assert float(msm.interval_average(few)) == float(few.min())
pd.DataFrame(counts).T.rename_axis("N")

# %% [markdown]
# Up to $N = 4$ the formula gives $K = 0$ and a mean of nothing. Here at least one image is taken, the nearest.
#
# ````{solution-end}
# ````
#
# ```{exercise} Only one stage, only one degree
# :label: ex-msm-parts
#
# Compute the pixel AUROC of every single stage and degree from `averaged`, and of the mean of all. Is the mean better than
# the best part? Could you have known the best part without labels?
# ```
#
# ````{solution-start} ex-msm-parts
# :class: dropdown
# ````

# %% tags=["solution"]
L, D = averaged.shape[:2]
table = pd.DataFrame(
    [
        [
            pixel_metrics(masks, upsample(averaged[s, d], grid, size))["auroc"]
            for d in range(D)
        ]
        for s in range(L)
    ],
    index=pd.Index([f"stage {s + 1}" for s in range(L)]),
    columns=[f"r = {r}" for r in degrees],
)
together = pixel_metrics(masks, maps)["auroc"]
print(f"mean of all: {100 * together:.1f} %")
(100 * table).round(1)

# %% [markdown]
# Some part may beat the mean, but which one changes with the product, and without labels nobody can tell. Averaging is the
# safe choice, not always the best one.
#
# ````{solution-end}
# ````
#
# ```{exercise} Is mutual scoring symmetric?
# :label: ex-msm-symmetry
#
# Image $i$ gives image $j$ some scores and the other way round. Compare the mean distance in both directions for a defective and a
# normal image, and the largest. Which is symmetric?
# ```
#
# ````{solution-start} ex-msm-symmetry
# :class: dropdown
# ````

# %% tags=["solution"]
forth, back = both[0, 0], both[1, 0]  # defective to normal, normal to defective
summary = pd.DataFrame(
    {
        "mean": [forth.mean(), back.mean()],
        "largest": [forth.max(), back.max()],
    },
    index=["defective scored by normal", "normal scored by defective"],
    dtype=float,
)
assert float(forth.min()) == float(back.min())
summary.round(3)

# %% [markdown]
# Only the smallest value is shared: the closest pair is closest from both sides. A defect has no partner in the normal
# image, so its distance is large. The normal image finds all that it has in the defective one, except at the place that the defect covers,
# and there it often finds a neighbour that looks alike. This asymmetry is why anomalous images are good witnesses.
#
# ````{solution-end}
# ````
#
# ## Summary
#
# - Eq. 1: the distance to the nearest patch of each other image. Eq. 2: the mean of the smallest 30 % of them. Eq. 3: the mean over stages
#   and degrees. Upsampled, that is the anomaly map; its maximum is the image score.
# - A normal patch needs look-alikes in a third of the images only, hence the interval.
# - One Gram matrix per pair and stage serves all degrees, and each pair is taken once.
#
# **What next**: [RsCIN](04_rscin.ipynb) mends the image scores by asking similar images.
