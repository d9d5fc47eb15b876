"""How often an image's neighbours have its own label: all that RsCIN can build on (Sec. 3.3).

`clip_agreement()` is that share for the class tokens that the paper's network, CLIP's ViT-L/14-336, gives for the test
images of MVTec AD and VisA. `python -m benchmarks.agreement` makes the table from the tokens that the authors publish.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray


def nearest_images(class_tokens: Float[np.ndarray, "N D"]) -> Int[np.ndarray, "N N-1"]:
    """Of every image the others by falling similarity of class tokens (their dot product), itself left out.

    Example:
        >>> nearest_images(np.array([[1.0, 0.0], [0.0, 1.0], [0.9, 0.1]]))
        array([[2, 1],
               [2, 0],
               [0, 1]])
    """
    tokens = np.asarray(class_tokens, dtype=np.float64)
    similarity = tokens @ tokens.T
    np.fill_diagonal(similarity, -np.inf)
    return np.argsort(-similarity, axis=1, kind="stable")[:, :-1]


def agreement(
    labels: Bool[np.ndarray, "N"] | Int[np.ndarray, "N"], class_tokens: Float[np.ndarray, "N D"], windows: Sequence[int]
) -> dict[int, float]:
    """Share of the other images in a window that have the image's own label, from 0 to 1, by the window's k.

    Args:
        labels: [N], 1 of an anomalous image.
        class_tokens: [N, D], of unit length where the cosine is meant.
        windows: the k of Eq. 4, counting the image itself, from 2 to N; N itself gives the share by chance.

    Raises:
        ValueError: a window holds no other image, or more than there are.

    Example:
        >>> tokens = np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]])
        >>> agreement(np.array([0, 0, 1, 1]), tokens, (2, 4))
        {2: 1.0, 4: 0.3333333333333333}
    """
    labels = np.asarray(labels)
    if wrong := [k for k in windows if not 2 <= k <= len(labels)]:
        raise ValueError(f"window {wrong[0]}: give whole numbers from 2, the image and another, to N = {len(labels)}.")
    same: NDArray[np.bool_] = labels[nearest_images(class_tokens)] == labels[:, None]
    return {k: float(same[:, : k - 1].mean()) for k in windows}


def clip_agreement() -> pd.DataFrame:
    """The shares in percent, a row per category of MVTec AD and VisA.

    Columns: dataset, category, images, normal; k_2, k_3, k_8 and k_9, the windows of the paper; chance, all images.
    """
    with files("musc.plugin").joinpath("clip_agreement.csv").open(encoding="utf-8") as file:
        return pd.read_csv(file)
