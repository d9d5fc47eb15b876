"""What a lecturer hands out: decks, labs, quizzes, figures and notebooks, in _build/course.

python -m tools.course              all of it; says how long each part took
python -m tools.course labs slides  these parts alone

vectors/    the figures as SVG and PDF, of the notebooks' cells run once more; kept while the notebooks stay the same
figures/    every figure as PNG, SVG and PDF, with its source and licence, and figures.zip
slides/     a deck for each session, in HTML and, where a Chromium is, as PDF
labs/       student, solution and instructor versions, an autograder and a zip for the class
notebooks/  the book's notebooks without outputs, with solutions and without
answers.md  the answers of the quizzes: for lecturers
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from pathlib import Path

from tools import book, browser, course_figures, course_labs, course_quiz, course_slides, notebooks

OUT = book.BUILD / "course"


def vectors() -> None:
    course_figures.draw_all(OUT / "vectors")


def figures() -> None:
    course_figures.build(OUT / "figures", OUT / "vectors")


def slides() -> None:
    decks = course_slides.build(OUT / "slides", OUT / "figures")
    if browser.find() is None:
        print("no Chromium: the decks are not looked at, and not printed")
        return
    with browser.Browser() as running:
        page = running.open("about:blank")
        faults = [fault for deck in decks for fault in course_slides.look(page, deck)]
        if faults:
            raise RuntimeError("\n".join(faults))
        for deck in decks:
            course_slides.pdf(page, deck)
    print(f"{len(decks)} decks, nothing overflows at 1280 x 720")


def labs(mistakes: bool = False) -> None:
    course_labs.build(OUT / "labs", mistakes)


def quizzes() -> None:
    sheet = OUT / "answers.md"
    sheet.parent.mkdir(parents=True, exist_ok=True)
    sheet.write_text(course_quiz.answer_sheet(), encoding="utf-8")
    print(f"{len(course_quiz.names())} quizzes; their answers: {sheet}")


def clean() -> None:
    """The notebooks without outputs: all of them, and without the solutions."""
    import nbformat

    for kind in ("all", "student"):
        folder = OUT / "notebooks" / kind
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for script in notebooks.scripts():
            notebook = notebooks.as_notebook(script)
            if kind == "student":
                notebook.cells = [nbformat.from_dict(c) for c in book.without_solution_cells(notebook.cells)]
            nbformat.write(notebook, folder / f"{script.stem}.ipynb")
        shutil.make_archive(str(folder), "zip", folder)


PARTS = {"vectors": vectors, "figures": figures, "slides": slides, "labs": labs, "quizzes": quizzes, "notebooks": clean}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.course", description=__doc__.split("\n")[0])
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; default: all")
    parser.add_argument("--mistakes", action="store_true", help="grade the mistakes planted in the labs as well")
    args = parser.parse_args(argv)
    if unknown := set(args.parts) - set(PARTS):
        parser.error(f"no part {', '.join(sorted(unknown))}: choose from {', '.join(PARTS)}.")
    for name, make in PARTS.items():
        if args.parts and name not in args.parts:
            continue
        begun = time.perf_counter()
        try:
            labs(args.mistakes) if name == "labs" else make()
        except (RuntimeError, course_slides.SlideError, notebooks.NotebookError) as error:
            print(f"{name}: {error}", file=sys.stderr)
            return 1
        print(f"{name}: {time.perf_counter() - begun:.0f} s")
    print(f"built: {Path(OUT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
