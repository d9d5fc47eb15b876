"""Commands that README and the book print: every one is understood, and README's run, one after the other."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from musc import cli

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "book").rglob("*.md")), *sorted((ROOT / "notebooks").glob("*.py"))]
COMMAND = re.compile(
    r"(?:^(?:# )?|`)(musc (?:run|score|evaluate|compare|reproduce|rscin|datasets|backbones)\b[^`\n]*)", re.M
)


def commands(page):
    """What a reader would type: without the comment behind it; in prose, what stands between backticks."""
    found = [shlex.split(line, comments=True) for line in COMMAND.findall(page.read_text(encoding="utf-8"))]
    return [words for words in found if len(words) > 2]  # a lone `musc run` in a sentence names the command


@pytest.mark.parametrize("page", [p for p in PAGES if commands(p)], ids=lambda p: p.relative_to(ROOT).as_posix())
def test_every_printed_command_is_understood(page):
    for words in commands(page):
        if "METHOD" not in words and words[2:] != ["folder"]:
            cli.build_parser().parse_args(words[1:])


@pytest.fixture
def reader(tmp_path, monkeypatch, tiny_backbone):
    """The folders that README names, filled with small photographs, and a small network in place of every other."""
    rng = np.random.default_rng(0)

    def photograph(path, spot=False):
        pixels = np.linspace(60, 200, 80)[:, None, None] + rng.normal(0, 4, (80, 80, 3))
        if spot:
            pixels[30:50, 30:50] = 10
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)

    product = tmp_path / "mvtec_anomaly_detection/bottle"
    for i in range(4):
        for folder in ("photos", "good", "scans", product / "test/good", product / "train/good"):
            photograph(tmp_path / folder / f"{i}.png")
    for path in ("photos/4.png", "scans/4.png", product / "test/hole/0.png", "new.png"):
        photograph(tmp_path / path, spot=True)
    mask = np.zeros((80, 80), np.uint8)
    mask[30:50, 30:50] = 255
    (product / "ground_truth/hole").mkdir(parents=True)
    Image.fromarray(mask).save(product / "ground_truth/hole/0_mask.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("musc.pipeline.load_backbone", lambda *_, **__: tiny_backbone)
    monkeypatch.setattr("musc.pipeline.resolve_device", lambda name: torch.device("cpu"))
    return tmp_path


def test_readme_is_a_session_that_works(reader, capsys):
    session = commands(ROOT / "README.md")
    assert len(session) >= 8
    for words in session:
        assert cli.main(words[1:]) == 0, (words, capsys.readouterr().err)
    said = capsys.readouterr().out
    assert "new.png" in said
    assert (reader / "results/folder/photos/overlays/4.png.png").exists()
    assert {p.name for p in reader.iterdir()} - {"results"} == {
        "photos", "good", "scans", "new.png", "mvtec_anomaly_detection",
    }  # fmt: skip
    assert [p.name for p in (reader / "photos").iterdir() if p.suffix != ".png"] == []


def test_readme_s_python(reader):
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)
    names: dict = {}
    exec(block, names)
    assert len(names["result"].paths) == 5
