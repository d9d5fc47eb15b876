"""Exit codes, and what is said when something fails: one line with the remedy, the traceback only with --verbose."""

from __future__ import annotations

import errno
import sys
import traceback

from musc.errors import MuscError

DONE, FAILED, WRONG_WORDS, INTERRUPTED, CLOSED_PIPE = 0, 1, 2, 130, 141

_REMEDIES = {
    errno.ENOSPC: "free some space, or choose another folder.",
    errno.EDQUOT: "free some space, or choose another folder.",
    errno.EFBIG: "raise the limit of a file's size (ulimit -f), or choose another folder.",
    errno.EACCES: "give yourself the right to it, or choose another place.",
    errno.EPERM: "give yourself the right to it, or choose another place.",
    errno.EROFS: "choose a place that can be written.",
    errno.ENOENT: "check the path.",
    errno.EMFILE: "too many files are open: raise the limit (ulimit -n), or set --workers 0.",
}


def explain(error: Exception) -> str:
    """What went wrong, with which file, and what to do about it, in one line.

    Example:
        >>> explain(FileNotFoundError(2, "No such file or directory", "a.npy"))
        'a.npy: No such file or directory: check the path.'
    """
    text = str(error)
    if isinstance(error, MuscError):
        return text
    first = text.strip().splitlines()[0] if text.strip() else "no more is known"
    if _out_of_memory(error):
        return (
            f"out of memory ({first}): try --max-memory 1GiB, --subsets 2, --batch-size 1, or a smaller --image-size."
        )
    if "can't start new thread" in text:  # a plain RuntimeError
        return "no more threads can be started: raise the limit of processes (ulimit -u), or set --workers 0."
    if isinstance(error, UnicodeEncodeError):
        return f"a name cannot be written in the system's encoding ({error.encoding}): set PYTHONUTF8=1 and try again."
    if isinstance(error, OSError):
        file = f"{error.filename}: " if error.filename else ""
        remedy = _REMEDIES.get(error.errno or 0, "try again; --verbose shows where it happened.")
        return f"{file}{error.strerror or first}: {remedy}"
    return f"{type(error).__name__}: {first}. This is a fault of the program: --verbose shows where it happened."


def report(error: Exception, *, where: str = "", verbose: bool = False) -> None:
    """Say on stderr what failed; where: the category."""
    if verbose:
        traceback.print_exception(error)
    print(f"musc: {where}{': ' if where else ''}{explain(error)}", file=sys.stderr)


def _out_of_memory(error: Exception) -> bool:
    # By name, so that torch need not be imported: torch.cuda.OutOfMemoryError, and its plain RuntimeError on the CPU.
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return named or "DefaultCPUAllocator" in str(error)
