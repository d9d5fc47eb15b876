"""Backbones: tokens against the libraries' own forward passes, names, sizes, stages, and `procedural`."""

import dataclasses
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from musc.backbones import BACKBONES, CLASS_TOKENS, find_backbone, load_backbone, registry
from musc.backbones.embedded import EMBEDDED_WEIGHTS
from musc.backbones.networks import build
from musc.backbones.torchvision_guard import ready_torchvision
from musc.backbones.weights import resize_position
from musc.errors import ConfigError, WeightsError

ready_torchvision()
import open_clip  # noqa: E402 - without the line above this fails where torch and torchvision do not match
import timm  # noqa: E402

CLIP = [spec for spec in BACKBONES.values() if spec.library == "open_clip"]
TIMM = [spec for spec in BACKBONES.values() if spec.library == "timm"]


@pytest.fixture
def register(monkeypatch):
    """Adds a small network of the same kind as a registered one, so that tests take no minutes."""

    def add(like, name, **changes):
        spec = dataclasses.replace(BACKBONES[like], name=name, aliases=(), **changes)
        monkeypatch.setitem(BACKBONES, name, spec)
        return spec

    return add


@pytest.fixture
def tiny_clip(register, tmp_path, monkeypatch):
    """Two CLIPs of 4 blocks, 32 px and patch 8, known to open_clip: QuickGELU as OpenAI's, and GELU."""
    config = {
        "embed_dim": 24,
        "vision_cfg": {"image_size": 32, "layers": 4, "width": 64, "patch_size": 8, "head_width": 32},
        "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1},
    }
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIG_PATHS", list(open_clip.factory._MODEL_CONFIG_PATHS))
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIGS", dict(open_clip.factory._MODEL_CONFIGS))
    small = {"image_size": 32, "native_size": 32, "patch_size": 8, "depth": 4, "stages": (1, 2, 3, 4)}
    for name, quick, like in (("tiny-quickgelu", True, "ViT-L-14-336"), ("tiny-gelu", False, "ViT-B-16-plus-240")):
        (tmp_path / f"{name}.json").write_text(json.dumps({**config, "quick_gelu": quick}))
        register(like, name, model=name, **small)
    open_clip.add_model_config(tmp_path)
    return "tiny-quickgelu"


def images(size, batch=2):
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(1))


def outputs_of(blocks, run):
    """What each block gives while `run` runs."""
    seen = []
    hooks = [block.register_forward_hook(lambda _m, _i, out: seen.append(out)) for block in blocks]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return seen


# ------------------------------------------------------------------------------------------------ names


def test_every_row_of_table_8_is_there():
    rows = {(s.family, s.name, s.pretraining) for s in BACKBONES.values()}
    assert rows >= {
        ("DINO", "dino_vitb16", "ImageNet-1k"),
        ("DINO", "dino_vitb8", "ImageNet-1k"),
        ("DINOv2", "dinov2_vitb14", "LVD-142M"),
        ("DINOv2", "dinov2_vitl14", "LVD-142M"),
        ("CLIP", "ViT-B-32", "WIT-400M"),
        ("CLIP", "ViT-B-16", "WIT-400M"),
        ("CLIP", "ViT-B-16-plus-240", "LAION-400M"),
        ("CLIP", "ViT-L-14", "WIT-400M"),
        ("CLIP", "ViT-L-14-336", "WIT-400M"),
        ("Swin", "swin_base", "ImageNet-22k"),
        ("Swin", "swin_large", "ImageNet-22k"),
    }
    assert {"procedural", "dinov2_vits14", "deit_tiny_patch16_224"} <= BACKBONES.keys()
    assert all(key == spec.name and spec.class_token in CLASS_TOKENS for key, spec in BACKBONES.items())


@pytest.mark.parametrize("spec", CLIP, ids=lambda s: s.name)
def test_clip_specs_agree_with_open_clip(spec):
    tag = "openai" if spec.pretraining == "WIT-400M" else "laion400m_e31"
    theirs = open_clip.get_pretrained_cfg(spec.name, tag)
    assert theirs["hf_hub"] == f"{spec.repo}/"
    assert (spec.mean, spec.std, spec.interpolation) == (theirs["mean"], theirs["std"], theirs["interpolation"])
    config = open_clip.get_model_config(spec.model)
    assert config.get("quick_gelu", False) == theirs.get("quick_gelu", False)  # what the weights were trained with
    vision = config["vision_cfg"]
    assert (spec.native_size, spec.patch_size, spec.depth) == (
        vision["image_size"], vision["patch_size"], vision["layers"])  # fmt: skip
    with torch.device("meta"):
        theirs = open_clip.CLIP(**{k: v for k, v in config.items() if k != "custom_text"}).visual
    ours = build(spec, spec.native_size, draw=False)
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}
    assert str(ours) == str(theirs)  # every layer, its activation included


@pytest.mark.parametrize("spec", [s for s in TIMM if s.repo], ids=lambda s: s.name)
def test_timm_specs_agree_with_timm(spec):
    theirs = timm.get_pretrained_cfg(spec.repo.removeprefix("timm/"))
    assert spec.repo in (theirs.hf_hub_id, f"{theirs.hf_hub_id}{theirs.architecture}.{theirs.tag}")
    assert theirs.architecture == spec.model
    assert (spec.mean, spec.std, spec.native_size) == (theirs.mean, theirs.std, theirs.input_size[1])
    with torch.device("meta"):
        net = timm.create_model(spec.model, num_classes=0)
    blocks = net.layers if spec.family == "Swin" else net.blocks
    assert len(blocks) == spec.depth
    assert net.patch_embed.patch_size == (spec.patch_size, spec.patch_size)


def test_names_of_the_libraries_are_known():
    for alias, name in {
        "vit_l-14-336": "ViT-L-14-336",
        "ViT-L/14@336px": "ViT-L-14-336",
        "ViT-L-14-336-quickgelu": "ViT-L-14-336",
        "vit_base_patch16_clip_224.openai": "ViT-B-16",
        "vit_base_patch16_224.dino": "dino_vitb16",
        "dino_vitbase8": "dino_vitb8",
        "vit_large_patch14_dinov2": "dinov2_vitl14",
        "swin_base_patch4_window7_224.ms_in22k": "swin_base",
        "deit_tiny_patch16_224.fb_in1k": "deit_tiny_patch16_224",
    }.items():
        assert find_backbone(alias).name == name


@pytest.mark.parametrize(
    ("name", "said"),
    [("vit_base_patch16_224", "did you mean"), ("ViT-L-41", "ViT-L-14"), ("zzz", "procedural, ViT-B-32")],
)
def test_unknown_names_are_answered_with_near_ones(name, said):
    with pytest.raises(ConfigError, match=said):
        find_backbone(name)


def test_default_stages_and_sizes_are_the_papers():
    assert {s.stages for s in BACKBONES.values() if s.depth == 24} == {(6, 12, 18, 24)}
    assert {s.stages for s in BACKBONES.values() if s.depth == 12} == {(3, 6, 9, 12)}
    assert BACKBONES["swin_large"].stages == (1, 2, 3, 4)
    sizes = {s.patch_size: s.image_size for s in BACKBONES.values() if s.family in ("CLIP", "DINO", "DINOv2")}
    assert sizes == {14: 518, 16: 512, 8: 512, 32: 512}
    assert all(s.check_image_size(None) == s.image_size for s in BACKBONES.values())
    plain = {s.family for s in BACKBONES.values() if s.class_token == "normed"}
    normed = {s.family for s in BACKBONES.values() if s.normed}
    assert plain == normed == {"DINO", "DINOv2", "focus"}  # as in the released code
    assert BACKBONES["ViT-L-14-336"].grids(518, (6, 24)) == ((37, 37), (37, 37))


# ------------------------------------------------------------------------------------------------ bad settings


@pytest.mark.parametrize(("size", "near"), [(520, "518 or 532"), (513, "504 or 518"), (5, "are 14")])
def test_image_size_must_be_whole_patches(size, near):
    with pytest.raises(ConfigError, match=near):
        load_backbone("ViT-L-14-336", weights="random", image_size=size)  # refused before anything is built


@pytest.mark.parametrize("stages", [(0, 3), (3, 13), (), (3, 3)])
def test_stages_must_exist_once(stages):
    with pytest.raises(ConfigError, match="stages = "):
        load_backbone("deit_tiny_patch16_224", weights="random", image_size=32, stages=stages)


def test_images_of_another_size(tiny_backbone):
    with pytest.raises(ConfigError, match="takes 64 x 64"):
        tiny_backbone(images(80))


# ------------------------------------------------------------------------------------------------ tokens


def test_clip_equals_open_clip(tiny_clip):
    ours = load_backbone(tiny_clip, weights="random")
    model = open_clip.create_model(tiny_clip).eval()
    model.visual.load_state_dict(ours.network.state_dict())
    x = images(32)
    with torch.no_grad():
        seen = outputs_of(model.visual.transformer.resblocks, lambda: model.encode_image(x))
        expected = model.encode_image(x, normalize=True)
    got = ours(x)
    torch.testing.assert_close(got.class_tokens, expected)
    for tokens, block in zip(got.patch_tokens, seen, strict=True):
        torch.testing.assert_close(tokens, block[:, 1:])  # no final LayerNorm, no projection
    assert got.grids == ((4, 4),) * 4


def test_a_real_clip_equals_open_clip():
    """At the size of a real one; the two share their weights and nothing else."""
    ours = load_backbone("ViT-B-32", weights="random", image_size=224)
    with torch.device("meta"):
        theirs = open_clip.CLIP(**open_clip.get_model_config("ViT-B-32-quickgelu")).visual
    theirs.load_state_dict(ours.network.state_dict(), assign=True)
    x = images(224, 1)
    with torch.no_grad():
        expected = F.normalize(theirs.eval()(x), dim=-1)
    torch.testing.assert_close(ours(x).class_tokens, expected)


def test_clip_position_embedding_is_resized_as_in_open_clip(tiny_clip, tmp_path):
    torch.manual_seed(2)
    model = open_clip.create_model(tiny_clip).eval()
    torch.save(model.state_dict(), tmp_path / "clip.pt")
    ours = load_backbone(tiny_clip, weights=tmp_path / "clip.pt", image_size=56)
    theirs = open_clip.create_model(tiny_clip, str(tmp_path / "clip.pt"), force_image_size=56).eval()
    x = images(56)
    with torch.no_grad():
        expected = theirs.encode_image(x, normalize=True)
    got = ours(x)
    torch.testing.assert_close(got.class_tokens, expected)
    assert got.patch_tokens[0].shape == (2, 49, 64)


def test_quickgelu_comes_with_the_name_not_with_the_file(tiny_clip, tmp_path):
    """open_clip's name + pretrained="openai" warns of the mismatch and computes on; a file is not even warned of."""
    quick = load_backbone(tiny_clip, weights="random")
    state = {f"visual.{k}": v for k, v in quick.network.state_dict().items()}
    torch.save(state, tmp_path / "file.pt")
    x, reloaded = images(32), load_backbone(tiny_clip, weights=tmp_path / "file.pt")
    torch.testing.assert_close(reloaded(x).class_tokens, quick(x).class_tokens)
    plain = load_backbone("tiny-gelu", weights=tmp_path / "file.pt")(x)
    assert (plain.class_tokens - quick(x).class_tokens).abs().max() > 1e-3

    hidden = outputs_of([quick.network.transformer.resblocks[0].mlp.c_fc], lambda: quick(x))[0]
    after = outputs_of([quick.network.transformer.resblocks[0].mlp.gelu], lambda: quick(x))[0]
    torch.testing.assert_close(after, hidden * torch.sigmoid(1.702 * hidden))


def test_deit_equals_timm():
    ours = load_backbone("deit_tiny_patch16_224", weights="random", image_size=96)
    theirs = timm.create_model("deit_tiny_patch16_224", img_size=96, weight_init="skip").eval()
    theirs.load_state_dict(ours.network.state_dict(), strict=False)
    check_vit(ours, theirs, images(96))


def test_dinov2_equals_timm():
    ours = load_backbone("dinov2_vits14", weights="random", image_size=98, stages=(4, 12))
    theirs = timm.create_model("vit_small_patch14_dinov2", img_size=98, weight_init="skip").eval()
    theirs.load_state_dict(ours.network.state_dict(), strict=False)
    for block in theirs.blocks:  # timm draws the branches almost switched off: make the blocks tell
        block.ls1.gamma.data.fill_(1.0)
    ours.network.load_state_dict(theirs.state_dict())
    check_vit(ours, theirs, images(98))
    with torch.no_grad():  # and DINOv2's own way of asking for them
        layers = theirs.get_intermediate_layers(images(98), n=[3, 11], norm=True)
    for got, expected in zip(ours(images(98)).patch_tokens, layers, strict=True):
        torch.testing.assert_close(got, expected)


def check_vit(ours, theirs, x):
    """Stage tokens by hooks on the blocks, class token by the library's own forward pass."""
    with torch.no_grad():
        seen = outputs_of(theirs.blocks, lambda: theirs.forward_features(x))
        final = theirs.forward_features(x)
        expected = [theirs.norm(seen[s - 1]) if ours.spec.normed else seen[s - 1] for s in ours.stages]
    got = ours(x)
    unit = ours.spec.class_token == "unit"
    torch.testing.assert_close(got.class_tokens, F.normalize(final[:, 0], dim=-1) if unit else final[:, 0])
    for tokens, block in zip(got.patch_tokens, expected, strict=True):
        torch.testing.assert_close(tokens, block[:, 1:])


def test_timm_position_embedding_is_resized_as_in_timm(tmp_path):
    theirs = timm.create_model("deit_tiny_patch16_224", dynamic_img_size=True).eval()
    torch.nn.init.normal_(theirs.pos_embed)
    torch.save(theirs.state_dict(), tmp_path / "deit.pth")
    ours = load_backbone("deit_tiny_patch16_224", weights=tmp_path / "deit.pth", image_size=272)
    check_vit(ours, theirs, images(272, 1))


def test_dino_position_embedding_is_resized_as_in_dino():
    """Against cubic convolution (a = -0.75) written out in float64, at the scale (H + 0.1) / h of DINO's code."""

    def resize(values, new):
        def kernel(t, a=-0.75):
            t = abs(t)
            return (a + 2) * t**3 - (a + 3) * t**2 + 1 if t <= 1 else a * (t**3 - 5 * t**2 + 8 * t - 4) if t < 2 else 0

        old = len(values)
        rows = np.zeros((new, old))
        for i in range(new):
            at = (i + 0.5) * old / (new + 0.1) - 0.5
            for near in range(int(np.floor(at)) - 1, int(np.floor(at)) + 3):
                rows[i, min(max(near, 0), old - 1)] += kernel(at - near)
        return np.tensordot(rows, values, 1)

    grid = np.random.default_rng(0).normal(size=(5, 5, 3))
    expected = resize(resize(grid, 8).swapaxes(0, 1), 8).swapaxes(0, 1)
    got = resize_position(torch.tensor(grid, dtype=torch.float32), 8, 8, "dino")
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_dino_uses_its_resized_position_embedding(register, tmp_path):
    register("dino_vitb16", "small-dino", model="vit_tiny_patch16_224")
    theirs = timm.create_model("vit_tiny_patch16_224", num_classes=0).eval()
    torch.save(theirs.state_dict(), tmp_path / "dino.pth")
    native = load_backbone("small-dino", weights=tmp_path / "dino.pth", image_size=224, stages=(6, 12))
    check_vit(native, theirs, images(224, 1))
    ours = load_backbone("small-dino", weights=tmp_path / "dino.pth", image_size=240)
    grid = theirs.pos_embed[0, 1:].detach().reshape(14, 14, -1)
    torch.testing.assert_close(ours.network.pos_embed[0, 1:].reshape(15, 15, -1), resize_position(grid, 15, 15, "dino"))
    torch.testing.assert_close(ours.network.pos_embed[0, :1], theirs.pos_embed[0, :1])


def test_swin_equals_timm(register):
    size = 112  # grids of 28, 14, 7 and then 4, rounded up
    register("swin_base", "small-swin", model="swin_tiny_patch4_window7_224")
    ours = load_backbone("small-swin", weights="random", image_size=size)
    theirs = timm.create_model("swin_tiny_patch4_window7_224", img_size=size, num_classes=0, weight_init="skip").eval()
    theirs.load_state_dict(ours.network.state_dict())
    x = images(size, 1)
    with torch.no_grad():
        seen = outputs_of(theirs.layers, lambda: theirs(x))
        pooled = F.normalize(theirs(x), dim=-1)  # timm's own pooled feature
    got = ours(x)
    assert got.grids == ours.grids == tuple(tuple(s.shape[1:3]) for s in seen)
    for tokens, stage in zip(got.patch_tokens, seen, strict=True):
        torch.testing.assert_close(tokens, stage.flatten(1, 2))
    torch.testing.assert_close(got.class_tokens, pooled)
    assert "stands in" in CLASS_TOKENS[ours.spec.class_token]
    without = ours(x, class_token=False)
    assert without.class_tokens is None
    torch.testing.assert_close(without.patch_tokens[3], got.patch_tokens[3])


def test_swin_default_size_is_whole_windows():
    spec = BACKBONES["swin_base"]
    assert all(side % 7 == 0 for side, _ in spec.grids(spec.image_size, spec.stages))


@pytest.mark.parametrize("name", ["tiny-quickgelu", "deit_tiny_patch16_224"])
def test_without_class_token_the_upper_blocks_are_not_run(tiny_clip, name):
    backbone = load_backbone(name, weights="random", image_size=32, stages=(1, 2))
    blocks = getattr(backbone.network, "blocks", None) or backbone.network.transformer.resblocks
    x = images(32)
    whole = backbone(x)
    assert len(outputs_of(blocks, lambda: backbone(x))) == len(blocks)
    assert len(outputs_of(blocks, lambda: backbone(x, class_token=False))) == 2
    early = backbone(x, class_token=False)
    assert early.class_tokens is None
    for a, b in zip(early.patch_tokens, whole.patch_tokens, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", ["tiny-quickgelu", "deit_tiny_patch16_224", "procedural"])
def test_stages_come_in_the_order_asked_for(tiny_clip, name):
    down = load_backbone(name, weights="random", image_size=32, stages=(4, 1))
    up = load_backbone(name, weights="random", image_size=32, stages=(1, 4))
    x = images(32)
    for a, b in zip(down(x).patch_tokens, reversed(up(x).patch_tokens), strict=True):
        torch.testing.assert_close(a, b)


def test_frozen_and_repeatable(tiny_backbone, tiny_config):
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    again = load_backbone("deit_tiny", weights="random", image_size=64, stages=(1, 2))
    assert torch.equal(before, torch.random.get_rng_state())  # the caller's random numbers are not touched
    assert again.weights_id == tiny_backbone.weights_id == "random-seed0"
    one, two = tiny_backbone(images(64)), again(images(64))
    assert all(torch.equal(a, b) for a, b in zip(one.patch_tokens, two.patch_tokens, strict=True))
    assert not any(p.requires_grad for p in again.network.parameters())
    assert not again.network.training
    assert not one.class_tokens.requires_grad


def test_grids_name_the_rows_of_the_tokens(tiny_backbone):
    """A bright patch at row 1, column 3 changes its own token most: tokens go row by row."""
    x = torch.zeros(1, 3, 64, 64)
    y = x.clone()
    y[:, :, 16:32, 48:64] = 3
    change = (tiny_backbone(y).patch_tokens[0] - tiny_backbone(x).patch_tokens[0]).norm(dim=-1)[0]
    assert divmod(int(change.argmax()), tiny_backbone.grids[0][1]) == (1, 3)


# ------------------------------------------------------------------------------------------------ procedural


def test_procedural_is_the_network_of_musc_vit():
    if not EMBEDDED_WEIGHTS.is_file():
        pytest.skip("the embedded weights are not there yet")
    from musc.backbones import embedded

    network = embedded.load()
    ours = load_backbone("procedural")
    assert ours.spec == registry.embedded_spec(network.config) == BACKBONES["procedural"]  # what `musc backbones` says
    assert ours.weights_id.startswith("blake2b:")
    x = images(ours.image_size, 1)
    tokens, final = network.forward_stages(x, ours.stages)
    got = ours(x)
    torch.testing.assert_close(got.class_tokens, F.normalize(final, dim=-1))
    for a, b in zip(got.patch_tokens, tokens, strict=True):
        torch.testing.assert_close(a, b)
        assert a.shape[1] == ours.grids[0][0] * ours.grids[0][1]


def test_procedural_file_names_its_own_architecture(tmp_path):
    from musc.backbones import embedded

    config = embedded.ViTConfig(image_size=48, patch_size=4, depth=5, width=32, heads=2, stem=8, mean=(0.1, 0.2, 0.3))
    embedded.save(embedded.ViT(config), tmp_path / "own.safetensors")
    ours = load_backbone("procedural", weights=tmp_path / "own.safetensors")
    assert (ours.image_size, ours.spec.patch_size, ours.stages, ours.mean) == (48, 4, (1, 2, 3, 5), (0.1, 0.2, 0.3))
    assert ours(images(48)).patch_tokens[0].shape == (2, 144, 32)
    with pytest.raises(ConfigError, match="48 or 52"):
        load_backbone("procedural", weights=tmp_path / "own.safetensors", image_size=50)
    broken = embedded.ViT(config)
    broken.norm.weight.data[0] = float("nan")
    embedded.save(broken, tmp_path / "nan.safetensors")
    with pytest.raises(WeightsError, match=r"NaN or infinity in norm\.weight"):
        load_backbone("procedural", weights=tmp_path / "nan.safetensors")
    with pytest.raises(WeightsError, match="no such file"):
        load_backbone("procedural", weights=tmp_path / "none.safetensors")


# ------------------------------------------------------------------------------------------------ real weights


@pytest.mark.realdata
def test_real_deit_equals_timm(shared):
    file = shared / "weights" / "deit_tiny_patch16_224.safetensors"
    ours = load_backbone("deit_tiny_patch16_224", weights=file)
    theirs = timm.create_model("deit_tiny_patch16_224", checkpoint_path=str(file)).eval()
    check_vit(ours, theirs, images(224))
    assert ours.weights_id.startswith("blake2b:")
