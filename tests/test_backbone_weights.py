"""Weights of backbones: files of every kind, what is wrong with bad ones, the hub, and the torchvision guard."""

import os
import shutil
import subprocess
import sys
import urllib.error
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from musc.backbones import BACKBONES, fetch, load_backbone
from musc.backbones.weights import fit, load_strictly, read_state_dict
from musc.errors import WeightsError

NAME = "deit_tiny_patch16_224"


@pytest.fixture(scope="module")
def trained():
    """A network at its native size, and its state as timm would save it (with a classifier)."""
    backbone = load_backbone(NAME, weights="random", image_size=224)
    return {**backbone.network.state_dict(), "head.weight": torch.zeros(1000, 192), "head.bias": torch.zeros(1000)}


class Program(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def as_program(state):
    """A TorchScript module with those parameters in float16 and OpenAI's three extra buffers."""
    root = Program()
    for key, value in state.items():
        *path, name = key.split(".")
        parent = root
        for step in path:
            if not hasattr(parent, step):
                parent.add_module(step, Program())
            parent = getattr(parent, step)
        parent.register_buffer(name, value.half() if value.is_floating_point() else value)
    return torch.jit.script(root)


# ------------------------------------------------------------------------------------------------ good files


@pytest.mark.parametrize("kind", ["safetensors", "pt", "old pth", "no suffix", "wrapped"])
def test_every_kind_of_file(trained, tmp_path, kind):
    path = tmp_path / "weights"
    if kind == "safetensors":
        save_file(trained, path := tmp_path / "w.safetensors")
    elif kind == "old pth":
        torch.save(trained, path := tmp_path / "w.pth", _use_new_zipfile_serialization=False)
    elif kind == "wrapped":
        torch.save({"model": {f"module.{k}": v for k, v in trained.items()}, "epoch": 3}, path)
    else:
        torch.save(trained, path := path.with_suffix(".pt" if kind == "pt" else ""))
    ours = load_backbone(NAME, weights=path)
    for key, value in ours.network.state_dict().items():
        torch.testing.assert_close(value, trained[key])


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # OpenAI publishes such archives all the same
def test_openai_archive(tmp_path):
    """A TorchScript archive in float16 gives its parameters, in float32; the text tower is left out."""
    spec = BACKBONES["ViT-B-32"]
    state = {"visual.conv1.weight": torch.randn(4, 3, 2, 2), "visual.transformer.resblocks.0.ln_1.bias": torch.randn(4),
             "token_embedding.weight": torch.randn(5, 4), "input_resolution": torch.tensor(224)}  # fmt: skip
    path = tmp_path / "ViT-B-32.pt"
    as_program(state).save(str(path))
    read = read_state_dict(path)
    assert read["visual.conv1.weight"].dtype == torch.float32
    torch.testing.assert_close(read["visual.conv1.weight"], state["visual.conv1.weight"].half().float())
    assert set(fit(read, spec, torch.nn.Module(), path)) == {"conv1.weight", "transformer.resblocks.0.ln_1.bias"}


class Evil(torch.nn.Module):
    """A program that would overwrite a file while its archive is loaded."""

    def __init__(self, target: str):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(2, 3))
        self.target = target

    @torch.jit.export
    def __getstate__(self) -> tuple[str, torch.Tensor, bool]:
        return self.target, self.weight, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[str, torch.Tensor, bool]):
        self.target = state[0]
        self.weight = state[1]
        self.training = state[2]
        torch.from_file(self.target, True, 8).fill_(88)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_program_in_a_weight_file_is_never_run(tmp_path):
    mine = tmp_path / "mine.bin"
    mine.write_bytes(bytes(range(64)))
    torch.jit.script(Evil(str(mine))).save(str(tmp_path / "evil.pt"))
    with pytest.raises(WeightsError, match="no named tensors"):
        read_state_dict(tmp_path / "evil.pt")
    assert mine.read_bytes() == bytes(range(64))


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_an_archive_that_asks_for_python_objects_is_refused(tmp_path):
    as_program({"weight": torch.ones(2)}).save(str(tmp_path / "good.pt"))
    with zipfile.ZipFile(tmp_path / "good.pt") as good, zipfile.ZipFile(tmp_path / "bad.pt", "w") as bad:
        for item in good.infolist():
            call = b"cposix\nsystem\n(S'touch " + str(tmp_path / "ran").encode() + b"'\ntR."
            bad.writestr(item.filename, call if item.filename.endswith("/data.pkl") else good.read(item))
    with pytest.raises(WeightsError, match=r"asks for posix\.system.*safetensors"):
        read_state_dict(tmp_path / "bad.pt")
    assert not (tmp_path / "ran").exists()


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_an_archive_that_is_cut_or_changed_gives_our_error_or_its_tensors(tmp_path):
    as_program({"a.weight": torch.ones(20), "b": torch.arange(5)}).save(str(tmp_path / "good.pt"))
    good = (tmp_path / "good.pt").read_bytes()
    rng, path, refused = np.random.default_rng(0), tmp_path / "bad.pt", 0
    for _ in range(200):
        data = bytearray(good)
        for at in rng.integers(len(data), size=4):
            data[at] = rng.integers(256)
        path.write_bytes(bytes(data[: rng.integers(len(data))] if rng.random() < 0.3 else data))
        try:
            assert all(t.numel() <= 40 for t in read_state_dict(path).values())
        except WeightsError:
            refused += 1
    assert refused > 50


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: {"teacher": {**{f"backbone.{k}": v for k, v in s.items()}, "head.mlp.0.weight": torch.ones(2)},
                   "student": {"module.cls_token": torch.zeros(1)}, "epoch": 3},
        lambda s: {"model_ema": s, "model": {k: v + 1 for k, v in s.items()}},
        lambda s: {"state_dict": {f"module.backbone.{k}": v for k, v in s.items()}},
        lambda s: {f"_orig_mod.{k}": v for k, v in s.items()},
        lambda s: {"model": {f"_orig_mod.model.{k}": v for k, v in s.items()}},
        lambda s: {"state_dict": {"model": s}},
    ],
)  # fmt: skip
def test_wrapped_checkpoints(wrap, tmp_path):
    state = {"cls_token": torch.ones(1, 1, 4), "blocks.0.norm1.weight": torch.full((4,), 2.0)}
    torch.save(wrap(state), tmp_path / "w.pth")
    read = read_state_dict(tmp_path / "w.pth")
    assert read.keys() == state.keys()
    assert all(torch.equal(read[key], state[key]) for key in state)


def test_half_precision_files_become_float32(trained, tmp_path):
    save_file({key: value.half() for key, value in trained.items()}, tmp_path / "half.safetensors")
    ours = load_backbone(NAME, weights=tmp_path / "half.safetensors")
    assert {p.dtype for p in ours.network.parameters()} == {torch.float32}


def test_weights_id_is_of_the_content(trained, tmp_path):
    save_file(trained, tmp_path / "a.safetensors")
    shutil.copy(tmp_path / "a.safetensors", tmp_path / "copy.safetensors")
    other = {**trained, "norm.bias": trained["norm.bias"] + 1}
    save_file(other, tmp_path / "b.safetensors")
    a, copy, b = (load_backbone(NAME, weights=tmp_path / f"{n}.safetensors").weights_id for n in ("a", "copy", "b"))
    assert a == copy != b


def test_dinov2s_own_file_is_taken(tmp_path):
    spec = BACKBONES["dinov2_vits14"]
    network = torch.nn.Linear(2, 2)
    assert "mask_token" not in fit({"mask_token": torch.zeros(1), "weight": torch.ones(2, 2)}, spec, network, tmp_path)


def test_swins_own_file_is_taken(tmp_path, monkeypatch):
    """Microsoft's keys put the patch merging at the end of a stage, timm's at the start of the next."""
    import dataclasses

    spec = dataclasses.replace(BACKBONES["swin_base"], name="small-swin", model="swin_tiny_patch4_window7_224")
    monkeypatch.setitem(BACKBONES, "small-swin", spec)
    trained = load_backbone("small-swin", weights="random", image_size=112)
    state = trained.network.state_dict()
    theirs = {}
    for key, value in state.items():
        for stage in (1, 2, 3):
            key = key.replace(f"layers.{stage}.downsample", f"layers.{stage - 1}.downsample")
        theirs[key] = value
    theirs["layers.0.blocks.1.attn_mask"] = torch.zeros(3)
    theirs["head.weight"] = torch.zeros(5, 768)
    torch.save({"model": theirs}, tmp_path / "swin.pth")
    loaded = load_backbone("small-swin", weights=tmp_path / "swin.pth", image_size=112).network.state_dict()
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[key], state[key]) for key in state)
    torch.save({"layers.9.relative_position_bias_table": torch.zeros(2)}, tmp_path / "odd.pth")
    with pytest.raises(WeightsError, match="not the weights of small-swin"):
        load_backbone("small-swin", weights=tmp_path / "odd.pth", image_size=112)


# ------------------------------------------------------------------------------------------------ bad files


def refused(path, said, name=NAME, **settings):
    with pytest.raises(WeightsError, match=said) as caught:
        load_backbone(name, weights=path, **settings)
    assert Path(path).name in str(caught.value)


def test_unreadable_files(trained, tmp_path):
    good = tmp_path / "good.safetensors"
    save_file(trained, good)
    torch.save(trained, tmp_path / "good.pt")
    for name, content, said in (
        ("empty.safetensors", b"", "empty"),
        ("empty.pt", b"", "empty"),
        ("page.pt", b"<!DOCTYPE html><html>not found</html>", "neither safetensors nor a torch file"),
        ("pointer.pt", b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git LFS pointer"),
        ("cut.safetensors", good.read_bytes()[:100_000], "damaged or incomplete"),
        ("cut.pt", (tmp_path / "good.pt").read_bytes()[:100_000], "damaged or incomplete"),
        ("garbage.pth", b"\x80\x02" + bytes(range(256)), "damaged"),
    ):
        (tmp_path / name).write_bytes(content)
        refused(tmp_path / name, said)
    refused(tmp_path / "none.safetensors", "does not exist")
    refused(tmp_path, "is a folder")


def test_code_in_a_file_is_not_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "sprung"),)

    torch.save({"weight": torch.zeros(1), "trap": Trap()}, tmp_path / "trap.pt")
    refused(tmp_path / "trap.pt", "not loaded for safety")
    assert not (tmp_path / "sprung").exists()


def test_not_a_number(trained, tmp_path):
    for bad in (float("nan"), float("inf")):
        weight = trained["blocks.3.mlp.fc1.weight"].clone()
        weight[5, 7] = bad
        save_file({**trained, "blocks.3.mlp.fc1.weight": weight}, tmp_path / "nan.safetensors")
        refused(tmp_path / "nan.safetensors", r"NaN or infinity in blocks\.3\.mlp\.fc1\.weight")


def test_weights_of_another_model(trained, tmp_path):
    path = tmp_path / "w.pt"
    torch.save({k: v for k, v in trained.items() if not k.startswith("blocks.11.")}, path)
    refused(path, r"missing: blocks\.11\.attn\.proj\.bias.* and 9 more")
    torch.save({**trained, "extra.weight": torch.zeros(1)}, path)
    refused(path, r"unknown: extra\.weight")
    torch.save({**trained, "norm.bias": torch.zeros(3)}, path)
    refused(path, r"norm\.bias \(3,\) instead of \(192,\)")
    torch.save({**trained, "pos_embed": torch.zeros(1, 1 + 24 * 24, 192)}, path)
    refused(path, "has 576 patches, and that of deit_tiny_patch16_224 has 14 x 14", image_size=64)
    torch.save({"text.weight": torch.zeros(1)}, path)
    refused(path, f"https://huggingface.co/timm/{NAME}.fb_in1k/resolve/main/model.safetensors")
    torch.save([1, 2], path)
    refused(path, "holds a list")
    torch.save({"epoch": 3}, path)
    refused(path, "no named tensors")


def test_strictness_of_loading_itself(tmp_path):
    network = torch.nn.Linear(2, 2)
    state = {"weight": torch.ones(2, 2), "bias": torch.ones(2)}
    load_strictly(network, state, BACKBONES[NAME], tmp_path)
    assert torch.equal(network.weight, torch.ones(2, 2))
    with pytest.raises(WeightsError, match="missing: bias"):
        load_strictly(network, {"weight": torch.ones(2, 2)}, BACKBONES[NAME], tmp_path)


# ------------------------------------------------------------------------------------------------ the hub


HUB = """
import sys, time
from musc.backbones import load_backbone
from musc.errors import WeightsError
start = time.monotonic()
try:
    load_backbone("ViT-L-14-336")
except WeightsError as error:
    print(error)
print("seconds", time.monotonic() - start)
"""


@pytest.mark.parametrize("how", ["HF_HUB_OFFLINE", "HF_ENDPOINT"])
def test_no_network_is_one_clear_error(tmp_path, how):
    """Offline by setting, and a hub that does not answer: no wait, and the file and the remedy are named."""
    value = {"HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "http://127.0.0.1:9"}[how]
    run = subprocess.run(
        [sys.executable, "-c", HUB],
        env={**os.environ, "HF_HOME": str(tmp_path), how: value},
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    message, seconds = run.stdout.strip().splitlines()
    assert "timm/vit_large_patch14_clip_336.openai/resolve/main/open_clip_model.safetensors" in message
    assert "--weights open_clip_model.safetensors" in message
    assert float(seconds.split()[1]) < 15
    assert run.stderr == ""


@pytest.fixture
def hub(monkeypatch, tmp_path, trained):
    """A hub of one file, at revision 0123456789abcdef; `calls` says how it was asked."""
    import huggingface_hub

    calls = []
    cached = tmp_path / "models--timm" / "snapshots" / "0123456789abcdef" / "model.safetensors"

    def download(repo, file, **options):
        calls.append((repo, file, options))
        if options.get("local_files_only") and not cached.is_file():
            raise FileNotFoundError("not cached")
        cached.parent.mkdir(parents=True, exist_ok=True)
        save_file(trained, cached)
        return str(cached)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return calls


def test_hub_is_asked_once_and_the_revision_is_told(hub, monkeypatch):
    monkeypatch.setattr(fetch, "_reach_hub", lambda: None)
    first = load_backbone(NAME)
    assert first.weights_id == "timm/deit_tiny_patch16_224.fb_in1k/model.safetensors@0123456789ab"
    assert [c[2] for c in hub] == [{"local_files_only": True}, {"etag_timeout": fetch.TIMEOUT, "force_download": False}]
    second = load_backbone(NAME)
    assert len(hub) == 3  # cached now: the network is not asked
    assert torch.equal(first.network.cls_token, second.network.cls_token)


def test_answers_of_the_hub(monkeypatch):
    from huggingface_hub import constants

    def answer(error):
        def urlopen(*_, **__):
            raise error

        monkeypatch.setattr(fetch.urllib.request, "urlopen", urlopen)

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    answer(urllib.error.HTTPError("u", 403, "forbidden", None, None))
    fetch._reach_hub()  # it is there
    answer(urllib.error.URLError(fetch.ssl.SSLCertVerificationError("self-signed")))
    fetch._reach_hub()  # the hub's client has its own certificates
    for error in (urllib.error.URLError("no route"), TimeoutError("timed out")):
        answer(error)
        with pytest.raises(OSError, match="no connection to"):
            fetch._reach_hub()


# ------------------------------------------------------------------------------------------------ torchvision


GUARD = """
import importlib.util, pathlib, torch
from musc.backbones import torchvision_guard as guard
{setup}
own = guard.ready_torchvision()
assert guard.ready_torchvision() is own
import torchvision.ops
print(own, len(guard._declared))
print(torch.ops.torchvision.nms.default._schema)
try:
    torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
    print("ran")
except Exception as error:
    print(type(error).__name__, str(error).splitlines()[0][:60])
"""
MISMATCH = """
def load(path):
    raise OSError("libcudart.so.12: cannot open shared object file")
torch.ops.load_library = load
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has two kinds of torchvision wheels")
def test_torchvision_of_another_build_is_declared():
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", GUARD.format(setup=MISMATCH)], capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr
    first, schema, call = run.stdout.strip().splitlines()
    assert first == "False 1"
    assert schema == "torchvision::nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
    assert "ran" not in call


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has two kinds of torchvision wheels")
def test_a_matched_torchvision_is_left_alone():
    code = "import torch\nfrom musc.backbones import torchvision_guard as guard\nloaded = []\n"
    code += "torch.ops.load_library = lambda path: loaded.append(str(path))\n"
    code += "print(guard.ready_torchvision(), len(guard._declared), '_C' in loaded[0])"
    run = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=120)
    assert run.stdout.split() == ["True", "0", "True"], run.stderr


def test_import_musc_stays_light():
    code = "import sys, musc.backbones; print([m for m in ('timm', 'open_clip', 'torchvision') if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
