"""Commands killed at any moment, and told by the file system at any write that it will not: what was there stays whole,
the error is clear, and the same command, given again, ends with the bytes of an undisturbed run."""

import errno
import os
import random
import re
import shutil

import numpy as np
import pytest
from PIL import Image

SIZE = ["--image-size", "32"]
TINY = ["--backbone", "deit_tiny_patch16_224", "--weights", "random", *SIZE, "--stages", "1,2"]
TINY += ["--device", "cpu", "--workers", "0", "--batch-size", "1"]
COMMANDS = {
    "run": ["run", "photos", *TINY],
    "evaluate": ["evaluate", "parts", *TINY],
    "score": ["score", "new", "--against", "results/folder/photos", "--out", "scored"],
    "reproduce": ["reproduce", "table_5", "--category", "tile", "--images", "3", *TINY[:4], *SIZE],
}
KILLED = -9


@pytest.fixture(scope="module")
def workplaces(tmp_path_factory, disturbed):
    """A folder of inputs for each command, and what the command makes of it where nothing disturbs."""
    top, rng = tmp_path_factory.mktemp("workplaces"), np.random.default_rng(0)

    def photograph(path, dark):
        pixels = np.linspace(60, 200, 48)[:, None, None] + rng.normal(0, 4, (48, 48, 3))
        pixels[20:30, 20:30] = 10 if dark else pixels[20:30, 20:30]
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)

    inputs = top / "inputs"
    for n in range(4):
        photograph(inputs / "photos" / f"{n}.png", dark=n == 3)
    photograph(inputs / "new/4.png", dark=True)
    for name in ("first", "second"):
        for n in range(2):
            photograph(inputs / f"parts/{name}/test/good/{n}.png", dark=False)
        photograph(inputs / f"parts/{name}/test/spot/0.png", dark=True)
        mask = np.zeros((48, 48), np.uint8)
        mask[20:30, 20:30] = 255
        (inputs / f"parts/{name}/ground_truth/spot").mkdir(parents=True)
        Image.fromarray(mask).save(inputs / f"parts/{name}/ground_truth/spot/0_mask.png")
    made = {}
    for command in COMMANDS:
        shutil.copytree(inputs, top / command)
        if command == "score":
            assert disturbed(COMMANDS["run"], top / command)["code"] == 0
        shutil.copytree(top / command, top / f"{command}-whole")
        answer = disturbed(COMMANDS[command], top / f"{command}-whole")
        assert answer["code"] == 0, answer["said"]
        made[command] = top / command, outputs(top / f"{command}-whole"), answer
    return made


# What a report says of this run alone: how long it took, and where its images lay.
OWN = re.compile(rb"<summary>Seconds</summary>.*?</details>|<th scope=.row.>folder</th><td>.*?</td>", re.DOTALL)


def outputs(folder):
    """Every file beside the cache of tokens, by name, hidden ones too; result.json tells how long it took, and only has
    to be."""
    caches = {".cache", "tokens"}  # the second is `reproduce`'s
    found = [p for p in folder.rglob("*") if p.is_file() and not caches & set(p.relative_to(folder).parts)]
    return {p.relative_to(folder).as_posix(): content(p) for p in found}


def content(path):
    if path.name == "result.json":
        return b""
    return OWN.sub(b"", path.read_bytes()) if path.name == "report.html" else path.read_bytes()


def stored(folder):
    """The files of finished work, which keep their number in the file system until they are written anew."""
    return {p: p.stat().st_ino for p in folder.rglob("*.safetensors") if not p.name.startswith(".")}


def ends_as_if_undisturbed(run, command, place, whole):
    before = stored(place)
    answer = run(COMMANDS[command], place)
    assert answer["code"] == 0, answer["said"]
    after = outputs(place)
    assert {name for name in after.keys() | whole.keys() if after.get(name) != whole.get(name)} == set()
    assert before.items() <= stored(place).items()  # what was finished is not made again
    leftovers = [p for p in place.rglob(".*") if p.name != ".cache"]
    assert leftovers == []


def steps(total, count):
    """Some of so many changes of the file system, from the first to the last; all of them at night."""
    return range(total) if count is None else sorted({round(k) for k in np.linspace(0, total - 1, count)})


def killed_at_steps(run, workplaces, command, tmp_path, count):
    place, whole, undisturbed = workplaces[command]
    for step in steps(undisturbed["steps"], count):
        shutil.copytree(place, tmp_path / str(step))
        assert run(COMMANDS[command], tmp_path / str(step), step=step)["code"] == KILLED
        ends_as_if_undisturbed(run, command, tmp_path / str(step), whole)
        shutil.rmtree(tmp_path / str(step))


def refused_at_steps(run, workplaces, command, tmp_path, count, number):
    place, whole, undisturbed = workplaces[command]
    for step in steps(undisturbed["steps"], count):
        shutil.copytree(place, tmp_path / str(step))
        answer = run(COMMANDS[command], tmp_path / str(step), step=step, errno=number)
        is_clear(answer, step)
        ends_as_if_undisturbed(run, command, tmp_path / str(step), whole)
        shutil.rmtree(tmp_path / str(step))


def is_clear(answer, step):
    """Either one line names what could not be written, or the work is done (without its cache, which is said)."""
    said = f"step {step}: {answer['said']}"
    assert answer["code"] in (0, 1), said
    assert not [word for word in ("Traceback", "fault of the program") if word in said], said
    if answer["code"] == 1:
        assert any(word in said for word in ("cannot be written", "disk is full", "Read-only", "No space")), said


@pytest.mark.parametrize("command", COMMANDS)
def test_killed_at_some_changes_of_the_file_system(command, disturbed, workplaces, tmp_path):
    killed_at_steps(disturbed, workplaces, command, tmp_path, 3)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_disk_that_is_full_at_some_changes(command, disturbed, workplaces, tmp_path):
    refused_at_steps(disturbed, workplaces, command, tmp_path, 3, errno.ENOSPC)


@pytest.mark.nightly
@pytest.mark.parametrize("command", COMMANDS)
def test_killed_at_every_change_of_the_file_system(command, disturbed, workplaces, tmp_path):
    killed_at_steps(disturbed, workplaces, command, tmp_path, None)


@pytest.mark.nightly
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS], ids=["full", "read-only"])
@pytest.mark.parametrize("command", COMMANDS)
def test_refused_at_every_change_of_the_file_system(command, number, disturbed, workplaces, tmp_path):
    refused_at_steps(disturbed, workplaces, command, tmp_path, None, number)


@pytest.mark.nightly
@pytest.mark.parametrize("command", COMMANDS)
def test_fifty_kills_at_random_moments(command, disturbed, workplaces, tmp_path):
    place, whole, undisturbed = workplaces[command]
    rng = random.Random(0)
    for n in range(10):  # five kills each
        shutil.copytree(place, tmp_path / str(n))
        for _ in range(5):
            disturbed(COMMANDS[command], tmp_path / str(n), after=undisturbed["seconds"] * rng.uniform(0, 1.1))
        ends_as_if_undisturbed(disturbed, command, tmp_path / str(n), whole)
        shutil.rmtree(tmp_path / str(n))


@pytest.mark.parametrize("largest", [2000, 20_000])
def test_a_disk_that_is_full_half_way_through_a_file(largest, disturbed, workplaces, tmp_path):
    """The system itself cuts every file: also those that are written by no line of Python."""
    place, whole, _ = workplaces["run"]
    shutil.copytree(place, tmp_path / "r")
    answer = disturbed(COMMANDS["run"], tmp_path / "r", largest=largest)
    assert answer["code"] == 1
    is_clear(answer, largest)
    ends_as_if_undisturbed(disturbed, "run", tmp_path / "r", whole)


def test_the_earlier_result_survives_a_full_disk(disturbed, workplaces, tmp_path):
    """Other settings, and a disk that is full: all of the old result is there, or all of the new
    one."""
    place, _, _ = workplaces["run"]
    other = [*COMMANDS["run"], "--degrees", "1", "--no-overlays"]
    shutil.copytree(place, tmp_path / "old")
    assert disturbed(COMMANDS["run"], tmp_path / "old")["code"] == 0
    shutil.copytree(tmp_path / "old", tmp_path / "new")
    made = disturbed(other, tmp_path / "new")
    assert made["code"] == 0

    def data(folder):
        return {
            name: (folder / "results/folder/photos" / name).read_bytes() for name in ("scores.csv", "anomaly_maps.npy")
        }

    wanted = data(tmp_path / "old"), data(tmp_path / "new")
    assert wanted[0] != wanted[1]
    seen = set()
    for step in steps(made["steps"], 8):
        shutil.copytree(tmp_path / "old", tmp_path / "r")
        answer = disturbed(other, tmp_path / "r", step=step, errno=errno.ENOSPC)
        is_clear(answer, step)
        seen.add(wanted.index(data(tmp_path / "r")))
        shutil.rmtree(tmp_path / "r")
    assert 0 in seen


def test_a_clock_that_was_set_back_changes_nothing(disturbed, workplaces, tmp_path):
    """Whatever is there comes from the future, and the pictures that replace others from the past: contents decide."""
    place, whole, _ = workplaces["run"]
    shutil.copytree(place, tmp_path / "r")
    assert disturbed(COMMANDS["run"], tmp_path / "r")["code"] == 0
    for path in (tmp_path / "r").rglob("*"):
        os.utime(path, (4e9, 4e9))
    answer = disturbed(COMMANDS["run"], tmp_path / "r")
    assert "finished before" in answer["said"]
    assert outputs(tmp_path / "r") == whole
    first, last = (tmp_path / "r/photos" / name for name in ("0.png", "3.png"))
    first.write_bytes(last.read_bytes())
    os.utime(first, (1e9, 1e9))
    answer = disturbed(COMMANDS["run"], tmp_path / "r")
    assert answer["code"] == 0
    assert "finished before" not in answer["said"]
    name = "results/folder/photos/scores.csv"
    assert outputs(tmp_path / "r")[name] != whole[name]


def test_two_processes_with_one_out_and_one_cache(disturbed, workplaces, tmp_path):
    """Started together: both end well, and what is there is what one alone leaves."""
    place, whole, _ = workplaces["run"]
    for n in range(2):
        shutil.copytree(place, tmp_path / str(n))
        answer = disturbed(COMMANDS["run"], tmp_path / str(n), times=2)
        assert answer["code"] == 0, answer["said"]
        assert outputs(tmp_path / str(n)) == whole
