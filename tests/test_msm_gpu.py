"""The GPU engine: which machine takes it, what it may hold, and its kernels, in Triton's interpreter."""

import importlib.metadata
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from test_msm import GRID, tokens

from musc import msm
from musc.engines import gpu
from musc.engines.gpu import tiles

CUDA = torch.device("cuda", 0)
SIZES = (GRID, 16, (1, 3))  # of the images: grid, channels, degrees
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
# ahead of time, other releases compile to other registers, and take other arguments
TRITON = importlib.metadata.version("triton") if importlib.util.find_spec("triton") else "none"
needs_this_triton = pytest.mark.skipif(not TRITON.startswith("3.6."), reason=f"triton 3.6 is asserted, not {TRITON}")


@needs_triton
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


def cuda(monkeypatch, capability=(9, 0), kib=227):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    properties = SimpleNamespace(shared_memory_per_block_optin=kib * 1024)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    gpu.available.cache_clear()


@pytest.mark.parametrize(("device", "installed", "capability"), [
    ("cpu", True, (9, 0)), ("cuda", False, (9, 0)), ("cuda", True, (7, 5)),
])  # fmt: skip
def test_the_engine_needs_triton_and_a_recent_gpu(monkeypatch, device, installed, capability):
    cuda(monkeypatch, capability)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if installed else None)
    assert gpu.available(torch.device(device), *SIZES) is False


def test_rocm_takes_plain_products(monkeypatch):
    cuda(monkeypatch)
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert gpu.available(CUDA, *SIZES) is False


def test_where_triton_cannot_compile_one_warning_says_so(monkeypatch):
    """Here it cannot: there is no GPU. So it is without a C compiler, or on a GPU newer than triton."""
    cuda(monkeypatch)
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.warns(UserWarning, match="cannot compile here, or not run"):
        assert gpu.available(CUDA, *SIZES) is False
    assert gpu.available(CUDA, *SIZES) is False  # and once only
    gpu.available.cache_clear()


def test_without_the_engine_any_device_takes_plain_products():
    """Here the "device" is the CPU at float64, which no other engine serves; precision then changes nothing."""
    x = tokens(3).double()
    assert not gpu.available(x.device, *SIZES)
    assert torch.equal(msm.stage_distances(x, grid=GRID, precision="bfloat16"), msm.stage_distances(x, grid=GRID))


def compiled(function, types, constants, capability, **options):
    """Machine code for a GPU that need not be there, with its registers and the bytes of its stack (spills)."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = function.arg_names
    signature = {name: types.get(name, "constexpr" if name in constants else "i32") for name in names}
    aligned = [
        n for n, name in enumerate(names) if name == "C" or (name not in ("starts", "out") and "*" in signature[name])
    ]
    attributes = {(n,): [["tt.divisibility", 16]] for n in aligned}
    options["enable_fp_fusion"] = True  # said, since triton 3.9 warns that its default is about to change
    source = ASTSource(function, signature, constants, attributes)
    kernel = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    return kernel, *resources(kernel.asm["cubin"])


def resources(cubin):
    import triton

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return (int(re.search(rf"{name}:(\d+)", said)[1]) for name in ("REG", "STACK"))


@needs_this_triton
@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize(("capability", "kib"), [(80, 163), (86, 99), (90, 227)])
def test_tile_maxima_compile_for(monkeypatch, capability, kib, dense):
    """Ahead of time: the tile that the device would take fits its shared memory and registers, and nothing spills."""
    from musc.engines.gpu import kernels

    cuda(monkeypatch, divmod(capability, 10), kib)
    tile = gpu.default_tile(CUDA)
    types = dict.fromkeys(("half_a", "half_b"), "*fp16") | {"wanted": "*u8"}
    types |= dict.fromkeys(("row_best", "row_second", "col_best", "col_second"), "*i32")
    if tile.descriptor:
        types["half_a"] = f"tensordesc<fp16[{tile.rows},{tile.channels}]>"
        types["half_b"] = f"tensordesc<fp16[{tile.cols},{tile.channels}]>"
    constants = {
        "BM": tile.rows, "BN": tile.cols, "BK": tile.channels, "SUB_ROWS": tile.sub_rows, "SUB_COLS": tile.sub_cols,
        "GROUP": tile.group, "DESCRIPTOR": tile.descriptor, "PERSISTENT": tile.resident > 0, "DENSE": dense,
    }  # fmt: skip
    kernel, registers, stack = compiled(
        kernels.tile_maxima, types, constants, capability, num_warps=tile.warps, num_stages=tile.stages
    )
    assert replace(tile, resident=0).bytes <= kernel.metadata.shared <= tile.bytes + 1024  # what default_tile leaves
    assert kernel.metadata.shared < kib * 1024
    assert registers * 32 * tile.warps <= 65536
    assert stack == 0
    assert ("wgmma" if capability == 90 else "mma.sync") in kernel.asm["ptx"]


@needs_this_triton
@pytest.mark.parametrize(("C", "subs"), [(1024, 128), (384, 16)])
@pytest.mark.parametrize("capability", [80, 86, 90])
def test_nearest_distances_compile_for(monkeypatch, capability, C, subs):
    from musc.engines.gpu import kernels

    cuda(monkeypatch, divmod(capability, 10))
    tile = gpu.default_tile(CUDA, C)
    types = dict.fromkeys(("exact", "error", "out"), "*fp32") | {"slack": "fp32", "starts": "*i64"}
    types |= dict.fromkeys(("best", "second"), "*i32")
    constants = {"C": C, "TOKENS": tile.tokens, "PARTNERS": tile.partners, "SUB": 16, "SUBS": subs}
    constants["BC"] = tile.refine_channels
    kernel, registers, stack = compiled(
        kernels.nearest_distances, types, constants, capability, num_warps=tile.refine_warps
    )
    assert registers <= 128  # sixteen programs, at least, per multiprocessor: one's loads hide another's
    assert stack <= 32  # of bytes that ptxas trades for one more program per multiprocessor
    assert "ld.global.v4" in kernel.asm["ptx"] or ".v4.b32" in kernel.asm["ptx"]


@needs_this_triton
@pytest.mark.parametrize("capability", [80, 90])
def test_aggregate_compiles_for(capability):
    from musc.engines.gpu import kernels

    types = dict.fromkeys(("tokens", "mean", "scale", "exact", "error"), "*fp32") | {"half": "*fp16"}
    constants = {"R": 5, "TOKENS": 1, "BC": 1024}
    kernel, registers, stack = compiled(kernels.aggregate, types, constants, capability)
    assert registers <= 128
    assert stack == 0
    assert "ld.global.v4" in kernel.asm["ptx"] or ".v4.b32" in kernel.asm["ptx"]


@pytest.mark.parametrize(("capability", "kib", "stages", "rows_cols"), [
    ((9, 0), 227, 3, (128, 128)), ((8, 0), 163, 4, (128, 128)), ((8, 6), 99, 4, (128, 128)),
    ((8, 9), 99, 4, (128, 128)), ((12, 0), 99, 4, (128, 128)), ((10, 0), 227, 4, (128, 128)),
    ((8, 0), 64, 3, (128, 128)),
])  # fmt: skip
def test_tiles_fit_the_shared_memory(monkeypatch, capability, kib, stages, rows_cols):
    cuda(monkeypatch, capability, kib)
    tile = gpu.default_tile(CUDA)
    assert (tile.stages, (tile.rows, tile.cols)) == (stages, rows_cols)
    assert tile.bytes <= kib * 1024 - 1024


@pytest.mark.parametrize(("free_gib", "expected"), [(140, 100), (8, 100), (2, 23), (0.01, 1)])
def test_block_from_free_memory(monkeypatch, free_gib, expected):
    """200 images as ViT-L gives them, three degrees."""
    free = int(free_gib * 2**30)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 2 * free))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 0)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 0)
    tile = gpu.Tile()
    block = tiles.automatic_block(CUDA, 200, 3, 1369, 1024, tile)
    assert block == expected
    image, passing = tiles.bytes_needed(3, 1369, 1024, tile, 200)
    assert block == 1 or 2 * block * image + passing < free
