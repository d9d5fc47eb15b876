"""The command line: `musc run`, `musc evaluate`, `musc rscin`, `musc reproduce`, `musc datasets`,
`musc backbones`."""

from __future__ import annotations

import argparse
import math
import sys
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from musc import __version__
from musc.cli import reproduce, score
from musc.config import CONSISTENCY, PAPER_WINDOWS, PRECISIONS, REDUCTIONS, TILE_POOLS, MuScConfig
from musc.errors import ConfigError, MuscError, ResultError

if TYPE_CHECKING:
    from musc.datasets.base import Category
    from musc.pipeline import MuSc
    from musc.results import MuScResult

DONE, FAILED, INTERRUPTED = 0, 1, 130  # argparse itself exits with 2 on words it does not know

EXAMPLES = """\
examples:
  musc run photos/                          score a folder of images of one product by each other
  musc run photos/ --backbone ViT-L-14-336 --device cuda      with the paper's backbone, on a GPU
  musc evaluate synthetic                   the built-in data set: no download, no network
  musc evaluate mvtec_anomaly_detection/ --backbone ViT-L-14-336 --category bottle,cable
  musc evaluate VisA/ --backbone ViT-L-14-336 --weights ViT-L-14-336px.pt
  musc run photos/ --reference-images normal/   some images known to be normal help to score the others
  musc score new/ --against results/folder/photos      new images, by those of an earlier run
  musc rscin scores.csv --class-tokens mvtec_ad_cls.dat --category bottle --by-order
  musc reproduce table_1                    the paper's Table 1 beside this run, on the built-in data set
  musc reproduce all --profile paper --data-root mvtec_anomaly_detection/ --data-root VisA/
  musc datasets mvtec_anomaly_detection/    what would be read there
  musc backbones                            every network by name

exit codes: 0 done, 1 something could not be done (it is named), 2 wrong words, 130 interrupted.
Run an interrupted command again, and it goes on where it was.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit code."""
    parser = build_parser()
    args = parser.parse_args(argv)
    warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
    try:
        return args.command(args)
    except MuscError as error:
        if args.verbose:
            traceback.print_exc()
        print(f"musc: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print("\nmusc: interrupted. What was finished is kept; the same command goes on from there.", file=sys.stderr)
        return INTERRUPTED


def build_parser() -> argparse.ArgumentParser:
    """The words of every command; settings are named as in MuScConfig, and their defaults are its."""
    parser = argparse.ArgumentParser(
        prog="musc",
        description="Zero-shot anomaly classification and segmentation by mutual scoring of the unlabeled images.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"musc {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, command, text in (
        ("run", run, "score images; no labels needed"),
        ("evaluate", evaluate, "score a labeled data set and print the seven metrics"),
    ):
        sub = commands.add_parser(name, help=text, description=text.capitalize() + ".", epilog=EXAMPLES)
        sub.formatter_class = argparse.RawDescriptionHelpFormatter
        _add_data(sub)
        score.add_reference_words(sub)
        _add_settings(sub)
        sub.add_argument("--out", type=Path, default=Path("results"), help="folder of the results (default: results)")
        sub.add_argument("--cache", type=Path, help="folder of extracted tokens (default: OUT/.cache)")
        sub.add_argument("--no-cache", action="store_true", help="extract afresh and store no tokens")
        sub.add_argument("--no-overlays", action="store_true", help="write no pictures")
        sub.add_argument("--threshold", type=_threshold, default="robust", metavar="T", help="for decisions and masks: "
                         "robust or mixture (from the scores alone), f1-max (from labels), a number on the scale of "
                         "raw_score, or none (default: robust)")  # fmt: skip
        sub.add_argument("--force", action="store_true", help="compute again what is finished already")
        sub.set_defaults(command=command)
    score.add_parser(commands)
    sub = commands.add_parser("datasets", help="list layouts, or what a folder holds")
    _add_data(sub)
    sub.set_defaults(command=datasets)
    sub = commands.add_parser("rscin", help="re-score any method's image scores by RsCIN (Tab. 11)")
    sub.add_argument("scores", type=Path, help="CSV file with the columns path, score and perhaps label, category")
    sub.add_argument("--class-tokens", type=Path, required=True, metavar="FILE", help="result folder, .npz, .npy, or "
                     "the authors' .dat (a pickle; only arrays are read)")  # fmt: skip
    sub.add_argument("--windows", type=_windows, default=(2, 3), metavar="K,..", help="counting the image itself; inf "
                     "for all (default: 2,3; the paper's for VisA are 8,9)")  # fmt: skip
    sub.add_argument("--category", type=_words, help="only these, with commas between (default: all)")
    sub.add_argument("--score-column", help="the column to re-score (default: raw_score where it is there, else score)")
    sub.add_argument("--by-order", action="store_true", help="join row by row: the tokens' file has no paths, and both "
                     "are known to stand in the same order")  # fmt: skip
    sub.add_argument("--out", type=Path, metavar="FILE", help="CSV file to write (default: SCORES_rscin.csv)")
    sub.set_defaults(command=rscin)
    reproduce.add_parser(commands)
    sub = commands.add_parser("backbones", help="list the networks by name")
    sub.set_defaults(command=backbones)
    for sub in commands.choices.values():
        sub.add_argument("-v", "--verbose", action="store_true", help="notes, timings, and tracebacks of errors")
    return parser


def _add_data(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("root", nargs="?", help="folder of the data set or of the images, or the word synthetic")
    sub.add_argument("--layout", help="mvtec_ad, visa, btad, folder or synthetic (default: by looking at the folder)")
    sub.add_argument("--category", "--categories", type=_words, help="only these, with commas between (default: all)")


def _add_settings(sub: argparse.ArgumentParser) -> None:
    d = MuScConfig()
    group = sub.add_argument_group("settings (the paper's by default)")
    group.add_argument("--backbone", default=d.backbone, help=f"see `musc backbones` (default: {d.backbone})")
    group.add_argument("--weights", help='local weight file, or "random" for an untrained network')
    group.add_argument(
        "--image-size", type=int, metavar="PX", help="side of the square input (default: the backbone's)"
    )
    group.add_argument("--stages", type=_ints, metavar="L,..", help="1-based blocks whose tokens are used")
    group.add_argument("--degrees", type=_ints, default=d.degrees, metavar="R,..", help="of LNAMD (default: 1,3,5)")
    group.add_argument("--interval", type=_floats, default=d.interval, metavar="LO,HI", help="of MSM (default: 0,0.3)")
    group.add_argument("--reduction", choices=REDUCTIONS, default=d.reduction, help="over the interval (default: mean)")
    group.add_argument("--windows", type=_windows, metavar="K,..", help="of RsCIN, counting the image itself; inf for "
                       'all, "" for none (default: 2,3; on VisA 8,9)')  # fmt: skip
    group.add_argument("--references", type=int, metavar="R", help="score against R random images instead of all")
    group.add_argument("--subsets", type=int, default=d.subsets, metavar="S", help="score in S parts (Tab. 7)")
    group.add_argument("--position-window", type=float, default=d.position_window, metavar="W", help="compare a patch "
                       "only within W patches of its place, for aligned parts (default: inf, anywhere)")  # fmt: skip
    group.add_argument("--tiles", type=int, default=d.tiles, metavar="T", help="cut images into T x T tiles, for small "
                       "defects in large images (default: 1)")  # fmt: skip
    group.add_argument("--tile-overlap", type=float, default=d.tile_overlap, metavar="SHARE", help="of a tile's side "
                       f"(default: {d.tile_overlap})")  # fmt: skip
    group.add_argument("--tile-pool", choices=TILE_POOLS, default=d.tile_pool, help="what a tile is compared with: "
                       f"tiles at its position, or all (default: {d.tile_pool})")  # fmt: skip
    group.add_argument("--consistency", choices=CONSISTENCY, default=d.consistency, help="warn of images that share a "
                       "defect and so vouch for each other, or correct their scores (default: off)")  # fmt: skip
    group.add_argument("--precision", choices=PRECISIONS, default=d.precision, help=f"(default: {d.precision})")
    group.add_argument("--mask-protocol", choices=("clean", "official"), default=d.mask_protocol, help="which "
                       "masks head the table; the result holds both (default: clean)")  # fmt: skip
    group.add_argument("--map-size", type=int, metavar="PX", help="side of the anomaly maps (default: image size)")
    group.add_argument("--batch-size", type=int, default=d.batch_size, metavar="B", help="images per forward pass")
    group.add_argument("--workers", type=int, default=d.workers, metavar="W", help="threads that decode images")
    group.add_argument("--block", type=int, metavar="B", help="images per block of MSM (default: by memory)")
    group.add_argument("--device", default=d.device, help="auto, cpu, cuda, cuda:1, ... (default: auto)")
    group.add_argument("--seed", type=int, default=d.seed, help="of subsets and of references (default: 0)")


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _ints(text: str) -> tuple[int, ...]:
    return tuple(int(word) for word in _words(text))


def _floats(text: str) -> tuple[float, ...]:
    return tuple(float(word) for word in _words(text))


def _windows(text: str) -> tuple[float, ...]:
    return tuple(math.inf if word == "inf" else int(word) for word in _words(text))


def _threshold(text: str) -> str | float:
    try:
        return float(text)
    except ValueError:
        return text  # a method by name, checked where it is used


def run(args: argparse.Namespace) -> int:
    """`musc run`: score, save, and name the images that look most anomalous."""
    failed = 0
    for category, result, folder in _results(args, needs_labels=False):
        failed += result is None
        if result is not None:
            print(f"\n{category.dataset} {category.name}: {len(result)} images, most anomalous first")
            for i in (-result.image_scores).argsort(kind="stable")[:5]:
                print(f"  {result.image_scores[i]:.3f}  {result.paths[i]}")
            _say_threshold(result)
            print(f"  all scores: {folder / 'scores.csv'}   pictures: {folder / 'overlays'}")
    return FAILED if failed else DONE


def evaluate(args: argparse.Namespace) -> int:
    """`musc evaluate`: score, save, and print the seven metrics of every category and their mean."""
    from musc.results.tables import metrics_table

    results, failed = [], 0
    for _, result, _ in _results(args, needs_labels=True):
        failed += result is None
        if result is not None:
            results.append(result)
    if results:
        table = metrics_table(results, args.mask_protocol)
        first = results[0]
        print(f"\n{first.config.backbone} ({first.weights}), masks: {args.mask_protocol}, all values in %")
        print(table.to_string(float_format=lambda v: f"{v:.2f}"))
        path = args.out / "metrics.csv"
        table.to_csv(path, float_format="%.4f")
        print(f"\ntable: {path}   scores, maps and pictures: one folder per category beside it")
    return FAILED if failed or not results else DONE


def _results(args: argparse.Namespace, *, needs_labels: bool) -> Any:
    """(category, its result or None where it failed, its folder), one after the other; finished ones are reused."""
    from musc.pipeline import MuSc
    from musc.results import result_folder

    categories = _categories(args)
    pipelines: dict[tuple[float, ...], MuSc] = {}
    cache = None if args.no_cache else args.cache or args.out / ".cache"
    for category in categories:
        folder = result_folder(args.out, category.dataset, category.name, category.root)
        try:
            if needs_labels and category.samples and not category.labeled:
                raise ConfigError(f"{category.name} has images without labels: use `musc run`, or another --layout.")
            windows = PAPER_WINDOWS.get(category.dataset, (2, 3)) if args.windows is None else args.windows
            if windows not in pipelines:
                pipelines[windows] = MuSc(_config(args, windows), cache=cache, progress=True)
            references = score.references_of(args, category, alone=len(categories) == 1)
            result = _one(args, pipelines[windows], category, references, folder)
        except MuscError as error:
            if len(categories) == 1:
                raise
            print(f"musc: {category.dataset} {category.name}: {error}", file=sys.stderr)
            yield category, None, folder
        else:
            _say(args, result)
            yield category, result, folder


def _categories(args: argparse.Namespace) -> list[Category]:
    from musc.datasets import load

    if args.root is None and args.layout != "synthetic":
        raise ConfigError("name a folder, or the word synthetic for the built-in data set.")
    layout = "synthetic" if args.root == "synthetic" and not Path(args.root).exists() else args.layout
    return load(None if layout == "synthetic" else Path(args.root), layout, args.category)


def _config(args: argparse.Namespace, windows: tuple[float, ...]) -> MuScConfig:
    names = MuScConfig.__dataclass_fields__
    config = MuScConfig(**{k: v for k, v in vars(args).items() if k in names and k != "windows"}, windows=windows)
    if args.plus:
        from musc.fewshot import plus

        return plus(config)
    return config


def _one(
    args: argparse.Namespace, musc: MuSc, category: Category, references: Category | None, folder: Path
) -> MuScResult:
    from musc.results import MuScResult, thresholds
    from musc.results.pictures import save_pictures

    thresholds.check(args.threshold, [sample.label for sample in category.samples])  # before the work, not after it
    result = None
    if not args.force and (folder / "result.json").exists():
        try:
            found = MuScResult.load(folder)
            if found.fingerprint == musc.fingerprint(category, references):
                result = found
                print(f"{category.dataset} {category.name}: finished before, taken from {folder}", file=sys.stderr)
        except ResultError as error:
            print(f"musc: {error}", file=sys.stderr)
    if result is None:
        result = musc.run(category, references)
        result.decide(args.threshold)
        result.save(folder)
    else:
        before = result.threshold
        if result.decide(args.threshold) != before:  # the scores stay, the decisions change
            result.save(folder)
    if not args.no_overlays:
        save_pictures(result, category.samples, folder)
    return result


def _say_threshold(result: MuScResult) -> None:
    t, decisions = result.threshold, result.decisions
    if t is None or decisions is None:
        return
    alarms = "" if t.false_alarm_rate is None else f"; about {100 * t.false_alarm_rate:.2g} % of normal images reach it"
    print(f"  anomalous: {decisions.sum()} of {len(result)}, raw score >= {t.value:.4g} ({t.method}{alarms})")
    if t.note:
        print(f"  {t.note}")


def _say(args: argparse.Namespace, result: MuScResult) -> None:
    for skipped in result.skipped:
        print(f"skipped: {skipped.reason}", file=sys.stderr)
    for note in result.notes:
        print(f"note: {note}", file=sys.stderr)
    if args.verbose:
        seconds = ", ".join(f"{name} {value:.2f} s" for name, value in result.timings.items())
        print(f"{result.category}: {seconds}", file=sys.stderr)


def datasets(args: argparse.Namespace) -> int:
    """`musc datasets`: the layouts, or the categories of a folder with their counts."""
    from musc.datasets import LAYOUTS

    if args.root is None and args.layout is None:
        print("layouts: " + ", ".join(LAYOUTS) + "\nname a folder to see what would be read there")
        return DONE
    for category in _categories(args):
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


def backbones(_: argparse.Namespace) -> int:
    """`musc backbones`: every network that can be named, with its input size and stages."""
    from musc.backbones import BACKBONES

    print(f"{'name':24} {'library':10} {'pixels':>6} {'patch':>5}  stages")
    for spec in BACKBONES.values():
        stages = ", ".join(map(str, spec.stages))
        print(f"{spec.name:24} {spec.library:10} {spec.image_size:6} {spec.patch_size:5}  {stages}")
    return DONE


def rscin(args: argparse.Namespace) -> int:
    """`musc rscin`: re-score the image scores of any method; metrics before and after where labels are there."""
    from musc.plugin import rescore_file

    out = args.out or args.scores.with_name(f"{args.scores.stem}_rscin.csv")
    if out.resolve() == args.scores.resolve():
        raise ConfigError(f"--out {out} is the file of the scores itself: choose another name.")
    done = rescore_file(args.scores, args.class_tokens, args.windows, categories=args.category,
                        column=args.score_column, by_order=args.by_order)  # fmt: skip
    for note in done.notes:
        print(f"note: {note}", file=sys.stderr)
    if len(done.metrics):
        print("image metrics in %, without (w/o) and with (w) RsCIN")
        print(done.metrics.to_string(float_format=lambda v: f"{v:.2f}"))
    print(f"{len(done.table)} scores: {done.write(out)}")
    return DONE


if __name__ == "__main__":
    sys.exit(main())
