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
#       limit: 8
# ---

# %% [markdown]
# # RsCIN: ask your nearest images
#
# :::{admonition} In this chapter
# - You can draw the graph of Eq. 4-5 and work out a re-scoring of five images by hand.
# - You know what a window counts, why the image itself is in it, and what the min-max does.
# - You measure on class tokens how often an image's nearest neighbours are of its own kind: all that RsCIN can give.
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
# | $M_k(i, j) = 1$ if $I_j \in \mathcal{N}_k(I_i)$, else 0 (Eq. 4) | `windows` | which edges are kept |
# | $D(i,i) = \sum_j (M_k \odot W)_{ij}$ | | makes each row a weighted mean |
#
# $$\hat{\mathbf{C}} = \frac{1}{K + 1}\Bigl(\sum_{k} D^{-1} (M_k \odot W)\, \mathbf{C} + \mathbf{C}\Bigr) \tag{5}$$

# %% tags=["parameters"]
profile = "demo"  # "demo": the synthetic data set; "paper": a data set on disk
data_root = None  # folder of MVTec AD, VisA or BTAD, for the profile "paper"
category = "screw"
limit = 20  # images; None: all
backbone = "procedural"
clip_tokens = None  # file of the authors' class tokens, if you have it

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
from musc.plugin.class_tokens import read_class_tokens
from musc.results import figures

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
    f"k = 2:  ({own:.3f} * {C[c]:.3f} + {other:.3f} * {C[b]:.3f}) / ({own:.3f} + {other:.3f}) = {row:.3f}"
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

# %% mystnb={"figure": {"caption": "Before and after. The speck on c is outvoted, and the faint defect of e is lifted: a threshold between them exists now.", "name": "fig-rscin-five-after"}, "image": {"alt": "Two columns of points joined by lines; after re-scoring, defective images lie above all normal ones."}}
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

# %% [markdown]
# Nothing told RsCIN which image is normal. It trusted that neighbours are of one kind. That was put into the
# angles by hand; whether it holds is a question to the backbone.
#
# ## The real graph of a category
#
# Run MuSc on a category and take its raw scores and class tokens. Row $i$ below is $W$ sorted by defect: bright blocks on the
# diagonal are kinds of defect that the class token keeps together. The dots are the image's window $k = 3$ (without itself).

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
print(
    f"profile {profile}: {len(result)} images of {result.category}, class tokens {list(class_tokens.shape)}"
)

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Cosine of class tokens, images sorted by defect; dots mark each row's two nearest images.", "name": "fig-rscin-similarity"}, "image": {"alt": "Square similarity matrix with a block per kind of defect."}}
similarity = (class_tokens @ class_tokens.T).numpy()
others = similarity.copy()
np.fill_diagonal(others, -np.inf)
closest = np.argsort(-others, axis=1)[:, :2]
kinds = list(dict.fromkeys(result.defects))
starts = [result.defects.index(kind) for kind in kinds]

figure, ax = plt.subplots(figsize=(6, 4.6), layout="constrained")
shown = ax.imshow(similarity, cmap="cividis", vmin=others[others > -1].min())
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

# %% [markdown]
# Two numbers say what RsCIN can do here: how often a nearest neighbour has the image's own label, beside how often a
# random other image would, and what the image metrics are without and with it.

# %%
labels = result.labels
same = (labels[closest] == labels[:, None]).mean()
chance = np.mean(
    [(np.delete(labels, i) == labels[i]).mean() for i in range(len(labels))]
)
print(
    f"neighbours with the image's own label: {100 * same:.1f} %, by chance {100 * chance:.1f} %"
)

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
(100 * pd.DataFrame(table).T.rename_axis("windows")).round(1)  # in percent

# %% [markdown]
# These are few images, so one that moves past another changes the AUROC by a visible step. On this product neighbours agree no more often
# than by chance, and both pairs of windows lose; over all products of the synthetic data the embedded network's class tokens lose a little
# ([its card](../book/embedded.md)): they gain on tiles and lose on boards, for states of a small part hardly move them. Two things hold for any network: windows
# help as far as neighbours agree, and a window of all images gives everyone one common value, and so the ranking without RsCIN back.
# That is why the neighbourhood is *constrained* (Tab. 5 of the paper).
#
# ## CLIP's class tokens of MVTec AD and VisA
#
# The authors publish the class tokens that CLIP gives for every test image {cite}`li2024musc,radford2021clip`. With that file (or any that
# `read_class_tokens` reads, such as a result folder), this section shows how well real neighbourhoods keep bottles apart. Run it by
# `python -m tools.notebooks execute 04 --to results -p clip_tokens=FILE`. The committed page is made without the file.

# %%
if clip_tokens is None:
    print("skipped: no file of class tokens was given (parameter clip_tokens)")
else:
    every = read_class_tokens(Path(clip_tokens).expanduser())
    key = next(k for k in every if k.rpartition("/")[2] == "bottle")
    bottles = torch.from_numpy(every[key].tokens.astype(np.float64))
    # rows in the order of sorted defect folders, as MVTec AD counts them
    folders = {
        "broken_large": 20,
        "broken_small": 22,
        "contamination": 21,
        "good": 20,
    }
    kind = np.repeat(list(folders), list(folders.values()))
    assert len(kind) == len(bottles), "not MVTec AD's 83 bottles"
    near = bottles @ bottles.T
    near.fill_diagonal_(-np.inf)
    order = near.argsort(dim=1, descending=True).numpy()
    good = kind == "good"
    agree = [
        (good[order[:, :k]] == good[:, None]).mean() for k in (1, 2, 8, 82)
    ]
    print("bottle: share of the k nearest others that have the image's label")
    print(pd.Series(agree, index=[1, 2, 8, 82]).round(3).to_string())
    noise = np.random.default_rng(0).normal(0, 0.6, len(kind))
    toy = torch.from_numpy(~good + noise)  # drawn scores, not measured ones
    for name, chosen in windows.items():
        after = image_metrics(~good, rscin.rescore(toy, bottles, chosen))
        print(f"drawn scores, windows {name}: AUROC {after['auroc']:.3f}")

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
print(
    f"median score after RsCIN: {quiet_after.median():.3f}, with the outlier {loud_after.median():.3f}"
)
print(
    f"places of the ranking that changed: without RsCIN 0, with RsCIN {changed} of {len(raw)}"
)

# %% [markdown]
# Min-max squeezes all others into a sliver near 0. Alone, this changes no ranking. But the outlier's neighbours now take over a
# share of an enormous score, and pass images whose own score is higher.
#
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
# - Windows stay small: a few neighbours denoise, all images flatten.
# - It can only be as good as the neighbourhoods are pure. It never looks at labels, and works behind any method
#   ([RsCIN after another method](../book/plugin.md)).
#
# **What next**: [the pipeline](05_pipeline.ipynb) puts the parts together.
