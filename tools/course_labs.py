"""The labs: student, solution and instructor notebooks from one master, and their grading, by otter-grader.

course/labs/NAME.py       the master: jupytext's percent format, in otter assign's markup
NAME/student              what a class gets: stubs and the visible checks, with whatever files it needs
NAME/solution             the same with the solutions
NAME/instructor           the master: solutions and hidden checks
NAME/autograder.zip       for `otter run`, `otter grade` and Gradescope
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml

from tools.notebooks import ROOT

FOLDER = ROOT / "course" / "labs"
NAMES = ("lab_1", "lab_2", "project")
Points = dict[str, tuple[float, float]]  # by question: got, possible


def mistakes(name: str) -> list[dict[str, Any]]:
    """The planted mistakes of a lab: what each replaces, and the questions in which it must lose points."""
    return yaml.safe_load((FOLDER / "mistakes.yml").read_text(encoding="utf-8"))[name]


def otter(*arguments: str | Path, cwd: Path) -> str:
    """Run otter with this interpreter; RuntimeError with what it said where it fails."""
    command = [sys.executable, "-c", "from otter.cli import cli; cli()", *map(str, arguments)]
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": paths, "MPLBACKEND": "agg", "TQDM_DISABLE": "1"}
    environment.setdefault("OMP_NUM_THREADS", "1")  # several at a time
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"otter {' '.join(map(str, arguments))}:\n{done.stdout}{done.stderr}")
    return done.stdout


def assign(name: str, out: Path) -> Path:
    """All versions of one lab below `out`; returns its folder."""
    import jupytext
    import nbformat

    folder = out / name
    shutil.rmtree(folder, ignore_errors=True)
    with tempfile.TemporaryDirectory() as place:
        work = Path(place)
        nbformat.write(jupytext.read(FOLDER / f"{name}.py"), work / f"{name}.ipynb")
        for extra in FOLDER.glob("leaderboard.py"):
            shutil.copy(extra, work)
        otter("assign", f"{name}.ipynb", "dist", "--no-run-tests", "--no-pdfs", cwd=work)
        (folder / "instructor").mkdir(parents=True)
        shutil.copy(work / f"{name}.ipynb", folder / "instructor")
        shutil.copytree(work / "dist" / "student", folder / "student")
        shutil.copytree(work / "dist" / "autograder", folder / "solution")
    (archive,) = (folder / "solution").glob("*.zip")  # its name holds a time
    archive.rename(folder / "autograder.zip")
    return folder


def grade(folder: Path, notebook: Path) -> Points:
    """The points that the autograder of a lab's folder gives to a notebook, in a kernel of its own."""
    with tempfile.TemporaryDirectory() as place:
        otter("run", "-a", folder / "autograder.zip", "-o", place, "--no-logo", notebook, cwd=Path(place))
        results = json.loads((Path(place) / "results.json").read_text(encoding="utf-8"))
    tests = [t for t in results["tests"] if t.get("max_score") is not None]
    return {test["name"]: (test["score"], test["max_score"]) for test in tests}


def planted(folder: Path, mistake: dict[str, Any], to: Path) -> Path:
    """A copy of a lab's solution with one mistake in it."""
    import nbformat

    notebook = nbformat.read(folder / "solution" / f"{folder.name}.ipynb", as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code" and mistake["right"] in cell.source]
    if len(cells) != 1 or cells[0].source.count(mistake["right"]) != 1:
        raise RuntimeError(f"{folder.name}: {mistake['right']!r} does not stand once in the solution.")
    cells[0].source = cells[0].source.replace(mistake["right"], mistake["instead"])
    nbformat.write(notebook, to)
    return to


def check(folder: Path, wrong: bool) -> list[tuple[str, float, float]]:
    """Grade the solution, the stub and, if `wrong`, each planted mistake: what was graded, points, possible. Raises
    RuntimeError unless the solution has all points, the stub none, and a mistake loses in its questions alone."""
    name = folder.name
    known = mistakes(name) if wrong else []
    with tempfile.TemporaryDirectory() as place:
        papers = {kind: folder / kind / f"{name}.ipynb" for kind in ("solution", "student")}
        for n, mistake in enumerate(known):
            path = Path(place) / str(n) / f"{name}.ipynb"
            path.parent.mkdir()
            papers[mistake["mistake"]] = planted(folder, mistake, path)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            points = dict(zip(papers, pool.map(lambda paper: grade(folder, paper), papers.values()), strict=True))
    wanted: dict[str, set[str]] = {"solution": set(), "student": set(points["student"])}
    wanted |= {mistake["mistake"]: set(mistake["lost"]) for mistake in known}
    rows = []
    for paper, given in points.items():
        lost = {question for question, (got, full) in given.items() if got < full}
        total, possible = (sum(column) for column in zip(*given.values(), strict=True))
        if lost != wanted[paper] or (paper == "student" and total):
            raise RuntimeError(
                f"{name}, {paper}: points lost in {sorted(lost)}, not in {sorted(wanted[paper])}: {given}"
            )
        rows.append((paper, total, possible))
    return rows


def build(out: Path, wrong: bool = False) -> None:
    """All labs below `out`, a zip of each for the class; each is graded, to see that its autograder works."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        made = pool.map(lambda name: check(assign(name, out), wrong), NAMES)
        for name, rows in zip(NAMES, made, strict=True):
            for paper, got, possible in rows:
                print(f"{name}: {got:4.1f} of {possible:4.1f} points  {paper}")
            shutil.make_archive(str(out / f"{name}_student"), "zip", out / name / "student")
