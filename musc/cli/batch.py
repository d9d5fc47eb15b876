"""What `musc run` and `musc evaluate` share: their options, and the categories scored one after the other."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from copy import copy
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from musc.cli.data import (
    add_data_options,
    add_reference_options,
    categories_of,
    check_references,
    references_of,
    source_of,
)
from musc.cli.failures import report
from musc.cli.interrupts import lost
from musc.cli.options import add_scheduler_option, place
from musc.cli.outputs import add_output_options, add_threshold_option, check_folder, print_notes, write_result
from musc.cli.settings import BY_DATA_SET, add_settings, given_settings
from musc.config import PAPER_WINDOWS, MuScConfig
from musc.errors import ConfigError, ResultError

if TYPE_CHECKING:
    from musc.datasets.base import Category
    from musc.pipeline import MuSc
    from musc.results import MuScResult


def unlabeled(category: Category) -> str:
    """What is said of a category that is to be measured, and cannot be."""
    name = next(sample.name for sample in category.samples if sample.label is None)
    return (
        f"{category.name} has images without labels, such as {name}: call the folders of normal and of anomalous "
        "images good and bad, or use `musc run`, which needs no labels."
    )


def add_batch_options(sub: argparse.ArgumentParser) -> None:
    """Data, references, settings and outputs."""
    add_data_options(sub)
    add_reference_options(sub)
    add_settings(sub.add_argument_group("settings (the paper's by default)"), left_open=BY_DATA_SET)
    add_output_options(sub)
    sub.add_argument("--cache", type=place, metavar="DIR", help="folder of extracted tokens (default: OUT/.cache)")
    sub.add_argument("--no-cache", action="store_true", help="extract afresh and store no tokens")
    add_scheduler_option(sub)
    add_threshold_option(sub, default=None, unset="robust, or what `musc threshold` took from marks")
    sub.add_argument("--force", action="store_true", help="compute again what is finished already")


class Batch:
    """The categories that a command line names, each with a result in a folder of its own.

    Words that cannot work together and places that cannot be written raise ConfigError here, before an image is read.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        check_references(args)
        source_of(args)
        self.config = MuScConfig(**{"backbone": "auto", **given_settings(args)})
        from musc.results import thresholds  # takes a second: what is wrong above is said before

        if args.threshold not in (None, "f1-max"):  # which depends on the labels of each category
            thresholds.check(args.threshold)
        if args.cache is not None and args.no_cache:
            raise ConfigError(f"--cache {args.cache}: --no-cache stores no tokens; leave one of them out.")
        self.cache = None if args.no_cache else args.cache or args.out / ".cache"
        check_folder(args.out, "--out")
        if self.cache is not None:
            check_folder(self.cache, "--cache")
        self.categories = categories_of(args)

    @cached_property
    def musc(self) -> MuSc:
        """The pipeline; windows that nobody gave are the paper's on the data set."""
        from musc.fewshot import plus
        from musc.pipeline import MuSc

        config = self.config
        if self.args.windows is None and config.method in ("musc", "musc+"):
            config = config.replace(windows=PAPER_WINDOWS.get(self.categories[0].dataset, config.windows))
        config = plus(config) if self.args.plus else config
        return MuSc(config, cache=self.cache, progress=True, scheduler=self.args.scheduler)

    def folder(self, category: Category) -> Path:
        """Where the result of a category is."""
        from musc.results import result_folder

        return result_folder(self.args.out, category.dataset, category.name, category.root)

    def references(self, category: Category) -> Category | None:
        """The reference images of a category, if some are asked for."""
        return references_of(self.args, category, alone=len(self.categories) == 1)

    def results(self, *, needs_labels: bool) -> Iterator[tuple[Category, MuScResult | None]]:
        """Each category with its result, or with None where it failed: that is reported, and the others are done.

        The error of a single category is raised, and so is that of a network that cannot be loaded.
        """
        from musc.results.report import write_index

        _ = self.musc.backbone
        try:
            yield from self._each(needs_labels)
            write_index(self.args.out)
        finally:
            self.musc.close()

    def _each(self, needs_labels: bool) -> Iterator[tuple[Category, MuScResult | None]]:
        for category in self.categories:
            try:
                if needs_labels and category.samples and not category.labeled:
                    raise ConfigError(unlabeled(category))
                result = self._result(category)
            except BrokenPipeError:
                raise
            except Exception as error:
                if len(self.categories) == 1 or lost():
                    raise
                report(error, where=f"{category.dataset} {category.name}", verbose=self.args.verbose)
                yield category, None
            else:
                print_notes(result, verbose=self.args.verbose)
                yield category, result

    def finished(self, category: Category, references: Category | None) -> MuScResult | None:
        """The result that an earlier run left, if it is of the same images and settings; which kind of resized masks
        heads the table does not count, since both are measured."""
        from musc.results import MuScResult

        if not (self.folder(category) / "result.json").exists():
            return None
        try:
            found = MuScResult.load(self.folder(category))
        except ResultError as error:
            print(f"musc: {error}", file=sys.stderr)
            return None
        same = copy(self.musc)
        same.config = same.config.replace(mask_protocol=found.config.mask_protocol)
        return found if found.fingerprint == same.fingerprint(category, references) else None

    def _result(self, category: Category) -> MuScResult:
        from musc.results import marks, thresholds

        args, folder, musc = self.args, self.folder(category), self.musc
        method = thresholds.DEFAULT if args.threshold is None else args.threshold
        thresholds.check(method, [sample.label for sample in category.samples])
        references = self.references(category)
        result = None if args.force else self.finished(category, references)
        if changed := result is None:
            result = musc.run(category, references)
            result.decide(method)
        else:
            print(f"{category.dataset} {category.name}: finished before, taken from {folder}", file=sys.stderr)
            before = result.threshold
            kept = args.threshold is None and before is not None and before.method in marks.METHODS
            changed = not kept and result.decide(method) != before  # the scores stay, the decisions change
        write_result(result, category.samples, folder, args, save=changed)
        return result
