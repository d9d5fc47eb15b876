"""`musc threshold`: the decisions of a result taken again, by a few images that somebody marked."""

from __future__ import annotations

import argparse
import sys

from musc.cli.failures import DONE
from musc.cli.options import Kind, Read, place
from musc.cli.outputs import add_region_options, print_threshold, write_views, writing
from musc.cli.report import samples_of, update_index
from musc.errors import ConfigError

EXAMPLES = """\
examples:
  musc threshold results/folder/photos --labels marked.csv                      the best F1 on the marked images
  musc threshold results/folder/photos --labels marked.csv --recall 0.95        find 95 % of the bad ones
  musc threshold results/folder/photos --labels marked.csv --false-alarms 0.02  flag at most 2 % of the good ones

Mark images in report.html (G good, B bad) and save marked.csv there; any table with the columns path and label will do.
The marks are kept beside the result. Decisions, masks, overlays, regions and the report are written again; scores stay.
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The words of `musc threshold`."""
    text = "set the threshold of a result by images that you marked as good or bad"
    sub = commands.add_parser("threshold", help=text, description=f"{text.capitalize()}.", epilog=EXAMPLES)
    sub.add_argument("result", type=place, metavar="RESULT", help="folder of the result")
    sub.add_argument("--labels", type=place, metavar="CSV", help="columns path and label, which is 0 or good, 1 or bad "
                     "(default: the marks of last time)")  # fmt: skip
    share = Kind(_share, "give a share above 0 and at most 1, such as 0.95.")
    aim = sub.add_mutually_exclusive_group()
    aim.add_argument("--recall", action=Read, kind=share, metavar="R", help="the highest threshold that finds this "
                     "share of the images marked bad (default: the best F1)")  # fmt: skip
    aim.add_argument("--false-alarms", action=Read, kind=share, metavar="R", help="the lowest threshold that flags at "
                     "most this share of the images marked good")  # fmt: skip
    add_region_options(sub)
    sub.set_defaults(command=threshold)


def threshold(args: argparse.Namespace) -> int:
    """Choose, decide, and write again what depends on it."""
    folder = args.result
    if not (folder / "result.json").exists():
        raise ConfigError(f"{folder}: there is no result; name the folder that holds result.json.")
    from musc.results import MuScResult, marks  # takes a second: what is wrong above is said before

    result = MuScResult.load(folder)
    file = args.labels or folder / marks.NAME
    if args.labels is None and not file.exists():
        raise ConfigError(f"{folder} keeps no marks: give --labels marked.csv, which report.html saves.")
    marked, notes = marks.read_marks(file, result.paths)
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    rows = [result.paths.index(path) for path in marked]
    result.threshold = marks.from_marks(
        result.raw_image_scores[rows], list(marked.values()), recall=args.recall, false_alarms=args.false_alarms
    )
    samples = samples_of(result)
    pictures, page = (folder / "overlays").is_dir(), (folder / "report.html").exists()
    if pictures and len(samples) < len(result):
        gone = len(result) - len(samples)
        print(f"note: {gone} images are not where they were: no overlays and masks are written.", file=sys.stderr)
        pictures = False
    with writing(folder):
        result.save(folder)
        marks.write_marks(marked, folder)
        write_views(result, samples, folder, args, pictures=pictures, page=page)
    update_index([folder])
    print_threshold(result)
    print(f"written again: {folder / 'scores.csv'}" + (f", {folder / 'report.html'}" if page else ""))
    return DONE


def _share(text: str) -> float:
    if not 0 < (share := float(text)) <= 1:
        raise ValueError(text)
    return share
