"""Damaged files that are no images: class tokens, weights, settings, results. Nothing but our errors, soon, in little
memory."""

import dataclasses
import io
import json
import os
import pickle
import time
import tracemalloc

import numpy as np
import pytest
import torch
from safetensors.torch import save

from musc.backbones.weights import read_state_dict
from musc.config import MuScConfig
from musc.errors import ConfigError, MuscError
from musc.plugin.class_tokens import read_class_tokens
from musc.results import MuScResult

MUTATIONS = int(os.environ.get("MUSC_MUTATIONS", "250"))  # a nightly run sets thousands
SECONDS, BYTES = 5, 64 << 20
TOKENS = np.random.default_rng(0).normal(size=(6, 8)).astype(np.float32)
PATHS = np.array([f"{n}.png" for n in range(6)])


def written(write):
    buffer = io.BytesIO()
    write(buffer)
    return buffer.getvalue()


def torch_file(**options):
    weights = {"blocks.0.weight": torch.ones(8, 8), "norm.bias": torch.zeros(8), "half": torch.ones(4).half()}
    return written(lambda file: torch.save({"state_dict": weights, "epoch": 3}, file, **options))


CLASS_TOKENS = {
    "a.npy": written(lambda file: np.save(file, TOKENS)),
    "b.npz": written(lambda file: np.savez(file, class_tokens=TOKENS, paths=PATHS)),
    "c.npz": written(lambda file: np.savez_compressed(file, cup=TOKENS, lid=TOKENS[:3])),
    "d.dat": pickle.dumps({"mvtec/cup": TOKENS, "mvtec/lid": list(TOKENS)}, protocol=2),
    "e.dat": pickle.dumps({"cup": TOKENS, "lid": TOKENS[:3]}, protocol=5),
}
WEIGHTS = {
    "a.safetensors": save({"a.weight": torch.ones(8, 8), "b": torch.arange(5)}, metadata={"format": "pt"}),
    "b.pt": torch_file(),
    "c.pth": torch_file(_use_new_zipfile_serialization=False),
}


def damaged(data, rng):
    """Cut, with bytes written over, a part left out or repeated, or a number made large."""
    data = bytearray(data)
    for _ in range(rng.integers(1, 4)):
        at = int(rng.integers(len(data)))
        kind = rng.integers(6)
        if kind == 0:
            del data[max(at, 1) :]
        elif kind == 1:
            del data[at : at + int(rng.integers(1, 9))]
            data = data or bytearray(b"\0")
        elif kind == 2:
            data[at:at] = data[at : at + 20]
        elif kind == 3:
            data[at : at + 4] = b"\xff\xff\xff\x7f"
        else:
            data[at] = int(rng.integers(256))
    return bytes(data)


def refusal(read, path):
    """The text of our error; None where the file was read."""
    try:
        read(path)
    except MuscError as error:
        return str(error)
    return None


def only_our_errors(name, content, read, tmp_path, mutations=MUTATIONS):
    """How many of the mutations were refused; the others were read."""
    rng, refused, path = np.random.default_rng(len(content)), 0, tmp_path / name
    tracemalloc.start()
    try:
        for n in range(mutations):
            path.write_bytes(damaged(content, rng))
            tracemalloc.reset_peak()
            before, begun = tracemalloc.get_traced_memory()[0], time.perf_counter()
            said = refusal(read, path)
            refused += said is not None
            assert said is None or path.stem in said, (n, said)
            assert time.perf_counter() - begun < SECONDS, n
            assert tracemalloc.get_traced_memory()[1] - before < BYTES, n
    finally:
        tracemalloc.stop()
    return refused


@pytest.mark.parametrize("name", CLASS_TOKENS)
def test_class_tokens(name, tmp_path):
    (tmp_path / name).write_bytes(CLASS_TOKENS[name])
    assert read_class_tokens(tmp_path / name)
    assert only_our_errors(name, CLASS_TOKENS[name], read_class_tokens, tmp_path) > MUTATIONS / 5


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights(name, tmp_path):
    (tmp_path / name).write_bytes(WEIGHTS[name])
    assert read_state_dict(tmp_path / name)
    assert only_our_errors(name, WEIGHTS[name], read_state_dict, tmp_path) > MUTATIONS / 5


def test_results(tmp_path):
    scores, maps = np.float32([0.1, 1]), np.zeros((2, 4, 4), np.float32)
    names, labels, defects = ("0.png", "1.png"), np.array([0, 1]), ("good", "hole")
    result = MuScResult("toy", "cup", names, scores, scores, maps, TOKENS[:2], labels, defects, MuScConfig())
    folder = result.save(tmp_path / "damaged")
    for name in ("result.json", "scores.csv", "anomaly_maps.npy", "class_tokens.npy"):
        content = (folder / name).read_bytes()

        only_our_errors(name, content, read_result, folder, MUTATIONS // 4)
        (folder / name).write_bytes(content)


def read_result(path):
    try:
        MuScResult.load(path.parent)
    except MuscError as error:  # names the folder
        raise type(error)(f"{path.stem}: {error}") from error


WRONG = [None, True, -1, 0, 2**70, 1.5, float("nan"), float("inf"), "", "x", "1", [], [1], [[1]], {}, ["a"], [None]]


def test_settings_of_any_kind_are_taken_or_named():
    """Every setting with every odd value, then several at once: ConfigError, or a configuration that survives JSON."""
    names = [field.name for field in dataclasses.fields(MuScConfig)]
    rng = np.random.default_rng(0)
    cases = [{name: value} for name in names for value in WRONG]
    cases += [
        {str(name): WRONG[rng.integers(len(WRONG))] for name in rng.choice([*names, "other"], 3)}
        for _ in range(MUTATIONS)
    ]
    taken = 0
    for case in cases:
        try:
            config = MuScConfig.from_dict({**MuScConfig().to_dict(), **case})
        except ConfigError:
            continue
        taken += 1
        again = MuScConfig.from_dict(json.loads(json.dumps(config.to_dict())))
        assert again == config or any(value != value for value in case.values())
    assert 0 < taken < len(cases)
