"""Every table and figure of the paper by name: what it is, where it stands in the book, and how it is made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from musc.errors import ConfigError
from musc.reproduce.paper import FIGURES, TABLES, figures, tables

if TYPE_CHECKING:
    import pandas as pd

    from musc.reproduce.profiles import Profile

NOTEBOOKS = {
    "10_main_results": ("figure_1", "figure_2", "table_1", "table_2", "table_14"),
    "11_qualitative_results": ("figure_6", *(f"figure_{n}" for n in range(11, 17))),
    "12_lnamd_ablations": ("table_3", "table_9", "figure_3", "figure_9"),
    "13_msm_ablations": ("table_4", "table_10", "figure_4", "figure_7", "figure_10"),
    "14_rscin_ablations": ("table_5", "table_11", "figure_5", "figure_8"),
    "15_backbones": ("table_8",),
    "16_subsets_and_cost": ("table_6", "table_7", "table_13"),
    "17_few_shot": ("table_15", "table_16"),
    "18_per_category": ("table_12", "table_17", "table_18"),
}


@dataclass(frozen=True)
class Layout:
    """How a table is read. rows, across: the columns of `comparison.compare` that name its rows and its columns. best:
    within which of them the best number is marked (None: nowhere). change: the two values of `row` that a dumbbell
    joins in its picture, before and after."""

    rows: tuple[str, ...]
    across: tuple[str, ...] = ("metric",)
    best: tuple[str, ...] | None = None
    change: tuple[str, str] | None = None


METHODS = Layout(("method", "setting"), best=("dataset",))
SETTINGS = Layout(("row",), ("dataset", "metric"), best=("dataset",))  # of MuSc, on both data sets
LAYOUT: dict[int, Layout] = dict.fromkeys((2, 14, 15, 16), METHODS) | dict.fromkeys((3, 4, 8, 9, 10), SETTINGS)
LAYOUT |= dict.fromkeys((17, 18), Layout(("category",))) | {
    1: Layout(("dataset", "row", "method"), best=("dataset", "row")),
    5: Layout(("dataset", "row"), best=("dataset",), change=("w/o", "w")),
    6: Layout(("row",)),
    7: Layout(("dataset", "row"), best=("dataset",)),
    11: Layout(("dataset", "method", "setting", "row"), best=("dataset", "method", "setting"), change=("w/o", "w")),
    12: Layout(("dataset", "category", "method"), best=("dataset", "category")),
    13: Layout(("method", "row"), best=("dataset",)),
}
RUN_HERE = {11: ("SPADE", "PatchCore")}  # besides MuSc and MuSc+
NEEDS = {1: "mvtec_ad visa", 2: "mvtec_ad", 11: "mvtec_ad", 12: "mvtec_ad visa", 13: "mvtec_ad", 14: "btad"}
NEEDS |= {15: "mvtec_ad", 16: "mvtec_ad", 17: "mvtec_ad", 18: "visa"}
FIGURE_NEEDS = {6: "mvtec_ad visa", 11: "visa", 12: "visa", 13: "visa", 14: "mvtec_ad", 15: "mvtec_ad", 16: "mvtec_ad"}
PARTS = {  # what of a table or figure is measured; everything else in it is quoted
    1: "MuSc, PatchCore, and WinCLIP where CLIP's weights are; APRIL-GAN, ACR, RegAD and GraphCore are quoted",
    2: "MuSc, and PatchCore with all of train/good; the other many-shot methods are quoted",
    8: "the networks whose weights can be had; in demo the embedded one, at two sizes and without training",
    11: "SPADE and PatchCore on our backbone's tokens; DRAEM, DSR, STPM, RegAD and APRIL-GAN are quoted",
    12: "MuSc, and WinCLIP where CLIP's weights are; APRIL-GAN is quoted",
    13: "MuSc, and WinCLIP where CLIP's weights are; RegAD and APRIL-GAN are quoted",
    14: "MuSc, SPADE, PaDiM and PatchCore on our backbone's tokens; the other methods are quoted",
}


@dataclass(frozen=True)
class Item:
    """One table or figure: its name here ("table_3"), number, the paper's section and caption, the notebook that shows
    it, the data sets that it is about on the profile `paper`, and what of it can be measured here."""

    name: str
    kind: str
    number: int
    section: str
    caption: str
    notebook: str
    needs: tuple[str, ...]
    measured: str

    @property
    def title(self) -> str:
        return f"{self.kind.capitalize()} {self.number}"

    @property
    def command(self) -> str:
        """How it is made from a shell; every root that it needs is an option of its own."""
        return f"musc reproduce {self.name} --profile paper --data-root DIR"

    def measure(self, lab: Profile) -> pd.DataFrame:
        """The tidy rows of this run, of a table."""
        return _measurement(self.number)(lab, self.number)

    def draw(self, lab: Profile) -> tuple:
        """The picture of this run and the numbers behind it, of a figure."""
        from musc.reproduce import diagrams, draw, gallery

        own = getattr(diagrams, self.name, None) or getattr(draw, self.name, None)
        return own(lab) if own else gallery.qualitative(lab, self.number)


def _measurement(number: int) -> Callable[[Profile, int], pd.DataFrame]:
    from musc.reproduce import measure

    match number:
        case 1 | 2 | 14:
            return measure.overall
        case 3 | 4 | 5 | 9 | 10:
            return measure.ablated
        case 6:
            return measure.cost
        case 7:
            return measure.subsets
        case 8:
            return measure.backbones
        case 11:
            return measure.plugged_in
        case 12:
            return measure.oriented
        case 13:
            return measure.cost_and_quality
        case 15 | 16:
            return measure.few_shot
    return measure.by_category


def _items() -> dict[str, Item]:
    where = {name: notebook for notebook, names in NOTEBOOKS.items() for name in names}
    found = {}
    sections = {"table": tables(), "figure": figures()}
    for kind, captions, needs in (("table", TABLES, NEEDS), ("figure", FIGURES, FIGURE_NEEDS)):
        section = dict(zip(sections[kind]["number"], sections[kind]["section"], strict=True))
        for number, caption in captions.items():
            what = PARTS.get(number, "MuSc") if kind == "table" else "MuSc"
            roots = tuple(needs.get(number, "mvtec_ad visa").split())
            name = f"{kind}_{number}"
            found[name] = Item(name, kind, number, section[number], caption, where[name], roots, what)
    return found


REGISTRY: dict[str, Item] = _items()


def find(name: str) -> Item:
    """The item of that name; "Table 3" and "fig. 4" are understood. Raises ConfigError naming all known ones."""
    word = name.lower().strip().replace(".", " ").replace("_", " ").split()
    key = "_".join([{"tab": "table", "fig": "figure"}.get(w, w) for w in word])
    if key not in REGISTRY:
        raise ConfigError(f"no table or figure {name!r}: there are {', '.join(REGISTRY)}, and all.")
    return REGISTRY[key]


def of_notebook(stem: str) -> list[Item]:
    """The items that a notebook shows, in its order."""
    return list(map(find, NOTEBOOKS[stem]))
