"""Tables 1 to 18 and Figures 3 to 16 of the paper, made again: `make("table_3", profile("demo"))`.

Every table is a tidy frame with the columns paper, released (the released code) and here; a cell that was not run is
empty and its status says so, and numbers of methods that cannot be run here are marked "quoted".
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from musc.errors import DataError, ResultError
from musc.reproduce.comparison import OURS, compare, dots, side_by_side
from musc.reproduce.paper import claims, contradictions
from musc.reproduce.profiles import Profile, profile
from musc.reproduce.registry import LAYOUT, NOTEBOOKS, REGISTRY, RUN_HERE, Item, find, of_notebook
from musc.saving import whole

__all__ = [
    "NOTEBOOKS",
    "REGISTRY",
    "Item",
    "Made",
    "Profile",
    "find",
    "make",
    "make_all",
    "of_notebook",
    "profile",
    "remarks",
]


@dataclass(frozen=True)
class Made:
    """One table or figure, made.

    frame: of a table, the tidy comparison (see `compare`); of a figure, the columns paper and here for each quantity
    that the paper's text names. figure: the picture. table: what to show, paper and here side by side. notes: what the
    reader must know of it, the data that were left out among it.
    """

    item: Item
    frame: pd.DataFrame
    figure: Figure = field(repr=False)
    notes: tuple[str, ...] = ()

    @property
    def table(self) -> pd.DataFrame:
        if self.item.kind == "figure":
            return self.frame
        rows, across, _ = LAYOUT[self.item.number]
        return side_by_side(self.frame, rows, across)

    @property
    def summary(self) -> str:
        """One line: how much of it was measured, was not run, and is quoted."""
        if self.item.kind == "figure":
            run = self.frame[~self.frame["here"].isin(["", "not run"])]
            beside = (self.frame["paper"] != "").sum()
            return f"{self.item.title}: drawn, {len(run)} numbers measured, {beside} named by the paper"
        counts = self.frame["status"].value_counts()
        parts = [f"{counts.get(status, 0)} {status}" for status in ("measured", "not run", "quoted")]
        return f"{self.item.title}: {', '.join(parts)}"

    def save(self, folder: Path) -> tuple[Path, Path]:
        """Write NAME.csv and NAME.png into a folder. Raises ResultError where that is not possible."""
        csv, png = folder / f"{self.item.name}.csv", folder / f"{self.item.name}.png"
        try:
            with whole(png) as path:
                self.figure.savefig(path, dpi=110, format="png")
            with whole(csv) as path:  # last: where it is, the item is finished
                self.frame.to_csv(path, index=self.item.kind == "figure", float_format="%.4f")
        except OSError as error:
            raise ResultError(
                f"{folder} cannot be written ({error.strerror or error}): choose another --out."
            ) from error
        return csv, png


def make(name: str, lab: Profile) -> Made:
    """A table or figure from a profile; measurements that exist are reused.

    Raises ConfigError on an unknown name, DataError where the profile has no data for a figure, and what `MuSc.run`
    raises. A table whose data sets the profile has not is made with empty cells.
    """
    item = find(name)
    notes = tuple(f"{dataset}: {said}" for dataset in lab.roots if (said := lab.coverage(dataset)))
    if item.kind == "figure":
        figure, frame = item.draw(lab)
        return Made(item, frame, figure, notes)
    run_here = (*OURS, *RUN_HERE.get(item.number, ()))
    frame = compare(item.number, item.measure(lab), run_here)
    if missing := [d for d in item.needs if d not in lab.roots and lab.name == "paper"]:
        notes += (f"not run for want of data: {', '.join(missing)} (give its folder as another data root).",)
    if lab.name == "paper" and lab.config.backbone != "ViT-L-14-336":
        notes += (f"measured with {lab.config.backbone}; the paper's rows are ViT-L-14-336 where no other is named.",)
    return Made(item, frame, dots(frame, LAYOUT[item.number][2]), notes)


def make_all(
    lab: Profile, folder: Path, names: Sequence[str] = (), say: Callable[[str], object] = print
) -> dict[str, Path | None]:
    """Make several items (default: all) and write them; finished ones in `folder` are kept.

    Returns the CSV file of each, None where the profile has no data for it. `say` gets one line per item.
    """
    place = folder / _stamp(lab)
    done: dict[str, Path | None] = {}
    for item in [find(n) for n in names] or REGISTRY.values():
        csv = place / f"{item.name}.csv"
        if csv.exists():
            say(f"{item.title}: finished before, {csv}")
        else:
            try:
                made = make(item.name, lab)
            except DataError as error:
                if len(names) == 1:
                    raise
                say(f"{item.title}: not run. {error}")
                done[item.name] = None
                continue
            made.save(place)
            say(f"{made.summary}, {csv}")
            for note in made.notes:
                say(f"  {note}")
        done[item.name] = csv
    return done


def _stamp(lab: Profile) -> str:
    """Name of the folder of a profile: all that its tables depend on (`MuSc.fingerprint` of every category, with its
    training images), so that what was measured of other images, weights, settings or code goes elsewhere."""
    import dataclasses
    import hashlib
    import json

    what: list = [lab.protocol, lab.place.name]
    for dataset in lab.roots:
        for name in lab.names(dataset):
            category = lab.category(dataset, name)
            normal = dataclasses.replace(category, samples=category.train)
            what.append([dataset, name, lab.musc(dataset).fingerprint(category, normal)])
    digest = hashlib.blake2b(json.dumps(what, sort_keys=True).encode(), digest_size=4).hexdigest()
    return f"{lab.name}-{re.sub(r'[^A-Za-z0-9.]+', '-', lab.config.backbone)}-{digest}"


def remarks(*names: str, width: int = 100) -> str:
    """What can be said of the paper's own numbers in some tables: how many of its sentences about them hold, and every
    contradiction that `paper.contradictions` finds there, as lines of at most `width` characters."""
    numbers = {item.number for item in map(find, names) if item.kind == "table"}
    said, odd = (
        frame[[bool(numbers & set(tables)) for tables in frame["tables"]]] for frame in (claims(), contradictions())
    )
    lines = [f"The paper's text makes {len(said)} statements about these tables; {said['holds'].sum()} hold of the "
             "printed numbers."] if len(said) else []  # fmt: skip
    for row in odd.itertuples():
        doubt = " (Decimals that are not printed could explain it.)" if row.within_rounding else ""
        lines.append(f"- {row.sentence}{doubt}")
    if not len(odd):
        lines.append("No contradiction among the printed numbers.")
    return "\n".join("\n".join(textwrap.wrap(line, width, subsequent_indent="  ")) for line in lines)
