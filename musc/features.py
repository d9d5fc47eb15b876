"""Tokens of a whole category: decode, extract, cache (Sec. 3.1, first sentence).

The cache holds one safetensors file per image, addressed by the image's content and by everything that shapes its
tokens. A changed image or weight file therefore has another address, a half-written file is never visible (write,
then rename), and two processes may share one cache.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor
from tqdm import tqdm

from musc.backbones import Backbone, Tokens
from musc.datasets.base import Sample, Skipped
from musc.datasets.images import content_key, read_image
from musc.decoding import Preparation, read_ahead
from musc.errors import ConfigError, DataError
from musc.saving import whole
from musc.sizes import written

CACHE_VERSION = 2  # part of every address: raise it when the meaning of the stored tokens changes


@dataclass
class Features:
    """The tokens of N images: per stage l, patch_tokens[l] is [N, M_l, C_l], laid out on the grid grids[l] = (H, W)
    with M = H * W, row by row; class_tokens is [N, D] or None. samples are the images that were read, in order; keys
    their contents' digests (`content_key`), which are also their names in the cache. region: [N, H, W], or [1, H, W]
    for all images, True where patches take part (`scoring.roi`); None: everywhere. `only_read` gives no stages."""

    patch_tokens: list[Tensor]
    class_tokens: Tensor | None
    grids: tuple[tuple[int, int], ...]
    samples: tuple[Sample, ...]
    skipped: tuple[Skipped, ...] = ()
    keys: tuple[str, ...] = ()
    region: Tensor | None = None

    def __len__(self) -> int:
        return len(self.samples)

    def summary(self) -> Tensor | None:
        """[N, 4 C]: the mean patch token of each quarter of the image, of the last stage; None without tokens."""
        if not self.patch_tokens:
            return None
        H, W = self.grids[-1]
        # image by image: tokens may lie on disk
        grids = (tokens.float().reshape(H, W, -1).movedim(-1, 0) for tokens in self.patch_tokens[-1])  # [C, H, W] each
        return torch.stack([torch.nn.functional.adaptive_avg_pool2d(grid, 2).flatten() for grid in grids])

    def take(self, rows: Sequence[int]) -> Features:
        """The tokens of the images at `rows`, in that order."""
        index = torch.as_tensor(rows, dtype=torch.long)
        return Features(
            [stage[index] for stage in self.patch_tokens],
            None if self.class_tokens is None else self.class_tokens[index],
            self.grids,
            tuple(self.samples[i] for i in index.tolist()),
            self.skipped,
            tuple(self.keys[i] for i in index.tolist()) if self.keys else (),
            self.region if self.region is None or len(self.region) == 1 < len(self) else self.region[index],
        )


def check_references(features: Features, references: Features) -> None:
    """Raises ConfigError where `references` are tokens of another backbone, size or stages than `features`, DataError
    where an image stands in both: it would score itself, and find nothing but itself."""

    def shape(f: Features) -> str:
        stages = ", ".join(f"{H} x {W} x {t.shape[-1]}" for (H, W), t in zip(f.grids, f.patch_tokens, strict=True))
        return f"{len(f.grids)} stages of {stages}"

    if shape(features) != shape(references):
        raise ConfigError(
            f"the references' tokens have {shape(references)} (rows x columns x channels), the images' "
            f"{shape(features)}: extract both with the same backbone, image size and stages."
        )
    where = dict(zip(references.keys, references.samples, strict=True)) if references.keys else {}
    for key, sample in zip(features.keys, features.samples, strict=False):
        if key in where:
            raise DataError(
                f"{sample.name} is also a reference image ({where[key].name}): an image that scores itself "
                "always looks normal. Leave it out of one of the two."
            )


class TokenCache:
    """Tokens on disk, one file per image; `folder` None caches nothing."""

    def __init__(self, folder: Path | None, backbone: Backbone, half: bool) -> None:
        recipe = {
            "version": CACHE_VERSION,
            "backbone": backbone.spec.name,
            "weights": backbone.weights_id,
            "image_size": backbone.image_size,
            "stages": list(backbone.stages),
            "preprocessing": [list(backbone.mean), list(backbone.std), backbone.interpolation],
            "half": half,
        }
        digest = hashlib.blake2b(json.dumps(recipe, sort_keys=True).encode(), digest_size=8).hexdigest()
        self.folder = folder / f"{backbone.spec.name.replace('/', '-')}-{digest}" if folder else None
        self._write_failed = False

    def get(self, key: str) -> dict[str, Tensor] | None:
        """The tokens of the image with that content key; None where they are not stored or cannot be read."""
        if self.folder is None:
            return None
        path = self.folder / f"{key}.safetensors"
        try:
            tokens = safetensors.torch.load_file(path)
            with suppress(OSError):
                os.utime(path)  # the time of its last use, by which `prune` chooses
            return tokens
        except (OSError, SafetensorError):  # not there, or damaged on disk: extract it again
            return None

    def put(self, key: str, tokens: dict[str, Tensor]) -> None:
        """Store tokens. A full disk costs the cache, never the run: it is said once, and the run goes on."""
        if self.folder is None or self._write_failed:
            return
        try:
            with whole(self.folder / f"{key}.safetensors") as path:
                safetensors.torch.save_file(tokens, path)
        except (OSError, SafetensorError) as error:
            self._write_failed = True
            warnings.warn(f"features are not cached, since {self.folder} cannot be written ({error})", stacklevel=2)


def extract(
    samples: Sequence[Sample],
    backbone: Backbone,
    *,
    cache: Path | None = None,
    batch_size: int = 8,
    workers: int = 2,
    processes: bool = False,
    half: bool = False,
    max_bytes: int | None = None,
    progress: bool = False,
) -> Features:
    """Patch tokens and class tokens of every readable image; the others are named in `skipped`, with the reason.

    Args:
        samples: the images, in the order of the rows that come back.
        backbone: a frozen network on its device; it fixes the input size and the stages.
        cache: folder of the token cache (None: extract afresh, store nothing).
        batch_size: images per forward pass.
        workers: threads that read, hash and decode images ahead of the network (0: in this thread).
        processes: let so many processes do that instead, where images can be sent to them; the tokens are the same.
        half: run the network under float16 autocast and keep float16 tokens (CUDA only; float32 elsewhere).
        max_bytes: tokens that take more lie in a file, in the cache's folder or the system's temporary one, which goes
            with the process (None: in memory in any case).
        progress: show a bar on a terminal: images whose tokens are there, and how many a second.

    Raises:
        DataError: not one image could be read, or the network gives NaN or infinity for one.
        ConfigError: memory does not hold a single image (where it does not hold a batch, smaller ones are taken), or
            the disk not the tokens.

    Example:
        >>> from musc.backbones import load_backbone
        >>> from musc.datasets import load_category
        >>> tile = load_category("synthetic", name="tile", good=2, defects=1)
        >>> features = extract(tile.samples, load_backbone("procedural", weights="random", image_size=64), workers=0)
        >>> len(features), [len(stage) for stage in features.patch_tokens]
        (3, [3, 3, 3, 3])
    """
    half = half and backbone.device.type == "cuda"
    store = TokenCache(cache, backbone, half)
    rows = _Rows(len(samples), backbone, max_bytes, cache)
    skipped: list[Skipped] = []
    waiting: list[tuple[int, str, Tensor]] = []
    recipe = Preparation(backbone.image_size, backbone.mean, backbone.std, backbone.interpolation, store.folder)

    def flush() -> None:
        if waiting:
            indices, keys, images = zip(*waiting, strict=True)
            for index, key, tokens in zip(
                indices, keys, _forward(backbone, _stacked(images, backbone), half), strict=True
            ):
                _check_finite(tokens, samples[index].name, backbone)
                store.put(key, tokens)
                rows.set(index, key, tokens)
            bar.update(len(waiting))
            waiting.clear()

    read = read_ahead([s.image for s in samples], recipe, store.get, workers, processes, ahead=2 * batch_size)
    hidden = None if progress else True  # None: on a terminal only
    with tqdm(total=len(samples), desc="tokens", unit="image", disable=hidden) as bar:
        for index, (key, item) in enumerate(read):
            if isinstance(item, Tensor):
                waiting.append((index, key, item))
                if len(waiting) == batch_size:
                    flush()
                continue
            if isinstance(item, DataError):
                skipped.append(Skipped(samples[index].name, str(item)))
            else:
                rows.set(index, key, item)
            bar.update()
        flush()
    _check_any_read(samples, skipped)
    return rows.features(samples, skipped)


def only_read(samples: Sequence[Sample], workers: int = 2) -> Features:
    """The readable images and their digests without tokens, for a method that runs the images through its own network.

    Raises DataError where not one image could be read.

    Example:
        >>> from musc.datasets import load_category
        >>> tile = only_read(load_category("synthetic", name="tile", good=2, defects=1).samples)
        >>> len(tile), len(tile.keys), tile.patch_tokens
        (3, 3, [])
    """

    def read(sample: Sample) -> str | Skipped:
        try:
            key = content_key(sample.image)
            read_image(sample.image)
        except DataError as error:
            return Skipped(sample.name, str(error))
        return key

    with ThreadPoolExecutor(max(1, workers)) as pool:
        found = list(zip(samples, pool.map(read, samples), strict=True))
    skipped = tuple(key for _, key in found if isinstance(key, Skipped))
    _check_any_read(samples, skipped)
    kept = [(sample, key) for sample, key in found if isinstance(key, str)]
    return Features([], None, (), tuple(s for s, _ in kept), skipped, tuple(key for _, key in kept))


def _check_any_read(samples: Sequence[Sample], skipped: Sequence[Skipped]) -> None:
    if len(skipped) == len(samples):
        reasons = "\n  ".join(s.reason for s in skipped[:3])
        raise DataError(f"none of the {len(samples)} images could be read:\n  {reasons}" if samples else "no images.")


def stored(keys: Sequence[str], names: Sequence[str], backbone: Backbone, cache: Path, half: bool = False) -> Features:
    """The tokens of images that were extracted before, from the cache alone; keys: their contents' digests.

    Raises DataError where some are not in `cache`: for another backbone or size, cleared, or never kept.
    """
    store = TokenCache(cache, backbone, half)
    rows, missing = _Rows(len(keys), backbone), []
    for index, (key, name) in enumerate(zip(keys, names, strict=True)):
        if (tokens := store.get(key)) is None:
            missing.append(name)
        else:
            rows.set(index, key, tokens)
    if missing or not keys:
        raise DataError(
            f"the tokens of {len(missing)} of {len(keys)} images (first {missing[0] if missing else 'none'}) are not "
            f"in {store.folder}."
        )
    return rows.features([Sample(name, Path(name)) for name in names], [])


def _stacked(images: Sequence[Tensor], backbone: Backbone) -> Tensor:
    """[B, 3, rows, columns]; for a GPU in memory that it copies from by itself."""
    batch = torch.empty(len(images), *images[0].shape, pin_memory=backbone.device.type == "cuda")
    return torch.stack(list(images), out=batch)


def _forward(backbone: Backbone, images: Tensor, half: bool) -> Iterator[dict[str, Tensor]]:
    """One named set of tokens per image, on the CPU, as the cache stores them; in parts where memory runs out."""
    tokens: Tokens | None = None
    try:
        with torch.autocast("cuda", dtype=torch.float16, enabled=half):
            tokens = backbone(images.to(backbone.device, non_blocking=True))
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not _out_of_memory(error):
            raise
    if tokens is None:  # here, and not where it was caught: the exception keeps the failed attempt's tensors alive
        if len(images) == 1:
            raise ConfigError(
                f"memory on {backbone.device} does not hold one image of {written(backbone.image_size)} px in "
                f"{backbone.spec.name}: take a smaller image_size or network, or another device."
            )
        for part in images.split(-(-len(images) // 2)):
            yield from _forward(backbone, part, half)
        return
    named = {f"stage{n}": t for n, t in enumerate(tokens.patch_tokens)}
    if tokens.class_tokens is not None:
        named["class"] = tokens.class_tokens
    named = {name: (t.half() if half else t.float()).cpu() for name, t in named.items()}
    for i in range(len(images)):
        yield {name: t[i].contiguous() for name, t in named.items()}


def _out_of_memory(error: BaseException) -> bool:
    """Whether it is: torch raises a RuntimeError of its own kind on a GPU, and a plain one on the CPU."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "not enough memory" in str(error)


def _check_finite(tokens: dict[str, Tensor], name: str, backbone: Backbone) -> None:
    if not all(torch.isfinite(t).all() for t in tokens.values()):
        raise DataError(
            f"{name}: {backbone.spec.name} gives NaN or infinity for this image, which would spoil the scores of all. "
            "Leave the image out, or check the weights and, where half precision was asked for, use float32."
        )


class _Rows:
    """Tokens of N images gathered into one tensor per stage, allocated once; of more than `max_bytes`, on disk."""

    def __init__(self, N: int, backbone: Backbone, max_bytes: int | None = None, folder: Path | None = None) -> None:
        self.N, self.backbone, self.max_bytes, self.folder = N, backbone, max_bytes, folder
        self.tensors: dict[str, Tensor] = {}
        self.keys: dict[int, str] = {}

    def set(self, index: int, key: str, tokens: dict[str, Tensor]) -> None:
        if not self.tensors:
            size = self.N * sum(value.nbytes for value in tokens.values())
            allocate = torch.empty if self.max_bytes is None or size <= self.max_bytes else self._on_disk(size)
            self.tensors = {n: allocate((self.N, *value.shape), dtype=value.dtype) for n, value in tokens.items()}
        for name, value in tokens.items():
            self.tensors[name][index] = value
        self.keys[index] = key

    def _on_disk(self, size: int) -> Callable[..., Tensor]:
        folder = self.folder or Path(tempfile.gettempdir())
        folder.mkdir(parents=True, exist_ok=True)
        if (free := shutil.disk_usage(folder).free) < size:
            raise ConfigError(
                f"{folder}: the tokens of {self.N} images need {size / 2**30:.1f} GiB, more than memory holds, and "
                f"{free / 2**30:.1f} GiB are free: name another folder (--cache), or take a smaller image_size."
            )

        def allocate(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
            handle, path = tempfile.mkstemp(prefix=".tokens-", dir=folder)
            os.close(handle)
            tensor = torch.from_file(path, shared=True, size=math.prod(shape), dtype=dtype).reshape(shape)
            with suppress(OSError):  # its pages stay until the tensor goes; where a file in use cannot go, it is left
                os.unlink(path)
            return tensor

        return allocate

    def features(self, samples: Sequence[Sample], skipped: list[Skipped]) -> Features:
        kept = torch.tensor(sorted(self.keys))
        tensors = self.tensors if len(kept) == self.N else {n: t[kept] for n, t in self.tensors.items()}
        stages = [tensors[f"stage{n}"] for n in range(len(self.backbone.grids))]
        read = tuple(samples[int(i)] for i in kept)
        keys = tuple(self.keys[int(i)] for i in kept)
        return Features(stages, tensors.get("class"), self.backbone.grids, read, tuple(skipped), keys)
