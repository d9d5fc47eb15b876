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
#       compared: [grid]
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
# How far is patch $m$ of image $i$ from the nearest patch of image $j$?
#
# $$a_{i,l}^{m,r}(I_j) = \min_n \lVert \hat{p}_{i,l}^{m,r} - \hat{p}_{j,l}^{n,r} \rVert_2 \tag{1}$$
#
# The mean of the smallest 30 % of these distances, over the $K$ other images $\bar{I}_k$ that are nearest:
#
# $$\bar{a}_{i,l}^{m,r} = \frac{1}{K} \sum_{k=1}^{K} a_{i,l}^{m,r}(\bar{I}_k) \tag{2}$$
#
# The mean of that over the $L$ stages and the three degrees:
#
# $$\mathbf{a}_i^m = \frac{1}{L} \sum_l \frac{1}{3} \sum_r \bar{a}_{i,l}^{m,r} \tag{3}$$
#
# | Equation | Code | Gives |
# |:----|:------|:-----|
# | 1 | `msm.patch_to_image_distances` | `[N, N-1, M]` |
# | 2 | `msm.interval_average` | `[N, M]` |
# | 1 to 3 | `msm.mutual_scores` | `[N, M]` |

# %% tags=["parameters"]
profile = "demo"  # "demo": the synthetic data set; "paper": a data set on disk
data_root = None  # folder of MVTec AD, VisA or BTAD, for the profile "paper"
category = "screw"
compared = ["bottle_top", "board"]  # two more products, for one table
limit = None  # images; None: all
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
from musc.engines import gram
from musc.metrics import image_metrics, pixel_metrics
from musc.results import figures
from musc.scoring.maps import upsample
from musc.verdicts import paper_here_why, verdict

# %matplotlib inline

# %%
layout = "synthetic" if profile == "demo" else None


def load(name):
    product = datasets.load_category(
        layout, data_root and Path(data_root), name
    )
    step = ceil(len(product) / (limit or len(product)))  # all kinds stay
    return replace(product, samples=product.samples[::step])


product = load(category)
musc = MuSc(MuScConfig(backbone=backbone))
features = musc.features(product.samples)
grid, size = features.grids[0], musc.backbone.image_size
N, M, C = features.patch_tokens[0].shape
print(
    f"profile {profile}: {N} images of {product.name} at {size} px,",
    f"{M} patches ({grid[0]} x {grid[1]}) of {C} channels, {len(features.grids)} stages",
)

# %% [markdown]
# ## Eq. 1 on two images, by hand
#
# Take a defective image and a normal one, and the tokens of one stage at degree $r = 3$. For one patch the equation is a loop
# over the other image's patches; for all patches it is two loops. That is all:

# %%
labels = np.array([s.label for s in features.samples])
anomalous, normal = np.flatnonzero(labels == 1), np.flatnonzero(labels == 0)
i, j = int(anomalous[len(anomalous) // 3]), int(normal[0])
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
# One witness sees differences between two parts, harmless ones too. So ask everyone.
#
# ## From all images: Eq. 2 and Eq. 3
#
# `msm.stage_distances` does Eq. 1 for every pair of images and every degree of a stage. It gives one array,
# `[D, N, N-1, M]`. Eq. 2 sorts over the images and averages the lowest part, Eq. 3 averages what comes out of
# degrees and stages. Below, both by hand from that array, and then `msm.mutual_scores`, which does all three.

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

of_stage = features.patch_tokens[stage - 1]
engine = msm.mutual_scores([of_stage], degrees, interval, grid=grid)
assert torch.allclose(averaged[stage - 1].mean(dim=0), engine, atol=1e-5)
slot = j - 1 if j > i else j  # image i itself is left out
assert torch.allclose(distances[stage - 1][1, i, slot], by_hand, atol=1e-4)
print(
    f"K = {K} of {N - 1} images; on stage {stage} loop, array and engine agree"
)

# %% mystnb={"figure": {"caption": "The anomaly map appears. From above: image, Eq. 3 on the patch grid, upsampled. The outline is the true defect, the image score $c_i$ the map's maximum.", "name": "fig-msm-maps"}, "image": {"alt": "Three defective screws and two normal ones; below each its patch scores and its smooth anomaly map, with the mask outlined."}}
maps = upsample(scores, grid, size)
step = max(1, len(anomalous) // 3)  # of three kinds
chosen = [*anomalous[::step][:3], *normal[:2]]
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

# %% tags=["remove-input"]
c = maps.flatten(1).amax(dim=1).numpy()
measured = image_metrics(labels, c)
verdict(
    f"Over all {N} images the defective ones have a mean image score of {c[labels == 1].mean():.2f}, "
    f"the normal ones of {c[labels == 0].mean():.2f}; the image AUROC is {100 * measured['auroc']:.1f} %. "
    "No label was used to get there.",
    c[labels == 1].mean() > c[labels == 0].mean(),
    measured["auroc"] > 0.9,
)

# %% [markdown]
# ## The histograms: why it works
#
# The paper's Fig. 4 collects the distances of all *normal* patches and of all *anomalous* patches. A patch counts as
# anomalous here if at least half of it lies in the mask, as normal if none of it does. Masks are used for this picture
# only.

# %%
kind = figures.patch_labels(masks, grid)  # [N, M]: 1, 0, or -1 on the rim
one = distances[stage - 1][1]  # r = 3: [N, N-1, M]
witness = one.permute(0, 2, 1).numpy()  # [N, M, N-1]
whole = msm.interval_average(one, (0, 1)).numpy()  # [N, M]
part = msm.interval_average(one, interval).numpy()

# %% tags=["hide-input"] mystnb={"figure": {"caption": "As Fig. 4 of the paper. Left: each distance by itself. Middle: mean over all other images. Right: mean over the smallest 30 %. The distance axis is shared.", "name": "fig-msm-histograms"}, "image": {"alt": "Three pairs of outlined histograms over the distance, normal patches in blue to the left of anomalous ones in orange; the pairs overlap less from left to right."}}
figure, axes = plt.subplots(
    1, 3, figsize=(9, 2.8), layout="constrained", sharex=True
)
shown = {
    "every single distance": (
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

# %% [markdown]
# How far apart the two are is one number, the area that both densities share: 1 where they are equal, 0 where apart.

# %%
shared = {name: figures.overlap(*pair) for name, pair in shown.items()}
pd.Series(shared, name="overlap").round(3).to_frame()

# %% tags=["remove-input"]
each, mean, lowest_third = shared.values()
near_normal = np.median(witness[kind == 0])
below = (witness[kind == 1] < near_normal).mean()
tail = part[kind == 0] > np.quantile(part[kind == 0], 0.99)
pulled = whole[kind == 0][tail].mean() - part[kind == 0][tail].mean()
usual = (whole[kind == 0] - part[kind == 0]).mean()
lift = (whole[kind == 1] - part[kind == 1]).mean()
(
    verdict(
        f"Three things to see. Anomalous patches find little: only {100 * below:.1g} % of their distances lie below "
        "the median of the normal ones.",
        below < 0.2,
    )
    + verdict(
        f"Averaging over images takes away what chance does in one pair: the overlap falls from {each:.3f} to "
        f"{mean:.3f}.",
        mean < each,
    )
    + verdict(
        f"And the interval takes away more: {lowest_third:.3f}. A normal patch on a highlight or an edge that some "
        "images lack is scored by those that have it. Leaving out the farthest 70 % lowers the scores of the highest "
        f"1 % of normal patches by {pulled:.3f} on average, those of anomalous patches by {lift:.3f} only.",
        lowest_third < mean,
        pulled > lift,
    )
)

# %% [markdown]
# That is what the interval is for. A normal patch needs look-alikes in 30 % of the other images; a defect would need
# them too, and has not got them.
#
# Does it depend on the number of images? The overlap once more, on every third image only, and on two other products:

# %%
overlaps = {}
for name in (category, *compared):
    found = features if name == category else musc.features(load(name).samples)
    marked = figures.patch_labels(figures.masks_at(found.samples, size), grid)
    for every in (1, 3):
        some = found.patch_tokens[stage - 1][::every]
        d = msm.stage_distances(some, (3,), grid=grid)[0]
        overlaps[name, len(some)] = [
            figures.overlap(a[marked[::every] == 0], a[marked[::every] == 1])
            for a in (
                msm.interval_average(d, bounds).numpy()
                for bounds in ((0, 1), interval)
            )
        ]
overlaps = pd.DataFrame(
    overlaps, index=["mean of all", "interval 0 to 30 %"]
).T.rename_axis(["product", "N"])
overlaps.round(3)

# %% tags=["remove-input"]
many = overlaps.groupby(level=0, sort=False).head(1)
few = overlaps.groupby(level=0, sort=False).tail(1)
gains = [
    (part["mean of all"] - part["interval 0 to 30 %"]) for part in (many, few)
]
verdict(
    f"With all images the interval has the smaller overlap on {int((gains[0] > 0).sum())} of {len(many)} products, by "
    f"{gains[0].mean():.3f} on average; with a third of them on {int((gains[1] > 0).sum())}, by {gains[1].mean():.3f}. "
    "Thirty per cent of a dozen images are three or four, and the luck of those few enters the score: with more images "
    "the interval is worth more.",
    (gains[0] > 0).all(),
    gains[0].mean() > gains[1].mean(),
)

# %% [markdown]
# ## What the interval does to the maps
#
# The same distances, reduced in five ways. Nothing is computed again: one array serves all ablations of the interval
# (Tab. 4, 10).
# These are all images of the product at the backbone's own input size, so the row 0 to 30 % is what
# [the network's card](../book/embedded.md) has for screws before RsCIN.

# %% mystnb={"figure": {"caption": "One defective image under five intervals, all stages and degrees, on one scale. The outline is the true defect.", "name": "fig-msm-intervals"}, "image": {"alt": "Five anomaly maps of one screw; the whole map grows brighter as the interval takes in farther images."}}
intervals = [(0, 0.05), (0, 0.3), (0, 0.6), (0, 1), (0.3, 1)]


def reduced(bounds):
    parts = [
        msm.interval_average(d[r], bounds) for d in distances for r in range(3)
    ]
    return torch.stack(parts).mean(dim=0)  # [N, M]


def percent(bounds):
    return f"{100 * bounds[0]:.0f} to {100 * bounds[1]:.0f} %"


by_interval = {percent(bounds): reduced(bounds) for bounds in intervals}
figures.panels(
    [[s[i].reshape(grid).numpy() for s in by_interval.values()]],
    titles=[list(by_interval)],
    outlines=[masks[i]] * len(intervals),
    label="patch score",
    side=1.7,
)

# %%
rows = {}
for name, s in by_interval.items():
    found = upsample(s, grid, size)
    image = image_metrics(labels, found.flatten(1).amax(dim=1).numpy())
    rows[name] = {f"image {key}": value for key, value in image.items()}
    pixel = pixel_metrics(masks, found)
    rows[name] |= {f"pixel {key}": value for key, value in pixel.items()}
table = 100 * pd.DataFrame(rows).T.rename_axis("interval")  # percent
table[["image auroc", "pixel auroc", "pixel ap", "pixel pro"]].round(1)

# %% tags=["remove-input"]
best, all_of_them = table.loc["0 to 30 %"], table.loc["0 to 100 %"]
farthest = table.loc["30 to 100 %"]
(
    verdict(
        f"With the interval the image AUROC is {best['image auroc']:.1f}, with the mean of all images "
        f"{all_of_them['image auroc']:.1f}: the interval is better, and so it is in each place, with a pixel AUROC of "
        f"{best['pixel auroc']:.1f} against {all_of_them['pixel auroc']:.1f} and a PRO of {best['pixel pro']:.1f} "
        f"against {all_of_them['pixel pro']:.1f}.",
        best["image auroc"] - all_of_them["image auroc"] > 3,
        best["pixel auroc"] > all_of_them["pixel auroc"],
        best["pixel pro"] > all_of_them["pixel pro"],
    )
    + verdict(
        f"The farthest 70 % alone are worst of all, with an image AUROC of {farthest['image auroc']:.1f}: the "
        "dissimilar images are the noise.",
        farthest["image auroc"] == table["image auroc"].min(),
    )
)

# %% tags=["remove-input"]
from musc.reproduce import paper

quoted = paper.table(4).query(
    "dataset == 'mvtec_ad' and metric == 'pixel_auroc'"
)
quoted = quoted.set_index("row")["value"]
closest = table.loc["0 to 5 %"]
nearest = msm.interval_average(one, (0, 0.05)).numpy()
bound = np.quantile(nearest[kind == 0], 0.95)
far = np.median(nearest[kind == 1])
paper_here_why(
    f"Tab. 4: the nearest image alone (a, min) is worse than the interval (f): a pixel AUROC of {quoted['a']:.1f} "
    f"against {quoted['f']:.1f} on MVTec AD.",
    verdict(
        f"The nearest alone (0 to 5 % is one image of {N - 1}) gives a pixel AUROC of {closest['pixel auroc']:.1f} and "
        f"an AP of {closest['pixel ap']:.1f}, the interval {best['pixel auroc']:.1f} and {best['pixel ap']:.1f}.",
        closest["pixel auroc"] > best["pixel auroc"],
        closest["pixel ap"] > best["pixel ap"],
    ),
    verdict(
        f"One look-alike ruins the minimum, and defects that are drawn at random have none: half of the anomalous "
        f"patches are farther than {far:.2f} even from the nearest image, and 95 % of the normal patches are nearer "
        f"than {bound:.2f}. On a line where a tool leaves the same mark again and again, the minimum fails first "
        "([chapter 8](08_when_it_fails.ipynb)).",
        far > bound,
    ),
)

# %% [markdown]
# ## One Gram matrix for all degrees
#
# Unit vectors have $\lVert a - b \rVert^2 = 2 - 2 \langle a, b \rangle$, so Eq. 1 needs inner products: an
# $M \times M$ matrix per pair of images and stage, by far the largest cost. The obvious way computes it three times, for
# $r = 1, 3, 5$. It is not necessary. A neighbourhood sum is linear, so for sums over windows $U_m$ and $U_n$
#
# $$\Bigl\langle \sum_{u \in U_m} p_i^u,\ \sum_{v \in U_n} p_j^v \Bigr\rangle = \sum_{u \in U_m} \sum_{v \in U_n} \langle p_i^u, p_j^v \rangle . \tag{3.1}$$
#
# The right side of Eq. 3.1 is a box sum over the $r = 1$ matrix, seen as an array $[H, W, H, W]$: a **4-D box filter**, additions
# only. Dividing by the lengths of the two sums gives the cosine of the aggregated tokens. `musc.engines.gram` does this
# in readable torch. Here it is on the two images of above, with the channels of all four stages side by side, beside
# the plain way: aggregate at each degree, and multiply.

# %%
joined = torch.cat([s[[i, j]] for s in features.patch_tokens], dim=2)
a, b = (
    gram.Images(*(field[None] for field in gram.prepare(t, degrees, grid)))
    for t in joined
)
rooms = torch.empty(3, 1, M, M)  # the Gram matrix, and two to work in
found = gram.cosines(a, b, degrees, grid, rooms)  # [1, n, m] each
filtered = {r: c[0].T.clone() for r, c in zip(degrees, found, strict=True)}

gaps = {}
for r, cosine in filtered.items():
    mine, other = lnamd.aggregate(joined, r, grid=grid)  # [M, C] each
    gaps[r] = float((cosine - mine @ other.T).abs().max())
assert max(gaps.values()) < 1e-4
print("one product and box sums = three products, for r =", *gaps)

# %% mystnb={"figure": {"caption": "One row of each matrix: the cosine of one patch of the first image (square) with every patch of the second, from one Gram matrix by box sums. The larger the window, the smoother the row.", "name": "fig-msm-gram"}, "image": {"alt": "A screw with one patch marked, the second screw, and three maps of cosines, smoother from r = 1 to r = 5."}}
y, x = divmod(int(scores[i].argmax()), grid[1])  # the most anomalous patch
rows = [c[y * grid[1] + x].reshape(grid).numpy() for c in filtered.values()]
figure = figures.panels(
    [[pictures[0], pictures[1], *rows]],
    titles=[["image $i$", "image $j$", *(f"$r$ = {r}" for r in degrees)]],
    label="cosine",
    side=1.8,
)
side = size / grid[0]
for width, colour in ((3.5, "black"), (1.8, "cyan")):
    figure.axes[0].add_patch(
        plt.Rectangle(
            ((x - 1) * side, (y - 1) * side), 3 * side, 3 * side,
            fill=False, ec=colour, lw=width,
        )
    )  # fmt: skip
figure

# %% tags=["remove-input"]
rough = {
    r: np.abs(np.diff(row, axis=1)).mean()
    for r, row in zip(degrees, rows, strict=True)
}
channels = {"embedded": C, "paper": 1024}
pays = {
    name: [r for r in degrees if gram.CHEAP * (r + 2) <= width]
    for name, width in channels.items()
}
(
    verdict(
        f"From patch to patch the cosine moves by {rough[1]:.3f} at $r = 1$ and by {rough[5]:.3f} at $r = 5$.",
        rough[5] < rough[3] < rough[1],
    )
    + verdict(
        f"Box sums pay where channels are many: for the paper's {channels['paper']} channels they serve all of "
        f"{len(pays['paper'])} degrees. For the {C} of one stage of the embedded network a product is so cheap that the "
        f"engine takes box sums for {len(pays['embedded'])} degree only, and multiplies for the others.",
        len(pays["paper"]) == len(degrees),
        len(pays["embedded"]) == 1,
    )
)

# %% [markdown]
# The engine takes each pair once: the largest cosines along the rows of $(i, j)$ are image $j$'s scores for $i$, and
# those along the columns are $i$'s for $j$.
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
# Compute the pixel AUROC of every single stage and degree from `averaged`, and of the mean of all. Is the mean better
# than the best part? Could you have known the best part without labels?
# ```
#
# ````{solution-start} ex-msm-parts
# :class: dropdown
# ````

# %% tags=["solution"]
L, D = averaged.shape[:2]
parts = pd.DataFrame(
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
(100 * parts).round(1)

# %% tags=["solution", "remove-input"]
ranked = parts.stack().sort_values(ascending=False)
above = int((ranked > together).sum())
verdict(
    f"The mean of all gives {100 * together:.1f} %. Of the {len(ranked)} parts "
    f"{above} are better, the best with {100 * ranked.iloc[0]:.1f} % "
    f"({' at '.join(ranked.index[0])}), and the worst has "
    f"{100 * ranked.iloc[-1]:.1f} %. The best part changes with the product, and "
    "without labels nobody can tell which it is. Averaging is the safe choice, not "
    "the best one: it is nearer to the best part than to the worst.",
    above > 0,
    together > ranked.iloc[-1],
    ranked.iloc[0] - together < together - ranked.iloc[-1],
)

# %% [markdown]
# ````{solution-end}
# ````
#
# ```{exercise} Is mutual scoring symmetric?
# :label: ex-msm-symmetry
#
# Image $i$ gives image $j$ some scores and the other way round. Compare the mean, the largest and the smallest distance in
# both directions for a defective and a normal image. Which is symmetric? And do defective images make worse witnesses: how
# far are the patches of normal images from defective images, how far from other normal ones?
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
        "smallest": [forth.min(), back.min()],
    },
    index=["defective scored by normal", "normal scored by defective"],
    dtype=float,
)
summary.round(4)


# %% tags=["solution"]
def others_of(n, images):
    """Places of `images` among the N - 1 others of image n, which is left out."""
    images = images[images != n]
    return images - (images > n)


by = {}
for name, of, patch in (
    ("normal patches of normal images", normal, 0),
    ("anomalous patches", anomalous, 1),
):
    for title, others in (("defective", anomalous), ("normal", normal)):
        by[name, title] = np.mean(
            [
                witness[n][kind[n] == patch][:, others_of(n, others)].mean()
                for n in of
                if (kind[n] == patch).any()
            ]
        )
by = pd.Series(by).unstack()[["defective", "normal"]]
by.rename_axis("mean distance to images that are").round(3)

# %% tags=["solution", "remove-input"]
usual = by.loc["normal patches of normal images"]
(
    verdict(
        f"Only the smallest value is shared, {summary['smallest'].iloc[0]:.3f}: the closest pair is closest from both "
        "sides.",
        np.isclose(*summary["smallest"]),
        not np.isclose(*summary["largest"]),
        not np.isclose(*summary["mean"]),
    )
    + verdict(
        f"Defective images are good witnesses: a normal patch is {usual['defective']:.3f} away from them on average, "
        f"and {usual['normal']:.3f} from normal images. "
        "Outside of its defect a defective image shows what is normal.",
        usual["normal"] < usual["defective"] < 1.1 * usual["normal"],
    )
)

# %% [markdown]
# ````{solution-end}
# ````
#
# ## Summary
#
# - Eq. 1: the distance to the nearest patch of each other image. Eq. 2: the mean of the smallest 30 % of them. Eq. 3: the
#   mean over stages and degrees. Upsampled, that is the anomaly map; its maximum is the image score.
# - A normal patch needs look-alikes in 30 % of the images only: with enough images, the interval parts normal from
#   anomalous patches better than the mean of all does.
# - One Gram matrix per pair and stage serves all degrees, and each pair is taken once.
#
# **What next**: [RsCIN](04_rscin.ipynb) mends the image scores by asking similar images.
