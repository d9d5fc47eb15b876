"""`musc cache`: what the cache holds, extracted tokens and blocks of runs that were given up, and a bound for it."""

from __future__ import annotations

import argparse
from datetime import datetime
from pathlib import Path

from musc.cli.failures import DONE
from musc.cli.options import BYTES, Read, place
from musc.errors import ConfigError

EXAMPLES = """\
examples:
  musc cache                                what results/.cache holds, by network and settings
  musc cache list --cache photos/.cache     another folder
  musc cache prune --max-size 2GiB          remove what was not used for the longest time, down to 2 GiB
  musc cache prune --max-size 0             remove everything

What is removed is computed again when a run needs it; no result changes. Blocks are what a run with a scheduler has
finished: the same command goes on at them. Those of a run that goes on are not removed.
"""
MIB = 1 << 20


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The words of `musc cache`."""
    text = "list the tokens and blocks that are kept, or remove the oldest"
    sub = commands.add_parser("cache", help=text, description=f"{text.capitalize()}.", epilog=EXAMPLES)
    sub.add_argument("what", nargs="?", choices=("list", "prune"), default="list", help="which of both (default: list)")
    sub.add_argument(
        "--cache",
        type=place,
        default=Path("results/.cache"),
        metavar="DIR",
        help="the folder that holds the tokens (default: %(default)s)",
    )
    sub.add_argument(
        "--max-size", action=Read, kind=BYTES, metavar="SIZE", help="what prune leaves at most; 0: nothing"
    )
    sub.set_defaults(command=cache)


def cache(args: argparse.Namespace) -> int:
    """A line per network and settings, and per run that left blocks, then the sum; after pruning, what was removed."""
    from musc.pruning import blocks, cached, prune

    if not args.cache.is_dir():
        raise ConfigError(f"--cache {args.cache}: there is no such folder; name the one that holds the tokens.")
    if (args.what == "prune") != (args.max_size is not None):
        raise ConfigError("prune wants --max-size, such as 2GiB, and list does not: `musc cache --help` shows both.")
    if args.what == "prune":
        removed = prune(args.cache, args.max_size)
        runs = f" and the blocks of {removed.runs} runs" if removed.runs else ""
        print(f"removed the tokens of {removed.images} images{runs}, {removed.size / MIB:.1f} MiB")
    tokens, runs_left = cached(args.cache), blocks(args.cache)
    for what, unit, found in (("network and settings", "images", tokens), ("run with a scheduler", "files", runs_left)):
        if found:
            print(f"{what:44} {unit:>7} {'MiB':>9}  last used")
        for kept in found:
            used = datetime.fromtimestamp(kept.used).strftime("%Y-%m-%d %H:%M")
            print(f"{kept.name:44} {kept.files:7} {kept.size / MIB:9.1f}  {used}{', goes on' if kept.running else ''}")
    size = sum(kept.size for kept in (*tokens, *runs_left))
    also = f", blocks of {len(runs_left)} runs" if runs_left else ""
    print(f"{args.cache}: {sum(kept.files for kept in tokens)} images{also}, {size / MIB:.1f} MiB")
    return DONE
