# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
#   musc:
#     smoke:
#       categories: [leather]
#       images: 6
# ---

# %% [markdown]
# # RsCIN: Tables 5 and 11, Figures 5 and 8
#
# RsCIN replaces an image's score by a mean over images with similar class tokens ([RsCIN](04_rscin.ipynb)). What does it gain, for MuSc
# (Tab. 5) and for other methods (Tab. 11)? What do the scores look like before and after (Fig. 5), and how wide may the window be (Fig. 8)?
# In `demo`, three products of 16 images each are measured: few for a method that lives on neighbours.

# %% tags=["parameters"]
profile = "demo"  # "paper": MVTec AD, VisA, BTAD from data_root
data_root = None  # for "paper": a folder, or a list of folders
categories = ["leather", "screw", "board"]  # only these; None: all
images = None  # at most so many of a category; None: the profile's
backbone = None  # None: the profile's own
device = "auto"

# %%
from musc import reproduce

# %matplotlib inline

lab = reproduce.profile(
    profile,
    data_root,
    backbone=backbone,
    device=device,
    categories=categories,
    images=images,
    folder="../results/reproduce",
)
print(lab.describe())

# %% [markdown]
# :::{admonition} How to read it
# **Paper** is what the paper prints, **released** what the authors' released code reports with ViT-L-14-336 at 518 pixels, **here** what this
# run measured. *Not run*: it could be measured, and this run has no data for it. *Quoted*: the paper's number of a method that this package
# does not contain. The committed page shows the profile `demo`: a synthetic data set and a small network, so its numbers stand in rows or
# columns of their own and are not comparable with those of MVTec AD or VisA. What can be compared is the *order* of settings.
#
# For your copies of the data sets, on a GPU: `musc reproduce table_5 --profile paper --data-root MVTEC --data-root VISA --device cuda`
# :::

# %% [markdown]
# ## Table 5: without and with

# %% mystnb={"figure": {"caption": "Table 5 as a picture. Hollow: the paper. Filled: this run.", "name": "fig-table-5"}, "image": {"alt": "Dot plot of image AUROC without and with RsCIN."}}
table_5 = reproduce.make("table_5", lab)
table_5.figure

# %%
print(table_5.summary)
table_5.table

# %% [markdown]
# With 16 images and an untypical network, RsCIN may as well lower a score: it helps only where an image's nearest neighbours are of its kind.
#
# ## Figure 5: scores before and after
#
# Above, the image scores of one product. Below, a normal image with a high score and the normal image most similar to it. In the paper,
# these two had raw scores of 0.129 and 0.079 and class tokens with a similarity of 0.987.

# %% mystnb={"figure": {"caption": "Figure 5: image scores before and after RsCIN, and a pair of normal images with their maps.", "name": "fig-figure-5"}, "image": {"alt": "Two histograms; below them two images, each with its heat map."}}
figure_5 = reproduce.make("figure_5", lab)
figure_5.figure

# %%
print(figure_5.summary)
figure_5.table

# %% [markdown]
# ## Figure 8: the width of the window
#
# The paper says that two windows together beat every single one on both data sets, and that no mask at all (all images) is worse.

# %% mystnb={"figure": {"caption": "Figure 8: image AUROC against the window; dashed the two windows of the method.", "name": "fig-figure-8"}, "image": {"alt": "A curve over windows 2 to 9 and all images, and a dashed line."}}
figure_8 = reproduce.make("figure_8", lab)
figure_8.figure

# %%
print(figure_8.summary)
figure_8.table

# %% [markdown]
# ## Table 11: RsCIN for other methods
#
# Of the eight methods, two are in this package: SPADE {cite}`cohen2020spade` and PatchCore {cite}`roth2022patchcore`. Both run here on the
# tokens of *our* backbone instead of a WideResNet-50's features, and take their class tokens from it, so they are not the networks whose
# numbers the paper prints. The rest is quoted. To try RsCIN on any method's scores of your own, see the [plug-in page](../book/plugin.md).

# %%
table_11 = reproduce.make("table_11", lab)
print(table_11.summary)
table_11.table

# %% mystnb={"figure": {"caption": "Table 11 as a picture. Hollow: the paper. Filled: this run.", "name": "fig-table-11"}, "image": {"alt": "Dot plot of image AUROC of nine methods without and with RsCIN."}}
table_11.figure

# %% [markdown]
# ## Do the printed numbers agree with each other?

# %%
print(reproduce.remarks("table_5", "table_11"))
