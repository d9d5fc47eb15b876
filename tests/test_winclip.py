"""WinCLIP with a tiny CLIP of random weights: every window alone through the tower, and all means written out."""

import numpy as np
import pytest
import torch
from PIL import Image

from musc.backbones.torchvision_guard import ready_torchvision
from musc.datasets.base import Sample
from musc.errors import ConfigError
from musc.features import Features
from musc.methods import winclip
from musc.methods.base import image_scores, method_maps

SIDE = 4  # patches


@pytest.fixture(scope="module")
def clip():
    ready_torchvision()
    from open_clip import CLIP

    torch.manual_seed(0)
    vision = {"image_size": 8 * SIDE, "layers": 2, "width": 16, "head_width": 8, "patch_size": 8}
    text = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2}
    model = CLIP(embed_dim=12, vision_cfg=vision, text_cfg=text).eval()
    for name, p in model.visual.named_parameters():
        if "embedding" in name:
            torch.nn.init.normal_(p)  # so that windows differ
    return model


@pytest.fixture(scope="module")
def images():
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def normal():
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(2))


def alone(clip, image, patches):
    """The tower on some patches: an image of those patches only, through open_clip's own forward pass."""
    net = clip.visual
    pixels = image.reshape(3, SIDE, 8, SIDE, 8).permute(1, 3, 0, 2, 4).reshape(-1, 3, 8, 8)
    strip = torch.cat([pixels[p] for p in patches], dim=2)  # 8 pixels high: the convolution cuts it into them again
    whole = net.positional_embedding
    try:
        net.positional_embedding = torch.nn.Parameter(whole[[0, *(p + 1 for p in patches)]])
        out = net(strip[None])[0]
    finally:
        net.positional_embedding = whole
    return (out / out.norm()).detach().double().numpy()


def window_patches(scale):
    return [
        [(y + dy) * SIDE + x + dx for dy in range(scale) for dx in range(scale)]
        for y in range(SIDE - scale + 1) for x in range(SIDE - scale + 1)
    ]  # fmt: skip


def texts(clip, product):
    import open_clip

    found = []
    for sentences in winclip.prompts(product):
        with torch.no_grad():
            e = clip.encode_text(open_clip.tokenize(sentences)).double().numpy()
        mean = (e / np.linalg.norm(e, axis=1, keepdims=True)).mean(0)
        found.append(mean / np.linalg.norm(mean))
    return found


def share(embedding, sides, temperature):
    normal, anomalous = (np.exp(embedding @ t / temperature) for t in sides)
    return anomalous / (normal + anomalous)


def over_patches(values, covering):
    return np.array([
        sum(p in w for w in covering) / sum(1 / v for v, w in zip(values, covering, strict=True) if p in w)
        for p in range(SIDE**2)
    ])  # fmt: skip


def test_prompts():
    normal, anomalous = winclip.prompts("metal_nut")
    assert (len(normal), len(anomalous), len(winclip.TEMPLATES)) == (147, 84, 21)
    assert len({*normal, *anomalous}) == 231
    assert all("metal nut" in sentence for sentence in normal + anomalous)
    assert "a photo of a metal nut without defect for visual inspection." in normal
    assert "a blurry photo of the metal nut with flaw." in anomalous


def test_windows_equal_the_tower_on_each_window_alone(clip, images):
    tower = winclip.ImageTower(clip)
    with torch.no_grad():
        x, grid = tower.embedded(images)
        assert grid == (SIDE, SIDE)
        for scale in (1, 2, 3, 4):
            chosen = winclip.windows(grid, scale)
            assert chosen.tolist() == window_patches(scale)
            found = tower.windows(x, chosen)
            for n in range(3):
                for w, patches in enumerate(window_patches(scale)):
                    np.testing.assert_allclose(found[n, w], alone(clip, images[n], patches), atol=1e-5)
        whole = torch.nn.functional.normalize(clip.encode_image(images), dim=1)
        torch.testing.assert_close(tower.run(x)[0], whole, atol=1e-5, rtol=0)


@pytest.mark.parametrize("scales", [(2, 3), (2,), (3, 1)])
@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_zero_shot_equals_the_equations(clip, images, scales, temperature):
    scores, maps = winclip.score(clip, images, "metal nut", scales=scales, temperature=temperature)
    sides, everything = texts(clip, "metal nut"), list(range(SIDE**2))
    for n in range(3):
        whole = share(alone(clip, images[n], everything), sides, temperature)
        assert scores[n].item() == pytest.approx(whole, abs=1e-5)
        inverse = 1 / np.full(SIDE**2, whole)
        for scale in scales:
            covering = window_patches(scale)
            values = [share(alone(clip, images[n], w), sides, temperature) for w in covering]
            inverse += 1 / over_patches(values, covering)
        expected = torch.tensor((1 + len(scales)) / inverse).reshape(1, 1, SIDE, SIDE)
        upsampled = torch.nn.functional.interpolate(expected, (32, 32), mode="bilinear", align_corners=False)
        np.testing.assert_allclose(maps[n], upsampled[0, 0], atol=1e-5)


def test_few_shot_equals_the_equations(clip, images, normal):
    scores, maps = winclip.score(clip, images, "metal nut", references=normal)
    zero_scores, zero_maps = winclip.score(clip, images, "metal nut")
    with torch.no_grad():
        own, bank = (patch_tokens(clip, some) for some in (images, normal))
    for n in range(3):
        parts = [((1 - own[n] @ bank.reshape(-1, 16).T) / 2).min(1)]
        for scale in (2, 3):
            covering = window_patches(scale)
            known = np.array([alone(clip, one, w) for one in normal for w in covering])
            values = [((1 - known @ alone(clip, images[n], w)) / 2).min() for w in covering]
            parts.append(over_patches(values, covering))
        few = np.mean(parts, axis=0)
        upsampled = torch.nn.functional.interpolate(torch.tensor(few).reshape(1, 1, 4, 4), (32, 32), mode="bilinear")
        np.testing.assert_allclose(maps[n], (zero_maps[n] + upsampled[0, 0]) / 2, atol=1e-5)
        assert scores[n].item() == pytest.approx((zero_scores[n].item() + few.max()) / 2, abs=1e-5)


def patch_tokens(clip, images):
    """open_clip's own output tokens, of unit length."""
    clip.visual.output_tokens = True
    try:
        _, tokens = clip.visual(images)
    finally:
        clip.visual.output_tokens = False
    tokens = tokens.double().numpy()
    return tokens / np.linalg.norm(tokens, axis=2, keepdims=True)


def test_a_reference_itself_is_normal_in_the_few_shot_map(clip, normal):
    zero, _ = winclip.score(clip, normal, "cup")
    scores, _ = winclip.score(clip, normal, "cup", references=normal)
    torch.testing.assert_close(scores, zero / 2, atol=1e-5, rtol=0)


def test_the_method_reads_the_images(clip, tmp_path):
    rng = np.random.default_rng(0)
    for n in range(3):
        Image.fromarray(rng.integers(0, 255, (50, 40, 3), dtype=np.uint8)).save(tmp_path / f"{n}.png")
    samples = tuple(Sample(f"{n}.png", tmp_path / f"{n}.png") for n in range(3))
    features = Features([torch.zeros(3, 16, 4)], None, ((4, 4),), samples)
    method = winclip.WinCLIP(clip, "cup", 32, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
    found = method.score(features)
    pixels = [np.asarray(Image.open(s.image).resize((32, 32), Image.Resampling.BICUBIC)) for s in samples]
    inputs = (torch.tensor(np.stack(pixels)).permute(0, 3, 1, 2) / 255 - 0.5) / 0.2
    scores, maps = winclip.score(clip, inputs, "cup")
    torch.testing.assert_close(image_scores(found, maps), scores)
    torch.testing.assert_close(method_maps(method, found, 32), maps)
    few = method.score(features.take([0, 1]), features.take([2]))
    expected, _ = winclip.score(clip, inputs[:2], "cup", references=inputs[2:])
    torch.testing.assert_close(few.images, expected)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"product": "  "}, "product: WinCLIP"),
        ({"scales": (2, 5)}, "windows of 5 x 5 patches do not fit a grid of 4 x 4"),
        ({"temperature": 0.0}, "temperature = 0.0"),
        ({"images": torch.zeros(1, 3, 24, 24)}, "images of \\(24, 24\\) pixels make 9 patches"),
    ],
)
def test_words_that_cannot_be(clip, images, change, said):
    given = {"images": images, "product": "cup", **change}
    with pytest.raises(ConfigError, match=said):
        winclip.score(clip, given.pop("images"), given.pop("product"), **given)


def test_networks_without_text_or_patches(clip, images, tiny_backbone):
    with pytest.raises(ConfigError, match="has no text tower"):
        winclip.score(tiny_backbone.network, images, "cup")
    with pytest.raises(ConfigError, match="no plain vision transformer"):
        winclip.ImageTower(tiny_backbone)
