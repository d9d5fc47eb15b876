# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
#   musc:
#     minutes: 55
#     smoke:
#       products: [weave]
#       good: 8
#       defects: 5
#       planted: 6
#       draws: 2
#       redrawn: 1
#       seeds: 1
#       few: 5
# ---

# %% [markdown]
# # When it fails
#
# :::{admonition} In this chapter
# - You can say, before a run, which sets of images mutual scoring cannot judge, and you have measured how badly it fails on them.
# - You use four remedies that are not in the paper: position windows, tiles, the correction of consistent defects, a threshold.
# - You know what no remedy can do without a label or a reference image.
#
# **Time**: 25 minutes to read, 25 for the exercises. **Needs**: [MSM](03_msm.ipynb) and [the metrics](06_metrics.ipynb).
# :::
#
# Mutual scoring rests on one sentence: *a normal patch finds look-alikes in most other images, an anomalous one in few*
# (Sec. 3.2). Everything below breaks that sentence on purpose, and looks at what is left. All numbers are measured in this notebook on the synthetic data
# set with the embedded backbone, at small sizes so that it runs in two minutes, and over several draws of the products (`seeds`): read the
# shapes of the curves, not their third digit. Image scores are those before RsCIN, so that nothing hides what mutual scoring itself does.
#
# | Paper | `musc` | Meaning |
# |:------|:-----|:--------|
# | $a_{i,l}^{m,r}(I_j) = \min_n \lVert \hat p_{i,l}^{m,r} - \hat p_{j,l}^{n,r} \rVert_2$ (Eq. 1) | `msm.stage_distances` | who is near to whom |
# | mean of the lowest 30 % (Eq. 2) | `msm.interval_average` | how many may vouch |
# | $n$ near $m$ only; not in the paper | `position_window` | where they may lie |
# | images that vouch for each other; not in the paper | `consistency.find` | whom not to believe |

# %% tags=["parameters"]
products = ["wood", "bottle_top", "capsule"]  # of the synthetic data set
good = 20  # normal images per product
defects = 15  # images of various defects
planted = 12  # images of one and the same
draws = 6  # random subsets per point of a curve and seed
seeds = 3  # draws of every product
redrawn = 2  # draws in the slower experiments
few = 9  # images in the smaller experiments
backbone = "procedural"
size = 112  # pixels

# %%
import tempfile
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

from musc import MuSc, MuScConfig, datasets, msm
from musc.datasets import altered
from musc.datasets.images import read_image
from musc.errors import MuscError
from musc.metrics import image_metrics
from musc.results import figures
from musc.scoring import choices, consistency
from musc.verdicts import verdict

# %matplotlib inline

config = MuScConfig(
    backbone=backbone, image_size=size, degrees=(1, 3), windows=()
)
musc = MuSc(config)
draw = partial(datasets.load_category, "synthetic", None, train=0)

# %% [markdown]
# For the curves, the distances of Eq. 1 among all images of a product are computed once
# ({py:mod}`musc.scoring.choices`); every set of images that we want to try is then a choice of rows and columns, on which
# `choices.patch_scores` is Eq. 2 and 3.


# %%
def images_of(product, seed):
    """Normal images, images of various defects, images of one and the same."""
    mixed = draw(product, good=good, defects=defects, seed=seed).samples
    same = draw(product, good=0, defects=planted, seed=seed, same_defect=1.0)
    ordered = sorted(mixed, key=lambda sample: sample.label)
    return [*ordered, *same.samples]


def distances(samples, **options):
    return choices.all_distances(musc.features(samples), **options)


def auroc(labels, patch_scores):
    return image_metrics(np.asarray(labels), patch_scores.amax(dim=1))["auroc"]


pools = {
    (product, seed): distances(images_of(product, seed))
    for product in products
    for seed in range(seeds)
}
normal = np.arange(good)
various = good + np.arange(defects)
identical = good + defects + np.arange(planted)
shape = list(pools[products[0], 0].shape)
print(f"{len(pools)} pools of {shape[1]} images; distances of each: {shape}")

# %% [markdown]
# ## One image, two images, few images
#
# One image has nothing to be compared with, and `musc` says so. Two images have only each other: a difference between them belongs to both. What
# tells them apart is direction alone. A defect finds no look-alike in the other image, while the other's patches find theirs, unless it hides some:

# %%
try:
    musc.run(draw(products[0], good=1, defects=0))
except MuscError as error:
    print(error)

pairs = []
for (product, seed), full in pools.items():
    two = choices.patch_scores(full, [0, int(various[0])]).amax(dim=1)
    pairs.append((product, seed, *two.tolist()))
pairs = pd.DataFrame(
    pairs, columns=["product", "seed", "normal", "defective"]
).set_index(["product", "seed"])
pairs.round(2)

# %% tags=["remove-input"]
gap = (pairs["defective"] - pairs["normal"]).groupby("product").mean()
clear, unclear = gap.idxmax(), gap.idxmin()
verdict(
    f"On {clear.replace('_', ' ')} the defective image scores {gap[clear]:.2f} more, on"
    f" {unclear.replace('_', ' ')} {gap[unclear]:.2f}: with two images a defect shows"
    " where the rest is a texture in which everything has its like, and hardly where each"
    " part is another.",
    gap[clear] > 0.3,
    abs(gap[unclear]) < 0.1,
)

# %%
records = []
rng = np.random.default_rng(0)
counts = [n for n in (4, 8, 12, 16, 20, 24) if 3 * n // 4 <= good]
for (product, _), full in pools.items():
    for n in np.repeat(counts, draws):
        some = rng.choice(normal, n - n // 4, replace=False)
        bad = rng.choice(various, n // 4, replace=False)
        rows = np.r_[some, bad]
        found = auroc(rows >= good, choices.patch_scores(full, rows))
        records.append((product, n, found))
few_images = pd.DataFrame(records, columns=["product", "images", "auroc"])

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Image AUROC over the number of images, a quarter of them with various defects: mean over random subsets and seeds. The band holds all but the lowest and the highest tenth.", "name": "fig-fails-few"}, "image": {"alt": "Three curves over the number of images with bands that begin wide at four images and become narrow; bottle tops lie highest."}}
figure, ax = plt.subplots(figsize=(5.6, 3.4), layout="constrained")
look = dict(
    zip(products, zip(figures.SERIES, "osD", strict=True), strict=False)
)
for product, (colour, marker) in look.items():
    runs = few_images[few_images["product"] == product]
    runs = runs.pivot_table(index="images", values="auroc", aggfunc=list)[
        "auroc"
    ]
    name = product.replace("_", " ")
    figures.band(ax, counts, runs, colour, marker=marker, label=name)
ax.set(xlabel="images", ylabel="image AUROC", xticks=counts, ylim=(None, 1.02))
ax.spines[["top", "right"]].set_visible(False)
_ = ax.legend(frameon=False)

# %%
by_count = few_images.groupby("images")["auroc"].agg(["mean", "std"])
few_images.pivot_table(index="images", columns="product", values="auroc").round(
    2
)

# %% tags=["remove-input"]
first, last = by_count.iloc[0], by_count.iloc[-1]
middle = by_count.loc[12] if 12 in by_count.index else first
verdict(
    f"With four images Eq. 2 averages a single distance ($\\lfloor 0.3 \\cdot 3 \\rfloor ="
    f" 0$ becomes one), and luck decides: {first['mean']:.2f} on average, with a standard"
    f" deviation of {first['std']:.2f}. Twelve images give {middle['mean']:.2f}, and twice"
    f" as many {last['mean']:.2f}; the deviation falls to {last['std']:.2f}. What few"
    " images cost is above all certainty. Remedy: more images, or some normal ones as"
    " `references` ([chapter 9](09_few_shot.ipynb)).",
    first["std"] > 2 * last["std"],
    middle["mean"] > first["mean"],
    abs(last["mean"] - middle["mean"]) < 0.05,
)

# %% [markdown]
# ## Most images defective
#
# Now the number of images is fixed and the share of defective ones grows: once with *various* defects, each of its own kind, once with
# *the same* defect (kind, place and size) in all of them, plain and with the correction of the next section.

# %%
N = min(20, good)
shares = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
records, kept = [], {}
for (product, seed), full in pools.items():
    for share in shares:
        n = round(share * N)
        for kind, bad in (("various", various), ("same", identical)):
            if n > len(bad):
                continue
            rows = np.r_[normal[: N - n], bad[:n]]
            plain, better, groups = choices.corrected_scores(full, rows)
            labels = rows >= good
            records.append((product, seed, share, kind, auroc(labels, plain)))
            if kind == "same":
                fixed = auroc(labels, better)
                records.append((product, seed, share, "same, corrected", fixed))
                kept[product, seed, share] = rows, plain, better, groups
columns = ["product", "seed", "share", "defects", "auroc"]
by_share = pd.DataFrame(records, columns=columns)
means = by_share.pivot_table(
    index=["product", "defects"], columns="share", values="auroc"
)
means.round(2)

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Image AUROC over the share of defective images, mean over products and seeds; each point of the thin lines is one product. Grey: 0.5, chance.", "name": "fig-fails-share"}, "image": {"alt": "The curve of various defects falls slowly and stays high; that of the same defect falls steeply; the corrected one stays above it up to forty percent and drops far below at sixty."}}
figure, ax = plt.subplots(figsize=(5.6, 3.4), layout="constrained")
overall = by_share.pivot_table(index="defects", columns="share", values="auroc")
for (kind, values), colour, marker in zip(
    overall.iterrows(),
    (figures.ORANGE, "#444444", figures.BLUE),
    "osD",
    strict=True,
):
    for _, single in means.xs(kind, level="defects").iterrows():
        ax.plot(single, color=colour, linewidth=0.7, alpha=0.5)
    ax.plot(values, color=colour, marker=marker, linewidth=2, label=kind)
ax.axhline(0.5, color="0.6", linewidth=0.8)
ax.set(xlabel="share of defective images", ylabel="image AUROC", ylim=(0, 1.02))
ax.spines[["top", "right"]].set_visible(False)
_ = ax.legend(frameon=False, loc="lower left", fontsize=9)

# %% tags=["remove-input"]
start, forty, end = (overall[share] for share in (0.1, 0.4, 0.6))
hard = means.xs("various", level="defects")[0.6]
verdict(
    f"*Various* defects, even many, are found: the AUROC goes from"
    f" {start['various']:.2f} with a tenth of the images defective to"
    f" {end['various']:.2f} with six tenths, for every defective image is also one witness"
    f" less for the normal patches. *The same* defect falls from {start['same']:.2f} over"
    f" {forty['same']:.2f} at 40 % to {end['same']:.2f}, near chance.",
    end["various"] > 0.8,
    start["various"] > end["various"] > end["same"] + 0.2,
    start["same"] > forty["same"] > end["same"],
    abs(end["same"] - 0.5) < 0.1,
)

# %% [markdown]
# ## Identical defects
#
# The falling curve is the hard limit of the idea. With $q$ of the images sharing one defect, each of its patches has about $qN$ near
# look-alikes. As soon as they fill the 30 % of Eq. 2, the defect's score is as low as a normal patch's; and beyond half, the images
# *without* it are the odd ones.
#
# The detector of {py:mod}`musc.scoring.consistency` uses what is left: such a patch is near to a **few** images and far from **all** others, so its sorted
# distances have a gap. Links across which distances stay that small make a graph of the images, and its communities are the groups.

# %%
example = max(
    (key for key in kept if key[2] <= 0.4),
    key=lambda key: (bool(kept[key][3]), key[2], -key[1]),
)  # the largest share, up to 40 %, at which a group was found
rows, plain, better, groups = kept[example]
mean_distance = choices.among(pools[example[:2]], rows).mean(dim=0)
change = better - plain
bad = int(change.amax(dim=1).argmax())  # the image that is raised most
patch = int(change[bad].argmax())
ordinary = int(plain[0].argsort()[plain.shape[1] // 2])
for note in consistency.describe(
    groups, [f"image {n}" for n in range(len(rows))]
):
    print(example[0].replace("_", " ") + ":", note)

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Sorted distances of Eq. 1 of one patch each, where 40 % of the images share a defect: the gap stands after the images that share it.", "name": "fig-fails-gap"}, "image": {"alt": "A smooth, slowly rising curve for a normal patch, and a curve with a step for a patch of the shared defect; the grey zone of the lowest thirty percent ends before the step."}}
figure, ax = plt.subplots(figsize=(5.6, 3.2), layout="constrained")
rank = np.arange(1, len(rows))
for image, where, colour, marker, name in (
    (bad, patch, figures.ORANGE, "^", "patch of the shared defect"),
    (0, ordinary, figures.BLUE, "o", "normal patch"),
):
    values = mean_distance[image, :, where].sort().values
    ax.plot(rank, values, marker=marker, ms=4, color=colour, label=name)
ax.axvspan(0.5, int(0.3 * (len(rows) - 1)) + 0.5, color="0.5", alpha=0.15, lw=0)
ax.set_xticks(rank[::3])
ax.set_xlabel("rank of the other image (grey: the 30 % of Eq. 2)")
ax.set_ylabel("distance, mean over\nstages and degrees")
ax.set_ylim(0, None)
ax.spines[["top", "right"]].set_visible(False)
_ = ax.legend(frameon=False)

# %% [markdown]
# With `MuScConfig(consistency="warn")`, or `musc run photos/ --consistency warn`, a run says this in its notes. With `"correct"` the
# patches concerned are scored over the images *outside* their group.

# %% tags=["remove-input"]
plain_means = means.xs("same", level="defects")
fixed_means = means.xs("same, corrected", level="defects")
loss = (plain_means - fixed_means).loc[:, :0.4].max().max()
verdict(
    f"Up to 40 % this mends a part of the damage: {forty['same']:.2f} becomes"
    f" {forty['same, corrected']:.2f} on average, and no product loses more than"
    f" {loss:.2f}. Beyond half of the images it takes the *good* ones for the group and"
    f" turns the ranking round: at 60 % the mean falls to {end['same, corrected']:.2f},"
    f" where plain scores give {end['same']:.2f}.",
    forty["same, corrected"] > forty["same"] + 0.05,
    loss < 0.05,
    end["same, corrected"] < end["same"] - 0.1,
)

# %% [markdown]
# So read a group as a question, and look at its images before you correct. Here they are, plain and corrected:

# %% mystnb={"figure": {"caption": "A normal image and three that share a defect, their maps by the plain method, and corrected. One colour scale; patches, not pixels.", "name": "fig-fails-corrected"}, "image": {"alt": "Images in the first row; in the second, dark maps; in the third, the maps of the three defective images have a bright spot at the defect."}}
shown = [0, *range(len(rows) - 3, len(rows))]
everything = images_of(*example[:2])
side = round(plain.shape[1] ** 0.5)
figures.panels(
    [
        figures.as_seen([everything[int(rows[i])] for i in shown], 224),
        [plain[i].reshape(side, side).numpy() for i in shown],
        [better[i].reshape(side, side).numpy() for i in shown],
    ],
    titles=[["normal", *3 * ["same defect"]], [], []],
    names=["image", "plain", "corrected"],
    label="anomaly score",
)

# %% [markdown]
# What it cannot do stands in the curves too. **It finds a defect only if that would stand out clearly were it
# rare.** Parts that come in a few poses or variants look the same to it: of the normal sets on which it was measured a few were
# warned of ({py:mod}`musc.scoring.consistency` has the numbers). And at **60 %** the defect is the majority. By
# frequency it *is* the normal state; nothing short of a label or a reference image can say otherwise (third exercise).
#
# ## A threshold, with and without the correction
#
# A threshold from scores alone ([chapter 7](07_your_own_images.ipynb)) inherits the problem: what is not scored high is not flagged.

# %%
from musc.results.thresholds import robust

labels = rows >= good
both = {"plain": plain, "corrected": better}
lines, flags = {}, {}
for name, patch_scores in both.items():
    image_scores = patch_scores.amax(dim=1).numpy()
    lines[name] = robust(image_scores).value
    over = image_scores >= lines[name]
    flags[name] = {
        "flagged, defective": int((over & labels).sum()),
        "flagged, normal": int((over & ~labels).sum()),
        "defective": int(labels.sum()),
    }
flags = pd.DataFrame(flags).T
flags

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Image scores, sorted, and the robust threshold: plain and corrected, for the same images.", "name": "fig-fails-threshold"}, "image": {"alt": "Two panels of sorted points, circles for normal and triangles for defective images, with a dashed horizontal threshold; only in the right panel do triangles lie above it."}}
figure, axes = plt.subplots(
    1, 2, figsize=(8, 2.9), sharey=True, layout="constrained"
)
kinds = (
    (0, figures.BLUE, "o", "normal"),
    (1, figures.ORANGE, "^", "defective"),
)
for ax, (name, patch_scores) in zip(axes, both.items(), strict=True):
    image_scores = patch_scores.amax(dim=1).numpy()
    place = image_scores.argsort().argsort()
    for kind, colour, marker, word in kinds:
        of = labels == kind
        ax.scatter(
            place[of], image_scores[of], color=colour, marker=marker, label=word
        )
    ax.axhline(lines[name], color="0.4", ls="--", label="robust threshold")
    ax.set(xlabel="images, sorted", title=name)
    ax.spines[["top", "right"]].set_visible(False)
axes[0].set_ylabel("image score")
_ = axes[0].legend(frameon=False, fontsize=9)

# %% tags=["remove-input"]
hits = flags["flagged, defective"]
verdict(
    f"Of {flags['defective'].max()} defective images the threshold flags {hits['plain']} by"
    f" the plain scores and {hits['corrected']} by the corrected ones; of normal images"
    f" it flags at most {flags['flagged, normal'].max()}.",
    hits["corrected"] > hits["plain"],
    flags["flagged, normal"].max() <= 2,
)

# %% [markdown]
# ## Random orientation, misaligned parts, another light
#
# The backbone sees a turned part as something else, so that turned parts find fewer look-alikes (Tab. 12 of the paper: screws). The synthetic set
# has the screw twice, lying as a feeder lays it and thrown at random.

# %%
turned = {}
for seed in range(seeds):
    for name in ("screw", "screw_random"):
        parts = draw(name, good=few, defects=few, seed=seed).samples
        patch_scores = choices.patch_scores(distances(parts), range(len(parts)))
        turned[name, seed] = auroc([s.label for s in parts], patch_scores)
turned = pd.Series(turned).unstack()
turned.rename_axis(columns="seed").round(2)

# %% tags=["remove-input"]
lying, thrown = turned.loc["screw"].mean(), turned.loc["screw_random"].mean()
verdict(
    f"The image AUROC falls from {lying:.2f} to {thrown:.2f}, chance or worse: among parts"
    " that lie anyhow, every part is odd.",
    thrown < lying - 0.2,
    thrown < 0.6,
)

# %% [markdown]
# **Does mutual scoring need aligned parts?** Eq. 1 itself does not: it searches everywhere. But the tokens that it compares depend on
# position: a shift by a fraction of a patch cuts the part into other patches, and the network knows where in the picture it looks. So the
# answer is a property of the network, and has to be measured. Brightness, on the other hand, is mostly taken out by the LayerNorm of
# [LNAMD](02_lnamd.ipynb). Every image below gets its own random shift or lamp, up to the given strength; the lamp also lights one side more
# than the other.

# %%
strengths = [0.0, 0.02, 0.1, 0.2]
records = []
for seed in range(redrawn):
    base = draw("bottle_top", good=few + 3, defects=few + 1, seed=seed).samples
    labels, rows = [s.label for s in base], range(len(base))
    ways = np.random.default_rng(seed).uniform(-1, 1, (len(base), 2)).tolist()
    for at in strengths:
        moved = [
            altered.shifted(s, at * x, at * y)
            for s, (x, y) in zip(base, ways, strict=True)
        ]
        lit = [
            altered.lit(s, 1 + at * x, 2 * at * y)
            for s, (x, y) in zip(base, ways, strict=True)
        ]
        pool = {
            "shift": distances(moved),
            "shift, window 1": distances(moved, position_window=1),
            "light": distances(lit),
        }
        for way, full in pool.items():
            found = auroc(labels, choices.patch_scores(full, rows))
            records.append((way, at, seed, found))
disturbed = pd.DataFrame(records, columns=["way", "at", "seed", "auroc"])
by_strength = disturbed.pivot_table(index="way", columns="at", values="auroc")
by_strength.round(2)

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Image AUROC when every image is shifted, or lit from the side, at random; strength as a share of the picture's width, or of its brightness. Mean over the seeds, from the lowest to the highest of them in the band. Dashed: only patches within one patch of the same place are compared.", "name": "fig-fails-shift"}, "image": {"alt": "Left, the curve over the shift falls from above 0.9 to below 0.65, with a position window no less; right, the curve over the light falls far less."}}
figure, axes = plt.subplots(
    1, 2, figsize=(8, 3), sharey=True, layout="constrained"
)
for ax, way, colour, style in (
    (axes[0], "shift", figures.BLUE, "o-"),
    (axes[0], "shift, window 1", figures.ORANGE, "s--"),
    (axes[1], "light", figures.BLUE, "o-"),
):
    runs = disturbed[disturbed["way"] == way].groupby("at")["auroc"].apply(list)
    label = "position window 1" if "window" in way else "plain"
    figures.band(
        ax,
        strengths,
        runs,
        colour,
        marker=style[0],
        ls=style[1:],
        keep=1,
        label=label,
    )
for ax, name in zip(axes, ("shift", "light"), strict=True):
    ax.axhline(0.5, color="0.6", linewidth=0.8)
    ax.set_xlabel(f"strength of the {name}")
    ax.spines[["top", "right"]].set_visible(False)
axes[0].legend(frameon=False, fontsize=9)
_ = axes[0].set_ylabel("image AUROC")

# %% tags=["remove-input"]
shift, light = by_strength.loc["shift"], by_strength.loc["light"]
verdict(
    f"With this network parts must be aligned: a shift of up to 2 % of the width takes the"
    f" AUROC from {shift[0.0]:.2f} to {shift[0.02]:.2f}, one of 10 % to {shift[0.1]:.2f},"
    " and a position window brings none of it back. Uneven light costs less, even at 20 %:"
    f" {light[0.2]:.2f}. So align, or crop to the part, before you score.",
    shift[0.0] > shift[0.02] > shift[0.1],
    shift[0.1] < shift[0.0] - 0.1,
    light[0.2] > shift[0.2] + 0.1,
    (by_strength.loc["shift, window 1"] - shift).max() < 0.02,
)

# %% [markdown]
# ## The right part in the wrong place
#
# Eq. 1 looks for a look-alike *anywhere*. So a part that belongs elsewhere passes, even where all parts are aligned: on the last board, a ceramic capacitor was soldered where a resistor belongs, and every board has such capacitors elsewhere. If the parts are aligned, compare only
# patches within a window of $w$ patches around the same position: `MuScConfig(position_window=w)`, or `--position-window W`. Infinity is the paper.


# %%
def box(x, y, w=0.14, h=0.085):
    """A part's outline, centre in half picture widths, as fractions."""
    return (
        (x - w + 1) / 2,
        (y - h + 1) / 2,
        (x + w + 1) / 2,
        (y + h + 1) / 2,
    )


# %%
fine = MuSc(config.replace(image_size=224, stages=(2, 3, 4)))
windows = (0, 1, 2, 4, np.inf)
highest = {}
for seed in reversed(range(redrawn)):  # the last one, of seed 0, is shown below
    boards = draw("board", good=few, defects=0, seed=seed).samples
    wrong = (box(-0.16, 0.52), box(-0.50, 0.52)[:2])
    boards = [*boards[:-1], altered.copied(boards[-1], *wrong, "swapped")]
    features = fine.features(boards)
    grid = features.grids[0]
    by_window = {
        w: msm.mutual_scores(
            features.patch_tokens, (1, 3), grid=grid, position_window=w
        )
        for w in windows
    }
    for w, found in by_window.items():
        tops = found.amax(dim=1)
        highest[w, seed] = float(tops[-1]), float(tops[:-1].max())
highest = pd.DataFrame(highest, index=["swapped", "normal"]).T
highest.index.names = ["window", "seed"]
contrast = (highest["swapped"] / highest["normal"]).unstack()
print("score of the swapped board / highest score of a normal one")
contrast.rename(index="{:g}".format).round(2)

# %% mystnb={"figure": {"caption": "The board with the wrong part (outlined) and a normal one: plain maps, and with a window of one patch. One colour scale.", "name": "fig-fails-window"}, "image": {"alt": "Two boards; the plain map is hardly brighter at the wrong part than elsewhere, in the windowed map it is the brightest spot of both."}}
masks = figures.masks_at(boards, 224)
shown = [len(boards) - 1, 0]
figures.panels(
    [
        figures.as_seen([boards[i] for i in shown], 224),
        [by_window[np.inf][i].reshape(grid).numpy() for i in shown],
        [by_window[1][i].reshape(grid).numpy() for i in shown],
    ],
    titles=[["capacitor for resistor", "normal"], [], []],
    names=["image", "plain", "window 1"],
    outlines=[masks[i] for i in shown],
    label="anomaly score",
    side=2.1,
)

# %% tags=["remove-input"]
ratio = contrast.mean(axis=1)
verdict(
    f"With windows of one or two patches the board stands out, {ratio[1.0]:.2f} and"
    f" {ratio[2.0]:.2f} times the highest normal score on average. With four it hardly"
    f" does, {ratio[4.0]:.2f}: the next capacitor is less than five patches away, and"
    f" vouches again. Without a window it is hardly seen, {ratio[np.inf]:.2f}. So take the"
    " window a little wider than parts move, and narrower than equal parts are apart.",
    ratio[1.0] > 1.3,
    ratio[2.0] > 1.2,
    ratio[4.0] < ratio[2.0] - 0.1,
    ratio[np.inf] < 1.1,
)

# %% [markdown]
# ## Small defects in large images
#
# Squashed to the network's input, a large picture loses its small defects. `MuScConfig(tiles=4)`, or `--tiles 4`, cuts every image into
# $4 \times 4$ tiles that overlap by a quarter, scores the tiles at each position among the images, and blends their maps with weights that sum to one, so that
# no seam shows. `tile_pool="all"` searches all tiles of the other images instead, at sixteen times the cost, for parts that are not aligned.

# %%
workplace = tempfile.TemporaryDirectory()
folder = Path(workplace.name)
runs = {"squashed": musc, "4 x 4 tiles": MuSc(config.replace(tiles=4))}
seen = {}
for seed in reversed(range(redrawn)):  # the last one, of seed 0, is shown below
    plates = draw(
        "leather", good=max(few - 2, 3), defects=0, size=640, seed=seed
    )
    plates = list(plates.samples)
    plates[-1] = altered.dotted(plates[-1], (0.62, 0.31), 9)
    files = [folder / f"{seed}-{n}.png" for n in range(len(plates))]
    for plate, file in zip(plates, files, strict=True):
        read_image(plate.image).save(file)
    results = {name: pipeline.run(files) for name, pipeline in runs.items()}
    for name, result in results.items():
        raw = result.raw_image_scores
        seen[name, seed] = raw[-1] / raw[:-1].max()
seen = pd.Series(seen).unstack().rename_axis(columns="seed")
sizes = [result.anomaly_maps.shape[1] for result in results.values()]
print(f"maps of {sizes[0]} and {sizes[1]} px; spotted / highest normal plate:")
seen.round(2)

# %% tags=["remove-input"]
flat, cut = seen.loc["squashed"], seen.loc["4 x 4 tiles"]
verdict(
    f"Squashed, the spotted plate is not the first, {flat.mean():.2f} times the highest"
    f" normal one on average; in tiles it is more suspicious in each of the"
    f" {len(cut)} draws, {cut.mean():.2f} on average.",
    flat.mean() < 1,
    (cut > flat).all(),
    cut.mean() > 1,
)

# %% mystnb={"figure": {"caption": "A plate of 640 pixels with a spot of nine, and a normal one; the map of the squashed image, and of 4 x 4 tiles. Each row has its own scale: bright is the row's largest value.", "name": "fig-fails-tiles"}, "image": {"alt": "In the tiled map of the spotted plate the outlined spot is the brightest place; the squashed map is as bright in several others."}}
shown = [len(plates) - 1, 0]
photographs = [np.asarray(read_image(files[i])) for i in shown]
mask = np.asarray(read_image(plates[-1].mask))[..., 0] > 0
scaled = [
    [run.anomaly_maps[i] / run.anomaly_maps.max() for i in shown]
    for run in results.values()
]
figures.panels(
    [photographs, *scaled],
    titles=[["with a spot", "normal"], [], []],
    names=["image", "squashed", "tiles"],
    outlines=[mask, None],
    label="share of the row's largest score",
    limits=(0, 1),
    side=2.1,
)

# %% [markdown]
# ## Exercises
#
# ```{exercise} Two images
# :label: ex-fails-two
#
# Two images of one patch each get the same image score. Why? And why are the two scores of larger images *not* equal?
# ```
#
# ````{solution-start} ex-fails-two
# :class: dropdown
# ````

# %% tags=["solution"]
two = torch.randn(2, 1, 8, generator=torch.Generator().manual_seed(0))
both = msm.patch_to_image_distances(two)
assert torch.allclose(both[0], both[1])  # the distance is symmetric
many = torch.randn(2, 9, 8, generator=torch.Generator().manual_seed(0))
lone = msm.patch_to_image_distances(many).amax(dim=2).flatten()
print("image scores of two images of nine patches:", lone.round(decimals=2))
assert not torch.allclose(lone[0], lone[1])

# %% [markdown]
# A distance has no direction. With more patches, "every patch of A finds one in B" is not "every patch of B finds one in A": a defect that
# *adds* something scores in its own image, while the normal image may find all its patches in the defective one. With two images this asymmetry is all there
# is, and a *missing* part scores in the normal one.
#
# ````{solution-end}
# ````
#
# ```{exercise} A window that is too narrow
# :label: ex-fails-window
#
# Predict, then measure on the boards of this chapter: how does the highest score of a *normal* board change with $w = 0$? Why?
# ```
#
# ````{solution-start} ex-fails-window
# :class: dropdown
# ````

# %% tags=["solution"]
narrow = highest["normal"].unstack().mean(axis=1)
narrow.rename("{:g}".format).rename("highest normal score").round(3).to_frame()

# %% tags=["solution", "remove-input"]
verdict(
    f"It rises, from {narrow[np.inf]:.3f} without a window over {narrow[1.0]:.3f} at 1 to"
    f" {narrow[0.0]:.3f}.",
    narrow[0.0] > narrow[1.0] >= narrow[np.inf],
)

# %% [markdown]
# Every smaller window leaves fewer candidates, so no distance falls and most rise. Parts sit within a tolerance; at $w = 0$ even a shift of half a
# patch is an anomaly.
#
# ````{solution-end}
# ````
#
# ```{exercise} The majority is wrong
# :label: ex-fails-majority
#
# With 60 % of the images sharing a defect, frequency cannot help. Give four normal images as references that alone score (Eq. 9, `pool=0`). What is the AUROC
# with them, and without?
# ```
#
# ````{solution-start} ex-fails-majority
# :class: dropdown
# ````

# %% tags=["solution"]
n_bad = min(12, planted)
n_good = 2 * n_bad // 3
four = {}
for seed in range(seeds):
    mixed = draw(products[-1], good=n_good + 4, defects=0, seed=seed).samples
    same = draw(
        products[-1], good=0, defects=n_bad, seed=seed, same_defect=1.0
    ).samples
    tokens = musc.features([*mixed[:n_good], *same]).patch_tokens
    known = musc.features(mixed[n_good:]).patch_tokens
    labels = [0] * n_good + [1] * n_bad
    alone = msm.mutual_scores(tokens, (1, 3))
    joined = msm.mutual_scores(tokens, (1, 3), references=known, pool=0)
    four[seed] = auroc(labels, alone), auroc(labels, joined)
four = pd.DataFrame(four, index=["without", "by four references"])
four.rename_axis(columns="seed").round(2)

# %% tags=["solution", "remove-input"]
without, by_four = four.mean(axis=1)
verdict(
    f"The AUROC rises from {without:.2f} to {by_four:.2f} on average.",
    by_four > without + 0.1,
)

# %% [markdown]
# Four images that are *known* to be normal say what no number of unlabeled ones can: which side of the gap is the defect.
#
# ````{solution-end}
# ````
#
# ## Summary
#
# - One image cannot be scored, and two blame each other; few images cost certainty.
# - Many *different* defects do less harm than the *same* defect in many images, which vouches for itself.
# - `consistency="warn"` finds such groups by the gap in their distances, `"correct"` scores them by the others: of use below
#   one half of the images, harmful above.
# - Parts in wrong places need `position_window`, small defects in large images `tiles`; a threshold sees only what the scores see.
# - Turned and shifted parts are not repaired here: align them, or choose a backbone that does not mind.
#
# **What next**: [some normal images, and streams of new ones](09_few_shot.ipynb).
