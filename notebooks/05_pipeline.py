# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
#   musc:
#     minutes: 30
#     smoke:
#       category: weave
#       limit: 8
# ---

# %% [markdown]
# # The pipeline
#
# :::{admonition} In this chapter
# - You run the whole method by one call and know what each setting means.
# - You know what each stage costs, and how the cost grows with the number of images.
# - You save a result, read it back, and ablate one part of the method.
#
# **Time**: 15 minutes to read, 15 for the exercises. **Needs**: [RsCIN](04_rscin.ipynb).
# :::
#
# The parts are all there. `MuSc` wires them together, and nothing else does:
#
# | Step | Section | Code | Out |
# |:-----|:--------|:-----|:----|
# | tokens | 3.1 | `MuSc.features` | `[N, M, C]` per stage, `[N, D]` |
# | aggregation, mutual scoring | 3.1, 3.2, Eq. 1-3 | `msm.mutual_scores` | `[N, M]` |
# | upsampling | 3.2 | `MuSc.anomaly_maps` | `[N, H, W]` |
# | image score $c_i = \max_m \mathbf{a}_i^m$ | 3.2 | maximum of the map | `[N]` |
# | re-scoring | 3.3, Eq. 4-5 | `rscin.rescore` | `[N]` |

# %% tags=["parameters"]
profile = "demo"  # "demo": the synthetic data set; "paper": a data set on disk
data_root = None  # folder of MVTec AD, VisA or BTAD, for the profile "paper"
category = "bottle_top"
limit = 20  # images; None: all
backbone = "procedural"

# %%
import tempfile
from dataclasses import fields, replace
from math import ceil
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

from musc import MuSc, MuScConfig, MuScResult, datasets
from musc.results import figures, pictures
from musc.verdicts import paper_here_why, verdict

# %matplotlib inline

layout = "synthetic" if profile == "demo" else None
product = datasets.load_category(
    layout, data_root and Path(data_root), category
)
if limit:  # every n-th, so that all kinds of defect stay
    step = ceil(len(product) / limit)
    product = replace(product, samples=product.samples[::step])

config = MuScConfig(backbone=backbone)
musc = MuSc(config)
result = musc.run(product)
print(f"profile {profile}: {len(result)} images of {result.category}")

# %% [markdown]
# Chapters 5 and 6 take the same images of this product, every second one, so that their numbers agree; on all of it
# they are a little different ([every row](../book/embedded.md)). `procedural` is the embedded network. It was trained
# on **mutual scoring itself**, on images that formulas draw: it has met this task, if not these images, and a network
# that has not may do worse ([what a network must have seen](19_real_photographs.ipynb)).

# %% mystnb={"figure": {"caption": "The overview of a result: highest and lowest image scores, with their anomaly maps laid over the images in one colour scale.", "name": "fig-pipeline-overview"}, "image": {"alt": "A row of images sorted by score; below, the same images with heat over the defects."}}
pictures.overview(result, product.samples)

# %% [markdown]
# ## What came out
#
# A `MuScResult` has one row per image in every array, and says where it came from: settings, weights, versions, notes.

# %%
table = pd.DataFrame(
    {
        "path": result.paths,
        "rank": result.ranks,
        "score": result.image_scores.round(3),
        "raw score": result.raw_image_scores.round(3),
        "label": result.labels,
    }
).sort_values("rank")
table.head(8).set_index("rank")

# %%
(100 * pd.DataFrame(result.metrics).T).round(1)  # in percent

# %% [markdown]
# `image` is after RsCIN, `image_before_rscin` before. `pixel_clean` and `pixel_official` differ in how masks are
# resized ([next chapter](06_metrics.ipynb)); these pictures are as large as their maps, so there is nothing to resize.
# The labels and masks were read for this table only; without them it is empty, and all else is the same.

# %% tags=["remove-input"]
from musc.plugin.agreement import agreement
from musc.reproduce import paper

quoted = paper.table(5).query(
    "dataset == 'mvtec_ad' and metric == 'image_auroc'"
)
quoted = quoted.set_index("rscin")["value"]
raw = 100 * result.metrics["image_before_rscin"]["auroc"]
final = 100 * result.metrics["image"]["auroc"]
agree = agreement(
    np.asarray(result.labels), result.class_tokens, (2, 3, len(result))
)
near, chance = 50 * (agree[2] + agree[3]), 100 * agree[len(result)]
paper_here_why(
    "Tab. 5: on MVTec AD RsCIN raises the image AUROC from"
    f" {quoted['without']:.1f} to {quoted['with']:.1f} %.",
    verdict(
        f"It falls from {raw:.1f} to {final:.1f} %.",
        final < raw,
    ),
    verdict(
        "RsCIN helps where images with like class tokens have like labels. In the two"
        f" windows {near:.0f} % of the neighbours do here, and {chance:.0f} % would by"
        " chance: this network's class token does not see a small defect on a part, and"
        " an already perfect ranking can only lose. [Chapter 4](04_rscin.ipynb) shows a"
        " product and a network for which it gains.",
        near < chance + 10,
        raw > 99,
    ),
)

# %% [markdown]
# ## What it costs
#
# Extraction is one forward pass per image. Mutual scoring compares every pair of images, each patch with each patch;
# one product of two images' tokens serves all aggregation degrees. Re-scoring compares one token per image. Counted
# in multiply-adds, with $B$ blocks of $W$ weights in all, $L$ stages and $D$ channels of a class token:

# %%
features = musc.features(product.samples)
N, L = len(features), len(features.patch_tokens)
M, C = features.patch_tokens[0].shape[1:]
D = features.class_tokens.shape[1]
W = sum(w.numel() for w in musc.backbone.network.parameters())
B = max(musc.backbone.stages)
work = pd.Series(
    {
        "extraction, N (W M + 2 B M² C)": N * (W * M + 2 * B * M**2 * C),
        "mutual scoring, ½ N (N - 1) L M² C": N * (N - 1) / 2 * L * M**2 * C,
        "re-scoring, N² D": N**2 * D,
    },
    name="10⁹ multiply-adds",
)
shares = (100 * work / work.sum()).rename("share [%]")
pd.concat([(work / 1e9).round(2), shares.round(1)], axis=1)

# %% tags=["remove-input"]
extraction, mutual, rescoring = work
verdict(
    f"With {N} images mutual scoring is {mutual / extraction:.1f} times the work"
    f" of extraction already, and re-scoring, {100 * rescoring / work.sum():.1g} %"
    " of the whole, is nothing.",
    mutual > extraction,
    rescoring < 0.001 * work.sum(),
)

# %% mystnb={"figure": {"caption": "Work over the number of images, in multiples of that at 10 images in one set. The square overtakes the line; splitting into s subsets (Sec. 4.2) divides the pairs by s.", "name": "fig-pipeline-cost"}, "image": {"alt": "Log axes: extraction rises by one decade per decade of images, mutual scoring by two; with three subsets it runs in parallel, lower by a factor of three."}}
N = np.arange(10, 401, 10)
figure, ax = plt.subplots(figsize=(5.4, 3.3), layout="constrained")
ax.plot(N, N / 10, color=figures.BLUE, linewidth=2, label="extraction: $N$")
for s, style in ((1, "-"), (3, "--")):
    pairs = s * (N / s) * (N / s - 1) / 90
    ax.plot(
        N,
        pairs,
        style,
        color=figures.ORANGE,
        linewidth=2,
        label=f"mutual scoring: pairs, $s$ = {s}",
    )
ax.set(
    xscale="log",
    yscale="log",
    xlabel="images $N$",
    ylabel="work, relative to $N$ = 10",
)
ax.spines[["top", "right"]].set_visible(False)
_ = ax.legend(frameon=False)

# %% [markdown]
# ## Keep it, read it back
#
# A result is a folder: `scores.csv` for people and spreadsheets, `anomaly_maps.npy`, `class_tokens.npy`, and `result.json` with the
# settings, metrics and versions.

# %%
with tempfile.TemporaryDirectory() as folder:
    saved = result.save(Path(folder) / category)
    listing = {f.name: f.stat().st_size for f in sorted(saved.iterdir())}
    again = MuScResult.load(saved)
    assert again.paths == result.paths
    assert np.array_equal(again.image_scores, result.image_scores)
    assert np.array_equal(again.anomaly_maps, result.anomaly_maps)
    assert again.config == result.config
    del again  # its maps are mapped from the file
print(", ".join(listing))

# %% [markdown]
# Equal settings, weights and image contents give an equal `fingerprint`, by which `musc run` knows what is finished.
#
# ## Ablate one thing
#
# `config.replace` makes the same settings but for one. The tokens are extracted once and scored in several ways; with `map_size` given, no second
# backbone is loaded. Here: without LNAMD ($r = 1$ only), and without the interval.

# %%
from musc.metrics import pixel_metrics

masks = figures.masks_at(product.samples, musc.backbone.image_size)
same = config.replace(map_size=musc.backbone.image_size)
variants = {
    "the paper's": same,
    "r = 1 only": same.replace(degrees=(1,)),
    "mean over all images": same.replace(interval=(0.0, 1.0)),
}
maps, rows = {}, {}
for name, settings in variants.items():
    variant = MuSc(settings)
    maps[name] = variant.anomaly_maps(features)
    rows[name] = pixel_metrics(masks, maps[name])
assert np.allclose(maps["the paper's"], result.anomaly_maps, atol=1e-5)
(100 * pd.DataFrame(rows).T).round(1)  # in percent

# %% tags=["remove-input"]
whole, single, mean = (rows[name] for name in variants)
verdict(
    f"Without larger neighbourhoods the pixel AP falls from {100 * whole['ap']:.1f}"
    f" to {100 * single['ap']:.1f} % and PRO from {100 * whole['pro']:.1f} to"
    f" {100 * single['pro']:.1f} %; without the interval they fall to"
    f" {100 * mean['ap']:.1f} and {100 * mean['pro']:.1f} %. Here LNAMD is the larger"
    " part.",
    single["ap"] < mean["ap"] < whole["ap"],
    single["pro"] < mean["pro"] < whole["pro"],
)

# %% mystnb={"figure": {"caption": "Two defective images under the three settings, in one colour scale.", "name": "fig-pipeline-ablation"}, "image": {"alt": "Three rows of maps, one per setting, two defective images side by side; the outline is the mask. With r = 1 only the maps are speckled."}}
labels = np.array([s.label for s in product.samples])
two = np.flatnonzero(labels == 1)[[0, -1]]
figure = figures.panels(
    [[stack[n].numpy() for n in two] for stack in maps.values()],
    titles=[[product.samples[n].defect.replace("_", " ") for n in two], [], []],
    names=list(maps),
    outlines=[masks[n] for n in two],
    label="anomaly score",
    side=1.9,
)
figure

# %% [markdown]
# A single category of few images decides nothing. The paper's ablations run over all categories, and so do the reproduction chapters.
#
# ## Exercises
#
# ```{exercise} Every setting
# :label: ex-pipeline-settings
#
# List all settings with their defaults. Which of them cannot change a score?
# ```
#
# ````{solution-start} ex-pipeline-settings
# :class: dropdown
# ````

# %% tags=["solution"]
silent = {
    "device",
    "batch_size",
    "workers",
    "decoding",
    "block",
    "max_memory",
    "mask_protocol",
}
defaults = {f.name: repr(f.default) for f in fields(MuScConfig)}
assert silent <= set(defaults)
pd.DataFrame(
    {
        "default": defaults,
        "changes a score": {
            n: "no" if n in silent else "yes" for n in defaults
        },
    }
)

# %% [markdown]
# Device, batch size, workers, how they decode, block and memory decide how the work is cut, and the mask protocol how it is measured.
#
# ````{solution-end}
# ````
#
# ```{exercise} Block size changes nothing
# :label: ex-pipeline-block
#
# Score with blocks of 1 and of 8 images. Are the maps equal?
# ```
#
# ````{solution-start} ex-pipeline-block
# :class: dropdown
# ````

# %% tags=["solution"]
by_block = []
for block in (1, 8):
    cut = MuSc(same.replace(block=block))
    by_block.append(cut.anomaly_maps(features))
assert torch.allclose(*by_block, atol=1e-5)
print("maps agree to 1e-5")

# %% [markdown]
# ````{solution-end}
# ````
#
# ```{exercise} Two subsets
# :label: ex-pipeline-subsets
#
# With `subsets=2` each half is scored by itself. How many pairs of images are compared, with and without? What happens to the pixel AUROC?
# ```
#
# ````{solution-start} ex-pipeline-subsets
# :class: dropdown
# ````

# %% tags=["solution"]
from musc.scoring.maps import split_subsets

parts = split_subsets([s.defect for s in product.samples], 2, config.seed)
count = sum(len(p) * (len(p) - 1) // 2 for p in parts)
total = len(labels) * (len(labels) - 1) // 2
halves = MuSc(same.replace(subsets=2))
parted = pixel_metrics(masks, halves.anomaly_maps(features))
print(f"pairs: {total} whole, {count} in two halves")
(100 * pd.DataFrame({"whole": whole, "two halves": parted}).T).round(1)

# %% tags=["solution", "remove-input"]
auroc, pro = (
    round(100 * parted[m], 1) - round(100 * whole[m], 1)
    for m in ("auroc", "pro")
)
verdict(
    f"{100 * count / total:.0f} % of the comparisons, but half the witnesses as well."
    f" With {len(labels)} images the pixel AUROC moves by {auroc:+.1f} and PRO by"
    f" {pro:+.1f} points: little, and not in one"
    " direction. With a hundred images and more it costs little as well (Tab. 7 of"
    " the paper).",
    count < 0.5 * total,
    abs(auroc) < 2,
    abs(pro) < 2,
    (parted["auroc"] - whole["auroc"]) * (parted["pro"] - whole["pro"]) < 0,
)

# %% [markdown]
# ````{solution-end}
# ````
#
# ## Summary
#
# - `MuSc(config).run(images)` is the whole method; a `MuScResult` holds scores, maps, and where they came from.
# - Comparing pairs grows with $N^2$, extraction with $N$; `subsets` divides the pairs.
# - One setting at a time: `config.replace(...)`.
#
# **What next**: [the metrics](06_metrics.ipynb) say what the numbers above mean.
