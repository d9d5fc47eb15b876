"""`musc cache`: what is kept, and what goes first."""

import os

import pytest
import torch

from musc import features
from musc.cli import main
from musc.errors import ConfigError
from musc.features import extract
from musc.pipeline import MuSc
from musc.pruning import cached, prune


def filled(folder, network, ages):
    for n, age in enumerate(ages):
        path = folder / network / f"{n}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(1000))
        os.utime(path, (10_000 - age, 10_000 - age))


def left(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.safetensors"))


def test_what_was_not_used_for_the_longest_time_goes_first(tmp_path):
    filled(tmp_path, "a", [0, 30])
    filled(tmp_path, "b", [10, 40, 20])
    (tmp_path / "a" / "notes.txt").write_text("no tokens")
    assert [(k.name, k.images, k.size, k.used) for k in cached(tmp_path)] == [
        ("a", 2, 2000, 10_000),
        ("b", 3, 3000, 9990),
    ]
    assert prune(tmp_path, 3999) == (2, 2000)
    assert left(tmp_path) == ["a/0.safetensors", "b/0.safetensors", "b/2.safetensors"]
    assert prune(tmp_path, 3000) == (0, 0)
    assert prune(tmp_path, 0) == (3, 3000)
    assert (tmp_path / "a" / "notes.txt").exists()


def test_a_use_counts(photos, tiny_config, tiny_backbone, tmp_path):
    musc = MuSc(tiny_config, backbone=tiny_backbone, cache=tmp_path)
    first = musc.run(photos)
    (kept,) = cached(tmp_path)
    assert kept.images == len(first)
    for path in tmp_path.rglob("*.safetensors"):
        os.utime(path, (1, 1))
    again = musc.run(photos)
    assert cached(tmp_path)[0].used > 1
    torch.testing.assert_close(again.image_scores, first.image_scores)


def test_the_command(tmp_path, capsys):
    filled(tmp_path, "procedural-00", [0, 30])
    assert main(["cache", "--cache", str(tmp_path)]) == 0
    assert "procedural-00                                      2       0.0" in capsys.readouterr().out
    assert main(["cache", "prune", "--max-size", "1kB", "--cache", str(tmp_path)]) == 0
    assert "removed the tokens of 1 images, 0.0 MiB" in capsys.readouterr().out
    assert left(tmp_path) == ["procedural-00/0.safetensors"]
    assert main(["cache", "prune", "--cache", str(tmp_path)]) == 1
    assert "prune wants --max-size" in capsys.readouterr().err
    assert main(["cache", "--cache", str(tmp_path / "none")]) == 1
    assert "there is no such folder" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["cache", "prune", "--max-size", "much"])


def test_tokens_that_memory_does_not_hold_lie_on_disk(tiny_backbone, monkeypatch, tmp_path):
    from musc.datasets import load_category

    samples = load_category("synthetic", name="tile", good=3, defects=1, size=64).samples
    expected = extract(samples, tiny_backbone, workers=0)
    got = extract(samples, tiny_backbone, workers=0, cache=tmp_path, max_bytes=10)
    for ours, theirs in zip(got.patch_tokens, expected.patch_tokens, strict=True):
        torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(got.summary(), expected.summary())
    assert got.patch_tokens[0].untyped_storage().filename  # a mapped file, and not memory
    assert not list(tmp_path.glob(".tokens-*"))
    monkeypatch.setattr(features.shutil, "disk_usage", lambda _: type("", (), {"free": 10})())
    with pytest.raises(ConfigError, match=r"the tokens of 4 images need 0.0 GiB, more than memory holds"):
        extract(samples, tiny_backbone, workers=0, cache=tmp_path, max_bytes=10)
