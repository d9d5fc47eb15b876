"""`musc compare`: methods side by side on one data set."""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING

from musc.cli.data import (
    add_data_options,
    add_reference_options,
    categories_of,
    check_references,
    references_of,
    source_of,
)
from musc.cli.failures import DONE
from musc.cli.options import WORDS, Read, add_scheduler_option, place
from musc.cli.outputs import RESULTS, check_folder
from musc.cli.settings import BY_DATA_SET, FIELDS, add_settings, given_settings, with_network
from musc.config import METHODS, NEED_REFERENCES, PAPER_WINDOWS, MuScConfig
from musc.saving import whole

if TYPE_CHECKING:
    from musc.datasets.base import Category

EXAMPLES = """\
examples:
  musc compare synthetic --methods musc,muscv2,anomalydino,subspacead
  musc compare mvtec_anomaly_detection/ --category bottle --backbone dinov2_vits14
  musc compare mvtec_anomaly_detection/ --methods musc,anomalydino --shots 4

Tokens are extracted once. Without --reference-images and --shots, musc+, patchcore, spade and padim compare with all of
train/good and the others with nothing; with them, every method gets those references. What an earlier run measured with
the same settings is taken from OUT/compare.
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The words of `musc compare`."""
    text = "measure methods side by side on a labeled data set"
    sub = commands.add_parser("compare", help=text, description=f"{text.capitalize()}.", epilog=EXAMPLES)
    add_data_options(sub)
    sub.add_argument("--methods", action=Read, kind=WORDS, metavar="NAME,..",
                     help=f"of {', '.join(METHODS)} (default: all that can run)")  # fmt: skip
    add_reference_options(sub, plus=False)
    names = [name for name in FIELDS if name != "method"]
    add_settings(sub.add_argument_group("settings"), names, left_open=BY_DATA_SET)
    sub.add_argument("--out", type=place, default=RESULTS, metavar="DIR", help="folder of results (default: results)")
    sub.add_argument("--cache", type=place, metavar="DIR", help="folder of extracted tokens (default: OUT/.cache)")
    add_scheduler_option(sub)
    sub.add_argument("--force", action="store_true", help="measure again what is finished already")
    sub.set_defaults(command=compare, plus=False, method="musc")


def compare(args: argparse.Namespace) -> int:
    """Measure, and leave compare.csv (by category), comparison.csv (by method) and comparison.png."""
    check_references(args)
    check_folder(args.out, "--out")
    source_of(args)
    from musc import compare as comparing  # takes seconds: wrong words are said before
    from musc.distributed.cluster import Cluster

    cache = args.cache or args.out / ".cache"
    check_folder(cache, "--cache")
    categories = categories_of(args)
    settings = {name: value for name, value in with_network(given_settings(args)).items() if name != "method"}
    if windows := PAPER_WINDOWS.get(categories[0].dataset):
        settings.setdefault("windows", windows)
    config = MuScConfig(**settings)
    given = args.reference_images is not None or args.shots is not None

    def has_references(method: str) -> bool:
        return given or (method in NEED_REFERENCES and all(category.train for category in categories))

    def references(category: Category, method: str) -> Category | None:
        if not given and method not in NEED_REFERENCES:
            return None
        return references_of(
            argparse.Namespace(**{**vars(args), "method": method}), category, alone=len(categories) == 1
        )

    methods = args.methods
    if methods is None:
        methods, reasons = comparing.runnable(config, has_references)
        for reason in reasons:
            print(f"left out: {reason}", file=sys.stderr)
    comparing.check(methods, config, has_references)
    with ExitStack() as leaving:
        cluster = None
        if args.scheduler:
            cluster = leaving.enter_context(Cluster(args.scheduler, cache=cache, device=config.device))
        frame = comparing.compare(
            categories, methods, config, args.out / "compare", references=references, cache=cache, force=args.force,
            cluster=cluster, say=lambda line: print(line, file=sys.stderr),
        )  # fmt: skip
    table = comparing.summary(frame)
    with whole(args.out / "compare.csv") as partial:
        frame.to_csv(partial, index=False, float_format="%.4f")
    with whole(args.out / "comparison.csv") as partial:
        table.to_csv(partial, float_format="%.4f")
    with whole(args.out / "comparison.png") as partial:
        comparing.plot(table).savefig(partial, dpi=150, format="png")
    print(f"\n{config.backbone}, {len(categories)} categories, {frame['images'].sum() // len(methods)} images, masks: "
          f"{config.mask_protocol}; metrics in %")  # fmt: skip
    print(table.to_string(float_format=lambda v: f"{v:.2f}"))
    print(f"extraction, once for all: {frame['extraction s'].sum():.1f} s; GiB: the peak beyond the tokens")
    print(f"\ntable: {args.out / 'comparison.csv'}   by category: {args.out / 'compare.csv'}   "
          f"plot: {args.out / 'comparison.png'}")  # fmt: skip
    return DONE
