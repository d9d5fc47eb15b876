# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
#   musc:
#     minutes: 35
#     smoke:
#       category: weave
#       good: 4
#       defects: 3
#       normal: 4
#       draws: 2
# ---

# %% [markdown]
# # A few normal images, a new image, a stream
#
# :::{admonition} In this chapter
# - You can let images that are known to be normal join the scores (few-shot MuSc), or score alone (MuSc+, Eq. 9-11).
# - You measure how many of them it takes, over several draws, and see the case in which they help most.
# - You score an image that comes later, or one after the other from a camera, without comparing the old ones again.
#
# **Time**: 20 minutes to read, 15 for the exercises. **Needs**: [MSM](03_msm.ipynb), [the pipeline](05_pipeline.ipynb).
# :::
#
# MuSc needs no normal image. But a factory that has run for a day has some. What are $R$ **reference images**
# $D_{\text{ref}}$ worth? The paper gives two answers (App. A.6).
#
# **Few-shot MuSc** (A.6.1) changes nothing but the pool: a patch is compared with the other test images *and* the references, and Eq. 2
# averages the smallest 30 % of all these distances.
#
# **MuSc+** (A.6.2) lets the references score alone. One normal patch that looks the same is proof enough, so it takes the minimum:
#
# $$\tilde{a}_{i,l}^{m,r}(I_j) = \min_n \lVert \hat{p}_{i,l}^{m,r} - \hat{p}_{j,l}^{n,r} \rVert_2, \quad I_j \in D_{\text{ref}} \tag{9}$$
#
# $$\tilde{a}_{i,l}^{m,r} = \min_j \, \tilde{a}_{i,l}^{m,r}(I_j) \tag{10}$$
#
# $$\tilde{\mathbf{a}}_i^m = \frac{1}{L} \sum_l \frac{1}{3} \sum_{r \in \{1, 3, 5\}} \tilde{a}_{i,l}^{m,r} \tag{11}$$
#
# | Paper | Code |
# |:------|:-----|
# | $D_{\text{ref}}$ joins the pool (A.6.1) | `MuSc(config).run(images, references=...)` |
# | Eq. 9 | `msm.patch_to_image_distances(features, references)` |
# | Eq. 10 | `msm.interval_average(distances, (0, 1), "min")` |
# | Eq. 9-11 from raw tokens | `fewshot.reference_scores(stages, references)` |
# | MuSc+ from images, RsCIN included | `MuSc(fewshot.plus(config)).run(images, references=...)` |

# %% tags=["parameters"]
category = "board"  # of the synthetic set
good = 8  # normal test images
defects = 6  # anomalous ones
normal = 10  # training images, all normal, to draw references from
draws = 3  # of each number of references
backbone = "procedural"

# %%
import tempfile
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

from musc import MuSc, MuScConfig, datasets, fewshot, lnamd, msm
from musc.datasets.base import Category
from musc.errors import MuscError
from musc.results import figures
from musc.stream import Stream, score_against
from musc.verdicts import verdict

# %matplotlib inline

workplace = tempfile.TemporaryDirectory()  # for extracted tokens
config = MuScConfig(backbone=backbone)
musc = MuSc(config, cache=workplace.name)
product = datasets.load_category(
    "synthetic", name=category, good=good, defects=defects, train=normal
)

# %% [markdown]
# ## One patch by hand
#
# A patch of a scratch has these distances to its nearest patches in seven other test images and in three references. One test image has the
# same scratch (0.1).

# %%
tests = torch.tensor([0.1, 0.5, 0.6, 0.6, 0.7, 0.7, 0.8])
references = torch.tensor([0.5, 0.6, 0.7])
alone = msm.interval_average(tests.reshape(1, -1, 1))
joined = msm.interval_average(torch.cat([tests, references]).reshape(1, -1, 1))
plus = msm.interval_average(references.reshape(1, -1, 1), (0, 1), "min")
print(f"MuSc, 0-shot:  {alone.item():.3f}  mean of the 2 smallest of 7")
print(f"MuSc, 3-shot:  {joined.item():.3f}  mean of the 3 smallest of 10")
print(f"MuSc+, 3-shot: {plus.item():.3f}  smallest of 3")

# %% [markdown]
# The twin pulls MuSc's score down, the references raise it by enlarging the interval, and MuSc+ never sees the twin. A normal patch
# has the opposite trouble with MuSc+: with three references it may just not meet its like.
#
# The whole of Eq. 9-11 on real tokens, beside the package's function:

# %%
images = musc.features(product.samples)
normals = musc.features(product.train)
terms = []
for stage, known in zip(images.patch_tokens, normals.patch_tokens, strict=True):
    for r in (1, 3, 5):
        p = lnamd.aggregate(stage[:2], r)  # two images will do
        q = lnamd.aggregate(known[:3], r)
        distances = msm.patch_to_image_distances(p, q)  # Eq. 9: [2, 3, M]
        terms.append(distances.amin(dim=1))  # Eq. 10: [2, M]
by_hand = torch.stack(terms).mean(dim=0)  # Eq. 11

package = fewshot.reference_scores(
    [stage[:2] for stage in images.patch_tokens],
    [known[:3] for known in normals.patch_tokens],
)
assert torch.allclose(by_hand, package, atol=1e-5)
print("by hand and by the package: equal to 1e-5")

# %% [markdown]
# ## How many references?
#
# `sweep` draws $k$ references several times and measures both methods from one pass over the distances. Draws are nested: the four
# references of one draw contain its two, so that a curve shows the effect of $k$ and not of luck.

# %%
frame = fewshot.sweep(
    product,
    musc,
    shots=(0, 1, 2, 4, 8, None),
    seeds=draws,
    pixels=False,
)
found = fewshot.summary(frame)
auroc = found[(found["group"] == "image") & (found["metric"] == "auroc")]
shown = auroc.assign(
    mean=(100 * auroc["mean"]).round(1),
    spread=(100 * auroc["spread"]).map("{:.1f}".format).replace("nan", "–"),
)
print(
    f"profile demo: {len(product)} images of {product.name}, {normal} references,"
    f" {draws} draws; image AUROC in %"
)
shown[["method", "setting", "mean", "spread", "draws"]].reset_index(drop=True)

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Image AUROC for growing numbers of references, synthetic data: mean over the draws, the bars are one standard deviation. The last point is all references.", "name": "fig-few-shot"}, "image": {"alt": "MuSc, circles, is flat over the number of references; MuSc+, squares, begins far below it with one reference and ends above it."}}
figure, ax = plt.subplots(figsize=(6, 3.4), layout="constrained")
settings = list(dict.fromkeys(auroc["setting"]))
styles = {"MuSc": (figures.BLUE, "o"), "MuSc+": (figures.ORANGE, "s")}
for method, (colour, marker) in styles.items():
    mine = auroc[auroc["method"] == method]
    ax.errorbar(
        [
            settings.index(s) + (0.06 if marker == "s" else -0.06)
            for s in mine["setting"]
        ],
        100 * mine["mean"],
        yerr=100 * mine["spread"].fillna(0),
        color=colour,
        marker=marker,
        capsize=3,
        label=method,
    )
ax.set_xticks(range(len(settings)), [s.removesuffix("-shot") for s in settings])
ax.set_xlabel("reference images")
ax.set_ylabel("image AUROC [%]")
ax.spines[["top", "right"]].set_visible(False)
_ = ax.legend(frameon=False, loc="lower right")

# %% [markdown]
# %% tags=["remove-input"]
from musc.reproduce import paper


def printed(table, method):
    rows = paper.table(table).query(
        "method == @method and metric == 'image_auroc' and dataset == 'mvtec_ad'"
    )
    return rows[rows["category"] == "mean"].set_index("setting")["value"]


here = 100 * auroc.set_index(["method", "setting"])["mean"]
joins, alone = here["MuSc"], here["MuSc+"]
theirs, theirs_plus = printed(15, "MuSc"), printed(16, "MuSc+")
every = "full-shot"
few_first = verdict(
    f"With one reference MuSc+ has {alone['1-shot']:.1f} % and MuSc {joins['1-shot']:.1f} %;"
    f" with all of them MuSc+ has {alone[every]:.1f} and MuSc {joins[every]:.1f}.",
    alone["1-shot"] < joins["1-shot"] - 3,
    alone[every] > joins[every],
)
in_paper = verdict(
    "So it is in the paper (Tab. 15 and 16, MVTec AD, ViT-L-14-336): MuSc+ starts at"
    f" {theirs_plus['1-shot']:.1f} with one and reaches {theirs_plus[every]:.1f} with all,"
    f" where MuSc has {theirs['1-shot']:.1f} and {theirs[every]:.1f}. **With few references"
    " let them join, with many let them score alone.**",
    theirs_plus["1-shot"] < theirs["1-shot"],
    theirs_plus[every] > theirs[every],
)
few_first + in_paper

# %% [markdown]
# This page has so few test images that one image that moves past another is a visible step; [Tables 15 and 16](17_few_shot.ipynb) measure more
# products.
#
# ## Where references help most
#
# Mutual scoring assumes that a defect is rare. Let 60 % of the images carry one and the same defect:

# %%
twins = datasets.load_category(
    "synthetic",
    name=category,
    good=5,
    defects=5,
    train=normal,
    same_defect=0.6,
)
four = fewshot.reference_category(twins, 4, seed=0)
plain = musc.run(twins)
joined = musc.run(twins, references=four)
plus = MuSc(fewshot.plus(config), cache=workplace.name).run(
    twins, references=four
)
rows = {"MuSc": plain, "MuSc, 4-shot": joined, "MuSc+, 4-shot": plus}
pd.DataFrame(
    {
        "image AUROC before RsCIN": [
            100 * r.metrics["image_before_rscin"]["auroc"]
            for r in rows.values()
        ],
        "image AUROC": [
            100 * r.metrics["image"]["auroc"] for r in rows.values()
        ],
        "pixel AUROC": [
            100 * r.metrics["pixel_clean"]["auroc"] for r in rows.values()
        ],
    },
    index=pd.Index(rows, name=f"{len(twins)} images, in %"),
).round(1)

# %% tags=["remove-input"]
scored = {name: 100 * r.metrics["image"]["auroc"] for name, r in rows.items()}
verdict(
    f"The defect is the rule here, and MuSc alone ranks the images upside down,"
    f" {scored['MuSc']:.1f} %. Four references among {len(twins)} images are outvoted when"
    f" they join, {scored['MuSc, 4-shot']:.1f} %, and settle it when they score alone,"
    f" {scored['MuSc+, 4-shot']:.1f} %.",
    scored["MuSc"] < 50,
    scored["MuSc"] < scored["MuSc, 4-shot"] < 75,
    scored["MuSc+, 4-shot"] > 95,
)

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Three of the six images with the same defect (mask in white) and their anomaly maps, in one colour scale.", "name": "fig-few-shot-twins"}, "image": {"alt": "Rows: image, mask, and the maps of MuSc, of MuSc with four references, and of MuSc+; only in the last is the outlined defect the brightest place."}}
size = plain.anomaly_maps.shape[1]
chosen = [i for i, s in enumerate(twins.samples) if s.label][:3]
samples = [twins.samples[i] for i in chosen]
masks = figures.masks_at(samples, size)
figures.panels(
    [
        figures.as_seen(samples, size),
        list(masks),
        *([r.anomaly_maps[i] for i in chosen] for r in rows.values()),
    ],
    names=["image", "mask", "MuSc", "4-shot", "MuSc+"],
    outlines=list(masks),
    label="anomaly score",
)

# %% [markdown]
# ## A new image
#
# A result knows where its tokens are kept. So an image that comes later is scored against them alone: one forward pass and
# $N$ comparisons instead of $N(N + 1)/2$. In a shell: `musc score NEW --against RESULT`.

# %%
pool = replace(product, samples=product.samples[1:])
earlier = musc.run(pool)
earlier.decide("robust")
new = Category("synthetic", "new", product.samples[:1])
late = score_against(new, earlier)
whole = musc.run(product)
print(late.notes[0])
print(f"raw score of {late.paths[0]}: {late.raw_image_scores[0]:.3f}")
print(f"in a batch of all images: {whole.raw_image_scores[0]:.3f}")
print(f"anomalous, by the earlier threshold: {bool(late.decisions[0])}")

# %% tags=["remove-input"]
raw, limit = late.raw_image_scores[0], earlier.threshold.value
kind, label = new.samples[0].defect, new.samples[0].label
verdict(
    f"It **is** anomalous, and was missed: the image is of the kind *{kind}*, and its raw"
    f" score of {raw:.2f} lies below the threshold of {limit:.2f}. That is not for coming"
    " late; in the batch it scores the same. A part that moved finds the like of each of"
    " its patches elsewhere ([chapter 8](08_when_it_fails.ipynb)), and a threshold sees"
    " only what the scores see.",
    label == 1,
    raw < limit,
    abs(raw - whole.raw_image_scores[0]) < 1e-4,
)

# %% [markdown]
# The raw score and the map are those of a batch of all $N + 1$ images. The old images' scores stay as they were.
# What is asked for twice is said, and nothing is lost:

# %%
try:
    score_against(pool, earlier)
except MuscError as error:
    print(error)

# %% [markdown]
# ## A stream
#
# A `Stream` takes images one by one and keeps the distances between those that it holds, so that *their* scores move too. Without a bound it
# ends with exactly the batch's scores. With `capacity=8` it holds the last eight (`keep="recent"`) or a random sample of all that came
# (`keep="reservoir"`), and each image costs eight comparisons, forever.

# %%
order = np.random.default_rng(0).permutation(len(product)).tolist()
arriving = [product.samples[i] for i in order]
streams = {"all held": Stream(musc), "8 held": Stream(musc, capacity=8)}
scores = {name: [] for name in streams}
cost = {name: [] for name in streams}
for sample in arriving:
    for name, stream in streams.items():
        before = stream.pool.comparisons
        scores[name].append(stream.push(sample).raw_score)
        cost[name].append(stream.pool.comparisons - before)

end = streams["all held"].result()
batch = whole.raw_image_scores[order]  # `whole` is the run on all, above
difference = np.abs(end.raw_image_scores - batch).max()
assert difference < 1e-5
print(f"stream of {len(arriving)} and batch: equal to 1e-5")
last = {name: c[-1] for name, c in cost.items()}
print("comparisons of the last image:", last)

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Raw scores of images as they come, by all that came before and by the last eight. The first image has no score.", "name": "fig-stream"}, "image": {"alt": "Raw scores over the order of arrival, filled and open marks; blue circles for normal, orange triangles for anomalous images; the two marks of an image coincide up to the ninth image and lie close after it."}}
figure, ax = plt.subplots(figsize=(7, 3.2), layout="constrained")
labels = np.array([s.label for s in arriving])
place = np.arange(1, len(arriving) + 1)
for name, fill in (("all held", True), ("8 held", False)):
    values = np.array(scores[name])
    for label, colour, kind, marker in (
        (0, figures.BLUE, "normal", "o"),
        (1, figures.ORANGE, "anomalous", "^"),
    ):
        ax.scatter(
            place[labels == label],
            values[labels == label],
            s=26 if fill else 80,
            color=colour if fill else "none",
            edgecolors=colour,
            marker=marker,
            label=f"{kind}, {name}",
        )
ax.set_xlabel("order of arrival")
ax.set_ylabel("raw image score")
ax.set_xticks(place[::2])
ax.spines[["top", "right"]].set_visible(False)
_ = figure.legend(frameon=False, loc="outside right center", fontsize=9)

# %% [markdown]
# The first scores are made by one or two images only. Give `references=` to a stream, and the first image has a score already.
#
# ## Exercises
#
# ```{exercise} How many of the 30 % are references?
# :label: ex-fewshot-share
#
# $N = 100$ test images, $R = 16$ references. How many distances does Eq. 2 average per patch? If every distance were equally likely to be
# small, how many of them would come from references? What does that say about Tab. 15?
# ```
#
# ````{solution-start} ex-fewshot-share
# :class: dropdown
# ````

# %% tags=["solution"]
J = 99 + 16
low, high = msm.interval_bounds(J)
share = (high - low) * 16 / J
without = np.subtract(*msm.interval_bounds(99)[::-1])
print(f"{high - low} of {J} distances, about {share:.1f} from references")

# %% tags=["solution", "remove-input"]
verdict(
    f"{high - low}, of which about {share:.0f}; without references it was {without}. The"
    " scores of a batch that is mostly normal hardly move, and neither do the numbers of"
    f" Tab. 15: {theirs['0-shot']:.1f} % without and {theirs['16-shot']:.1f} % with 16.",
    share < 0.2 * (high - low),
    abs(theirs["16-shot"] - theirs["0-shot"]) < 0.5,
)

# %% [markdown]
# ````{solution-end}
# ````
#
# ```{exercise} A bad reference
# :label: ex-fewshot-bad
#
# Take one of the *defective* images of the last section out of the test and put it among three normal references. Which method suffers more, and
# where in the image?
# ```
#
# ````{solution-start} ex-fewshot-bad
# :class: dropdown
# ````

# %% tags=["solution"]
culprit = next(s for s in twins.samples if s.label)
rest = replace(
    twins, samples=tuple(s for s in twins.samples if s is not culprit), train=()
)
three = twins.train[:3]
clean = Category("synthetic", "references", three)
dirty = Category("synthetic", "references", (*three, culprit))
bad = [s for s in rest.samples if s.label]
masks = figures.masks_at(bad, size)
outcome = {}
for name, chosen_config in (("MuSc", config), ("MuSc+", fewshot.plus(config))):
    pipeline = MuSc(chosen_config, cache=workplace.name)
    for what, known in (("clean", clean), ("one bad", dirty)):
        run = pipeline.run(rest, references=known)
        inside = run.anomaly_maps[run.labels == 1][masks].mean()
        pixel = 100 * run.metrics["pixel_clean"]["auroc"]
        outcome[name, what] = inside
        print(
            f"{name:5} {what:8} on the defect {inside:.3f}, AUROC {pixel:.1f} %"
        )

# %% tags=["solution", "remove-input"]
drop = {
    name: outcome[name, "clean"] - outcome[name, "one bad"]
    for name in ("MuSc", "MuSc+")
}
verdict(
    "A minimum believes a single witness. On the defect that the bad reference shares, the"
    f" mean score of MuSc+ falls by {drop['MuSc+']:.2f}, that of MuSc, which averages over"
    f" many, by {drop['MuSc']:.2f}.",
    drop["MuSc+"] > 3 * drop["MuSc"],
    drop["MuSc"] > 0,
)

# %% [markdown]
# ````{solution-end}
# ````
#
# ```{exercise} Recent or reservoir?
# :label: ex-fewshot-drift
#
# The light of a line grows dimmer over the day. Which way of keeping images would you choose, and which one if defects came in bursts?
# Check with `MutualPool` on drawn tokens that drift.
# ```
#
# ````{solution-start} ex-fewshot-drift
# :class: dropdown
# ````

# %% tags=["solution"]
from musc.stream import MutualPool

rng = torch.Generator().manual_seed(0)
base = torch.randn(4, 6, generator=rng)  # 2 x 2 patches, 6 channels
turn = torch.randn(4, 6, generator=rng)
drift = [
    base + t / 20 * turn + 0.1 * torch.randn(4, 6, generator=rng)
    for t in range(40)
]
drifted = {}
for keep in ("recent", "reservoir"):
    pool = MutualPool(MuScConfig(degrees=(1,)), [(2, 2)], capacity=6, keep=keep)
    pushed = [pool.push(f"{t}", [tokens]) for t, tokens in enumerate(drift)]
    last = [float(p[0].mean()) for p in pushed[20:]]
    drifted[keep] = np.mean(last)
    print(f"{keep:9} mean of the last 20 normal images: {drifted[keep]:.3f}")

# %% tags=["solution", "remove-input"]
verdict(
    "With drift, recent images are the ones to compare with: the reservoir finds new normal"
    f" images {drifted['reservoir'] / drifted['recent']:.1f} times as strange.",
    drifted["reservoir"] > 1.5 * drifted["recent"],
)

# %% [markdown]
# In a burst the recent images are defective themselves and vouch for each other; the reservoir still remembers normal ones. References,
# which are never dropped, help in both cases.
#
# ````{solution-end}
# ````
#
# ## Summary
#
# - `run(images, references=...)` lets normal images join; `fewshot.plus(config)` lets them score alone, by the minimum (Eq. 9-11).
# - Few references: join. Many, or a defect that most images share: alone. One bad reference harms MuSc+ most.
# - `score_against` scores late images by the tokens of an earlier result; its raw scores are a batch's.
# - A `Stream` compares each pair of images once, keeps scores up to date, and with a bound costs the same for every image.
#
# **What next**: [the paper's Tables 15 and 16](17_few_shot.ipynb), measured with `fewshot.sweep`.
