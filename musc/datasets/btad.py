"""The BTAD layout: CATEGORY/test/{ok,ko}, CATEGORY/ground_truth/ko with the image's own name, CATEGORY/train/ok."""

from __future__ import annotations

from pathlib import Path

from musc.datasets import mvtec_ad
from musc.datasets.base import Category

names = mvtec_ad.names


def load(root: Path, name: str) -> Category:
    """One category, as `mvtec_ad.load`; the normal folder is `ok`, and a mask may be .png or .bmp."""
    return mvtec_ad.load(root, name, dataset="btad", good="ok")
