"""`musc score`: new images against the images of an earlier result."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from musc.cli.failures import DONE
from musc.cli.options import place
from musc.cli.outputs import (
    add_output_options,
    add_threshold_option,
    check_folder,
    print_network,
    print_notes,
    print_scores,
    print_threshold,
    print_views,
    write_result,
)
from musc.cli.settings import add_settings, given_settings
from musc.errors import ConfigError

if TYPE_CHECKING:
    from musc.results import MuScResult

EXAMPLES = """\
examples:
  musc run photos/                                      first, the images to compare with
  musc score new.png --against results/folder/photos    one image, by those
  musc score new/ --against results                     a folder of images; one result lies below results/
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The words of `musc score`."""
    text = "score new images by the images of an earlier result, which are not compared again"
    sub = commands.add_parser("score", help=text, description=f"{text.capitalize()}.", epilog=EXAMPLES)
    sub.add_argument(
        "images", type=place, nargs="+", metavar="NEW", help="new images of the same product, or a folder of them"
    )
    sub.add_argument("--against", type=place, required=True, metavar="RESULT", help="folder of an earlier result, or "
                     "one that holds a single result")  # fmt: skip
    sub.add_argument("--cache", type=place, metavar="DIR", help="folder of its extracted tokens, if they were moved")
    add_settings(sub, ("weights", "device"), {"weights": "those of the earlier result"})
    add_threshold_option(sub, default=None, unset="the earlier result's")
    add_output_options(sub)
    sub.set_defaults(command=score)


def score(args: argparse.Namespace) -> int:
    """Score, save, and name every new image with its decision."""
    check_folder(args.out, "--out")
    if args.cache is not None and not args.cache.is_dir():
        raise ConfigError(f"--cache {args.cache}: there is no such folder; name the one that holds the tokens.")
    if missing := [path for path in args.images if not path.exists()]:
        raise ConfigError(f"{missing[0]}: there is no such image or folder; check the path.")
    if len(args.images) > 1 and (folders := [path for path in args.images if path.is_dir()]):
        raise ConfigError(f"{folders[0]} is a folder: give one folder, or images.")
    find_result(args.against)
    from musc.datasets import as_category, load_category  # takes seconds: what is wrong above is said before
    from musc.results import result_folder
    from musc.results.report import write_index
    from musc.stream import score_against

    place, earlier = earlier_result(args)
    category = load_category(None, args.images[0]) if args.images[0].is_dir() else as_category(args.images)
    cache = args.cache or nearby_cache(place, earlier)
    result = score_against(category, earlier, cache=cache, device=args.device, progress=True)
    print_notes(result, verbose=args.verbose)
    folder = result_folder(args.out, result.dataset, result.category, result.root)
    write_result(result, category.samples, folder, args)
    write_index(args.out)
    print_network(result)
    print_scores(result, (-result.raw_image_scores).argsort(kind="stable"))
    print_threshold(result)
    print_views(folder, args)
    print(f"scored against {place}; all scores: {folder / 'scores.csv'}")
    return DONE


def earlier_result(args: argparse.Namespace) -> tuple[Path, MuScResult]:
    """The folder that --against means, and its result, with --weights and --threshold where they are given."""
    from musc.results import MuScResult

    place = find_result(args.against)
    earlier = MuScResult.load(place)
    if args.weights is not None:
        earlier.config = earlier.config.replace(weights=given_settings(args)["weights"])
    if args.threshold is not None:
        earlier.decide(args.threshold)
    return place, earlier


def find_result(path: Path, option: str = "--against") -> Path:
    """The folder of the result that `path` means: it, the only one below it, or PARENT/DATASET/NAME for PARENT/NAME.

    Raises ConfigError where there is none, or which one is meant cannot be told.
    """
    patterns = ((path, "result.json"), (path, "*/result.json"), (path, "*/*/result.json"))
    for folder, pattern in (*patterns, (path.parent, f"*/{path.name}/result.json")):
        found = sorted(file.parent for file in folder.glob(pattern))
        # what `musc score` itself left is no pool to compare with, unless it is named
        found = [place for place in found if place == path or not ("_against_" in place.name or place.name[0] == ".")]
        if len(found) == 1:
            return found[0]
        if found:
            raise ConfigError(f"{option} {path}: which result? There are {', '.join(map(str, found))}.")
    raise ConfigError(f"{option} {path}: there is no result; name the folder that holds result.json.")


def nearby_cache(folder: Path, earlier: MuScResult) -> Path | None:
    """The cache that the result names; or, where results were moved with their cache, the one beside them."""
    beside = folder.resolve().parent.parent / ".cache"
    return beside if not (earlier.cache and Path(earlier.cache).is_dir()) and beside.is_dir() else None
