"""Sizes in pixels: a number for a square, (rows, columns) for a rectangle, "short:448" for images' own proportions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from numbers import Integral

from musc.errors import ConfigError

Size = int | tuple[int, int]
SHORT = "short:"
REMEDY = 'give a side in pixels such as 448, (rows, columns) such as (448, 896), or "short:448" for the short side.'


def as_size(given: int | str | tuple[int, ...] | list[int]) -> Size | str:
    """A size as it is kept: a square by its side alone, and "short:448" as text; of text also "448x896" and "448".

    Raises ConfigError on anything else.

    Example:
        >>> as_size((448, 448)), as_size("448x896"), as_size([448, 896]), as_size("short:448")
        (448, (448, 896), (448, 896), 'short:448')
    """
    try:
        if isinstance(given, str):
            text = given.strip().lower()
            if text.startswith(SHORT):
                return f"{SHORT}{_positive(int(text.removeprefix(SHORT)))}"
            sides = [int(part) for part in text.replace(",", "x").split("x")]
        else:
            sides = [given] if isinstance(given, Integral) else list(given)  # type: ignore[list-item, arg-type]
        if len(sides) not in (1, 2):
            raise ValueError(given)
        rows, columns = _positive(sides[0]), _positive(sides[-1])
    except (TypeError, ValueError):
        raise ConfigError(f"image_size = {given!r}: {REMEDY}") from None
    return rows if rows == columns else (rows, columns)


def _positive(side: int) -> int:
    if isinstance(side, bool) or not isinstance(side, Integral) or side < 1:
        raise ValueError(side)
    return int(side)


def rows_columns(size: Size) -> tuple[int, int]:
    """(rows, columns) of a size.

    Example:
        >>> rows_columns(448), rows_columns((448, 896))
        ((448, 448), (448, 896))
    """
    return (size, size) if isinstance(size, int) else size


def written(size: Size) -> str:
    """A size in words.

    Example:
        >>> written(448), written((448, 896))
        ('448', '448 x 896')
    """
    return str(size) if isinstance(size, int) else f"{size[0]} x {size[1]}"


def short_side(size: Size | str | None) -> int | None:
    """The number of "short:448"; None of any other size."""
    return int(size.removeprefix(SHORT)) if isinstance(size, str) else None


def scaled(side: int, like: Size) -> Size:
    """The size in the proportions of `like` whose short side is `side`.

    Example:
        >>> scaled(100, like=448), scaled(100, like=(448, 896))
        (100, (100, 200))
    """
    rows, columns = rows_columns(like)
    short = min(rows, columns)
    return as_size((round(side * rows / short), round(side * columns / short)))  # type: ignore[return-value]


def fitted(side: int, width: int, height: int, patch: int) -> Size:
    """The input size for images of width x height pixels: the short side has `side` pixels, the long one the multiple
    of `patch` that is nearest to their proportions.

    Example:
        >>> fitted(448, width=2000, height=1000, patch=14), fitted(448, width=900, height=1000, patch=14)
        ((448, 896), (504, 448))
    """
    long = max(1, round(side * max(width, height) / min(width, height) / patch)) * patch
    return as_size((side, long) if width >= height else (long, side))  # type: ignore[return-value]


def most_common(sizes: Iterable[Size]) -> Size:
    """The size that most have; of equally common ones, the first.

    Example:
        >>> most_common([448, (448, 896), (448, 896)])
        (448, 896)
    """
    return Counter(sizes).most_common(1)[0][0]
