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
# # Few-shot: Tables 15 and 16
#
# With $k$ normal reference images of the product, two extensions are possible (App. A.6). **MuSc with references** lets them join the images
# that score each test image (Tab. 15). **MuSc+** lets *only* them score, by the smallest distance (Tab. 16). The paper draws the
# references from the training images and does not say how often; here the numbers are means over several draws (five on `paper`, two on
# `demo`), and full-shot takes all. In `demo`, three products are measured, with eight training images each.

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
# For your copies of the data sets, on a GPU: `musc reproduce table_15 --profile paper --data-root MVTEC --device cuda`
# :::

# %% [markdown]
# ## Table 15: MuSc with references
#
# The paper's finding: they help little, because the test images themselves hold plenty of normal patches.

# %% mystnb={"figure": {"caption": "Table 15 as a picture. Hollow: the paper. Filled: this run.", "name": "fig-table-15"}, "image": {"alt": "Dot plot of image and pixel AUROC of MuSc for growing numbers of references."}}
table_15 = reproduce.make("table_15", lab)
table_15.figure

# %%
print(table_15.summary)
table_15.table

# %% [markdown]
# ## Table 16: MuSc+
#
# The paper's finding: with few references MuSc+ classifies worse than MuSc without any; with many it becomes better, since no abnormal image
# takes part in the scoring.

# %%
table_16 = reproduce.make("table_16", lab)
print(table_16.summary)
table_16.table

# %% mystnb={"figure": {"caption": "Table 16 as a picture. Hollow: the paper. Filled: this run.", "name": "fig-table-16"}, "image": {"alt": "Dot plot of image and pixel AUROC of MuSc+ for growing numbers of references."}}
table_16.figure

# %% [markdown]
# ## Do the printed numbers agree with each other?

# %%
print(reproduce.remarks("table_15", "table_16"))
