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
# # LNAMD: Tables 3 and 9, Figures 3 and 9
#
# How large should the neighbourhood be that a patch token is averaged over? The paper tries single aggregation degrees, their unions
# (Tab. 3), ever larger ones (Tab. 9), and shows what they do to a map (Fig. 3 and 9). All rows come from one pass over the distances: each
# degree's are computed once, and every union is a mean of them ([LNAMD](02_lnamd.ipynb) derives why). In `demo`, three products are measured.

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
# For your copies of the data sets, on a GPU: `musc reproduce table_3 --profile paper --data-root MVTEC --data-root VISA --device cuda`
# :::

# %% [markdown]
# ## Table 3: which degrees
#
# AC is the paper's short form of image AUROC, AS that of pixel AUROC.

# %% mystnb={"figure": {"caption": "Table 3 as a picture. Hollow: the paper. Filled: this run.", "name": "fig-table-3"}, "image": {"alt": "Dot plot of image and pixel AUROC for six sets of aggregation degrees."}}
table_3 = reproduce.make("table_3", lab)
table_3.figure

# %%
print(table_3.summary)
table_3.table

# %% [markdown]
# In the paper $\{1, 3\}$ is better at AC on both data sets, and $\{1, 3, 5\}$ at AS; the text calls the latter the best compromise.
#
# ## Table 9: larger degrees
#
# The paper's finding: AC falls with every larger degree, while AS depends on how large the defects are.

# %%
table_9 = reproduce.make("table_9", lab)
print(table_9.summary)
table_9.table

# %% mystnb={"figure": {"caption": "Table 9 as a picture. Hollow: the paper. Filled: this run.", "name": "fig-table-9"}, "image": {"alt": "Dot plot of image and pixel AUROC for growing sets of aggregation degrees."}}
table_9.figure

# %% [markdown]
# ## Figure 3: what a degree does to a map
#
# The smallest, a middle and the largest defect of one product. In the paper, $r = 1$ marks the small one best, $r = 5$ the large one, and the
# union does well on both. Whether this holds here is measured by the pixel AP of the single image.

# %% mystnb={"figure": {"caption": "Figure 3: maps at single degrees and at their union, one colour scale. The line is the edge of the mask.", "name": "fig-figure-3"}, "image": {"alt": "Three rows of images with their masks and four heat maps each; the maps become smoother with the degree."}}
figure_3 = reproduce.make("figure_3", lab)
figure_3.figure

# %%
print(figure_3.summary)
figure_3.table

# %% [markdown]
# ## Figure 9: adding degrees for a small defect
#
# The paper shows one screw. Adding $r = 5$ to $r = 3$ lowers the score on a small defect, since it is averaged with its surroundings, and
# adding $r = 1$ raises it again.

# %% mystnb={"figure": {"caption": "Figure 9: the two smallest defects for five sets of degrees.", "name": "fig-figure-9"}, "image": {"alt": "Two rows of images with their masks and five heat maps each."}}
figure_9 = reproduce.make("figure_9", lab)
figure_9.figure

# %%
print(figure_9.summary)
figure_9.table

# %% [markdown]
# ## Do the printed numbers agree with each other?
#
# Tables 3 and 9 share two rows besides the default one.

# %%
print(reproduce.remarks("table_3", "table_9"))
