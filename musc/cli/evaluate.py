"""`musc evaluate`: score a labeled data set and print the seven metrics."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from musc.cli.batch import Batch, add_batch_options
from musc.cli.data import source_of
from musc.cli.failures import DONE, FAILED
from musc.errors import MuscError
from musc.saving import whole

if TYPE_CHECKING:
    from musc.results import MuScResult

EXAMPLES = """\
examples:
  musc evaluate synthetic                   the built-in data set: no download, no network
  musc evaluate mvtec_anomaly_detection/ --backbone ViT-L-14-336 --category bottle,cable
  musc evaluate mvtec_anomaly_detection/ --method padim       another method on the same tokens
  musc evaluate VisA/ --backbone ViT-L-14-336 --weights ViT-L-14-336px.pt

The table, on the screen and in OUT/metrics.csv, has the categories that were asked for, and those of the same data set
that an earlier run finished with the same settings.
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The words of `musc evaluate`."""
    text = "score a labeled data set and print the seven metrics"
    sub = commands.add_parser("evaluate", help=text, description=f"{text.capitalize()}.", epilog=EXAMPLES)
    add_batch_options(sub)
    sub.set_defaults(command=evaluate)


def evaluate(args: argparse.Namespace) -> int:
    """Score, save, and print the seven metrics of every category and their mean."""
    batch = Batch(args)
    from musc.datasets import list_categories  # takes seconds: wrong words are said before
    from musc.results.tables import metrics_table

    done = {category.name: result for category, result in batch.results(needs_labels=True)}
    results = {name: result for name, result in done.items() if result is not None}
    if not results:
        return FAILED
    names = list_categories(*source_of(args))
    earlier = _finished_before(batch, [name for name in names if name not in done])
    together = [(results | earlier)[name] for name in names if name in results | earlier]
    table = metrics_table(together, args.mask_protocol)
    first = together[0]
    print(f"\n{first.config.backbone} ({first.weights}), masks: {args.mask_protocol}, all values in %")
    print(table.to_string(float_format=lambda v: f"{v:.2f}"))
    if earlier:
        print(f"from earlier runs with the same settings: {', '.join(earlier)}")
    if missing := [name for name in names if name not in results | earlier]:
        print(f"{len(together)} of the {len(names)} categories; no table row and no mean has {', '.join(missing)}")
    path = args.out / "metrics.csv"
    with whole(path) as partial:
        table.assign(backbone=first.config.backbone).to_csv(partial, float_format="%.4f")
    print(f"\ntable: {path}   scores, maps and pictures: one folder per category beside it")
    if not args.no_overlays and not args.no_report:
        print(f"reports: {args.out / 'index.html'}")
    return FAILED if len(results) < len(done) else DONE


def _finished_before(batch: Batch, names: list[str]) -> dict[str, MuScResult]:
    """Results of categories that this command line left out."""
    from musc.datasets import load_category

    found = {}
    layout, root = source_of(batch.args)
    for name in names:
        try:
            category = load_category(layout, root, name)
            result = batch.finished(category, batch.references(category))
        except MuscError:  # it cannot be read any more, so its result is of other images
            continue
        if result is not None:
            found[name] = result
    return found
