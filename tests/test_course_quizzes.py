"""The quizzes: their form, their numbers against the package, and their use by keyboard in a browser."""

import math

import numpy as np
import pytest
import torch

from musc import MuScConfig, msm, rscin
from musc.errors import ConfigError
from musc.metrics import image_metrics, pixel_metrics
from musc.reproduce import paper
from tools import course_quiz, notebooks
from tools.notebooks import ROOT

EVERY = {name: course_quiz.read(course_quiz.FOLDER / f"{name}.md") for name in course_quiz.names()}


def value(number, metric="image_auroc", **where):
    rows = paper.table(number)
    for column, wanted in {**where, "metric": metric}.items():
        rows = rows[rows[column].astype(str) == wanted]
    return rows["value"].dropna()


def paper_gain(dataset, metric):
    rows = paper.table(1)
    rows = rows[(rows["dataset"] == dataset) & (rows["metric"] == metric) & (rows["setting"] == "0-shot")]
    rows = rows[rows["block"] == "0-shot"].dropna(subset=["value"])
    mine = rows["method"] == "MuSc"
    return rows[mine]["value"].iloc[0] - rows[~mine]["value"].max()


def best_degrees(metric, dataset):
    rows = paper.table(3)
    rows = rows[(rows["dataset"] == dataset) & (rows["metric"] == metric)]
    return "{" + rows.loc[rows["value"].idxmax(), "degrees"].replace(",", ", ") + "}"


def printed(dataset, metric):
    """What Tab. 10's row of the default and Tab. 1 print of MuSc without references."""
    first = value(1, metric, dataset=dataset, method="MuSc", setting="0-shot", block="0-shot")
    tenth = value(10, metric, dataset=dataset, interval_low="0", interval_high="30")
    return {*first, *tenth}


def raises(call, word):
    with pytest.raises(ConfigError, match=word):
        call()
    return True


odd_one = torch.randn(1, 9, 8, generator=torch.Generator().manual_seed(0)).repeat(6, 1, 1)
odd_one[5, 4] *= -1
SPACE = {
    "approx": pytest.approx,
    "best_degrees": best_degrees,
    "flat": np.zeros((10, 10)),
    "image_metrics": image_metrics,
    "mask_1_in_100": np.arange(100).reshape(10, 10) == 7,
    "msm": msm,
    "MuScConfig": MuScConfig,
    "odd_one": odd_one,
    "paper_gain": paper_gain,
    "pairs": lambda N: math.comb(N, 2),
    "pixel_metrics": pixel_metrics,
    "printed": printed,
    "raises": raises,
    "rscin": rscin,
    "same_ten": odd_one[:1].repeat(10, 1, 1),
    "shots": lambda number, setting: value(number, dataset="mvtec_ad", setting=setting).iloc[0],
    "tensor": torch.tensor,
}


def test_every_chapter_and_every_part_has_one():
    pages = [f"notebooks/{script.stem}" for script in notebooks.scripts()]
    pages += [f"book/teach/{p.stem}" for p in (ROOT / "book/teach").glob("end_*.md")]
    assert {course_quiz.of_page(page) for page in pages} == set(EVERY)
    for name, questions in EVERY.items():
        assert len(questions) >= (3 if name.isdigit() else 2), name
        for question in questions:
            assert len({answer.text for answer in question.answers}) >= 2
            assert all(len(answer.why) > 5 for answer in question.answers), question.text


@pytest.mark.parametrize("name", EVERY)
def test_numbers_are_the_packages(name):
    for question in EVERY[name]:
        if question.check:
            assert eval(question.check, dict(SPACE)), question.text
        right = next(answer for answer in question.answers if answer.right)
        if right.text.replace(".", "").replace("/", "").replace(",", "").isdigit() and name != "11":
            assert question.check, f"{name}: a number without a check: {question.text}"


def test_the_right_answer_has_no_place_of_its_own():
    places = [[a.right for a in q.answers].index(True) for questions in EVERY.values() for q in questions]
    assert max(places.count(n) for n in range(3)) < 0.55 * len(places)


def test_a_faulty_quiz_is_named(tmp_path):
    path = tmp_path / "x.md"
    path.write_text("## Q?\n- [ ] a :: b\n- [x] c\n")
    with pytest.raises(ValueError, match=r"x.md, line 3.*- \[x\] c"):
        course_quiz.read(path)
    path.write_text("## Q?\n- [ ] a :: b\n- [ ] c :: d\n")
    with pytest.raises(ValueError, match="one right answer"):
        course_quiz.read(path)


def test_answers_are_in_the_sheet_alone():
    sheet = course_quiz.answer_sheet()
    for questions in EVERY.values():
        for question in questions:
            assert question.text in sheet
    assert not list((ROOT / "book").rglob("*answers*"))


def press(page, key, code, text=""):
    for kind in ("keyDown", "keyUp"):
        event = {"type": kind, "key": key, "code": key, "windowsVirtualKeyCode": code}
        page.call("Input.dispatchKeyEvent", **event, **({"text": text} if text and kind == "keyDown" else {}))


def test_by_keyboard(chromium, tmp_path):
    questions = EVERY["03"]
    script, style = ((ROOT / "book/_static" / f"quiz.{kind}").read_text() for kind in ("js", "css"))
    file = tmp_path / "page.html"
    body = course_quiz.html("03", questions)
    file.write_text(f"<!DOCTYPE html><meta charset=utf-8><style>{style}</style>{body}<script>{script}</script>")
    page = chromium.open(file.as_uri())
    said = "[...document.querySelectorAll('.quiz-said')].map(p => p.textContent)"
    for n, question in enumerate(questions):
        right = [answer.right for answer in question.answers].index(True)
        page.evaluate(f"document.querySelectorAll('form')[{n}].querySelector('input').focus()")
        press(page, " ", 32, " ")
        for _ in range(right):
            press(page, "ArrowDown", 40)
        if n == 0:  # a wrong one first
            press(page, "ArrowDown", 40)
            press(page, "Enter", 13, "\r")
            assert page.evaluate(said)[0].startswith("Not so.")
            press(page, "ArrowUp", 38)
        press(page, "Tab", 9)  # one stop for the group, then the button
        assert page.evaluate("document.activeElement.textContent") == "Check"
        press(page, "Enter", 13, "\r")
        assert page.evaluate(said)[n].startswith("Right.")
    assert (
        page.evaluate("document.querySelector('.quiz-total').textContent")
        == f"{len(questions)} of {len(questions)} right."
    )
    roles = page.evaluate(
        "[...document.querySelectorAll('form')].map(f => [!!f.querySelector('fieldset > legend'),"
        " f.querySelectorAll('input').length == f.querySelectorAll('label[for]').length])"
    )
    assert roles == [[True, True]] * len(questions)
    assert not page.errors
    page.close()
