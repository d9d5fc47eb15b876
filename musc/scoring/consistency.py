"""Consistent defects: the same defect in many images, which vouch for each other until mutual scoring misses it.

`musc.scoring.links` finds the images that share one, by the graph of their suspicious links. Their patches that depend
on each other's word are scored by the images outside of the group.

Frequency alone cannot tell which side is the defect: the smaller one is taken to be. A defect in more than half of the
images is normal by this measure, and no method without labels or references can know better.

CoDeGraph (arXiv 2510.10456) takes a group's dependent patches from the reference side and scores all images again.
Here only those patches are scored again, by other images: the others' scores hardly depend on them, and no distance has
to be computed twice.

`benchmarks/consistent.py` measures it, and `benchmarks/results/consistent.csv` has every set: 20 images of 13 products
in 4 draws, 10 to 40 % of them with one identical defect. Of the pixel AP that this costs against the same kind of
defect drawn anew for each image (in size and strength too), 98 % comes back with the embedded backbone and 88 % with
focus_vits14; a product whose fresh defects are fainter than the shared one counts more than fully. Of 43 different sets
without a defect none is touched with either, and no metric of ordinary sets falls by more than 0.1 points on average.
The constants were chosen on these sets. On two further draws (embedded backbone, `consistent_unseen.csv`) 107 % comes
back, and none of 20 new sets without a defect is touched: by so few the rate is below 17 % (95 % confidence). An
earlier look at another draw had 1 of 10. Two images alike are no group, so nothing is mended at 10 %.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from musc import msm
from musc.scoring import links

DEPENDENT = 1.15  # least factor by which a patch's score rises without its group's word


@dataclass(frozen=True)
class Group:
    """Images that share something that no other image has.

    images: their rows, sorted. lift: how far they would stand out, if they did not vouch for each other, in units of
    the median image score. patches: [N, M], those that depend on the group; False outside of `images`.
    """

    images: tuple[int, ...]
    lift: float
    patches: Bool[Tensor, "N M"] = field(repr=False, compare=False)

    @property
    def share(self) -> float:
        """The group's part of all images."""
        return len(self.images) / len(self.patches)


def find(distances: Float[Tensor, "N J M"], interval: tuple[float, float] = (0.0, 0.3)) -> list[Group]:
    """Groups of images that share a defect, the most conspicuous first; [] where there is none.

    distances: of Eq. 1, averaged over degrees and stages; to the N - 1 other images in order, then to references, which
    are in no group. A patch depends on its group where Eq. 2 over the images outside gives `DEPENDENT` times its score.

    Example:
        >>> full = torch.rand(12, 12, 9, generator=torch.Generator().manual_seed(0)) * 0.1 + 0.3
        >>> full[:, :, 4] = 0.35  # at patch 4 the images are 0.35 apart
        >>> full[:4, :, 4], full[:4, :4, 4] = 0.9, 0.1  # but for four that share something else
        >>> distances = torch.stack([torch.cat([d[:i], d[i + 1 :]]) for i, d in enumerate(full)])  # [12, 11, 9]
        >>> [group.images for group in find(distances)]
        [(0, 1, 2, 3)]
    """
    N = len(distances)
    full, found = _with_own(distances), []
    sets = links.linked(full)
    if not sets:
        return []
    usual = msm.interval_average(distances, interval).amax(dim=1).median()
    for images, _ in sets:
        rows = list(images)
        without = msm.interval_average(full[rows][:, _outside(images, full)], interval)  # [n, M]
        patches = torch.zeros(N, distances.shape[2], dtype=torch.bool, device=distances.device)
        patches[rows] = without > DEPENDENT * msm.interval_average(distances[rows], interval)
        alone = without.masked_fill(~patches[rows], 0).amax(dim=1)
        found.append(Group(images, float(alone.median() / usual.clamp(min=1e-12)), patches))
    return found


def corrected(
    scores: Float[Tensor, "N M"],
    distances: Float[Tensor, "N J M"],
    groups: Sequence[Group],
    interval: tuple[float, float] = (0.0, 0.3),
    reduction: str = "mean",
) -> Float[Tensor, "N M"]:
    """`scores` (Eq. 3), but where a group's patches vouch for each other, Eq. 2 over the images outside of the group.

    No score falls. distances: as in `find`, averaged over degrees and stages before Eq. 2 (Eq. 3 averages after it).

    Example:
        >>> distances = torch.tensor([0.05, 0.05, 1.0, 1.0, 1.0]).reshape(1, 5, 1).repeat(6, 1, 1)
        >>> group = Group((0, 1, 2), 1.0, torch.tensor(3 * [[True]] + 3 * [[False]]))
        >>> corrected(torch.full((6, 1), 0.05), distances, [group])[[0, 5]].flatten()
        tensor([1.0000, 0.0500])
    """
    out, full = scores.clone(), _with_own(distances) if groups else distances
    for group in groups:
        others = _outside(group.images, full)
        for i in group.images:
            at = group.patches[i]
            if at.any():
                raised = msm.interval_average(full[i, others][None, :, at], interval, reduction)[0]
                out[i, at] = torch.maximum(out[i, at], raised)
    return out


class MeanDistances:
    """The mean over degrees and stages of distances that come stage by stage, and what it says of shared defects.

    Example:
        >>> mean = MeanDistances(stages=2)
        >>> mean.add(torch.ones(3, 8, 7, 4))
        >>> mean.add(torch.zeros(3, 8, 7, 4))
        >>> mean.value.unique().tolist()
        [0.5]
    """

    def __init__(self, stages: int) -> None:
        self.stages = stages
        self.value: Tensor | None = None

    def add(self, distances: Float[Tensor, "D N J M"]) -> None:
        """Take in one stage's distances."""
        share = distances.mean(dim=0) / self.stages
        self.value = share if self.value is None else self.value.add_(share)

    def judged(
        self, scores: Float[Tensor, "N M"], interval: tuple[float, float], reduction: str, correct: bool
    ) -> tuple[Float[Tensor, "N M"], list[Group]]:
        """`scores`, corrected if asked for, and the groups."""
        assert self.value is not None
        groups = find(self.value, interval)
        return (corrected(scores, self.value, groups, interval, reduction) if correct else scores), groups


def mutual_scores(
    stages: Sequence[Float[Tensor, "N M _"]],
    degrees: Sequence[int] = (1, 3, 5),
    interval: tuple[float, float] = (0.0, 0.3),
    reduction: str = "mean",
    *,
    correct: bool = True,
    references: Sequence[Float[Tensor, "R M _"]] | None = None,
    grid: tuple[int, int] | None = None,
    precision: str = "float32",
    block: int | None = None,
    position_window: float = float("inf"),
    progress: bool = False,
) -> tuple[Float[Tensor, "N M"], list[Group]]:
    """`msm.mutual_scores` (Eq. 1-3), corrected for consistent defects (unless `correct` is False), and their groups.

    Arguments as there; references are in no group. Memory holds one stage's distances, 4 D N (N - 1 + R) M bytes, and
    their mean. Extension; not in the paper.

    Example:
        >>> stage = torch.randn(5, 9, 8, generator=torch.Generator().manual_seed(0))
        >>> scores, groups = mutual_scores([stage], degrees=(1,))
        >>> scores.allclose(msm.mutual_scores([stage], degrees=(1,))), groups  # these images share nothing
        (True, [])
    """
    if not stages:
        raise ValueError("no stages: give the patch tokens of at least one.")
    scores: Tensor | None = None
    mean = MeanDistances(len(stages))
    for n, tokens in enumerate(stages):
        d = msm.stage_distances(
            tokens,
            degrees,
            references=None if references is None else references[n],
            grid=grid,
            precision=precision,
            block=block,
            position_window=position_window,
            progress=progress,
        )  # [D, N, J, M]
        part = torch.stack([msm.interval_average(d[:, i], interval, reduction).mean(dim=0) for i in range(len(tokens))])
        scores = part / len(stages) if scores is None else scores + part / len(stages)
        mean.add(d)
    assert scores is not None
    return mean.judged(scores, interval, reduction, correct)


def describe(groups: Sequence[Group], names: Sequence[str]) -> list[str]:
    """One warning per group, naming up to five of its images.

    Example:
        >>> describe([Group((0, 2), 3.0, torch.zeros(8, 1, dtype=torch.bool))], [f"{i}.png" for i in range(8)])[0][:56]
        '2 of 8 images (25 %) share something that no other has, '
    """
    said = []
    for g in groups:
        shown = ", ".join(names[i] for i in g.images[:5]) + (" and others" if len(g.images) > 5 else "")
        said.append(
            f"{len(g.images)} of {len(g.patches)} images ({100 * g.share:.0f} %) share something that no other has, "
            f"and without each other would score {g.lift:.1f} times the median: {shown}. It is the same defect, or a "
            "variant of the product."
        )
    return said


def _outside(images: Sequence[int], full: Tensor) -> list[int]:
    """The columns of all images, references too, that are not of the group."""
    return sorted(set(range(full.shape[1])) - set(images))


def _with_own(distances: Tensor) -> Tensor:
    """[N, J, M] with each image's zero distance to itself put in: [N, J + 1, M]."""
    N, J, M = distances.shape
    if J < N - 1:
        raise ValueError(f"{N} images with {J} distances each: give those to all {N - 1} others.")
    full = distances.new_zeros(N, J + 1, M)
    full[~torch.eye(N, J + 1, dtype=torch.bool, device=distances.device)] = distances.reshape(N * J, M)
    return full
