"""Shared by all tests: shapes and types of public functions are checked while the suite runs."""

import os
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

# Wraps every annotated function of musc: a tensor of another shape than its signature says fails the test.
_finder = install_import_hook("musc", "typecheck.checker").hook
_checked = _finder.should_instrument
# No compiler takes a wrapped function.
COMPILED = {f"musc.engines.cpu.{name}" for name in ("boxes", "products", "kernels", "search")} | {
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
