"""Copies among the images of a run: equal files, and the same picture saved again, resized or compressed otherwise.

A copy is its picture's nearest neighbour and vouches for it: a defect that stands in both looks normal in both.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from musc.datasets.base import Sample
from musc.datasets.decode import content_key
from musc.datasets.images import read_image
from musc.errors import DataError

SIDE = 32  # pixels of the grey thumbnails that are compared
BLOCK = 4  # pixels of the thumbnail's blocks, none of which may differ by more than
LARGEST_BLOCK, LARGEST_RMS = 2.0, 1.2  # grey levels of 255
SMALLEST_CORRELATION = 0.8  # of what tells two pictures from all others
LARGEST_RATIO = 0.5  # of their distance to that of the next picture
SIMILAR = 0.7  # cosine of centred tokens from which on two pictures are compared at all
OTHERS = 12  # further pictures that show what is usual
MOST = 4  # a picture with more near copies than this part of the images is no picture, but the product
NAMED = 4


def copies(
    samples: Sequence[Sample], keys: Sequence[str] | None = None, tokens: Float[Tensor, "N D"] | None = None
) -> list[tuple[int, ...]]:
    """Groups of rows of `samples` that show one picture, each at least two, in order of their first row.

    Equal content counts at any time. Otherwise two pictures are one where their grey thumbnails hardly differ
    anywhere (so a defect tells them apart), differ much less than from the next picture, and share what makes them
    differ from all others. Light, place and noise tell photographs of equal parts apart; two photographs of one part
    that did not move count as copies.

    Args:
        keys: the images' `content_key`s (None: from the files).
        tokens: a descriptor [N, D] of each image; only images with similar ones are decoded (None: all are).
    """
    keys = [content_key(s.image) for s in samples] if keys is None else keys
    group = list(range(len(samples)))  # the first row of each row's group
    first: dict[str, int] = {}
    for row, key in enumerate(keys):
        group[row] = first.setdefault(key, row)
    distinct = sorted(first.values())
    near = {row: row for row in distinct}
    for i, j in _alike([samples[row] for row in distinct], None if tokens is None else tokens[distinct]):
        kept, gone = sorted((near[distinct[i]], near[distinct[j]]))
        near = {row: kept if to == gone else to for row, to in near.items()}
    sizes = Counter(near.values())
    # where many are one picture, the product hardly varies, and these are its photographs
    few = {row: to if sizes[to] <= max(2, len(distinct) // MOST) else row for row, to in near.items()}
    group = [few[row] for row in group]
    rows: dict[int, list[int]] = {}
    for row, g in enumerate(group):
        rows.setdefault(g, []).append(row)
    return [tuple(found) for found in rows.values() if len(found) > 1]


def copies_note(samples: Sequence[Sample], groups: Sequence[tuple[int, ...]]) -> list[str]:
    """The note that names copies and says what they do to the scores; none where there are none."""
    if not groups:
        return []
    listed = "; ".join(" = ".join(samples[row].name for row in rows[:NAMED]) for rows in groups[:NAMED])
    more = ", ..." * (len(groups) > NAMED or any(len(rows) > NAMED for rows in groups))
    return [
        f"{sum(map(len, groups))} images are copies of each other, or nearly ({listed}{more}). A copy is its picture's "
        "nearest neighbour and vouches for it: both score as more normal than they are, and a defect in both may rank "
        "last. Keep one of each."
    ]


def _alike(samples: Sequence[Sample], tokens: Tensor | None) -> list[tuple[int, int]]:
    """Pairs of different files that show one picture."""
    N = len(samples)
    candidates = _similar(tokens) if tokens is not None and N > 3 else _pairs(np.ones((N, N), bool))
    involved = sorted({row for pair in candidates for row in pair})
    rest = [row for row in range(N) if row not in set(involved)]
    looked = involved + rest[:: max(1, len(rest) // OTHERS)][:OTHERS]
    thumbnails = {row: found for row in looked if (found := _thumbnail(samples[row])) is not None}
    pictures = np.stack([*thumbnails.values()]) if thumbnails else np.zeros((0, SIDE, SIDE), np.float32)
    place = {row: p for p, row in enumerate(thumbnails)}
    pairs = [(place[i], place[j]) for i, j in candidates if i in place and j in place]
    rows = list(thumbnails)
    return [(rows[i], rows[j]) for i, j in _same(pictures, pairs)]


def _same(pictures: NDArray[np.float32], pairs: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Those of the pairs of thumbnails [P, SIDE, SIDE] that are one picture."""
    flat = pictures.reshape(len(pictures), SIDE**2)
    squares = (flat**2).sum(axis=1)
    rms = np.sqrt(np.maximum(squares[:, None] + squares - 2 * flat @ flat.T, 0) / SIDE**2)  # [P, P]
    same = []
    for i, j in pairs:
        blocks = np.abs(pictures[i] - pictures[j]).reshape(SIDE // BLOCK, BLOCK, SIDE // BLOCK, BLOCK).mean(axis=(1, 3))
        if rms[i, j] > LARGEST_RMS or blocks.max() > LARGEST_BLOCK:
            continue
        nearest = np.minimum(rms[i], rms[j])
        others = np.flatnonzero(nearest > LARGEST_RMS)  # neither these two nor further copies of them
        if len(others):
            a, b = (flat[row] - flat[others].mean(axis=0) for row in (i, j))  # what tells each from all others
            a, b = a - a.mean(), b - b.mean()  # but for their brightness
            correlated = a @ b > SMALLEST_CORRELATION * np.sqrt((a @ a) * (b @ b))
            if correlated and rms[i, j] <= LARGEST_RATIO * nearest[others].min():
                same.append((i, j))
        elif len(pictures) <= 3 and rms[i, j] < 1:  # nothing shows what is usual
            same.append((i, j))
    return same


def _similar(tokens: Float[Tensor, "N D"]) -> list[tuple[int, int]]:
    """Pairs of images whose descriptors, without what all have in common, point the same way."""
    centred = tokens.float() - tokens.float().mean(dim=0)
    unit = torch.nn.functional.normalize(centred, dim=1)
    return _pairs((unit @ unit.T > SIMILAR).numpy())


def _pairs(near: NDArray[np.bool_]) -> list[tuple[int, int]]:
    rows, columns = np.nonzero(np.triu(near, 1))
    return list(zip(rows.tolist(), columns.tolist(), strict=True))


def _thumbnail(sample: Sample) -> NDArray[np.float32] | None:
    try:
        grey = read_image(sample.image).convert("L").convert("F")
    except DataError:  # named when it was read for its tokens
        return None
    return np.asarray(grey.resize((SIDE, SIDE), Image.Resampling.BILINEAR), dtype=np.float32)
