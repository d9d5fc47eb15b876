# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
#   musc:
#     minutes: 40
#     smoke:
#       category: grid
#       limit: 12
# ---

# %% [markdown]
# # RsCIN: ask your nearest images
#
# :::{admonition} In this chapter
# - You can draw the graph of Eq. 4-5 and work out a re-scoring of five images by hand.
# - You know what a window counts, why the image itself is in it, and what the min-max does.
# - You measure how often an image's nearest neighbours have its own label, here and on CLIP's class tokens of MVTec AD and
#   VisA: all that RsCIN can build on.
#
# **Time**: 20 minutes to read, 20 for the exercises. **Needs**: [MSM](03_msm.ipynb), for the image scores.
# :::
#
# ## The problem with a maximum
#
# Mutual scoring gives image $I_i$ the largest value of its anomaly map, $c_i = \max_m \mathbf{a}_i^m$. A maximum listens to one patch. A
# speck of dust on a normal part lifts it; a faint defect leaves it low. The **class token** $\mathcal{F}_i$, one vector for the whole image,
# hardly notices the speck. So images with similar class tokens should have similar scores, and *re-scoring with constrained
# image-level neighbourhood* makes them so (Sec. 3.3).
#
# | Paper | `musc.rscin.rescore` | Meaning |
# |:------|:-----|:--------|
# | $\mathbf{C} = [c_1, \dots, c_N]^\top$ | `image_scores` | scores before, `[N]`; min-max first |
# | $W_{ij} = \mathcal{F}_i \cdot \mathcal{F}_j$ | from `class_tokens`, `[N, D]` | edge weights |
# | $M_k$ (Eq. 4) | `windows` | which edges are kept: to the $k$ nearest, $\mathcal{N}_k$ |
# | $D(i,i) = \sum_j (M_k \odot W)_{ij}$ | | makes each row a weighted mean |
#
# $$M_k(i, j) = 1 \text{ if } I_j \in \mathcal{N}_k(I_i), \text{ else } 0 \tag{4}$$
#
# $$\hat{\mathbf{C}} = \frac{1}{K + 1}\Bigl(\sum_{k} D^{-1} (M_k \odot W)\, \mathbf{C} + \mathbf{C}\Bigr) \tag{5}$$

# %% tags=["parameters"]
profile = "demo"  # "demo": the synthetic data set; "paper": a data set on disk
data_root = None  # folder of MVTec AD, VisA or BTAD, for the profile "paper"
category = "tile"
limit = None  # images; None: all
backbone = "procedural"

# %%
from dataclasses import replace
from math import ceil
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

from musc import MuSc, MuScConfig, datasets, rscin
from musc.metrics import image_metrics
from musc.plugin.agreement import agreement, clip_agreement, nearest_images
from musc.reproduce import paper
from musc.results import figures
from musc.verdicts import paper_here_why, verdict

# %matplotlib inline

# %% [markdown]
# ## Five images by hand
#
# Three parts *a*, *b*, *c* are normal, *d* and *e* have a defect. Part *c* has a speck of dust, so its score is high; the defect of *e* is
# faint, so its score is low. A threshold cannot tell them apart. Each class token here is a unit vector in the plane, written as an angle.

# %% mystnb={"figure": {"caption": "The graph of window k = 2: every image points to its nearest one. Colour and second line: the score before.", "name": "fig-rscin-five"}, "image": {"alt": "Five nodes in two groups; arrows within the groups carry similarities."}}
names = ["a", "b", "c", "d", "e"]
angles = torch.deg2rad(torch.tensor([0.0, 8.0, 20.0, 70.0, 85.0]))
tokens = torch.stack(
    [angles.cos(), angles.sin()], dim=1
).double()  # [5, 2], unit length
scores = torch.tensor([0.10, 0.20, 0.60, 0.90, 0.50], dtype=torch.float64)

C = rscin.minmax(scores)
W = tokens @ tokens.T
nearest = W.argsort(dim=1, descending=True)[:, :2]  # the image itself is first
M2 = torch.zeros(5, 5, dtype=torch.float64).scatter(1, nearest, 1.0)

places = np.array([[0.0, 0.6], [1.3, 1.3], [2.2, 0.4], [3.8, 1.2], [5.2, 0.5]])
figure, ax = plt.subplots(figsize=(7, 2.8), layout="constrained")
figures.neighbour_graph(ax, places, (M2 * W).numpy(), C.numpy(), names)

# %% [markdown]
# Before all else the scores pass a min-max: the lowest becomes 0, the highest 1. The released code does it, the paper
# does not mention it, and it changes no ranking.
#
# Now take *c* and the window $k = 2$. The window counts the image itself, so it holds *c* and its nearest image. The weighted mean of
# the two is one row of $D^{-1}(M_2 \odot W)\,\mathbf{C}$:

# %%
c, b = 2, 1
own, other = float(W[c, c]), float(W[c, b])
row = (own * C[c] + other * C[b]) / (own + other)
print(
    f"k = 2:  ({own:.3f} * {C[c]:.3f} + {other:.3f} * {C[b]:.3f})",
    f"/ ({own:.3f} + {other:.3f}) = {row:.3f}",
)

# %% [markdown]
# The whole of Eq. 5 is three lines. It is asserted equal to the package's function, which does the same without forming $M_k$:

# %%
terms = [C]  # "+ C"
for k in (2, 3):
    nearest = W.argsort(dim=1, descending=True)[:, :k]
    kept = torch.zeros_like(W).scatter(1, nearest, 1.0) * W  # M_k * W
    terms.append((kept / kept.sum(dim=1, keepdim=True)) @ C)  # D^-1 (M_k * W) C
by_hand = torch.stack(terms).mean(dim=0)

rescored = rscin.rescore(scores, tokens, windows=(2, 3))
assert torch.allclose(by_hand, rescored)
pd.DataFrame(
    {
        "score": scores,
        "C (min-max)": C,
        "k = 2": terms[1],
        "k = 3": terms[2],
        "after": rescored,
    },
    index=pd.Index(names, name="image"),
).round(3)

# %% mystnb={"figure": {"caption": "Before and after. The speck on c is outvoted, and the faint defect of e is lifted.", "name": "fig-rscin-five-after"}, "image": {"alt": "Two columns of points joined by lines; after re-scoring, defective images lie above all normal ones."}}
figure, ax = plt.subplots(figsize=(4.6, 3.2), layout="constrained")
for i, name in enumerate(names):
    colour = figures.ORANGE if name in "de" else figures.BLUE
    values = [float(C[i]), float(rescored[i])]
    ax.plot([0, 1], values, marker="o", color=colour)
    ax.annotate(name, (1.04, values[1]), va="center", fontsize=11, color=colour)
ax.plot([], [], color=figures.BLUE, marker="o", label="normal")
ax.plot([], [], color=figures.ORANGE, marker="o", label="defective")
ax.set_xticks([0, 1], ["before", "after"])
ax.set_xlim(-0.15, 1.25)
ax.set_ylabel("image score")
ax.spines[["top", "right"]].set_visible(False)
_ = ax.legend(frameon=False, loc="center", bbox_to_anchor=(0.4, 0.32))

# %% tags=["remove-input"]
gap = {
    name: float(x[[3, 4]].min() - x[[0, 1, 2]].max())
    for name, x in (("before", C), ("after", rescored))
}
verdict(
    f"Before, the highest normal score lies {-gap['before']:.2f} above the lowest "
    f"defective one; after, {gap['after']:.2f} below it: a threshold between them "
    "exists now.",
    gap["before"] < 0 < gap["after"],
)

# %% [markdown]
# Nothing told RsCIN which image is normal. It trusted that neighbours are of one kind. That was put into the
# angles by hand; whether it holds is a question to the backbone.
#
# ## The real graph of a category
#
# Run MuSc on a category and take its raw scores and class tokens. Below is $W$, the images sorted by defect. The dots are
# each image's window $k = 3$ (without itself).

# %%
layout = "synthetic" if profile == "demo" else None
product = datasets.load_category(
    layout, data_root and Path(data_root), category
)
if limit:  # every n-th, so that all kinds of defect stay
    step = ceil(len(product) / limit)
    product = replace(product, samples=product.samples[::step])
result = MuSc(MuScConfig(backbone=backbone)).run(product)
raw = torch.from_numpy(result.raw_image_scores)
class_tokens = torch.from_numpy(result.class_tokens)
labels = result.labels
print(
    f"profile {profile}: {len(result)} images of {result.category},",
    f"class tokens {list(class_tokens.shape)}",
)

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Cosine of class tokens, images sorted by defect; dots mark each row's two nearest images. White lines part the kinds.", "name": "fig-rscin-similarity"}, "image": {"alt": "Square matrix of cosines with white lines between kinds of defect; dots scatter over the whole of it."}}
similarity = (class_tokens @ class_tokens.T).numpy()
closest = nearest_images(class_tokens.numpy())[:, :2]
kinds = list(dict.fromkeys(result.defects))
starts = [result.defects.index(kind) for kind in kinds]
off = ~np.eye(len(raw), dtype=bool)

figure, ax = plt.subplots(figsize=(6, 4.6), layout="constrained")
shown = ax.imshow(similarity, cmap="cividis", vmin=similarity[off].min())
ax.scatter(
    closest.ravel(),
    np.repeat(np.arange(len(raw)), 2),
    s=16,
    color="white",
    edgecolors="black",
    linewidths=0.6,
)
for start in starts[1:]:
    ax.axhline(start - 0.5, color="white", linewidth=0.8)
    ax.axvline(start - 0.5, color="white", linewidth=0.8)
ends = [*starts[1:], len(raw)]
middles = [(s + e - 1) / 2 for s, e in zip(starts, ends, strict=True)]
ax.set_yticks(middles, [k.replace("_", " ") for k in kinds], fontsize=9)
ax.set_xticks([])
ax.set_xlabel("image, in the same order")
_ = figure.colorbar(shown, ax=ax, label="cosine of class tokens")

# %% tags=["remove-input"]
of_kind = np.array(result.defects)
alike = (of_kind[:, None] == of_kind) & off
within, between = similarity[alike].mean(), similarity[off & ~alike].mean()
spread = similarity[off].std()
verdict(
    f"No bright blocks: two images of one kind have a mean cosine of {within:.3f}, two of "
    f"different kinds {between:.3f}, a difference of {(within - between) / spread:.1f} "
    "standard deviations. What counts is the little that is there: which image is the "
    "*nearest*.",
    abs(within - between) < spread,
)

# %% [markdown]
# ## How often do neighbours agree?
#
# Two numbers say what RsCIN can do here: how often another image in the window has the image's own label, beside how often
# a random image would; and the image metrics without and with it.
# These are all images of the product at the backbone's own input size, as on [the network's card](../book/embedded.md).

# %%
N = len(result)
shares = agreement(labels, class_tokens.numpy(), (2, 3, 8, 9, N))
chance = shares.pop(N)
agree = pd.Series(shares).rename(lambda k: f"window {k}")
agree["by chance"] = chance
(100 * agree.rename("own label [%]")).round(1).to_frame()

# %%
windows = {
    "none": (),
    "{2, 3}, the default": (2, 3),
    "{8, 9}, VisA": (8, 9),
    "all images": (np.inf,),
}
table = {}
for name, chosen in windows.items():
    usable = [k for k in chosen if k == np.inf or k <= len(raw)]
    after = rscin.rescore(raw, class_tokens, usable)
    table[name] = image_metrics(labels, after)
table = 100 * pd.DataFrame(table).T.rename_axis("windows")  # in percent
table.round(1)

# %% tags=["remove-input"]
auroc = table["auroc"]
verdict(
    f"In the windows of the default a neighbour has the image's label in "
    f"{100 * shares[3]:.1f} % of cases, by chance in {100 * chance:.1f} %: neighbours agree a "
    f"little more often, and RsCIN raises the image AUROC from {auroc['none']:.1f} to "
    f"{auroc['{2, 3}, the default']:.1f}.",
    shares[3] - chance > 0.05,
    auroc["{2, 3}, the default"] - auroc["none"] > 2,
)

# %% tags=["remove-input"]
quoted = paper.table(5).query("dataset == 'visa' and metric == 'image_auroc'")
without, with_it = sorted(quoted["value"])
clip = clip_agreement()
visa = clip[clip["dataset"] == "visa"].mean(numeric_only=True)
paper_here_why(
    f"Tab. 5, on VisA with the windows 8 and 9: the image AUROC rises from {without:.1f} to "
    f"{with_it:.1f}.",
    verdict(
        f"With 8 and 9 it falls from {auroc['none']:.1f} to {auroc['{8, 9}, VisA']:.1f}.",
        auroc["{8, 9}, VisA"] < auroc["none"],
    ),
    verdict(
        f"Eight neighbours agree no more often than by chance here, {100 * shares[9]:.1f} % "
        f"against {100 * chance:.1f} %; CLIP's on VisA do in {visa['k_9']:.1f} % of cases, by "
        f"chance in {visa['chance']:.1f} %. And {N} images hold few good neighbours, where a "
        f"category of VisA has {visa['images']:.0f}.",
        abs(shares[9] - chance) < 0.03,
        visa["k_9"] - visa["chance"] > 20,
        visa["images"] > N,
    ),
)

# %% [markdown]
# On other products it is otherwise. [The network's card](../book/embedded.md) has the image AUROC of each before and after
# RsCIN: look at the neighbourhoods before you trust them.
#
# ## All images at once
#
# Why a *constrained* neighbourhood? Fig. 8 of the paper takes ever larger windows, up to all images. A window of all images
# gives image $i$ the mean of all scores, weighted by its similarities $W_{ij}$. How much does that term still differ from
# image to image?

# %%
W = (class_tokens @ class_tokens.T).double()
flat = (W / W.sum(dim=1, keepdim=True)) @ rscin.minmax(raw).double()
own = rscin.minmax(raw)
pd.DataFrame(
    {"own score": own.numpy(), "term of all images": flat.numpy()}
).describe().loc[["min", "mean", "max", "std"]].round(3)

# %% tags=["remove-input"]
ratio = float(flat.std() / own.std())
verdict(
    f"The term is not one value for everyone: it runs from {float(flat.min()):.3f} to "
    f"{float(flat.max()):.3f}. But it spreads {100 * ratio:.0f} % as far as the scores do, so it "
    "moves the ranking little, and most of what it adds is the same for all: with all images "
    f"the AUROC is {auroc['all images']:.1f}, without RsCIN {auroc['none']:.1f}.",
    flat.max() > flat.min(),
    ratio < 0.2,
    abs(auroc["all images"] - auroc["none"]) < 2,
)

# %% [markdown]
# ## CLIP's class tokens of MVTec AD and VisA
#
# The authors publish the class tokens that CLIP gives for every test image {cite}`li2024musc,radford2021clip`. From them,
# and from the order in which their code reads the images, follows how often real neighbours agree: 27 products, the windows
# of the paper. This table was computed once (`python -m benchmarks.agreement`) and comes with the package.

# %%
clip = clip_agreement()
columns = ["k_2", "k_3", "k_8", "k_9", "chance"]
clip.groupby("dataset")[["images", *columns]].mean().round(1)

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Share of images in a window that have the image's own label, for CLIP's class tokens. The grey tick is chance. Categories are sorted by window 3.", "name": "fig-rscin-clip"}, "image": {"alt": "27 rows in two panels, each with a grey tick for chance, an orange square for window 9 and a green dot for window 3; every dot lies to the right of its tick, most squares between."}}
figure, axes = plt.subplots(
    1, 2, figsize=(8.4, 4.6), layout="constrained", sharex=True
)
for ax, (name, group) in zip(axes, clip.groupby("dataset"), strict=True):
    group = group.sort_values("k_3")
    rows = np.arange(len(group))
    ax.scatter(group["chance"], rows, marker="|", s=90, color="#777777")
    ax.scatter(group["k_9"], rows, marker="s", s=26, color="#E69F00")
    ax.scatter(group["k_3"], rows, marker="o", s=34, color="#009E73")
    ax.hlines(rows, group["chance"], group["k_3"], color="#dddddd", zorder=0)
    ax.set_yticks(rows, group["category"].str.replace("_", " "), fontsize=9)
    ax.set_title({"mvtec_ad": "MVTec AD", "visa": "VisA"}[name], fontsize=10)
    ax.set_xlabel("own label [% of the window]")
    ax.spines[["top", "right"]].set_visible(False)
for label, marker, colour in (
    ("chance", "|", "#777777"),
    ("window 9", "s", "#E69F00"),
    ("window 3", "o", "#009E73"),
):
    axes[1].scatter([], [], 60, marker=marker, color=colour, label=label)
_ = figure.legend(frameon=False, loc="outside lower center", ncols=3)

# %% tags=["remove-input"]
gain3, gain9 = clip["k_3"] - clip["chance"], clip["k_9"] - clip["chance"]
low = clip.loc[gain3.idxmin()]
loss = (clip["k_3"] - clip["k_9"]).groupby(clip["dataset"]).mean()
(
    verdict(
        f"On all {len(clip)} products CLIP's neighbours agree more often than by chance in window "
        f"3, by {gain3.mean():.0f} points on average; in window 9 on "
        f"{int((gain9 > 1).sum())} of them by more than one point.",
        (gain3 > 0).all(),
    )
    + verdict(
        f"The least is {low['category']} with {low['k_3']:.1f} % against {low['chance']:.1f} %.",
        low["k_3"] > low["chance"],
    )
    + verdict(
        "Larger windows are less pure on both data sets: from window 3 to 9 the share falls by "
        f"{loss['mvtec_ad']:.1f} points on MVTec AD and by {loss['visa']:.1f} on VisA, where the "
        "categories are larger and the paper takes the wider windows.",
        loss["mvtec_ad"] > 0,
        loss["visa"] > 0,
        loss["visa"] < loss["mvtec_ad"],
    )
)

# %% [markdown]
# ## Exercises
#
# ```{exercise} What does {1} do?
# :label: ex-rscin-one
#
# What do the windows $\{1\}$ give, what the empty set, and why? Check it on the category above. What weight does an image's own
# score have with $\{2, 3\}$, if all similarities are equal?
# ```
#
# ````{solution-start} ex-rscin-one
# :class: dropdown
# ````

# %% tags=["solution"]
plain = rscin.minmax(raw)
assert torch.allclose(rscin.rescore(raw, class_tokens, (1,)), plain)
assert torch.allclose(rscin.rescore(raw, class_tokens, ()), plain)

equal = torch.ones(5, 1)  # five images with one and the same token
spike = torch.tensor([1.0, 0, 0, 0, 0])
own_weight = float(rscin.rescore(spike, equal, (2, 3))[0])
assert np.isclose(own_weight, (1 + 1 / 2 + 1 / 3) / 3)
print(f"own weight with windows 2, 3: {own_weight:.3f}")

# %% [markdown]
# A window of one is the image alone: $D^{-1} W_{ii} c_i = c_i$. So "+ C" in Eq. 5 is the window $k = 1$. With $\{2, 3\}$ the own score
# keeps a weight of $(1 + \frac12 + \frac13) / 3 = 11/18$.
#
# ````{solution-end}
# ````
#
# ```{exercise} One outlier
# :label: ex-rscin-outlier
#
# Multiply the largest raw score of the category by 100. What happens to the other images' scores after RsCIN? What happens to the
# ranking *without* RsCIN, and with it?
# ```
#
# ````{solution-start} ex-rscin-outlier
# :class: dropdown
# ````

# %% tags=["solution"]
loud = raw.clone()
loud[raw.argmax()] *= 100
quiet_after = rscin.rescore(raw, class_tokens)
loud_after = rscin.rescore(loud, class_tokens)
assert torch.equal(raw.argsort(), loud.argsort())
changed = int((quiet_after.argsort() != loud_after.argsort()).sum())
pd.DataFrame(
    {
        "as it was": [rscin.minmax(raw).median(), quiet_after.median()],
        "with the outlier": [rscin.minmax(loud).median(), loud_after.median()],
    },
    index=["median after min-max", "median after RsCIN"],
    dtype=float,
).round(3)

# %% tags=["solution", "remove-input"]
passed = int((loud_after > loud_after.median()).sum())
takes = loud_after.sort(descending=True).values
verdict(
    f"Min-max squeezes all others into a sliver near 0: their median falls from "
    f"{rscin.minmax(raw).median():.3f} to {rscin.minmax(loud).median():.3f}. Alone, this changes "
    f"no ranking. But whoever counts the outlier among its neighbours takes over a share of an "
    f"enormous score, up to {float(takes[1]):.2f}, and passes images whose own score is higher: "
    f"{changed} of {len(raw)} places of the ranking change.",
    rscin.minmax(loud).median() < rscin.minmax(raw).median() / 10,
    takes[1] > 10 * rscin.minmax(loud).median(),
    changed > 0,
)

# %% [markdown]
# ````{solution-end}
# ````
#
# ```{exercise} Tokens that are no unit vectors
# :label: ex-rscin-length
#
# DINO's class tokens are not normalised. Scale the token of image *a* of the hand-worked example by 3. Which image is now the
# "nearest" of every other one by dot product? What does `rescore` do about the image itself?
# ```
#
# ````{solution-start} ex-rscin-length
# :class: dropdown
# ````

# %% tags=["solution"]
long = tokens.clone()
long[0] *= 3
favourite = (long @ long.T).argmax(dim=1)
print(
    "largest dot product of a..e is with:", [names[int(j)] for j in favourite]
)
assert [names[int(j)] for j in favourite][:4] == ["a"] * 4
# `rescore` counts the image itself first, whatever its dot products:
assert torch.allclose(rscin.rescore(scores, long, (1,)), C)
unit = torch.nn.functional.normalize(long, dim=1)
assert torch.allclose(rscin.rescore(scores, unit), rescored)

# %% [markdown]
# A long vector is everybody's neighbour. Taking "the $k$ largest" then drops the image itself from its own window; here it always
# comes first, as Eq. 7 says. Normalising the tokens, so that $W$ is the cosine, avoids the trouble.
#
# ````{solution-end}
# ````
#
# ## Summary
#
# - An image score is a maximum and listens to one patch; RsCIN replaces it by a mean over images with similar class tokens.
# - $W$ holds similarities, $M_k$ keeps $k$ per row, the image itself included, and $D$ makes each row a mean. "+ C" is $k = 1$.
# - It can only be as good as the neighbourhoods are pure. Where neighbours agree it mends the ranking, where they do not it
#   harms; CLIP's agree on MVTec AD and VisA, the embedded network's on few products, and there in small windows only.
# - It never looks at labels, and works behind any method ([RsCIN after another method](../book/plugin.md)).
#
# **What next**: [the pipeline](05_pipeline.ipynb) puts the parts together.
