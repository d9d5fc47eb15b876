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
#       defects: 2
#       normal: 5
#       shots: [1, 2]
# ---

# %% [markdown]
# # Before MuSc: what a method is given
#
# :::{admonition} In this chapter
# - You know the methods that came before mutual scoring, what each of them is given, and the one idea that it adds.
# - You run six of them on the same tokens of the same product, and read off what each normal image is worth.
# - You can say which to take when there are no normal images, a few, or many.
#
# **Time**: 25 minutes to read, 15 for the exercises. **Needs**: [the problem](00_problem_and_data.ipynb), [MSM](03_msm.ipynb),
# [the metrics](06_metrics.ipynb).
# :::
#
# All methods here are built on one observation: the tokens of a network that was trained on something else already describe whether two
# patches look alike. They differ in **what they compare a patch with**.
#
# | setting | what is given | compared with | methods |
# |:--|:--|:--|:--|
# | full-shot | hundreds of normal images | a memory of normal patches | SPADE {cite}`cohen2020spade`, PaDiM {cite}`defard2021padim`, PatchCore {cite}`roth2022patchcore` |
# | few-shot | 1 to 16 normal images | the patches of these | WinCLIP+ {cite}`jeong2023winclip`, AnomalyDINO {cite}`damm2025anomalydino` |
# | zero-shot, by text | the product's name | sentences about it | WinCLIP {cite}`jeong2023winclip`, APRIL-GAN {cite}`chen2023aprilgan` |
# | zero-shot, batched | the unlabeled test images | each other | MuSc {cite}`li2024musc`, ACR {cite}`li2023acr` |

# %% tags=["parameters"]
category = "bottle_top"  # of the synthetic set
good = 14  # normal test images
defects = 8  # anomalous ones
normal = 16  # training images, all normal
shots = (1, 4, 16)  # numbers of references to try
backbone = "procedural"

# %%
import tempfile
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

from musc import MuSc, MuScConfig, compare, datasets
from musc.methods import winclip
from musc.methods.padim import PaDiM
from musc.methods.patchcore import PatchCore, greedy_coreset
from musc.methods.tokens import all_stages, distances, image_level
from musc.reproduce.paper import table
from musc.results import figures
from musc.verdicts import verdict

# %matplotlib inline

# %%
config = MuScConfig(backbone=backbone, image_size=192)
musc = MuSc(config)
product = datasets.load_category(
    "synthetic", name=category, good=good, defects=defects, train=normal
)
images = musc.features(product.samples)
normals = musc.features(product.train)
labels = np.array([sample.label for sample in product.samples])
print(
    f"{len(images)} test images, {labels.sum()} of them anomalous,"
    f" and {len(normals)} normal training images"
)

# %% [markdown]
# ## A timeline
#
# The field moved towards needing less: from hundreds of normal images to a few, to a sentence, to nothing but the images that are to be
# judged. The image AUROC on MVTec AD is the one that the paper of MuSc prints in its tables 1 and 2.

# %% mystnb={"figure": {"caption": "Methods by year of publication and by how many normal images they are given. The number is the image AUROC on MVTec AD, in percent, as Tables 1 and 2 of the paper print it.", "name": "fig-before-timeline"}, "image": {"alt": "Points by year from 2021 to 2024, in rows from all normal images down to none; each has a method's name and its image AUROC, and MuSc stands last and in the row of none."}}
years = {
    "CutPaste": 2021, "NSA": 2022, "PatchCore": 2022, "RegAD": 2022, "GraphCore": 2023,
    "WinCLIP": 2023, "APRIL-GAN": 2023, "ACR": 2023, "MuSc": 2024,
}  # fmt: skip
rows = ["0-shot", "4-shot", "8-shot", "32-shot", "full-shot"]
printed = pd.concat([table(1), table(2)]).query(
    "dataset == 'mvtec_ad' and metric == 'image_auroc' and method in @years"
)
printed = printed.drop_duplicates(["method", "setting"])
figure, ax = plt.subplots(figsize=(8, 4.2), layout="constrained")
places = printed.groupby([printed["method"].map(years), "setting"], sort=False)
for (x, setting), found in places:
    y = rows.index(setting)
    for n, (method, value) in enumerate(found[["method", "value"]].values):
        colour = figures.ORANGE if method == "MuSc" else figures.BLUE
        text = f"{method} {value:.1f}"
        ax.annotate(text, (x, y), (8, -4 - 12 * n), textcoords="offset points")
    ax.plot(x, y, "o", color=colour, markersize=8)
ax.set_yticks(range(5), ["none", "4", "8", "32", "all"])
ax.set(
    xlabel="year",
    ylabel="normal images given",
    xlim=(2020.7, 2025),
    ylim=(-0.9, 4.4),
)
ax.set_xticks(range(2021, 2025))
ax.spines[["top", "right"]].set_visible(False)

# %% tags=["remove-input"]
auroc = printed.set_index(["method", "setting"])["value"]
own = auroc["MuSc", "0-shot"]
others = auroc[
    [setting == "0-shot" and m != "MuSc" for m, setting in auroc.index]
]
full = auroc["PatchCore", "full-shot"]
verdict(
    f"Among the methods without a normal image, MuSc's {own:.1f} is the highest; the next is {others.max():.1f}. PatchCore with all"
    f" normal images stays ahead, with {full:.1f}.",
    own > others.max(),
    full > own,
)

# %% [markdown]
# ## SPADE: the nearest normal images
#
# The oldest idea asks twice. Which normal images look most like this one, as a whole (its class token)? And how far is each patch from the
# patches of just these? It needs no position and no training, only a memory of all normal images.

# %% mystnb={"figure": {"caption": "A test image and its three nearest normal images by class token, with their distances.", "name": "fig-before-spade"}, "image": {"alt": "Four pictures of the same product side by side; the first is the test image."}}
away = distances(image_level(images), image_level(normals))
query = int(np.flatnonzero(labels)[0])
nearest = away[query].argsort()[:3]
pictures = [product.samples[query], *(product.train[i] for i in nearest)]
figure, axes = plt.subplots(1, 4, figsize=(8, 2.4), layout="constrained")
titles = ["test image", *(f"distance {away[query, i]:.2f}" for i in nearest)]
for ax, picture, title in zip(
    axes, figures.as_seen(pictures, 128), titles, strict=True
):
    ax.imshow(picture)
    ax.set_title(title, fontsize=10)
    ax.axis("off")

# %% [markdown]
# ## PaDiM: a Gaussian at every place
#
# If parts always lie alike, each place has its own normal look. PaDiM describes it by a mean and a covariance of the tokens there, and
# scores by the Mahalanobis distance. The covariance knows where variety is normal. The price: a part that is shifted or turned is anomalous everywhere.

# %% mystnb={"figure": {"caption": "How much the normal tokens vary at each place (the trace of PaDiM's covariance, in its own channels), beside the mean normal image.", "name": "fig-before-padim"}, "image": {"alt": "Left, the mean of the normal images; right, a map on the patch grid that is brighter where normal images differ."}}
method = PaDiM()
tokens = all_stages(normals)
variance = tokens[..., method.rows(tokens.shape[2])].var(dim=0).sum(dim=1)
grid = normals.grids[0]
figure, axes = plt.subplots(1, 2, figsize=(6.4, 2.9), layout="constrained")
axes[0].imshow(np.mean(figures.as_seen(product.train, 128), axis=0) / 255)
axes[0].set_title("mean normal image", fontsize=10)
shown = axes[1].imshow(variance.reshape(grid), cmap="cividis")
axes[1].set_title("variance of the tokens", fontsize=10)
figure.colorbar(shown, ax=axes[1], shrink=0.8)
for ax in axes:
    ax.axis("off")

# %% [markdown]
# ## PatchCore: a small memory
#
# PatchCore keeps patches of any place and drops those that repeat others: a greedy **coreset**, in which each new patch is the one farthest
# from all that were chosen. Its score is the distance to the nearest kept patch.

# %% mystnb={"figure": {"caption": "Normal patches on their first two principal components. Black: the coreset that PatchCore would keep, one in fifty here; it covers the rim as well as the centre.", "name": "fig-before-patchcore"}, "image": {"alt": "A cloud of grey points; black points are spread evenly over all of it, its thin outskirts included."}}
bank = PatchCore().memory(normals)
kept = greedy_coreset(bank, max(1, len(bank) // 50))
plane = (bank - bank.mean(dim=0)) @ torch.pca_lowrank(bank, q=2, niter=4)[2]
figure, ax = plt.subplots(figsize=(5, 3.6), layout="constrained")
ax.plot(
    *plane.T,
    ".",
    color="#bbbbbb",
    markersize=3,
    label=f"{len(bank)} normal patches",
)
ax.plot(
    *plane[kept].T,
    "o",
    color="black",
    markersize=3.5,
    label=f"coreset of {len(kept)}",
)
ax.set(xlabel="first component", ylabel="second component")
ax.spines[["top", "right"]].set_visible(False)
_ = ax.legend(frameon=False, fontsize=9)

# %% [markdown]
# ## AnomalyDINO: few images are enough for a good network
#
# With the tokens of DINOv2 a handful of normal images suffices, without coreset, Gaussian or training: the score of a patch is
# $1 - \cos$ to its nearest patch in the references. The same paper has a form without references, which takes the patches of all other
# test images as one large memory: the nearest relative of MuSc.
#
# ## WinCLIP: sentences as references
#
# CLIP puts images and sentences into one space. So the references can be words: "a photo of a flawless bottle" against "a photo of a damaged bottle".
# WinCLIP asks this of the whole image and of windows of 2 x 2 and 3 x 3 patches, which gives a map.

# %%
flawless, damaged = winclip.prompts(category)
print(f"{len(flawless)} sentences about a normal product, such as:")
print("\n".join(f"  {flawless[n]}" for n in (0, 40, 90)))
print(f"{len(damaged)} sentences about an anomalous one, such as:")
print("\n".join(f"  {damaged[n]}" for n in (0, 30, 60)))

# %% [markdown]
# :::{admonition} Not run here
# :class: note
# WinCLIP needs CLIP's text tower and its weights, which this book does not carry. Where they are:
# `musc evaluate DATA --method winclip --backbone ViT-B-16-plus-240`. Its windows and sentences are tested against running the tower on each window alone, with a small CLIP of random weights.
# :::
#
# ## One product, every paradigm
#
# Tokens are extracted once; each method then sees the same. SPADE, PaDiM and PatchCore get all normal training images, MuSc and the batched
# forms of AnomalyDINO and SubspaceAD (which comes [after MuSc](21_after_musc.ipynb)) get none.

# %%
workplace = tempfile.TemporaryDirectory()


def measured(methods, references):
    """The table of `musc compare`, with so many normal images."""
    pool = (
        replace(product, samples=product.train[:references])
        if references
        else None
    )
    frame = compare.compare(
        [product],
        methods,
        config,
        Path(workplace.name, "measured"),
        cache=Path(workplace.name),
        references=lambda _, method: pool,
        backbone=musc.backbone,
    )
    return frame.set_index("method")


memory = measured(["spade", "padim", "patchcore"], normal)
batched = measured(["anomalydino", "subspacead", "musc"], 0)
columns = ["setting", "image AUROC", "pixel AUROC", "pixel AP", "PRO"]
whole = pd.concat([memory, batched])
whole[columns].round(1)

# %% tags=["remove-input"]
ap, images_right = whole["pixel AP"], whole["image AUROC"]
(
    verdict(
        f"With {normal} normal images PatchCore and PaDiM rank all test images rightly ({images_right['patchcore']:.1f} and"
        f" {images_right['padim']:.1f}), and MuSc nearly all without one ({images_right['musc']:.1f}).",
        min(images_right["patchcore"], images_right["padim"])
        > images_right["musc"],
        images_right["musc"] > 90,
    )
    + verdict(
        f"Its pixel AP of {ap['musc']:.1f} is the highest of the three methods that are given nothing (AnomalyDINO"
        f" {ap['anomalydino']:.1f}, SubspaceAD {ap['subspacead']:.1f}) and below PatchCore's {ap['patchcore']:.1f}.",
        ap["musc"] > max(ap["anomalydino"], ap["subspacead"]),
        ap["musc"] < ap["patchcore"],
    )
    + verdict(
        f"SPADE's image score is the weakest ({images_right['spade']:.1f}): the class token hardly sees so small defects,"
        f" while its map is as good as the others' (pixel AP {ap['spade']:.1f}).",
        images_right["spade"] == images_right.min(),
        ap["spade"] > ap["musc"],
    )
)

# %% [markdown]
# That was one drawn product. Photographs: 88 of magnetic tiles, tokens of the network `focus_vits14`, and 16 normal tiles for those methods that need some
# (`python -m benchmarks.methods` made the table; [after MuSc](21_after_musc.ipynb) has the others, with time and memory).

# %%
photographed = pd.read_csv("../benchmarks/results/methods.csv")
photographed = photographed.query("data == 'tiles'").set_index("method")
known = ["SPADE", "PaDiM", "PatchCore", "AnomalyDINO", "MuSc"]
photographed.loc[photographed.index.isin(known), columns].round(1)

# %% [markdown]
# ## What a normal image is worth
#
# Now the same methods with one reference, and with more. MuSc needs none; where it is given some, they join its pool (few-shot MuSc, see
# [chapter 9](09_few_shot.ipynb)).

# %% mystnb={"figure": {"caption": "Image AUROC and pixel AP by the number of normal images. Dashed: MuSc and the batched form of AnomalyDINO without any.", "name": "fig-before-shots"}, "image": {"alt": "Two panels of curves over the number of references on a logarithmic axis, and two dashed level lines for the methods without references."}}
known = {
    "anomalydino": (figures.BLUE, "o"),
    "patchcore": ("#444444", "s"),
    "padim": ("#009E73", "^"),
    "musc": (figures.ORANGE, "D"),
}
curves = {
    k: measured([m for m in known if m != "padim" or k > 1], k) for k in shots
}
figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
for ax, column in zip(axes, ("image AUROC", "pixel AP"), strict=True):
    for name, (colour, marker) in known.items():
        style = {"color": colour, "marker": marker}
        values = [found[column].get(name, np.nan) for found in curves.values()]
        label = compare.registry.TITLES[name]
        ax.plot(list(curves), values, label=label, **style)
    for name in ("musc", "anomalydino"):
        ax.axhline(
            batched.loc[name, column],
            color=known[name][0],
            linestyle="--",
            linewidth=1,
        )
    ax.set_xscale("log", base=2)
    ax.set_xticks(shots, shots)
    ax.set(xlabel="normal images", ylabel=f"{column} [%]")
    ax.spines[["top", "right"]].set_visible(False)
_ = axes[1].legend(frameon=False, fontsize=9)

# %% tags=["remove-input"]
first, last = curves[shots[0]], curves[shots[-1]]
(
    verdict(
        f"PatchCore's pixel AP climbs from {first.loc['patchcore', 'pixel AP']:.1f} with {shots[0]} normal image to"
        f" {last.loc['patchcore', 'pixel AP']:.1f} with {shots[-1]}, AnomalyDINO's from {first.loc['anomalydino', 'pixel AP']:.1f}"
        f" to {last.loc['anomalydino', 'pixel AP']:.1f}.",
        last.loc["patchcore", "pixel AP"] > first.loc["patchcore", "pixel AP"],
        last.loc["anomalydino", "pixel AP"]
        > first.loc["anomalydino", "pixel AP"],
    )
    + verdict(
        f"MuSc without any ({ap['musc']:.1f}) is ahead of both with {shots[0]}: here a batch of {len(images)} unlabeled images is"
        " worth more than one image that is known to be normal.",
        ap["musc"]
        > max(
            first.loc["patchcore", "pixel AP"],
            first.loc["anomalydino", "pixel AP"],
        ),
    )
    + verdict(
        f"References change little for it ({first.loc['musc', 'pixel AP']:.1f} with {shots[0]},"
        f" {last.loc['musc', 'pixel AP']:.1f} with {shots[-1]}).",
        abs(last.loc["musc", "pixel AP"] - ap["musc"]) < 3,
    )
)

# %% [markdown]
# ## Which one to take
#
# | you have | take | because |
# |:--|:--|:--|
# | many normal images, always in the same place | PaDiM or PatchCore | a memory of normality is the strongest evidence there is |
# | many normal images, in any place or rotation | PatchCore | it compares patches wherever they lie |
# | 1 to 16 normal images, images judged one by one | AnomalyDINO | the nearest patch of a few images, no training |
# | no normal image, one image at a time, a name for the product | WinCLIP | words are all there is to compare with |
# | no normal image, but many images of one product | MuSc | most patches of the batch are normal, and say so |
# | some normal images and a batch | few-shot MuSc | the references join the pool and help against shared defects |
#
# Two limits of MuSc follow from what it is given: it must see the batch before it can judge, and a defect that most images share looks normal to it
# ([chapter 8](08_when_it_fails.ipynb)).
#
# :::{admonition} Take-away
# - All these methods compare tokens; they differ in what a patch is compared with.
# - With enough normal images a memory of them is hard to beat; with one, a batch of unlabeled images is the better memory.
# - Without any, such a batch of unlabeled images serves if most of it is normal: this is MuSc.
# :::
#
# ## Exercises
#
# ```{exercise} How many patches to keep?
# :label: ex-before-memory
#
# How many patches does PatchCore have to keep? Measure the image AUROC for coresets of 0.1 %, 1 % and 10 % of the patches.
# ```
#
# ````{solution-start} ex-before-memory
# :class: dropdown
# ````

# %% tags=["solution"]
truth = labels == 1


def image_auroc(scores):
    """Share of (anomalous, normal) pairs in the right order, in percent."""
    scores = np.asarray(scores)
    wins = scores[truth][:, None] > scores[~truth]
    return 100 * wins.mean()


sizes = {}
for fraction in (0.001, 0.01, 0.1):
    found = PatchCore(fraction=fraction).score(images, normals)
    sizes[fraction] = image_auroc(found.images)
    print(f"{fraction:5.1%} of the patches: image AUROC {sizes[fraction]:.1f}")

# %% tags=["solution", "remove-input"]
verdict(
    f"A tenth is enough here ({sizes[0.1]:.1f}); a thousandth, {len(bank) // 100} patches, is not ({sizes[0.001]:.1f}).",
    sizes[0.1] > sizes[0.001],
)

# %% [markdown]
# ````{solution-end}
# ````
#
# ```{exercise} A shifted product
# :label: ex-before-shift
#
# PaDiM compares places. Roll every test image's tokens by two patches to the right and score them again: what happens to PaDiM, and what
# to PatchCore?
# ```
#
# ````{solution-start} ex-before-shift
# :class: dropdown
# ````

# %% tags=["solution"]
rows_, cols_ = grid
shifted = replace(
    images,
    patch_tokens=[
        t.reshape(len(t), rows_, cols_, -1).roll(2, dims=2).reshape(t.shape)
        for t in images.patch_tokens
    ],
)
moved = {}
for name, method in (("PaDiM", PaDiM()), ("PatchCore", PatchCore())):
    plain, rolled = (
        method.score(x, normals).patches[grid] for x in (images, shifted)
    )
    moved[name] = float(rolled[~truth].mean() / plain[~truth].mean())
    print(f"{name}: normal patches score {moved[name]:.1f} times as high")

# %% tags=["solution", "remove-input"]
verdict(
    f"PaDiM, which compares places, scores normal patches {moved['PaDiM']:.0f} times as high; PatchCore"
    f" {moved['PatchCore']:.1f} times, since the neighbourhoods at the rim change.",
    moved["PaDiM"] > 3 * moved["PatchCore"],
)

# %% [markdown]
# ````{solution-end}
# ````
#
# ```{exercise} The class token alone
# :label: ex-before-class
#
# SPADE's first step alone, the distance of the class token to its nearest normal images, is an image score too. How good is it, and why is
# it worse on small defects?
# ```
#
# ````{solution-start} ex-before-class
# :class: dropdown
# ````

# %% tags=["solution"]
k = min(5, len(normals))
by_class = away.topk(k, dim=1, largest=False).values.mean(dim=1)
alone = image_auroc(by_class)

# %% tags=["solution", "remove-input"]
verdict(
    f"Image AUROC {alone:.1f}, where PatchCore's patches give {images_right['patchcore']:.1f}: the class token sums up the"
    " whole image, and a small defect is a small part of the sum.",
    alone < images_right["patchcore"],
)

# %% [markdown]
# ````{solution-end}
# ````
