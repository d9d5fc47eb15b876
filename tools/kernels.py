"""Notebook kernels that begin with the libraries imported: forked from one process that has imported them.

A kernel of its own takes four seconds of a processor to import torch, seaborn and the rest, and the book has 23. Below
`forked()`, Python kernels come from a server, `python -m tools.kernels`, which forks one for every line that it reads.
Linux alone: elsewhere nothing changes.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

from jupyter_client.provisioning import KernelProvisionerFactory, LocalProvisioner

ROOT = Path(__file__).resolve().parents[1]
NAME = "musc-forked"
LAUNCHER = "ipykernel_launcher"  # the module that a kernel of its own runs
AT_START = ("MPLBACKEND", "OMP_NUM_THREADS", "PYTHONHASHSEED")  # what Python and the libraries read once
PRELOADED = ("IPython", "matplotlib.pyplot", "numba", "pandas", "scipy", "seaborn", "sklearn.metrics", "torch")


class Process:
    """What `subprocess.Popen` is to jupyter, of a kernel that the server has started and waits for."""

    stdin = stdout = stderr = None

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def poll(self) -> int | None:
        """None while it runs; else 0, whatever ended it."""
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return 0
        return None

    def wait(self) -> int:
        while self.poll() is None:
            time.sleep(0.01)
        return 0

    def send_signal(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)


class Forked(LocalProvisioner):
    """Has the server fork Python kernels; others start as ever."""

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> Any:
        if LAUNCHER not in cmd:
            return await super().launch_kernel(cmd, **kwargs)
        self.cwd = kwargs.get("cwd") or Path.cwd()
        order = {"argv": cmd[cmd.index(LAUNCHER) + 1 :], "cwd": str(self.cwd), "env": kwargs["env"]}
        server = _server(*(kwargs["env"].get(name) for name in AT_START))
        assert server.stdin is not None
        assert server.stdout is not None
        print(json.dumps(order), file=server.stdin, flush=True)
        self.process = Process(int(server.stdout.readline()))
        self.pid = self.pgid = self.process.pid
        return self.connection_info


@contextmanager
def forked() -> Iterator[None]:
    """Kernels that start within are forked."""
    factory = KernelProvisionerFactory.instance()
    factory.provisioners[NAME] = EntryPoint(NAME, f"{__name__}:{Forked.__name__}", factory.GROUP_NAME)
    before = factory.default_provisioner_name
    factory.default_provisioner_name = NAME if sys.platform == "linux" else before
    try:
        yield
    finally:
        factory.default_provisioner_name = before


@cache
def _server(*values: str | None) -> subprocess.Popen[str]:
    """One for each choice of AT_START, started with its first kernel and ended with this process."""
    environment = {name: value for name, value in os.environ.items() if name not in AT_START}
    environment |= {name: value for name, value in zip(AT_START, values, strict=True) if value is not None}
    environment.setdefault("MPLBACKEND", "module://matplotlib_inline.backend_inline")  # as a kernel has it
    command = [sys.executable, "-m", __name__]
    server = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    atexit.register(server.communicate)  # it ends when nobody can order any more
    return server


def serve() -> None:
    """Reads orders and answers with the numbers of processes, until nobody orders any more."""
    for name in (*PRELOADED, "ipykernel.kernelapp"):
        importlib.import_module(name)
    gc.freeze()  # a collection would write to, and so copy, what the kernels share
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody asks how a kernel ended
    for line in sys.stdin:
        pid = os.fork()
        if not pid:
            become_kernel(**json.loads(line))
            return
        print(pid, flush=True)


def become_kernel(argv: list[str], cwd: str, env: dict[str, str]) -> None:
    """Runs until it is told to end, as `python -m ipykernel_launcher` would."""
    import pandas
    from ipykernel.kernelapp import launch_new_instance

    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):
        os.dup2(nowhere, stream)
    os.environ.clear()
    os.environ.update(env, JPY_PARENT_PID=str(os.getppid()))
    os.chdir(cwd)
    sys.path.remove(str(ROOT))
    del sys.modules["tools"], sys.modules["__mp_main__"]
    pandas.options.display.max_columns = 20  # as where a kernel imports it
    launch_new_instance(argv)


if __name__ == "__main__":
    serve()
