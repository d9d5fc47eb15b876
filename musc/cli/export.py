"""`musc export`: a result for another program."""

from __future__ import annotations

import argparse

from musc.cli.failures import DONE
from musc.cli.options import Read, one_of, place
from musc.cli.outputs import add_threshold_option, check_folder
from musc.cli.score import find_result

FORMATS = ("anomalib", "fiftyone")
EXAMPLES = """\
examples:
  musc export results/folder/photos --format anomalib --out for_anomalib
  musc export results/folder/photos --format fiftyone --out for_fiftyone

anomalib reads the folder by Folder(root=..., normal_dir="normal", abnormal_dir="abnormal", mask_dir="mask"); FiftyOne
by Dataset.from_dir(dataset_dir=..., dataset_type=FiftyOneImageClassificationDataset, data_path="data.json").
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The words of `musc export`."""
    text = "write a result in the format of another program"
    sub = commands.add_parser("export", help=text, description=f"{text.capitalize()}.", epilog=EXAMPLES)
    sub.add_argument("result", type=place, metavar="RESULT", help="folder of a result")
    sub.add_argument("--format", action=Read, kind=one_of(FORMATS), required=True, metavar="{anomalib,fiftyone}",
                     help="anomalib: images and masks by decision, and its prediction fields; fiftyone: JSON, the "
                     "images stay where they are")  # fmt: skip
    sub.add_argument("--out", type=place, required=True, metavar="DIR", help="a new folder")
    add_threshold_option(sub, default=None, unset="the result's")
    sub.set_defaults(command=export)


def export(args: argparse.Namespace) -> int:
    """Write the result with its decisions."""
    check_folder(args.out, "--out")
    place = find_result(args.result, "RESULT")
    from musc.plugin.exports import export as write  # takes a second: what is wrong above is said before
    from musc.results import MuScResult

    result = MuScResult.load(place)
    if args.threshold is not None:
        result.decide(args.threshold)
    print(f"{len(result)} images of {place}: {write(result, args.out, args.format)}")
    return DONE
