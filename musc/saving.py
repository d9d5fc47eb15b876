"""Files that appear whole or not at all, what a process that was killed leaves of them, and files that end."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import platform
import re
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

_at_work: set[str] = set()  # marks of what this process has not finished


@contextmanager
def marked() -> Iterator[str]:
    """A mark for the name of something unfinished: it tells the machine, the process, and this attempt."""
    mark = f"{_here()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    _at_work.add(mark)
    try:
        yield mark
    finally:
        _at_work.discard(mark)


def abandoned(mark: str) -> bool:
    """Whether the process that made this mark is gone; on another machine it may be alive."""
    found = re.fullmatch(r"(\w+)-(\d+)-\w+", mark)
    if not found or found[1] != _here() or mark in _at_work:
        return False
    if int(found[2]) == os.getpid():  # a process with our number that ended
        return True
    try:
        os.kill(int(found[2]), 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:
        return False
    return False


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A new file to fill beside `path`, which takes its place when the block ends, and not if it raises: nobody ever
    sees half a file.

    Folders on the way are made. What killed processes left in that folder goes. Raises OSError.
    """
    with marked() as mark:
        partial = path.with_name(f".{mark}.partial")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _sweep(path.parent)
            yield partial
            os.replace(partial, path)
        except OSError as error:
            if error.filename is None or str(error.filename) == str(partial):  # which says little
                error.filename = str(path)
            raise
        finally:
            partial.unlink(missing_ok=True)


@contextmanager
def alone(folder: Path, *, wait: bool = True) -> Iterator[None]:
    """While the block runs, no other process of this machine is in such a block for this folder, which is made.

    The lock goes with the process that holds it, and leaves no file. Where the system knows no such locks there is
    none. Raises BlockingIOError where another process is in there and `wait` is False, and OSError.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise
        except OSError:  # a file system without locks
            pass
        yield
    finally:
        os.close(handle)


def is_special(path: Path) -> bool:
    """Whether a path is a pipe, socket or device, which to open may wait for ever."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):  # said when it is read
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


@contextmanager
def regular_file(path: Path) -> Iterator[io.BufferedReader]:
    """The open file; a pipe, socket or device raises OSError and is never opened."""
    if is_special(path):
        raise OSError(errno.EINVAL, "no regular file", str(path))
    with path.open("rb") as file:
        yield file


@cache  # once in a process: there may be thousands of files
def _sweep(folder: Path) -> None:
    for path in folder.glob(".*.partial"):
        if path.is_file() and abandoned(path.name[1:].removesuffix(".partial")):
            with suppress(OSError):
                path.unlink()


def _here() -> str:
    return hashlib.blake2b(platform.node().encode(), digest_size=4).hexdigest()
