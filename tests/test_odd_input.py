"""Odd but possible input of every kind: the right result, or one line that names it and the remedy."""

import importlib.util
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from musc import cli, config
from musc.backbones import resolve_device
from musc.cli.options import place
from musc.errors import ConfigError
from musc.results.thresholds import robust


def unchecked(module):
    """A copy of a module as users import it: the suite's type checker would refuse wrong kinds before it does."""
    spec = importlib.util.spec_from_file_location(f"unchecked_{module.__name__.replace('.', '_')}", module.__file__)
    sys.modules[spec.name] = copy = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(copy)
    return copy


@pytest.fixture
def musc(capsys):
    def call(*words):
        try:
            code = cli.main([str(w) for w in words])
        except SystemExit as leaving:
            code = leaving.code
        captured = capsys.readouterr()
        assert "fault of the program" not in captured.err
        return code, captured.out, captured.err

    return call


@pytest.mark.parametrize(
    "words",
    [
        ("run", ""), ("run", ".", "--out", ""), ("run", ".", "--cache", " "), ("run", ".", "--roi", ""),
        ("run", ".", "--reference-images", ""), ("run", ".", "--layout", ""), ("score", "", "--against", "."),
        ("watch", ".", "--against", ""), ("rscin", "", "--class-tokens", "t.npz"), ("report", ""),
    ],
)  # fmt: skip
def test_an_unset_variable_is_not_the_working_folder(musc, words, tmp_path, monkeypatch):
    """`musc run "$PHOTOS"` without PHOTOS must not score whatever lies in the working folder."""
    monkeypatch.chdir(tmp_path)
    code, _, said = musc(*words)
    assert code in (1, 2)
    assert "empty" in said or "layout = ''" in said
    assert not list(tmp_path.iterdir())


def test_home_folder_that_the_shell_left(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert place("~/out") == tmp_path / "out"
    assert place("~no such user/x") == Path("~no such user/x")


@pytest.mark.parametrize("words", [("--max-memory", "9" * 400), ("--seed", 2**64), ("--device", "meta")])
def test_values_beyond_what_can_be(musc, words, tmp_path):
    code, _, said = musc("run", "synthetic", "--category", "tile", *words, "--out", tmp_path / "out")
    assert code in (1, 2)
    assert str(words[0])[2:].replace("-", "_") in said.replace("-", "_")


@pytest.mark.parametrize(
    ("given", "plain"),
    [
        ({"batch_size": np.int64(4)}, 4), ({"seed": np.int32(3)}, 3), ({"tile_overlap": np.float32(0.25)}, 0.25),
        ({"position_window": np.float32(3)}, 3.0), ({"full_scale": np.uint16(4095)}, 4095),
        ({"degrees": np.array([1, 3])}, (1, 3)), ({"windows": [np.float64(2), math.inf]}, (2, math.inf)),
        ({"roi": Path("mask.png")}, "mask.png"), ({"device": torch.device("cuda", 1)}, "cuda:1"),
    ],
)  # fmt: skip
def test_settings_are_plain(given, plain):
    """A result writes its settings as JSON after all the work: what JSON does not know must not get so far."""
    MuScConfig = unchecked(config).MuScConfig
    made = MuScConfig(**given)
    (name,) = given
    assert getattr(made, name) == plain
    assert MuScConfig.from_dict(json.loads(json.dumps(made.to_dict()))) == made


@pytest.mark.parametrize(
    "given",
    [
        {"degrees": 3}, {"degrees": "1,3"}, {"degrees": (1, 1)}, {"windows": None}, {"windows": "2,3"}, {"windows": 2},
        {"interval": None}, {"interval": ("a", "b")}, {"interval": (0.3,)}, {"batch_size": True}, {"stages": "1,2"},
        {"tile_overlap": "x"}, {"full_scale": "4095"}, {"roi": np.ones((2, 2))}, {"device": None}, {"seed": 2**64},
    ],
)  # fmt: skip
def test_settings_of_another_kind(given):
    with pytest.raises(ConfigError, match=f"^{next(iter(given))} = "):
        unchecked(config).MuScConfig(**given)


def test_a_device_that_holds_no_numbers():
    with pytest.raises(ConfigError, match="device = 'meta' cannot be used here"):
        resolve_device("meta")


@pytest.mark.parametrize("scores", [[0.0] * 6 + [1.0], [0.0] * 50 + [1.0, 1.0]])
def test_threshold_of_copies(scores):
    """Copies score 0: the densest place lies below all scores, and no spread can be told."""
    found = robust(scores)
    assert found.false_alarm_rate is None
    assert found.value > 1
