"""The quizzes: Markdown in course/quizzes, graded in the page without a server, at the end of their chapter.

NN.md belongs to chapter NN, wrap_PART.md to book/teach/end_PART. A question is a heading, an answer a line of a list:

    ## How many?
    <!-- check: msm.interval_bounds(13) == (0, 3) -->
    - [ ] 4 :: why it is wrong
    - [x] 3 :: why it is right

The check is an expression that a test evaluates against the package: answers that are numbers have one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zlib import crc32

from markdown_it import MarkdownIt

from tools.notebooks import ROOT

FOLDER = ROOT / "course" / "quizzes"
PAGE = re.compile(r"(?:notebooks/(\d\d)_|book/teach/end_)(\w+)")
ANSWER = re.compile(r"- \[([ x])\] (.+?) :: (.+)")
CHECK = re.compile(r"<!-- check: (.+) -->")


@dataclass(frozen=True)
class Answer:
    text: str
    right: bool
    why: str


@dataclass(frozen=True)
class Question:
    text: str
    answers: tuple[Answer, ...]
    check: str | None


def read(path: Path) -> list[Question]:
    """The questions of a quiz. Raises ValueError naming file and line where it is not in the form above."""
    found: list[tuple[str, list[Answer], list[str]]] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if line.startswith("## "):
            found.append((line[3:], [], []))
        elif (answer := ANSWER.fullmatch(line)) and found:
            found[-1][1].append(Answer(answer[2], answer[1] == "x", answer[3]))
        elif (check := CHECK.fullmatch(line)) and found:
            found[-1][2].append(check[1])
        elif line.strip():
            raise ValueError(
                f"{path.name}, line {number}: neither a question, an answer with ' :: ' nor a check: {line}"
            )
    for text, answers, _ in found:
        if sum(answer.right for answer in answers) != 1 or len(answers) < 2:
            raise ValueError(f"{path.name}: give one right answer and at least one other to: {text}")
    # The writer's order often puts the right one in the middle: any order that stays.
    return [
        Question(text, tuple(sorted(a, key=lambda x: crc32(x.text.encode()))), next(iter(c), None))
        for text, a, c in found
    ]


def inline(text: str) -> str:
    return MarkdownIt().renderInline(text)


def html(name: str, questions: list[Question]) -> str:
    """A form for each question; quiz.js grades it. Radio buttons in a fieldset work by keyboard and are read aloud."""
    parts = []
    for n, question in enumerate(questions, 1):
        rows = []
        for m, answer in enumerate(question.answers):
            key = f"quiz-{name}-{n}-{m}"
            right = " data-right" if answer.right else ""
            rows.append(
                f'<div class="quiz-answer"><input type="radio" name="answer" id="{key}" value="{m}"{right}>'
                f'<label for="{key}">{inline(answer.text)}</label>'
                f'<span class="quiz-why" hidden>{inline(answer.why)}</span></div>'
            )
        parts.append(
            f'<form class="quiz"><fieldset><legend>{n}. {inline(question.text)}</legend>{"".join(rows)}</fieldset>'
            '<button type="submit">Check</button><p class="quiz-said" role="status" aria-live="polite"></p></form>'
        )
    note = "<noscript><p>Checking the answers needs JavaScript.</p></noscript>"
    return (
        f'<div class="quizzes">{note}{"".join(parts)}<p class="quiz-total" role="status" aria-live="polite"></p></div>'
    )


def names() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.md"))


def of_page(docname: str) -> str | None:
    """The name of the quiz that belongs on a page of the book."""
    match = PAGE.match(docname)
    name = match and (match[1] or f"wrap_{match[2]}")
    return name if name and (FOLDER / f"{name}.md").is_file() else None


def append(app: Any, doctree: Any) -> None:
    """Put a page's quiz below its last section, so that it stands in the page's contents."""
    from docutils import nodes

    name = of_page(app.env.docname)
    if name is None or app.builder.format != "html":
        return
    app.env.note_dependency(str(FOLDER / f"{name}.md"))
    title = "Quiz" if name.isdigit() else "Wrap-up quiz: some answers need a run"
    section = nodes.section("", nodes.title("", title), ids=["quiz"], names=["quiz"])
    section += nodes.raw("", html(name, read(FOLDER / f"{name}.md")), format="html")
    next(iter(doctree.findall(nodes.section))).append(section)


def connect(app: Any) -> None:
    """Before Sphinx collects the headings of a page (priority 500)."""
    app.connect("doctree-read", append, priority=100)
    app.add_js_file("quiz.js")
    app.add_css_file("quiz.css")


def answer_sheet() -> str:
    """All right answers with their explanations, as Markdown: for lecturers, not part of any build of the book."""
    lines = ["# Answers to the quizzes", ""]
    for name in names():
        lines += [f"## {name}", ""]
        for n, question in enumerate(read(FOLDER / f"{name}.md"), 1):
            right = next(answer for answer in question.answers if answer.right)
            lines += [f"{n}. {question.text}", f"   **{right.text}** {right.why}", ""]
    return "\n".join(lines)
