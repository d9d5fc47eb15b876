"""`musc score`: new images against the pool of an earlier result; and the words of few-shot runs."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from musc.errors import ConfigError

if TYPE_CHECKING:
    from musc.datasets.base import Category
    from musc.results import MuScResult


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The sub-command's words; nothing heavy is imported."""
    text = "score new images by the images of an earlier result, which are not compared again"
    sub = commands.add_parser("score", help=text, description=text.capitalize() + ".")
    sub.add_argument(
        "images", type=Path, metavar="NEW", help="a folder of new images of the same product, or one image"
    )
    sub.add_argument("--against", type=Path, required=True, metavar="RESULT", help="folder of an earlier result")
    sub.add_argument("--cache", type=Path, help="folder of its extracted tokens, if they were moved")
    sub.add_argument("--out", type=Path, default=Path("results"), help="folder of the results (default: results)")
    sub.add_argument("--no-overlays", action="store_true", help="write no pictures")
    sub.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... (default: auto)")
    sub.set_defaults(command=score)


def score(args: argparse.Namespace) -> int:
    """`musc score`: score, save, and name every new image with its decision."""
    from musc.datasets import as_category, load_category
    from musc.results import MuScResult, result_folder
    from musc.results.pictures import save_pictures
    from musc.stream import score_against

    earlier = MuScResult.load(args.against)
    category = load_category(None, args.images) if args.images.is_dir() else as_category([args.images])
    cache = args.cache or _nearby_cache(args.against, earlier)
    result = score_against(category, earlier, cache=cache, device=args.device, progress=True)
    for skipped in result.skipped:
        print(f"skipped: {skipped.reason}", file=sys.stderr)
    for note in result.notes:
        print(f"note: {note}", file=sys.stderr)
    folder = result_folder(args.out, result.dataset, result.category, result.root)
    result.save(folder)
    if not args.no_overlays:
        save_pictures(result, category.samples, folder)
    said = {None: "", 0: "normal", 1: "anomalous"}
    decisions = [None] * len(result) if result.decisions is None else result.decisions.tolist()
    for i in (-result.raw_image_scores).argsort(kind="stable"):
        print(f"  {result.raw_image_scores[i]:.4f}  {said[decisions[i]]:9}  {result.paths[i]}")
    print(f"raw scores, on the scale of {args.against}; all: {folder / 'scores.csv'}")
    return 0


def _nearby_cache(folder: Path, earlier: MuScResult) -> Path | None:
    """The cache that the result names; or, where results were moved with their cache, the one beside them."""
    beside = folder.resolve().parent.parent / ".cache"
    return beside if not (earlier.cache and Path(earlier.cache).is_dir()) and beside.is_dir() else None


def add_reference_words(sub: argparse.ArgumentParser) -> None:
    """The few-shot words of `musc run` and `musc evaluate`."""
    group = sub.add_argument_group("normal reference images (few-shot)")
    group.add_argument("--reference-images", type=Path, metavar="DIR", help="normal images that score the others too; "
                       "with several categories, a folder DIR/CATEGORY each")  # fmt: skip
    group.add_argument("--shots", type=_shots, metavar="K", help="take K of them, drawn by --seed, or all; without "
                       "--reference-images from the category's train/good")  # fmt: skip
    group.add_argument("--plus", action="store_true", help="MuSc+: the reference images alone score (Eq. 9-11)")


def _shots(text: str) -> int | str:
    if text == "all":
        return text
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text}: give a number from 1, or all")
    return number


def references_of(args: argparse.Namespace, category: Category, *, alone: bool) -> Category | None:
    """The reference images that the words ask for; None where they ask for none. alone: there is one category only.

    Raises ConfigError or DataError where they contradict each other, or there are too few.
    """
    from dataclasses import replace

    from musc.datasets import load_category
    from musc.fewshot import reference_category

    if args.reference_images is None and args.shots is None:
        if args.plus:
            raise ConfigError(
                "--plus scores by normal reference images alone: name some by --reference-images or --shots."
            )
        return None
    source = category
    if args.reference_images is not None:
        own = args.reference_images / category.name
        if not alone and not own.is_dir():
            raise ConfigError(f"{own} is no folder: with several categories each needs reference images of its own.")
        folder = load_category("folder", own if own.is_dir() else args.reference_images)
        source = replace(folder, train=folder.samples)
    return reference_category(source, None if args.shots in (None, "all") else args.shots, args.seed)
