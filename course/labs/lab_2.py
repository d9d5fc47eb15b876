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
# # Lab 2: from a folder of photographs to a decision
#
# A folder of photographs is all that you have. You score it, draw a line, count what the line costs, and find where the method
# fails. The surfaces are real (brick and gravel, from scikit-image); the defects were planted, so that the truth is known.
#
# **Needs**: chapters 5 to 8, and scikit-image. **Time**: 90 minutes. **Points**: 12. Without a network.
#
# Each question is checked by itself: `grader.check("q1")`. Hints are folded below each question; open them one by one.

# %% [markdown]
# ## The folder
#
# Sixteen crops of each surface; nothing in a name says which has a defect.

# %%
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import skimage.data

from musc import MuSc, MuScConfig, score_folder
from musc.datasets import planted, synthetic
from musc.results import thresholds

photographs = {name: getattr(skimage.data, name)() for name in ("brick", "gravel", "grass")}
folders, truth = {}, {}
for surface in ("brick", "gravel"):
    crops = planted.texture(photographs, surface)
    folders[surface] = Path(mkdtemp()) / surface
    folders[surface].mkdir()
    for sample in crops.samples:
        sample.image().save(folders[surface] / sample.name)
    truth[surface] = crops.samples  # an inspector's labels, for later

# %% [raw]
# # BEGIN QUESTION
# name: q1
# points: 2

# %% [markdown]
# ## Question 1: score
#
# Score both folders with the embedded network, `backbone="procedural"`, at the crops' own 128 pixels. Set `raw` to a dictionary from the surface's name to the
# array of its **raw** image scores (those before RsCIN), and `first` to one from the name to the file name of its most anomalous crop by
# them.
#
# <details><summary>Hint 1</summary>
#
# `score_folder(folder, backbone="procedural", image_size=128)` gives a result with `.raw_image_scores` and `.paths`.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# `result.paths[int(np.argmax(scores))]`; of a path, `Path(...).name`.
#
# </details>

# %% [raw]
# # BEGIN SOLUTION

# %%
raw, first = {}, {}  # SOLUTION
# BEGIN SOLUTION
for surface, folder in folders.items():
    result = score_folder(folder, backbone="procedural", image_size=128)
    raw[surface] = np.asarray(result.raw_image_scores)
    first[surface] = Path(result.paths[int(raw[surface].argmax())]).name
# END SOLUTION

# %% [raw]
# # END SOLUTION

# %% [raw]
# # BEGIN TESTS

# %%
assert sorted(raw) == ["brick", "gravel"]
assert all(len(scores) == 16 for scores in raw.values())

# %%
# HIDDEN
result = score_folder(folders["gravel"], backbone="procedural", image_size=128)
assert np.allclose(raw["gravel"], result.raw_image_scores, atol=1e-4)
assert first["gravel"] == Path(result.paths[int(np.argmax(result.raw_image_scores))]).name

# %% [raw]
# # END TESTS

# %% [raw]
# # END QUESTION

# %% [raw]
# # BEGIN QUESTION
# name: q2
# points: 2

# %% [markdown]
# ## Question 2: what a line costs
#
# Write `errors(scores, labels, threshold)`. An image with a score **at or above** the threshold is flagged. Return the number of missed
# defects and the number of false alarms, in this order. `labels` holds 1 for a defect and 0 for a good part.
#
# <details><summary>Hint</summary>
#
# `flagged = scores >= threshold`; a miss is a label of 1 that is not flagged.
#
# </details>

# %% [raw]
# # BEGIN SOLUTION


# %%
def errors(scores, labels, threshold):
    # BEGIN SOLUTION
    scores, labels = np.asarray(scores), np.asarray(labels)
    flagged = scores >= threshold
    return int((~flagged & (labels == 1)).sum()), int((flagged & (labels == 0)).sum())
    # END SOLUTION


# %% [raw]
# # END SOLUTION

# %% [raw]
# # BEGIN TESTS

# %%
assert tuple(errors([0.1, 0.5, 0.3, 0.9], [0, 0, 1, 1], 0.4)) == (1, 1)

# %%
assert tuple(errors([0.1, 0.5, 0.3, 0.9], [0, 0, 1, 1], 0.5)) == (1, 1)  # at the line: flagged

# %%
# HIDDEN
assert tuple(errors([1, 2, 3], [1, 1, 1], 9)) == (3, 0)
assert tuple(errors([1, 2, 3], [0, 0, 1], 0)) == (0, 2)

# %% [raw]
# # END TESTS

# %% [raw]
# # END QUESTION

# %% [raw]
# # BEGIN QUESTION
# name: q3
# points: 2

# %% [markdown]
# ## Question 3: a line without labels
#
# `thresholds.robust(scores).value` is a threshold that uses no label. Set `blind` to a dictionary from the surface to the pair (misses,
# false alarms) that it gives. The labels are in `truth`: `sample.label`.
#
# Where does it serve, where does it not? Without the labels, could you have known?
#
# <details><summary>Hint</summary>
#
# `labels = np.array([s.label for s in truth[surface]])`.
#
# </details>

# %%
labels = {surface: np.array([s.label for s in samples]) for surface, samples in truth.items()}

# %% [raw]
# # BEGIN SOLUTION

# %%
blind = {}  # SOLUTION
# BEGIN SOLUTION
for surface in folders:
    line = thresholds.robust(raw[surface]).value
    blind[surface] = errors(raw[surface], labels[surface], line)
# END SOLUTION

# %% [raw]
# # END SOLUTION

# %% [raw]
# # BEGIN TESTS

# %%
assert sorted(blind) == ["brick", "gravel"]

# %%
# HIDDEN
for surface in ("brick", "gravel"):
    flagged = raw[surface] >= thresholds.robust(raw[surface]).value
    missed = int((~flagged & (labels[surface] == 1)).sum())
    assert tuple(blind[surface]) == (missed, int((flagged & (labels[surface] == 0)).sum()))

# %% [raw]
# # END TESTS

# %% [raw]
# # END QUESTION

# %% [raw]
# # BEGIN QUESTION
# name: q4
# points: 3

# %% [markdown]
# ## Question 4: what a miss is worth
#
# Now some parts were inspected, and labels are known. A miss costs `miss`, a false alarm `alarm`. Write `cheapest(scores, labels, miss,
# alarm)`: the threshold with the least cost among the scores themselves and `np.inf` (flag nothing). Where two cost the same, the **higher**
# one.
#
# <details><summary>Hint 1</summary>
#
# Try them all: with sixteen scores there are seventeen candidates.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# Sort the candidates by falling value and take the first with the least cost: `min` keeps the first of equals.
#
# </details>

# %% [raw]
# # BEGIN SOLUTION


# %%
def cheapest(scores, labels, miss, alarm):
    # BEGIN SOLUTION
    scores, labels = np.asarray(scores, float), np.asarray(labels)

    def cost(threshold):
        flagged = scores >= threshold
        return miss * (~flagged & (labels == 1)).sum() + alarm * (flagged & (labels == 0)).sum()

    return min([np.inf, *sorted(scores, reverse=True)], key=cost)
    # END SOLUTION


# %% [raw]
# # END SOLUTION

# %% [raw]
# # BEGIN TESTS

# %%
assert cheapest([0.1, 0.5, 0.3, 0.9], [0, 0, 1, 1], miss=10, alarm=1) == 0.3

# %%
assert cheapest([0.1, 0.5, 0.3, 0.9], [0, 0, 1, 1], miss=1, alarm=10) == 0.9

# %%
# HIDDEN
assert cheapest([0.2, 0.4], [0, 0], miss=1, alarm=1) == np.inf
random = np.random.default_rng(0)
for _ in range(20):
    s, y = random.random(12), random.integers(0, 2, 12)
    got = cheapest(s, y, 3, 1)
    costs = {t: 3 * ((s < t) & (y == 1)).sum() + ((s >= t) & (y == 0)).sum() for t in [*s, np.inf]}
    assert costs[got] == min(costs.values()) and got == max(t for t in costs if costs[t] == costs[got])

# %% [raw]
# # END TESTS

# %% [raw]
# # END QUESTION

# %% [raw]
# # BEGIN QUESTION
# name: q5
# points: 2

# %% [markdown]
# ## Question 5: which defects escape?
#
# A mean hides. For each kind of defect (`sample.defect`, where it is not `"good"`), compute the image AUROC of that kind's crops against
# **all** good ones on gravel. `by_kind` is the dictionary from kind to AUROC, 0 to 1, `weakest` the kind with the lowest.
#
# Look at a crop of it. What does it take to see that defect, which Eq. 1 does not look at?
#
# <details><summary>Hint 1</summary>
#
# The AUROC is the share of pairs (defective, good) in which the defective crop scores higher; a tie counts one half.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# `np.mean([[d > g for g in good] for d in bad])`.
#
# </details>

# %%
kinds = np.array([sample.defect for sample in truth["gravel"]])

# %% [raw]
# # BEGIN SOLUTION

# %%
good = raw["gravel"][kinds == "good"]  # SOLUTION
by_kind = {}  # SOLUTION
# BEGIN SOLUTION
for kind in sorted(set(kinds) - {"good"}):
    bad = raw["gravel"][kinds == kind][:, None]
    by_kind[str(kind)] = float(((bad > good) + 0.5 * (bad == good)).mean())
# END SOLUTION
weakest = min(by_kind, key=by_kind.get)  # SOLUTION

# %% [raw]
# # END SOLUTION

# %% [raw]
# # BEGIN TESTS

# %%
assert sorted(by_kind) == sorted(planted.KINDS)

# %%
# HIDDEN
from musc.metrics import image_metrics

scores = raw["gravel"]
for kind in planted.KINDS:
    chosen = (kinds == "good") | (kinds == kind)
    assert abs(by_kind[kind] - image_metrics((kinds == kind)[chosen].astype(int), scores[chosen])["auroc"]) < 1e-6
assert by_kind[weakest] == min(by_kind.values())

# %% [raw]
# # END TESTS

# %% [raw]
# # END QUESTION

# %% [raw]
# # BEGIN QUESTION
# name: q6
# points: 1

# %% [markdown]
# ## Question 6: break it
#
# Mutual scoring needs defects to be rare, or at least to differ. `line(share)` below draws twenty wooden boards of which a share has one and
# the same defect. Set `rare` and `common` to the image AUROC before RsCIN at a share of 0.1 and of 0.6. Before you run it: what do you expect?
#
# <details><summary>Hint</summary>
#
# `MuSc(MuScConfig(image_size=112)).run(boards).metrics["image_before_rscin"]["auroc"]`.
#
# </details>


# %%
def line(share):
    return synthetic.category("wood", good=14, defects=6, train=0, size=160, same_defect=share)


# %% [raw]
# # BEGIN SOLUTION

# %%
# BEGIN SOLUTION
musc = MuSc(MuScConfig(image_size=112))
# END SOLUTION
rare = musc.run(line(0.1)).metrics["image_before_rscin"]["auroc"]  # SOLUTION
common = musc.run(line(0.6)).metrics["image_before_rscin"]["auroc"]  # SOLUTION

# %% [raw]
# # END SOLUTION

# %% [raw]
# # BEGIN TESTS

# %%
assert 0 <= common <= 1 and 0 <= rare <= 1

# %%
# HIDDEN
for share, got in ((0.1, rare), (0.6, common)):
    expected = MuSc(MuScConfig(image_size=112)).run(line(share)).metrics["image_before_rscin"]["auroc"]
    assert abs(got - expected) < 1e-3

# %% [raw]
# # END TESTS

# %% [raw]
# # END QUESTION

# %% [markdown]
# ## A note to the head of production, without points
#
# Half a page: which line you would draw on gravel, what it will miss and how often it will call, which kind of defect needs another method, and
# what has to be watched once the camera runs (chapters 7 and 8, and the page *Use and its limits*).
