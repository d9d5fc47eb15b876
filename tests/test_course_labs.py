"""The labs: full points for the solution, none for the stub, some for plausible mistakes; and the leaderboard.

Here the checks that otter assign made are run by otter's own reader in one process; `make course` lets `otter run`
grade every notebook in a kernel of its own.
"""

import shutil
import socket
import warnings

import nbformat
import pytest

from tools import course_labs

DAILY, *SLOW = course_labs.NAMES


@pytest.fixture(scope="module", params=[DAILY, *(pytest.param(name, marks=pytest.mark.nightly) for name in SLOW)])
def lab(request, tmp_path_factory):
    """A lab's folder with all its versions, and its checks."""
    pytest.importorskip("otter", reason="the labs need otter-grader: pip install 'musc[course]'")
    from otter.test_files import OKTestFile

    folder = course_labs.assign(request.param, tmp_path_factory.mktemp("labs"))
    shutil.unpack_archive(folder / "autograder.zip", folder / "checks")
    return folder, [OKTestFile.from_file(str(path)) for path in sorted((folder / "checks" / "tests").glob("*.py"))]


class Class:
    """Runs notebooks; of a second one only what differs from the first, and what may follow from it."""

    def __init__(self, folder, checks):
        self.folder, self.checks = folder, checks

    def cells(self, notebook):
        code = [c for c in notebook.cells if c.cell_type == "code"]
        return [c.source for c in code if "otter" not in c.source and "grader." not in c.source]

    def run(self, notebook, known=None):
        """The namespace after all cells, from the first that is not as in `known`, a (notebook, states) pair."""
        cells, states, space = self.cells(notebook), [], {"__name__": "__main__"}
        for n, source in enumerate(cells):
            if known and n < len(known[0]) and source == known[0][n] and n == len(states):
                space = dict(known[1][n])
            else:
                known = None
                try:
                    exec(compile(source, f"cell {n}", "exec"), space)
                except Exception as error:  # as in a notebook that is graded: the next cell runs all the same
                    space["_error"] = error
            states.append(dict(space))
        return cells, states

    def points(self, space):
        found = {}
        for check in self.checks:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                check.run(dict(space))
            found[check.name] = (sum(r.test_case.points for r in check.test_case_results if r.passed), check)
        return found


def full(checks):
    return {check.name: sum(case.points for case in check.test_cases) for check in checks}


@pytest.fixture
def offline(monkeypatch):
    """No address but of this machine can be reached."""

    def refuse(self, address, *rest):
        raise OSError(f"no network in this test: {address}")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def test_points(lab, offline, monkeypatch):
    folder, checks = lab
    monkeypatch.syspath_prepend(str(course_labs.FOLDER))
    room = Class(folder, checks)
    possible = full(checks)
    solution = nbformat.read(folder / "solution" / f"{folder.name}.ipynb", as_version=4)
    done = room.run(solution)
    given = room.points(done[1][-1])
    assert {name: got for name, (got, _) in given.items()} == pytest.approx(possible), [
        r.message for _, check in given.values() for r in check.test_case_results if not r.passed
    ]

    stub = nbformat.read(folder / "student" / f"{folder.name}.ipynb", as_version=4)
    space = room.run(stub)[1][-1]
    assert {got for got, _ in room.points(space).values()} == {0}

    known = course_labs.mistakes(folder.name)
    assert len(known) == 3
    for mistake in known:
        path = folder / "planted.ipynb"
        course_labs.planted(folder, mistake, path)
        space = room.run(nbformat.read(path, as_version=4), done)[1][-1]
        got = {name: points for name, (points, _) in room.points(space).items()}
        lost = {name for name in got if got[name] < possible[name] - 1e-9}
        assert lost == set(mistake["lost"]), mistake["mistake"]
        assert 0 < sum(got.values()) < sum(possible.values())
