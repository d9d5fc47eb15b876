"""What the executed notebooks show of the paper's tables and figures, and the status page that is made from it."""

import json
from types import SimpleNamespace

import pytest

from musc.reproduce import NOTEBOOKS, REGISTRY
from tools import book_sphinx, notebooks, status

FOUND = status.everything()


def test_count_of_tables_and_figures(capsys):
    """Each with the paper's numbers and its picture."""
    with capsys.disabled():
        print(f"\n{status.count(FOUND)}")
    assert status.count(FOUND) == "tables 18/18, figures 16/16"
    assert status.main(["count"]) == 0
    assert "tables 18/18, figures 16/16" in capsys.readouterr().out


@pytest.mark.parametrize("name", REGISTRY)
def test_every_item_is_shown_whole(name):
    shown = FOUND[name]
    assert shown.complete, f"run: python -m tools.notebooks execute {REGISTRY[name].notebook}"
    assert shown.summary.startswith(f"{REGISTRY[name].title}: ")
    assert shown.numbers >= 1


def test_every_reproduction_chapter_is_a_notebook_and_names_its_profile():
    assert sorted(NOTEBOOKS) == [s.stem for s in notebooks.scripts() if "10" <= s.stem[:2] <= "18"]
    for stem, said in status.profiles().items():
        assert [line.split()[0] for line in said] == ["profile", "data", "backbone", "weights"], stem


def test_status_page_is_generated():
    text = (notebooks.ROOT / "book/status.md").read_text(encoding="utf-8")
    assert text.count(status.MARK) == 1
    content = [text]
    book_sphinx.with_status(SimpleNamespace(), "book/status", content)
    for item in REGISTRY.values():
        row = next(line for line in content[0].splitlines() if f"| `{item.name}` |" in line)
        assert f"{item.kind.title()} {row.split(' | ')[0].lstrip('| ')}" == item.title
        assert f"({'../notebooks/' + item.notebook}.ipynb)" in row
        ran = "{} of {}".format(*FOUND[item.name].run) if item.kind == "table" else "no"
        assert f"| {ran} |" in row
    recorded = json.loads(notebooks.RECORD.read_text(encoding="utf-8"))
    for stem, entry in recorded.items():
        assert f"[{stem}](../notebooks/{stem}.ipynb) | {entry['seconds']} |" in content[0]
    other = [text]
    book_sphinx.with_status(SimpleNamespace(), "book/intro", other)
    assert other == [text]


def notebook(tmp_path, *cells):
    path = tmp_path / "x.ipynb"
    every = [{"cell_type": "code", "source": source, "outputs": outputs} for source, outputs in cells]
    path.write_text(json.dumps({"cells": every}))
    return path


TABLE = "<table><tr><th>row</th></tr><tr><th>a</th><th>paper</th><td>97.8</td><td>–</td></tr></table>"
SAID = "Table 3: 3 of 24 cells run on MVTec AD and VisA; 0 quoted; synthetic stand-in, apart: 12\n"
PRINTED = {"output_type": "stream", "name": "stdout", "text": [SAID]}
PICTURE = {"output_type": "display_data", "data": {"image/png": "x"}}


def shown(tmp_path, *cells):
    return status.shown(notebook(tmp_path, *cells))["table_3"]


def test_an_item_needs_its_table_its_picture_and_the_papers_numbers(tmp_path):
    html = {"output_type": "execute_result", "data": {"text/html": [TABLE]}}
    cells = [("print(table_3.summary)\ntable_3.table", [PRINTED, html]), ("table_3.figure", [PICTURE])]
    whole = shown(tmp_path, *cells)
    assert whole.complete
    assert (whole.numbers, whole.sources, whole.run, whole.stand_in) == (1, ("paper",), (3, 24), "12 cells")
    assert not shown(tmp_path, cells[0]).complete
    assert not shown(tmp_path, cells[1]).complete
    alone = {"output_type": "execute_result", "data": {"text/html": [TABLE.replace("paper", "here")]}}
    assert not shown(tmp_path, (cells[0][0], [PRINTED, alone]), cells[1]).complete
    assert status.shown(tmp_path / "missing.ipynb") == {}
    assert status.count({"table_1": status.Shown(), "figure_3": whole}) == "tables 0/1, figures 1/1"


def test_the_page_leads_with_what_was_run_on_real_data():
    table, drawn = status.Shown(summary=SAID), status.Shown(summary="Figure 4: drawn from MVTec AD data")
    stand_in = status.Shown(summary="Figure 5: drawn from synthetic data")
    assert (stand_in.stand_in, drawn.stand_in) == ("drawn from it", "none")
    said = status.lead({"table_3": table, "figure_4": drawn, "figure_5": stand_in})
    assert "3 of 24 cells were run" in said
    assert "1 of 2 figures drawn" in said
    untouched = status.Shown(summary=SAID.replace("3 of 24", "0 of 24"))
    assert "none of 24 cells were run" in status.lead({"table_3": untouched})
    assert status.page().startswith("**On MVTec AD, VisA and BTAD ")
