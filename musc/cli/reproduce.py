"""`musc reproduce`: its words, and what it prints."""

from __future__ import annotations

import argparse
from pathlib import Path

from musc.errors import ConfigError

EXAMPLES = """\
examples:
  musc reproduce --list                     every table and figure, and what of it is measured
  musc reproduce table_3                    on the built-in data set, with the built-in backbone
  musc reproduce table_17 --profile paper --data-root mvtec_anomaly_detection/ --device cuda
  musc reproduce all --profile paper --data-root mvtec_anomaly_detection/ --data-root VisA/ --data-root BTech/

Each comes as a CSV file (paper, released, here) and a picture. What is finished is reused.
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The sub-command's words; nothing heavy is imported."""
    sub = commands.add_parser(
        "reproduce",
        help="make a table or figure of the paper again",
        description="Make Tables 1 to 18 and Figures 3 to 16 of the paper again.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    sub.add_argument("names", nargs="*", metavar="NAME", help="table_1 ... table_18, figure_3 ... figure_16, or all")
    sub.add_argument("--list", action="store_true", help="name them all")
    sub.add_argument("--profile", default="demo", help="demo: synthetic data, no network (default); paper: your copies "
                     "of MVTec AD, VisA, BTAD with ViT-L-14-336 at 518 pixels")  # fmt: skip
    sub.add_argument("--data-root", action="append", type=Path, metavar="DIR", help="folder of a data set, for the "
                     "profile paper; give the option again for another data set")  # fmt: skip
    sub.add_argument("--backbone", help="another network than the profile's (see `musc backbones`)")
    sub.add_argument("--weights", help='local weight file, or "random"')
    sub.add_argument("--image-size", type=int, metavar="PX", help="side of the square input")
    sub.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... (default: auto)")
    sub.add_argument("--precision", default="float32", help="of the products in MSM (default: float32)")
    sub.add_argument("--categories", metavar="NAME,..", help="only these")
    sub.add_argument("--limit-categories", type=_count, metavar="N", help="at most N categories of a data set")
    sub.add_argument("--images", type=_count, metavar="N", help="at most N images of a category (demo: 16)")
    sub.add_argument("--mask-protocol", metavar="P", help="official (default on paper) or clean (default on demo)")
    sub.add_argument("--out", type=Path, default=Path("results/reproduce"), help="folder (default: results/reproduce)")
    sub.set_defaults(command=reproduce)


def _count(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text} is no count from 1")
    return number


def reproduce(args: argparse.Namespace) -> int:
    """`musc reproduce`: 0 if everything asked for was made or is for want of data empty."""
    from musc import reproduce as r

    if args.list:
        for item in r.REGISTRY.values():
            print(f"{item.name:10}  notebooks/{item.notebook:24}  needs {', '.join(item.needs):14}  {item.measured}")
        return 0
    if not args.names:
        raise ConfigError("name a table or a figure, such as table_1, or all; `musc reproduce --list` has every name.")
    names = [] if "all" in args.names else [r.find(name).name for name in args.names]
    lab = r.profile(
        args.profile,
        args.data_root,
        backbone=args.backbone,
        weights=args.weights,
        image_size=args.image_size,
        device=args.device,
        precision=args.precision,
        categories=args.categories.split(",") if args.categories else None,
        limit_categories=args.limit_categories,
        images=args.images,
        protocol=args.mask_protocol,
        folder=args.out,
        progress=True,
    )
    print(lab.describe())
    made = r.make_all(lab, args.out, names)
    missing = [name for name, path in made.items() if path is None]
    print(f"{len(made) - len(missing)} of {len(made)} made; the pictures lie beside the tables")
    return 0
