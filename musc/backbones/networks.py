"""The networks: built by their libraries, and run for the tokens of some stages and the class token."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from musc.backbones import embedded
from musc.backbones.registry import BackboneSpec, embedded_spec
from musc.backbones.torchvision_guard import ready_torchvision
from musc.sizes import Size

# (network, images, stages in ascending order, whether to compute the class token) -> stage tokens, class tokens
Run = Callable[[nn.Module, Tensor, list[int], bool], tuple[list[Tensor], Tensor | None]]


def build(spec: BackboneSpec, image_size: Size, *, draw: bool) -> nn.Module:
    """The network for that input size; with `draw`, its weights are drawn (seed 0), otherwise they are to be loaded."""
    with _seeded():
        if spec.library == "open_clip":
            return _build_clip(spec, image_size, draw)
        ready_torchvision()
        from timm import create_model

        # "skip" leaves out the slow initial draw, which loading overwrites
        return create_model(
            spec.model, pretrained=False, num_classes=0, img_size=image_size, weight_init="" if draw else "skip"
        )


def _build_clip(spec: BackboneSpec, image_size: Size, draw: bool) -> nn.Module:
    """CLIP's image tower alone: building the text tower as well would double time and memory."""
    ready_torchvision()
    import open_clip
    from open_clip.transformer import LayerNorm, QuickGELU, VisionTransformer

    config = open_clip.get_model_config(spec.model)
    vision = config["vision_cfg"]
    with torch.device("cpu" if draw else "meta"):
        return VisionTransformer(
            image_size=image_size,
            patch_size=vision["patch_size"],
            width=vision["width"],
            layers=vision["layers"],
            heads=vision["width"] // vision.get("head_width", 64),
            mlp_ratio=vision.get("mlp_ratio", 4.0),
            output_dim=config["embed_dim"],
            act_layer=QuickGELU if config.get("quick_gelu") else nn.GELU,
            norm_layer=LayerNorm,
        )


def build_embedded(weights: Path | None, *, draw: bool) -> tuple[BackboneSpec, nn.Module]:
    """The network of `musc.backbones.embedded`, and its spec: a weight file of that kind names its own architecture."""
    if not draw:
        network = embedded.load(weights)
    else:
        with _seeded():
            network = embedded.ViT()
    return embedded_spec(network.config), network


@contextmanager
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def run_clip(
    net: nn.Module, images: Tensor, stages: list[int], class_token: bool
) -> tuple[list[Tensor], Tensor | None]:
    """Raw residual stream per stage; class token through the final LayerNorm and projection, L2-normalised."""
    out = net.forward_intermediates(  # type: ignore[operator]
        images,
        indices=[s - 1 for s in stages],
        stop_early=not class_token,
        intermediates_only=not class_token,
        output_fmt="NLC",
    )
    return out["image_intermediates"], F.normalize(out["image_features"], dim=-1) if class_token else None


def run_vit(
    net: nn.Module, images: Tensor, stages: list[int], class_token: bool, normed: bool
) -> tuple[list[Tensor], Tensor | None]:
    """Residual stream per stage, with `normed` through the final LayerNorm; class token through it in any case."""
    out = net.forward_intermediates(  # type: ignore[operator]
        images,
        indices=[s - 1 for s in stages],
        norm=normed,
        stop_early=not class_token,
        intermediates_only=not class_token,
        output_fmt="NLC",
    )
    if not class_token:
        return out, None
    final, tokens = out  # final: [B, 1 + M, C] after the final LayerNorm
    return tokens, final[:, 0]


def run_swin(
    net: nn.Module, images: Tensor, stages: list[int], class_token: bool
) -> tuple[list[Tensor], Tensor | None]:
    """Each stage's own output; no class token, so the mean of the last one after the final LayerNorm."""
    out = net.forward_intermediates(  # type: ignore[operator]
        images, indices=[s - 1 for s in stages], stop_early=not class_token, intermediates_only=not class_token
    )
    final, maps = out if class_token else (None, out)  # final: [B, H, W, C]; maps: [B, C, H, W] each
    return [rearrange(m, "b c h w -> b (h w) c") for m in maps], None if final is None else final.mean(dim=(1, 2))


def run_embedded(
    net: nn.Module, images: Tensor, stages: list[int], class_token: bool
) -> tuple[list[Tensor], Tensor | None]:
    """Raw residual stream per stage; class token through the final LayerNorm."""
    tokens, final = net.forward_stages(images, tuple(stages))  # type: ignore[operator]
    return tokens, final if class_token else None


def runner(spec: BackboneSpec) -> Run:
    """How a network of that kind is run."""
    if spec.library == "musc":
        return run_embedded
    if spec.library == "open_clip":
        return run_clip
    if spec.family == "Swin":
        return run_swin
    return lambda net, images, stages, class_token: run_vit(net, images, stages, class_token, spec.normed)
