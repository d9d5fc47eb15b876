"""`musc reproduce`: tables and figures of the paper, made again."""

from __future__ import annotations

import argparse

from musc.cli.failures import DONE
from musc.cli.options import COUNT, WORDS, Read, place
from musc.cli.outputs import RESULTS, check_folder
from musc.cli.settings import BY_PROFILE, add_settings, given_settings, with_network
from musc.errors import ConfigError

SETTINGS = ("backbone", "weights", "image_size", "device", "precision", "mask_protocol")
EXAMPLES = """\
examples:
  musc reproduce --list                     every table and figure, and what of it is measured
  musc reproduce table_3                    on the built-in data set, with the built-in backbone
  musc reproduce table_17 --data-root mvtec_anomaly_detection/ --device cuda
  musc reproduce all --data-root MVTec/ --data-root VisA/ --data-root BTech/

Each comes as a CSV file (paper, released, here) and a picture. What is finished is reused.
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The words of `musc reproduce`."""
    sub = commands.add_parser(
        "reproduce",
        help="make a table or figure of the paper again",
        description="Make Tables 1 to 18 and Figures 1 to 16 of the paper again.",
        epilog=EXAMPLES,
    )
    sub.add_argument("names", nargs="*", metavar="NAME", help="table_1 ... table_18, figure_1 ... figure_16, or all")
    sub.add_argument("--list", action="store_true", help="name them all")
    sub.add_argument("--profile", help="demo: synthetic data, no network; paper: your copies of MVTec AD, VisA, BTAD "
                     "with ViT-L-14-336 at 518 pixels (default: paper with a data root, else demo)")  # fmt: skip
    sub.add_argument("--data-root", action="append", type=place, metavar="DIR", help="folder of a data set, for the "
                     "profile paper; give the option again for another data set")  # fmt: skip
    add_settings(sub, SETTINGS, BY_PROFILE)
    sub.add_argument("--category", "--categories", action=Read, kind=WORDS, metavar="NAME,..", help="only these")
    sub.add_argument("--limit-categories", action=Read, kind=COUNT, metavar="N", help="at most N categories of a data "
                     "set")  # fmt: skip
    sub.add_argument("--images", action=Read, kind=COUNT, metavar="N", help="at most N images of a category (demo: 16)")
    out = RESULTS / "reproduce"
    sub.add_argument("--out", type=place, default=out, metavar="DIR", help=f"folder (default: {out})")
    sub.set_defaults(command=reproduce)


def reproduce(args: argparse.Namespace) -> int:
    """0 if everything asked for was made or is for want of data empty."""
    from musc import reproduce as r

    if args.list:
        for item in r.REGISTRY.values():
            print(f"{item.name:10}  notebooks/{item.notebook:24}  needs {', '.join(item.needs):14}  {item.measured}")
        return DONE
    if not args.names:
        raise ConfigError("name a table or a figure, such as table_1, or all; `musc reproduce --list` has every name.")
    names = [] if "all" in args.names else [r.find(name).name for name in args.names]
    if args.data_root and args.profile == "demo":
        raise ConfigError(
            f"--data-root {args.data_root[0]}: the profile demo draws its own data; leave one of them out."
        )
    check_folder(args.out, "--out")
    settings = given_settings(args)
    if "backbone" in settings:
        settings = with_network(settings)
    lab = r.profile(
        args.profile or ("paper" if args.data_root else "demo"),
        args.data_root,
        categories=args.category,
        limit_categories=args.limit_categories,
        images=args.images,
        protocol=settings.pop("mask_protocol", None),
        folder=args.out,
        progress=True,
        **settings,
    )
    print(lab.describe())
    for dataset in lab.roots:
        if covered := lab.coverage(dataset):
            print(f"note: {dataset}: {covered}; a mean is over what is measured here")
    made = r.make_all(lab, args.out, names)
    missing = [name for name, path in made.items() if path is None]
    print(f"{len(made) - len(missing)} of {len(made)} made; the pictures lie beside the tables")
    return DONE
