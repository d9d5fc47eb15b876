"""Tables 1 to 18 and Figures 1 to 16 of the paper, made again: `make("table_3", profile("demo"))`.

Every table is a tidy frame with the columns paper, released (the released code) and here; its status says of each cell
whether it was measured, was not run, or is quoted, the paper's number of a method that cannot be run here. What was
measured on the synthetic data set stands apart from it: it is compared with no number of the paper.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from musc.errors import DataError, ResultError
from musc.reproduce.charts import dots, dumbbells
from musc.reproduce.comparison import NAMES, OURS, compare, numbers, on_real_data, side_by_side, stand_in
from musc.reproduce.paper import claims, contradictions
from musc.reproduce.profiles import SYNTHETIC, Profile, profile
from musc.reproduce.registry import LAYOUT, NOTEBOOKS, REGISTRY, RUN_HERE, Item, Layout, find, of_notebook
from musc.results.tables import MarkedTable
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
    "numbers",
    "of_notebook",
    "profile",
    "remarks",
]


@dataclass(frozen=True)
class Made:
    """One table or figure, made.

    frame: of a table, the tidy comparison (see `compare`), the synthetic data set's rows among it; of a figure, the
    numbers behind it. figure: the picture; of a table, without the synthetic data set. stand_in_figure: of a table, the
    synthetic data set's own picture, if it was measured. notes: what the reader must know of it, the data that were
    left out among it. datasets: what a figure was drawn from.
    """

    item: Item
    frame: pd.DataFrame
    figure: Figure = field(repr=False)
    stand_in_figure: Figure | None = field(default=None, repr=False)
    notes: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()

    @property
    def layout(self) -> Layout:
        return LAYOUT[self.item.number]

    @property
    def table(self) -> MarkedTable:
        """What to show: paper, released code, and here where it was run on that data set; the best marked."""
        if self.item.kind == "figure":
            here = "synthetic, here" if set(self.datasets) == {SYNTHETIC} else "here"
            return MarkedTable.plain(self.frame.rename(columns={"paper": "the paper says", "here": here}))
        return side_by_side(on_real_data(self.frame), self.layout.rows, self.layout.across, self.layout.best)

    @property
    def stand_in(self) -> MarkedTable:
        """What was measured on the synthetic data set, apart; an empty table where nothing was."""
        apart = stand_in(self.frame)
        if self.item.kind == "figure" or apart.empty:
            return MarkedTable.plain(pd.DataFrame())
        rows = [c for c in self.layout.rows if c != "dataset" and (apart[c].nunique() > 1 or c == self.layout.rows[-1])]
        table = side_by_side(apart, rows, ("metric",))
        return MarkedTable(table.texts.droplevel("source"), table.marks.droplevel("source"))

    @property
    def summary(self) -> str:
        """One line: how many of its cells were run on the paper's data sets, and how many on the synthetic one."""
        if self.item.kind == "figure":
            return f"{self.item.title}: drawn from {' and '.join(NAMES[d] for d in self.datasets)} data"
        real, apart = on_real_data(self.frame), stand_in(self.frame)
        run, quoted = (real["status"] == "measured").sum(), (real["status"] == "quoted").sum()
        on = " and ".join(NAMES[name] for name in self.item.needs)
        return (
            f"{self.item.title}: {run} of {len(real) - quoted} cells run on {on}; {quoted} quoted; "
            f"synthetic stand-in, apart: {len(apart)}"
        )

    def save(self, folder: Path) -> tuple[Path, Path]:
        """Write NAME.csv, NAME.png and, of a stand-in, NAME_stand_in.png into a folder.

        Returns the first two. Raises ResultError where that is not possible.
        """
        csv, png = folder / f"{self.item.name}.csv", folder / f"{self.item.name}.png"
        try:
            for figure, target in ((self.stand_in_figure, png.with_stem(f"{png.stem}_stand_in")), (self.figure, png)):
                if figure is not None:
                    with whole(target) as path:
                        figure.savefig(path, dpi=110, format="png")
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
        figure, frame, drawn_from = item.draw(lab)
        return Made(item, frame, figure, notes=notes, datasets=drawn_from)
    run_here = (*OURS, *RUN_HERE.get(item.number, ()))
    frame = compare(item.number, item.measure(lab), run_here)
    if missing := [d for d in item.needs if d not in lab.roots and lab.name == "paper"]:
        notes += (f"not run for want of data: {', '.join(missing)} (give its folder as another data root).",)
    if lab.name == "paper" and lab.config.backbone != "ViT-L-14-336":
        notes += (f"measured with {lab.config.backbone}; the paper's rows are ViT-L-14-336 where no other is named.",)
    real, apart = on_real_data(frame), stand_in(frame)
    picture, beside = _picture(item.number, real), None if apart.empty else _picture(item.number, apart)
    return Made(item, frame, picture, beside, notes)


def _picture(number: int, frame: pd.DataFrame) -> Figure:
    layout = LAYOUT[number]
    labels = [c for c in layout.rows if frame[c].nunique() > 1] or [layout.rows[-1]]
    return dumbbells(frame, layout.rows, layout.change) if layout.change else dots(frame, labels)


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


def remarks(*names: str) -> str:
    """What can be said of the paper's own numbers in some tables: how many of its sentences about them hold, and every
    contradiction that `paper.contradictions` finds there, a line each."""
    numbers = {item.number for item in map(find, names) if item.kind == "table"}
    said, odd = (
        frame[[bool(numbers & set(tables)) for tables in frame["tables"]]] for frame in (claims(), contradictions())
    )
    lines = [f"Of {len(said)} statements that the paper's text makes about these tables, the printed numbers bear out "
             f"{said['holds'].sum()}."] if len(said) else []  # fmt: skip
    for row in odd.itertuples():
        doubt = " (Decimals that are not printed could explain it.)" if row.within_rounding else ""
        lines.append(f"- {row.sentence}{doubt}")
    if not len(odd):
        lines.append("No contradiction among the printed numbers.")
    return "\n".join(lines)
