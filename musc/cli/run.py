"""`musc run`: score images by each other; no labels are needed."""

from __future__ import annotations

import argparse

from musc.cli.batch import Batch, add_batch_options
from musc.cli.failures import DONE, FAILED
from musc.cli.outputs import print_network, print_scores, print_threshold, print_views

SHOWN = 5  # images on the screen; scores.csv has all
EXAMPLES = """\
examples:
  musc run photos/                          a folder of images of one product
  musc run photos/ --backbone ViT-L-14-336 --device cuda      with the paper's backbone, on a GPU
  musc run photos/ --reference-images normal/   some images known to be normal help to score the others
  musc run photos/ --position-window 3      aligned parts: compare near the same place only
  musc run scans/ --tiles 2                 large images in overlapping tiles
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The words of `musc run`."""
    text = "score images; no labels needed"
    sub = commands.add_parser("run", help=text, description=f"{text.capitalize()}.", epilog=EXAMPLES)
    add_batch_options(sub)
    sub.set_defaults(command=run)


def run(args: argparse.Namespace) -> int:
    """Score, save, and name the images that look most anomalous."""
    batch, failed = Batch(args), False
    for category, result in batch.results(needs_labels=False):
        failed |= result is None
        if result is not None:
            folder = batch.folder(category)
            print(f"\n{category.dataset} {category.name}: {len(result)} images, most anomalous first")
            print_network(result)
            print_scores(result, (-result.image_scores).argsort(kind="stable")[:SHOWN])
            print_threshold(result)
            print(f"  all scores: {folder / 'scores.csv'}")
            print_views(folder, args)
    return FAILED if failed else DONE
