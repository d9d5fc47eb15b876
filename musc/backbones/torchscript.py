"""The parameters in a TorchScript archive, such as OpenAI's CLIP files, read as data: its program is never run.

`torch.jit.load` runs code of the archive (a scripted `__setstate__`) while it loads. Here the archive is what it is, a
zip file with a pickle of the modules' attributes and one file of bytes per storage; of the pickle's names only those of
tensors and of containers are known, and a module of the archive's own is an empty shell for its attributes.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from musc.errors import WeightsError

MOST_MODULES = 100_000  # visited, lest a file made to be slow never ends
STORAGES = {
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
}  # fmt: skip


def is_torchscript(archive: zipfile.ZipFile) -> bool:
    """Whether a torch archive holds a program, and not just tensors."""
    return any(name.endswith("/constants.pkl") for name in archive.namelist())


def read_torchscript(path: Path) -> dict[str, Tensor]:
    """The tensors of every module of a TorchScript archive, by their dotted names.

    Raises WeightsError where the archive asks for anything but tensors, containers and its own modules, or holds a
    tensor larger than its bytes.
    """
    with zipfile.ZipFile(path) as archive:
        pickles = [name for name in archive.namelist() if PurePosixPath(name).name == "data.pkl"]
        if len(pickles) != 1:
            raise WeightsError(f"{path}: {len(pickles)} data.pkl in the archive instead of one. Fetch the file again.")
        stream = io.BytesIO(_stored(archive, pickles[0], path))
        root = _Reader(stream, archive, PurePosixPath(pickles[0]).parent, path).load()
    found: dict[str, Tensor] = {}
    waiting: list[tuple[str, Any]] = [("", root)]
    seen: set[int] = set()
    while waiting:
        name, value = waiting.pop()
        if isinstance(value, Tensor):
            found[name] = value
        elif isinstance(value, _Module | dict) and id(value) not in seen:
            seen.add(id(value))
            if len(seen) > MOST_MODULES:
                raise WeightsError(f"{path}: more than {MOST_MODULES} modules: no network of ours has so many.")
            inner = value.attributes if isinstance(value, _Module) else value
            waiting += [(f"{name}.{key}" if name else str(key), part) for key, part in inner.items()]
    return found


class _Module:
    """A module of the archive: its attributes, and nothing that it could do."""

    attributes: Mapping[str, Any] = MappingProxyType({})

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.attributes = state


class _Reader(pickle.Unpickler):
    """Reads the modules' attributes; every name in the pickle is looked up here and nowhere else."""

    def __init__(self, stream: Any, archive: zipfile.ZipFile, folder: PurePosixPath, path: Path) -> None:
        super().__init__(stream)
        self.archive, self.folder, self.path = archive, folder, path
        self.storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module == "__torch__" or module.startswith("__torch__."):
            return _Module
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return self.tensor
        if module == "torch.jit._pickle":  # lists of numbers and of tensors, and values marked with their type
            return _first
        raise WeightsError(
            f"{self.path}: asks for {module}.{name} while it is read, which is not run, for safety. Save its "
            "state_dict alone, best as safetensors."
        )

    def persistent_load(self, pid: Any) -> Tensor:
        kind, dtype, key, _, count = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype):
            raise WeightsError(f"{self.path}: holds a {kind!r} where a storage belongs. Fetch the file again.")
        if key not in self.storages:
            data = _stored(self.archive, str(self.folder / "data" / key), self.path)
            self.storages[key] = torch.frombuffer(bytearray(data), dtype=dtype) if data else torch.empty(0, dtype=dtype)
        if len(self.storages[key]) < count:
            raise WeightsError(f"{self.path}: storage {key} is cut short. Fetch the file again.")
        return self.storages[key]

    def tensor(self, storage: Tensor, offset: int, size: tuple, stride: tuple, *_: Any) -> Tensor:
        view = storage.as_strided(size, stride, offset)
        if view.numel() > storage.numel():
            raise WeightsError(f"{self.path}: a tensor of {tuple(size)} in {storage.numel()} numbers.")
        return view


def _stored(archive: zipfile.ZipFile, name: str, path: Path) -> bytes:
    """The bytes of an entry, which torch stores as they are: a compressed one could swell without bound."""
    entry = archive.getinfo(name)
    if entry.compress_type != zipfile.ZIP_STORED:
        raise WeightsError(f"{path}: {name} is compressed, which torch never does. Fetch the file again.")
    return archive.read(entry)


def _first(value: Any, *_: Any) -> Any:
    return value
