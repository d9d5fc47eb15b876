"""The options that name images: a data set, its categories, and normal reference images."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from musc.cli.options import WORDS, Kind, Read, count, place
from musc.config import NEED_REFERENCES
from musc.errors import ConfigError

if TYPE_CHECKING:
    from musc.datasets.base import Category


def add_data_options(sub: argparse.ArgumentParser) -> None:
    """ROOT, --layout and --category."""
    sub.add_argument("root", nargs="?", help="folder of the data set or of the images, or the word synthetic")
    sub.add_argument("--layout", help="mvtec_ad, visa, btad, folder or synthetic (default: by looking at the folder)")
    sub.add_argument("--category", "--categories", action=Read, kind=WORDS, metavar="NAME,..",
                     help="only these, with commas between (default: all)")  # fmt: skip


def source_of(args: argparse.Namespace) -> tuple[str | None, Path | None]:
    """Layout and folder that the words mean; neither is looked at. Raises ConfigError where they contradict."""
    if args.root is not None and not args.root.strip():
        raise ConfigError("the name of the folder is empty: name one, or . for the working folder.")
    if args.root is None and args.layout != "synthetic":
        raise ConfigError("name a folder, or the word synthetic for the built-in data set.")
    if args.root is None or (args.root == "synthetic" and not Path(args.root).exists()):
        if args.layout not in (None, "synthetic"):
            raise ConfigError(f"--layout {args.layout}: the built-in data set has none; leave the option out.")
        return "synthetic", None
    if args.layout == "synthetic":
        raise ConfigError(f"--layout synthetic: the built-in data set is in no folder; leave out {args.root}.")
    if not Path(args.root).expanduser().exists():
        raise ConfigError(f"{Path(args.root).expanduser().absolute()} does not exist: check the path.")
    return args.layout, Path(args.root)


def categories_of(args: argparse.Namespace) -> list[Category]:
    """The categories that are asked for; no image is read. Raises ConfigError naming those that are not there."""
    layout, root = source_of(args)
    from musc.datasets import list_categories, load  # takes seconds: wrong words are said before

    if args.category:
        known = list_categories(layout, root)
        if unknown := [name for name in args.category if name not in known]:
            raise ConfigError(f"--category {','.join(unknown)}: {root or layout} has {', '.join(known)}.")
    return load(root, layout, args.category)


def add_reference_options(sub: argparse.ArgumentParser, *, plus: bool = True) -> None:
    """--reference-images, --shots and, with `plus`, --plus."""
    group = sub.add_argument_group("normal reference images (few-shot)")
    group.add_argument("--reference-images", type=place, metavar="DIR", help="normal images that score the others too; "
                       "with several categories, a folder DIR/CATEGORY each")  # fmt: skip
    group.add_argument("--shots", action=Read, kind=Kind(_shots, "give a whole number from 1, or all."), metavar="K",
                       help="take K of them, drawn by --seed, or all; without --reference-images from the category's "
                       "train/good")  # fmt: skip
    if plus:
        group.add_argument("--plus", action="store_true", help="MuSc+: the reference images alone score (Eq. 9-11)")


def _shots(text: str) -> int | str:
    return text if text == "all" else count(text)


def check_references(args: argparse.Namespace) -> None:
    """Raises ConfigError where the words for reference images contradict each other, or name no folder."""
    given = args.reference_images is not None or args.shots is not None
    if args.plus and args.method != "musc":
        raise ConfigError(f"--plus is the method musc+, and --method {args.method} another: leave one of them out.")
    if args.plus and not given:
        raise ConfigError("--plus scores by normal reference images alone: name some by --reference-images or --shots.")
    if args.plus and args.references is not None:
        raise ConfigError(
            f"--references {args.references}: with --plus no image scores the others; leave one of them out."
        )
    if args.references == 0 and not given:
        raise ConfigError("--references 0 lets normal reference images score alone: name some by --reference-images.")
    if args.reference_images is not None and not args.reference_images.is_dir():
        raise ConfigError(f"--reference-images {args.reference_images}: there is no such folder; check the path.")


def references_of(args: argparse.Namespace, category: Category, *, alone: bool) -> Category | None:
    """The reference images of a category; None where none are asked for, and the method needs none. alone: there is one
    category only.

    Raises ConfigError or DataError where there are too few.
    """
    from musc.datasets import load_category
    from musc.fewshot import reference_category

    if args.reference_images is None and args.shots is None and args.method not in NEED_REFERENCES:
        return None
    source = category
    if args.reference_images is not None:
        own = args.reference_images / category.name
        if not alone and not own.is_dir():
            raise ConfigError(f"{own} is no folder: with several categories each needs reference images of its own.")
        folder = load_category("folder", own if own.is_dir() else args.reference_images)
        source = replace(folder, train=folder.samples)
    return reference_category(source, None if args.shots in (None, "all") else args.shots, args.seed)
