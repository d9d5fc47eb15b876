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
# files:
#     - leaderboard.py
# tests:
#     ok_format: true

# %% [markdown]
# # Final project: beat plain MuSc
#
# Write a way to score patches that is better than MuSc as published, on images that you have not seen. You choose among all that this
# book has shown, or find something new: degrees, intervals, stages, weights for stages, SNAMD, neighbours by position, a correction for
# consistent defects, the class tokens.
#
# **Needs**: the whole tutorial. **Time**: one to two days. **Points**: 6 by the checks, more by the leaderboard. Without a network.
#
# The **score** of a method is the mean of two percentages, image AUROC and pixel AP, over products. Public products are bottle tops and leather,
# and the seed 0 draws them; the held-out ones are others, drawn by a seed that your lecturer keeps. So do not tune to the last
# digit: what you choose by two products and thirteen images may not carry over. One rule: the answer cells must run by themselves, with `torch`,
# `F`, `lnamd`, `msm` and `rscin` in reach.

# %%
import leaderboard
import torch
import torch.nn.functional as F

from musc import lnamd, msm, rscin

{name: round(value, 1) for name, value in leaderboard.measure(leaderboard.plain).items()}

# %% [raw]
# # BEGIN QUESTION
# name: q1
# points: 2

# %% [markdown]
# ## Question 1: your method
#
# `patch_scores(stages, class_tokens)` gets the raw patch tokens of the four stages, `[N, M, C]` each, and the class tokens, `[N, D]`, of all
# images of one product. It returns one score per patch, `[N, M]`: high means anomalous. Labels are not given.
#
# <details><summary>Hint 1</summary>
#
# Begin with `msm.mutual_scores(stages)`, which is plain MuSc, and change one setting at a time.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# Chapter 3 has a table of intervals, chapter 2 one of degrees. What do they say about small defects?
#
# </details>

# %% [raw]
# # BEGIN SOLUTION


# %%
def patch_scores(stages, class_tokens):
    # BEGIN SOLUTION
    return msm.mutual_scores(stages, degrees=(1,), interval=(0.0, 0.1))
    # END SOLUTION


# %% [raw]
# # END SOLUTION

# %% [raw]
# # BEGIN TESTS

# %%
probe = [torch.randn(6, 25, 8, generator=torch.Generator().manual_seed(n)) for n in range(2)]
scores = patch_scores(probe, torch.ones(6, 4))
assert scores.shape == (6, 25) and torch.isfinite(scores).all()

# %% [raw]
# # END TESTS

# %% [raw]
# # END QUESTION

# %% [raw]
# # BEGIN QUESTION
# name: q2
# points: 2

# %% [markdown]
# ## Question 2: better on the public products
#
# Set `mine` to what `leaderboard.measure` says of your method. It has to beat plain MuSc's score.

# %% [raw]
# # BEGIN SOLUTION

# %%
mine = leaderboard.measure(patch_scores)  # SOLUTION

# %% [raw]
# # END SOLUTION

# %% [raw]
# # BEGIN TESTS

# %%
assert mine == leaderboard.measure(patch_scores)
assert mine["score"] > leaderboard.measure(leaderboard.plain)["score"]

# %% [raw]
# # END TESTS

# %% [raw]
# # END QUESTION

# %% [raw]
# # BEGIN QUESTION
# name: q3
# points: 2

# %% [markdown]
# ## Question 3: a reason
#
# Name one change of your method, and measure what it does by itself: `without` is the score (the number, not the dictionary) of plain MuSc
# with **only** that change undone or **only** that change made, `why` a sentence of at least 40 letters that says what you think the reason
# is. Then the held-out products decide whether you were right: the check that your lecturer runs compares your method with plain MuSc there.

# %% [raw]
# # BEGIN SOLUTION

# %%
without = leaderboard.measure(lambda stages, classes: msm.mutual_scores(stages, degrees=(1,)))["score"]  # SOLUTION
why = "Defects here are small: without large windows they are not averaged away."  # SOLUTION

# %% [raw]
# # END SOLUTION

# %% [raw]
# # BEGIN TESTS

# %%
assert isinstance(without, float) and len(why) >= 40

# %%
# HIDDEN
held_out = {"products": leaderboard.HELD_OUT, "seed": 7}
assert (
    leaderboard.measure(patch_scores, **held_out)["score"] > leaderboard.measure(leaderboard.plain, **held_out)["score"]
)

# %% [raw]
# # END TESTS

# %% [raw]
# # END QUESTION

# %% [markdown]
# ## Hand in
#
# This notebook. Your lecturer runs `python leaderboard.py SUBMISSIONS --seed ...`, which takes the answer cells out of it.
