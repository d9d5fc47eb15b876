"""CLIP with both of its towers, for methods that compare images with sentences."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from musc.backbones import weights as weight_files
from musc.backbones.fetch import locate
from musc.backbones.registry import BackboneSpec
from musc.backbones.torchvision_guard import ready_torchvision
from musc.errors import ConfigError, WeightsError

LEFT_OVER = ("input_resolution", "context_length", "vocab_size")  # in OpenAI's own files beside the parameters


def load_clip(spec: BackboneSpec, weights: str | Path | None, image_size: int) -> nn.Module:
    """An open_clip model in evaluation mode on the CPU, its image positions resized to `image_size` pixels.

    weights: as for `load_backbone`; "random" draws them (seed 0). Raises ConfigError where `spec` is no CLIP,
    WeightsError where the file cannot be read, or holds the image tower alone.
    """
    if spec.library != "open_clip":
        raise ConfigError(f"{spec.name} has no text tower: choose a CLIP network.")
    ready_torchvision()
    import open_clip
    from open_clip.model import CLIP, resize_pos_embed

    found = open_clip.get_model_config(spec.model)
    vision = {**found["vision_cfg"], "image_size": image_size}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = CLIP(found["embed_dim"], vision, found["text_cfg"], quick_gelu=found.get("quick_gelu", False))
    if weights != "random":
        path, _ = locate(spec, weights)
        state: dict[str, Tensor] = weight_files.read_state_dict(path)
        state = {name: t for name, t in state.items() if name not in LEFT_OVER}
        if "token_embedding.weight" not in state:
            raise WeightsError(
                f"{path}: holds an image tower and no text tower, and sentences are read by one: give the whole CLIP, "
                f"as in https://huggingface.co/{spec.repo}."
            )
        if "visual.positional_embedding" in state:
            resize_pos_embed(state, model)
        weight_files.load_strictly(model, state, spec, path)
    return model.eval().requires_grad_(False)
