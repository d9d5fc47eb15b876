# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
#   musc:
#     minutes: 30
#     smoke:
#       textures: [brick]
# ---

# %% [markdown]
# # Real photographs: what a network must have seen
#
# :::{admonition} In this chapter
# - You score photographs of real surfaces, with planted defects, by three networks that differ in what they have seen.
# - You see what mutual scoring brings by itself, and what only a trained network brings.
# - You bring a better network to your machine by one command.
#
# **Time**: 10 minutes to read, 15 for the exercises. **Needs**: [the metrics](06_metrics.ipynb).
# :::
#
# The other chapters draw their images, so that everybody can run them. Here are photographs: brick, gravel and grass, which scikit-image
# brings. Each is cut into sixteen crops, and every second one gets a defect (a line, a spot, foreign texture, a smear, a shade), so that the truth is known.
# The surfaces are real, the defects are not.
#
# Nothing in Eq. 1-5 is trained. All that MuSc knows of pictures comes from the backbone:
#
# | Network | Has seen | Weights |
# |:--------|:---------|:--------|
# | untrained | nothing: random numbers, in the shape of the embedded network | – |
# | `procedural`, embedded | images that formulas draw, in which it was **trained on mutual scoring itself** ([card](../book/embedded.md)) | in the package |
# | `focus_vits14` | photographs, many of them, as a DINOv2 {cite}`oquab2023dinov2`; what else is not published | `musc weights focus_vits14` |

# %% tags=["parameters"]
textures = ["brick", "gravel", "grass"]  # of scikit-image

# %% tags=["nbval-ignore-output"]
import warnings

import numpy as np
import pandas as pd
import skimage.data

from musc import MuSc, MuScConfig
from musc.backbones import find_backbone
from musc.backbones.fetch import present
from musc.datasets import planted
from musc.metrics import image_metrics
from musc.results import figures
from musc.verdicts import verdict

# %matplotlib inline
warnings.filterwarnings("ignore", message="IProgress")  # no bar is shown here

networks = {
    "untrained": MuScConfig(backbone="procedural", weights="random"),
    "procedural": MuScConfig(backbone="procedural"),
}
if present(find_backbone("focus_vits14")):
    networks["focus_vits14"] = MuScConfig(backbone="focus_vits14")
else:
    print("focus_vits14 is not on this machine, and left out below;")
    print("`musc weights focus_vits14` brings it (88 MB)")
print("networks:", ", ".join(networks))

# %% mystnb={"figure": {"caption": "The first eight crops of each photograph; every second one has a planted defect.", "name": "fig-photographs"}, "image": {"alt": "Three rows of grey crops, of brick, gravel and grass; lines and spots are easy to see, foreign texture and smears on gravel hardly."}}
names = ("brick", "gravel", "grass")
photographs = {name: getattr(skimage.data, name)() for name in names}
surfaces = {name: planted.texture(photographs, name) for name in textures}
figures.panels(
    [figures.as_seen(s.samples[:8], 128) for s in surfaces.values()],
    titles=[
        [x.defect for x in s.samples[:8]] if n == 0 else []
        for n, s in enumerate(surfaces.values())
    ],
    names=list(surfaces),
    side=1.2,
)

# %% [markdown]
# ## Three networks, side by side

# %% tags=["nbval-ignore-output"]
results, rows = {}, []
for network, config in networks.items():
    musc = MuSc(config)
    for name, surface in surfaces.items():
        result = musc.run(surface)
        results[network, name] = result
        pixel = result.metrics["pixel_clean"]
        image = result.metrics["image_before_rscin"]
        measured = {
            "image AUROC": image["auroc"],
            "pixel AUROC": pixel["auroc"],
        }
        measured |= {"pixel AP": pixel["ap"], "PRO": pixel["pro"]}
        rows.append({"network": network, "texture": name, **measured})
table = 100 * pd.DataFrame(rows).set_index(["network", "texture"])
mean = table.groupby("network", sort=False).mean()
table.unstack("texture")[["image AUROC", "pixel AP"]].round(1)

# %% tags=["nbval-ignore-output"]
mean.round(1)  # over the textures, in percent; image AUROC before RsCIN

# %% tags=["nbval-ignore-output", "remove-input"]
nothing, drawn = mean.loc["untrained"], mean.loc["procedural"]
blank = table.loc["untrained", "pixel AP"]
said = verdict(
    f"Mutual scoring by itself, on tokens of a network that has learned nothing, reaches an"
    f" image AUROC of {nothing['image AUROC']:.0f} %, near to chance. It points at defects"
    f" where the surface is plain, pixel AP {blank.max():.0f} % on {blank.idxmax()}, and"
    f" nowhere else, {blank.min():.0f} % on {blank.idxmin()}. The embedded network, which"
    f" never saw a photograph but was trained for this task, reaches"
    f" {drawn['image AUROC']:.0f} % and a pixel AP of {drawn['pixel AP']:.0f} %, with the"
    f" untrained one at {nothing['pixel AP']:.0f}.",
    abs(nothing["image AUROC"] - 50) < 15,
    blank.idxmax() == "brick" and blank.min() < 5,
    drawn["image AUROC"] > nothing["image AUROC"] + 15,
    drawn["pixel AP"] > nothing["pixel AP"] + 15,
)
if "focus_vits14" in mean.index:
    seen = mean.loc["focus_vits14"]
    said += verdict(
        f"The one that has seen photographs, and was not trained for it, ranks the crops as"
        f" well, {seen['image AUROC']:.0f} %, and points at the defects more sharply, pixel AP"
        f" {seen['pixel AP']:.0f} %, but covers fewer of them, PRO {seen['PRO']:.0f} instead"
        f" of {drawn['PRO']:.0f} %. (Its maps have 20 x 20 patches, the embedded one's"
        " 32 x 32.)",
        abs(seen["image AUROC"] - drawn["image AUROC"]) < 5,
        seen["pixel AP"] > drawn["pixel AP"] + 3,
        seen["PRO"] < drawn["PRO"],
    )
said

# %% tags=["nbval-ignore-output", "hide-input"] mystnb={"figure": {"caption": "One defective crop of each texture, its mask as an outline on the anomaly maps of each network. Scores of two networks cannot be compared: each row has its own scale, and bright is its largest value.", "name": "fig-photographs-maps"}, "image": {"alt": "The maps of the untrained network follow the joints of the brick and are bright all over on gravel and grass, not at the outlined spots; those of the two trained networks have their brightest place at the spots."}}
chosen = dict.fromkeys(surfaces, 3)  # the spots
crops = [surfaces[name].samples[i] for name, i in chosen.items()]
scaled = []
for network in networks:
    maps = [results[network, name].anomaly_maps for name in surfaces]
    top = max(m[chosen[n]].max() for m, n in zip(maps, surfaces, strict=True))
    scaled.append(
        [m[chosen[n]] / top for m, n in zip(maps, surfaces, strict=True)]
    )
masks = list(figures.masks_at(crops, 256))
figures.panels(
    [figures.as_seen(crops, 256), *scaled],
    titles=[list(surfaces), *[[] for _ in networks]],
    names=["crop", *networks],
    outlines=masks,
    label="share of the row's largest score",
    limits=(0, 1),
    side=1.8,
)

# %% [markdown]
# ## What to take from it
#
# - No two stones of the gravel are alike. To call two of them the same and a spot another takes tokens that say *gravel*, and not which
#   pixels are dark. Eq. 1-3 only compare; what is alike is learned, from pictures.
# - On textures drawn ones teach enough. On parts they do not: on 352 real photographs of magnetic tiles the embedded network has a pixel AP of 0.118, and
#   DeiT-Tiny, a small network of photographs, 0.792 ([card](../book/embedded.md)). These 48 crops with their drawn defects are no inspection line.
# - So bring one: `musc weights focus_vits14`, or where the Hugging Face hub can be reached `musc weights dinov2_vits14`. From then on
#   `musc run` takes it by itself, and says so in its results.
#
# ## Exercises
#
# ```{exercise} Which defects?
# :label: ex-photographs-kinds
#
# Compute the image AUROC for each kind of defect against all normal crops, per network. What does each see least?
# ```
#
# ````{solution-start} ex-photographs-kinds
# :class: dropdown
# ````

# %% tags=["solution", "nbval-ignore-output"]
kinds = {}
for (network, name), result in results.items():
    of = np.array([s.defect for s in surfaces[name].samples])
    for kind in planted.KINDS:
        rows = np.isin(of, ["good", kind])
        found = image_metrics(of[rows] == kind, result.raw_image_scores[rows])
        kinds.setdefault((network, kind), []).append(100 * found["auroc"])
kinds = pd.Series({key: np.mean(v) for key, v in kinds.items()}).unstack(0)
kinds[list(networks)].round(0)

# %% tags=["solution", "remove-input", "nbval-ignore-output"]
weak = kinds["procedural"].idxmin()
said = verdict(
    f"The embedded network sees a {weak} least, {kinds['procedural'].min():.0f} %; over the"
    f" kinds it has {kinds['procedural'].mean():.0f} % and the untrained one"
    f" {kinds['untrained'].mean():.0f} %.",
    kinds["procedural"].mean() > kinds["untrained"].mean(),
)
if "focus_vits14" in kinds:
    seen = kinds["focus_vits14"]
    said += verdict(
        f"The network of photographs sees that one in {seen[weak]:.0f} %, and a smear, which"
        f" the embedded one sees in {kinds['procedural']['smear']:.0f}, in"
        f" {seen['smear']:.0f}: they differ in what they have learned to pass over.",
        seen[weak] > kinds["procedural"][weak] + 10,
        seen["smear"] < kinds["procedural"]["smear"] - 10,
    )
said

# %% [markdown]
# ````{solution-end}
# ````
#
# ```{exercise} Does RsCIN help?
# :label: ex-photographs-rscin
#
# The tables show image scores before RsCIN. What are they after it, and whose class tokens serve it best?
# ```
#
# ````{solution-start} ex-photographs-rscin
# :class: dropdown
# ````

# %% tags=["solution", "nbval-ignore-output"]
both = {
    key: {
        word: 100 * result.metrics[which]["auroc"]
        for word, which in (
            ("before", "image_before_rscin"),
            ("after", "image"),
        )
    }
    for key, result in results.items()
}
change = pd.DataFrame(both).T.groupby(level=0, sort=False).mean()
change.round(1)

# %% tags=["solution", "remove-input", "nbval-ignore-output"]
moved = (change["after"] - change["before"]).loc["procedural"]
verdict(
    f"On average over the textures RsCIN moves the embedded network's AUROC by"
    f" {moved:+.1f} points: with eight crops of each class, one that changes places with"
    " another is 1.6 points of one texture, so do not read much into it.",
    abs(moved) < 10,
)

# %% [markdown]
# ````{solution-end}
# ````
#
# ```{exercise} Two witnesses
# :label: ex-photographs-two
#
# Average the ranks that two networks give the crops of a texture. Is the mean of the untrained and the embedded one better than the embedded one alone?
# ```
#
# ````{solution-start} ex-photographs-two
# :class: dropdown
# ````

# %% tags=["solution"]
single, joint = [], []
for name, surface in surfaces.items():
    labels = np.array([s.label for s in surface.samples])
    order = [
        results[n, name].raw_image_scores.argsort().argsort()
        for n in ("untrained", "procedural")
    ]
    single.append(100 * image_metrics(labels, order[1])["auroc"])
    joint.append(100 * image_metrics(labels, order[0] + order[1])["auroc"])
print(
    f"embedded {np.mean(single):.0f} %, with untrained {np.mean(joint):.0f} %"
)

# %% tags=["solution", "remove-input"]
alone, together = np.mean(single), np.mean(joint)
verdict(
    f"No: {together:.0f} instead of {alone:.0f} %. A second witness helps if it knows"
    " something.",
    together < alone,
)

# %% [markdown]
# ````{solution-end}
# ````
#
# ## Summary
#
# - Mutual scoring compares; what is alike is decided by the network.
# - Tokens of a network that learned nothing find hardly a planted defect on photographs, those of a trained one most.
# - The embedded network is for this book. For photographs take one that has seen photographs: `musc weights`.
#
# **What next**: [your own images](07_your_own_images.ipynb), with a better network.
