# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
#   musc:
#     minutes: 40
#     smoke:
#       categories: [weave, wood]
#       limit: 12
#       columns: 3
# ---

# %% [markdown]
# # The problem and the data
#
# :::{admonition} In this chapter
# - You can say what anomaly classification and anomaly segmentation ask for, and what "zero-shot" leaves out.
# - You know the images, defects and masks that the rest of the book works on.
# - You measure the one fact on which MuSc rests: almost every pixel of an unlabeled test set is normal, and the few that are
#   not lie in different places.
#
# **Time**: 20 minutes to read, 20 for the exercises. **Needs**: nothing; no backbone is used yet.
# :::
#
# ## A line, a camera and no labels
#
# A factory makes one product, and a camera photographs every part. Two questions are asked of each photograph $I_i$:
#
# - **Anomaly classification (AC)**: is this part defective? One score $c_i$ per image.
# - **Anomaly segmentation (AS)**: where? One score per pixel, an *anomaly map*.
#
# What may be used to answer them sets the methods apart (Fig. 1 of the paper {cite}`li2024musc`):
#
# | Setting | What is known beforehand | Example |
# |:--------|:-------------------------|:--------|
# | full-shot | hundreds of images that are known to be normal | PatchCore {cite}`roth2022patchcore` |
# | few-shot | one to some dozens of normal images | RegAD {cite}`huang2022regad` |
# | zero-shot, by prompts | words: "a photo of a damaged bottle" | WinCLIP {cite}`jeong2023winclip` |
# | zero-shot, **MuSc** | nothing but the unlabeled images themselves, $D_u = \{I_1, \dots, I_N\}$ | this book |
#
# The last row looks too good. Where does the information come from? The paper's answer: from the images that are to be
# judged. Defects are rare, and each looks different, so the test images of a product, taken together,
# already say what is normal. This chapter checks that premise on data, before any network is loaded.
#
# **What these pages are.** The committed pages use drawn images, and from the next chapter on a small network that comes with
# the package. That network was trained on mutual scoring of other drawn images ([its card](../book/embedded.md)), so what you
# see is how the method works, not how well it works on photographs. Sentences that judge ("falls", "most", "better") are
# checked against their numbers whenever a page is made; one that no longer holds stops the build.

# %% tags=["parameters"]
profile = "demo"  # "demo": the synthetic data set; "paper": a data set on disk
data_root = None  # folder of MVTec AD, VisA or BTAD, for the profile "paper"
categories = None  # names; None: all
limit = None  # images per category; None: all
columns = 4  # normal and anomalous images on a contact sheet, each

# %%
from dataclasses import replace
from io import BytesIO
from math import ceil
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import Image, display

from musc import datasets
from musc.datasets.images import image_size, read_image, read_mask
from musc.verdicts import verdict

layout = (
    "synthetic" if profile == "demo" else None
)  # None: found by looking at the folder
products = datasets.load(data_root and Path(data_root), layout, categories)
if limit:  # every n-th image, so that all kinds of defect stay
    products = [
        replace(p, samples=p.samples[:: ceil(len(p) / limit)]) for p in products
    ]
print(f"profile {profile}: {len(products)} categories of {products[0].dataset}")

# %% [markdown]
# Each product is a `Category`: a list of `Sample`s, each with its image, its label and, if it is
# anomalous, its mask. Labels and masks are there to *measure*. No part of MuSc reads them.
#
# The `demo` profile draws its images from formulas when they are asked for, so that this page needs no download:
# textures and objects with the nuisance of real inspection photographs (light, pose, noise), and defects of several kinds
# whose masks are exact. The last category turns its parts by any angle, which the paper names as the method's weak spot
# (Tab. 12).


# %% tags=["hide-input"]
def masks_of(product):
    """One [H, W] per image, True on the defect; a normal image has no such pixel."""
    drawn = image_size(
        product.samples[0].image
    )  # images that are drawn on demand have one size
    masks = []
    for sample in product:
        W, H = (
            image_size(sample.image)
            if isinstance(sample.image, Path)
            else drawn
        )
        mask = (
            np.zeros((H, W))
            if sample.mask is None
            else np.asarray(read_mask(sample.mask, (W, H)))
        )
        masks.append(mask > 0)
    return masks


masks = {product.name: masks_of(product) for product in products}


def pick(product, label, count):
    """`count` samples of that label, spread over the defect kinds."""
    chosen = [s for s in product.samples if s.label == label]
    return [
        chosen[i]
        for i in np.linspace(
            0, len(chosen) - 1, min(count, len(chosen))
        ).astype(int)
    ]


def contact_sheet(product):
    """Normal images, anomalous images, and these once more with their masks filled in."""
    normal, anomalous = pick(product, 0, columns), pick(product, 1, columns)
    figure, axes = plt.subplots(
        3,
        columns,
        figsize=(2 * columns, 6.6),
        layout="constrained",
        squeeze=False,
    )
    for ax in axes.flat:
        ax.axis("off")
    for ax, sample in zip(axes[0], normal, strict=False):
        ax.imshow(read_image(sample.image))
        ax.set_title("normal", fontsize=9)
    for above, below, sample in zip(axes[1], axes[2], anomalous, strict=False):
        image = np.asarray(read_image(sample.image).convert("RGB"))
        mask = masks[product.name][product.samples.index(sample)]
        above.imshow(image)
        above.set_title(sample.defect.replace("_", " "), fontsize=9)
        grey = image.mean(axis=2, keepdims=True).repeat(3, axis=2) / 255
        below.imshow(np.where(mask[..., None], [1.0, 0.18, 0.58], grey))
    figure.suptitle(product.name.replace("_", " "), fontsize=12)
    return figure


def show_as_photo(figure):
    """JPEG, a fifth of the size of a PNG where photographs are shown."""
    buffer = BytesIO()
    figure.savefig(buffer, format="jpeg", dpi=100, pil_kwargs={"quality": 88})
    plt.close(figure)
    display(Image(buffer.getvalue(), format="jpeg"))


# %% [markdown]
# ## A look at every product
#
# In each sheet the first row is normal, and yet no two images agree: that is the variation which a method must not report. The
# second row is anomalous; see whether you find the defects before you look at the third, where their masks are filled in.

# %% mystnb={"image": {"alt": "Per category: a row of normal images, a row of anomalous ones, and those with the defect marked."}}
for product in products:
    show_as_photo(contact_sheet(product))

# %% [markdown]
# ## How much is normal?
#
# The paper counts pixels: in the test images of MVTec AD {cite}`bergmann2019mvtec` 97.26 % are normal, in those of VisA
# {cite}`zou2022visa` 99.45 % (Sec. 1). The same count here, over all pixels of all images of a category:

# %%
counts = []
for product in products:
    anomalous = [s for s in product if s.label == 1]
    defective = sum(m.sum() for m in masks[product.name]) / sum(
        m.size for m in masks[product.name]
    )
    counts.append(
        {
            "category": product.name,
            "images": len(product),
            "normal": len(product) - len(anomalous),
            "anomalous": len(anomalous),
            "kinds of defect": len({s.defect for s in anomalous}),
            "normal images [%]": 100 * (1 - len(anomalous) / len(product)),
            "normal pixels [%]": 100 * (1 - defective),
        }
    )
counts = pd.DataFrame(counts).set_index("category")
counts.round(2)

# %%
share = float(
    counts["normal pixels [%]"].mean()
)  # categories have equal weight
image_share = float(counts["normal images [%]"].mean())
quoted = {"mvtec_ad": 97.26, "visa": 99.45}  # Sec. 1
pd.DataFrame(
    {
        "normal pixels [%]": [f"{share:.2f}", *quoted.values()],
        "source": [
            f"measured here, profile {profile}",
            "quoted from the paper",
            "quoted from the paper",
        ],
    },
    index=[products[0].dataset, *quoted],
)

# %% tags=["remove-input"]
lowest = counts["normal pixels [%]"].min()
(
    verdict(
        f"Only {image_share:.0f} % of the *images* are normal here, but {share:.1f} % of the *pixels* are. "
        f"No category has less than {lowest:.1f} %.",
        share - image_share > 20,
        lowest > 90,
    )
    + verdict(
        f"The paper counts {quoted['mvtec_ad']} and {quoted['visa']} %: the drawn defects are about as large.",
        abs(share - quoted["mvtec_ad"]) < 2,
    )
)

# %% [markdown]
# The gap is the paper's first observation, and the reason why MuSc compares patches: an anomalous image is a good witness for
# what is normal almost everywhere.
#
# ## Do defects fall on the same place?
#
# A majority of normal pixels is not enough. Were every defect to sit at one spot and to look alike, that spot would look normal.
# So average the masks of each category: the value at a pixel is the share of images that are anomalous there.

# %% mystnb={"figure": {"caption": "Share of images that are anomalous at each pixel, on one scale.", "name": "fig-mask-overlap"}, "image": {"alt": "One heat map per category, dark nearly everywhere; above each stands its largest value."}}
overlap = {}
for name, found in masks.items():
    overlap[name] = np.mean(
        [m for m in found if m.shape == found[0].shape], axis=0
    )  # images of one size

rows = -(-len(overlap) // 5)
figure, axes = plt.subplots(
    rows, 5, figsize=(8, 2.1 * rows), layout="constrained", squeeze=False
)
for ax in axes.flat:
    ax.axis("off")
for ax, (name, mean) in zip(axes.flat, overlap.items(), strict=False):
    shown = ax.imshow(
        100 * mean,
        cmap="inferno",
        vmin=0,
        vmax=100 * max(m.max() for m in overlap.values()),
    )
    title = f"{name.replace('_', ' ')}\nat most {100 * mean.max():.3g} %"
    _ = ax.set_title(title, fontsize=9)
_ = figure.colorbar(shown, ax=axes, label="anomalous [% of images]", shrink=0.9)

# %%
worst = pd.Series(
    {name: 100 * mean.max() for name, mean in overlap.items()},
    name="most at one pixel [%]",
)
worst.round(1).to_frame()

# %% tags=["remove-input"]
verdict(
    f"At any one place most images are intact, in every category: the worst pixel of all is anomalous "
    f"in {worst.max():.0f} % of the images of its category ({worst.idxmax().replace('_', ' ')}), the worst "
    f"of the median category in {worst.median():.0f} %.",
    worst.max() < 50,
)

# %% [markdown]
# Two images that are anomalous at the same place may still
# differ in what they show: a scratch does not look like a stain. Both facts together are the premise of *mutual
# scoring*: ask all other images whether they have something like this patch. A normal patch gets many a yes, a defect
# hardly any; [chapter 3](03_msm.ipynb) counts.
#
# What the premise leaves out is as important. A defect that *every second image* has is common, so it
# looks normal. Parts that are turned by arbitrary angles have fewer look-alikes. Later chapters measure both.
#
# ## Exercises
#
# ```{exercise} How many witnesses are normal?
# :label: ex-data-witnesses
#
# MuSc averages the 30 % of the other images that are most similar to a patch (Eq. 2). Suppose the worst: anomalous images
# resemble no normal patch at all. How many witnesses do the 30 % need in each category, and how many normal images are
# there? What share of the images could be anomalous before a normal patch runs out of normal witnesses?
# ```
#
# ````{solution-start} ex-data-witnesses
# :class: dropdown
# ````
#
# Of $N$ images, $N - 1$ are others, and Eq. 2 takes $K = \lfloor 0.3 (N - 1) \rfloor$ of them, at least one. A normal image has
# $N_{\text{normal}} - 1$ normal others.

# %% tags=["solution"]
witnesses = counts[["images", "normal"]].copy()
others = witnesses["images"] - 1
witnesses["needed"] = np.maximum(1, np.floor(0.3 * others)).astype(int)
witnesses["present"] = witnesses["normal"] - 1
witnesses["bearable anomalous images [%]"] = (
    100 * (others - witnesses["needed"]) / witnesses["images"]
)
witnesses["enough"] = witnesses["present"] >= witnesses["needed"]
witnesses.round(1)

# %% tags=["solution", "remove-input"]
bearable = witnesses["bearable anomalous images [%]"]
verdict(
    f"Even in the worst case {bearable.min():.0f} % of a category's images could be anomalous, and here "
    f"the normal witnesses are enough in {int(witnesses['enough'].sum())} of {len(witnesses)} categories.",
    bearable.min() > 60,
    witnesses["enough"].all(),
)

# %% [markdown]
# In truth it is better still, as anomalous images are good witnesses outside of their defect, and worse where defects
# resemble each other.
#
# ````{solution-end}
# ````
#
# ```{exercise} The detector that never complains
# :label: ex-data-accuracy
#
# A "detector" calls every pixel normal. What is its pixel accuracy on each category? What are its pixel AUROC
# and average precision? Which of the three numbers would you print in a paper?
# ```
#
# ````{solution-start} ex-data-accuracy
# :class: dropdown
# ````
#
# Its accuracy is the share of normal pixels. Constant scores rank nothing, so the AUROC is 0.5, and the average precision falls to
# the share of anomalous pixels.

# %% tags=["solution"]
from musc.metrics import pixel_metrics

idle = {}
for name, found in list(masks.items())[:3]:
    # all pixels in one row, as images of a category may differ in size
    truth = np.concatenate([mask.ravel() for mask in found])[None, None]
    measured = pixel_metrics(truth, np.zeros(truth.shape, dtype=np.float32))
    idle[name] = {
        "accuracy": 1 - truth.mean(),
        "AUROC": measured["auroc"],
        "AP": measured["ap"],
    }
idle = pd.DataFrame(idle).T
idle.round(3)

# %% tags=["solution", "remove-input"]
verdict(
    f"Accuracy praises a useless detector: at least {100 * idle['accuracy'].min():.0f} %, beside an AUROC of "
    f"{idle['AUROC'].mean():.1f} and an AP of at most {idle['AP'].max():.2f}.",
    idle["accuracy"].min() > 0.9,
    np.allclose(idle["AUROC"], 0.5),
    np.allclose(idle["AP"], 1 - idle["accuracy"]),
)

# %% [markdown]
# That is why the field reports ranking metrics, and, as small
# regions drown among large ones, the per-region overlap (PRO).
#
# ````{solution-end}
# ````
#
# ```{exercise} How large is a defect, in patches?
# :label: ex-data-size
#
# The paper's backbone sees an image as 37 x 37 patches. Count the patches that each connected defect region covers (its area
# over that of a patch). What share of the regions is smaller than one patch, smaller than 3 x 3, smaller than 5 x 5? What does that say
# about the aggregation degrees $r \in \{1, 3, 5\}$?
# ```
#
# ````{solution-start} ex-data-size
# :class: dropdown
# ````

# %% tags=["solution"]
from scipy.ndimage import label

areas = []
for mask in (mask for found in masks.values() for mask in found):
    regions, _ = label(
        mask, structure=np.ones((3, 3))
    )  # 8-connected, as PRO counts them
    areas += (np.bincount(regions.ravel())[1:] / (mask.size / 37**2)).tolist()
areas = np.array(areas)
smaller = {r: 100 * np.mean(areas < r * r) for r in (1, 3, 5)}
pd.Series(
    {f"smaller than {r} x {r} patches [%]": v for r, v in smaller.items()},
    name="regions",
).round(1).to_frame()

# %% tags=["solution", "remove-input"]
parts = [
    smaller[1],
    smaller[3] - smaller[1],
    smaller[5] - smaller[3],
    100 - smaller[5],
]
verdict(
    f"Sizes are spread: {parts[0]:.0f} % of the regions are below one patch, {parts[1]:.0f} % below 3 x 3, "
    f"{parts[2]:.0f} % below 5 x 5, and {parts[3]:.0f} % larger. No single neighbourhood fits them all.",
    min(parts) > 5,
)

# %% [markdown]
# [Chapter 2](02_lnamd.ipynb) shows what a large average does to a small defect, and Tab. 3 of the paper measures it.
#
# ````{solution-end}
# ````
#
# ## Summary
#
# - AC asks for a score per image, AS for a score per pixel. MuSc gives both from unlabeled images alone.
# - In the unlabeled test images nearly all pixels are normal, even where many images are not.
# - Defects scatter: at any place, most images are intact. So a normal patch has look-alikes in other images, and an
#   anomalous one hardly any. That is all that MuSc uses; [chapter 3](03_msm.ipynb) measures it.
# - Labels and masks serve to measure only.
