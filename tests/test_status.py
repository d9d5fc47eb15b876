"""What the executed notebooks show of the paper's tables and figures, and the status page that is made from it."""

import json
from types import SimpleNamespace

import pytest

from musc.reproduce import NOTEBOOKS, REGISTRY
from tools import book_sphinx, notebooks, status

FOUND = status.everything()


def test_count_of_tables_and_figures(capsys):
    """Each with paper and measured values side by side or marked quoted, and with its picture."""
    with capsys.disabled():
        print(f"\n{status.count(FOUND)}")
    assert status.count(FOUND) == "tables 18/18, figures 14/14"
    assert status.main(["count"]) == 0
    assert "tables 18/18, figures 14/14" in capsys.readouterr().out


@pytest.mark.parametrize("name", REGISTRY)
def test_every_item_is_shown_whole(name):
    shown = FOUND[name]
    assert shown.complete, f"run: python -m tools.notebooks execute {REGISTRY[name].notebook}"
    assert shown.summary.startswith(f"{REGISTRY[name].title}: ")
    assert shown.numbers >= 1


def test_every_reproduction_chapter_is_a_notebook_and_names_its_profile():
    assert sorted(NOTEBOOKS) == [s.stem for s in notebooks.scripts() if s.stem.startswith("1")]
    for stem, said in status.profiles().items():
        assert [line.split()[0] for line in said] == ["profile", "data", "backbone", "weights"], stem


def test_status_page_is_generated():
    text = (notebooks.ROOT / "book/status.md").read_text(encoding="utf-8")
    assert text.count(status.MARK) == 1
    content = [text]
    book_sphinx.with_status(SimpleNamespace(), "book/status", content)
    for item in REGISTRY.values():
        row = next(line for line in content[0].splitlines() if line.startswith(f"| {item.title} |"))
        assert f"`musc reproduce {item.name}`" in row
        assert f"({'../notebooks/' + item.notebook}.ipynb)" in row
        assert FOUND[item.name].summary.partition(": ")[2] in row
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


TABLE = (
    "<table><tr><th>row</th><th>paper</th><th>here</th></tr><tr><th>a</th><td>97.8</td><td>not run</td></tr></table>"
)
SAID = {"output_type": "stream", "name": "stdout", "text": ["Table 3: 0 measured, 1 not run, 0 quoted\n"]}
PICTURE = {"output_type": "display_data", "data": {"image/png": "x"}}


def test_an_item_needs_its_table_its_picture_and_our_column(tmp_path):
    html = {"output_type": "execute_result", "data": {"text/html": [TABLE]}}
    cells = [("print(table_3.summary)\ntable_3.table", [SAID, html]), ("table_3.figure", [PICTURE])]
    whole = status.shown(notebook(tmp_path, *cells))["table_3"]
    assert whole.complete
    assert (whole.numbers, whole.not_run, whole.quoted) == (1, 1, 0)
    assert not status.shown(notebook(tmp_path, cells[0]))["table_3"].complete
    assert not status.shown(notebook(tmp_path, cells[1]))["table_3"].complete
    alone = {"output_type": "execute_result", "data": {"text/html": [TABLE.replace("here", "there")]}}
    cells[0] = (cells[0][0], [SAID, alone])
    assert not status.shown(notebook(tmp_path, *cells))["table_3"].complete
    assert status.shown(tmp_path / "missing.ipynb") == {}
    assert status.count({"table_1": status.Shown(), "figure_3": whole}) == "tables 0/1, figures 1/1"
