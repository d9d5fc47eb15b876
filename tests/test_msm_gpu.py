"""The GPU engine: which machine takes it, what it may hold, and its kernels, in Triton's interpreter."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_msm import GRID, tokens

from musc import msm
from musc.engines import gpu

CUDA = torch.device("cuda", 0)


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_kernels_in_the_interpreter():
    """In a child: Triton reads TRITON_INTERPRET when it is first imported, and other tests must not see it."""
    here = Path(__file__).parent
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(here / "interpreted_gpu.py")]
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=here.parent, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_importing_musc_does_not_import_triton():
    code = "import sys, musc, musc.msm; sys.exit('triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("device", "installed", "capability", "expected"),
    [("cpu", True, (9, 0), False), ("cuda", False, (9, 0), False), ("cuda", True, (7, 5), False),
     ("cuda", True, (9, 0), True)],
)  # fmt: skip
def test_the_engine_needs_triton_and_a_recent_gpu(monkeypatch, device, installed, capability, expected):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if installed else None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert gpu.available(torch.device(device)) is expected


def test_without_the_engine_any_device_takes_plain_products():
    """Here the "device" is the CPU at float64, which no other engine serves; precision then changes nothing."""
    x = tokens(3).double()
    assert not gpu.available(x.device)
    assert torch.equal(msm.stage_distances(x, grid=GRID, precision="bfloat16"), msm.stage_distances(x, grid=GRID))


@pytest.mark.parametrize(("capability", "stages"), [((9, 0), 4), ((8, 0), 4), ((8, 6), 2), ((12, 0), 2)])
def test_tiles_fit_the_shared_memory(monkeypatch, capability, stages):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    tile = gpu.default_tile(CUDA)
    assert tile.stages == stages
    assert tile.stages * (tile.rows + tile.cols) * tile.channels * 2 < (163 if stages == 4 else 99) * 1024


@pytest.mark.parametrize(("free_gib", "expected"), [(140, 100), (8, 100), (2, 28), (0.01, 1)])
def test_block_from_free_memory(monkeypatch, free_gib, expected):
    """200 images as ViT-L gives them, three degrees."""
    free = int(free_gib * 2**30)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 2 * free))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 0)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 0)
    block = gpu.automatic_block(CUDA, 200, 3, 1369, 1024)
    assert block == expected
    image, pair = gpu.bytes_needed(3, 1369, 1024)
    assert block == 1 or 2 * block * image + gpu.CHUNK * pair < free
