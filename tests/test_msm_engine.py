"""The CPU engine beyond its scores' correctness: settings, pools, memory, and the benchmarks that measure it."""

import csv
import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import plain
import pytest
import torch
from test_msm import GRID, engine, kernels, tokens, use_engine, use_products  # noqa: F401

from benchmarks import __main__ as benchmarks
from benchmarks import msm as bench
from benchmarks import targets
from musc import msm
from musc.engines import cpu
from musc.engines.cpu import compiled, compiling, preparation, products, search
from musc.engines.cpu.layout import BufferPool, Layout
from musc.engines.pairs import Job, by_image, plan_pool

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(("low", "high"), [(0, 30), (10, 60), (50, 100)])
@pytest.mark.parametrize("reduction", ["mean", "min", "max"])
def test_intervals_and_reductions(engine, low, high, reduction):  # noqa: F811
    x = tokens(7)
    expected = plain.mutual_scores([x], (1, 3), GRID, low=low, high=high, reduction=getattr(np, reduction))
    got = msm.mutual_scores([x], (1, 3), (low / 100, high / 100), reduction, grid=GRID)
    np.testing.assert_allclose(got, expected, atol=1e-6)


def test_a_given_pool_scores_by_just_those_images(engine):  # noqa: F811
    x = tokens(6)
    pool = torch.tensor([[1, 2], [3, 5], [0, 4], [0, 1], [5, 3], [2, 1]])
    whole = msm.stage_distances(x, (1, 3), grid=GRID)
    got = msm.stage_distances(x, (1, 3), grid=GRID, pool=pool)
    for i, row in enumerate(pool.sort(dim=1).values):
        others = [j for j in range(6) if j != i]
        torch.testing.assert_close(got[:, i], whole[:, i, [others.index(j) for j in row]])


@pytest.mark.parametrize("C", [2, 7, 33])
@pytest.mark.parametrize("grid", [(1, 1), (2, 3), (7, 5), (6, 11)])
def test_any_number_of_channels_and_patches(engine, grid, C):  # noqa: F811
    """Numbers that no tile of the kernels divides, and a single patch."""
    x = tokens(3, grid, C)
    got = msm.stage_distances(x, (1, 3), grid=grid).double()
    for d, degree in enumerate((1, 3)):
        expected = plain.distances(plain.aggregate(x, degree, grid))
        np.testing.assert_allclose(got[d], expected, atol=1e-5)
        if degree == 1:  # alone, tokens lie without regard to the grid
            alone = msm.stage_distances(x, (1,), grid=grid)[0]
            np.testing.assert_allclose(alone, expected, atol=1e-5)


@pytest.mark.parametrize("degrees", [(9, 1, 7), (1, 11)])
@pytest.mark.parametrize("grid", [(2, 1), (6, 10)])
def test_the_widest_neighbourhoods(engine, degrees, grid):  # noqa: F811
    """The largest degree that the kernels sum, one beyond, and a grid that is smaller than either."""
    x = tokens(3, grid)
    expected = [plain.distances(plain.aggregate(x, degree, grid)) for degree in degrees]
    # all of a small grid is one neighbourhood: its tokens are equal but for rounding, and small distances with them
    np.testing.assert_allclose(msm.stage_distances(x, degrees, grid=grid), np.stack(expected), atol=1e-5)


@pytest.mark.parametrize("kind", ["AVX2", "AVX-512"])
def test_low_precision_is_within_its_tolerance(kind, monkeypatch):
    """Largest cosines of 8-bit products as they are, and whole comparisons where two tokens are nearly equal."""
    use_products(kind, monkeypatch)
    x = tokens(4, (8, 8), C=512)
    x[1, 5:20] = x[0, 25:40] + 1e-3 * x[2, :15]
    expected = torch.from_numpy(plain.mutual_scores([x], (1, 3), (8, 8)))
    use_engine(f"8 bits, {kind}", monkeypatch)
    got = msm.mutual_scores([x], (1, 3), precision="bfloat16").double()
    assert 1e-6 < (got - expected).abs().max() < 1e-3
    near = msm.stage_distances(x, (1,), precision="bfloat16")[0, 1, 0, 5:20]
    torch.testing.assert_close(near, msm.stage_distances(x, (1,))[0, 1, 0, 5:20], atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", ["AVX2", "AVX-512"])
@pytest.mark.parametrize("which", ["smooth", "one huge channel", "in few directions"])
def test_margins_bound_what_rounding_does(which, kind, monkeypatch):
    """The certificate itself: every cosine of the rounded products lies within both tokens' margins of float64's.

    In few directions: what takes 16 bits is nearly all of a token, and its rounding error nearly all of the error.
    """
    use_products(kind, monkeypatch)
    x = tokens(2, (7, 9), C=200, smooth=which == "smooth")
    if which == "one huge channel":
        x[:, :, 3] += 50
    elif which == "in few directions":
        x = tokens(2, (7, 9), C=3) @ torch.randn(3, 200, generator=torch.Generator().manual_seed(0)) + 1e-4 * x
    layout = Layout(7, 9, 200, (1, 3, 5), kind == "AVX-512")
    for way in compiled.candidate_layouts(lambda p: x[p], plan_pool(2), layout):
        (images, _), (buffers, _) = way.images(2), way.buffers()
        for s in range(2):
            preparation.prepare(x[s], way, images, s, buffers)
        place, sizes = way.grid.place, way.sizes(2)
        gram = np.zeros((sizes["panels"], 66, sizes["cols"]), np.float32)
        ratio = images.ratio[0] * images.ratio[1]
        products.multiply(images.rows[0], images.columns[1], images.offset[1], ratio, gram, 0, images.rows.shape[1])
        rows = gram.swapaxes(0, 1).reshape(66, -1)[:63, : len(place)]  # [a's tokens, columns]
        between = rows[:, place[: rows.shape[1]] >= 0].astype(np.float64).reshape(7, 9, 7, 9)
        for d, r in enumerate((1, 3, 5)):
            padded = np.pad(between, r // 2)
            sums = np.lib.stride_tricks.sliding_window_view(padded, (r, r, r, r)).sum(axis=(4, 5, 6, 7)).reshape(63, 63)
            cosines = images.row_scale[0, d][:, None] * sums * images.column_scale[1, d][place >= 0]
            margins = images.row_margin[0, d][:, None] + images.column_margin[1, d][place >= 0]
            exact = plain.aggregate(x, r, (7, 9))
            error = np.abs(cosines - exact[0] @ exact[1].T)
            assert (error < margins).all()
            assert error.max() > 1e-7


def test_many_near_ties_are_compared_whole(engine):  # noqa: F811
    """More candidates than a list holds, in both directions, none of them equal."""
    x = tokens(2, (9, 9), C=160)
    x[:, 10:80] = x[0, 10] + 1e-4 * x[:, 10:80]
    expected = [plain.distances(plain.aggregate(x, r, (9, 9))) for r in (1, 3)]
    np.testing.assert_allclose(msm.stage_distances(x, (1, 3)), np.stack(expected), atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_tokens_are_taken_as_they_are(dtype):
    x = tokens(4).to(dtype)
    assert torch.equal(msm.mutual_scores([x], grid=GRID), msm.mutual_scores([x.float()], grid=GRID))


@pytest.mark.parametrize("factor", [1e-6, 1.0, 1e6])
def test_scale_of_the_tokens_changes_nothing(engine, factor):  # noqa: F811
    """Among others the integers' scale; float64 as well sees a variance far above LayerNorm's eps, or far below."""
    x = tokens(3)
    expected = msm.stage_distances(x, grid=GRID)
    torch.testing.assert_close(msm.stage_distances(x * factor, grid=GRID), expected, atol=1e-5, rtol=0)


def test_one_huge_channel(engine):  # noqa: F811
    """As in real ViTs: integers then leave few bits to the rest, and exact distances must still decide."""
    x = tokens(3, C=64)
    x[:, :, 5] += 300
    got = msm.stage_distances(x, (1, 3), grid=GRID).double()
    for d, degree in enumerate((1, 3)):
        np.testing.assert_allclose(got[d], plain.distances(plain.aggregate(x, degree, GRID)), atol=1e-6)


def test_peak_memory_keeps_to_its_formula(monkeypatch):
    """40 images, of which 16 are held: all held would be 130 MiB more."""
    N, side, C = 40, 20, 768
    monkeypatch.setenv("OMP_NUM_THREADS", str(torch.get_num_threads()))
    parts = bench.beyond_features(N, side, C)
    found = bench.peak_in_child(N, side, C, stages=2)["peak"]
    # beside the formula: what the allocator keeps of the trial pair and of images in preparation
    assert parts["images"] / 2 < found < 1.05 * sum(parts.values()) + (64 << 20)
    assert 24 * parts["images"] / 16 > 100 << 20


def test_the_formula_leaves_room_at_200_images():
    assert sum(bench.beyond_features(200, 37, 1024).values()) < 1.5 * 2**30


def test_benchmarks_write_a_table_and_its_figures(tmp_path):
    command = [sys.executable, "-m", "benchmarks", "--quick", "--out", str(tmp_path), "msm"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env=environment, cwd=Path(__file__).parents[1]
    )
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["machine"]["threads"] == 1
    pair = found["rows"][0]
    assert pair["benchmark"] == "mutual scoring"
    assert pair["difference"] < 1e-6
    ratios = [p / o for p, o in zip(pair["plain_all_s"], pair["ours_all_s"], strict=True)]
    assert pair["ratio"] == pytest.approx(np.median(ratios))
    assert (tmp_path / "results.md").read_text() in done.stdout
    with (tmp_path / "results.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [line["benchmark"] for line in lines] == [row["benchmark"] for row in found["rows"]]
    assert float(lines[0]["ratio"]) == pytest.approx(pair["ratio"], rel=0.01)
    with (tmp_path / "scaling.csv").open() as file:
        assert {line["over"] for line in csv.DictReader(file)} == {"N", "M"}


def test_a_table_takes_rows_without_a_plain_way():
    row = {"benchmark": "b", "size": "s", "ours": "o", "plain": "–", "ours_s": 1.5, "plain_s": None, "ratio": None}
    assert "| b | s | o | – | 1.5 s | – | – |" in benchmarks.table([row], benchmarks.machine())


def test_rows_of_an_earlier_run_stay_and_targets_are_judged_by_rows(tmp_path):
    """A run replaces what it measures; what is met has nothing in its way."""
    size = "N = 12, 32 x 32 x 96, smooth tokens"
    old = {
        "benchmark": "mutual scoring",
        "size": size,
        "ours": "float32, AVX2",
        "plain": "–",
        "ours_s": 1,
        "ratio": 2.0,
    }
    wide = old | {"ours": "float32, AVX-512", "note": "n"}
    about = {"cpu": "C", "vector": "avx512f"}
    benchmarks.write([old, wide], about, tmp_path)
    met = targets.table([old | {"ratio": 9.0}])[1]
    missed = targets.table([old])[1]
    assert (met[2:4], missed[2:4]) == (("8x", "9x"), ("8x", "2x"))
    assert missed[4]
    assert not met[4]
    stay = benchmarks.kept([old], tmp_path / "results.json")
    assert [(row["ours"], row["note"]) for row in stay] == [("float32, AVX-512", "n; an earlier run, on C avx512f")]
    benchmarks.write([old, *stay], {"cpu": "D", "vector": "avx2"}, tmp_path)
    assert benchmarks.kept([old], tmp_path / "results.json") == stay


def test_buffers_are_given_back_after_an_error(engine):  # noqa: F811
    """A pair that fails (here: nowhere to write) ends the call; the next call is not disturbed."""
    x = tokens(3)

    def nowhere(images, slots, found):
        raise IndexError(slots)

    with pytest.raises(IndexError):
        cpu.stage_distances(Job(lambda p: x[p], plan_pool(3), (1,), GRID, nowhere, lambda n: None))
    assert torch.isfinite(msm.stage_distances(x, (1,), grid=GRID)).all()


def test_memory_comes_back_for_the_next_call_up_to_a_limit():
    pool = BufferPool(1000)
    first = pool.take(400)
    at = first.ctypes.data
    assert pool.take(400).ctypes.data != at  # the first piece is still out
    pool.give(first)
    assert pool.take(400).ctypes.data == at
    pool.give(first)
    for size in (500, 600):  # no room for all three: the oldest goes
        pool.give(np.empty(size, np.uint8))
    assert [piece.nbytes for piece in pool.pieces] == [600]
    pool.give(np.empty(2000, np.uint8))
    assert not pool.pieces


@pytest.mark.parametrize("offset", [0.0, 300.0])
def test_tokens_with_too_many_candidates_are_compared_with_all(offset):
    """`nearest_of_all` against float64, at the border too, and where tokens have a large mean."""
    x = tokens(2, (6, 7), C=64) + offset
    layout = Layout(6, 7, 64, (1, 3, 5), False)
    (images, _), (buffers, _) = layout.images(2), layout.buffers()
    for s in range(2):
        preparation.prepare(x[s], layout, images, s, buffers)
    for d, r in enumerate((1, 3, 5)):
        expected = plain.distances(plain.aggregate(x, r, (6, 7)))[0, 0]
        for m in (0, 6, 17, 41):
            square, at = search.nearest_of_all(images, 0, m, 1, d)
            assert np.sqrt(square) == pytest.approx(expected[m], abs=1e-4 if offset else 1e-6)
            assert square == search.squared_distance(images.unit, 0, m, 1, at, d)


FIRST_USE = """
import sys, time, warnings
warnings.simplefilter("error")
import torch
from musc import msm
from musc.engines.cpu import compiling
x = torch.randn(4, 30, 24, generator=torch.Generator().manual_seed(0))
was_ready = compiling.ready()
first = msm.stage_distances(x, (1, 3), grid=(5, 6))
assert was_ready or "numba" not in sys.modules
again = time.monotonic() + float(sys.argv[1])
while not compiling.ready() and time.monotonic() < again:
    time.sleep(0.1)
way = "compiled" if compiling.ready() else "torch"
print(way, float((msm.stage_distances(x, (1, 3), grid=(5, 6)) - first).abs().max()))
"""


def first_use(patience, package=ROOT, **environment):
    """What a new process prints that scores twice, and waits for kernels in between."""
    command = [sys.executable, "-W", "error", "-c", FIRST_USE, str(patience)]
    environment = os.environ | {"PYTHONPATH": str(package)} | environment
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=package, check=False)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    way, difference = done.stdout.split()
    return way, float(difference)


needs_avx2 = pytest.mark.skipif(not cpu.has_integer_products(), reason="this processor has no AVX2")


def edit_a_copy(folder):
    """A copy of the package in which one kernel's factor has the other sign."""
    boxes = folder / "musc" / "engines" / "cpu" / "boxes.py"
    text = boxes.read_text()
    product = "builder.fmul(total(builder, window), factor)"
    assert product in text
    boxes.write_text(text.replace(product, f"builder.fneg({product})"))


@pytest.fixture
def copied(tmp_path):
    leave = shutil.ignore_patterns("weights", "__pycache__")
    shutil.copytree(ROOT / "musc", tmp_path / "copy" / "musc", ignore=leave)
    return tmp_path / "copy"


def test_kernels_belong_to_the_sources_they_were_compiled_from(copied):
    """A copy takes the kernels that are there, and an edited one has none yet: it compiles its own."""

    def digest():
        code = "from musc.engines.cpu import compiling; print(compiling.digest())"
        environment = os.environ | {"PYTHONPATH": str(copied)}
        return subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=copied, check=True
        ).stdout.strip()

    assert digest() == compiling.digest()
    assert compiling.folder().name == compiling.digest()
    edit_a_copy(copied)
    assert digest() != compiling.digest()


@needs_avx2
@pytest.mark.nightly
def test_an_edited_kernel_is_compiled_anew(tmp_path, copied):
    """The first use computes in torch while kernels compile, without a word or a numba; then they are used.

    In a copy of the package `note_rival`'s module is what it was, and one that it calls is not: the results change.
    """
    cache = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    way, difference = first_use(300, **cache)
    assert way == "compiled"
    assert 0 < difference < 1e-6
    assert first_use(0, **cache)[0] == "compiled"
    edit_a_copy(copied)
    way, difference = first_use(300, copied, **cache)
    assert way == "compiled"
    assert difference > 0.1
    assert len(list((tmp_path / "cache" / "musc" / "kernels").iterdir())) == 2


@needs_avx2
def test_without_a_place_to_write_the_first_use_goes_on_in_torch(tmp_path):
    (tmp_path / "file").touch()
    nowhere = str(tmp_path / "file" / "folder")
    code = "import tempfile; tempfile.gettempdir = lambda: '/proc/nowhere'\n" + FIRST_USE
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, "0"], capture_output=True, text=True, check=False, cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": nowhere},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == ["torch", "0.0"]


@needs_avx2
def test_one_process_compiles_for_all(tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(compiling, "folder", lambda: tmp_path)
    monkeypatch.setattr(compiling.subprocess, "Popen", lambda *a, **k: started.append(a) or Child())
    monkeypatch.setattr(compiling, "_children", [])

    class Child:
        returncode = None

        def poll(self):
            return None

    compiling.compile_aside()
    compiling.compile_aside()  # this process' child is at work
    compiling._children.clear()
    compiling.compile_aside()  # another's
    assert len(started) == 1
    os.utime(tmp_path / "compiling", (0, 0))  # it died
    compiling.compile_aside()
    assert len(started) == 2
    compiling.finish()
    assert compiling.ready()
    assert not (tmp_path / "compiling").exists()


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="no /proc, that tells what a process has loaded")
def test_a_patient_compiler_steps_back_before_it_loads_torch(tmp_path, monkeypatch):
    """Importing torch takes seconds of processor time, which a short job would otherwise wait for."""
    monkeypatch.setattr(compiling, "folder", lambda: tmp_path)
    monkeypatch.setattr(compiling, "_children", [])
    compiling.compile_aside(patient=True)
    child = compiling._children[0]
    try:
        while os.getpriority(os.PRIO_PROCESS, child.pid) < 19:
            assert "libtorch" not in Path(f"/proc/{child.pid}/maps").read_text()
            assert child.poll() is None
            time.sleep(0.005)
    finally:
        child.kill()
        child.wait()


def test_a_job_changes_over_when_kernels_are_ready(monkeypatch):
    """Some pairs in torch, the others compiled: as if all were done in one way."""
    x = tokens(7)
    expected = msm.stage_distances(x, grid=GRID, block=2)
    asked = iter([False, False, False, True])
    monkeypatch.setattr(compiling, "ready", lambda: next(asked))
    monkeypatch.setattr(compiling, "compile_aside", lambda **_: None)
    got = msm.stage_distances(x, grid=GRID, block=2)
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=0)
    assert next(asked, None) is None


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_tokens_that_are_not_finite_are_named(engine, value, dtype):  # noqa: F811
    x = tokens(4).to(dtype)
    x[2, 7, 3] = value
    for precision in ("float32", "bfloat16"):
        with pytest.raises(ValueError, match=r"^image 2: 1 patch tokens hold NaN or infinity, the first at patch 7"):
            msm.mutual_scores([x], grid=GRID, precision=precision)
    with pytest.raises(ValueError, match=r"^image 2"):
        msm.mutual_scores([x], grid=GRID, position_window=1)
    with pytest.raises(ValueError, match=r"^reference image 2"):
        msm.mutual_scores([x[:2]], grid=GRID, references=[x])
    with pytest.raises(ValueError, match=r"^image 2"):
        msm.newcomer_distances(x[0], list(x[1:]), grid=GRID)
    with pytest.raises(ValueError, match=r"^image 0"):  # a new image is never taken on trust
        msm.newcomer_distances(x[2], list(x[:2]), grid=GRID, checked=True)


def test_other_threads_keep_their_number_of_torch_threads(engine):  # noqa: F811
    """Threads that are there when a run begins, and threads that begin while it runs."""
    x, before, seen = tokens(6), torch.get_num_threads(), []

    def image(p):
        with ThreadPoolExecutor(1) as other:
            seen.append(other.submit(torch.get_num_threads).result())
        return x[p]

    try:
        torch.set_num_threads(3)
        nothing = (lambda images, slots, found: seen.append(torch.get_num_threads())), (lambda count: None)
        cpu.stage_distances(Job(image, plan_pool(6), (1, 3), GRID, *nothing, block=2))
        assert set(seen) == {3}
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_the_way_taken_is_logged(caplog):
    with caplog.at_level("INFO", logger="musc.engines"):
        msm.mutual_scores([tokens(3)], grid=GRID)
        msm.mutual_scores([tokens(3)], grid=GRID, position_window=1)
    said = [record.message for record in caplog.records]
    assert said[0].startswith(("compiled: ", "gram: "))
    assert said[1].startswith("windowed: ")


def test_work_outside_the_pairs_is_linear_in_them():
    """Writing 20,000 pairs' results, and grouping them, takes seconds where it is quadratic."""
    plan = plan_pool(200)
    start = time.process_time()
    count = 0
    for group in plan.blocks(100):
        assert len({p for pair in group for p in pair}) <= 200
        for i, others in by_image(group):
            nothing = torch.empty(1, len(others), 1)
            plan.write(lambda images, slots, found: None, i, others, nothing, nothing)
            count += len(others)
    assert count == 19900
    assert time.process_time() - start < 2
