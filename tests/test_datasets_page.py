"""The page on data sets: folders as it prints them, made of tiny pictures, are read as it says."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from musc import cli

PAGE = (Path(__file__).parents[1] / "book" / "datasets.md").read_text(encoding="utf-8")
# A tree of the page, in the words of `musc datasets`: images, normal, anomalous, unlabeled, masks, normal training.
READ = {
    "mvtec_anomaly_detection": "mvtec_ad",
    "VisA": "visa",
    "BTech_Dataset_transformed": "btad",
    "tiles": "mvtec_ad",
    "DAGM": "mvtec_ad",
    "KSDD2": "mvtec_ad",
    "audiojack": "folder",
    "test_public": "folder",
}


def picture(path):
    """A mask where the name or the folder says so, else noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = re.search(r"mask|label|_gt|ground_truth", "/".join(path.parts[-3:]).lower()) or (
        path.suffix == ".png" and path.with_suffix(".jpg").exists()
    )
    rng = np.random.default_rng(len(str(path)))
    pixels = np.zeros((24, 24), np.uint8) if mask else rng.integers(0, 255, (24, 24, 3), dtype=np.uint8)
    if mask:
        pixels[4:9, 4:9] = 255
    Image.fromarray(pixels).save(path)


def tree(text, root):
    """Make the files of one of the page's drawings: a path a line."""
    rows = []
    for line in text.strip().splitlines():
        path = root / line.split("#")[0].strip()
        if path.suffix == ".csv":
            rows.append(path)
        elif path.suffix:
            picture(path)
    for path in rows:
        path.parent.mkdir(parents=True)
        lines = ["object,split,label,image,mask"]
        for image in sorted((root / "VisA" / "candle").rglob("*.JPG")):
            where, normal = image.relative_to(root / "VisA"), "Normal" in image.parts
            mask = "" if normal else f"candle/Data/Masks/Anomaly/{image.stem}.png"
            split = "train" if image.stem == "0000" and normal else "test"
            lines.append(f"candle,{split},{'normal' if normal else 'anomaly'},{where.as_posix()},{mask}")
        path.write_text("\n".join(lines) + "\n")


BLOCKS = re.findall(r"```text\n(.*?)```", PAGE, re.S)  # a drawing, and what is said of it, in turn
DRAWN = list(zip(BLOCKS[::2], BLOCKS[1::2], strict=True))


@pytest.mark.parametrize("name", READ)
def test_a_tree_of_the_page_is_read_as_the_page_says(name, tmp_path, monkeypatch, capsys):
    ((drawing, said),) = [(d, s) for d, s in DRAWN if s.splitlines()[0].replace("/", " ").endswith(f" {name}")]
    tree(drawing, tmp_path)
    monkeypatch.chdir(tmp_path)
    command, *lines = said.strip().splitlines()
    assert cli.main(command.removeprefix("$ musc ").split()) == 0
    out = capsys.readouterr().out
    assert out.split()[0] == READ[name]
    assert lines == out.splitlines()[:1]


def test_every_tree_is_tried():
    assert len(DRAWN) == len(READ)
