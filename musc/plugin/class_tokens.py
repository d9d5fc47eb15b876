"""Class tokens from files: our result folders, NumPy files, and pickled arrays that may come from anyone.

The authors publish their class tokens as NumPy arrays inside a pickle, and a pickle can run code when it is read.
`read_pickled_arrays` reads the arrays and nothing else.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from musc.errors import ConfigError, DataError
from musc.saving import regular_file


@dataclass(frozen=True)
class ClassTokens:
    """Class tokens [N, D] of one category, and the relative path of each row where the file names them."""

    source: str
    tokens: NDArray[Any]
    paths: tuple[str, ...] | None = None


def read_class_tokens(source: Path | str) -> dict[str, ClassTokens]:
    """The class tokens of every category in a file; one that the file does not name has the key "".

    source: one of our result folders; a .npz file with the arrays `class_tokens` [N, D] and `paths` [N], or with one
    array per category; a .npy file; or a pickled array or {category: array}, as the published `mvtec_ad_cls.dat`.
    Raises DataError where it cannot be read as one of these, or names a path twice.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "tokens.npy"
        >>> np.save(file, np.eye(3))
        >>> read_class_tokens(file)[""].tokens.shape
        (3, 3)
    """
    source = Path(source)
    if source.is_dir():
        return {"": _from_result(source)}
    try:
        with regular_file(source) as file:
            start = file.read(6)
            file.seek(0)
            if start[:2] == b"PK" or start == b"\x93NUMPY":
                content: Any = np.load(file, allow_pickle=False)
                if isinstance(content, np.lib.npyio.NpzFile):
                    content = {name: content[name] for name in content.files}
            else:
                content = read_pickled_arrays(source)
    except FileNotFoundError as error:
        raise DataError(f"{source} is not there: name the file or result folder of the class tokens.") from error
    except DataError:
        raise
    except Exception as error:  # a damaged archive can fail in any way
        raise DataError(f"{source} cannot be read as class tokens ({type(error).__name__}: {error}).") from error

    if isinstance(content, dict) and "class_tokens" not in content:
        return {str(key): ClassTokens(str(source), _as_tokens(v, f"{source}: {key}")) for key, v in content.items()}
    paths = None
    if isinstance(content, dict):
        paths, content = content.get("paths"), content["class_tokens"]
    tokens = _as_tokens(content, str(source))
    if paths is None:
        return {"": ClassTokens(str(source), tokens)}
    names = unique_paths([str(path) for path in np.atleast_1d(paths)], source)
    if len(names) != len(tokens):
        raise DataError(f"{source} has {len(names)} paths but {len(tokens)} class tokens: one of each per image.")
    return {"": ClassTokens(str(source), tokens, names)}


def pick(found: Mapping[str, ClassTokens], category: str | None, source: Path | str) -> ClassTokens:
    """The tokens of `category`, by its full key or the part behind the last slash ("visa/candle" is candle).

    A single set without a name serves any category. Raises ConfigError where the choice is not clear.

    Example:
        >>> tokens = ClassTokens("tokens.npz", np.eye(2))
        >>> pick({"visa/candle": tokens, "visa/pcb1": tokens}, "candle", "tokens.npz") is tokens
        True
    """
    if set(found) == {""} or (category is None and len(found) == 1):
        return next(iter(found.values()))
    keys = [key for key in found if key == category] or [k for k in found if k.rpartition("/")[2] == category]
    if len(keys) != 1:
        what = "several categories" if category is None else f"{'several' if keys else 'no'} {category!r}"
        raise ConfigError(f"{source} holds {what}: name one of {', '.join(found)} with --category.")
    return found[keys[0]]


def read_pickled_arrays(path: Path | str) -> Any:
    """Plain containers and numeric NumPy arrays from a pickle; no code in it is ever run.

    Each name that NumPy's pickles mention stands for a class of this module that only notes down shape, type and
    bytes, and the arrays are made from these notes. Any other name is refused before anything is called. Pickles of
    NumPy 1 and 2 and of every protocol are read. Raises DataError on anything else.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "tokens.dat"
        >>> _ = file.write_bytes(pickle.dumps({"candle": np.eye(2)}))
        >>> read_pickled_arrays(file)["candle"].tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """
    try:
        with regular_file(Path(path)) as file:
            data = file.read()
        _check_numbers(data)
        return _thaw(_ArraysOnly(io.BytesIO(data)).load())
    except DataError as error:
        raise DataError(f"{path} {error}") from error
    except OSError:
        raise
    except Exception as error:  # a damaged pickle can fail in any way
        raise DataError(f"{path} cannot be read as pickled arrays ({type(error).__name__}: {error}).") from error


class _DType:
    """numpy.dtype as a pickle describes it: a type code, then a byte order."""

    def __init__(self, code: str | bytes, *_: object) -> None:
        self.code, self.order = _bytes(code).decode("latin1"), "="
        if self.code[:1] not in "fiu" or not self.code[1:].isdigit():
            raise DataError(f"holds an array of type {self.code!r}: only numbers are read.")

    def __setstate__(self, state: tuple) -> None:
        self.order = state[1] if state[1] in ("<", ">") else "="


class _Array:
    """numpy.ndarray as a pickle describes it: shape, type, order and bytes."""

    def __init__(self, *_: object) -> None:
        self.array: NDArray | None = None

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, fortran, data = state
        self.fill(data, dtype, shape, "F" if fortran else "C")

    def fill(self, data: str | bytes | bytearray, dtype: _DType, shape: tuple, order: str) -> None:
        if not isinstance(dtype, _DType):
            raise DataError("holds an array without a type.")
        numbers = np.frombuffer(_bytes(data), np.dtype(dtype.order + dtype.code))
        self.array = numbers.reshape(shape, order="F" if order == "F" else "C")


class _Buffer(_Array):
    """numpy's _frombuffer, as protocol 5 describes an array."""

    def __init__(self, data: str | bytes | bytearray, dtype: _DType, shape: tuple, order: str, *_: object) -> None:
        self.fill(data, dtype, shape, order)


class _Scalar(_Array):
    def __init__(self, dtype: _DType, data: str | bytes | bytearray) -> None:
        self.fill(data, dtype, (), "C")


class _Latin(str):
    """Bytes in protocols 0 to 2: text, and the request to encode it."""

    def __new__(cls, text: str, *_: object) -> _Latin:
        return super().__new__(cls, text)


def _bytes(data: str | bytes | bytearray) -> bytes:
    if isinstance(data, str):
        return data.encode("latin1")
    if not isinstance(data, bytes | bytearray):
        raise DataError("holds an array without its numbers.")
    return bytes(data)


# Classes only: a pickle may set attributes of any object it can name, and of a class it cannot.
_STANDS_FOR: dict[tuple[str, str], type] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _DType,
    ("_codecs", "encode"): _Latin,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _Array for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _Scalar for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _Buffer for core in ("core", "_core")},
}


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _STANDS_FOR:
            raise DataError(f"asks for {module}.{name}, which no array needs: it was not read.")
        return _STANDS_FOR[module, name]


def _check_numbers(data: bytes) -> None:
    """Every length must be there, and no place be numbered beyond what the file can fill: the reader would make room
    for what a damaged file claims."""
    for opcode, argument, _ in pickletools.genops(data):
        if "PUT" in opcode.name and int(argument or 0) > len(data):
            raise DataError(f"is damaged: it numbers a place {argument} in {len(data)} bytes.")


def _thaw(content: Any, known: dict[int, Any] | None = None) -> Any:
    """Plain containers and arrays. `known`: what became of every container, which a small file may name many times."""
    known = {} if known is None else known
    if isinstance(content, _Array):
        if content.array is None:
            raise DataError("holds an array without its numbers.")
        return content.array
    if not isinstance(content, dict | list | tuple):
        return content
    if id(content) not in known:
        known[id(content)] = None  # of a container that holds itself
        if isinstance(content, dict):
            known[id(content)] = {_key(key): _thaw(value, known) for key, value in content.items()}
        else:
            known[id(content)] = [_thaw(value, known) for value in content]
    return known[id(content)]


def _key(key: Any) -> str:
    if not isinstance(key, str | bytes | int):
        raise DataError("names an array by something that is neither text nor a number.")
    return key.decode("latin1") if isinstance(key, bytes) else str(key)


def _from_result(folder: Path) -> ClassTokens:
    try:
        paths = pd.read_csv(folder / "scores.csv", usecols=["path"], dtype=str, keep_default_na=False)["path"]
        tokens = np.load(folder / "class_tokens.npy", allow_pickle=False)
    except FileNotFoundError as error:
        raise DataError(
            f"{folder} has no {Path(str(error.filename)).name}: name the result folder of one category, made with a "
            "backbone that has class tokens."
        ) from error
    except Exception as error:
        raise DataError(f"{folder} cannot be read as a result ({type(error).__name__}: {error}).") from error
    if len(paths) != len(tokens):
        raise DataError(f"{folder} has {len(paths)} paths but {len(tokens)} class tokens: run it again.")
    return ClassTokens(str(folder), _as_tokens(tokens, str(folder)), unique_paths(tuple(paths), folder))


def _as_tokens(content: Any, source: str) -> NDArray[Any]:
    try:
        tokens = np.asarray(content)
    except ValueError:  # rows of unequal length
        tokens = np.empty(0)
    if tokens.ndim != 2 or tokens.dtype.kind not in "fiu":
        raise DataError(f"{source} holds no class tokens: an array of numbers [N, D] is needed, one row per image.")
    return tokens


def normal_path(path: str) -> str:
    """A relative path with forward slashes, without "./" or doubled slashes.

    Example:
        >>> normal_path("./bad//000.png"), normal_path("bad\\\\000.png")
        ('bad/000.png', 'bad/000.png')
    """
    return posixpath.normpath(path.strip().replace("\\", "/"))


def unique_paths(paths: Sequence[str], source: Path | str) -> tuple[str, ...]:
    """The paths, normalised. Raises DataError where two are equal then, or one is empty.

    Example:
        >>> unique_paths(["./a.png", "b.png"], "scores.csv")
        ('a.png', 'b.png')
    """
    normal = tuple(map(normal_path, paths))
    if "." in normal:
        raise DataError(f"{source} has a row without a path: name every image, or leave that row out.")
    if len(set(normal)) < len(normal):
        twice = next(p for p in normal if normal.count(p) > 1)
        raise DataError(f"{source} names {twice!r} twice: every image once, or the join is ambiguous.")
    return normal
