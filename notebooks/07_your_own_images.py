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
# - You score a folder of photographs, from Python and from a shell, without labels, masks or a `good` folder.
# - You read the table, the overlays and the masks that come out, and choose a threshold without labels.
# - You know the usual mistakes, and what they say.
#
# **Time**: 15 minutes to read, 15 for the exercises. **Needs**: a folder of images; this chapter writes one.
# :::
#
# What MuSc wants is modest: photographs of **one product**, taken in about the same way, from about ten on (two at the very least), most of them
# normal at any one place. Names, sizes and formats may vary. What it cannot use: pictures of different products in one folder, or parts that all
# have the same defect.

# %% tags=["parameters"]
category = "bottle_top"  # of the synthetic set, for a folder to work on
photographs = None  # your own folder instead
limit = 14  # images; None: all
backbone = "procedural"

# %%
import tempfile
from math import ceil
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from PIL import Image

from musc import MuSc, MuScConfig, datasets, score_folder
from musc.cli import main as musc_command
from musc.datasets import load_category
from musc.datasets.images import read_image
from musc.errors import MuscError
from musc.results import figures, pictures
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
# ## From Python: one call

# %%
result = score_folder(folder, backbone=backbone)
first = result.paths[result.ranks.argmin()]
print(f"{len(result)} images scored; the most anomalous: {first}")

# %% mystnb={"figure": {"caption": "The first thing to look at: most and least anomalous images with their maps.", "name": "fig-own-overview"}, "image": {"alt": "A row of images by falling score, with overlays below."}}
pictures.overview(result, photos.samples)

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
# ## From a shell
#
# ```bash
# musc run photographs/ --out results
# ```
#
# does the same and writes everything down. Its words are the settings' names: `--backbone ViT-L-14-336 --device cuda` for the paper's network. Here
# the same command is called from Python.


# %%
def shell(*words):
    """`musc ...`, with this machine's folders left out of what it prints."""
    import contextlib
    import io

    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = musc_command([str(w) for w in words])
    print(said.getvalue().replace(str(folder.parent), "...").strip())
    print(f"exit code {code}")


out = here / "results"
shell("run", folder, "--layout", "folder", "--out", out, "--backbone", backbone)

# %%
done = next(out.rglob("scores.csv")).parent
by_kind = {}
for file in sorted(f.relative_to(done) for f in done.rglob("*") if f.is_file()):
    kind = file.parts[0] if len(file.parts) > 1 else file.name
    by_kind[kind] = by_kind.get(kind, 0) + 1
print("\n".join(f"{n:3d}  {kind}" for kind, n in by_kind.items()))
table = pd.read_csv(done / "scores.csv", keep_default_na=False)
table.sort_values("rank").head(6).round(3)

# %% [markdown]
# ## A threshold without labels
#
# The paper stops at scores. `musc run` goes one step on: its `robust` threshold takes the lowest large mode of the raw scores as the
# normal images, and their spread *below* it, where no anomaly disturbs. The `decision` column, the files in `masks/` and the lines on the overlays come
# from it. `--threshold mixture` fits two Gaussians instead. [Decisions](../book/plugin.md) shows how far both can be
# trusted.

# %% mystnb={"figure": {"caption": "Raw scores, sorted, and two thresholds that use no labels.", "name": "fig-own-threshold"}, "image": {"alt": "Grey points rising to the right; the solid line of the robust threshold lies above the dashed one of the mixture, with some of the highest points between the two."}}
chosen = {m: result.decide(m) for m in ("mixture", "robust")}
order = np.argsort(result.raw_image_scores)
figure, ax = plt.subplots(figsize=(6, 3.3), layout="constrained")
ax.plot(result.raw_image_scores[order], "o", color="#444444", markersize=6)
styles = {"robust": (figures.ORANGE, "-"), "mixture": (figures.BLUE, "--")}
for method, t in chosen.items():
    colour, style = styles[method]
    ax.axhline(t.value, color=colour, linestyle=style, label=method)
ax.set(xlabel="image, by score", ylabel="raw score")
ax.spines[["top", "right"]].set_visible(False)
_ = ax.legend(frameon=False, title="threshold")

# %%
robust = result.threshold
print(
    f"robust: raw score >= {robust.value:.3f} marks"
    f" {int(result.decisions.sum())} of {len(result)} images; about"
    f" {100 * robust.false_alarm_rate:.0f} % of normal images would reach it"
)

# %% [markdown]
# Is it any good? No folder of your own can answer that; this one can, since the labels of the drawn parts were kept.

# %%
labels = np.array([truth.get(Path(p).name, -1) for p in result.paths])
counts = {}
for method, t in chosen.items():
    flagged = result.raw_image_scores >= t.value
    counts[method] = {
        "flagged": int(flagged.sum()),
        "false alarms": int((flagged & (labels == 0)).sum()),
        "missed": int((~flagged & (labels == 1)).sum()),
        "defective": int((labels == 1).sum()),
    }
counts = pd.DataFrame(counts).T
counts

# %% tags=["remove-input"]
missed, alarms = counts["missed"], counts["false alarms"]
verdict(
    f"The default misses {missed['robust']} of the {counts['defective'].max()} defective"
    f" parts, `mixture` {missed['mixture']}, with {alarms['robust']} and"
    f" {alarms['mixture']} false alarms. The default looks at the scores below the mode"
    f" only, of {len(result)} images that is a handful, and is widened for that: in a"
    " small folder it is cautious, and overlooks. Where a miss is dear, take `mixture`, and"
    " go through the images by falling `raw_score`.",
    missed["robust"] > missed["mixture"],
    alarms["robust"] <= alarms["mixture"],
    len(result) < 30,
)

# %% mystnb={"figure": {"caption": "What `overlays/` holds: the colour is the map, on one scale for the folder; the line goes around what the default threshold marks, and is missing where it marks nothing.", "name": "fig-own-overlays"}, "image": {"alt": "The four images with the highest raw scores, with heat over their defects; those above the threshold have an outline around it."}}
top = [result.paths[i] for i in np.argsort(-result.raw_image_scores)[:4]]
overlays = [
    np.asarray(Image.open(done / "overlays" / f"{name}.png").convert("RGB"))
    for name in top
]
figures.panels([overlays], titles=[[Path(name).stem for name in top]], side=2)

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
# `robust` aims at 1 % of the normal images. Let it aim at 5, 10 and 20 % (`musc.results.thresholds.robust`). How many misses and false
# alarms does each give? Could you have chosen the rate without the labels?
# ```
#
# ````{solution-start} ex-own-threshold
# :class: dropdown
# ````

# %% tags=["solution"]
from musc.results import thresholds

raw = result.raw_image_scores
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
by_name = {sample.name: sample.image for sample in photos.samples}
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
# - `score_folder(folder)` or `musc run folder` is all; no labels, no masks, no training.
# - `score` orders the images of a folder, `raw_score` keeps its scale and is what a threshold is set on.
# - Thresholds without labels are estimates, in small folders rough ones. Look at the overlays before you believe one.
#
# **What next**: the [glossary](../book/glossary.md) and the [FAQ](../book/faq.md), or [RsCIN after another method](../book/plugin.md).
