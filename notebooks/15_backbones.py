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
# # Backbones: Table 8
#
# MuSc trains nothing, so all that it knows comes from its backbone. Table 8 tries eleven: transformers trained by DINO, DINOv2 and CLIP, with
# smaller and larger patches, and two Swin transformers. `musc backbones` lists them all by name; on the profile `paper` each is run whose
# weights are on the disk or can be fetched, and a row whose weights cannot be had says *not run*.
#
# In `demo`, the embedded network stands beside itself at the size of image that it was trained on, and beside itself untrained: random
# weights in the same architecture. What the untrained one reaches is what patches, positions and colours alone are worth.

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
# For your copies of the data sets, on a GPU: `musc reproduce table_8 --profile paper --data-root MVTEC --data-root VISA --device cuda`
# :::

# %% mystnb={"figure": {"caption": "Table 8 as a picture. Hollow: the paper. Filled: this run.", "name": "fig-table-8"}, "image": {"alt": "Dot plot of image and pixel AUROC for eleven networks and three variants of the embedded one."}}
table_8 = reproduce.make("table_8", lab)
table_8.figure

# %%
print(table_8.summary)
table_8.table

# %% [markdown]
# In the paper, three things help: more pixels (ViT-L-14 at 336 beats ViT-L-14 in AC), smaller patches (DINO ViT-B-8 beats ViT-B-16), and
# patches of one size at every stage. Swin merges patches on the way and falls behind; it also has no class token, so its rows are without RsCIN.
#
# ## Do the printed numbers agree with each other?

# %%
print(reproduce.remarks("table_8"))
