"""The options that are settings: names, defaults, choices and help are those of the fields of MuScConfig."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_type_hints

from musc.cli.options import BYTES, Kind, Read, filled, fractions, integers, neighbours, one_of, windows
from musc.config import MuScConfig
from musc.errors import ConfigError
from musc.sizes import REMEDY, Size, as_size

FIELDS = {field.name: field for field in dataclasses.fields(MuScConfig)}
# Settings that a command leaves open where nobody gives them, and what it takes then.
BY_DATA_SET = {"backbone": "auto", "windows": "the paper's: 2,3, on VisA 8,9"}
BY_PROFILE = dict.fromkeys(("backbone", "weights", "image_size", "mask_protocol"), "the profile's")

_KINDS: dict[Any, Kind] = {
    str: Kind(filled, "it is empty; give a value, or leave the option out."),
    int: Kind(int, "give a whole number."),
    float: Kind(float, "give a number, or inf."),
    tuple[int, ...]: Kind(integers, "give whole numbers with commas between, such as 1,3,5."),
    tuple[float, float]: Kind(fractions, "give two numbers with a comma between, such as 0,0.3."),
    tuple[float, ...]: Kind(windows, "give whole numbers, or inf, with commas between, such as 2,3."),
}


def _size(text: str) -> Size | str:
    try:
        return as_size(text)
    except ConfigError as error:
        raise ValueError(text) from error


_OWN_KINDS = {  # of settings with more than one kind of value, or a unit
    "image_size": Kind(_size, REMEDY),
    "neighbours": Kind(neighbours, "give exact, coreset:40, a share such as 0.1, or a number of images such as 40."),
    "max_memory": BYTES,
}


def add_settings(
    group: argparse._ActionsContainer, names: Sequence[str] = tuple(FIELDS), left_open: Mapping[str, str] | None = None
) -> None:
    """An option for each of the settings `names`; those `left_open` are None by default, and mean what stands there."""
    hints = get_type_hints(MuScConfig)
    for name in names:
        field, unset = FIELDS[name], (left_open or {}).get(name)
        default = field.default if unset is None else None
        choices = field.metadata["choices"]
        plain = next(t for t in _alternatives(hints[name]) if t is not NoneType)
        group.add_argument(
            f"--{name.replace('_', '-')}",
            action=Read,
            kind=one_of(choices) if choices else _OWN_KINDS.get(name) or _KINDS[plain],
            default=default,
            metavar=field.metadata["metavar"] or (f"{{{','.join(choices)}}}" if choices else None),
            help=f"{field.metadata['help']} (default: {unset or field.metadata['unset'] or as_text(default)})",
        )


def given_settings(args: argparse.Namespace) -> dict[str, Any]:
    """The settings among the options, without those that were left open; a file of weights by its absolute path,
    which still holds when the result is used from another folder."""
    given = {name: value for name, value in vars(args).items() if name in FIELDS}
    given = {name: value for name, value in given.items() if value is not None}
    if given.get("weights", "random") != "random":
        given["weights"] = str(Path(given["weights"]).expanduser().absolute())
    if given.get("roi", "auto") != "auto":
        given["roi"] = str(Path(given["roi"]).expanduser().absolute())
    return given


def with_network(given: dict[str, Any]) -> dict[str, Any]:
    """Settings in which the backbone has a name: where it is "auto" or left open, that of the best that is here."""
    if given.get("backbone", "auto") == "auto":
        from musc.backbones import choose_backbone

        given = {**given, "backbone": choose_backbone(given.get("weights"))}
    return given


def as_text(value: Any) -> str:
    """A value as one would type it.

    Example:
        >>> as_text((0.0, 0.3))
        '0,0.3'
    """
    if isinstance(value, tuple):
        return ",".join(map(as_text, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _alternatives(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if NoneType in get_args(hint) else (hint,)
