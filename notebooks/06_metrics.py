# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
#   musc:
#     minutes: 45
#     smoke:
#       category: capsule
#       limit: 8
# ---

# %% [markdown]
# # The metrics, and PRO above all
#
# :::{admonition} In this chapter
# - You compute AUROC, AP and F1-max of eight scores by hand, and get what `musc.metrics` and scikit-learn get.
# - You can say why a pixel AUROC flatters, and what PRO does about it.
# - You draw a PRO curve region by region, and know the two protocols of PRO and of masks that hide behind equal names.
#
# **Time**: 25 minutes to read, 20 for the exercises. **Needs**: [the pipeline](05_pipeline.ipynb).
# :::
#
# The paper reports seven numbers (Sec. 4.1): three for images, four for pixels.
#
# | Metric | Question | Code |
# |:-------|:---------|:-----|
# | AUROC | how often does an anomalous one score above a normal one? | `image_metrics`, `pixel_metrics` |
# | AP | how clean is the top of the list, averaged over recalls? | the same |
# | F1-max | how good is the best single threshold? | the same |
# | PRO | what share of each *region* is found, at few false alarms? | `pixel_metrics` |

# %% tags=["parameters"]
profile = "demo"  # "demo": the synthetic data set; "paper": a data set on disk
data_root = None  # folder of MVTec AD, VisA or BTAD, for the profile "paper"
category = "bottle_top"
limit = 20  # images; None: all
backbone = "procedural"

# %%
from dataclasses import replace
from math import ceil
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from scipy import ndimage
from sklearn import metrics as sklearn_metrics

from musc import MuSc, MuScConfig, datasets
from musc.metrics import image_metrics, pixel_metrics
from musc.results import figures
from musc.verdicts import verdict

# %matplotlib inline

# %% [markdown]
# ## Eight scores by hand
#
# Four normal images, four anomalous ones. One normal image scores high, one anomalous one low, and two images tie.

# %%
labels = np.array([0, 0, 0, 1, 0, 1, 1, 1])
scores = np.array([0.1, 0.2, 0.3, 0.35, 0.6, 0.6, 0.8, 0.9])

pairs = [
    1.0 if a > n else 0.5 if a == n else 0.0
    for a in scores[labels == 1]
    for n in scores[labels == 0]
]
auroc = sum(pairs) / len(pairs)  # a tie counts one half

rows = []
for t in np.unique(scores)[::-1]:  # from strict to lax
    found = scores >= t
    tp, fp = (
        int((found & (labels == 1)).sum()),
        int((found & (labels == 0)).sum()),
    )
    precision, recall = tp / (tp + fp), tp / 4
    f1 = 2 * precision * recall / (precision + recall)
    rows.append((t, tp, fp, precision, recall, f1))
table = pd.DataFrame(
    rows, columns=["threshold", "TP", "FP", "precision", "recall", "F1"]
).set_index("threshold")

steps = np.diff(table["recall"], prepend=0)
ap = float((steps * table["precision"]).sum())
by_hand = {"auroc": auroc, "f1_max": float(table["F1"].max()), "ap": ap}
table.round(3)

# %%
ours = image_metrics(labels, scores)
theirs = {
    "auroc": sklearn_metrics.roc_auc_score(labels, scores),
    "ap": sklearn_metrics.average_precision_score(labels, scores),
}
for name, value in by_hand.items():
    assert np.isclose(value, ours[name])
    assert np.isclose(value, theirs.get(name, value))
pd.DataFrame(
    {"by hand": by_hand, "musc.metrics": ours, "scikit-learn": theirs}
).round(4)

# %% [markdown]
# None of the three needs a threshold to be chosen, and none changes when all scores are squared or doubled: they look at the order only.
#
# ## Why pixel AUROC flatters
#
# In a map nearly every pixel is normal, and most normal pixels are easy. Run MuSc on a category, the images of
# [chapter 5](05_pipeline.ipynb), and look at the pixels.

# %%
layout = "synthetic" if profile == "demo" else None
product = datasets.load_category(
    layout, data_root and Path(data_root), category
)
step = ceil(len(product) / (limit or len(product)))
# every n-th, so that all kinds of defect stay
product = replace(product, samples=product.samples[::step])
result = MuSc(MuScConfig(backbone=backbone)).run(product)
maps = result.anomaly_maps
masks = figures.masks_at(product.samples, maps.shape[1])
measured = pixel_metrics(masks, maps)
print(
    f"profile {profile}: {len(maps)} images of {product.name},"
    f" {100 * masks.mean():.2f} % of the pixels anomalous"
)
print({name: round(100 * value, 1) for name, value in measured.items()})

# %% mystnb={"figure": {"caption": "One map, two curves. ROC divides false alarms by the many normal pixels, so it hugs the corner; the precision-recall curve divides by what was marked. Shaded: what PRO looks at.", "name": "fig-metrics-roc-pr"}, "image": {"alt": "Left, a ROC curve close to the upper left corner; right, the precision-recall curve of the same scores, which falls to a precision of about 0.6 at a recall of 0.4, and to nothing in the end."}}
flat_masks, flat_maps = masks.ravel(), maps.ravel()
fpr, tpr, _ = sklearn_metrics.roc_curve(flat_masks, flat_maps)
precision, recall, _ = sklearn_metrics.precision_recall_curve(
    flat_masks, flat_maps
)
figure, axes = plt.subplots(1, 2, figsize=(7.4, 3.3), layout="constrained")
axes[0].plot(fpr, tpr, color=figures.BLUE, linewidth=2)
axes[0].axvspan(0, 0.3, color="#888888", alpha=0.15, linewidth=0)
axes[0].plot([0, 1], [0, 1], color="#888888", linestyle=":")
axes[0].set(
    xlabel="false positive rate",
    ylabel="recall",
    title=f"AUROC {100 * measured['auroc']:.1f} %",
)
axes[1].plot(recall, precision, color=figures.ORANGE, linewidth=2)
axes[1].axhline(masks.mean(), color="#888888", linestyle=":")
axes[1].set(
    xlabel="recall",
    ylabel="precision",
    title=f"AP {100 * measured['ap']:.1f} %",
    ylim=(0, 1.02),
)
for ax in axes:
    ax.spines[["top", "right"]].set_visible(False)

# %% [markdown]
# Both curves come from the same scores. A false positive rate of 1 % sounds like nothing. Count it:

# %%
normal = flat_maps[~flat_masks]
threshold = np.quantile(normal, 0.99)
false = int((normal >= threshold).sum())
true = int((flat_maps[flat_masks] >= threshold).sum())
every_defect = int(flat_masks.sum())
print(
    f"at 1 % FPR: {true:,} defect pixels found of {every_defect:,},"
    f" with {false:,} false alarms"
)

# %% tags=["remove-input"]
verdict(
    f"One percent of the normal pixels are {false:,} pixels, more than all"
    f" {every_defect:,} defect pixels together: precision is below one half even if every"
    f" defect is found. So the same scores have an AUROC of"
    f" {100 * measured['auroc']:.1f} % and an AP of {100 * measured['ap']:.1f} %.",
    false > every_defect,
    measured["auroc"] - measured["ap"] > 0.2,
)

# %% [markdown]
# ## PRO, region by region
#
# AUROC has a second flaw: it counts pixels, so one large defect outweighs twenty small ones. The **per-region overlap** gives each
# connected region $R_k$ one vote. At threshold $t$, with $P_t$ the pixels that score at least $t$,
#
# $$\mathrm{PRO}(t) = \frac{1}{|\mathcal{R}|} \sum_{k} \frac{|P_t \cap R_k|}{|R_k|}, \tag{6.1}$$
#
# $$\mathrm{AUPRO} = \frac{1}{0.3} \int_0^{0.3} \mathrm{PRO}\; d\,\mathrm{FPR} . \tag{6.2}$$
#
# Regions are 8-connected; FPR is taken over the normal pixels of all images. All of it in a few lines:

# %%
eight = np.ones((3, 3))
regions = []
for mask, anomaly_map in zip(masks, maps, strict=True):
    numbered, count = ndimage.label(mask, eight)
    regions += [np.sort(anomaly_map[numbered == k + 1]) for k in range(count)]

thresholds = np.unique(np.concatenate(regions))[
    ::-1
]  # recall changes there only
recalls = np.array(
    [1 - np.searchsorted(r, thresholds) / len(r) for r in regions]
)  # [regions, thresholds]
ranked = np.sort(normal)
rates = 1 - np.searchsorted(ranked, thresholds) / len(ranked)

# %%
# between two of these thresholds only the FPR moves: the recall steps up at its end
every = np.unique(flat_maps)[::-1]
x = np.concatenate([[0], 1 - np.searchsorted(ranked, every) / len(ranked)])
each = [
    np.concatenate([[0], 1 - np.searchsorted(r, every) / len(r)])
    for r in regions
]
y = np.mean(each, axis=0)
inside = x < 0.3
end = np.interp(0.3, x, y)
exact = np.trapezoid([*y[inside], end], [*x[inside], 0.3]) / 0.3
assert np.isclose(exact, measured["pro"], atol=1e-6)
print(
    f"{len(regions)} regions, AUPRO by hand {100 * exact:.2f} %,"
    f" pixel_metrics {100 * measured['pro']:.2f} %"
)

# %% mystnb={"figure": {"caption": "Thin: recall of every region, the darker the larger. Thick: their mean, whose area up to 30 % FPR is PRO. Dashed: recall of all pixels together, which large regions rule.", "name": "fig-metrics-pro"}, "image": {"alt": "A bundle of thin blue rising curves, one per region, with the thick black mean and the dashed recall of all pixels, up to a false positive rate of 0.3."}}
figure, ax = plt.subplots(figsize=(6, 3.8), layout="constrained")
sizes = np.array([len(r) for r in regions])
shades = 0.4 + 0.55 * np.argsort(np.argsort(sizes)) / max(1, len(sizes) - 1)
for line, shade in zip(recalls, shades, strict=True):
    ax.plot(rates, line, color=plt.cm.Blues(shade), linewidth=1)
ax.plot(x, y, color="black", linewidth=2.5, label="mean over regions (PRO)")
ax.plot(
    fpr,
    tpr,
    color=figures.ORANGE,
    linestyle="--",
    linewidth=2,
    label="all pixels (ROC)",
)
ax.fill_between(x[inside], y[inside], color="#888888", alpha=0.15, linewidth=0)
ax.set(
    xlim=(0, 0.3), ylim=(0, 1.02), xlabel="false positive rate", ylabel="recall"
)
ax.spines[["top", "right"]].set_visible(False)
_ = ax.legend(frameon=False, loc="lower right")

# %% [markdown]
# ## Two protocols of PRO, two of masks
#
# A number that is called PRO may be one of two. **exact**, as above, uses every score as a threshold. **official**, what the authors'
# released code does, takes 200 equally spaced thresholds between the lowest and the highest score, keeps those with FPR below 0.3, stretches that range to
# $[0, 1]$ by min-max and integrates. Similarly for masks. Maps are smaller than photographs, so masks are resized: **clean** takes the nearest pixel;
# **official** keeps only pixels that stay fully anomalous (MVTec AD, BTAD; smaller regions) or that are touched at all (VisA; larger ones).
# Results name both. Where a picture is as large as its map nothing is resized, and both mask protocols agree; with
# photographs that never is so. So the same product is drawn here at twice the maps' size.

# %%
large = result
if profile == "demo":
    drawn = datasets.load_category(layout, None, category, size=512)
    drawn = replace(drawn, samples=drawn.samples[::step])
    large = MuSc(MuScConfig(backbone=backbone)).run(drawn)
protocols = pd.DataFrame(
    {
        f"masks {mask}": {
            "pixel AUROC": large.metrics[f"pixel_{mask}"]["auroc"],
            "AP": large.metrics[f"pixel_{mask}"]["ap"],
            "PRO, exact": large.metrics[f"pixel_{mask}"]["pro"],
            "PRO, official": large.metrics[f"pixel_{mask}"]["pro_official"],
        }
        for mask in ("clean", "official")
    }
)
(100 * protocols).round(1)  # in percent

# %% tags=["remove-input"]
by_mask = 100 * protocols.loc["AP"]
pros = 100 * protocols.loc[["PRO, exact", "PRO, official"]].to_numpy()
verdict(
    f"Same maps, several values: the AP is {by_mask.iloc[0]:.1f} or"
    f" {by_mask.iloc[1]:.1f}, by the mask protocol alone, and PRO lies anywhere from"
    f" {pros.min():.1f} to {pros.max():.1f}. Two papers that differ in protocol cannot be"
    " compared by their numbers.",
    abs(by_mask.iloc[0] - by_mask.iloc[1]) > 1,
    pros.max() - pros.min() > 0.2,
)

# %% [markdown]
# ## Exercises
#
# ```{exercise} One large, many small
# :label: ex-metrics-regions
#
# Draw one mask with a region of 40 x 40 pixels and nine of 3 x 3, and a map that finds only the large one. Which of AUROC and PRO notices?
# ```
#
# ````{solution-start} ex-metrics-regions
# :class: dropdown
# ````

# %% tags=["solution"]
toy = np.zeros((1, 100, 100), dtype=bool)
toy[0, 50:90, 50:90] = True
found_large = toy.astype(float)
for n in range(9):
    toy[0, 5:8, 5 + 10 * n : 8 + 10 * n] = True
noise = np.random.default_rng(0).uniform(0, 0.1, toy.shape)
blind = pixel_metrics(toy, found_large + noise)
print({name: round(value, 3) for name, value in blind.items()})

# %% tags=["solution", "remove-input"]
verdict(
    f"PRO notices. To the AUROC, {blind['auroc']:.3f}, nine missed defects are 81 pixels"
    f" of many; to PRO, {blind['pro']:.3f}, they are nine of ten regions.",
    blind["auroc"] > 0.95,
    blind["pro"] < 0.3,
)

# %% [markdown]
# ````{solution-end}
# ````
#
# ```{exercise} Break the official PRO
# :label: ex-metrics-official
#
# Multiply the score of one single pixel by 50. What happens to both PROs, and why?
# ```
#
# ````{solution-start} ex-metrics-official
# :class: dropdown
# ````

# %% tags=["solution"]
loud = maps.copy()
where = np.unravel_index((maps * ~masks).argmax(), maps.shape)
loud[where] *= 50
both = ("exact", "official")
before = pixel_metrics(masks, maps, pro=both)
after = pixel_metrics(masks, loud, pro=both)
pd.DataFrame({"as measured": before, "one loud pixel": after}).loc[
    ["auroc", "pro", "pro_official"]
].round(3)

# %% tags=["solution", "remove-input"]
verdict(
    "Thresholds are spaced over the range of scores. One loud pixel stretches the range,"
    " nearly all 200 thresholds lie above every other score, and the curve has a handful"
    f" of points left: the official PRO goes from {before['pro_official']:.3f} to"
    f" {after['pro_official']:.3f}. The exact one uses the scores themselves and stays at"
    f" {after['pro']:.3f}.",
    abs(after["pro_official"] - before["pro_official"]) > 0.1,
    abs(after["pro"] - before["pro"]) < 0.001,
)

# %% [markdown]
# ````{solution-end}
# ````
#
# ```{exercise} Does a blur help?
# :label: ex-metrics-blur
#
# Many methods blur their maps. Blur ours with a Gaussian of 1, 2, 4, 8 pixels and watch AUROC, AP and PRO. Do they agree on the best?
# ```
#
# ````{solution-start} ex-metrics-blur
# :class: dropdown
# ````

# %% tags=["solution"]
blurred = {
    sigma: pixel_metrics(
        masks, ndimage.gaussian_filter(maps, (0, sigma, sigma))
    )
    for sigma in (0, 1, 2, 4, 8)
}
assert blurred[0] == measured
(100 * pd.DataFrame(blurred).T.rename_axis("sigma [px]")).round(1)

# %% tags=["solution", "remove-input"]
best = {m: max(blurred, key=lambda s: blurred[s][m]) for m in measured}
verdict(
    f"They do not: the AUROC is best at {best['auroc']} pixels, F1-max at"
    f" {best['f1_max']}, AP at {best['ap']} and PRO at {best['pro']}. And it helps: PRO"
    f" is {100 * measured['pro']:.1f} % without and"
    f" {100 * blurred[best['pro']]['pro']:.1f} % at its best. MuSc does not blur, although"
    " its aggregation degrees leave room for it here. But a width that was chosen by these"
    " test labels has used the labels, and is no longer zero-shot.",
    len(set(best.values())) > 1,
    blurred[best["pro"]]["pro"] - measured["pro"] > 0.005,
)

# %% [markdown]
# ````{solution-end}
# ````
#
# ## Summary
#
# - AUROC, AP and F1-max depend on the order of scores only. With few anomalous pixels the AUROC is high for nearly everyone; AP and F1-max are not.
# - PRO gives each region one vote and looks only at false positive rates up to 30 %.
# - PRO and masks have two protocols each. A number without its protocol is half a number.
#
# **What next**: [your own images](07_your_own_images.ipynb), where no metric can be computed.
