"""Consistent defects: the same defect in many images, which vouch for each other until mutual scoring misses it.

A patch of such a defect is near to the images that share it and far from all others: its sorted distances (Eq. 1) have
a gap. Other patches have gaps too, by chance or because parts lie alike in some images. A consistent defect differs in
that its images agree, patch by patch, on who belongs to them, and that without each other's word they would stand out.

Frequency alone cannot tell which side of a gap is the defect: the smaller one is taken to be. A defect in more than
half of the images is normal by this measure, and no method without labels or references can know better.

Measured on the synthetic data set (embedded backbone after 3200 steps of its training, 112 px, 20 images, degrees 1
and 3, seeds 0 to 3): of 31 normal sets 2 were warned of, both capsules; of 22 sets in which 40 % had the same defect 9
groups were found and are right, 1 is wrong. What is not found is left as the plain method scores it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from musc import msm

GAP = 1.3  # ratio of the distances beyond and before a gap
AGREEMENT = 0.8  # Jaccard index of two sets that count as the same, and share of members that must know the set
LIFT = 1.6  # least factor by which members stand out: see `find`
SMALLEST = 3  # images that make a group: two alike may be duplicates


@dataclass(frozen=True)
class Group:
    """Images that share something that no other image has.

    images: their rows, sorted. lift: how far they would stand out, if they did not vouch for each other, in units of
    the median image score. patches: [N, M], where; False outside of `images`.
    """

    images: tuple[int, ...]
    lift: float
    patches: Bool[Tensor, "N M"] = field(repr=False, compare=False)

    @property
    def share(self) -> float:
        """The group's part of all images."""
        return len(self.images) / len(self.patches)


def near_sets(
    distances: Float[Tensor, "N J M"], smallest: int = SMALLEST
) -> tuple[Float[Tensor, "N M"], Bool[Tensor, "N N M"]]:
    """The widest gap in each patch's sorted distances, as a ratio, and the images on its near side (its own included).

    distances: of Eq. 1, J = N - 1 in the images' order. Only near sides of `smallest` to N/2 images count.

    Example:
        >>> D = torch.full((8, 8, 1), 0.3)  # eight images of one patch, all 0.3 apart
        >>> D[:3, :3] = 0.05  # but for three that share something
        >>> D[:3, 3:] = D[3:, :3] = 1.0
        >>> distances = torch.stack([torch.cat([D[i, :i], D[i, i + 1 :]]) for i in range(8)])  # [8, 7, 1]
        >>> gap, sets = near_sets(distances)
        >>> round(gap[0].item(), 1), sets[0, :, 0].nonzero().flatten().tolist()
        (20.0, [0, 1, 2])
    """
    N = len(distances)
    full = _with_own(distances)
    ordered = full.sort(dim=1).values  # the image itself first: [N, N, M]
    low, high = smallest - 1, max(smallest, N // 2)
    if high >= N:  # too few images for a minority of that size
        return torch.ones_like(ordered[:, 0]), torch.zeros_like(full, dtype=torch.bool)
    ratios = ordered[:, low + 1 : high + 1] / ordered[:, low:high].clamp(min=1e-4)
    gap, where = ratios.max(dim=1)
    last = ordered.gather(1, (where + low)[:, None])  # [N, 1, M]: distance to the farthest of the near side
    return gap, full <= last


def find(
    distances: Float[Tensor, "N J M"],
    interval: tuple[float, float] = (0.0, 0.3),
    *,
    gap: float = GAP,
    lift: float = LIFT,
    at_most: int = 64,
) -> list[Group]:
    """Groups of images that share a defect, the most conspicuous first; [] where there is none.

    A set of images is a group if it is the near side of a gap of ratio `gap` in at least 80 % of its own members (for
    patches of theirs, sets agreeing by a Jaccard index of 0.8), and if the median member's largest patch score, taken
    over non-members only (Eq. 2), is at least `lift` times the median image score: it would be found, were it rare.

    distances: averaged over degrees and stages. at_most: how many sets, the most frequent ones, are looked at.

    Example:
        >>> D = torch.full((8, 8, 1), 0.3)  # eight images of one patch, all 0.3 apart
        >>> D[:3, :3] = 0.05  # but for three that share something
        >>> D[:3, 3:] = D[3:, :3] = 1.0
        >>> distances = torch.stack([torch.cat([D[i, :i], D[i, i + 1 :]]) for i in range(8)])  # [8, 7, 1]
        >>> [group.images for group in find(distances)]
        [(0, 1, 2)]
    """
    ratio, sets = near_sets(distances)
    image, patch = (ratio > gap).nonzero(as_tuple=True)  # [P] each
    if not len(image):
        return []
    known = sets[image, :, patch].float()  # [P, N]
    candidates, count = torch.unique(known, dim=0, return_counts=True)
    usual = msm.interval_average(distances, interval).amax(dim=1).median()
    full, found = _with_own(distances), []
    for row in (-count).argsort(stable=True)[:at_most].tolist():
        members = candidates[row]
        both = known @ members
        same = both / (known.sum(dim=1) + members.sum() - both) >= AGREEMENT
        same &= members[image] > 0  # an image outside that is near to the set is not of it
        patches = torch.zeros_like(ratio, dtype=torch.bool)
        patches[image[same], patch[same]] = True
        rows = members.nonzero().flatten()
        knowing = patches[rows].any(dim=1)
        if knowing.float().mean() < AGREEMENT:
            continue
        outside = full[rows[:, None], (members == 0).nonzero().flatten()]  # [n, N - n, M]
        without = msm.interval_average(outside, interval).masked_fill(~patches[rows], 0).amax(dim=1)
        factor = float(without.median() / usual.clamp(min=1e-12))
        if factor >= lift:
            found.append(Group(tuple(rows.tolist()), factor, patches))
    return _distinct(sorted(found, key=lambda g: (-g.lift, g.images)))


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
        >>> D = torch.full((8, 8, 1), 0.3)  # eight images of one patch, all 0.3 apart
        >>> D[:3, :3] = 0.05  # but for three that share something
        >>> D[:3, 3:] = D[3:, :3] = 1.0
        >>> distances = torch.stack([torch.cat([D[i, :i], D[i, i + 1 :]]) for i in range(8)])  # [8, 7, 1]
        >>> scores = msm.interval_average(distances)  # the three vouch for each other
        >>> torch.cat([scores, corrected(scores, distances, find(distances))], dim=1)[[0, 7]]
        tensor([[0.0500, 1.0000],
                [0.3000, 0.3000]])
    """
    out, full = scores.clone(), _with_own(distances)
    for group in groups:
        others = [j for j in range(len(scores)) if j not in group.images]
        for i in group.images:
            at = group.patches[i]
            raised = msm.interval_average(full[i, others][None, :, at], interval, reduction)[0]
            out[i, at] = torch.maximum(out[i, at], raised)
    return out


def mutual_scores(
    stages: Sequence[Float[Tensor, "N M _"]],
    degrees: Sequence[int] = (1, 3, 5),
    interval: tuple[float, float] = (0.0, 0.3),
    reduction: str = "mean",
    *,
    correct: bool = True,
    grid: tuple[int, int] | None = None,
    precision: str = "float32",
    block: int | None = None,
    position_window: float = float("inf"),
    progress: bool = False,
) -> tuple[Float[Tensor, "N M"], list[Group]]:
    """`msm.mutual_scores` (Eq. 1-3), corrected for consistent defects (unless `correct` is False), and their groups.

    Arguments as there. Memory holds one stage's distances, 4 D N (N - 1) M bytes, and their mean. Extension; not in the
    paper.

    Example:
        >>> stage = torch.randn(5, 9, 8, generator=torch.Generator().manual_seed(0))
        >>> scores, groups = mutual_scores([stage], degrees=(1,))
        >>> scores.allclose(msm.mutual_scores([stage], degrees=(1,))), groups  # these images share nothing
        (True, [])
    """
    scores: Tensor | None = None
    mean: Tensor | None = None
    for tokens in stages:
        d = msm.stage_distances(
            tokens,
            degrees,
            grid=grid,
            precision=precision,
            block=block,
            position_window=position_window,
            progress=progress,
        )  # [D, N, J, M]
        part = torch.stack([msm.interval_average(d[:, i], interval, reduction).mean(dim=0) for i in range(len(tokens))])
        share = d.mean(dim=0) / len(stages)
        scores = part / len(stages) if scores is None else scores + part / len(stages)
        mean = share if mean is None else mean + share
    if scores is None or mean is None:
        raise ValueError("no stages: give the patch tokens of at least one.")
    groups = find(mean, interval)
    return (corrected(scores, mean, groups, interval, reduction) if correct else scores), groups


def describe(groups: Sequence[Group], names: Sequence[str]) -> list[str]:
    """One warning per group, naming up to five of its images.

    Example:
        >>> describe([Group((0, 2), 3.0, torch.zeros(8, 1, dtype=torch.bool))], [f"{i}.png" for i in range(8)])[0][:56]
        '2 of 8 images (25 %) share something that no other has, '
    """
    said = []
    for g in groups:
        shown = ", ".join(names[i] for i in g.images[:5]) + (", ..." if len(g.images) > 5 else "")
        said.append(
            f"{len(g.images)} of {len(g.patches)} images ({100 * g.share:.0f} %) share something that no other has, "
            f"and without each other would score {g.lift:.1f} times the median: {shown}. It is the same defect, or a "
            "variant of the product."
        )
    return said


def _with_own(distances: Tensor) -> Tensor:
    """[N, N - 1, M] with each image's zero distance to itself put in: [N, N, M]."""
    N, J, M = distances.shape
    if J != N - 1:
        raise ValueError(f"{N} images with {J} distances each: give those to all {N - 1} others, and no references.")
    full = distances.new_zeros(N, N, M)
    full[~torch.eye(N, dtype=torch.bool, device=distances.device)] = distances.reshape(N * J, M)
    return full


def _distinct(groups: list[Group]) -> list[Group]:
    """Of groups that overlap by more than half of the smaller, or are the two halves of all images, the first."""
    kept: list[Group] = []
    for g in groups:
        a = set(g.images)
        if not any(
            2 * len(a & {*k.images}) > min(len(a), len(k.images)) or len(a | {*k.images}) == len(g.patches)
            for k in kept
        ):
            kept.append(g)
    return kept
