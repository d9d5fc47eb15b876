"""MSM against float64 loops (`plain`), and the properties that any engine must have."""

import math
import subprocess
import sys
from functools import cache

import numpy as np
import plain
import pytest
import torch
from jaxtyping import TypeCheckError

from musc import engines, lnamd, msm
from musc.engines import blocked, cpu
from musc.engines.cpu import compiling

GRID = (5, 6)


def tokens(N=5, grid=GRID, C=24, seed=0, smooth=True):
    """Tokens that are correlated among images as real ones are: a common map, and what is an image's own."""
    g = torch.Generator().manual_seed(seed)
    H, W = grid
    common = torch.randn(1, H * W, C, generator=g) if smooth else torch.zeros(1, H * W, C)
    return common + 0.7 * torch.randn(N, H * W, C, generator=g) + 0.3


@pytest.fixture(scope="session", autouse=True)
def kernels():
    """Compiled before the first test, so that no test changes the engine half way."""
    if cpu.has_integer_products() and not compiling.ready():
        cpu.compile_kernels()


def use_products(kind, monkeypatch):
    """Lets the CPU engine use the integer products of AVX2 or of AVX-512 VNNI alone."""
    wide = kind == "AVX-512"
    if not (cpu.has_wide_products() if wide else cpu.has_integer_products()):
        pytest.skip(f"this processor has no {kind}")
    monkeypatch.setattr(cpu, "has_wide_products", lambda: wide)


ENGINES = ["8 bits, AVX-512", "16 bits, AVX-512", "8 bits, AVX2", "16 bits, AVX2", "gram"]


def use_engine(name, monkeypatch):
    """Lets float32 tokens on the CPU be compared in one way of several, where the machine has it."""
    if name == "gram":
        monkeypatch.setattr(cpu, "has_integer_products", lambda: False)
        return
    use_products(name.split()[-1], monkeypatch)
    from musc.engines.cpu import compiled

    which = 0 if name.startswith("8 bits") else 1
    candidates = compiled.candidate_layouts
    monkeypatch.setattr(compiled, "NARROW", 0)
    monkeypatch.setattr(compiled, "candidate_layouts", lambda *arguments: [candidates(*arguments)[which]])
    monkeypatch.setattr(compiled, "too_many_candidates", lambda *arguments: False)


@pytest.fixture(params=ENGINES)
def engine(request, monkeypatch):
    """Every way in which tokens on the CPU are compared."""
    use_engine(request.param, monkeypatch)


@cache
def two_stages(N):
    """Tokens of two stages, and their scores by brute force."""
    stages = [tokens(N), tokens(N, C=17, seed=1, smooth=False)]
    return stages, plain.mutual_scores(stages, grid=GRID)


@pytest.mark.parametrize("N", [2, 3, 4, 5, 9])
def test_scores_equal_float64_brute_force(engine, N):
    stages, expected = two_stages(N)
    got = msm.mutual_scores(stages, grid=GRID)
    assert torch.isfinite(got).all()
    np.testing.assert_allclose(got, expected, atol=1e-6)
    wide = msm.mutual_scores([s.double() for s in stages], grid=GRID)
    np.testing.assert_allclose(wide, expected, atol=1e-10)


@pytest.mark.parametrize("grid", [(4, 4), (1, 7), (9, 1), (6, 2), (13, 3), (12, 11)])
@pytest.mark.parametrize("degrees", [(1,), (3,), (1, 5, 7)])
def test_any_grid_and_degrees(engine, grid, degrees):
    x = tokens(3, grid)
    expected = plain.mutual_scores([x], degrees, grid)
    np.testing.assert_allclose(msm.mutual_scores([x], degrees, grid=grid), expected, atol=1e-6)


def test_references_join_the_pool_and_are_not_scored(engine):
    x, r = tokens(4), tokens(3, seed=5)
    expected = plain.mutual_scores([x], grid=GRID, references=[r])
    np.testing.assert_allclose(msm.mutual_scores([x], grid=GRID, references=[r]), expected, atol=1e-6)
    alone = msm.mutual_scores([x[:1]], grid=GRID, references=[r])
    assert alone.shape == (1, 30)


def test_duplicates_score_zero_against_each_other(engine):
    x = tokens(6)
    x[4] = x[1]
    scores = msm.mutual_scores([x], interval=(0.0, 0.01), grid=GRID)  # K = 1
    assert (scores[[1, 4]] == 0).all()
    assert (scores[[0, 2, 3, 5]].amax(dim=1) > 0.1).all()


def test_equal_patches_are_no_trouble(engine):
    """Whole images of one value, as a plain background gives: every candidate ties."""
    x = tokens(4)
    x[:, 3:20] = x[:1, 3:4]
    x[2] = 1.0
    got = msm.stage_distances(x, (1, 3), grid=GRID)
    for d, degree in enumerate((1, 3)):
        expected = msm.patch_to_image_distances(lnamd.aggregate(x.double(), degree, grid=GRID))
        np.testing.assert_allclose(got[d][[0, 1, 3]][:, :1], expected[[0, 1, 3]][:, :1], atol=1e-5)
    assert torch.isfinite(got).all()


def test_permuting_the_images_permutes_the_scores(engine):
    x = tokens(7)
    p = torch.randperm(7, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(msm.mutual_scores([x[p]], grid=GRID), msm.mutual_scores([x], grid=GRID)[p])


@pytest.mark.parametrize("block", [1, 2, 3, 50])
def test_block_size_changes_nothing(engine, block):
    x = tokens(7)
    assert torch.equal(msm.mutual_scores([x], grid=GRID, block=block), msm.mutual_scores([x], grid=GRID))


def test_threads_change_nothing(engine):
    x, before = tokens(6), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = msm.mutual_scores([x], grid=GRID)
        torch.set_num_threads(3)
        assert torch.equal(msm.mutual_scores([x], grid=GRID), one)
    finally:
        torch.set_num_threads(before)


def test_stage_distances_write_where_they_are_told(tmp_path):
    x = tokens(5)
    expected = msm.stage_distances(x, (1, 3), grid=GRID)
    out = engines.memory_map(tmp_path / "d", (2, 5, 4, 30), torch.float16)
    msm.stage_distances(x, (1, 3), grid=GRID, out=out)
    torch.testing.assert_close(out.float(), expected, atol=1e-3, rtol=0)
    assert (tmp_path / "d").stat().st_size == out.numel() * 2


def test_distances_keep_the_order_of_the_others():
    x = lnamd.aggregate(tokens(4).double(), 1, grid=GRID)
    np.testing.assert_allclose(msm.patch_to_image_distances(x), plain.distances(x), atol=1e-12)
    references = lnamd.aggregate(tokens(2, seed=3).double(), 1, grid=GRID)
    np.testing.assert_allclose(msm.patch_to_image_distances(x, references), plain.distances(x, references), atol=1e-12)


def test_a_pool_is_a_seeded_subset_of_the_others():
    x = tokens(9)
    whole = msm.stage_distances(x, (1,), grid=GRID)
    some = msm.stage_distances(x, (1,), grid=GRID, pool=3, seed=4)
    assert some.shape == (1, 9, 3, 30)
    for i in range(9):  # every distance to the pool is one of the distances to all, and no image is taken twice
        found = [(whole[0, i] - d).abs().amax(dim=1).argmin().item() for d in some[0, i]]
        assert len(set(found)) == 3
        torch.testing.assert_close(some[0, i], whole[0, i, found])
    assert torch.equal(some, msm.stage_distances(x, (1,), grid=GRID, pool=3, seed=4))
    assert not torch.equal(some, msm.stage_distances(x, (1,), grid=GRID, pool=3, seed=5))
    assert torch.equal(msm.mutual_scores([x], grid=GRID, pool=8), msm.mutual_scores([x], grid=GRID))


@pytest.mark.parametrize("J", [1, 2, 3, 4, 10, 11])
@pytest.mark.parametrize(("low", "high"), [(0, 30), (2, 30), (10, 30), (0, 100), (60, 90)])
@pytest.mark.parametrize("reduction", ["mean", "min", "max"])
def test_interval_average(J, low, high, reduction):
    d = torch.rand(2, J, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(J))
    expected = plain.interval_average(d.numpy(), low, high, getattr(np, reduction))
    np.testing.assert_allclose(msm.interval_average(d, (low / 100, high / 100), reduction), expected)


def test_interval_average_by_hand():
    d = torch.tensor([0.9, 0.1, 0.5, 0.3, 0.7, 0.2, 0.6, 0.8, 0.4, 1.0]).reshape(1, 10, 1)
    assert msm.interval_average(d).item() == pytest.approx((0.1 + 0.2 + 0.3) / 3)  # floor(0.3 * 10) = 3, not 2
    assert msm.interval_average(d, (0.1, 0.3)).item() == pytest.approx(0.25)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_interval_average_keeps_its_type_and_its_gradient(dtype):
    d = torch.rand(2, 10, 6, generator=torch.Generator().manual_seed(0)).to(dtype)
    got = msm.interval_average(d)
    assert got.dtype == dtype
    expected = plain.interval_average(d.double().numpy())
    np.testing.assert_allclose(got.double(), expected, rtol=1e-2)
    msm.interval_average(leaf := d.clone().requires_grad_(True)).sum().backward()
    assert (leaf.grad != 0).sum() == 2 * 3 * 6  # the three smallest of each patch


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: msm.mutual_scores([tokens(1)], grid=GRID), "1 image and 0 reference images"),
        (lambda: msm.mutual_scores([]), "no stages"),
        (lambda: msm.mutual_scores([tokens()], (), grid=GRID), "no degrees"),
        (lambda: msm.mutual_scores([tokens()], (2,), grid=GRID), "aggregation degree 2"),
        (lambda: msm.mutual_scores([tokens()], grid=GRID, precision="int4"), "int4"),
        (lambda: msm.mutual_scores([tokens()], interval=(0.5, 0.2), grid=GRID), "interval"),
        (lambda: msm.mutual_scores([tokens()], reduction="median", grid=GRID), "median"),
        (lambda: msm.mutual_scores([tokens()], grid=GRID, pool=0), "pool = 0"),
        (lambda: msm.patch_to_image_distances(tokens(1)), "1 image"),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_references_of_another_network():
    with pytest.raises((ValueError, TypeCheckError), match=r"references|Type-check"):
        msm.mutual_scores([tokens()], grid=GRID, references=[tokens(2, C=12)])


def test_importing_msm_does_not_import_numba():
    code = "import sys, musc.msm; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_engines_agree_on_many_channels(engine):
    """At the width of a large ViT the integer products round most, and still decide nothing."""
    x = tokens(3, (9, 9), C=1024)
    exact = [torch.stack(blocked.nearest(*lnamd.aggregate(x[:2].double(), r))) for r in (1, 3, 5)]
    got = msm.stage_distances(x, (1, 3, 5))
    for d, (forward, backward) in enumerate(exact):
        np.testing.assert_allclose(got[d, 0, 0], forward, atol=1e-6)
        np.testing.assert_allclose(got[d, 1, 0], backward, atol=1e-6)
    assert math.isclose(float(got.amax()), float(got.clamp(0, 2).amax()))
