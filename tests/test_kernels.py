"""Forked kernels of notebooks: as a kernel of its own, and gone when they are to be."""

import os
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from jupyter_client.manager import KernelManager
from nbformat import v4

from tools import kernels, notebooks

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="kernels are forked on Linux alone")
LOOK = """\
import os, subprocess, sys
import matplotlib, pandas
print(os.getcwd(), matplotlib.get_backend(), hash("a"), [p for p in sys.path if "tmp" not in p])
print(subprocess.run(["false"]).returncode, "tools" in sys.modules, sys.modules["__main__"].__dict__ is globals())
print(pandas.DataFrame({f"a long name of a column {n}": [n] for n in range(9)}))
pandas.DataFrame({n: range(70) for n in range(30)})
"""


def test_it_sees_what_a_kernel_of_its_own_sees(tmp_path, monkeypatch):
    def outputs():
        cell = v4.new_code_cell(LOOK)
        metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
        return notebooks.run(v4.new_notebook(cells=[cell], metadata=metadata), None, tmp_path).cells[0].outputs

    forked = outputs()
    monkeypatch.setattr(kernels, "sys", SimpleNamespace(platform="another"))
    own = outputs()
    assert forked == own
    assert own[0].text.splitlines()[1] == "1 False True"


def test_it_ends_when_it_is_told_and_its_end_is_noticed():
    with kernels.forked():
        manager = KernelManager()
        manager.start_kernel()
    client = manager.client()
    client.start_channels()
    client.wait_for_ready(timeout=60)
    pid = manager.provisioner.pid
    assert "tools.kernels" in Path(f"/proc/{pid}/cmdline").read_text()  # a fork of the server
    os.kill(pid, signal.SIGKILL)
    manager.provisioner.process.wait()
    assert not manager.is_alive()
    with kernels.forked():
        manager.restart_kernel(now=True)
    client.wait_for_ready(timeout=60)
    again = manager.provisioner.process
    client.stop_channels()
    manager.shutdown_kernel()
    assert again.poll() == 0
