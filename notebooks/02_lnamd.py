# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
#   musc:
#     minutes: 35
#     smoke:
#       category: wood
#       large_category: grid
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
# patch $m$ is replaced by the mean over the $r \times r$ patches around it, for $r = 1, 3, 5$:
#
# $$\hat{p}_{i,l}^{m,r} = \frac{1}{r^2} \sum_{u \in U_r(m)} p_{i,l}^{u} \tag{2.1}$$
#
# | Paper | Code |
# |:------|:-----|
# | $F_i \in \mathbb{R}^{M \times C}$, patch tokens of a stage | `patch_tokens`, `[N, M, C]` |
# | $\hat{p}_{i,l}^{m,r}$, aggregated patch token | `lnamd.aggregate(patch_tokens, r)`, `[N, M, C]` |
# | $r$, aggregation degree | `degree` |

# %% tags=["parameters"]
profile = "demo"  # "demo": the synthetic data set; "paper": a data set on disk
data_root = None  # folder of MVTec AD, VisA or BTAD, for the profile "paper"
category = "leather"  # at `image_size` its defects are small
image_size = 160  # pixels; None: the backbone's own
large_category = "tile"  # at the backbone's own size some defects are large
limit = None  # images of each; None: all
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
from musc.metrics import pixel_metrics
from musc.results import figures
from musc.scoring.maps import upsample
from musc.verdicts import verdict

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
musc = MuSc(MuScConfig(backbone=backbone, image_size=image_size))
features = musc.features(product.samples)
grid, size = features.grids[0], musc.backbone.image_size
raw = features.patch_tokens[1]  # stage 2
N, M, C = raw.shape
print(
    f"profile {profile}: {N} images of {product.name} at {size} px,",
    f"{M} patches ({grid[0]} x {grid[1]}) of {C} channels",
)

# %% [markdown]
# ## The loop
#
# Three things are not in Eq. 2.1. They are as in the released code, and the exercises ask which of them matter:
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
# Colours below are the first three principal components of the aggregated tokens: equal colour, similar token. Two defects,
# the smallest of those that cover a whole patch and the largest, well inside of the image.

# %% mystnb={"figure": {"caption": "Aggregated tokens as colours; the outline on the image is the mask. Each picture has its own components: compare shapes, not hues. The coloured frame is the border, where windows reach into the zeros.", "name": "fig-lnamd-pca"}, "image": {"alt": "Two rows, a small and a large defect; the tokens at degrees 1, 3, 5 and 9 grow smoother from left to right within a coloured frame. The large defect is a spot of its own colour at every degree, the small one a faint trace that is lost."}}
masks = figures.masks_at(features.samples, size)
side = size // grid[0]  # of a patch, in pixels
patches = masks.sum(axis=(1, 2)) / side**2
rim = 3 * side  # defects at the border are left out of the pictures
inner = np.zeros((size, size), dtype=bool)
inner[rim:-rim, rim:-rim] = True
inside = (masks & ~inner).sum(axis=(1, 2)) == 0
shown = np.flatnonzero((patches >= 0.9) & inside)
shown = shown if len(shown) else np.flatnonzero(patches)
small = int(shown[patches[shown].argmin()])
large = int(shown[patches[shown].argmax()])
pictures = figures.as_seen(features.samples, size)

degrees = (1, 3, 5, 9)
colours = {
    r: figures.pca_rgb(lnamd.aggregate(raw, r, grid=grid), grid)
    for r in degrees
}
figure = figures.panels(
    [[pictures[n], *(colours[r][n] for r in degrees)] for n in (small, large)],
    titles=[["image", *(f"$r$ = {r}" for r in degrees)], []],
    names=[
        f"{features.samples[n].defect}, {patches[n]:.1f} patches"
        for n in (small, large)
    ],
    side=1.7,
)
for ax, n in zip(figure.axes[::5], (small, large), strict=True):
    ax.contour(masks[n], [0.5], colors=["#00e5ff"], linewidths=1.2)
figure

# %% [markdown]
# How far does the defect stand out of its surroundings in the *tokens*? Take the distance of each token to the mean token of
# its image, on the defect and around it:

# %%
standing = {}
for r in degrees:
    tokens = lnamd.aggregate(raw, r, grid=grid)
    away = (tokens - tokens.mean(dim=1, keepdim=True)).norm(dim=2).numpy()
    for name, n in (("small", small), ("large", large)):
        most = masks[n].reshape(grid[0], side, grid[1], side).mean(axis=(1, 3))
        peak = away[n][most.argmax()]  # where the defect fills most of a patch
        around = away[n][most.ravel() == 0]
        standing[name, r] = (peak - around.mean()) / around.std()
standing = pd.Series(standing).unstack().rename_axis("defect")
standing.rename(columns=lambda r: f"r = {r}").round(1)

# %% tags=["remove-input"]
s, big = standing.loc["small"], standing.loc["large"]
verdict(
    f"The small defect melts: at $r = 1$ its token stands {s[1]:.1f} standard deviations out of "
    f"those without a defect, {s[5]:.1f} at $r = 5$ and {s[9]:.1f} at $r = 9$. Of the large one "
    f"{100 * big[5] / big[1]:.0f} % is left at $r = 5$, of the small one "
    f"{100 * s[5] / s[1]:.0f} %.",
    s[1] > s[3] > s[5],
    s[5] > s[9],
    big[5] / big[1] > s[5] / s[1],
)

# %% [markdown]
# ## What a degree finds
#
# Now let the images score each other ([next chapter](03_msm.ipynb)) at one degree at a time. This is Fig. 3 of the paper on
# our data, for the same two defects.


# %%
def scores_by_degree(found):
    """Patch scores of every degree, and their mean: {r: [N, M]}."""
    stages = [
        msm.stage_distances(tokens, (1, 3, 5), grid=found.grids[0])
        for tokens in found.patch_tokens
    ]  # one array [3, N, N-1, M] per stage, for all degrees at once
    scores = {}
    for d, r in enumerate((1, 3, 5)):
        parts = [msm.interval_average(stage[d]) for stage in stages]
        scores[r] = torch.stack(parts).mean(dim=0)
    return scores | {"mean": sum(scores.values()) / 3}


by_degree = scores_by_degree(features)
maps = {
    f"$r$ = {r}" if r != "mean" else r: upsample(s, grid, size)
    for r, s in by_degree.items()
}


def filled(n):
    """Of one image its maps, each from its median to its maximum."""
    values = [stack[n].numpy() for stack in maps.values()]
    low = [np.median(v) for v in values]
    return [
        np.clip((v - lo) / (v.max() - lo), 0, 1)
        for v, lo in zip(values, low, strict=True)
    ]


# %% mystnb={"figure": {"caption": "Anomaly maps at single degrees and their mean, each on its own scale from its median to its maximum. The outline is the mask.", "name": "fig-lnamd-degrees"}, "image": {"alt": "Two rows of maps, a small and a large defect at degrees 1, 3, 5 and all three; the spot on the small defect grows far beyond its outline as the degree grows."}}
figures.panels(
    [[pictures[n], *filled(n)] for n in (small, large)],
    titles=[["image", *maps], []],
    names=[
        f"{features.samples[n].defect}, {patches[n]:.1f} patches"
        for n in (small, large)
    ],
    outlines=[[None] + [masks[n]] * len(maps) for n in (small, large)],
    label="median to maximum",
    limits=(0, 1),
    side=1.7,
)

# %% [markdown]
# A single image is an anecdote. Over all defective images: which degree finds the small half of the defects best, which the
# other half? Each half is taken with all normal images; the pixel AP tells how well the map keeps to the defect.

# %%
size_order = np.argsort(patches, kind="stable")
defective = size_order[patches[size_order] > 0]
halves = np.array_split(defective, 2)
normal = np.flatnonzero(patches == 0)
rows = {}
for name, half in zip(("small half", "large half"), halves, strict=True):
    some = np.concatenate([half, normal])
    low, high = patches[half].min(), patches[half].max()
    rows[f"{name}, {low:.1f} to {high:.1f} patches"] = {
        title: pixel_metrics(masks[some], stack[some])["ap"]
        for title, stack in maps.items()
    }
table = 100 * pd.DataFrame(rows).T
table.columns = ["r = 1", "r = 3", "r = 5", "mean"]
table.rename_axis("pixel AP [%]").round(1)

# %% tags=["remove-input"]
first, second = table.iloc[0], table.iloc[1]
kept = [row["r = 5"] / row["r = 1"] for row in (first, second)]
(
    verdict(
        f"Small degrees keep small defects: on the small half the AP falls from "
        f"{first['r = 1']:.1f} at $r = 1$ to {first['r = 3']:.1f} at $r = 3$ and "
        f"{first['r = 5']:.1f} at $r = 5$.",
        first["r = 1"] > first["r = 3"] > first["r = 5"],
    )
    + verdict(
        f"Of it {100 * kept[0]:.0f} % is left at $r = 5$; on the larger half "
        f"{100 * kept[1]:.0f} %.",
        kept[1] > kept[0],
    )
)

# %% [markdown]
# Where do large degrees pay? Not here: no defect of this product at this input size is as large as the $5 \times 5$ window. On
# another product, at the backbone's own input size, some cover dozens of patches. The **contrast** of a defect is how far the
# mean score on its mask lies above the mean outside of it, in standard deviations outside.

# %%
other = load(large_category)
musc = MuSc(MuScConfig(backbone=backbone))
found = musc.features(other.samples)
wide, px = found.grids[0], musc.backbone.image_size
marked = figures.masks_at(found.samples, px)
covered = marked.sum(axis=(1, 2)) / (px // wide[0]) ** 2


def contrasts(scores, grid, masks):
    """Per image with a defect the contrast of its map at each degree."""
    rows = {}
    for r, s in scores.items():
        stack = upsample(s, grid, masks.shape[1]).numpy()
        rows[r] = {
            n: (v[m].mean() - v[~m].mean()) / v[~m].std()
            for n, (v, m) in enumerate(zip(stack, masks, strict=True))
            if m.any()
        }
    return pd.DataFrame(rows)


both = {
    f"{product.name}, {size} px": contrasts(by_degree, grid, masks).assign(
        patches=patches[patches > 0]
    ),
    f"{other.name}, {px} px": contrasts(
        scores_by_degree(found), wide, marked
    ).assign(patches=covered[covered > 0]),
}

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Contrast of each defect at each degree over the defect's size. The dashed line is the area of the 5 x 5 window.", "name": "fig-lnamd-contrast"}, "image": {"alt": "Two panels of points over the size of a defect in patches. Left, small defects: circles of degree 1 lie above triangles of degree 5. Right: beyond 25 patches the triangles lie on top."}}
figure, axes = plt.subplots(
    1, 2, figsize=(9, 3.4), layout="constrained", sharey=True
)
styles = {1: ("#0072B2", "o"), 3: ("#E69F00", "s"), 5: ("#CC79A7", "^")}
for ax, (title, measured) in zip(axes, both.items(), strict=True):
    for r, (colour, marker) in styles.items():
        ax.plot(
            measured["patches"],
            measured[r],
            linestyle="none",
            marker=marker,
            markersize=7,
            color=colour,
            label=f"$r$ = {r}",
        )
    ax.set_xscale("log")
    ax.set_xticks([1, 3, 10, 30, 100], ["1", "3", "10", "30", "100"])
    ax.minorticks_off()
    ax.axhline(0, color="#888888", linewidth=0.8)
    ax.axvline(25, color="#888888", linewidth=0.8, linestyle="--")
    ax.set_title(title, fontsize=10)
    ax.set_xlabel("size of the defect [patches]")
    ax.spines[["top", "right"]].set_visible(False)
axes[0].set_ylabel("contrast [standard deviations]")
_ = axes[1].legend(frameon=False)

# %% tags=["remove-input"]
tiny = both[f"{product.name}, {size} px"]
tiny = tiny[tiny["patches"] <= tiny["patches"].median()]
huge = both[f"{other.name}, {px} px"]
huge = huge[huge["patches"] > huge["patches"].median()]
wins = int((huge[[1, 3, 5]].idxmax(axis=1) == 5).sum())
(
    verdict(
        f"The smaller half of the {product.name} defects has a mean contrast of {tiny[1].mean():.1f} at "
        f"$r = 1$ and {tiny[5].mean():.1f} at $r = 5$.",
        tiny[1].mean() > tiny[5].mean(),
    )
    + verdict(
        f"On the larger half of the {other.name} defects it is the reverse, {huge[1].mean():.1f} and "
        f"{huge[5].mean():.1f}: $r = 5$ is best for {wins} of {len(huge)}.",
        huge[5].mean() > huge[1].mean(),
        wins > len(huge) / 2,
    )
    + verdict(
        "Aggregation averages out what differs from patch to patch, which steadies the "
        "background. A defect that fills the window keeps its level and gains; one that does "
        f"not is diluted. The mean of the three keeps {tiny['mean'].mean():.1f} on the small and "
        f"{huge['mean'].mean():.1f} on the large ones: never the best, never the worst.",
        tiny[5].mean() < tiny["mean"].mean(),
        huge[1].mean() < huge["mean"].mean() < huge[5].mean(),
    )
)

# %% [markdown]
# Nobody knows the sizes beforehand, hence all three degrees, and the mean of the three scores (Eq. 3). Averaging *scores* is
# not averaging *tokens*: each degree has its own nearest neighbours.
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

# %% tags=["solution", "remove-input"]
verdict(
    f"The final L2 norm undoes any division: without it no cosine changes by more than 1e-6. What "
    f"stays is the subtraction of one number from every channel, the mean over the whole image, "
    f"which turns the tokens by {float(angle.mean()):.0f} degrees on average.",
    torch.allclose(divided_only, plain, atol=1e-6),
    angle.mean() > 0,
)

# %% [markdown]
# Normalised per token instead, each token would lose its own mean, another matter.
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
verdict(
    f"No token changes by more than {1e-9:.0e}. The two means differ by a factor "
    "per token, and the L2 norm takes it away. The rule matters only with "
    "`normalize=False`.",
    largest < 1e-9,
)

# %% [markdown]
#
# ````{solution-end}
# ````
#
# ```{exercise} Three degrees, or one wide kernel?
# :label: ex-lnamd-kernel
#
# Let $u_r(m)$ be the sum of the normed tokens over the $r \times r$ patches around $m$. Instead of three tokens build *one*,
#
# $$v(m) = \frac{u_1(m)}{\lVert u_1(m) \rVert} + \frac{u_3(m)}{\lVert u_3(m) \rVert} + \frac{u_5(m)}{\lVert u_5(m) \rVert} , \tag{2.2}$$
#
# score with $v / \lVert v \rVert$ at one stage, and compare with the mean of three scores. Then leave the three norms out,
# $u_1 + u_3 + u_5$: what kernel over the neighbourhood is that?
# ```
#
# ````{solution-start} ex-lnamd-kernel
# :class: dropdown
# ````


# %% tags=["solution"]
def scored(tokens):
    """Eq. 1 and 2 for one token per patch, of any length."""
    x = unit(tokens, dim=-1)
    cosine = torch.stack([(x @ other.T).amax(dim=2) for other in x], dim=1)
    others = (2 - 2 * cosine).clamp_min(0).sqrt()[~torch.eye(N, dtype=bool)]
    return msm.interval_average(others.reshape(N, N - 1, M))


u_1, u_3, u_5 = (
    lnamd.aggregate(raw, r, grid=grid, normalize=False) * r**2
    for r in (1, 3, 5)
)  # of stage 2
v = sum(unit(u, dim=-1) for u in (u_1, u_3, u_5))
variants = {
    "mean of three scores": sum(scored(u) for u in (u_1, u_3, u_5)) / 3,
    "v, three unit tokens": scored(v),
    "u_1 + u_3 + u_5": scored(u_1 + u_3 + u_5),
    "u_5 alone": scored(u_5),
}
measured = {
    name: pixel_metrics(masks, upsample(s, grid, size))
    for name, s in variants.items()
}
measured = 100 * pd.DataFrame(measured).T  # in percent
measured.round(1)

# %% tags=["solution", "remove-input"]
ap = measured["ap"]
(
    verdict(
        f"Three scores give a pixel AP of {ap['mean of three scores']:.1f}, the one token $v$ "
        f"{ap['v, three unit tokens']:.1f}, at a third of the comparisons.",
        abs(ap["mean of three scores"] - ap["v, three unit tokens"]) < 10,
    )
    + verdict(
        f"Without the norms it is {ap['u_1 + u_3 + u_5']:.1f}. The sum weighs the centre 3, the "
        "ring around it 2 and the outer ring 1: a soft window, better than the flat one of $u_5$ "
        f"alone with {ap['u_5 alone']:.1f} and nearer to the three scores.",
        ap["u_1 + u_3 + u_5"] > ap["u_5 alone"],
        abs(ap["u_1 + u_3 + u_5"] - ap["mean of three scores"])
        < abs(ap["u_1 + u_3 + u_5"] - ap["u_5 alone"]),
    )
)

# %% [markdown]
# How one Gram matrix serves all three degrees is in the next chapter.
#
# ````{solution-end}
# ````
#
# ## Summary
#
# - LNAMD replaces each token by the mean over $r \times r$ patches, after a joint LayerNorm and before an L2 norm.
# - Small degrees keep small defects; large degrees steady the background and favour defects that fill their window. The
#   mean of the three lies between.
# - Each degree is scored by itself, and the scores are averaged.
#
# **What next**: [MSM](03_msm.ipynb), where these tokens are compared across images.
