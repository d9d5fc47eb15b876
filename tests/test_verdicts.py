"""Sentences that judge: true ones are shown, false ones stop the build, and the chapters write no other kind."""

import ast
import math
import re

import pytest

from musc.verdicts import SWITCH, FalseVerdict, Verdict, paper_here_why, verdict
from tools import notebooks

SCRIPTS = notebooks.scripts()
CHAPTER = """\
# %% [markdown]
# # A chapter

# %% tags=["parameters"]
interval, mean = {interval}, {mean}

# %%
from musc.verdicts import verdict

verdict(f"The interval gives {{interval:.1f}} %, the mean {{mean:.1f}} %: it is better.", interval > mean)
"""


@pytest.fixture(autouse=True)
def strict(monkeypatch):
    monkeypatch.delenv(SWITCH, raising=False)


def chapter(folder, **numbers):
    script = folder / "99_chapter.py"
    script.write_text(CHAPTER.format(**numbers), encoding="utf-8")
    return script


def test_a_true_verdict_is_its_sentence():
    found = verdict("2 of 3 are larger.", 2 < 3, 1 < 2)
    assert repr(found) == found._repr_markdown_() == "2 of 3 are larger."
    assert repr(found + verdict("5 is odd.", 5 % 2)) == "2 of 3 are larger. 5 is odd."


def test_a_false_verdict_says_which_claim_and_what_to_do():
    with pytest.raises(FalseVerdict, match=r'"3 and 2: rising\." \(claim 2, 3 of 3\)\. Mend .* MUSC_VERDICTS=report'):
        verdict("3 and 2: rising.", True, 2 > 3, math.nan > 0)


def test_on_other_data_a_false_verdict_is_marked(monkeypatch):
    monkeypatch.setenv(SWITCH, "report")
    assert repr(verdict("3 > 2.", 3 > 2)) == "3 > 2."
    assert "**not** so:* 2 > 3." in repr(verdict("2 > 3.", 2 > 3))


@pytest.mark.parametrize(("sentence", "claims"), [("It is better.", [True]), ("3 is better.", [])])
def test_no_verdict_without_a_number_and_a_claim(sentence, claims):
    with pytest.raises(ValueError, match="names the numbers"):
        verdict(sentence, *claims)


def test_a_box_holds_what_was_found_true():
    box = paper_here_why("Fig. 8\nrises.", Verdict("falls by 3."), Verdict("few: 20."))
    assert repr(box) == "> **Paper.** Fig. 8 rises.\n>\n> **Here.** falls by 3.\n>\n> **Why.** few: 20."


def test_one_reversed_number_fails_the_build(tmp_path, monkeypatch):
    """Executing a chapter, as the build does; its sentence turns false, and no page is made."""
    monkeypatch.setattr(notebooks, "ROOT", tmp_path)
    (tmp_path / "_config.yml").write_text("repository: {url: https://example.org/musc}")
    script = chapter(tmp_path, interval=94.0, mean=87.2)
    notebooks.execute(script)
    assert "94.0 %, the mean 87.2 %: it is better." in script.with_suffix(".ipynb").read_text(encoding="utf-8")

    script.with_suffix(".ipynb").unlink()
    with pytest.raises(notebooks.NotebookError, match=r'not true any more: "The interval gives 87\.2 %'):
        notebooks.execute(chapter(tmp_path, interval=87.2, mean=94.0))
    assert not script.with_suffix(".ipynb").exists()


def test_with_other_parameters_it_is_marked_and_the_run_goes_on(tmp_path):
    script = chapter(tmp_path, interval=94.0, mean=87.2)
    ran = notebooks.run(notebooks.as_notebook(script), {"interval": 80.0}, cwd=tmp_path)
    assert "**not** so:* The interval gives 80.0 %" in str(ran.cells[-1].outputs)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_verdicts_of_the_chapters_compute_what_they_say(script):
    """Numbers in an f-string's braces, claims that can turn out false."""
    code = "\n".join(c.source for c in notebooks.as_notebook(script).cells if c.cell_type == "code")
    tree = ast.parse(re.sub(r"^(\s*)%.*$", r"\1pass", code, flags=re.M))
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "verdict":
            sentence, *claims = node.args
            assert isinstance(sentence, ast.JoinedStr), f"{ast.unparse(node)}: give an f-string"
            assert any(isinstance(part, ast.FormattedValue) for part in sentence.values), ast.unparse(node)
            for claim in claims:
                names = [n for n in ast.walk(claim) if isinstance(n, ast.Name)]
                assert names, f"{ast.unparse(node)}: {ast.unparse(claim)} is always the same"
