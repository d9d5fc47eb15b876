"""kill -9 at any moment of a command: the same command, given again, ends with the bytes of an undisturbed run."""

import random
import shutil
import signal
import subprocess
import sys
import time

import pytest

TINY = ["--backbone", "deit_tiny_patch16_224", "--weights", "random", "--image-size", "64", "--stages", "1,2"]
TINY += ["--device", "cpu", "--workers", "0", "--batch-size", "1"]
COMMANDS = {
    "run": ["run", "photos", *TINY],
    "evaluate": ["evaluate", "synthetic", "--category", "tile,leather", *TINY, "--no-overlays"],
    "score": ["score", "new", "--against", "results/folder/photos", "--out", "scored"],
    "reproduce": ["reproduce", "table_5", "--category", "tile", "--images", "4", *TINY[:4], "--image-size", "64"],
}
OUTPUTS = ("*.csv", "*.npy", "*.png")


def start(command, folder):
    words = [sys.executable, "-m", "musc", *COMMANDS[command]]
    return subprocess.Popen(words, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def outputs(folder):
    """Every file that a command leaves beside its cache, by name; tables of costs hold times and are none."""
    found = [p for pattern in OUTPUTS for p in folder.rglob(pattern)]
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in found if ".cache" not in p.parts}


def killed(command, workplace, place, moments):
    """What is there after the command was killed at these moments (in seconds), each time started again, and ended."""
    shutil.copytree(workplace, place)
    for moment in moments:
        process = start(command, place)
        time.sleep(moment)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert start(command, place).wait() == 0
    return outputs(place)


@pytest.fixture
def workplace(photos, tmp_path):
    """Six photographs; for `score`, one of them new and the others scored before."""
    place = tmp_path / "work"
    shutil.copytree(photos, place / "photos")
    (place / "new").mkdir()
    shutil.move(place / "photos/0.png", place / "new/0.png")
    return place


DIES = """\
import os, signal, sys
from musc.cli import main

replace = os.replace

def dies(source, target):
    if str(target).endswith(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)

os.replace = dies
main(sys.argv[2:])
"""


@pytest.mark.parametrize("target", ["overlays/3.png.png", "masks/1.png.png", "overview.png", ".safetensors"])
def test_a_run_killed_before_a_file_is_in_place_leaves_nothing_behind(target, workplace, tmp_path):
    """The moment between the last byte of a file and its name, which a clock hits once in a hundred times."""
    done = subprocess.run([sys.executable, "-c", DIES, target, *COMMANDS["run"]], cwd=workplace, check=False)
    assert done.returncode == -signal.SIGKILL
    assert list(workplace.rglob(".*.partial"))
    assert start("run", workplace).wait() == 0
    left = {p.relative_to(workplace).as_posix() for p in workplace.rglob(".*") if p.name != ".cache"}
    assert left == set()


@pytest.mark.parametrize("command", ["run"])
def test_a_run_killed_twice_ends_as_one_that_was_not(command, workplace, tmp_path):
    begun = time.perf_counter()
    whole = killed(command, workplace, tmp_path / "whole", [])
    length = time.perf_counter() - begun
    assert killed(command, workplace, tmp_path / "killed", [0.75 * length, 0.95 * length]) == whole


@pytest.mark.nightly
@pytest.mark.parametrize("command", COMMANDS)
def test_fifty_kills_at_random_moments(command, workplace, tmp_path):
    if command == "score":
        assert start("run", workplace).wait() == 0
    begun = time.perf_counter()
    whole = killed(command, workplace, tmp_path / "whole", [])
    length = time.perf_counter() - begun
    rng = random.Random(0)
    for n in range(10):  # five kills each
        moments = [length * rng.uniform(0.3, 1.1) for _ in range(5)]
        assert killed(command, workplace, tmp_path / f"killed{n}", moments) == whole
        shutil.rmtree(tmp_path / f"killed{n}")
