"""Commands of `musc` in processes that are disturbed: killed, or told by the file system that it will not.

A process of this file loads everything once and forks a child per command, which takes its orders as lines of JSON:
    {"command": [...], "cwd": "...", "after": seconds}      kill -9 after so many seconds
    {"command": [...], "cwd": "...", "step": k, "errno": n} the k-th change of a file or folder fails with this errno;
                                                            without "errno" the process is killed there
    {"command": [...], "cwd": "...", "largest": bytes}      no file may become larger (a disk that is full half-way)
    {"command": [...], "cwd": "...", "times": n}            n processes at the same time
and answers each with {"code": exit code (negative: a signal), "said": stderr, "steps": changes that were tried,
"seconds": ...}. Changes are what Python's audit events report: below all of our code and all libraries' in Python.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGES = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.link", "os.symlink"}


class Disturbed:
    """`Disturbed()(command, cwd, **orders)` runs one command in a fork of a process that has loaded all."""

    def __enter__(self):
        here = os.path.abspath(__file__)
        self.process = subprocess.Popen(
            [sys.executable, here], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()

    def __call__(self, command, cwd, **orders):
        print(json.dumps({"command": command, "cwd": str(cwd), **orders}), file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())


def is_change(event, arguments, cwd):
    """Whether an audit event changes a file or a folder below `cwd`."""
    if event == "open":
        path, _, flags = arguments
        if not flags & WRITING:
            return False
    elif event in CHANGES:
        path = arguments[0]
    else:
        return False
    return isinstance(path, str | bytes | os.PathLike) and os.path.abspath(os.fsdecode(path)).startswith(cwd)


def disturb(orders, report):
    """Installs the audit hook that counts changes and fails at one of them."""
    count, cwd = 0, orders["cwd"]

    def hook(event, arguments):
        nonlocal count
        if is_change(event, arguments, cwd):
            os.pwrite(report, b"%8d" % (count + 1), 0)
            count += 1
            if count - 1 == orders.get("step"):
                if "errno" not in orders:
                    os.kill(os.getpid(), signal.SIGKILL)
                raise OSError(orders["errno"], os.strerror(orders["errno"]), os.fsdecode(arguments[0]))

    sys.addaudithook(hook)


def child(orders, said, report):
    import resource

    from musc.cli import main

    os.chdir(orders["cwd"])
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 0)
    os.dup2(nowhere, 1)
    os.dup2(said, 2)
    if "largest" in orders:
        resource.setrlimit(resource.RLIMIT_FSIZE, (orders["largest"], resource.RLIM_INFINITY))
    disturb(orders, report)
    code = 255
    try:
        code = main(orders["command"])
    except SystemExit as error:
        code = error.code
    finally:
        sys.stderr.flush()
        os._exit(code)


def run(orders):
    with tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as report:
        begun = time.perf_counter()
        pids = []
        for _ in range(orders.get("times", 1)):
            pids.append(os.fork())
            if pids[-1] == 0:
                child(orders, said.fileno(), report.fileno())
        if "after" in orders:
            time.sleep(orders["after"])
            os.kill(pids[0], signal.SIGKILL)
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        seconds = time.perf_counter() - begun
        said.seek(0)
        report.seek(0)
        code = next(filter(None, codes), 0)
        steps = int(report.read() or 0)
        return {"code": code, "said": said.read().decode(errors="replace"), "steps": steps, "seconds": seconds}


def load_everything():
    """What the commands import, some by being used once."""
    from pathlib import Path

    import numpy as np
    from PIL import Image

    from musc.cli import main

    with tempfile.TemporaryDirectory() as place:
        (Path(place) / "a").mkdir()
        for n in range(3):
            pixels = np.random.default_rng(n).integers(0, 255, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(Path(place) / "a" / f"{n}.png")
        network = ["--backbone", "deit_tiny_patch16_224", "--weights", "random", "--image-size", "32"]
        words = ["run", f"{place}/a", "--out", f"{place}/out", "--stages", "1", "--workers", "0", *network]
        main([*words, "--device", "cpu"])
    import musc.reproduce
    import musc.stream  # noqa: F401


if __name__ == "__main__":
    out = os.dup(1)
    os.dup2(2, 1)
    load_everything()
    for line in sys.stdin:
        os.write(out, (json.dumps(run(json.loads(line))) + "\n").encode())
