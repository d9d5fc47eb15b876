# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
#   musc:
#     minutes: 35
#     smoke:
#       categories: [weave, tile]
#       limit: 5
# ---

# %% [markdown]
# # Patch tokens and class tokens
#
# :::{admonition} In this chapter
# - You know what a frozen vision transformer gives for an image: patch tokens at several stages, and one class token.
# - You have seen patch tokens as a picture, and found a patch's nearest relatives in other images.
# - You have checked that class tokens tell products apart, and can say what MuSc uses each kind for.
#
# **Time**: 15 minutes to read, 20 for the exercises. **Needs**: [the data](00_problem_and_data.ipynb).
# :::
#
# MuSc trains nothing on the images that it judges. All that it knows about pictures comes from a network that was trained
# before. In the paper that is CLIP's ViT-L/14-336 {cite}`radford2021clip`, trained on photographs and their captions and
# on nothing about defects. Without a download these pages use a small **embedded** network, and it is another matter: it was
# trained *on mutual scoring itself*, on drawn surfaces with drawn defects, of other generators than the products here
# ([its card](../book/embedded.md)). So the demo shows how the method works and is no evidence of how well it works with a
# network that never saw a defect.
#
# A vision transformer {cite}`dosovitskiy2020image` cuts an image into $M$ square patches and turns each into a vector, a
# **patch token**. In every block, each token takes in something of all others. One more token belongs to no patch and
# ends up describing the image: the **class token**.
#
# | Paper | Code | Shape |
# |:------|:-----|:------|
# | $F_i$ at stage $l$: patch tokens | `tokens.patch_tokens[l]` | `[N, M, C]` |
# | $p_{i,l}^m$: patch $m$ of image $i$ | `tokens.patch_tokens[l][i, m]` | `[C]` |
# | $\mathcal{F}_i$: class token | `tokens.class_tokens[i]` | `[D]` |
# | stages $l \in \{1, \dots, L\}$ | `MuScConfig.stages`: blocks, counted from 1 | four by default |

# %% tags=["parameters"]
profile = "demo"  # "demo": the synthetic data set; "paper": a data set on disk
data_root = None  # folder of MVTec AD, VisA or BTAD, for the profile "paper"
categories = ["bottle_top", "capsule", "leather", "tile", "weave", "wood"]
limit = 6  # images per category
backbone = "procedural"

# %%
from dataclasses import replace
from math import ceil
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F

from musc import MuSc, MuScConfig, datasets
from musc.results import figures
from musc.verdicts import verdict

# %matplotlib inline

# %%
layout = "synthetic" if profile == "demo" else None
products = datasets.load(data_root and Path(data_root), layout, categories)
products = [
    replace(p, samples=p.samples[:: ceil(len(p) / limit)]) for p in products
]

musc = MuSc(MuScConfig(backbone=backbone))
tokens = {p.name: musc.features(p.samples) for p in products}
network = musc.backbone
first = tokens[products[0].name]
print(
    f"profile {profile}, backbone {backbone}: {network.image_size} px,",
    f"patches of {network.spec.patch_size} px, blocks {network.stages}",
)
pd.DataFrame(
    {
        f"stage {n + 1}": {"patch tokens": list(t.shape), "grid": list(g)}
        for n, (t, g) in enumerate(
            zip(first.patch_tokens, first.grids, strict=True)
        )
    }
)

# %% [markdown]
# Images are squashed to the network's square, without cropping. The blocks are divided into four stages, and the tokens after the
# last block of each are kept. The paper's network has 24 blocks, so 6, 12, 18 and 24.
#
# ## Patch tokens as a picture
#
# A token has many channels; three can be shown. Take the first three principal components of all tokens of a stage, and use
# them as red, green and blue. **Equal colour means similar token**; which colour it is means nothing.

# %% mystnb={"figure": {"caption": "One image per product and its patch tokens at four stages. Components are computed per product and stage.", "name": "fig-tokens-pca"}, "image": {"alt": "Rows of products; beside each image four coloured grids in which parts of the product appear."}}
shown = products[:4]
rows, names = [], []
for product in shown:
    found = tokens[product.name]
    labels = [s.label for s in found.samples]
    n = labels.index(1) if 1 in labels else 0
    stages = [
        figures.pca_rgb(t, g)[n]
        for t, g in zip(found.patch_tokens, found.grids, strict=True)
    ]
    picture = figures.as_seen([found.samples[n]], network.image_size)[0]
    rows.append([picture, *stages])
    names.append(product.name.replace("_", " "))
titles = [["image", *(f"stage {s}" for s in range(1, len(first.grids) + 1))]]
figures.panels(
    rows,
    titles=titles + [[]] * (len(rows) - 1),
    names=names,
    side=1.7,
)

# %%
context = {}
for product in products:
    found = tokens[product.name]
    H, W = found.grids[0]
    for n, t in enumerate(found.patch_tokens, 1):
        on_grid = F.normalize(t, dim=-1).reshape(len(t), H, W, -1)
        beside = (on_grid[:, :, 1:] * on_grid[:, :, :-1]).sum(dim=-1).mean()
        context[product.name, f"stage {n}"] = float(beside)
context = pd.Series(context).unstack()
context.rename_axis("cosine of neighbours").round(3)

# %% tags=["remove-input"]
first_stage, last_stage = context.iloc[:, 0], context.iloc[:, -1]
more = int((last_stage > first_stage).sum())
verdict(
    "Nobody told the network what a bottle top is, and yet its parts have their colours. Stages differ "
    "in how much a token has taken in from the rest of the image: the mean cosine of a token with "
    f"the one beside it is {first_stage.mean():.3f} at the first stage and {last_stage.mean():.3f} "
    f"at the last, and larger at the last for {more} of {len(context)} products.",
    last_stage.mean() > first_stage.mean(),
    more > len(context) / 2,
)

# %% [markdown]
# Some defects show as odd spots, some do not: three components out of so many channels are only a glimpse.
#
# ## Whose patch is it?
#
# MuSc asks of a patch: is there one like it in another image? Choose a patch, and look at the cosine with every patch of other images. The
# square marks the nearest.

# %% tags=["hide-input"] mystnb={"figure": {"caption": "A chosen patch (top left, square) and its similarity to all patches of itself and three other images, at the second stage. Squares: the nearest.", "name": "fig-tokens-nearest"}, "image": {"alt": "Four images above, four similarity maps below, the best match marked in each."}}
product = products[0]
found = tokens[product.name]
stage, grid, size = 1, found.grids[1], network.image_size
H, W = grid
query = (int(0.5 * H), int(0.62 * W))  # row, column of the chosen patch
unit = F.normalize(found.patch_tokens[stage], dim=-1)
chosen = unit[0, query[0] * W + query[1]]
cosine = (unit[:4] @ chosen).reshape(-1, H, W)

pictures = figures.as_seen(found.samples[:4], size)
figure, axes = plt.subplots(
    2, len(pictures), figsize=(8.4, 4.3), layout="constrained", squeeze=False
)
for n, picture in enumerate(pictures):
    y, x = divmod(int(cosine[n].argmax()), W)
    axes[0, n].imshow(picture, extent=(0, W, H, 0))
    heat = axes[1, n].imshow(
        cosine[n],
        cmap=figures.CMAP,
        vmin=float(cosine.min()),
        vmax=1,
        extent=(0, W, H, 0),
    )
    for ax in axes[:, n]:
        for width, colour in ((3.5, "black"), (1.8, "cyan")):
            ax.add_patch(
                plt.Rectangle(
                    (x - 0.5, y - 0.5), 2, 2, fill=False, ec=colour, lw=width
                )
            )
        ax.set_xticks([])
        ax.set_yticks([])
    title = "chosen" if n == 0 else f"nearest: {float(cosine[n].max()):.3f}"
    axes[0, n].set_title(title, fontsize=9)
_ = figure.colorbar(heat, ax=axes[1], label="cosine", shrink=0.9)

# %% [markdown]
# Nothing in Eq. 1 binds the search to a position. Where does the nearest patch of another image lie, then?

# %%
places = {}
for p in products:
    u = F.normalize(tokens[p.name].patch_tokens[stage], dim=-1)  # [n, M, C]
    H, W = tokens[p.name].grids[stage]
    at = torch.cat(
        [
            (a @ b.T).argmax(dim=1)
            for n, a in enumerate(u)
            for m, b in enumerate(u)
            if n != m
        ]
    ).reshape(-1, H * W)
    here = torch.arange(H * W)
    away = torch.maximum((at // W - here // W).abs(), (at % W - here % W).abs())
    places[p.name] = {
        "within 2 patches": float((away <= 2).float().mean()),
        "3 to 5": float(((away > 2) & (away <= 5)).float().mean()),
        "farther than 5": float((away > 5).float().mean()),
    }
places = 100 * pd.DataFrame(places).T
places.rename_axis("nearest patches [%]").round(0)

# %% tags=["remove-input"]
far = places["farther than 5"].sort_values()
verdict(
    f"That depends on the product. Of {far.index[0].replace('_', ' ')} {far.iloc[0]:.0f} % of the nearest patches "
    f"lie more than five patches from the same place, of {far.index[-1].replace('_', ' ')} "
    f"{far.iloc[-1]:.0f} %.",
    far.iloc[0] < 20,
    far.iloc[-1] > 40,
)

# %% [markdown]
# On a texture a patch has relatives everywhere. On an object the relative is the same part of the other object, and tokens
# that know their place and surroundings find it where they expect it. So MuSc asks for no alignment as a step of its own, but
# images whose parts lie in the same place are easier: [chapter 8](08_when_it_fails.ipynb) shifts and turns the parts and
# measures what it costs. Where parts *are* aligned, comparing near the same place only is faster and can help
# (`position_window`).
#
# ## Class tokens
#
# The class token says what the picture shows as a whole. The cosines of all images with all others, product by product:

# %% mystnb={"figure": {"caption": "Cosine of class tokens; each block on the diagonal is a product.", "name": "fig-tokens-class"}, "image": {"alt": "Matrix of cosines, six products: bright square blocks on the diagonal for bottle tops and capsules, fainter ones for the textures."}}
every = torch.cat([tokens[p.name].class_tokens for p in products])
owner = np.repeat(
    [p.name for p in products], [len(tokens[p.name]) for p in products]
)
similarity = F.normalize(every, dim=-1) @ F.normalize(every, dim=-1).T

figure, ax = plt.subplots(figsize=(6, 4.6), layout="constrained")
shown = ax.imshow(similarity, cmap="cividis", vmax=1)
bounds = np.cumsum([0] + [len(tokens[p.name]) for p in products])
for bound in bounds[1:-1]:
    ax.axhline(bound - 0.5, color="white", linewidth=0.8)
    ax.axvline(bound - 0.5, color="white", linewidth=0.8)
middles = (bounds[:-1] + bounds[1:] - 1) / 2
ax.set_yticks(middles, [p.name.replace("_", " ") for p in products])
ax.set_xticks([])
ax.set_xlabel("image, in the same order")
_ = figure.colorbar(shown, ax=ax, label="cosine of class tokens")

# %%
others = similarity.clone().fill_diagonal_(-1)
own = (owner[others.argmax(dim=1).numpy()] == owner).mean()
by_chance = np.mean([(owner == o).sum() - 1 for o in owner]) / (len(owner) - 1)
print(f"nearest image is of the same product: {100 * own:.0f} %")
print(f"by chance: {100 * by_chance:.0f} %")

# %% tags=["remove-input"]
same = owner[:, None] == owner
off = ~np.eye(len(owner), dtype=bool)
values = similarity.numpy()
verdict(
    f"Two images of one product have a mean cosine of {values[same & off].mean():.2f}, two of different "
    f"products {values[~same].mean():.2f}, and the nearest image is of the same product in "
    f"{100 * own:.0f} % of cases, by chance in {100 * by_chance:.0f} %: class tokens tell products "
    "apart.",
    values[same & off].mean() > values[~same].mean(),
    own > 0.9,
    by_chance < 0.3,
)

# %% [markdown]
# MuSc works inside one product, so it needs finer differences than these: whether normal images are closer to normal ones. The class token is
# used for that alone, in [RsCIN](04_rscin.ipynb). Patch tokens do all the rest.
#
# ## Exercises
#
# ```{exercise} How many numbers?
# :label: ex-tokens-size
#
# How many patch tokens, and how many numbers in all, does one image have here over all stages? How many with the paper's network,
# 518 px, patches of 14 px, four stages, 1024 channels? How much memory do 200 such images take in float16?
# ```
#
# ````{solution-start} ex-tokens-size
# :class: dropdown
# ````

# %% tags=["solution"]
here = sum(t[0].numel() for t in first.patch_tokens)
M = (518 // 14) ** 2
paper = 4 * M * 1024
count = first.patch_tokens[0].shape[1]
gib = 200 * paper * 2 / 2**30
print(f"here: {count} tokens per stage, {here:,} numbers")
print(
    f"paper: {M} tokens per stage, {paper:,} numbers, 200 images {gib:.1f} GiB"
)

# %% [markdown]
# ````{solution-end}
# ````
#
# ```{exercise} How far does a token see?
# :label: ex-tokens-context
#
# A token describes its patch and, through attention, its surroundings. Paint one patch of an image black. How much do the tokens of
# *other* patches change at each stage, relative to that of the painted one?
# ```
#
# ````{solution-start} ex-tokens-context
# :class: dropdown
# ````

# %% tags=["solution"]
from musc.datasets.images import preprocess, read_image

image = preprocess(
    read_image(found.samples[0].image),
    network.image_size,
    network.mean,
    network.std,
    network.interpolation,
)

# %% tags=["solution"]
painted = image.clone()
side = network.spec.patch_size
y, x = (query[0] * side, query[1] * side)
painted[:, y : y + side, x : x + side] = -2
before, after = (
    network(i[None].to(network.device)).patch_tokens for i in (image, painted)
)
m = query[0] * W + query[1]
spread = {}
ys, xs = torch.arange(H * W) // W, torch.arange(H * W) % W
away = torch.maximum((ys - query[0]).abs(), (xs - query[1]).abs())
for n, (b, a) in enumerate(zip(before, after, strict=True)):
    change = (a - b)[0].norm(dim=-1)
    spread[f"stage {n + 1}"] = {
        name: 100 * float(change[where].mean() / change[m])
        for name, where in (
            ("beside it", away == 1),
            ("2 to 5 patches away", (away >= 2) & (away <= 5)),
            ("farther", away > 5),
        )
    }
spread = pd.DataFrame(spread).T
spread.rename_axis("change, % of the painted token's").round(1)

# %% tags=["solution", "remove-input"]
near, rest = spread["beside it"], spread["farther"]
verdict(
    "Every token knows a little of other patches, above all of its neighbours: those beside the painted "
    f"one change by {near.iloc[0]:.0f} % as much as it does at the first stage and by "
    f"{near.iloc[-1]:.0f} % at the last, those farther than five patches by {rest.iloc[0]:.1f} % and "
    f"{rest.iloc[-1]:.1f} %. So a defect shines into its surroundings, and the anomaly map is wider "
    "than the defect.",
    (near > rest).all(),
    rest.max() < 100,
)

# %% [markdown]
# ````{solution-end}
# ````
#
# ```{exercise} Does a defect move the class token?
# :label: ex-tokens-defect
#
# For each product, compare the mean cosine between two normal images with the mean between a normal and an anomalous one. In which products
# could the class token help to classify?
# ```
#
# ````{solution-start} ex-tokens-defect
# :class: dropdown
# ````

# %% tags=["solution"]
rows = {}
for p in products:
    f = tokens[p.name]
    label = np.array([s.label for s in f.samples])
    c = F.normalize(f.class_tokens, dim=-1)
    w = (c @ c.T).numpy()
    good = w[np.ix_(label == 0, label == 0)]
    pairs = good[~np.eye(len(good), dtype=bool)]  # without each with itself
    if not len(pairs):
        continue
    mixed = w[np.ix_(label == 0, label == 1)]
    rows[p.name] = {
        "normal, normal": pairs.mean(),
        "normal, anomalous": mixed.mean(),
        "spread": w[~np.eye(len(w), dtype=bool)].std(),
    }
rows = pd.DataFrame(rows).T
rows["gap / spread"] = (rows.iloc[:, 0] - rows.iloc[:, 1]) / rows["spread"]
rows.round(3)

# %% tags=["solution", "remove-input"]
ranked = rows["gap / spread"].sort_values()
verdict(
    f"The gap is largest for {ranked.index[-1].replace('_', ' ')}, {ranked.iloc[-1]:.1f} times the spread "
    f"of all cosines: there normal images are closer to each other than to defective ones, which is what RsCIN needs. For "
    f"{ranked.index[0].replace('_', ' ')} it is {ranked.iloc[0]:.1f}: the defects do not move the "
    "class token away from normal ones. These are few images; [chapter 4](04_rscin.ipynb) "
    "takes more.",
    ranked.iloc[-1] > 0.5,
    ranked.iloc[0] < 0.2,
)

# %% [markdown]
# ````{solution-end}
# ````
#
# ## Summary
#
# - A frozen ViT gives, per image, $M$ patch tokens at each of four stages and one class token.
# - Similar tokens mean similar patches, within an image and across images. Nothing forces a match to lie at the same place;
#   how far away it does lie depends on the product.
# - Patch tokens serve to find defects; class tokens find images that resemble each other as a whole.
#
# **What next**: [LNAMD](02_lnamd.ipynb) lets patch tokens describe more than one patch.
