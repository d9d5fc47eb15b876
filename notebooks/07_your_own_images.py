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
# # Your own images
#
# :::{admonition} In this chapter
# - In ten minutes you go from a folder of photographs to a decision about each: run, look, mark ten, decide, act.
# - You get what the next program needs: a table of scores, masks, and every defect's region in pixels of the photograph.
# - You see what long parts gain when they are not squashed.
# - You know the usual mistakes, and what they say.
#
# **Time**: 10 minutes for your own folder, 15 to read, 20 for the exercises. **Needs**: a folder of images; this chapter writes one.
# :::
#
# What MuSc wants is modest: photographs of **one product**, taken in about the same way, from about ten on (two at the very least), most of them
# normal at any one place. Names, sizes and formats may vary. What it cannot use: pictures of different products in one folder, or parts that all
# have the same defect.

# %% tags=["parameters"]
category = "capsule"  # of the synthetic set, for a folder to work on
photographs = None  # your own folder instead
limit = 20  # images; None: all
backbone = "procedural"

# %%
import json
import tempfile
from math import ceil
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from musc import MuSc, MuScConfig, MuScResult, datasets, score_folder
from musc.backbones import find_backbone
from musc.cli import main as musc_command
from musc.datasets import load_category
from musc.datasets.images import read_image
from musc.datasets.masks import resize_mask
from musc.errors import MuscError
from musc.metrics import pixel_metrics
from musc.results import figures
from musc.verdicts import verdict

# %matplotlib inline

workplace = tempfile.TemporaryDirectory()
here = Path(workplace.name)

# %%
folder = here / "photographs"
if photographs:
    folder = Path(photographs).expanduser().absolute()
truth = {}
if not photographs:  # as a camera would leave them: numbers, no labels
    folder.mkdir()
    product = datasets.load_category("synthetic", name=category)
    chosen = product.samples[:: ceil(len(product) / (limit or len(product)))]
    for n, sample in enumerate(chosen):
        read_image(sample.image).save(folder / f"part_{n:03d}.png")
        truth[f"part_{n:03d}.png"] = sample.label  # for the exercises only
photos = load_category("folder", folder)
files = [sample.image for sample in photos.samples]
print(f"{len(files)} images, such as {photos.samples[0].name}")

# %% [markdown]
# ## Minute 1: run
#
# ```bash
# musc run photographs/ --out results
# ```
#
# No labels, no masks, no `good` folder, no training. Settings are words of the command: `--backbone ViT-L-14-336 --device cuda` for the paper's
# network. Here the same command is called from Python.


# %%
def shell(*words):
    """`musc ...`, with this machine's folders left out of what it prints."""
    import contextlib
    import io

    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = musc_command([str(w) for w in words])
    print(said.getvalue().replace(str(here), "...").strip())
    print(f"exit code {code}")


out = here / "results"
shell("run", folder, "--layout", "folder", "--out", out, "--backbone", backbone)

# %%
done = next(out.rglob("scores.csv")).parent
result = MuScResult.load(done)
by_kind = {}
for file in sorted(f.relative_to(done) for f in done.rglob("*") if f.is_file()):
    kind = file.parts[0] if len(file.parts) > 1 else file.name
    by_kind[kind] = by_kind.get(kind, 0) + 1
print("\n".join(f"{n:3d}  {kind}" for kind, n in by_kind.items()))
table = pd.read_csv(done / "scores.csv", keep_default_na=False)
table.sort_values("rank").head(6).round(3)

# %% tags=["remove-input"]
highest, lowest = result.image_scores.max(), result.image_scores.min()
verdict(
    "`score` is after RsCIN, which first scales the scores of *this folder* to 0 to 1 and"
    f" then averages each with its neighbours': here it runs from {lowest:.2f} to"
    f" {highest:.2f}, and would run as far if nothing were wrong. `raw_score` is a"
    " distance and keeps its scale from folder to folder, with the same network and"
    " settings. `score` orders the images of one folder; whether one is defective is"
    " decided by `raw_score`.",
    0 <= lowest < 0.3,
    0.7 < highest <= 1,
)

# %% [markdown]
# ## Minutes 2 to 5: look
#
# Open `report.html` in the result's folder. It is one page without a server or a network; its pictures lie beside it, so a colleague can open a
# copy of the folder. This one is of the photographs of this chapter
# (<a href="../_static/report/report.html">open it alone</a>):
#
# <iframe src="../_static/report/report.html" title="The report of this chapter's photographs" loading="lazy"
# style="width: 100%; height: 720px; border: 1px solid #8886; border-radius: 6px"></iframe>
#
# - The images stand by falling raw score, under their maps, all in one colour scale. A line goes around what is above the threshold.
# - The **threshold** is a slider under the histogram of the scores: masks, lines and counts follow it.
# - <kbd>1</kbd> to <kbd>4</kbd> show the image, the overlay, the mask, or all side by side; <kbd>Enter</kbd> opens an image, up to its full size.
# - <kbd>G</kbd> and <kbd>B</kbd> **mark** an image as good or bad. The marks stay in your browser; *Save marked.csv* writes them down.
#
# ## Minutes 6 to 8: mark ten
#
# The threshold that is drawn at first used no labels: `robust` takes the lowest large mode of the raw scores as the normal images, and their spread
# *below* it, where no anomaly disturbs; `--threshold mixture` fits two Gaussians instead. [Decisions](../book/plugin.md) shows how far both can be
# trusted. A few marks are worth more. Ten will do: the order *nearest to the threshold first* shows the doubtful images, and those of the upper end
# are quickly seen to be bad.
#
# Here the labels of the drawn parts were kept, and stand in for your eyes.

# %%
names = [Path(p).name for p in result.paths]
labels = np.array([truth.get(name, -1) for name in names])
raw = result.raw_image_scores
doubtful = np.argsort(np.abs(raw - result.threshold.value), kind="stable")
mine = doubtful[:10]
marked = here / "marked.csv"  # what the report would have saved
rows = {"path": [result.paths[i] for i in mine], "label": labels[mine]}
pd.DataFrame(rows).to_csv(marked, index=False)
print(f"{len(mine)} marks, {int((labels[mine] == 1).sum())} of them bad")

# %% [markdown]
# ## Minute 9: decide
#
# ```bash
# musc threshold results/folder/photographs --labels marked.csv
# ```
#
# takes the threshold of the best F1 on the marked images. With `--recall 0.95` it is the highest that finds so many of the bad ones, with
# `--false-alarms 0.02` the lowest that flags so few of the good ones. Decisions, masks, regions and the report are written again.

# %%
shell("threshold", done, "--labels", marked)


# %%
def errors(threshold):
    """Of all images, the marked ones too."""
    flagged = raw >= threshold.value
    return {
        "flagged": int(flagged.sum()),
        "false alarms": int((flagged & (labels == 0)).sum()),
        "missed": int((~flagged & (labels == 1)).sum()),
        "defective": int((labels == 1).sum()),
    }


thresholds_tried = {
    "robust": result.decide("robust"),
    "mixture": result.decide("mixture"),
    "ten marks": MuScResult.load(done).threshold,
}
counts = pd.DataFrame({n: errors(t) for n, t in thresholds_tried.items()}).T
counts

# %% tags=["remove-input"]
missed, alarms = counts["missed"], counts["false alarms"]
verdict(
    f"Without labels, `robust` misses {missed['robust']} of the"
    f" {counts['defective'].max()} defective parts and `mixture` {missed['mixture']}, with"
    f" {alarms['robust']} and {alarms['mixture']} false alarms; the ten marks leave"
    f" {missed['ten marks']} and {alarms['ten marks']}. `robust` looks"
    f" at the scores below the mode only, of {len(result)} images that is a handful, and"
    " is widened for that: in a small folder it is cautious, and overlooks. The interval"
    " that the command prints is wide, as ten images cannot say more.",
    missed["ten marks"] < missed["robust"],
    missed["ten marks"] + alarms["ten marks"]
    <= missed["robust"] + alarms["robust"],
    len(result) < 30,
)

# %% mystnb={"figure": {"caption": "Raw scores, sorted, and three thresholds. Filled points were marked.", "name": "fig-own-threshold"}, "image": {"alt": "Points rising to the right, some of them filled; the threshold from marks lies below the one of robust, among the doubtful images."}}
order = np.argsort(raw)
figure, ax = plt.subplots(figsize=(6, 3.3), layout="constrained")
ax.plot(raw[order], "o", color="#444444", fillstyle="none", markersize=6)
at = np.flatnonzero(np.isin(order, mine))
ax.plot(at, raw[order][at], "o", color="#444444", markersize=6)
styles = {"robust": (figures.ORANGE, "-"), "mixture": (figures.BLUE, "--")}
styles["ten marks"] = ("#000000", ":")
for name, t in thresholds_tried.items():
    colour, style = styles[name]
    ax.axhline(t.value, color=colour, linestyle=style, label=name)
ax.set(xlabel="image, by score", ylabel="raw score")
ax.set_xticks(range(0, len(raw), 5))
ax.spines[["top", "right"]].set_visible(False)
_ = ax.legend(frameon=False, title="threshold")

# %% [markdown]
# ## Minute 10: act
#
# `scores.csv` has a decision for each image, `masks/` a mask in the photograph's own size. `regions.csv` names every connected region above the
# threshold, in pixels of the photograph, the strongest first; `regions.json` is the same in COCO's format with outlines, for labelling tools and
# other programs. `--min-region` leaves specks out, `--merge-regions` joins what is near.

# %%
shell("report", done, "--min-region", 20, "--merge-regions", 5)
found = pd.read_csv(done / "regions.csv")
found.drop(columns=["centre_x", "centre_y"]).head(6).round(3)

# %% mystnb={"figure": {"caption": "The four highest raw scores with their regions: outlines and boxes out of `regions.json`.", "name": "fig-own-regions"}, "image": {"alt": "Four photographs; on each, an outline and a box around its defect."}}
coco = json.loads((done / "regions.json").read_text())
ids = {image["file_name"]: image["id"] for image in coco["images"]}
by_name = {sample.name: sample.image for sample in photos.samples}
figure, axes = plt.subplots(1, 4, figsize=(8, 2.3), layout="constrained")
for ax, i in zip(axes, np.argsort(-raw)[:4], strict=True):
    ax.imshow(read_image(by_name[result.paths[i]]))
    ax.set_title(names[i], fontsize=9)
    ax.set_axis_off()
    for region in coco["annotations"]:
        if region["image_id"] == ids[result.paths[i]]:
            for outline in region["segmentation"]:
                xy = np.reshape(outline, (-1, 2)) - 0.5  # pixels' edges
                ax.fill(*xy.T, fill=False, edgecolor="cyan", linewidth=1.5)
            x, y, w, h = region["bbox"]
            box = plt.Rectangle((x - 0.5, y - 0.5), w, h, fill=False)
            ax.add_patch(box).set_edgecolor("white")

# %% [markdown]
# New photographs are scored by those that are there, with the same threshold: `musc score new/ --against results/folder/photographs`.
#
# From Python the whole is one call, and what comes back is the result that was saved above:

# %%
again = score_folder(folder, backbone=backbone)
assert np.allclose(again.raw_image_scores, raw, atol=1e-5)
first = again.paths[again.ranks.argmin()]
print(f"{len(again)} images scored; the most anomalous: {first}")

# %% [markdown]
# ## Photographs that are no squares
#
# By default every photograph is squashed to a square, as in the paper, and its map is stretched back. Of a long part that
# leaves small defects few patches along its length. `--image-size short:160` keeps the proportions: 160 pixels are the
# short side, and the long one follows from the photographs.
#
# To see the difference, two drawings side by side make a strip; of five of the ten strips one half is defective.

# %%
drawn = load_category("synthetic", name=category, good=15, defects=5).samples
flawed = [s for s in drawn if s.label]
good = iter([s for s in drawn if not s.label])
strips, strip_masks = [], []
for n in range(10):
    pair = [next(good), flawed[n] if n < len(flawed) else next(good)]
    pair = pair[:: 1 if n % 2 else -1]  # the defect is right and left in turn
    strips.append(np.hstack([read_image(s.image) for s in pair]))
    strip_masks.append(np.hstack(figures.masks_at(pair, 256)))

short = 20 * find_backbone(backbone).patch_size  # in pixels
seen, precision = {}, {}
for name, size in {"squashed": short, "kept": f"short:{short}"}.items():
    found = MuSc(MuScConfig(backbone=backbone, image_size=size)).run(strips)
    seen[name] = found.anomaly_maps
    shape = found.anomaly_maps.shape[1:]
    at = [resize_mask(mask, shape).numpy() for mask in strip_masks]
    precision[name] = (
        100 * pixel_metrics(np.stack(at), found.anomaly_maps)["ap"]
    )
    print(
        f"{name:8}  input {found.config.image_size}, pixel AP {precision[name]:.1f} %"
    )

# %% mystnb={"figure": {"caption": "Three defective strips with the true outline of the defect, and their maps squashed and kept, on one scale.", "name": "fig-own-rectangles"}, "image": {"alt": "Three rows of a strip and two maps; in the map that kept the proportions the bright spot is narrower and lies more closely on the outlined defect."}}
figure, axes = plt.subplots(3, 3, figsize=(8, 4.4), layout="constrained")
low = min(float(np.median(maps)) for maps in seen.values())
high = max(float(maps.max()) for maps in seen.values())
for row, n in zip(axes, range(3), strict=True):
    row[0].imshow(strips[n])
    for ax, maps in zip(row[1:], seen.values(), strict=True):
        shown = ax.imshow(
            maps[n],
            cmap="inferno",
            vmin=low,
            vmax=high,
            extent=(0, 512, 256, 0),
        )
    for ax in row:
        ax.contour(strip_masks[n], [0.5], colors="cyan", linewidths=0.8)
        ax.set(xticks=[], yticks=[])
for ax, name in zip(axes[0], ("strip", *seen), strict=True):
    ax.set_title(name, fontsize=10)
_ = figure.colorbar(shown, ax=axes, shrink=0.7, label="anomaly score")

# %% tags=["remove-input"]
verdict(
    "Kept in their proportions the strips have twice the patches, and the maps a pixel AP"
    f" of {precision['kept']:.1f} % instead of {precision['squashed']:.1f} %. It costs"
    " about twice the time; the [FAQ](../book/faq.md) has the table of four products and"
    " two networks.",
    precision["kept"] > precision["squashed"],
)

# %% [markdown]
# ## When something is wrong
#
# Mistakes are told with the file or value and the remedy. Some usual ones:

# %%
alone = here / "alone"
alone.mkdir()
example = files[0]
(alone / example.name).write_bytes(example.read_bytes())
damaged = here / "damaged"
damaged.mkdir()
for photo in files[:5]:
    (damaged / photo.name).write_bytes(photo.read_bytes())
(damaged / "cut_off.png").write_bytes(example.read_bytes()[:2000])


def attempt(what, action):
    try:
        said = action()
    except MuscError as error:
        said = f"{type(error).__name__}: {error}"
    print(f"{what}\n    {str(said).replace(str(here), '...')}")


attempt(
    "no such folder", lambda: score_folder(here / "photos", backbone=backbone)
)
attempt("a single image", lambda: score_folder(alone, backbone=backbone))
attempt("an even degree", lambda: MuScConfig(degrees=(2,)))
attempt("a wrong word", lambda: MuScConfig(precision="float8"))
attempt(
    "a damaged file is left out, and named",
    lambda: score_folder(damaged, backbone=backbone).skipped[0].reason,
)

# %% [markdown]
# And what no message can say:
#
# | You see | Often it is | Do |
# |:--------|:------------|:---|
# | every map bright everywhere | several products, or views, in one folder | one folder per product and view |
# | bright edges of the part | parts shifted or turned | align, or crop to the part |
# | a defect that is missed in all images | it is in most images | give normal `references` |
# | a small defect that is missed | it is smaller than a patch | a larger `--image-size`, or crops |
# | bright reflections | light changes | more images, so that each reflection has a relative |
#
# ## Exercises
#
# ```{exercise} What would a higher rate cost?
# :label: ex-own-threshold
#
# `robust` aims at 1 % of the normal images, and at no less than one image of the folder. Let it aim at 1, 5, 10 and 20 % (`musc.results.thresholds.robust`). How many misses and false
# alarms does each give? Could you have chosen the rate without the labels?
# ```
#
# ````{solution-start} ex-own-threshold
# :class: dropdown
# ````

# %% tags=["solution"]
from musc.results import thresholds

rates = pd.DataFrame(
    {
        f"{100 * rate:.0f} %": {
            "missed": int((raw[labels == 1] < at.value).sum()),
            "false alarms": int((raw[labels == 0] >= at.value).sum()),
        }
        for rate in (0.01, 0.05, 0.1, 0.2)
        for at in [thresholds.robust(raw, rate)]
    }
).T
rates.rename_axis("aimed at")

# %% tags=["solution", "remove-input"]
verdict(
    f"At 5 % it misses {rates['missed'].iloc[1]} instead of"
    f" {rates['missed'].iloc[0]}, and even at 20 % it gives"
    f" {rates['false alarms'].iloc[-1]} false alarms, where"
    f" {0.2 * (labels == 0).sum():.1f} of the {(labels == 0).sum()} good parts were aimed"
    " at: in so small a folder the estimate is far on the safe side. That this is so can"
    " only be seen with the labels. Which rate is right is another question, of what a"
    " miss and an alarm cost, and needs none.",
    rates["missed"].iloc[1] < rates["missed"].iloc[0],
    rates["false alarms"].iloc[-1] < 0.2 * (labels == 0).sum(),
)

# %% [markdown]
# ````{solution-end}
# ````
#
# ```{exercise} One new image
# :label: ex-own-new
#
# A new photograph arrives. Score it alone against the folder's images, as `references`, and compare with the raw score that it had in the batch.
# ```
#
# ````{solution-start} ex-own-new
# :class: dropdown
# ````

# %% tags=["solution"]
paths = [by_name[name] for name in result.paths]
one = next(  # no copy of another, which would be its reference
    i for i, key in enumerate(result.keys) if result.keys.count(key) == 1
)
new, known = [paths[one]], paths[:one] + paths[one + 1 :]
single = MuSc(MuScConfig(backbone=backbone)).run(new, references=known)
batch = result.raw_image_scores[one]
assert np.isclose(single.raw_image_scores[0], batch, atol=1e-4)
print("alone against the others: the raw score is the one of the batch")

# %% [markdown]
# Equal, as Eq. 1-3 treat every image by itself. Only `score` needs the batch, for its min-max and its neighbours. If the references are known to be
# normal, this is few-shot MuSc.
#
# ````{solution-end}
# ````
#
# ```{exercise} A stranger in the folder
# :label: ex-own-stranger
#
# Copy one picture of another product into the folder and score it again. What rank does it get, and what happens to the other images' `score` and
# `raw_score`?
# ```
#
# ````{solution-start} ex-own-stranger
# :class: dropdown
# ````

# %% tags=["solution"]
other = "wood" if category != "wood" else "tile"
stranger = load_category("synthetic", name=other).samples[-1]
read_image(stranger.image).save(here / "stranger.png")
mixed = MuSc(MuScConfig(backbone=backbone)).run([*paths, here / "stranger.png"])
rank = int(mixed.ranks[-1])
raw_shift = np.abs(mixed.raw_image_scores[:-1] - result.raw_image_scores).max()
before = np.median(result.image_scores)
after = np.median(mixed.image_scores[:-1])
print(f"the stranger's rank: {rank} of {len(mixed)}")
print(f"median score of the others: {before:.2f}, then {after:.2f}")
print(f"largest change of a raw score: {raw_shift:.2f}")

# %% tags=["solution", "remove-input"]
spread = np.ptp(result.raw_image_scores)
verdict(
    f"It gets rank {rank} and takes the upper end of the scale, so the other scores"
    f" shrink, in the median from {before:.2f} to {after:.2f}. Raw scores change by at"
    f" most {raw_shift:.2f}, {100 * raw_shift / spread:.0f} % of their range, as the"
    " interval average ignores a witness that has nothing alike. First place, and a map"
    " that is bright everywhere, are the sign of a stranger.",
    rank == 1,
    after < before,
    raw_shift < 0.1 * spread,
)

# %% [markdown]
# ````{solution-end}
# ````

# %% tags=["remove-cell"]
workplace.cleanup()

# %% [markdown]
# ## Summary
#
# - `musc run folder` is all; no labels, no masks, no training. `report.html` shows what came out.
# - `score` orders the images of a folder, `raw_score` keeps its scale and is what a threshold is set on.
# - Thresholds without labels are estimates, in small folders rough ones. Ten marks and `musc threshold` do better, and say how sure they are.
# - `regions.csv` and `regions.json` carry the defects on, in pixels of your photographs.
#
# **What next**: the [glossary](../book/glossary.md) and the [FAQ](../book/faq.md), or [RsCIN after another method](../book/plugin.md).
