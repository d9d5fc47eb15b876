"""Where compiled kernels are kept, and how they come to be compiled without anybody waiting for it.

numba keys what it keeps by the one file a kernel stands in, and would go on running what that inlined from another file
before it was edited. So the folder's name holds a digest of all sources here, of numba, llvmlite and Python, and of the
processor.
"""

from __future__ import annotations

import atexit
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

KEPT = 4  # digests, the most recently used ones
PATIENCE = 180.0  # seconds after which another process that compiles is taken for dead
COMPILE = "from musc.engines import cpu; cpu.compile_kernels()"
YIELD = "import os; hasattr(os, 'nice') and os.nice(19); "  # first of all: importing torch takes seconds of its own
FAST = {"reassoc", "contract", "arcp", "nsz"}  # sums in any order; NaN and infinity stay what they are
_children: list[subprocess.Popen[bytes]] = []


@lru_cache
def processor() -> tuple[str, list[str]]:
    """Its name, and the names of its instructions."""
    from llvmlite import binding

    return binding.get_host_cpu_name(), sorted(name for name, has in binding.get_host_cpu_features().items() if has)


def has(*instructions: str) -> bool:
    """True where the processor has all of them."""
    return set(instructions) <= set(processor()[1])


@lru_cache
def digest() -> str:
    """Of everything that compiled kernels depend on."""
    parts = [path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py"))]
    parts.append(repr((version("numba"), version("llvmlite"), sys.version, processor())).encode())
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:20]


@lru_cache
def folder() -> Path | None:
    """The folder of these kernels, made if need be, in the user's cache or else among the user's temporary files; None
    where none can be written. Digests long unused are deleted."""
    usual = {"win32": os.environ.get("LOCALAPPDATA"), "darwin": "~/Library/Caches"}.get(sys.platform)
    named = os.environ.get("XDG_CACHE_HOME") or usual or "~/.cache"
    user = os.getuid() if hasattr(os, "getuid") else 0
    for name in (f"{named}/musc", f"{tempfile.gettempdir()}/musc-{user}"):
        try:
            root = Path(name).expanduser()
            found = root / "kernels" / digest()
            found.mkdir(mode=0o700, parents=True, exist_ok=True)
            if root.stat().st_uid != user:  # machine code of somebody else's
                continue
            with tempfile.TemporaryFile(dir=found):
                os.utime(found)
        except (OSError, RuntimeError):  # RuntimeError: no home folder
            continue
        others = [path for path in found.parent.iterdir() if path != found and path.is_dir()]
        for old in sorted(others, key=lambda path: path.stat().st_mtime)[: -(KEPT - 1)]:
            shutil.rmtree(old, ignore_errors=True)
        return found
    return None


def kernel(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """numba.njit without the GIL, its machine code kept in `folder`."""
    from numba import config, njit

    def compiled(function: Callable[..., Any]) -> Any:
        before, kept = config.CACHE_DIR, folder()  # type: ignore[attr-defined]
        config.CACHE_DIR = str(kept or "")  # type: ignore[attr-defined]
        try:
            return njit(nogil=True, cache=kept is not None, error_model="numpy", **options)(function)
        finally:
            config.CACHE_DIR = before  # type: ignore[attr-defined]

    return compiled


def ready() -> bool:
    """True where every kernel is in the folder."""
    kept = folder()
    return kept is not None and (kept / "complete").exists()


def finish() -> None:
    """Says that every kernel is in the folder."""
    if (kept := folder()) is not None:
        (kept / "complete").touch()
        (kept / "compiling").unlink(missing_ok=True)


def compile_aside(*, patient: bool = False) -> None:
    """Starts a process that fills the folder, unless one is at work; it goes on if this one ends.

    patient: it takes what time others leave, so that a job that will not last as long as that is not slowed down.
    """
    kept = folder()
    if kept is None or any(child.poll() is None for child in _children):
        return
    mark = kept / "compiling"
    paths = os.pathsep.join([str(Path(__file__).parents[3]), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-c", (YIELD if patient else "") + COMPILE]
    try:
        if mark.exists() and time.time() - mark.stat().st_mtime > PATIENCE:
            mark.unlink()
        mark.touch(exist_ok=False)  # one process of all that start now
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": paths},
            process_group=0 if os.name == "posix" else None,  # not interrupted with this one
        )  # fmt: skip
    except (OSError, ValueError):
        return
    _children.append(child)


@atexit.register
def _let_go() -> None:
    for child in _children:
        if child.poll() is None:
            child.returncode = 0  # left to itself: the next process will find its kernels
