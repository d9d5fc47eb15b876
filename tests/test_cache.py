"""`musc cache`: what is kept, and what goes first."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from musc import features
from musc.cli import main
from musc.errors import ConfigError
from musc.features import extract
from musc.pipeline import MuSc
from musc.pruning import blocks, cached, prune, using


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
    assert [(k.name, k.files, k.size, k.used) for k in cached(tmp_path)] == [
        ("a", 2, 2000, 10_000),
        ("b", 3, 3000, 9990),
    ]
    assert prune(tmp_path, 3999) == (2, 0, 2000)
    assert left(tmp_path) == ["a/0.safetensors", "b/0.safetensors", "b/2.safetensors"]
    assert prune(tmp_path, 3000) == (0, 0, 0)
    assert prune(tmp_path, 0) == (3, 0, 3000)
    assert (tmp_path / "a" / "notes.txt").exists()


def test_a_use_counts(photos, tiny_config, tiny_backbone, tmp_path):
    musc = MuSc(tiny_config, backbone=tiny_backbone, cache=tmp_path)
    first = musc.run(photos)
    (kept,) = cached(tmp_path)
    assert kept.files == len(first)
    for path in tmp_path.rglob("*.safetensors"):
        os.utime(path, (1, 1))
    again = musc.run(photos)
    assert cached(tmp_path)[0].used > 1
    torch.testing.assert_close(again.image_scores, first.image_scores)


def given_up(folder, run, age):
    """The blocks of a run, 1500 bytes."""
    for name, size in (("stage0/distances-0-1.npy", 1000), ("stage1/scores-0.npy", 500)):
        path = folder / "blocks" / run / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(size))
        os.utime(path, (10_000 - age, 10_000 - age))
    return folder / "blocks" / run


def test_blocks_of_runs_that_were_given_up_go_by_age_and_whole(tmp_path, capsys):
    filled(tmp_path, "a", [0, 20, 40])
    old, new = given_up(tmp_path, "old", 30), given_up(tmp_path, "new", 10)
    assert [(k.name, k.files, k.size, k.used, k.running) for k in blocks(tmp_path)] == [
        ("blocks/new", 2, 1500, 9990, False),
        ("blocks/old", 2, 1500, 9970, False),
    ]
    assert [k.name for k in cached(tmp_path)] == ["a"]
    assert prune(tmp_path, 4999) == (1, 1, 2500)
    assert (old.exists(), new.exists(), left(tmp_path)) == (False, True, ["a/0.safetensors", "a/1.safetensors"])
    with using(new):
        assert main(["cache", "--cache", str(tmp_path)]) == 0
        said = capsys.readouterr().out
        assert "blocks/new                                         3       0.0" in said  # with the sign of its use
        assert ", goes on" in said
        assert "2 images, blocks of 1 runs, 0.0 MiB" in said
        assert prune(tmp_path, 0) == (2, 0, 2000)
    assert new.exists()
    assert main(["cache", "prune", "--max-size", "0", "--cache", str(tmp_path)]) == 0
    assert "removed the tokens of 0 images and the blocks of 1 runs, 0.0 MiB" in capsys.readouterr().out
    assert list((tmp_path / "blocks").iterdir()) == []


def test_a_run_that_was_killed_is_no_longer_at_work(tmp_path):
    run = given_up(tmp_path, "run", 0)
    code = "import os, sys; from pathlib import Path; from musc.pruning import using\n"
    code += "with using(Path(sys.argv[1])): os._exit(9)"
    subprocess.run([sys.executable, "-c", code, run], cwd=Path(__file__).parents[1], check=False)
    assert len(list(run.glob(".running-*"))) == 1
    assert prune(tmp_path, 0) == (0, 1, 1500)
    assert not run.exists()


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
