"""The command line. Each command has a file of its own here, with its options and what it does."""

from __future__ import annotations

import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

from musc import __version__
from musc.cli import (
    backbones,
    cache,
    compare,
    datasets,
    evaluate,
    export,
    reproduce,
    rscin,
    run,
    score,
    threshold,
    watch,
    weights,
)
from musc.cli import report as report_command
from musc.cli.failures import CLOSED_PIPE, FAILED, INTERRUPTED, report
from musc.cli.interrupts import heard, listening, lost
from musc.cli.options import Parser

EXAMPLES = """\
examples:
  musc run photos/                          score a folder of images of one product by each other
  musc run photos/ --backbone ViT-L-14-336 --device cuda      with the paper's backbone, on a GPU
  musc run photos/ --reference-images normal/   some images known to be normal help to score the others
  musc score new/ --against results/folder/photos      new images, by those of an earlier run
  musc watch incoming/ --against results/folder/photos   whatever arrives in a folder, by those of an earlier run
  musc threshold results/folder/photos --labels marked.csv   decide by the images that you marked in report.html
  musc evaluate synthetic                   the built-in data set: no download, no network
  musc evaluate mvtec_anomaly_detection/ --backbone ViT-L-14-336 --category bottle,cable
  musc compare synthetic --methods musc,muscv2,anomalydino   other methods on the same tokens
  musc rscin scores.csv --class-tokens mvtec_ad_cls.dat --category bottle --by-order
  musc reproduce table_1                    the paper's Table 1 beside this run, on the built-in data set
  musc datasets mvtec_anomaly_detection/    what would be read there
  musc backbones                            every network by name
  musc weights focus_vits14                 bring a network that was trained on photographs
  musc cache                                how much the extracted tokens take

exit codes: 0 done, 1 something could not be done (it is named), 2 wrong words, 130 interrupted, 141 nobody reads the
output any more. Run an interrupted command again, and it goes on where it was.
"""

INTERRUPT = "\nmusc: interrupted. What was finished is kept; the same command goes on from there."


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit code. Wrong words exit with 2, as argparse does."""
    for name in (
        "stdin",
        "stdout",
        "stderr",
    ):  # one that is closed: no opened file must take its place
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w", encoding="utf-8"))  # noqa: SIM115
    try:
        os.getcwd()
    except OSError:
        print("musc: the working folder is gone: change to another one.", file=sys.stderr)
        return FAILED
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a file name that the terminal cannot show stops no run
    try:
        try:
            return _run(argv)
        finally:
            sys.stdout.flush()  # here and not at the interpreter's end, where a closed pipe could not be handled
    except BrokenPipeError:  # musc ... | head
        _silence()
        return CLOSED_PIPE


def build_parser() -> Parser:
    """The words of every command; nothing heavy is imported for them."""
    parser = Parser(
        prog="musc",
        description="Zero-shot anomaly classification and segmentation by mutual scoring of the unlabeled images.",
        epilog=EXAMPLES,
    )
    parser.add_argument("--version", action="version", version=f"musc {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in (
        run, evaluate, compare, score, watch, threshold, report_command, export, datasets, rscin, reproduce, backbones,
        weights, cache,
    ):  # fmt: skip
        command.add_parser(commands)
    for sub in commands.choices.values():
        sub.add_argument("-v", "--verbose", action="store_true", help="notes, timings, and tracebacks of errors")
    return parser


def _run(argv: Sequence[str] | None) -> int:
    with listening(), warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
        verbose = False
        try:
            args = build_parser().parse_args(argv)
            verbose = args.verbose
            with _said_aloud() if verbose else nullcontext():
                return args.command(args)
        except BrokenPipeError:
            raise
        except Exception as error:
            if not lost():
                report(error, verbose=verbose)
                return FAILED
        except KeyboardInterrupt:
            heard()
        print(INTERRUPT, file=sys.stderr)
        return INTERRUPTED


@contextmanager
def _said_aloud() -> Iterator[None]:
    """What our modules log, such as the engine that was taken and why, on stderr."""
    logger, handler = logging.getLogger("musc"), logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(name)s: %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(logging.NOTSET)


def _silence() -> None:
    """Let what is still buffered go nowhere: the interpreter flushes once more when it ends."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:
            os.dup2(nowhere, stream.fileno())
