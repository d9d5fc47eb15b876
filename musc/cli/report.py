"""`musc report`: the pages and files to look at a result, made anew."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from musc.cli.failures import DONE
from musc.cli.options import place
from musc.cli.outputs import add_region_options, write_views, writing
from musc.errors import ConfigError

if TYPE_CHECKING:
    from musc.datasets import Sample
    from musc.results import MuScResult

EXAMPLES = """\
examples:
  musc report results/folder/photos         report.html, regions.csv and regions.json of one result
  musc report results                       of all results below, and index.html over them
  musc report results/folder/photos --min-region 20 --merge-regions 5

`musc run`, `musc evaluate` and `musc score` write them too. No image is scored here.
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The words of `musc report`."""
    text = "write the report of a result anew, and its regions"
    sub = commands.add_parser("report", help=text, description=f"{text.capitalize()}.", epilog=EXAMPLES)
    sub.add_argument(
        "results", type=place, nargs="+", metavar="RESULT", help="folders of results, or of several results"
    )
    add_region_options(sub)
    sub.set_defaults(command=report)


def report(args: argparse.Namespace) -> int:
    """Write the views of every result, and the index over them."""
    folders = list(dict.fromkeys(folder for path in args.results for folder in results_below(path)))
    from musc.results import MuScResult  # takes a second: what is wrong above is said before
    from musc.results.report import PAGE

    for folder in folders:
        result = MuScResult.load(folder)
        with writing(folder):
            write_views(result, samples_of(result), folder, args, pictures=False, page=True)
        print(f"report: {folder / PAGE}")
    update_index(args.results)
    return DONE


def update_index(paths: list[Path]) -> None:
    """Write the index over the results below each folder; of a single result, the index above it, if there is one."""
    from musc.results.report import INDEX, write_index

    for path in paths:
        single = (path / "result.json").exists()
        out = path.resolve().parent.parent if single else path
        if (not single or (out / INDEX).exists()) and (index := write_index(out)) and not single:
            print(f"index: {index}")


def results_below(path: Path) -> list[Path]:
    """The folders of results that a path means: it, or those up to two levels below.

    Raises ConfigError where there is none.
    """
    for pattern in ("result.json", "*/result.json", "*/*/result.json"):
        found = sorted(file.parent for file in path.glob(pattern))
        if found := [place for place in found if place == path or not place.name.startswith(".")]:
            return found
    raise ConfigError(f"{path}: there is no result; name the folder that holds result.json.")


def samples_of(result: MuScResult) -> tuple[Sample, ...]:
    """The images of a result, where they still are; those that are gone are left out."""
    from musc.datasets import load_category, located

    if result.dataset == "synthetic":
        found = {sample.name: sample for sample in load_category("synthetic", name=result.category).samples}
    else:
        found = located(result.paths, result.dataset, result.root)
    return tuple(found[name] for name in result.paths if name in found)
