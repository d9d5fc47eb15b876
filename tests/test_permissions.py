"""What a user who may not read or write a place is told, and that nothing is lost of what is there."""

import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from musc.backbones import fetch
from musc.backbones.registry import BACKBONES
from musc.datasets import load_category
from musc.results.folders import replacing
from musc.scoring.roi import mask_files

NOBODY = 65534


@pytest.fixture
def place():
    """A folder that any user may enter."""
    with tempfile.TemporaryDirectory(dir="/tmp" if os.path.isdir("/tmp") else None) as name:
        os.chmod(name, 0o777)
        yield Path(name)


def as_user(function):
    """What `function` returns or says, in a process that has no more rights than a user has."""
    if not hasattr(os, "fork"):
        pytest.skip("needs fork and users")
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        if os.getuid() == 0:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
        try:
            said = str(function())
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        os.write(writing, said.encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as answer:
        said = answer.read()
    os.waitpid(pid, 0)
    return said


def picture(path, value=100):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8), value, np.uint8)).save(path)


def test_a_result_that_may_not_be_changed_stays_as_it_is(place):
    (place / "result").mkdir()
    (place / "result/notes.txt").write_text("mine")
    os.chmod(place / "result", 0o555)

    def replace():
        with replacing(place / "result", ["scores.csv"]) as new:
            (new / "scores.csv").write_text("new")

    assert "PermissionError" in as_user(replace)
    assert [p.relative_to(place).as_posix() for p in place.rglob("*")] == ["result", "result/notes.txt"]


def test_what_another_user_left_in_a_result_is_not_lost(place):
    if os.getuid():
        pytest.skip("needs two users: run as root")
    (place / "result/theirs").mkdir(parents=True)
    (place / "result/theirs/notes.txt").write_text("mine")
    os.chown(place / "result", NOBODY, NOBODY)
    os.chmod(place / "result", 0o1777)
    os.chmod(place, 0o777)
    os.chown(place / "result", 0, 0)
    os.chown(place, NOBODY, NOBODY)

    def replace():
        with replacing(place / "result", ["scores.csv"]) as new:
            (new / "scores.csv").write_text("new")

    for _ in range(2):  # what is left of the first time is in nobody's way
        assert as_user(replace) == "None"
        assert (place / "result/scores.csv").read_text() == "new"
        os.chmod(place / "result", 0o777)
    assert [p.read_text() for p in place.rglob("notes.txt")] == ["mine"]


def test_masks_that_may_not_be_listed_are_named(place):
    for name in ("good/0", "good/1", "spot/0"):
        picture(place / f"part/test/{name}.png")
    picture(place / "part/ground_truth/spot/0_mask.png", 255)
    os.chmod(place / "part/ground_truth", 0)
    try:
        said = as_user(lambda: load_category("mvtec_ad", place, "part").skipped)
    finally:
        os.chmod(place / "part/ground_truth", 0o755)
    assert "ground_truth cannot be listed, permission denied" in said


def test_weights_that_may_not_be_read(place):
    safetensors.torch.save_file({"a": torch.zeros(1)}, place / "w.safetensors")
    os.chmod(place / "w.safetensors", 0)
    said = as_user(lambda: fetch.locate(BACKBONES["procedural"], place / "w.safetensors"))
    assert said.startswith("WeightsError")
    assert "permission denied: allow reading it" in said


def test_the_home_of_another_user_holds_no_weights(place, monkeypatch):
    (place / "home").mkdir(mode=0)
    monkeypatch.setenv("MUSC_WEIGHTS", str(place / "home/.cache/musc/weights"))
    assert as_user(lambda: fetch.present(BACKBONES["focus_vits14"])) == "None"


def test_a_folder_of_regions_that_may_not_be_listed(place):
    picture(place / "in/0.png")
    (place / "roi").mkdir(mode=0)
    samples = load_category("folder", place / "in").samples
    said = as_user(lambda: mask_files(str(place / "roi"), samples))
    assert "cannot be listed, permission denied" in said
    assert said.startswith("DataError")
