# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
#   musc:
#     minutes: 50
#     smoke:
#       products: [weave]
#       good: 8
#       defects: 5
#       planted: 6
#       draws: 2
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
# set with the embedded backbone, at small sizes so that it runs in about a minute: read the shapes of the curves, not their third digit. Image
# scores are those before RsCIN, so that nothing hides what mutual scoring itself does.
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
draws = 12  # random subsets per point of a curve
few = 9  # images in the smaller experiments
backbone = "procedural"
size = 112  # pixels

# %%
import tempfile
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
from musc.scoring import consistency

# %matplotlib inline

config = MuScConfig(
    backbone=backbone, image_size=size, degrees=(1, 3), windows=()
)
musc = MuSc(config)

# %% [markdown]
# For the curves, the distances of Eq. 1 among all images of a product are computed once; every set of images that we want to try is
# then a choice of rows and columns. `scores` below is Eq. 2 and 3 on such a choice.


# %%
def all_distances(samples, musc=musc, **options):
    """Eq. 1 at every stage and degree, own image included: [K, N, N, M]."""
    f = musc.features(samples)
    N = len(f)
    others = ~torch.eye(N, dtype=torch.bool)
    stages = []
    for tokens, grid in zip(f.patch_tokens, f.grids, strict=True):
        d = msm.stage_distances(
            tokens, musc.config.degrees, grid=grid, **options
        )
        full = torch.zeros(len(d), N, N, d.shape[-1])
        full[:, others] = d.flatten(1, 2)
        stages.append(full)
    return torch.cat(stages)


def without_own(full, rows):
    """The distances among the images `rows`, own image left out: [K, n, n - 1, M]."""
    n = len(rows)
    chosen = full[:, rows][:, :, rows]
    others = ~torch.eye(n, dtype=torch.bool)
    return chosen[:, others].reshape(len(full), n, n - 1, -1)


def scores(full, rows):
    """Patch scores (Eq. 2 and 3) of the images `rows` among themselves: [n, M]."""
    d = without_own(full, rows)
    return torch.stack([msm.interval_average(k) for k in d]).mean(dim=0)


def auroc(labels, patch_scores):
    return image_metrics(labels, patch_scores.amax(dim=1))["auroc"]


rng = np.random.default_rng(0)
pools = {}
for product in products:
    mixed = datasets.load_category(
        "synthetic", None, product, good=good, defects=defects, train=0
    ).samples
    same = datasets.load_category(
        "synthetic", None, product, good=0, defects=planted, train=0,
        same_defect=1.0,
    ).samples  # fmt: skip
    samples = [s for s in mixed if not s.label]
    samples += [s for s in mixed if s.label]
    pools[product] = all_distances([*samples, *same])
normal = np.arange(good)
various = good + np.arange(defects)
identical = good + defects + np.arange(planted)
shape = tuple(pools[products[0]].shape)
print(f"images per product: {shape[1]}; distances of each: {list(shape)}")

# %% [markdown]
# ## One image, two images, few images
#
# One image has nothing to be compared with, and `musc` says so. Two images have only each other: a difference between them belongs to both. What
# tells them apart is direction alone. A defect finds no look-alike in the other image, while the other's patches find theirs, unless it hides some:

# %%
single = datasets.load_category(
    "synthetic", None, products[0], good=1, defects=0, train=0
)
try:
    musc.run(single)
except MuscError as error:
    print("one image:", error)

for product, full in pools.items():
    pair = scores(full, [0, int(various[0])]).amax(dim=1)
    print(
        f"two images of {product}: normal {pair[0]:.2f}, defective {pair[1]:.2f}"
    )

# %% mystnb={"figure": {"caption": "Image AUROC over the number of images, a quarter of them with various defects; mean over random subsets, the band is one standard deviation.", "name": "fig-fails-few"}, "image": {"alt": "Curves rise from few to many images."}}
counts = [n for n in (4, 8, 12, 16, 20, 24) if 3 * n // 4 <= good]
figure, ax = plt.subplots(figsize=(5.2, 3.2), layout="constrained")
few_table = {}
for product, marker in zip(products, "osD^v", strict=False):
    found = []
    for n in counts:
        bad = n // 4
        runs = []
        for _ in range(draws):
            rows = np.r_[
                rng.choice(normal, n - bad, False),
                rng.choice(various, bad, False),
            ]
            labels = torch.from_numpy(rows >= good)
            runs.append(auroc(labels, scores(pools[product], rows)))
        found.append((np.mean(runs), np.std(runs)))
    mean, spread = np.array(found).T
    few_table[product] = mean
    ax.plot(counts, mean, marker=marker, label=product.replace("_", " "))
    ax.fill_between(counts, mean - spread, mean + spread, alpha=0.15)
ax.set_xlabel("images")
ax.set_xticks(counts)
ax.set_ylabel("image AUROC")
ax.set_ylim(None, 1.02)
ax.spines[["top", "right"]].set_visible(False)
_ = ax.legend(frameon=False)

# %%
pd.DataFrame(few_table, index=pd.Index(counts, name="images")).round(2)

# %% [markdown]
# With four images Eq. 2 averages a single distance ($\lfloor 0.3 \cdot 3 \rfloor = 0$ becomes one), and luck decides. Most is gained up to
# eight or twelve images; after that the means hardly move, and the bands narrow: what few images cost is above all certainty. Remedy: more
# images, or some normal ones as `references` ([chapter 9](09_few_shot.ipynb)).
#
# ## Most images defective
#
# *Various* defects, even many, leave two of the curves high: each defect is of its own kind, and finds no look-alike in the others. Where a product is
# hard to begin with, every defective image is also one witness less for the normal patches, and the curve falls.

# %% mystnb={"figure": {"caption": "Image AUROC over the share of defective images. Left: various defects. Right: the same defect (kind, place, size) in all of them, plain and corrected.", "name": "fig-fails-share"}, "image": {"alt": "Left curves fall slowly, right curves fall steeply beyond thirty percent, and less when corrected."}}
N = min(20, good)
shares = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]
corrections = {}


def fixed_rows(share, bad):
    """N images, the first ones normal, `share` of them from `bad`."""
    n = round(share * N)
    return np.r_[normal[: N - n], bad[:n]] if n <= len(bad) else None


figure, axes = plt.subplots(
    1, 2, figsize=(8, 3.2), sharey=True, layout="constrained"
)
share_table = {}
for number, product in enumerate(products):
    curves = {"various": [], "same": [], "same, corrected": []}
    for share in shares:
        for name, bad in (("various", various), ("same", identical)):
            rows = fixed_rows(share, bad)
            if rows is None:
                curves[name].append(np.nan)
                if name == "same":
                    curves["same, corrected"].append(np.nan)
                continue
            labels = torch.from_numpy(rows >= good)
            plain = scores(pools[product], rows)
            curves[name].append(auroc(labels, plain))
            if name == "same":
                mean_distance = without_own(pools[product], rows).mean(dim=0)
                groups = consistency.find(mean_distance)
                better = consistency.corrected(plain, mean_distance, groups)
                curves["same, corrected"].append(auroc(labels, better))
                corrections[product, share] = (
                    rows, labels, plain, better, groups
                )  # fmt: skip
    colour, marker = f"C{number}", "osD^v"[number]
    name = product.replace("_", " ")
    axes[0].plot(shares, curves["various"], colour, marker=marker, label=name)
    axes[1].plot(shares, curves["same"], colour, marker=marker)
    axes[1].plot(
        shares, curves["same, corrected"], colour, marker=marker, ls="--"
    )
    for key, values in curves.items():
        share_table[product, key] = values
axes[1].plot([], [], "0.4", label="plain")
axes[1].plot([], [], "0.4", ls="--", label="corrected")
for ax, title in zip(axes, ("various defects", "the same defect"), strict=True):
    ax.axhline(0.5, color="0.6", linewidth=0.8)
    ax.set_title(title, fontsize=10)
    ax.set_xlabel("share of defective images")
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, fontsize=9)
_ = axes[0].set_ylabel("image AUROC")

# %%
pd.DataFrame(
    share_table, index=pd.Index([f"{100 * s:.0f} %" for s in shares])
).T.round(2).astype(object).fillna("–")

# %% [markdown]
# ## Identical defects
#
# The right panel is the hard limit of the idea. With $q$ of the images sharing one defect, each of its patches has about $qN$ near
# look-alikes. As soon as they fill the 30 % of Eq. 2, the defect's score is as low as a normal patch's; and beyond half, the images
# *without* it are the odd ones.
#
# The detector of {py:mod}`musc.scoring.consistency` uses what is left: such a patch is near to a **few** images and far from **all** others, so its sorted
# distances have a gap, and all images on the near side name the same set.

# %% mystnb={"figure": {"caption": "Sorted distances of Eq. 1 of one patch each, where 40 % of the images share a defect: the gap stands after the images that share it.", "name": "fig-fails-gap"}, "image": {"alt": "A smooth curve for a normal patch, a curve with a step for a patch of the shared defect."}}
share = 0.4 if (products[0], 0.4) in corrections else 0.3
example = next((p for p in products if corrections[p, share][4]), products[0])
rows, labels, plain, better, groups = corrections[example, share]
mean_distance = without_own(pools[example], rows).mean(dim=0)
change = better - plain
bad = int(
    change.amax(dim=1).argmax()
)  # the image that the correction raises most
patch = int(change[bad].argmax())
ordinary = int(plain[0].argsort()[plain.shape[1] // 2])
figure, ax = plt.subplots(figsize=(5.4, 3), layout="constrained")
rank = np.arange(1, len(rows))
for image, where, colour, name in (
    (bad, patch, figures.ORANGE, "patch of the shared defect"),
    (0, ordinary, figures.BLUE, "normal patch"),
):
    values = mean_distance[image, :, where].sort().values
    ax.plot(rank, values, marker="o", ms=4, color=colour, label=name)
ax.axvspan(1, int(0.3 * (len(rows) - 1)), color="0.5", alpha=0.15, lw=0)
ax.set_xlabel("rank of the other image (grey: the 30 % of Eq. 2)")
ax.set_ylabel("distance, mean over\nstages and degrees")
ax.set_ylim(0, None)
ax.spines[["top", "right"]].set_visible(False)
_ = ax.legend(frameon=False)
for note in consistency.describe(groups, [f"image {i}" for i in rows]):
    print(example.replace("_", " ") + ":", note)

# %% [markdown]
# With `MuScConfig(consistency="warn")`, or `musc run photos/ --consistency warn`, a run says this in its notes. With `"correct"` the patches concerned are
# scored over the images *outside* their group, which is the dashed curve above. It mends wood and bottle tops up to 40 %,
# and capsules a little. From half of the bottle tops on it takes the *good* ones for the group, and turns their ranking round. The wood, plain and corrected:

# %% mystnb={"figure": {"caption": "Images that share a defect, their maps by the plain method, and corrected.", "name": "fig-fails-corrected"}, "image": {"alt": "Defective images in the first row; dark maps below; corrected maps with a bright spot at the defect."}}
shown = [0, *range(len(rows) - 3, len(rows))]
mixed = datasets.load_category(
    "synthetic", None, example, good=good, defects=defects, train=0
).samples
same = datasets.load_category(
    "synthetic", None, example, good=0, defects=planted, train=0,
    same_defect=1.0,
).samples  # fmt: skip
everything = [
    *(s for s in mixed if not s.label), *(s for s in mixed if s.label), *same
]  # fmt: skip
chosen = [everything[int(rows[i])] for i in shown]
side = round(plain.shape[1] ** 0.5)
figures.panels(
    [
        figures.as_seen(chosen, 224),
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
# warned of ({py:mod}`musc.scoring.consistency` has the numbers), so read the warning as a question. And at **60 %** the defect is the majority. By
# frequency it *is* the normal state; nothing short of a label or a reference image can say otherwise (third exercise).
#
# ## A threshold, with and without the correction
#
# A threshold from scores alone ([chapter 7](07_your_own_images.ipynb)) inherits the problem: what is not scored high is not flagged.

# %% mystnb={"figure": {"caption": "Image scores, sorted, and the robust threshold: plain and corrected, for the same images.", "name": "fig-fails-threshold"}, "image": {"alt": "Two panels of sorted points with a horizontal line; corrected defective images lie above it."}}
from musc.results.thresholds import robust

figure, axes = plt.subplots(
    1, 2, figsize=(8, 2.9), sharey=True, layout="constrained"
)
for ax, patch_scores, title in (
    (axes[0], plain, "plain"),
    (axes[1], better, "corrected"),
):
    image_scores = patch_scores.amax(dim=1).numpy()
    line = robust(image_scores)
    order = image_scores.argsort()
    truth = labels.numpy()[order]
    places = np.arange(len(order))
    for kind, colour, marker in (
        (False, figures.BLUE, "o"),
        (True, figures.ORANGE, "^"),
    ):
        name = "defective" if kind else "normal"
        ax.scatter(
            places[truth == kind], image_scores[order][truth == kind],
            color=colour, marker=marker, label=name,
        )  # fmt: skip
    ax.axhline(line.value, color="0.4", ls="--", label="robust threshold")
    flagged = image_scores >= line.value
    hits = int((flagged & labels.numpy()).sum())
    alarms = int((flagged & ~labels.numpy()).sum())
    print(
        f"{title}: {hits} of {int(labels.sum())} defective images flagged, {alarms} false alarms"
    )
    ax.set_title(title, fontsize=10)
    ax.set_xlabel("images, sorted")
    ax.spines[["top", "right"]].set_visible(False)
axes[0].set_ylabel("image score")
_ = axes[0].legend(frameon=False, fontsize=9)

# %% [markdown]
# ## Random orientation, misaligned parts, another light
#
# The backbone sees a turned part as something else, so that turned parts find fewer look-alikes (Tab. 12 of the paper: screws). The synthetic set
# has the screw twice, lying as a feeder lays it and thrown at random.

# %%
turned = {}
for name in ("screw", "screw_random"):
    found = []
    for seed in (0, 1):
        parts = datasets.load_category(
            "synthetic", None, name, good=few, defects=few, train=0, seed=seed
        ).samples
        full = all_distances(parts)
        labels = torch.tensor([s.label for s in parts])
        found.append(auroc(labels, scores(full, np.arange(len(parts)))))
    turned[name] = np.mean(found)
print("image AUROC, mean of two seeds:")
print(pd.Series(turned).round(2).to_string())

# %% [markdown]
# Eq. 1 searches everywhere, so a moved part should cost nothing. It costs, though: a shift by a fraction of a patch cuts the part into
# other patches, and the tokens also know where they are. Brightness, on the other hand, is mostly taken out by the LayerNorm of [LNAMD](02_lnamd.ipynb).
# Every image below gets its own random shift or lamp, up to the given strength; the lamp also lights one side more than the other.

# %% mystnb={"figure": {"caption": "Image AUROC when every image is shifted, or lit from the side, at random; strength as a share of the picture's width, or of its brightness. Dashed: only patches within one patch of the same place are compared.", "name": "fig-fails-shift"}, "image": {"alt": "Two panels of curves over the strength of the disturbance."}}
strengths = [0.0, 0.02, 0.05, 0.1, 0.2]
disturbed = {}
base = datasets.load_category(
    "synthetic", None, "bottle_top", good=few + 3, defects=few + 1, train=0
).samples
labels = torch.tensor([s.label for s in base])
ways = np.random.default_rng(1).uniform(-1, 1, (len(base), 2))
for strength in strengths:
    moved = [
        altered.shifted(s, *(strength * w).tolist())
        for s, w in zip(base, ways, strict=True)
    ]
    lit = [
        altered.lit(s, 1 + strength * float(w[0]), 2 * strength * float(w[1]))
        for s, w in zip(base, ways, strict=True)
    ]
    rows = np.arange(len(base))
    disturbed["shift", strength] = auroc(
        labels, scores(all_distances(moved), rows)
    )
    disturbed["shift, window 1", strength] = auroc(
        labels, scores(all_distances(moved, position_window=1), rows)
    )
    disturbed["light", strength] = auroc(
        labels, scores(all_distances(lit), rows)
    )
figure, axes = plt.subplots(
    1, 2, figsize=(8, 2.9), sharey=True, layout="constrained"
)
for ax, key in zip(axes, ("shift", "light"), strict=True):
    ax.plot(
        strengths, [disturbed[key, s] for s in strengths], "o-", label="plain"
    )
    ax.set_xlabel(f"strength of the {key}")
    ax.spines[["top", "right"]].set_visible(False)
axes[0].plot(
    strengths,
    [disturbed["shift, window 1", s] for s in strengths],
    "s--",
    label="position window 1",
)
axes[0].legend(frameon=False, fontsize=9)
_ = axes[0].set_ylabel("image AUROC")

# %%
pd.Series(disturbed).unstack().round(2)

# %% [markdown]
# ## The right part in the wrong place
#
# Eq. 1 looks for a look-alike *anywhere*. That is why parts need no alignment, and why a part that belongs elsewhere passes: on the last
# board, a ceramic capacitor was soldered where a resistor belongs, and every board has such capacitors elsewhere. If the parts are aligned, compare only
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


boards = datasets.load_category(
    "synthetic", None, "board", good=few, defects=0, train=0
).samples
swapped = altered.copied(
    boards[-1], box(-0.16, 0.52), box(-0.50, 0.52)[:2], "swapped"
)
boards = [*boards[:-1], swapped]
fine = MuSc(config.replace(image_size=224, stages=(2, 3, 4)))
features = fine.features(boards)
by_window = {
    w: msm.mutual_scores(
        features.patch_tokens,
        (1, 3),
        grid=features.grids[0],
        position_window=w,
    )
    for w in (1, 2, 4, 8, np.inf)
}
contrast = {
    str(w): float(s[-1].max() / s[:-1].amax(dim=1).max())
    for w, s in by_window.items()
}
print("score of the swapped board / highest score of a normal one, by window")
print(pd.Series(contrast).round(2).to_string())

# %% mystnb={"figure": {"caption": "The board with the wrong part (outlined) and a normal one: plain maps, and with a window of one patch. One colour scale.", "name": "fig-fails-window"}, "image": {"alt": "Two boards; the plain map is dark at the wrong part, the windowed map is bright there."}}
grid = features.grids[0]
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

# %% [markdown]
# With windows of one or two patches the board stands out. With four it hardly does: the next capacitor is less than five patches away, and vouches
# again. So take the window a little wider than parts move, and narrower than equal parts are apart. With shifted parts it compares different things.
#
# ## Small defects in large images
#
# Squashed to the network's input, a large picture loses its small defects. `MuScConfig(tiles=4)`, or `--tiles 4`, cuts every image into
# $4 \times 4$ tiles that overlap by a quarter, scores the tiles at each position among the images, and blends their maps with weights that sum to one, so that
# no seam shows. `tile_pool="all"` searches all tiles of the other images instead, at sixteen times the cost, for parts that are not aligned.

# %%
workplace = tempfile.TemporaryDirectory()
folder = Path(workplace.name)
plates = datasets.load_category(
    "synthetic", None, "leather", good=max(few - 2, 3), defects=0, train=0,
    size=640,
).samples  # fmt: skip
plates = [*plates[:-1], altered.dotted(plates[-1], (0.62, 0.31), 9)]
files = []
for number, plate in enumerate(plates):
    files.append(folder / f"{number}.png")
    read_image(plate.image).save(files[-1])
squashed = musc.run(files)
tiled = MuSc(config.replace(tiles=4)).run(files)
for name, run in (("squashed", squashed), ("4 x 4 tiles", tiled)):
    raw = run.raw_image_scores
    print(
        f"{name}: maps of {run.anomaly_maps.shape[1]} px; spotted plate / highest normal one = {raw[-1] / raw[:-1].max():.2f}"
    )

# %% mystnb={"figure": {"caption": "A plate of 640 pixels with a spot of nine, and a normal one; the map of the squashed image, and of 4 x 4 tiles. Each row has its own scale: bright is the row's largest value.", "name": "fig-fails-tiles"}, "image": {"alt": "The squashed map shows no spot, the tiled map shows one at the right place."}}
shown = [len(plates) - 1, 0]
pictures = [np.asarray(read_image(files[i])) for i in shown]
mask = np.asarray(read_image(plates[-1].mask))[..., 0] > 0
scaled = [
    [run.anomaly_maps[i] / run.anomaly_maps.max() for i in shown]
    for run in (squashed, tiled)
]
figures.panels(
    [pictures, *scaled],
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
narrow = msm.mutual_scores(
    features.patch_tokens, (1, 3), grid=features.grids[0], position_window=0
)
highest = {
    "0": float(narrow[:-1].max()),
    **{str(w): float(s[:-1].max()) for w, s in by_window.items()},
}
print(pd.Series(highest, name="highest normal score").round(3).to_string())
assert highest["0"] >= highest["1"] >= highest["inf"]

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
mixed = datasets.load_category(
    "synthetic", None, products[-1], good=n_good + 4, defects=0, train=0
).samples
same = datasets.load_category(
    "synthetic", None, products[-1], good=0, defects=n_bad, train=0,
    same_defect=1.0,
).samples  # fmt: skip
tokens = musc.features([*mixed[:n_good], *same])
known = musc.features(mixed[n_good:])
labels = torch.tensor([0] * n_good + [1] * n_bad)
alone = msm.mutual_scores(tokens.patch_tokens, (1, 3))
with_known = msm.mutual_scores(
    tokens.patch_tokens, (1, 3), references=known.patch_tokens, pool=0
)
print(f"AUROC without references: {auroc(labels, alone):.2f}")
print(f"AUROC by four normal references: {auroc(labels, with_known):.2f}")

# %% [markdown]
# Four images that are *known* to be normal say what no number of unlabeled ones can: which side of the gap is the defect.
#
# ````{solution-end}
# ````
#
# ## Summary
#
# - One image cannot be scored, and two blame each other; few images cost certainty.
# - Many *different* defects do less harm than the *same* defect in more than 30 % of the images, which vouches for itself.
# - `consistency="warn"` finds such groups by the gap in their distances, `"correct"` scores them by the others. A majority defect stays normal.
# - Parts in wrong places need `position_window`, small defects in large images `tiles`; a threshold sees only what the scores see.
# - Turned parts and uneven light are not repaired here: align the parts and fix the lamp, or choose a backbone that does not mind.
#
# **What next**: [some normal images, and streams of new ones](09_few_shot.ipynb).
