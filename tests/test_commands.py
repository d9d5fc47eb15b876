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
CHOICES = {"METHOD", "NAME", "DATA"}  # one of several words


def commands(page):
    """What a reader would type: without the comment behind it; in prose, what stands between backticks."""
    found = [shlex.split(line, comments=True) for line in COMMAND.findall(page.read_text(encoding="utf-8"))]
    return [words for words in found if len(words) > 2]  # a lone `musc run` in a sentence names the command


@pytest.mark.parametrize("page", [p for p in PAGES if commands(p)], ids=lambda p: p.relative_to(ROOT).as_posix())
def test_every_printed_command_is_understood(page):
    for words in commands(page):
        if not CHOICES & set(words) and words[2:] != ["folder"]:
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
        # all 19 drawn products take minutes, and `make book` runs them
        few = ["--categories", "bottle_top"] if words[1:3] == ["evaluate", "synthetic"] else []
        assert cli.main(words[1:] + few) == 0, (words, capsys.readouterr().err)
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


APART = {"book/datasets.md": "needs public data sets; test_datasets_page.py reads trees like theirs",
         "book/distributed.md": "needs a scheduler; test_distributed.py has one"}  # fmt: skip
PLACES = {"NEW": "new.png", "new/": "new.png", "RESULT": "results/folder/photographs",
          "SCORES.csv": "patchcore_bottle.csv", "CLASS_TOKENS": "results/mvtec_ad/bottle"}  # fmt: skip
SESSION = [  # what makes what another page's command needs comes first
    "notebooks/07_your_own_images.py", "book/faq.md", "notebooks/08_when_it_fails.py", "notebooks/09_few_shot.py",
    "book/plugin.md",
]  # fmt: skip


def why_not(words):
    """Why a command of the book is understood here (above) and not run; None where it is."""
    if words[1] == "reproduce":
        return "needs the paper's data sets and weights; its profile demo is run in test_reproduce.py"
    if words[1:] == ["evaluate", "synthetic"]:
        return "takes minutes; `make book` runs it"
    if words[1] == "watch":
        return "goes on until it is ended; test_watch.py runs it"
    if words[1] == "weights":
        return "needs a network; test_fetch.py has one of its own"
    return "names a choice, and no command" if CHOICES & set(words) or words[2:] == ["folder"] else None


def test_the_book_s_commands_run(reader, capsys):
    """In the order of `SESSION`: one command may need what another has made."""
    (reader / "photographs").symlink_to(reader / "photos")
    (reader / "normal").symlink_to(reader / "good")
    (reader / "datasets").mkdir()
    (reader / "datasets/MVTecAD").symlink_to(reader / "mvtec_anomaly_detection")
    names = [p.relative_to(reader / "mvtec_anomaly_detection/bottle") for p in sorted(reader.rglob("test/*/*.png"))]
    white = np.zeros((80, 80), np.uint8)
    white[:, 20:] = 255
    Image.fromarray(white).save(reader / "mask.png")
    rows = [f"{name.as_posix()},0.{n}" for n, name in enumerate(names)]
    (reader / "patchcore_bottle.csv").write_text("\n".join(["path,score", *rows]) + "\n")
    pages = [ROOT / page for page in SESSION]
    printed = [words for page in pages for words in commands(page) if why_not(words) is None]
    # results first, then what reads them; a result of tiles takes no new image, and the next run's is one without
    for words in sorted(printed, key=lambda words: ("--tiles" not in words, words[1] in ("score", "rscin", "export"))):
        real = [PLACES.get(word, word) for word in words[1:]]
        assert cli.main(real) == 0, (words, capsys.readouterr().err)
    assert "anomalous" in capsys.readouterr().out


def test_no_command_of_the_book_is_forgotten():
    runs = {p.relative_to(ROOT).as_posix(): [w for w in commands(p) if why_not(w) is None] for p in PAGES[1:]}
    runs = {page: found for page, found in runs.items() if page not in APART}
    told = {tuple(w) for page in SESSION for w in runs[page]}
    assert {tuple(w) for found in runs.values() for w in found} <= told
