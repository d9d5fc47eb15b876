"""What every data set is listed as: a `Category` of `Sample`s, images of one product."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

from PIL import Image


@runtime_checkable
class Rendered(Protocol):
    """An image or mask that is drawn on demand instead of read from a file (see `synthetic`)."""

    @property
    def key(self) -> str:
        """Names the picture for the feature cache: equal keys mean equal pixels."""
        ...

    def __call__(self) -> Image.Image: ...


Source = Path | Rendered


def printable(name: str) -> str:
    """`name` as text that every screen and file takes: bytes that are no UTF-8 and control characters as \\xNN.

    Example:
        >>> print(printable("Pr\\udcfcfling.png"))  # an old archive's name, as Python reads it
        Pr\\xfcfling.png
    """
    try:
        text = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # half a surrogate pair, which only Windows lets into a name
        text = name.encode("utf-8", "backslashreplace").decode("utf-8")
    return "".join(f"\\x{ord(c):02x}" if unicodedata.category(c) == "Cc" else c for c in text)


@dataclass(frozen=True)
class Sample:
    """One image of the product, with what is known of it.

    `name` is unique in its category: the image's path relative to the category's folder, with forward slashes.
    `label` is 0 (normal), 1 (anomalous) or None (unknown); `defect` the defect's folder name, "good" if normal.
    `mask` is None where no mask exists: a normal image has no anomalous pixel, of an unlabeled one nothing is known.
    """

    name: str
    image: Source
    label: int | None = None
    defect: str = ""
    mask: Source | None = None


@dataclass(frozen=True)
class Skipped:
    """An image or folder that was left out of its category, and why (one sentence with the remedy)."""

    name: str
    reason: str


@dataclass(frozen=True)
class Category:
    """The unlabeled test images of one product (D_u in the paper, Sec. 3.1) and, where they exist, its normal
    training images, which only the few-shot extensions use (App. A.6).

    `skipped` names the images that were left out; `notes` what is odd about those that were kept, such as an
    anomalous image whose mask is missing: it is scored, and left out of the pixel metrics.
    """

    dataset: str
    name: str
    samples: tuple[Sample, ...]
    train: tuple[Sample, ...] = ()
    root: Path | None = None
    skipped: tuple[Skipped, ...] = field(default=())
    notes: tuple[Skipped, ...] = field(default=())

    def __len__(self) -> int:
        return len(self.samples)

    def __iter__(self) -> Iterator[Sample]:
        return iter(self.samples)

    @property
    def labeled(self) -> bool:
        """Whether every image has a label, so that image metrics can be computed."""
        return bool(self.samples) and all(s.label is not None for s in self.samples)

    @property
    def has_masks(self) -> bool:
        """Whether pixel metrics can be computed: every anomalous image has its mask."""
        anomalous = [s for s in self.samples if s.label]
        return self.labeled and bool(anomalous) and all(s.mask is not None for s in anomalous)
