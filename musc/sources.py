"""What our own source files mean, as digests: comments, docstrings and layout change nothing."""

from __future__ import annotations

import ast
import hashlib
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

# No number of a result depends on these: how it is shown, and what only asks for it.
NOT_NUMERICAL = (
    "__main__.py", "errors.py", "saving.py", "sources.py", "cli/", "plugin/",
    "results/figures.py", "results/folders.py", "results/marks.py", "results/outlines.py", "results/pictures.py",
    "results/regions.py", "results/report/", "results/result.py", "results/tables.py", "results/thresholds.py",
    "reproduce/paper/", "reproduce/charts.py", "reproduce/comparison.py", "reproduce/diagrams.py",
    "reproduce/draw.py", "reproduce/gallery.py", "reproduce/registry.py",
)  # fmt: skip

HELP = ("help", "unset", "metavar")  # what is said of a setting (see `config`)
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def meaning(path: Path) -> str:
    """Digest of a Python file without comments, docstrings, help texts and layout; of another file, of its bytes.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "a.py").write_text("x = 1  # one")
        >>> _ = (folder / "b.py").write_text('"A docstring."' + chr(10) + "x  =  1")
        >>> meaning(folder / "a.py") == meaning(folder / "b.py")
        True
    """
    content = path.read_bytes()
    return _meaning_of_python(content) if path.suffix == ".py" else _digest(content)


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


@lru_cache(maxsize=512)
def _meaning_of_python(content: bytes) -> str:
    """Digest of the syntax tree without what changes no meaning; a file is parsed once in a process."""
    said: list[str] = []
    _read(ast.parse(content), said)
    return _digest("\0".join(said).encode())


def _read(node: Any, said: list[str]) -> None:
    """Adds what a syntax tree says, from top to bottom: in one pass, for every command waits for it."""
    if isinstance(node, ast.AST):
        said.append(type(node).__name__)
        for name in node._fields:
            value: Any = getattr(node, name, None)
            if name == "body" and isinstance(node, DOCUMENTED) and _is_docstring(value):
                value = value[1:]
            elif name == "keywords" and isinstance(node, ast.Call):
                value = [k for k in value if k.arg not in HELP]
            _read(value, said)
    elif isinstance(node, list):
        for part in node:
            _read(part, said)
        said.append("]")
    else:
        said.append(repr(node))


def _is_docstring(body: list[ast.stmt]) -> bool:
    return bool(body) and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant)


@cache
def numerical_version() -> str:
    """Digest of the modules that the numbers of a result depend on: results of other code are not taken for its own."""
    root, digest = Path(__file__).parent, hashlib.blake2b(digest_size=6)
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root).as_posix()
        if not name.startswith(NOT_NUMERICAL):
            digest.update(f"{name}\0{meaning(path)}\0".encode())
    return digest.hexdigest()
