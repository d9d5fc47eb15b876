# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [raw]
# # ASSIGNMENT CONFIG
# generate: true
# export_cell: false
# init_cell: true
# solutions_pdf: false
# template_pdf: false
# tests:
#     ok_format: true

# %% [markdown]
# # Lab 1: mutual scoring from scratch
#
# You write the whole method, Eq. 1-5 of the paper, in five short functions of plain torch, until each gives the same numbers
# as the package `musc`. After that you run your own code on drawn bottle tops.
#
# **Needs**: chapters 1 to 4. **Time**: 90 minutes. **Points**: 12. Without a network. **Installed before**: `pip install -e '.[book,course]'`
# in a clone of the repository of `musc`.
#
# Each question is checked by itself: `grader.check("q1")`. The checks hand your function the *package's* results of the earlier
# steps, so a fault in one question costs nothing in the next. Hints are below each question, folded; open them one by one.

# %%
import math

import torch
import torch.nn.functional as F

torch.manual_seed(0)
tokens = torch.randn(6, 25, 8)  # 6 images, 25 patches (5 x 5), 8 channels

# %% [raw]
# # BEGIN QUESTION
# name: q1
# points: 2

# %% [markdown]
# ## Question 1: aggregation (Sec. 3.1)
#
# Write `aggregate(patch_tokens, degree)` for tokens `[N, M, C]` on a square grid:
#
# 1. normalise each image over *all* its patches and channels at once: subtract the mean, divide by
#    $\sqrt{\mathrm{variance} + 10^{-5}}$ (the variance without Bessel's correction);
# 2. replace each token by the mean over its $r \times r$ neighbours; beyond the border are zeros, and they count;
# 3. scale each token to unit length.
#
# <details><summary>Hint 1</summary>
#
# `F.layer_norm(x, x.shape[1:])` is step 1. Step 3 is `F.normalize(x, dim=-1)`.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# `F.avg_pool2d(maps, r, stride=1, padding=r // 2)` is step 2, for maps `[N, C, H, W]`. Patch $m$ lies in row $m // W$. A sum of
# shifted maps is as good: equal up to $10^{-4}$ is equal.
#
# </details>
#
# <details><summary>Hint 3</summary>
#
# The way there is `x.transpose(1, 2).reshape(N, C, side, side)`, and the way back `maps.reshape(N, C, M).transpose(1, 2)`. Reshaping without
# the transposition mixes patches with channels, and no error says so.
#
# </details>

# %% [raw]
# # BEGIN SOLUTION


# %%
def aggregate(patch_tokens, degree):
    # BEGIN SOLUTION
    N, M, C = patch_tokens.shape
    side = math.isqrt(M)
    x = F.layer_norm(patch_tokens, patch_tokens.shape[1:])
    maps = x.transpose(1, 2).reshape(N, C, side, side)
    maps = F.avg_pool2d(maps, degree, stride=1, padding=degree // 2)
    return F.normalize(maps.reshape(N, C, M).transpose(1, 2), dim=-1)
    # END SOLUTION


# %% [raw]
# # END SOLUTION

# %% [raw]
# # BEGIN TESTS

# %%
assert aggregate(tokens, 3).shape == (6, 25, 8)

# %%
from musc import lnamd

assert torch.allclose(aggregate(tokens, 1), lnamd.aggregate(tokens, 1), atol=1e-4)
assert torch.allclose(aggregate(tokens, 3), lnamd.aggregate(tokens, 3), atol=1e-4)

# %%
# HIDDEN
from musc import lnamd

_ = torch.manual_seed(1)
other = 3 + torch.rand(2, 49, 4)
assert torch.allclose(aggregate(other, 5), lnamd.aggregate(other, 5), atol=1e-4)

# %% [raw]
# # END TESTS

# %% [raw]
# # END QUESTION

# %% [raw]
# # BEGIN QUESTION
# name: q2
# points: 2

# %% [markdown]
# ## Question 2: patch to image (Eq. 1)
#
# Write `distances(features)`: for aggregated tokens `[N, M, C]` the Euclidean distance of every patch to the *nearest* patch of
# each other image, `[N, N - 1, M]`. Leave the image itself out and keep the order of the others.
#
# <details><summary>Hint 1</summary>
#
# `torch.cdist(features[i], features[j])` holds all distances between the patches of two images, `[M, M]`. Over which axis is the
# minimum?
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# Two loops: over `i`, and over `j != i`; then `torch.stack` twice.
#
# </details>

# %% [raw]
# # BEGIN SOLUTION


# %%
def distances(features):
    # BEGIN SOLUTION
    N = len(features)
    rows = []
    for i in range(N):
        each = [torch.cdist(features[i], features[j]).amin(dim=1) for j in range(N) if j != i]
        rows.append(torch.stack(each))
    return torch.stack(rows)
    # END SOLUTION


# %% [raw]
# # END SOLUTION

# %% [raw]
# # BEGIN TESTS

# %%
assert distances(tokens).shape == (6, 5, 25)

# %%
by_hand = torch.tensor([[[0.0, 0.0], [3.0, 4.0]], [[0.0, 1.0], [3.0, 3.0]], [[9.0, 4.0], [9.0, 0.0]]])
assert torch.allclose(distances(by_hand)[0], torch.tensor([[1.0, 1.0], [9.0, 6.0]]), atol=1e-4)

# %%
# HIDDEN
from musc import msm

assert torch.allclose(distances(tokens), msm.patch_to_image_distances(tokens), atol=1e-4)

# %% [raw]
# # END TESTS

# %% [raw]
# # END QUESTION

# %% [raw]
# # BEGIN QUESTION
# name: q3
# points: 2

# %% [markdown]
# ## Question 3: the interval average (Eq. 2)
#
# Write `interval_average(d, share)`: of the $J$ distances of each patch, `d` is `[N, J, M]`, the mean of the
# $K = \lfloor \mathrm{share} \cdot J \rfloor$ smallest, but of at least one. `[N, M]`. The floor is that of the exact product: a share of
# 0.29 of 100 distances is 29 of them, whatever your computer makes of `0.29 * 100`.
#
# <details><summary>Hint 1</summary>
#
# Sort along `dim=1`, and keep the first $K$.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# `0.29 * 100` is 28.999999999999996: add `1e-9 * J` before the floor. And `max(1, ...)` keeps the mean from being one of nothing.
#
# </details>

# %% [raw]
# # BEGIN SOLUTION


# %%
def interval_average(d, share=0.3):
    # BEGIN SOLUTION
    J = d.shape[1]
    K = max(1, math.floor(share * J + 1e-9 * J))
    return d.sort(dim=1).values[:, :K].mean(dim=1)
    # END SOLUTION


# %% [raw]
# # END SOLUTION

# %% [raw]
# # BEGIN TESTS

# %%
ten = torch.arange(1.0, 11.0).flip(0).reshape(1, 10, 1)  # 10, 9, ..., 1: of one patch
assert torch.allclose(interval_average(ten), torch.tensor([[2.0]]))  # of 1, 2 and 3

# %%
two = torch.tensor([10.0, 9.0]).reshape(1, 2, 1)
assert torch.allclose(interval_average(two), torch.tensor([[9.0]]))  # one at least

# %%
# HIDDEN
from musc import msm

_ = torch.manual_seed(2)
many = torch.rand(3, 100, 7)
for share in (0.05, 0.29, 0.3, 1.0):
    assert torch.allclose(interval_average(many, share), msm.interval_average(many, (0, share)), atol=1e-5)

# %% [raw]
# # END TESTS

# %% [raw]
# # END QUESTION

# %% [raw]
# # BEGIN QUESTION
# name: q4
# points: 2

# %% [markdown]
# ## Question 4: all stages and degrees (Eq. 3)
#
# Write `mutual_scores(stages, degrees, aggregate, distances, average)`: `stages` is a list of raw patch tokens `[N, M, C]`.
# The last three arguments are the functions of questions 1 to 3; call what you are *given*: `aggregate(stage, r)`, `distances(features)`,
# and `average(d)`, which knows its share. Score each stage and each degree by itself, and average the scores. `[N, M]`.
#
# <details><summary>Hint 1</summary>
#
# Averaging scores is not averaging tokens: aggregate, compare and reduce inside of the two loops, and take the mean at the end.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# An error about an *interval*? The check hands you the package's function as `average`: it takes no share as yours does, so give it
# the distances alone.
#
# </details>

# %% [raw]
# # BEGIN SOLUTION


# %%
def mutual_scores(stages, degrees, aggregate, distances, average):
    # BEGIN SOLUTION
    parts = [average(distances(aggregate(stage, r))) for stage in stages for r in degrees]
    return torch.stack(parts).mean(dim=0)
    # END SOLUTION


# %% [raw]
# # END SOLUTION

# %% [raw]
# # BEGIN TESTS

# %%
from musc import lnamd, msm

parts = (lnamd.aggregate, msm.patch_to_image_distances, msm.interval_average)
expected = msm.mutual_scores([tokens], degrees=(1,))
assert torch.allclose(mutual_scores([tokens], (1,), *parts), expected, atol=1e-4)

# %%
# HIDDEN
from musc import lnamd, msm

_ = torch.manual_seed(3)
stages = [torch.randn(7, 25, 8), torch.randn(7, 25, 8)]
parts = (lnamd.aggregate, msm.patch_to_image_distances, msm.interval_average)
expected = msm.mutual_scores(stages, degrees=(1, 3, 5))
assert torch.allclose(mutual_scores(stages, (1, 3, 5), *parts), expected, atol=1e-4)

# %% [raw]
# # END TESTS

# %% [raw]
# # END QUESTION

# %% [raw]
# # BEGIN QUESTION
# name: q5
# points: 3

# %% [markdown]
# ## Question 5: re-scoring (Eq. 4-5)
#
# Write `rescore(image_scores, class_tokens, windows)`. Scores `[N]` first pass a min-max to 0 and 1. $W$ holds the dot products of
# the class tokens `[N, D]`. A window $k$ keeps the $k$ images with the largest $W$ in each row; the image itself counts and comes
# first. Then, with $K$ windows,
#
# $$\hat{\mathbf{C}} = \frac{1}{K + 1}\Bigl(\sum_{k} D^{-1} (M_k \odot W)\, \mathbf{C} + \mathbf{C}\Bigr) .$$
#
# <details><summary>Hint 1</summary>
#
# `W.clone().fill_diagonal_(torch.inf).topk(k, dim=1).indices` are the neighbours, the image itself among them.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# `M = torch.zeros_like(W).scatter(1, indices, 1.0)`, and $D$ holds the row sums of `M * W`.
#
# </details>
#
# <details><summary>Hint 3</summary>
#
# On paper, for the window 2 of the visible check: the scores 0, 0.2, 0.6 and 1 of two pairs become the pairs' means 0.1, 0.1, 0.8 and 0.8; the
# result is the mean of these and of the scores themselves.
#
# </details>

# %% [raw]
# # BEGIN SOLUTION


# %%
def rescore(image_scores, class_tokens, windows=(2, 3)):
    # BEGIN SOLUTION
    low, high = image_scores.min(), image_scores.max()
    C = (image_scores - low) / (high - low)
    W = class_tokens @ class_tokens.T
    nearest_first = W.clone().fill_diagonal_(torch.inf)
    total = C.clone()
    for k in windows:
        indices = nearest_first.topk(k, dim=1).indices
        kept = torch.zeros_like(W).scatter(1, indices, 1.0) * W
        total = total + (kept @ C) / kept.sum(dim=1)
    return total / (len(windows) + 1)
    # END SOLUTION


# %% [raw]
# # END SOLUTION

# %% [raw]
# # BEGIN TESTS

# %%
pairs = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])  # 0 and 1 are alike, and 2 and 3
expected = torch.tensor([0.05, 0.15, 0.7, 0.9])
assert torch.allclose(rescore(torch.tensor([0.0, 0.2, 0.6, 1.0]), pairs, (2,)), expected, atol=1e-5)

# %%
two, tiny = torch.tensor([2.0, 4.0]), torch.eye(2)
assert torch.allclose(rescore(two, tiny, (1,)), torch.tensor([0.0, 1.0]))  # a window of one: itself

# %%
# HIDDEN
from musc import rscin

_ = torch.manual_seed(4)
scores, classes = torch.rand(12), F.normalize(1 + torch.rand(12, 6), dim=1)
assert torch.allclose(rescore(scores, classes, (2, 3)), rscin.rescore(scores, classes, (2, 3)), atol=1e-5)

# %% [raw]
# # END TESTS

# %% [raw]
# # END QUESTION

# %% [raw]
# # BEGIN QUESTION
# name: q6
# points: 1

# %% [markdown]
# ## Question 6: on images
#
# Twelve drawn bottle tops, four of them defective, and the tokens that the embedded network gives for them. Let **your** functions
# score them: set `patch_scores` to Eq. 3 with degrees 1, 3 and 5, `image_scores` to each image's maximum, and `ranking` to the
# indices of the images, the most anomalous first.
#
# This takes some seconds. Look at the four highest: which are false alarms?
#
# <details><summary>Hint</summary>
#
# `patch_scores.amax(dim=1)`, and `argsort(descending=True)`.
#
# </details>

# %%
from dataclasses import replace

from musc import MuSc, MuScConfig, datasets

product = datasets.load_category("synthetic", None, "bottle_top")
normal = [s for s in product.samples if not s.label][:8]
anomalous = [s for s in product.samples if s.label][::4]
product = replace(product, samples=(*normal, *anomalous))
features = MuSc(MuScConfig(image_size=112)).features(product.samples)
stages = features.patch_tokens
[tuple(stage.shape) for stage in stages]

# %% [raw]
# # BEGIN SOLUTION

# %%
patch_scores = mutual_scores(stages, (1, 3, 5), aggregate, distances, interval_average)  # SOLUTION
image_scores = patch_scores.amax(dim=1)  # SOLUTION
ranking = image_scores.argsort(descending=True)  # SOLUTION

# %% [raw]
# # END SOLUTION

# %% [raw]
# # BEGIN TESTS

# %%
assert tuple(patch_scores.shape) == (12, 196)
assert sorted(ranking.tolist()) == list(range(12))

# %%
# HIDDEN
from musc import msm

expected = msm.mutual_scores(stages)
assert torch.allclose(patch_scores, expected, atol=1e-3)
assert ranking.tolist() == expected.amax(dim=1).argsort(descending=True).tolist()

# %% [raw]
# # END TESTS

# %% [raw]
# # END QUESTION

# %% [markdown]
# ## For discussion, without points
#
# - Your `distances` and the package's give the same numbers. What does the package save? (Chapter 3, *One Gram matrix*.)
# - Delete the hint of question 3, the `1e-9`. For which numbers of images would your scores change?
