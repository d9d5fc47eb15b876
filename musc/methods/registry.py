"""Every method by name, with its paper's settings."""

from __future__ import annotations

import torch

from musc.backbones import AUTO, BACKBONES, Backbone, choose_backbone, find_backbone, resolve_device
from musc.backbones.text import load_clip
from musc.config import NEED_REFERENCES, OTHER_METHODS, MuScConfig
from musc.errors import ConfigError
from musc.methods.anomalydino import AnomalyDINO
from musc.methods.base import Method
from musc.methods.mutual import Mutual
from musc.methods.padim import PaDiM
from musc.methods.patchcore import PatchCore
from musc.methods.spade import Spade
from musc.methods.subspacead import SubspaceAD
from musc.methods.winclip import WinCLIP
from musc.scoring.maps import Scorer
from musc.sizes import scaled

TITLES = {
    "musc": "MuSc",
    "musc+": "MuSc+",
    "muscv2": "MuSc-V2 (2-D part)",
    "anomalydino": "AnomalyDINO",
    "subspacead": "SubspaceAD",
    "patchcore": "PatchCore",
    "spade": "SPADE",
    "padim": "PaDiM",
    "winclip": "WinCLIP",
}


def check(config: MuScConfig, references: bool) -> None:
    """Raises ConfigError, before the work, where the method needs reference images and there are none, or sentences and
    the backbone cannot read.

    Example:
        >>> check(MuScConfig(method="padim"), references=False)
        Traceback (most recent call last):
        musc.errors.ConfigError: method padim compares with normal reference images: give some (--reference-images or \
--shots).
    """
    if config.method in NEED_REFERENCES and not references:
        raise ConfigError(
            f"method {config.method} compares with normal reference images: give some (--reference-images or --shots)."
        )
    if config.method != "winclip":
        return
    if config.image_size is not None and not isinstance(config.image_size, int):
        raise ConfigError(
            f"image_size = {config.image_size!r}: method winclip cuts squares into windows; give one side, such as 240."
        )
    spec = find_backbone(choose_backbone(config.weights) if config.backbone == AUTO else config.backbone)
    if spec.library != "open_clip":
        readers = ", ".join(name for name, other in BACKBONES.items() if other.library == "open_clip")
        raise ConfigError(
            f"method winclip compares images with sentences, and {spec.name} has no text tower: choose a CLIP network "
            f"with --backbone ({readers}; its paper's is ViT-B-16-plus-240)."
        )


def build(config: MuScConfig, backbone: Backbone, product: str, scorer: Scorer | None = None) -> Method:
    """The method of `config`; product: what is seen, for methods with sentences; scorer: computes mutual scoring, from
    tokens on the CPU (None: the configuration's device does).

    Raises ConfigError as `check` does, WeightsError where a text tower cannot be loaded.
    """
    size = scaled(config.map_size, backbone.image_size) if config.map_size else backbone.image_size
    match config.method:
        case "patchcore":
            return PatchCore(seed=config.seed)
        case "spade":
            return Spade()
        case "padim":
            return PaDiM(seed=config.seed)
        case "anomalydino":
            return AnomalyDINO()
        case "subspacead":
            return SubspaceAD()
        case "winclip":
            return _winclip(config, product)
    assert config.method not in OTHER_METHODS
    if scorer is not None:
        return Mutual(config, size, "cpu", scorer)
    return Mutual(config, size, resolve_device(config.device))


def _winclip(config: MuScConfig, product: str) -> WinCLIP:
    check(config, references=True)
    spec = find_backbone(config.backbone)
    side = config.image_size or spec.native_size
    assert isinstance(side, int)  # `check` lets nothing else through
    spec.check_image_size(side)
    device: torch.device = resolve_device(config.device)
    clip = load_clip(spec, config.weights, side).to(device)
    return WinCLIP(clip, product, side, spec.mean, spec.std, spec.interpolation)
