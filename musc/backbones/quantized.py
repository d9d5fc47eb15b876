"""A network whose linear layers multiply 8-bit integers: faster on a processor without AVX-512, and not the same."""

from __future__ import annotations

import copy
import warnings

import torch
from torch import nn

from musc.backbones import Backbone
from musc.errors import ConfigError

DONE = ", int8"  # ends the identity of such weights


def in_int8(backbone: Backbone) -> Backbone:
    """The backbone on a CPU with linear layers in int8: weights once, activations as they come (dynamic quantisation).

    Its `weights_id` says so: tokens and results are others than those of float32. Layers that multiply within torch's
    own attention (CLIP's) stay as they are. Raises ConfigError on a GPU, or where this torch cannot do it: it means to
    give the feature up.

    Example:
        >>> from musc.backbones import load_backbone
        >>> in_int8(load_backbone("deit_tiny_patch16_224", weights="random", image_size=32, device="cpu")).weights_id
        'random-seed0, int8'
    """
    if backbone.weights_id.endswith(DONE):
        return backbone
    if backbone.device.type != "cpu":
        raise ConfigError(
            f"backbone_precision = 'int8' is for the CPU, and the network is on {backbone.device}: choose float16."
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it will be given up
            network = torch.ao.quantization.quantize_dynamic(copy.deepcopy(backbone.network), {nn.Linear}, torch.qint8)
    except (AttributeError, RuntimeError) as error:
        raise ConfigError(
            f"backbone_precision = 'int8': torch {torch.__version__} cannot do that here ({error}): choose float32."
        ) from error
    found = copy.copy(backbone)
    found.network, found.weights_id = network, backbone.weights_id + DONE
    found.again = lambda size: in_int8(backbone.resized(size))
    return found
