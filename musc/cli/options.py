"""How an option's text becomes its value; what it cannot be is refused with the remedy instead of argparse's words."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from musc.cli.failures import WRONG_WORDS


class Parser(argparse.ArgumentParser):
    """argparse's parser: the epilog keeps its lines, and a mistake gets one line and exit code 2."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(*args, **kwargs)

    def error(self, message: str) -> NoReturn:
        self.exit(WRONG_WORDS, f"{self.prog}: {message}\n`{self.prog} --help` lists the words.\n")


class Kind(NamedTuple):
    """A kind of value: `read` makes it from text, or raises ValueError; `remedy` says what to give instead."""

    read: Callable[[str], Any]
    remedy: str


class Read(argparse.Action):
    """Stores the value of an option, made from its text by `kind`."""

    def __init__(self, *args: Any, kind: Kind, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.kind = kind

    def __call__(
        self, _: argparse.ArgumentParser, namespace: argparse.Namespace, text: Any, option: str | None = None
    ) -> None:
        try:
            value = self.kind.read(text)
        except ValueError:
            raise argparse.ArgumentError(None, f"{option} {text}: {self.kind.remedy}") from None
        setattr(namespace, self.dest, value)


def place(text: str) -> Path:
    """A path, in which "~" is the home folder, also where the shell left it (--out=~/x).

    An empty text, such as that of a variable that is not set, is refused: as a path it would be the working folder.
    """
    try:
        return Path(filled(text)).expanduser()
    except ValueError:
        raise argparse.ArgumentTypeError("an empty name: name a file or folder, or . for the working folder") from None
    except RuntimeError:  # ~somebody who has no home here
        return Path(text)


def filled(text: str) -> str:
    """A text that is not empty."""
    if not text.strip():
        raise ValueError(text)
    return text


def words(text: str) -> list[str]:
    """Names with commas between."""
    if not (found := [word.strip() for word in text.split(",") if word.strip()]):
        raise ValueError(text)
    return list(dict.fromkeys(found))


def integers(text: str) -> tuple[int, ...]:
    """Whole numbers with commas between; none where the text is empty."""
    return tuple(int(word) for word in text.split(",")) if text.strip() else ()


def fractions(text: str) -> tuple[float, ...]:
    """Numbers with commas between."""
    return tuple(float(word) for word in text.split(","))


def windows(text: str) -> tuple[float, ...]:
    """Whole numbers or inf with commas between; none where the text is empty."""
    numbers = text.split(",") if text.strip() else []
    return tuple(math.inf if word.strip() == "inf" else int(word) for word in numbers)


def count(text: str) -> int:
    """A whole number from 1."""
    if (number := int(text)) < 1:
        raise ValueError(text)
    return number


def size(text: str) -> int:
    """Bytes, from a number and a unit: 500MB, 2GiB; without a unit, bytes.

    Example:
        >>> size("2GiB"), size("1.5 MB"), size("4096")
        (2147483648, 1500000, 4096)
    """
    found = re.fullmatch(r"\s*([0-9.]+)\s*(?:([kmgt]?)(i?)b?)?\s*", text.lower())
    if not found:
        raise ValueError(text)
    power = " kmgt".index(found[2] or " ")
    if not math.isfinite(number := float(found[1])):
        raise ValueError(text)
    return int(number * (1024 if found[3] else 1000) ** power)


def neighbours(text: str) -> str | float:
    """The words exact or coreset:R, a share, or a whole number."""
    return text if text == "exact" or text.startswith("coreset:") else int(text) if text.isdecimal() else float(text)


def one_of(choices: Sequence[str]) -> Kind:
    """One of some words."""

    def read(text: str) -> str:
        if text not in choices:
            raise ValueError(text)
        return text

    return Kind(read, f"choose one of {', '.join(choices)}.")


def scheduler(text: str) -> str:
    """local:N, or an address."""
    if not re.fullmatch(r"local:[1-9]\d*|\w+://.+", text):
        raise ValueError(text)
    return text


def add_scheduler_option(sub: argparse.ArgumentParser) -> None:
    """--scheduler."""
    sub.add_argument(
        "--scheduler", action=Read, kind=SCHEDULER, metavar="ADDRESS|local:N", help="let a Dask cluster do the mutual "
        "scoring, by the address that `dask scheduler` prints, or N worker processes of this machine (default: this "
        "process does)",
    )  # fmt: skip


SCHEDULER = Kind(scheduler, "give local:N, such as local:2, or an address, such as tcp://10.0.0.5:8786.")
WORDS = Kind(words, "give names with commas between, such as bottle,cable.")
BYTES = Kind(size, "give a size such as 2GiB or 500MB.")
COUNT = Kind(count, "give a whole number from 1.")
