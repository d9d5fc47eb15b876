"""WinCLIP (Jeong et al., CVPR 2023): windows of an image compared with sentences, by CLIP.

Its paper takes ViT-B-16-plus-240 with the laion400m weights at 240 pixels. A text tower is needed, and the images
themselves: windows are run through the image tower alone, so that no cached token can stand for them. Of its 21
sentence templates one is printed twice in the paper; here it stands once with "a" and once with "the".
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from musc.backbones.torchvision_guard import ready_torchvision
from musc.datasets.images import preprocess, read_image
from musc.errors import ConfigError
from musc.features import Features, check_references
from musc.methods.base import NO_BLUR, Blur, Scores

NORMAL = ("{}", "flawless {}", "perfect {}", "unblemished {}", "{} without flaw", "{} without defect",
          "{} without damage")  # fmt: skip
ANOMALOUS = ("damaged {}", "{} with flaw", "{} with defect", "{} with damage")
TEMPLATES = (
    "a cropped photo of the {}.",
    *(f"a {kind} photo of {article} {{}}." for kind in ("close-up", "bright", "dark", "jpeg corrupted", "blurry")
      for article in ("a", "the")),
    "a photo of a {}.", "a photo of the {}.",
    "a photo of a small {}.", "a photo of the small {}.", "a photo of a large {}.", "a photo of the large {}.",
    *(f"a photo of {article} {{}} for {task}." for task in ("visual inspection", "anomaly detection")
      for article in ("the", "a")),
)  # fmt: skip
BATCH = 256  # windows per forward pass


def prompts(product: str) -> tuple[list[str], list[str]]:
    """The 147 sentences about a normal product, and the 84 about an anomalous one.

    Example:
        >>> normal, anomalous = prompts("metal_nut")
        >>> len(normal), len(anomalous), anomalous[0]
        (147, 84, 'a cropped photo of the damaged metal nut.')
    """
    name = product.replace("_", " ").strip()
    return tuple([t.format(s.format(name)) for s in states for t in TEMPLATES] for states in (NORMAL, ANOMALOUS))  # type: ignore[return-value]


@torch.inference_mode()
def text_embeddings(clip: Any, product: str) -> Float[Tensor, "2 D"]:
    """The mean embedding of the normal sentences and that of the anomalous ones, of unit length.

    Raises ConfigError where `clip` has no text tower.
    """
    if not hasattr(clip, "encode_text"):
        raise ConfigError(
            f"{type(clip).__name__} has no text tower, and WinCLIP compares images with sentences: give a CLIP model "
            "of open_clip, as open_clip.create_model makes it."
        )
    ready_torchvision()
    import open_clip

    means, device = [], next(clip.parameters()).device
    for sentences in prompts(product):
        tokens = open_clip.tokenize(sentences, context_length=clip.context_length).to(device)
        found = torch.cat([clip.encode_text(part, normalize=True) for part in tokens.split(BATCH)])
        means.append(F.normalize(found.mean(dim=0), dim=0))
    return torch.stack(means)


def windows(grid: tuple[int, int], scale: int) -> Int[Tensor, "W k"]:
    """The patches of every scale x scale window, stride 1, row by row.

    Example:
        >>> windows((2, 3), 2)
        tensor([[0, 1, 3, 4],
                [1, 2, 4, 5]])
    """
    H, W = grid
    if not 1 <= scale <= min(H, W):
        raise ConfigError(f"scales: windows of {scale} x {scale} patches do not fit a grid of {H} x {W}.")
    patches = torch.arange(H * W).reshape(H, W).unfold(0, scale, 1).unfold(1, scale, 1)
    return patches.flatten(2).flatten(0, 1)


class ImageTower:
    """CLIP's image tower, for whole images and for windows of their patches.

    Raises ConfigError where it is no vision transformer that ends in a class token.
    """

    def __init__(self, clip: Any) -> None:
        net: Any = getattr(clip, "visual", None)
        parts = ("conv1", "class_embedding", "positional_embedding", "ln_pre", "transformer", "ln_post")
        if not all(hasattr(net, name) for name in parts) or getattr(net, "attn_pool", None) is not None:
            raise ConfigError(f"{type(net).__name__} is no plain vision transformer: WinCLIP selects its patches.")
        if getattr(net, "pool_type", "tok") != "tok":
            raise ConfigError(f"the image tower pools by {net.pool_type!r}: WinCLIP needs its class token.")
        self.net = net

    def embedded(self, images: Float[Tensor, "B 3 h w"]) -> tuple[Float[Tensor, "B T C"], tuple[int, int]]:
        """Class token and patches before the transformer and ln_pre, with positions; and the patch grid."""
        net = self.net
        patches = net.conv1(images)
        grid = tuple(patches.shape[-2:])
        x = rearrange(patches, "B C H W -> B (H W) C")
        if x.shape[1] + 1 != len(net.positional_embedding):
            raise ConfigError(
                f"images of {tuple(images.shape[-2:])} pixels make {x.shape[1]} patches, and this CLIP has positions "
                f"for {len(net.positional_embedding) - 1}: preprocess them to its own size."
            )
        first = net.class_embedding.to(x.dtype).expand(len(x), 1, -1)
        return torch.cat([first, x], dim=1) + net.positional_embedding.to(x.dtype), (grid[0], grid[1])

    def run(self, x: Float[Tensor, "B T C"]) -> tuple[Float[Tensor, "B D"], Float[Tensor, "B P C"]]:
        """Unit embedding of each sequence, and its output tokens at the patches after the final LayerNorm."""
        net = self.net
        x = net.ln_post(net.transformer(net.ln_pre(x)))
        pooled = x[:, 0] if net.proj is None else x[:, 0] @ net.proj
        return F.normalize(pooled, dim=-1), x[:, 1:]

    def windows(self, x: Float[Tensor, "B T C"], chosen: Int[Tensor, "W k"]) -> Float[Tensor, "B W D"]:
        """Unit embedding of every window: its patches and the class token run through the transformer alone."""
        first = x.new_zeros(len(chosen), 1, dtype=torch.long)
        rows = torch.cat([first, chosen.to(x.device) + 1], dim=1)  # [W, 1 + k]
        parts = [
            torch.cat([self.run(image[some])[0] for some in rows.split(BATCH)])  # [W, D]
            for image in x
        ]
        return torch.stack(parts)


def anomalous_share(
    embeddings: Float[Tensor, "*B D"], texts: Float[Tensor, "2 D"], temperature: float = 0.07
) -> Tensor:
    """Eq. 1 there: softmax of the cosines with both texts over `temperature`, on the anomalous side.

    Example:
        >>> anomalous_share(torch.tensor([[1.0, 0.0], [0.6, 0.8]]), torch.eye(2), temperature=1.0)
        tensor([0.2689, 0.5498])
    """
    return (embeddings @ texts.T / temperature).softmax(dim=-1)[..., 1]


def harmonic_map(scores: Float[Tensor, "N W"], chosen: Int[Tensor, "W k"], patches: int) -> Float[Tensor, "N M"]:
    """Score of each patch: the harmonic mean over the windows that cover it.

    Example:
        >>> harmonic_map(torch.tensor([[1.0, 0.5]]), torch.tensor([[0, 1], [1, 2]]), patches=3)
        tensor([[1.0000, 0.6667, 0.5000]])
    """
    inverse = 1 / scores.clamp(min=torch.finfo(scores.dtype).tiny * 4)  # [N, W]
    total, count = scores.new_zeros(len(scores), patches), scores.new_zeros(patches)
    for column in chosen.to(scores.device).T:
        total.index_add_(1, column, inverse)
        count.index_add_(0, column, scores.new_ones(len(column)))
    return count / total


@torch.inference_mode()
def score(
    clip: Any,
    images: Float[Tensor, "N 3 H W"],
    product: str,
    *,
    references: Float[Tensor, "R 3 H W"] | None = None,
    scales: Sequence[int] = (2, 3),
    temperature: float = 0.07,
) -> tuple[Float[Tensor, "N"], Float[Tensor, "N H W"]]:
    """Image scores and anomaly maps from sentences about the product, and from normal reference images if given.

    Zero-shot: the image score is the anomalous share of the whole image's embedding. Map: at each scale the windows'
    shares, at a patch their harmonic mean, then the harmonic mean over the scales, the whole image being one of them.
    Few-shot: (1 - cosine) / 2 to the nearest embedding of the references at each scale, and to their nearest patch
    token, the mean over the scales; the map is the mean of both maps, the image score that of the zero-shot score and
    the few-shot map's maximum. Maps are upsampled bilinearly, corners not aligned.

    Args:
        clip: an open_clip model with a vision transformer and a text tower, in evaluation mode.
        images: [N, 3, H, W], preprocessed, at the model's own size and on its device.
        product: what is seen, such as "metal nut"; underscores become spaces.
        references: [R, 3, H, W], normal images, preprocessed.
        scales: sides of the windows in patches.
        temperature: of the softmax.

    Returns:
        [N] image scores and [N, H, W] maps, shares in [0, 1].

    Raises:
        ConfigError: no text tower, another size, no product, a window that does not fit, or a temperature that is not
            positive.
    """
    if not product.strip():
        raise ConfigError("product: WinCLIP's sentences name it; give a word, such as bottle.")
    if not 0 < temperature < math.inf:
        raise ConfigError(f"temperature = {temperature}: give a positive number, such as 0.07.")
    texts, tower = text_embeddings(clip, product), ImageTower(clip)
    bank = [_embeddings(tower, one, scales) for one in references] if references is not None else []
    shares, maps = [], []
    for one in images:
        grid, whole, patches, at_scales = found = _embeddings(tower, one, scales)
        own = anomalous_share(whole, texts, temperature)  # []
        covering = [windows(grid, scale) for scale in scales]
        inverse = 1 / own.expand(len(patches))
        for embeddings, chosen in zip(at_scales, covering, strict=True):
            inverse = (
                inverse
                + 1 / harmonic_map(anomalous_share(embeddings, texts, temperature)[None], chosen, len(patches))[0]
            )
        patch_map = (1 + len(scales)) / inverse  # [M]
        if bank:
            associated = _association(found, bank, covering)
            patch_map, own = (patch_map + associated) / 2, (own + associated.max()) / 2
        shares.append(own)
        upsampled = F.interpolate(patch_map.reshape(1, 1, *grid), one.shape[-2:], mode="bilinear")
        maps.append(upsampled[0, 0])
    return torch.stack(shares), torch.stack(maps)


Embeddings = tuple[tuple[int, int], Tensor, Tensor, list[Tensor]]  # grid, image [D], patches [M, C], windows [W, D]


def _embeddings(tower: ImageTower, image: Tensor, scales: Sequence[int]) -> Embeddings:
    x, grid = tower.embedded(image[None])
    whole, tokens = tower.run(x)
    at_scales = [tower.windows(x, windows(grid, scale))[0] for scale in scales]
    return grid, whole[0], F.normalize(tokens[0], dim=-1), at_scales


def _association(found: Embeddings, bank: list[Embeddings], covering: list[Tensor]) -> Float[Tensor, "M"]:
    """The few-shot map: mean over the patch tokens and the scales of (1 - cosine) / 2 to the nearest of the bank."""

    def nearest(own: Tensor, others: list[Tensor]) -> Tensor:
        return (1 - (own @ torch.cat(others).T).amax(dim=1)).clamp(min=0) / 2

    _, _, patches, at_scales = found
    parts = [nearest(patches, [one[2] for one in bank])]
    for n, (embeddings, chosen) in enumerate(zip(at_scales, covering, strict=True)):
        scores = nearest(embeddings, [one[3][n] for one in bank])
        parts.append(harmonic_map(scores[None], chosen, len(patches))[0])
    return torch.stack(parts).mean(dim=0)


@dataclass(frozen=True)
class WinCLIP:
    """WinCLIP on the images of a product: their files are read and preprocessed for `clip`, tokens are not used."""

    blur: ClassVar[Blur] = NO_BLUR
    corners: ClassVar[bool] = False
    clip: Any
    product: str
    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str = "bicubic"
    scales: tuple[int, ...] = (2, 3)
    temperature: float = 0.07

    def score(self, features: Features, references: Features | None = None) -> Scores:
        """`score` of the images behind `features`; maps at the input's size. Raises as it does."""
        if references is not None:
            check_references(features, references)
        normal = torch.stack(list(self._images(references))) if references is not None else None
        found = [
            score(self.clip, image[None], self.product, references=normal, scales=self.scales,
                  temperature=self.temperature)
            for image in self._images(features)
        ]  # fmt: skip
        images, maps = (torch.cat(parts).float().cpu() for parts in zip(*found, strict=True))
        return Scores({}, images, maps)

    def _images(self, features: Features) -> Iterator[Tensor]:
        device = next(self.clip.parameters()).device
        for sample in features.samples:
            image = preprocess(read_image(sample.image), self.image_size, self.mean, self.std, self.interpolation)
            yield image.to(device)
