"""Ctrl-C that is not lost. Python raises KeyboardInterrupt wherever it happens to be: in the callback of a weak
reference it is printed and ignored, and in a library's C code another error may take its place."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

AGAIN = 0.02  # seconds until one that was lost is raised again


class Interrupt(KeyboardInterrupt):
    """One press. It is `lost` where it went before anybody called `heard`, and comes again then."""

    waiting = False  # one is on its way to whom it concerns, or was lost

    def __del__(self) -> None:
        if Interrupt.waiting:  # in a thread: raised from here it would be ignored like this one
            again = threading.Timer(AGAIN, _raise_again)
            again.daemon = True
            again.start()


def heard() -> None:
    """Called by who deals with an interrupt."""
    Interrupt.waiting = False


def lost() -> bool:
    """Whether Ctrl-C was pressed and nobody dealt with it: the error at hand may stand in its place."""
    return Interrupt.waiting


@contextmanager
def listening() -> Iterator[None]:
    """While the block runs, Ctrl-C raises an `Interrupt`; where this process is told to ignore it, or somebody else
    deals with it, nothing changes."""
    ours = threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    said = sys.unraisablehook
    signal.signal(signal.SIGINT, _raise)
    sys.unraisablehook = lambda ignored: None if ignored.exc_type is Interrupt else said(ignored)
    try:
        yield
    finally:
        heard()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.unraisablehook = said


def _raise(*_: Any) -> None:
    Interrupt.waiting = True
    raise Interrupt


def _raise_again() -> None:
    if Interrupt.waiting:
        if hasattr(signal, "pthread_kill"):  # it ends a wait of the main thread
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        else:
            signal.raise_signal(signal.SIGINT)
