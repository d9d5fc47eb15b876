"""`musc watch`: a folder whose images are scored as they arrive."""

from __future__ import annotations

import argparse
import sys
import time
from contextlib import ExitStack

from musc.cli.failures import DONE, INTERRUPTED
from musc.cli.interrupts import heard
from musc.cli.options import Kind, Read, place
from musc.cli.outputs import add_output_options, add_threshold_option, check_folder
from musc.cli.score import earlier_result, find_result, nearby_cache
from musc.cli.settings import add_settings
from musc.errors import ConfigError

EXAMPLES = """\
examples:
  musc run photos/                                      first, the images to compare with
  musc watch incoming/ --against results/folder/photos  then whatever is put in incoming/, until Ctrl-C
  musc watch incoming/ --against results --once         what is there now, and no more

Every file is scored once, when it is complete: what is still being written waits. Stop it, or let it be killed, and
start it again: it goes on where it was. The table of scores is OUT/watch/FOLDER/scores.csv, and report.html beside it
shows the images; load it again to see new ones.
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The words of `musc watch`."""
    text = "score images as they arrive in a folder, by those of an earlier result"
    sub = commands.add_parser("watch", help=text, description=f"{text.capitalize()}.", epilog=EXAMPLES)
    sub.add_argument("folder", type=place, metavar="FOLDER", help="where images arrive")
    sub.add_argument("--against", type=place, required=True, metavar="RESULT", help="folder of an earlier result, or "
                     "one that holds a single result")  # fmt: skip
    seconds = Kind(_seconds, "give seconds, such as 0.5.")
    sub.add_argument("--every", action=Read, kind=seconds, default=1.0, metavar="S",
                     help="seconds between two looks; a file is scored when it did not change between them "
                     "(default: 1)")  # fmt: skip
    sub.add_argument("--once", action="store_true", help="end when all that is there is scored")
    sub.add_argument("--cache", type=place, metavar="DIR", help="folder of its extracted tokens, if they were moved")
    add_settings(sub, ("weights", "device"), {"weights": "those of the earlier result"})
    add_threshold_option(sub, default=None, unset="the earlier result's")
    add_output_options(sub, views=False)
    sub.set_defaults(command=watch)


def _seconds(text: str) -> float:
    if not 0 < (seconds := float(text)) <= 86400:
        raise ValueError(text)
    return seconds


def watch(args: argparse.Namespace) -> int:
    """Score what arrives, a line for each image, until Ctrl-C or, with --once, until nothing is left."""
    check_folder(args.out, "--out")
    if not args.folder.is_dir():
        raise ConfigError(f"{args.folder}: there is no such folder; make it, or check the path.")
    find_result(args.against)
    from musc.results.folders import legal_names  # takes seconds: what is wrong above is said before
    from musc.results.report import write_index
    from musc.saving import alone
    from musc.stream import Against
    from musc.watch import TABLE, Watch

    place, earlier = earlier_result(args)
    out = args.out / "watch" / legal_names([args.folder.resolve().name or "folder"])[0]
    against = Against(earlier, cache=args.cache or nearby_cache(place, earlier), device=args.device)
    scored, code = 0, DONE
    with ExitStack() as held:
        try:
            held.enter_context(alone(out, wait=False))
        except BlockingIOError:
            raise ConfigError(f"{out}: another process watches there; end it, or choose another --out.") from None
        watched = Watch(args.folder, against, out, pictures=not args.no_overlays)
        print(f"{args.folder} is watched, against {place}: {len(watched.done)} images scored before", file=sys.stderr)
        try:
            while True:
                for arrival in watched.look():
                    if arrival.reason:
                        print(f"left out: {arrival.reason}", file=sys.stderr, flush=True)
                        continue
                    if arrival.note:
                        print(f"note: {arrival.note} The report names further ones.", file=sys.stderr, flush=True)
                    scored += 1
                    said = {None: "", 0: "normal", 1: "anomalous"}[arrival.decision]
                    print(f"{arrival.score:7.3f}  {arrival.raw_score:9.4f}  {said:9}  {arrival.name}", flush=True)
                if args.once and watched.settled:
                    break
                time.sleep(args.every)
        except KeyboardInterrupt:
            heard()
            code = INTERRUPTED if args.once else DONE  # otherwise it is how one ends
            print(file=sys.stderr)
        page = watched.write_page()
    if page is not None:
        write_index(args.out)
    print(f"{scored} images scored: {out / TABLE}" + (f", {page}" if page else ""), file=sys.stderr)
    return code
