"""A small vision transformer of our own: the architecture of the embedded backbone, and loading its weights.

It needs torch alone. The weights are made by `python -m pretraining` from images that formulas draw.
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from musc.errors import ConfigError, WeightsError

EMBEDDED_WEIGHTS = Path(__file__).parent / "procedural.safetensors"


@dataclass(frozen=True)
class ViTConfig:
    """The shape of the network and what it expects of its input.

    image_size: side in pixels that the position embedding is stored for. patch_size: side in pixels of a
    patch, a power of two. depth, width, heads: of the transformer. stem: channels of the first convolution of the
    patch embedding, doubled at each halving of the image. mean, std: of the colour channels of images in [0, 1].
    whitened: patch tokens pass a linear map of their block on their way out (see `pretraining.whitening`).
    """

    image_size: int = 256
    patch_size: int = 8
    depth: int = 4
    width: int = 96
    heads: int = 3
    mlp_ratio: float = 3.0
    stem: int = 24
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.25, 0.25, 0.25)
    whitened: bool = False

    def __post_init__(self) -> None:
        if self.patch_size < 2 or self.patch_size & (self.patch_size - 1):
            raise ConfigError(f"patch_size = {self.patch_size}: give a power of two from 2.")
        if self.image_size % self.patch_size:
            raise ConfigError(f"image_size = {self.image_size}: give a multiple of {self.patch_size}.")
        if self.width % self.heads:
            raise ConfigError(f"width = {self.width}: give a multiple of the {self.heads} heads.")

    def to_dict(self) -> dict[str, Any]:
        """Plain types only, for JSON."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> ViTConfig:
        """The inverse of `to_dict`."""
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in plain.items()}
        return cls(**values)


class ChannelNorm(nn.Module):
    """LayerNorm over the channels at each pixel, [B, C, H, W] -> [B, C, H, W]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def patch_embedding(config: ViTConfig) -> nn.Sequential:
    """Stride-2 convolutions down to one pixel per patch: they learn from far fewer images than one large linear map.

    The first has no normalisation, so that the contrast of its input survives.
    """
    halvings = int(math.log2(config.patch_size))
    layers: list[nn.Module] = []
    channels = 3
    for level in range(halvings):
        wider = config.stem * 2**level
        kernel = 7 if level == 0 else 3
        layers += [nn.Conv2d(channels, wider, kernel, stride=2, padding=kernel // 2)]
        layers += [nn.GELU("tanh")] if level == 0 else [ChannelNorm(wider), nn.GELU("tanh")]
        channels = wider
    return nn.Sequential(*layers, nn.Conv2d(channels, config.width, 1))


def oriented_filters(count: int, generator: torch.Generator | None = None) -> Float[Tensor, "count 3 7 7"]:
    """A start for the first convolution: three colour means, then Gabor filters of both signs, then random ones."""
    y, x = torch.meshgrid(torch.arange(-3.0, 4), torch.arange(-3.0, 4), indexing="ij")
    colours = torch.tensor([[1.0, 1, 1], [1, -1, 0], [0.5, 0.5, -1]]) / 2
    disc = torch.exp(-(x * x + y * y) / 4)
    filters = [c[:, None, None] * disc / disc.sum() for c in colours]
    for wavelength in (3.2, 6.0):
        for turn in range(6):
            angle = math.pi * turn / 6
            along = x * math.cos(angle) + y * math.sin(angle)
            carrier = torch.sin if turn % 2 else torch.cos
            gabor = carrier(2 * math.pi * along / wavelength) * torch.exp(-(x * x + y * y) / (0.8 * wavelength))
            gabor = gabor - gabor.mean()
            gabor = (gabor / gabor.abs().sum() * 2).expand(3, 7, 7) / 3
            filters += [gabor, -gabor]
    random = torch.randn((max(0, count - len(filters)), 3, 7, 7), generator=generator) / math.sqrt(147)
    return torch.cat([torch.stack(filters)[:count], random])


class Attention(nn.Module):
    """Self-attention whose logits fall with the distance between two patches, by a fixed slope per head.

    The first head's slope is zero: plain attention. The others' is a bias towards neighbours, worth many training
    images, and carries over to grids of any size. (Learned slopes would cost the fused attention kernel on a CPU.)
    """

    slope: Tensor

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        # From a head that sees the whole image to one that sees little more than its eight neighbours.
        slope = [1.5 * (head / max(heads - 1, 1)) ** 2 for head in range(heads)]
        self.register_buffer("slope", torch.tensor(slope))

    def forward(self, x: Tensor, distance: Tensor) -> Tensor:
        q, k, v = rearrange(self.qkv(x), "b n (three h c) -> three b h n c", three=3, h=self.heads)
        bias = -self.slope[:, None, None] * distance  # [heads, 1 + M, 1 + M]
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias[None].to(q.dtype))
        return self.proj(rearrange(out, "b h n c -> b n (h c)"))


class Block(nn.Module):
    """A pre-norm transformer block: attention, then a two-layer perceptron, each added to its input."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        hidden = int(config.width * config.mlp_ratio)
        self.norm1 = nn.LayerNorm(config.width)
        self.attn = Attention(config.width, config.heads)
        self.norm2 = nn.LayerNorm(config.width)
        self.mlp = nn.Sequential(nn.Linear(config.width, hidden), nn.GELU("tanh"), nn.Linear(hidden, config.width))

    def forward(self, x: Tensor, distance: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x), distance)
        return x + self.mlp(self.norm2(x))


def patch_distances(height: int, width: int, device: torch.device | str = "cpu") -> Float[Tensor, "T T"]:
    """Euclidean distances, in patches, between the T = 1 + height * width tokens; the class token is at 0 from all."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    centres = torch.stack([y, x], dim=-1).reshape(-1, 2).float()
    return F.pad(torch.cdist(centres, centres), (1, 0, 1, 0)).to(device)


class ViT(nn.Module):
    """A pre-norm vision transformer with a convolutional patch embedding and a class token."""

    def __init__(self, config: ViTConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or ViTConfig()
        grid = config.image_size // config.patch_size
        self.patch_embed = patch_embedding(config)
        self.class_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.position = nn.Parameter(torch.zeros(1, config.width, grid, grid))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width)
        maps = config.depth if config.whitened else 0
        self.whitening = nn.ModuleList(nn.Linear(config.width, config.width, bias=False) for _ in range(maps))
        self.reset_parameters()

    @property
    def patch_size(self) -> int:
        return self.config.patch_size

    @property
    def depth(self) -> int:
        return self.config.depth

    @property
    def width(self) -> int:
        return self.config.width

    @property
    def image_size(self) -> int:
        return self.config.image_size

    @property
    def mean(self) -> tuple[float, float, float]:
        return self.config.mean

    @property
    def std(self) -> tuple[float, float, float]:
        return self.config.std

    @property
    def default_stages(self) -> tuple[int, ...]:
        """The ends of four equal parts of the blocks (Sec. 4 of the paper), counted from 1."""
        return tuple(self.depth * part // 4 for part in (1, 2, 3, 4))

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw new weights: truncated normal, residual branches scaled down with the depth."""
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif "norm" in name:
                nn.init.ones_(parameter)
            elif name.startswith("patch_embed"):
                std = math.sqrt(2 / parameter[0].numel())
                nn.init.trunc_normal_(parameter, std=std, a=-2 * std, b=2 * std, generator=generator)
                if parameter.shape[1:] == (3, 7, 7):
                    parameter.data.copy_(oriented_filters(len(parameter), generator))
            else:
                std = 0.02 if parameter.ndim != 2 else 1 / math.sqrt(parameter.shape[1])
                if name.endswith(("attn.proj.weight", "mlp.2.weight")):
                    std /= math.sqrt(2 * self.depth)
                nn.init.trunc_normal_(parameter, std=std, a=-2 * std, b=2 * std, generator=generator)

    @torch.no_grad()
    def centre(self, images: Float[Tensor, "B 3 H W"]) -> None:
        """Shift and scale fresh weights so that each channel of the tokens has mean 0 over `images`, and variance 1 at
        the first block: random layers have large common outputs, which would hide the differences between patches."""
        embedding = self.patch_embed(images)
        last = cast(nn.Conv2d, self.patch_embed[-1])
        assert last.bias is not None
        mean, std = embedding.mean((0, 2, 3)), embedding.std((0, 2, 3)) + 1e-5
        last.weight.div_(std[:, None, None, None])
        last.bias.sub_(mean).div_(std)
        height, width = embedding.shape[-2:]
        x = embedding.sub(mean[:, None, None]).div(std[:, None, None]) + self.position_embedding(height, width)
        distance = patch_distances(height, width, images.device)
        x = torch.cat([self.class_token.expand(len(x), -1, -1), rearrange(x, "b c h w -> b (h w) c")], dim=1)
        for block in cast("list[Block]", self.blocks):
            for norm, branch, bias in (
                (block.norm1, lambda t, b=block: b.attn(t, distance), block.attn.proj.bias),
                (block.norm2, block.mlp, cast(nn.Linear, block.mlp[-1]).bias),
            ):
                added = branch(norm(x))
                bias.sub_(added[:, 1:].mean((0, 1)))
                x = x + added - added[:, 1:].mean((0, 1))

    def position_embedding(self, height: int, width: int) -> Float[Tensor, "1 C height width"]:
        """The stored position embedding, interpolated bicubically to a grid of `height` x `width` patches."""
        if self.position.shape[-2:] == (height, width):
            return self.position
        return F.interpolate(self.position, (height, width), mode="bicubic", align_corners=False)

    def resized(self, image_size: int | None) -> ViT:
        """The same network, its position embedding stored for images of `image_size` pixels (None: as it is)."""
        model = ViT(dataclasses.replace(self.config, image_size=image_size or self.image_size))
        side = model.image_size // model.patch_size
        model.load_state_dict(self.state_dict() | {"position": self.position_embedding(side, side).detach()})
        return model.eval().requires_grad_(False)

    def shortened(self, depth: int | None) -> ViT:
        """The network of the first `depth` blocks (None: of all), the final LayerNorm after the last of them."""
        model = ViT(dataclasses.replace(self.config, depth=depth or self.depth))
        model.load_state_dict({key: value for key, value in self.state_dict().items() if key in model.state_dict()})
        return model.eval().requires_grad_(False)

    def forward_stages(
        self, images: Float[Tensor, "B 3 H W"], stages: tuple[int, ...] | None = None
    ) -> tuple[list[Float[Tensor, "B M C"]], Float[Tensor, "B C"]]:
        """Patch tokens after the blocks `stages`, and the class token.

        images: B normalised images (`mean`, `std`) whose sides are multiples of `patch_size`; they need be
        neither square nor of `image_size`. stages: blocks counted from 1 (None: `default_stages`). Patch tokens are
        the residual stream, whitened if the network has such maps, [B, M, C] with M = H * W / patch_size**2 in row
        order, in the order of `stages`; the class tokens [B, C] have passed the final LayerNorm. Raises ConfigError on
        another size or an unknown stage.
        """
        stages = stages or self.default_stages
        height, width = images.shape[-2:]
        if height % self.patch_size or width % self.patch_size:
            raise ConfigError(
                f"images of {height} x {width} pixels: give sides that are multiples of {self.patch_size}."
            )
        if unknown := [s for s in stages if not 1 <= s <= self.depth]:
            raise ConfigError(f"stages {unknown}: the network has blocks 1 to {self.depth}.")
        x = self.patch_embed(images)
        rows, columns = x.shape[-2:]
        x = rearrange(x + self.position_embedding(rows, columns), "b c h w -> b (h w) c")
        x = torch.cat([self.class_token.expand(len(x), -1, -1), x], dim=1)
        distance = patch_distances(rows, columns, x.device)
        tokens = {}
        for number, block in enumerate(self.blocks, start=1):
            x = block(x, distance)
            if number in stages:
                tokens[number] = self.whitening[number - 1](x[:, 1:]) if self.config.whitened else x[:, 1:]
        return [tokens[s] for s in stages], self.norm(x[:, 0])

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B C"]:
        """The class tokens of `forward_stages`."""
        return self.forward_stages(images)[1]


def mean(models: list[ViT], shares: list[float]) -> ViT:
    """The network whose weights are the mean of several networks' of one shape: of parts of one training, it often
    generalises better than any of them (Wortsman et al. 2022)."""
    model, states = ViT(models[0].config), [each.state_dict() for each in models]
    model.load_state_dict(
        {key: sum(share * state[key] for share, state in zip(shares, states, strict=True)) for key in states[0]}
    )
    return model


def save(model: ViT, path: str | Path, metadata: dict[str, str] | None = None) -> None:
    """Write the weights in float16, with the architecture and `metadata`, to a safetensors file that `load` reads."""
    tensors = {key: value.detach().cpu().half().contiguous() for key, value in model.state_dict().items()}
    architecture = json.dumps(model.config.to_dict())
    save_file(tensors, path, metadata={"architecture": architecture, **(metadata or {})})


def load(path: str | Path | None = None) -> ViT:
    """The network with its weights from a safetensors file, in evaluation mode and float32.

    path: a file that `python -m pretraining` wrote (None: the one in the package); its metadata holds the
    architecture.
    Raises WeightsError if the file is missing, unreadable or of another model.
    """
    path = Path(path) if path is not None else EMBEDDED_WEIGHTS
    if not path.is_file():
        what = "a folder, not a file" if path.is_dir() else "no such file; check the path"
        raise WeightsError(f"{path}: {what}, or make one with `python -m pretraining`.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key).float() for key in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path}: not a readable safetensors file ({error}).") from error
    if "architecture" not in metadata:
        raise WeightsError(f"{path}: its metadata names no architecture; give a file of `python -m pretraining`.")
    # not on the meta device, whose first use imports half of torch and takes longer than drawing weights in vain
    model = ViT(ViTConfig.from_dict(json.loads(metadata["architecture"])))
    try:
        model.load_state_dict(tensors, assign=True)
    except RuntimeError as error:
        raise WeightsError(f"{path}: weights of another model ({str(error).splitlines()[0]}).") from error
    return model.eval().requires_grad_(False)
