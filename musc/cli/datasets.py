"""`musc datasets`: what would be read in a folder."""

from __future__ import annotations

import argparse

from musc.cli.data import add_data_options, categories_of
from musc.cli.failures import DONE


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The words of `musc datasets`."""
    sub = commands.add_parser("datasets", help="list layouts, or what a folder holds")
    add_data_options(sub)
    sub.set_defaults(command=datasets)


def datasets(args: argparse.Namespace) -> int:
    """The layouts, or the categories of a folder with their counts."""
    if args.root is None and args.layout is None:
        from musc.datasets import LAYOUTS

        print("layouts: " + ", ".join(LAYOUTS) + "\nname a folder to see what would be read there")
        return DONE
    for category in categories_of(args):
        normal = sum(s.label == 0 for s in category.samples)
        anomalous = sum(s.label == 1 for s in category.samples)
        masks = sum(s.mask is not None for s in category.samples)
        print(
            f"{category.dataset:10} {category.name:16} {len(category):4} images: {normal} normal, {anomalous} "
            f"anomalous, {len(category) - normal - anomalous} unlabeled; {masks} masks; "
            f"{len(category.train)} normal training images"
        )
        for skipped in (*category.skipped, *category.notes):
            print(f"  {skipped.name}: {skipped.reason}")
    return DONE
