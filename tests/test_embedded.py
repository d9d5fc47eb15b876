"""The embedded vision transformer: shapes, positions, saving and loading, speed of loading."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

from musc.backbones import embedded
from musc.backbones.embedded import ViT, ViTConfig
from musc.errors import ConfigError, WeightsError

SMALL = ViTConfig(image_size=32, patch_size=8, depth=4, width=16, heads=2, stem=4)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return ViT(SMALL).eval().requires_grad_(False)


def test_stages_are_the_block_outputs(model):
    images = torch.randn(2, 3, 32, 48)
    seen = []
    hooks = [block.register_forward_hook(lambda _m, _i, out: seen.append(out)) for block in model.blocks]
    stages, class_tokens = model.forward_stages(images, (3, 1))
    for hook in hooks:
        hook.remove()
    assert [tuple(s.shape) for s in stages] == [(2, 4 * 6, 16)] * 2
    torch.testing.assert_close(stages[0], seen[2][:, 1:])
    torch.testing.assert_close(stages[1], seen[0][:, 1:])
    torch.testing.assert_close(class_tokens, model.norm(seen[-1][:, 0]))
    assert model.default_stages == (1, 2, 3, 4)


def test_attention_is_softmax_with_a_distance_penalty(model):
    attention, x, distance = model.blocks[0].attn, torch.randn(1, 7, 16), embedded.patch_distances(2, 3)
    q, k, v = attention.qkv(x)[0].reshape(7, 3, 2, 8).permute(1, 2, 0, 3).double()
    logits = q @ k.transpose(1, 2) / 8**0.5 - attention.slope[:, None, None] * distance
    expected = (logits.softmax(-1) @ v).permute(1, 0, 2).reshape(1, 7, 16).float()
    torch.testing.assert_close(attention(x, distance), attention.proj(expected), atol=1e-5, rtol=1e-4)


def test_distances_are_euclidean_and_zero_for_the_class_token():
    distance = embedded.patch_distances(2, 3)
    assert distance[0].eq(0).all()
    assert distance[:, 0].eq(0).all()
    assert distance[1, 6].item() == pytest.approx(5**0.5)  # (0, 0) to (1, 2)


def test_position_embedding_is_interpolated_bicubically(model):
    rows = torch.linspace(-1, 1, 4).reshape(1, 1, 4, 1).expand(1, 16, 4, 4)
    changed = ViT(SMALL)
    changed.position.data = rows.clone()
    assert changed.position_embedding(4, 4) is changed.position
    wide = changed.position_embedding(4, 7)
    torch.testing.assert_close(wide, rows[..., :1].expand(1, 16, 4, 7), atol=1e-5, rtol=0)
    tall = changed.position_embedding(8, 8)[0, 0, :, 0]
    assert all(a < b for a, b in pairwise(tall))
    expected = F.interpolate(rows, (8, 8), mode="bicubic", align_corners=False)
    torch.testing.assert_close(changed.position_embedding(8, 8), expected)


def test_batch_changes_nothing(model):
    images = torch.randn(3, 3, 32, 32)
    together, _ = model.forward_stages(images)
    alone, _ = model.forward_stages(images[1:2])
    torch.testing.assert_close(together[-1][1:2], alone[-1], atol=1e-5, rtol=1e-4)


def test_save_and_load_round_trip(model, tmp_path):
    path = tmp_path / "weights.safetensors"
    embedded.save(model, path, {"note": "test"})
    again = embedded.load(path)
    assert again.config == model.config
    assert not again.training
    for key, value in model.state_dict().items():
        torch.testing.assert_close(again.state_dict()[key], value.half().float())


def test_errors_name_the_remedy(model, tmp_path):
    with pytest.raises(ConfigError, match="multiples of 8"):
        model.forward_stages(torch.zeros(1, 3, 30, 32))
    with pytest.raises(ConfigError, match="blocks 1 to 4"):
        model.forward_stages(torch.zeros(1, 3, 32, 32), (5,))
    with pytest.raises(ConfigError, match="power of two"):
        ViTConfig(patch_size=14)
    with pytest.raises(WeightsError, match="no such file"):
        embedded.load(tmp_path / "none.safetensors")
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"not weights")
    with pytest.raises(WeightsError, match="not a readable"):
        embedded.load(broken)
