"""Shared by all tests: shapes and types of public functions are checked while the suite runs."""

import dataclasses
import os
import signal
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

# Before torch is imported, and for the processes that tests start. Nearly all tensors here are small: threads that wait
# for each other then take longer than one that works, ten times as long where another process has the second core.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# `nohup make test &` starts with Ctrl-C ignored, and so would every process whose interruption is tested.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Wraps every annotated function of musc: a tensor of another shape than its signature says fails the test.
_finder = install_import_hook("musc", "typecheck.checker").hook
_checked = _finder.should_instrument
# No compiler takes a wrapped function.
COMPILED = {f"musc.engines.cpu.{name}" for name in ("boxes", "products", "preparation", "search")} | {
    "musc.engines.gpu.kernels"
}
_finder.should_instrument = lambda name: name not in COMPILED and _checked(name)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real photographs and weights; skips where it is absent."""
    folder = Path(os.environ.get("MUSC_SHARED", Path(__file__).parents[1].parent / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip(f"no real data at {folder}: set MUSC_SHARED to the folder that holds data/ and weights/")
    return folder


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item, nextitem):
    """What "auto" means must not depend on the machine: only tests that ask for the real weights look where they lie.

    The notebooks run in the same process, and show what is there.
    """
    nowhere = str(Path(__file__).parent / "no_weights_here")
    with pytest.MonkeyPatch.context() as here:
        if "own_weights" not in getattr(item, "fixturenames", ()):
            here.setenv("MUSC_WEIGHTS", nowhere)
            here.setenv("HF_HUB_CACHE", nowhere)
        return (yield)


@pytest.fixture
def own_weights():
    """The weights that `musc weights` brought to this machine are found, as outside of tests."""


@pytest.fixture(scope="session")
def chromium():
    """One running browser; skips where there is none, and fails there in CI or with MUSC_REQUIRE_BROWSER."""
    from tools import browser

    if browser.find() is None:
        reason = "no Chromium: apt-get install chromium, or set CHROMIUM to its path"
        if os.environ.get("CI") or os.environ.get("MUSC_REQUIRE_BROWSER"):
            pytest.fail(reason)
        pytest.skip(reason)
    with browser.Browser() as running:
        yield running


@pytest.fixture(scope="session")
def shared_tab(chromium):
    return chromium.open("about:blank")


@pytest.fixture
def tab(shared_tab):
    """One tab for many pages, one after the other: a new one costs a process. Each test finds it as if it were new."""
    shared_tab.look()
    shared_tab.errors.clear(), shared_tab.requests.clear()
    return shared_tab


@pytest.fixture(scope="session")
def tiny_config():
    """A configuration that runs in a moment: an untrained DeiT-Tiny at 64 px, two stages."""
    from musc.config import MuScConfig

    return MuScConfig(
        backbone="deit_tiny_patch16_224", weights="random", image_size=64, stages=(1, 2), device="cpu", workers=0
    )


@pytest.fixture(scope="session")
def tiny_backbone(tiny_config):
    from musc.backbones import load_backbone

    c = tiny_config
    return load_backbone(c.backbone, weights=c.weights, image_size=c.image_size, stages=c.stages, device="cpu")


@pytest.fixture(scope="session")
def pixel_backbone():
    """`pixel_backbone(image_size)`: a network without weights, whose tokens follow from the pixels of a patch alone.

    64 random Fourier features of the grey of a patch's four quarters: the nearer two patches' pixels, the nearer their
    tokens. What is asserted with it holds for the method, whatever is trained.
    """
    import torch
    import torch.nn.functional as F

    from musc.backbones import Backbone, find_backbone

    class Pixels(torch.nn.Module):
        def forward_stages(self, images, stages):
            quarters = F.avg_pool2d(images.mean(dim=1, keepdim=True), 4)  # [B, 1, S / 4, S / 4]
            quarters = F.pixel_unshuffle(quarters, 2).flatten(2).mT  # [B, M, 4]
            generator = torch.Generator().manual_seed(0)
            tokens = torch.cos(
                quarters @ torch.randn(4, 64, generator=generator) + 6.3 * torch.rand(64, generator=generator)
            )
            return [tokens] * len(stages), tokens.mean(dim=1)

    def build(image_size):
        spec = dataclasses.replace(find_backbone("procedural"), patch_size=8)
        return Backbone(spec, Pixels(), image_size=image_size, stages=(1,), weights_id="pixels")

    return build


@pytest.fixture(scope="session")
def disturbed():
    """Runs commands in processes that are killed, or told by the file system that it will not."""
    from disturbed import Disturbed

    with Disturbed() as run:
        yield run


@pytest.fixture
def photos(tmp_path):
    """A flat folder of six photographs of one product: a gradient with noise; the last one has a dark spot."""
    import numpy as np
    from PIL import Image

    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(6):
        pixels = np.linspace(60, 200, 80)[:, None, None] + rng.normal(0, 4, (80, 80, 3))
        if i == 5:
            pixels[30:50, 30:50] = 10
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{i}.png")
    return folder
