"""`musc backbones`: every network that can be named."""

from __future__ import annotations

import argparse

from musc.cli.failures import DONE


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The words of `musc backbones`."""
    commands.add_parser("backbones", help="list the networks by name").set_defaults(command=backbones)


def backbones(_: argparse.Namespace) -> int:
    """Every network with its input size and stages."""
    from musc.backbones import BACKBONES

    print(f"{'name':24} {'library':10} {'pixels':>6} {'patch':>5}  stages")
    for spec in BACKBONES.values():
        stages = ", ".join(map(str, spec.stages))
        print(f"{spec.name:24} {spec.library:10} {spec.image_size:6} {spec.patch_size:5}  {stages}")
    return DONE
