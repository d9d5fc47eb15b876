"""Names of outputs and folders that are swapped as a whole: properties, failing file systems, killed processes."""

import errno
import os
import signal
import subprocess
import sys
import unicodedata
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from musc import saving
from musc.results.folders import legal_names, recover, replacing

OURS = ("data", "pictures")


# ------------------------------------------------------------------------------------------------ names


LETTERS = st.characters(max_codepoint=0x2FF) | st.sampled_from("./\\:*?~aA. \ud8fféß")


@settings(derandomize=True, deadline=None, max_examples=300)
@given(st.lists(st.text(alphabet=LETTERS, max_size=30), unique=True, max_size=12))
def test_outputs_are_contained_unique_and_legal_on_every_system(names):
    found = [PurePosixPath(path) for path in legal_names(names, ".png")]
    seen = {unicodedata.normalize("NFC", str(path)).casefold() for path in found}
    assert len(seen) == len(names)
    for path in found:
        assert not path.is_absolute()
        assert ".." not in path.parts
        assert path.suffix == ".png"
        for part in path.parts:
            part.encode("utf-8")
            assert not set(part) & set('<>:"|?*\\')
            assert part == part.rstrip(". ")
            assert len(part.encode()) < 255
        assert not {str(parent).casefold() for parent in path.parents} & seen  # no file where a folder must be


def test_ordinary_names_stay_what_they_are():
    assert legal_names(["crack/ä 01.JPG", "ok.png"], ".png") == ["crack/ä 01.JPG.png", "ok.png.png"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [("/abs/new.png", "abs/new.png"), ("../inbox/new.png", "inbox/new.png"), ("a/./b", "a/b"), ("", "image"),
     ("CON.png", "_CON.png"), ("what?", "what%3F"), ("dot.", "dot%2E"), ("p\udcfcf.png", "p%DCFCf.png")],
)  # fmt: skip
def test_names_that_would_leave_the_folder_or_be_refused(name, expected):
    assert legal_names([name]) == [expected]


# ------------------------------------------------------------------------------------------------ swapping


def content(folder: Path) -> dict[str, str]:
    return {p.name: p.read_text() for p in sorted(folder.iterdir())}


def fill(folder: Path, text: str) -> None:
    with replacing(folder, OURS) as new:
        (new / "data").write_text(text)


def test_a_folder_is_replaced_and_what_is_not_ours_stays(tmp_path):
    fill(tmp_path / "r", "old")
    (tmp_path / "r/pictures").write_text("of the old")
    (tmp_path / "r/notes.txt").write_text("mine")
    fill(tmp_path / "r", "new")
    assert content(tmp_path / "r") == {"data": "new", "notes.txt": "mine"}
    assert os.listdir(tmp_path) == ["r"]
    (tmp_path / "below").mkdir()
    (tmp_path / "below/link").symlink_to("../r")
    fill(tmp_path / "below/link", "newer")
    assert (tmp_path / "below/link").is_symlink()
    assert content(tmp_path / "r") == {"data": "newer", "notes.txt": "mine"}
    assert sorted(os.listdir(tmp_path)) == ["below", "r"]


def test_a_failure_while_filling_leaves_the_old_folder(tmp_path):
    fill(tmp_path / "r", "old")

    def interrupted():
        with replacing(tmp_path / "r", OURS) as new:
            (new / "data").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert content(tmp_path / "r") == {"data": "old"}
    assert os.listdir(tmp_path) == ["r"]


@pytest.mark.parametrize("failing", range(3))
def test_every_rename_may_fail(tmp_path, monkeypatch, failing):
    fill(tmp_path / "r", "old")
    rename, calls = os.rename, []

    def once(a, b):
        calls.append((a, b))
        if len(calls) == failing + 1:
            raise OSError(errno.EIO, "the disk says no")
        rename(a, b)

    monkeypatch.setattr(os, "rename", once)
    with pytest.raises(OSError, match="the disk says no"):
        fill(tmp_path / "r", "new")
    monkeypatch.undo()
    recover(tmp_path / "r", OURS)
    assert content(tmp_path / "r")["data"] == "old"
    assert os.listdir(tmp_path) == ["r"]


KILLED = """\
import os, signal, sys
from pathlib import Path
from musc.results import folders

def writes(folder, step):
    done = 0

    def dies(function):
        def counted(*arguments, **options):
            nonlocal done
            if done == step:
                os.kill(os.getpid(), signal.SIGKILL)
            done += 1
            return function(*arguments, **options)
        return counted

    os.rename, os.replace, Path.mkdir = dies(os.rename), dies(os.replace), dies(Path.mkdir)
    folders.shutil.rmtree = dies(folders.shutil.rmtree)
    with folders.replacing(folder, ("data", "pictures")) as new:
        (new / "data").write_text("new")

for step, folder in enumerate(sys.argv[1:]):
    if (child := os.fork()) == 0:
        writes(Path(folder), step)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_process_killed_at_any_step_leaves_the_old_or_the_new(tmp_path):
    """A process for every step, forked of one that has imported what it needs."""
    results = [tmp_path / str(step) / "r" for step in range(10)]
    for folder in results:
        folder.parent.mkdir()
        fill(folder, "old")
        (folder / "notes.txt").write_text("mine")
    command = [sys.executable, "-c", KILLED, *map(str, results)]
    ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.split()
    last = ended.index("0")  # it had fewer steps than this
    assert ended == [str(-signal.SIGKILL)] * last + ["0"] * (10 - last)
    states = []
    for folder in results:
        recover(folder, OURS)
        assert content(folder)["notes.txt"] == "mine"
        assert os.listdir(folder.parent) == ["r"]
        states.append(content(folder)["data"])
    assert states == sorted(states, reverse=True)  # the old until some step, the new from there on
    assert (states[0], states[last]) == ("old", "new")


def test_two_writers_never_mix(tmp_path):
    """Both put a whole folder there, again and again; whatever a reader sees is of one of them."""
    script = (
        "import sys\nfrom pathlib import Path\nfrom musc.results.folders import replacing\n"
        "for n in range(60):\n"
        "    with replacing(Path(sys.argv[1]), ('data', 'more')) as new:\n"
        "        (new / 'data').write_text(sys.argv[2])\n        (new / 'more').write_text(sys.argv[2])\n"
    )
    folder = tmp_path / "r"
    writers = [subprocess.Popen([sys.executable, "-c", script, str(folder), name]) for name in "ab"]
    assert [w.wait() for w in writers] == [0, 0]
    assert len(set(content(folder).values())) == 1
    assert os.listdir(tmp_path) == ["r"]


def test_folders_of_living_processes_are_left_alone(tmp_path):
    beside = tmp_path / f".r.{saving._here()}-{os.getppid()}-0123abcd.partial"
    beside.mkdir()
    recover(tmp_path / "r", OURS)
    assert beside.exists()


def test_what_was_left_of_another_folder_is_not_taken(tmp_path):
    """Neither of one whose name begins alike, nor of one that is called as the temporary folders end."""
    beside = tmp_path / f".r.old.{saving._here()}-999999999-0123abcd.complete"
    beside.mkdir()
    recover(tmp_path / "r", OURS)
    assert os.listdir(tmp_path) == [beside.name]
    recover(tmp_path / "r.old", OURS)
    assert os.listdir(tmp_path) == ["r.old"]
    (tmp_path / "r.old/mine").write_text("kept")
    fill(tmp_path / "r.old", "new")
    assert content(tmp_path / "r.old") == {"data": "new", "mine": "kept"}
    assert os.listdir(tmp_path) == ["r.old"]


@pytest.mark.parametrize("name", [".", "..", "../r", "below/..", "/"])
def test_the_working_folder_is_not_replaced_under_one_s_feet(name, tmp_path, monkeypatch):
    (tmp_path / "r/below").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "r")
    with pytest.raises(OSError, match="the working folder"), replacing(Path(name), OURS):
        pass
    assert os.listdir(tmp_path) == ["r"]
    assert os.listdir(tmp_path / "r") == ["below"]


# ------------------------------------------------------------------------------------------------ single files


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "a.txt"

    def interrupted():
        with saving.whole(path) as partial:
            partial.write_text("half")
            assert not path.exists()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert os.listdir(path.parent) == []
    with saving.whole(path) as partial:
        partial.write_text("whole")
    assert content(path.parent) == {"a.txt": "whole"}


def test_what_a_killed_process_left_of_a_file_goes_and_what_a_living_one_writes_stays(tmp_path):
    script = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom musc.saving import whole\n"
        "with whole(Path(sys.argv[1])) as partial:\n"
        "    partial.write_text('half')\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "below/a.png")], check=False)
    assert done.returncode == -signal.SIGKILL
    assert [p.suffix for p in (tmp_path / "below").iterdir()] == [".partial"]
    others = [tmp_path / f".{saving._here()}-{os.getppid()}-0123abcd.partial", tmp_path / ".mine.partial"]
    for path in others:
        path.write_text("not ours")
    with saving.whole(tmp_path / "own") as own:
        own.write_text("at work")
    with saving.whole(tmp_path / "below/b.png") as again:
        again.write_text("whole")
    assert content(tmp_path / "below") == {"b.png": "whole"}
    assert {p.name for p in tmp_path.iterdir()} == {"below", "own", *(p.name for p in others)}
