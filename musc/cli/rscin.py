"""`musc rscin`: RsCIN for the image scores of any other method."""

from __future__ import annotations

import argparse
import sys

from musc.cli.failures import DONE
from musc.cli.options import WORDS, Read, place
from musc.cli.outputs import check_folder
from musc.cli.settings import add_settings
from musc.errors import ConfigError


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The words of `musc rscin`."""
    sub = commands.add_parser("rscin", help="re-score any method's image scores by RsCIN (Tab. 11)")
    sub.add_argument("scores", type=place, help="CSV file with the columns path, score and perhaps label, "
                     "category; or predictions of anomalib (.json, .npz) or FiftyOne (.json)")  # fmt: skip
    sub.add_argument("--class-tokens", type=place, required=True, metavar="FILE", help="result folder, .npz, .npy, or "
                     "the authors' .dat (a pickle; only arrays are read)")  # fmt: skip
    add_settings(sub, ("windows",))
    sub.add_argument("--category", action=Read, kind=WORDS, metavar="NAME,..", help="only these, with commas between "
                     "(default: all)")  # fmt: skip
    sub.add_argument("--score-column", help="the column to re-score (default: raw_score where it is there, else score)")
    sub.add_argument("--by-order", action="store_true", help="join row by row: the tokens' file has no paths, and both "
                     "are known to stand in the same order")  # fmt: skip
    sub.add_argument("--out", type=place, metavar="FILE", help="CSV file to write (default: SCORES_rscin.csv)")
    sub.set_defaults(command=rscin)


def rscin(args: argparse.Namespace) -> int:
    """Re-score a file; print the metrics before and after where it has labels."""
    if args.scores.is_dir():
        raise ConfigError(
            f"{args.scores} is a folder: name the file of the scores, such as {args.scores / 'scores.csv'}."
        )
    out = args.out or args.scores.with_name(f"{args.scores.stem}_rscin.csv")
    if out.resolve() == args.scores.resolve():
        raise ConfigError(f"--out {out} is the file of the scores itself: choose another name.")
    if out.is_dir():
        raise ConfigError(f"--out {out} is a folder: give the name of a file, such as {out / 'rscin.csv'}.")
    check_folder(out.parent, "--out")
    for path in (args.scores, args.class_tokens):
        if not path.exists():
            raise ConfigError(f"{path} is not there: check the path.")
    from musc.plugin import rescore_file  # takes seconds: wrong words are said before

    done = rescore_file(args.scores, args.class_tokens, args.windows, categories=args.category,
                        column=args.score_column, by_order=args.by_order)  # fmt: skip
    for note in done.notes:
        print(f"note: {note}", file=sys.stderr)
    if len(done.metrics):
        print("image metrics in %, without (w/o) and with (w) RsCIN")
        print(done.metrics.to_string(float_format=lambda v: f"{v:.2f}"))
    print(f"{len(done.table)} scores: {done.write(out)}")
    return DONE
