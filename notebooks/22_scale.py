# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
#   musc:
#     minutes: 30
#     smoke: {}
# ---

# %% [markdown]
# # How far does it scale?
#
# :::{admonition} In this chapter
# - You read how time and memory of mutual scoring grow with the number of images, from what was measured.
# - You see what is lost if each image is compared with a part of the others only, and with which part.
# - You compute time and memory for your own numbers, and find the command for them.
#
# **Time**: 20 minutes to read, 10 for the exercise. **Needs**: [MSM](03_msm.ipynb), [subsets and cost](16_subsets_and_cost.ipynb).
# :::
#
# The paper scores at most 200 images at a time. A camera at a line takes thousands a day. Eq. 1 compares all of them in pairs:
# ten times as many images are a hundred times as many pairs. The tables of this chapter were written by `python -m
# benchmarks.scale`; this page draws them. Runs over 1,000 and 2,000 images are part of that command and are shown where they were made.

# %%
import csv
import json
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import HTML, display

from musc.results import figures
from musc.verdicts import verdict

# %matplotlib inline

MEASURED = Path("../benchmarks/results")
times = pd.read_csv(MEASURED / "scale_time.csv")
memory = pd.read_csv(MEASURED / "scale_memory.csv")
accuracy = pd.read_csv(MEASURED / "scale_accuracy.csv", dtype={"setting": str})
machine = json.loads((MEASURED / "scale_machine.json").read_text())
print(f"measured on {machine['cpu']}, one thread, torch {machine['torch']}")

# %% [markdown]
# ## Time
#
# One stage of drawn tokens, 14 x 14 patches of 384 channels, three degrees. Times are seconds that one processor thread worked, since
# the machine was shared; other programs still took room in its cache, so that single figures may be off by half. *5 % look-alikes* compares each image with the twentieth part of the others that looks
# most like it, the search for them included; *20 references* with 20 others that are drawn at random.

# %%
by_way = times.pivot(index="images", columns="way", values="seconds")
exponents = {}
for way in by_way:
    some = by_way[way].dropna()
    exponents[way] = np.polyfit(np.log(some.index), np.log(some), 1)[0]
by_way.rename_axis(None, axis=1)

# %% mystnb={"figure": {"caption": "Time over the number of images, both on logarithmic scales, with the exponent of a line fitted to the logarithms.", "name": "fig-scale-time"}, "image": {"alt": "Three rising lines: exact is the highest and steepest, look-alikes lie below it, references are the least steep and end lowest."}}
fig, ax = plt.subplots(figsize=(6, 3.4))
for way, marker, colour in zip(by_way, "so^", figures.SERIES, strict=True):
    ax.plot(
        by_way[way].dropna(),
        marker=marker,
        color=colour,
        label=f"{way}: $N^{{{exponents[way]:.2f}}}$",
    )
ax.set(
    xscale="log",
    yscale="log",
    xlabel="images N",
    ylabel="seconds of one thread",
)
ax.set_xticks(by_way.index, [str(n) for n in by_way.index], minor=False)
ax.minorticks_off()
ax.legend()
plt.show()

# %% tags=["remove-input"]
(
    verdict(
        f"Exact scoring grows with $N^{{{exponents['exact']:.1f}}}$; the number of pairs grows with $N^2$, and so few sizes on a machine with"
        " other work tell no difference.",
        1.8 < exponents["exact"] < 2.6,
    )
    + verdict(
        f"With a fixed number of references the pairs grow in proportion to the images, and the time with $N^{{{exponents['20 references']:.1f}}}$:"
        " it would be 1 if there were nothing to do but compare.",
        exponents["20 references"] < exponents["exact"] - 0.3,
    )
)

# %% [markdown]
# A share of look-alikes is still a share of $N^2$ pairs: it divides the time and leaves the exponent as it is. On a GPU the pairs are the same and
# each takes less; with 16 x 16 x 384 tokens an H200 was measured up to 2,000 images, in [Performance](../book/performance.md). The table
# below is for the tokens and the ways of this chapter, on one NVIDIA H200, and on two where somebody has them:
# `python -m benchmarks.scale gpu --devices cuda:0` and `--devices cuda:0,cuda:1` fill it. Seconds are those of the clock, and the first
# look-alikes probably pay for what a library loads once; peak and error are those of exact scoring, the error against float64.

# %%
WAYS = ["exact", "5 % look-alikes", "20 references"]
path = MEASURED / "scale_gpu.csv"
rows = list(csv.DictReader(path.open())) if path.exists() else []
found = {(int(r["devices"]), int(r["images"]), r["way"]): r for r in rows}
on_gpus = []
for gpus in (1, 2):
    for images in (200, 500, 1000, 2000):
        of = {way: found.get((gpus, images, way), {}) for way in WAYS}
        row = {f"{w} (s)": of[w].get("seconds", "not run") for w in WAYS}
        for what in ("peak (MiB)", "largest error"):
            row[what] = of["exact"].get(what, "not run")
        on_gpus.append({"GPUs": gpus, "images": images} | row)
if rows:
    display(pd.DataFrame(on_gpus).set_index(["GPUs", "images"]))
else:
    print("not run: no GPU was at hand, on one nor on two")

# %% [markdown]
# ## Memory
#
# Eq. 2 needs all distances of an image before it can average the lowest, and each comparison gives the distances of two images. If
# all are kept until the end, a stage takes $4 D N (N - 1) M$ bytes. But an image whose row is complete can be reduced at once.
# `musc.msm.mutual_scores(max_bytes=...)`, on the shell `--max-memory 2GiB`, takes some images at a time and completes their rows; what the same
# comparisons say of later images waits. At most a quarter of all distances wait at a time. Where even that is too much, images
# fall into groups, and pairs of two groups are compared twice; or, with `scratch=`, distances wait on disk and no pair is compared
# twice. The scores stay the same.

# %%
memory.T.rename(columns="run {}".format).map("{:,.5g}".format)

# %% tags=["remove-input"]
last = memory.sort_values("all distances (MiB)").iloc[-1]
verdict(
    f"With {last['images']:.0f} images all distances of a stage take {last['all distances (MiB)']:.0f} MiB. Below a bound of"
    f" {last['bound (MiB)']:.0f} MiB the peak was {last['peak (MiB)']:.0f} MiB beyond the tokens, {last['pairs compared (%)'] - 100:.0f} %"
    f" of the comparisons were made again, and the scores of {last['images checked']:.0f} images differ from those of float64 by"
    f" {last['largest error']:.0e} at most.",
    last["peak (MiB)"] < last["bound (MiB)"],
    last["bound (MiB)"] < last["all distances (MiB)"],
    last["largest error"] < 1e-6,
)

# %% [markdown]
# `python -m benchmarks.scale memory` made this table.
#
# The tokens themselves may lie on disk: a tensor over a memory-mapped file (`torch.from_file`) is read image by image.
#
# ## Fewer comparisons on purpose
#
# Eq. 2 averages the lowest 30 % of a patch's distances and forgets the others. So most comparisons are thrown away, if only one
# knew which. Three ways to choose:
#
# - **Look-alikes** (`neighbours=0.2`): coarse tokens, means over a 4 x 4 grid, tell which images look alike as a whole. Each image
#   is compared with its look-alikes only, and of these the lowest $K$ count, $K$ being what Eq. 2 takes of all images.
# - **References** (`references=40`): each image is scored by others that are drawn at random, its neighbours in a random circle of all, and
#   of these the lowest 30 % count.
# - **A coreset** (`neighbours="coreset:40"`): the same images score all, chosen so that they differ as much as possible (greedy
#   k-centre on the coarse tokens).
#
# Three data sets, with both measures after RsCIN and before rounding: a drawn texture (400 images); a drawn product (400), of
# whose normal images twelve have another colour, a rare variant; and 352 photographs of magnetic tiles. References were drawn
# three times, and the table has their mean.

# %%
PARTS = ["data", "way", "setting"]
MEASURES = ["pairs", "image AUROC", "pixel AP"]
mean = accuracy.groupby(PARTS, sort=False)[MEASURES].mean()
exact = mean.xs("exact", level="way").droplevel("setting")
lost = (mean - exact.reindex(mean.index.get_level_values("data")).values)[
    MEASURES[1:]
]
table = lost.join(mean["pairs"])[MEASURES].unstack("data").swaplevel(axis=1)
photographs = table["photographs"].round(1) + 0
photographs

# %% [markdown]
# The same for the drawn texture, and for the product with a rare variant: points gained or lost (negative) against exact scoring, over the share of
# pairs that are compared, in percent.

# %%
table["texture"].round(1) + 0  # -0.0 becomes 0

# %%
table["product with a rare variant"].round(1) + 0

# %% mystnb={"figure": {"caption": "What is gained or lost against exact scoring, over the share of pairs that are compared. Grey: within 0.3 points, the aim at a fifth of the time; dotted: one point, the aim at a twentieth.", "name": "fig-scale-accuracy"}, "image": {"alt": "Six panels, image AUROC above and pixel AP below for three data sets. References stay near zero; look-alikes fall on photographs and rise on the product with a rare variant."}}
fig, axes = plt.subplots(2, 3, figsize=(8, 4.6), sharex=True)
STYLES = {"look-alikes": "o-", "references": "s-", "coreset": "^-"}
for column, (name, found) in enumerate(
    lost.join(mean["pairs"]).groupby("data", sort=False)
):
    for row, measure in enumerate(MEASURES[1:]):
        ax = axes[row, column]
        ax.axhspan(-0.3, 0.3, color="0.85")
        ax.axhline(-1, color="0.5", ls=":")
        for (way, style), colour in zip(
            STYLES.items(), figures.SERIES, strict=True
        ):
            part = found.xs(way, level="way")
            x, y = part["pairs"], part[measure]
            ax.plot(x, y, style, color=colour, ms=4, label=way)
        ax.set(xscale="log", xlim=(70, 2))
        ax.set_xticks([50, 20, 10, 5, 2.5], ["50", "20", "10", "5", "2.5"])
        ax.minorticks_off()
    axes[0, column].set_title(name, fontsize=9)
    axes[1, column].set_xlabel("pairs compared (%)")
axes[0, 0].set_ylabel("image AUROC, points")
axes[1, 0].set_ylabel("pixel AP, points")
axes[0, 0].legend(fontsize=8)
fig.tight_layout()
plt.show()


# %% tags=["remove-input"]
def loss(data, way, setting, measure):
    return lost.loc[(data, way, setting), measure]


names = list(accuracy["data"].unique())
fifth = {name: lost.loc[(name, "references", "0.2")] for name in names}
worst = min(row["image AUROC"] for row in fifth.values())
worst_ap = min(row["pixel AP"] for row in fifth.values())
small = min(
    lost.loc[(name, "references", "0.05"), "image AUROC"] for name in names
)
(
    verdict(
        f"With a fifth of the pairs, random references lose at most {-worst:.1f} points of image AUROC and {-worst_ap:.1f} of pixel AP on"
        " any of the three. The aim was 0.3.",
        worst > -0.6,
        worst_ap > -0.4,
    )
    + verdict(
        f"With a twentieth they lose up to {-small:.1f} points; the aim was 1, so it is missed.",
        small < -1,
    )
)

# %% tags=["remove-input"]
variant = "product with a rare variant"
few = mean.loc[(variant, "look-alikes", "0.05"), "pairs"]
fifth_of = mean.xs(("look-alikes", "0.2"), level=("way", "setting"))[
    "pairs"
].mean()
(
    verdict(
        "Look-alikes are a different method, not a cheaper one. On the product with a rare variant they gain"
        f" {loss(variant, 'look-alikes', '0.05', 'image AUROC'):.1f} points of image AUROC with {few:.0f} % of the pairs.",
        loss(variant, "look-alikes", "0.05", "image AUROC") > 3,
    )
    + verdict(
        f"On the photographs they lose {-loss('photographs', 'look-alikes', '0.05', 'pixel AP'):.0f} points of pixel AP: look-alikes of a"
        " defective image may have its defect too, and then vouch for it.",
        loss("photographs", "look-alikes", "0.05", "pixel AP") < -10,
    )
    + verdict(
        f"With a fifth of the images as look-alikes, {fifth_of:.0f} % of the pairs are compared, since being alike is not always mutual.",
        20 < fifth_of < 40,
    )
)

# %% tags=["remove-input"]
core = {name: loss(name, "coreset", "0.025", "pixel AP") for name in names}
verdict(
    f"A coreset is not safe either. With a fortieth of the images it loses {-core['photographs']:.0f} points of pixel AP on the photographs, though image AUROC rises by {loss('photographs', 'coreset', '0.025', 'image AUROC'):.1f}: the same few"
    " images score all others, whatever is on them, while every image is a reference of equally many others.",
    core["photographs"] < -10,
)

# %% tags=["remove-input"]
above = accuracy[accuracy["data"] == variant]["variants"]
verdict(
    f"No way helps the variant itself: a recoloured image scores above {above.min():.0f} % of the usual normal ones in every way that was"
    " measured, exact scoring included.",
    above.min() > 95,
)

# %% [markdown]
# If variants are known, score them as products of their own, or give reference images of each ([few shots](09_few_shot.ipynb)).
#
# ## What to do
#
# | images | do |
# |:--|:--|
# | up to 300 | nothing |
# | up to 1,000 | one GPU, or patience; `--max-memory` where memory is short |
# | thousands, one GPU | exact: `--device cuda --max-memory 30GiB` |
# | thousands, CPU | `--references 80`, or `--subsets` |
# | thousands, exact, several machines or GPUs | [a cluster](../book/distributed.md) |
# | some labels to check it by | try `--neighbours 0.1`, which gains much or loses much |
# | images one by one | [a stream](07_your_own_images.ipynb), its pool bounded |
#
# ## Your own numbers
#
# The calculator scales what was measured: one thread of the processor above, and one H200 ([Performance](../book/performance.md)). Threads are taken to share the work
# evenly, which they do up to the number of cores. Another machine is another factor; the growth is the same. Extraction of tokens is not included: it is
# linear, and usually longer than scoring below some hundred images.

# %% tags=["remove-input"]
# a pair costs M^2 (C + box) units: box sums of three degrees cost as much as `box` channels
speed = pd.read_csv(MEASURED / "results.csv").query(
    "ours.str.startswith('float32')"
)
speed = speed.set_index("size")["ours (s)"]
small = float(speed.filter(like="N = 100, 14 x 14 x 192").iloc[0]) / 4950
large = float(speed.filter(like="37 x 37 x 1024, smooth").iloc[0]) / 45
ratio = large / small / (1369 / 196) ** 2
box = max(0.0, (1024 - 192 * ratio) / (ratio - 1))
one = times[times["way"] == "exact"].sort_values("images").iloc[-1]
pair = one["seconds"] / (one["images"] * (one["images"] - 1) / 2)
gpu = pd.read_csv(MEASURED / "gpu_h200.csv").set_index("what")["seconds"]
first = gpu["N = 200, 37 x 37 x 1024"] / (200 * 199 / 2)
second = gpu["N = 1000, 16 x 16 x 384"] / (1000 * 999 / 2)
power = np.log(first / second) / np.log(1369**2 * 1024 / (256**2 * 384))
share = (
    accuracy.query("way == 'look-alikes' and setting == '0.2'")["pairs"].mean()
    / 100
)
HTML(
    f'<div id="scale-calculator" data-pair="{pair:.3e}" data-box="{box:.0f}" data-near="{share:.3f}"'
    f' data-gpu-pair="{first:.3e}" data-gpu-work="{1369**2 * 1024:.0f}" data-gpu-power="{power:.3f}">'
    "<p>The calculator needs JavaScript.</p></div>"
)

# %% [markdown]
# ```{raw} html
# <link rel="stylesheet" href="../_static/scale/calculator.css">
# <script src="../_static/scale/calculator.js"></script>
# ```
#
# ## Exercise
#
# ```{exercise} When does a second group begin?
# :label: ex-scale-groups
#
# Half of $n$ images are done, half are not: then $n^2 / 4$ pairs of images wait, each with $4 D M$ bytes. How many images with $M = 1369$ and
# $D = 3$ can wait for each other in 8 GiB? And what share of the comparisons is made again with twice as many images?
# ```
#
# ````{solution-start} ex-scale-groups
# :class: dropdown
# ````

# %% tags=["solution"]
unit = (
    4 * 3 * 1369
)  # bytes of one image's distances to one other, at three degrees
group = int(2 * np.sqrt(8 * 2**30 / unit))
N = 2 * group
pairs = N * (N - 1) // 2
again = group * group  # pairs of an image of either group
print(
    f"{group} images; with {N}, {again / pairs:.0%} of the pairs are compared twice"
)

# %% tags=["solution", "remove-input"]
verdict(
    f"{group} images wait for each other. With {N} there are two groups, and {100 * again / pairs:.0f} % of the pairs lie between them: time grows"
    " by half, whatever the size. With many groups it grows to at most twice.",
    0.45 < again / pairs < 0.55,
)

# %% [markdown]
# ````{solution-end}
# ````
#
# ## Summary
#
# - Time grows with $N^2$; memory need not: rows that are complete are reduced and dropped, and the scores stay the same.
# - Random references are the way to compare less that lost little everywhere: each image has its own.
# - Look-alikes gained on one data set and lost on another: try them where labels can tell.
# - Thousands of images with all pairs are work for a GPU or a [cluster](../book/distributed.md).
