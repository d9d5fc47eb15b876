"""Mutual scoring below a bound of memory: the same scores, and the bound is kept."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import plain
import pytest
import torch
from test_msm import GRID, kernels, tokens  # noqa: F401

from musc import msm
from musc.engines import memory, rows
from musc.engines.gpu import tiles
from musc.errors import ConfigError

ROOT = Path(__file__).parents[1]
POOLS = [{}, {"references": 3}, {"pool": 4, "seed": 3}, {"references": 3, "pool": 0}, {"references": 3, "pool": 5}]
CUTS = [(2, 2, 3), (3, 20, 8)]  # band, chunk, group


@pytest.mark.parametrize("options", POOLS, ids=lambda options: ",".join(options) or "all")
@pytest.mark.parametrize("cut", CUTS, ids=str)
def test_any_cut_gives_the_same_scores(options, cut, monkeypatch, tmp_path):
    """Against float64 loops where they exist, and bit for bit against everything at once."""
    x, grid = tokens(8, (3, 4), C=9), (3, 4)
    options = {**options, "references": [tokens(3, grid, C=9, seed=5)] * 2} if "references" in options else options
    whole = msm.mutual_scores([x, x.flip(2)], (1, 3), grid=grid, **options)
    if not options:
        np.testing.assert_allclose(whole, plain.mutual_scores([x, x.flip(2)], (1, 3), grid), atol=1e-6)
    monkeypatch.setattr(memory, "cut", lambda *_, **__: memory.Cut(None, *cut))
    for scratch in (None, tmp_path):
        got = msm.mutual_scores([x, x.flip(2)], (1, 3), grid=grid, scratch=scratch, **options)
        torch.testing.assert_close(got, whole, atol=1e-6, rtol=0)
    assert not list(tmp_path.iterdir())


def test_images_that_are_sorted_together(monkeypatch):
    """As on a GPU, where three images' distances at a time are sorted."""
    x, options = tokens(8, (3, 4), C=9), {"grid": (3, 4), "max_bytes": 1 << 30}
    whole, some = msm.mutual_scores([x], (1, 3), **options), msm.mutual_scores([x], (1, 3), pool=4, **options)
    monkeypatch.setattr(msm, "few", lambda images, distances: (
        (images[k : k + 3], distances[:, k : k + 3]) for k in range(0, len(images), 3)
    ))  # fmt: skip
    torch.testing.assert_close(msm.mutual_scores([x], (1, 3), **options), whole, atol=1e-6, rtol=0)
    torch.testing.assert_close(msm.mutual_scores([x], (1, 3), pool=4, **options), some, atol=1e-6, rtol=0)


def test_each_pair_once_in_a_group_and_twice_between_groups():
    met = []

    def compare(image, plan, out):
        met.extend((int(image(i)), int(image(p))) for i, p in plan.pairs())
        out.zero_()

    problem = memory.Problem(torch.device("cpu"), torch.float32, 7, 9, 8, (1, 1), 1, (1,))
    cut = memory.Cut(None, band=2, chunk=4, group=5)
    list(rows.completed(torch.arange(9.0).unbind().__getitem__, problem, rows.all_others(7), cut, compare, None))
    counts = {pair: met.count(pair) + met.count(pair[::-1]) for pair in met}
    for i in range(7):
        for p in range(i + 1, 9):
            assert counts.get((i, p), counts.get((p, i))) == (1 if (i < 5) == (p < 5) or p > 6 else 2), (i, p)


def test_what_a_bound_allows_is_used_and_never_passed():
    """The parts of a cut, added up again, stay below the bound; a larger bound never compares more pairs twice."""
    for N, side, C in ((2000, 14, 384), (300, 37, 1024), (50, 6, 16)):
        problem = memory.Problem(torch.device("cpu"), torch.float32, N, N, N - 1, (side, side), C, (1, 3, 5))
        groups = []
        for bound in (1 << 30, 2 << 30, 8 << 30, 1 << 40):
            cut = memory.cut(problem, bound)
            if cut is None or cut.band >= N:
                assert problem.whole < bound
                groups.append(N)
                continue
            groups.append(cut.group)
            waiting = cut.group**2 // 4 * problem.unit
            band = cut.band * problem.J * problem.unit
            call = 3 * cut.band * cut.chunk * problem.unit
            assert waiting + band + call + memory.engine_bytes(problem, cut.block) < bound
        assert groups == sorted(groups)
        assert groups[-1] == N


@pytest.mark.parametrize("J", [40, 300, 1700, 1999])
def test_a_gpu_holds_the_room_that_waits_whole(J, monkeypatch):
    """Where memory is taken when it is asked for, not when it is written to, the spare room counts too."""
    monkeypatch.setattr(memory, "engine_bytes", lambda *_: 0)
    problem = memory.Problem(torch.device("cuda"), torch.float32, 2000, 2000, J, (14, 14), 384, (1, 3, 5))
    bound = problem.whole // 4
    cut = memory.cut(problem, bound, block=16)
    pairs = min(cut.band**2, memory.SPARE * cut.band**2 * J / 2000)
    waiting = (-(-cut.group // cut.band)) ** 2 // 4 * pairs * problem.unit
    assert bound / 5 < waiting < bound - problem.J * cut.band * problem.unit


@pytest.mark.parametrize(("N", "side", "C"), [(400, 37, 1024), (2000, 14, 384), (60, 50, 768)])
@pytest.mark.parametrize("share", [0.05, 0.3, 1])
def test_a_gpu_s_parts_stay_below_the_bound(N, side, C, share, monkeypatch):
    """Added up as the engine and `rows` ask for them. 400 images of ViT-L's size by 20 each once took 86 MiB more than
    their 2 GiB: a launch's keys were there twice, and raw tokens while they were prepared."""
    monkeypatch.setattr(tiles, "default_tile", lambda device: tiles.Tile())
    J, M, D = max(1, int(share * (N - 1))), side * side, 3
    rows_of, blocks = -(-M // 32) * 32, -(-C // 64) * 64
    problem = memory.Problem(torch.device("cuda"), torch.float32, N, N, J, (side, side), C, (1, 3, 5))
    for bound in (1 << 29, 1 << 30, 3 << 29, 2 << 30, 4 << 30, 16 << 30):
        try:
            cut = memory.cut(problem, bound)
        except ConfigError:
            continue
        block = cut.block if cut else 32
        held = min(2 * block, N) * D * (4 * M * C + 2 * rows_of * blocks)
        A = min(block, tiles.chunk_images(M)) * rows_of
        keys = 2 * 4 * D * (A * (A // 32) + A * (A // 16))
        raw = 2 * 4 * M * C * min(16, N, 2 * block)  # and once more, as float32, where they are not
        taken = held + max(keys, raw) + 3 * 4 * N * M
        if cut is None or cut.band >= N:
            taken += 4 * D * N * J * M + 2 * 8 * N * N
        else:
            pairs = min(cut.band**2, int(memory.SPARE * cut.band**2 * J / N) + 1)
            n = cut.band + max(cut.band, cut.chunk)
            waiting = (-(-cut.group // cut.band)) ** 2 // 4 * pairs
            taken += 4 * D * M * (cut.band * J + waiting + 2 * n * (cut.band + 1))
        assert taken <= bound, (cut, bound)


def test_a_bound_too_small_for_one_pair():
    x = tokens(5)
    with pytest.raises(
        ConfigError, match=r"max_bytes = 1000 \(0 MiB\): one image's distances to 4 others and one pair"
    ):
        msm.mutual_scores([x], grid=GRID, max_bytes=1000)


def test_a_disk_too_small_for_what_waits(tmp_path, monkeypatch):
    monkeypatch.setattr(rows.shutil, "disk_usage", lambda _: type("", (), {"free": 10})())
    monkeypatch.setattr(memory, "cut", lambda *_, **__: memory.Cut(None, 2, 2, 5))
    with pytest.raises(ConfigError, match=r"distances that wait need .* GiB are free: choose another folder"):
        msm.mutual_scores([tokens(5)], grid=GRID, scratch=tmp_path)


LINUX = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak is read from Linux's /proc")


def in_a_process(code, *arguments):
    """What a program prints as JSON."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return json.loads(subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout)


@LINUX
def test_the_peak_of_rows_stays_below_what_the_cut_allows():
    """With an engine that takes no memory; all distances at once would take 128 MB. What waits is right, too."""
    peak, allowed, wrong = in_a_process(
        """
import json, torch
from pathlib import Path
from benchmarks.metrics import peak_memory, resident_memory
from musc.engines import memory, rows
N, M, bound = 1000, 32, 45 << 20
p = memory.Problem(torch.device("cpu"), torch.float32, N, N, N - 1, (4, 8), 1, (1,))
cut = memory.Cut(None, 20, 100, 900)
def compare(image, plan, out):
    i, q = (plan.slot >= 0).nonzero(as_tuple=True)
    ids = torch.tensor([image(k).item() for k in range(plan.N)])
    for k in range(0, len(i), 1000):
        some = slice(k, k + 1000)
        out.numpy()[:, i[some], plan.slot[i[some], q[some]]] = (ids[i[some]] * N + ids[q[some]])[:, None].numpy()
def run(N, cut):
    wrong = 0
    problem = memory.Problem(p.device, p.dtype, N, N, N - 1, p.grid, 1, (1,))
    for images, found in rows.completed(lambda k: torch.tensor(k), problem, rows.all_others(N), cut, compare, None):
        for row, i in enumerate(images):
            ids = torch.cat([torch.arange(i), torch.arange(i + 1, N)])
            wrong += int((found[0, row, :, 5] != i * p.N + ids).sum())
    return wrong
run(60, cut)
Path("/proc/self/clear_refs").write_text("5")
before = resident_memory()
wrong = run(N, cut)
print(json.dumps([peak_memory() - before, (900**2 // 4 + 20 * (N - 1) + 3 * 20 * 100) * p.unit, wrong]))
"""
    )
    assert wrong == 0
    assert 0.5 * allowed < peak < 1.1 * allowed + (8 << 20)  # the interpreter's own


@LINUX
@pytest.mark.nightly
def test_the_peak_stays_below_the_bound_with_features_on_disk(tmp_path):
    """In a process of its own: all distances at once would take 110 MB."""
    peak, bound, apart = in_a_process(
        """
import json, sys, torch
from pathlib import Path
from benchmarks.metrics import peak_memory, resident_memory
from musc import msm
torch.set_num_threads(1)
N, bound = 480, 56 << 20
path = str(Path(sys.argv[1]) / "tokens")
x = torch.from_file(path, shared=True, size=N * 40 * 8).reshape(N, 40, 8)
x.normal_(generator=torch.Generator().manual_seed(0))
msm.mutual_scores([x[:3]], grid=(5, 8))
Path("/proc/self/clear_refs").write_text("5")
before = resident_memory()
got = msm.mutual_scores([x], grid=(5, 8), max_bytes=bound)
peak = peak_memory() - before
some = msm.mutual_scores([x[:4]], grid=(5, 8), references=[x[4:]], pool=3)
print(json.dumps([peak, bound, (got[:4] - some).abs().max().item()]))
""",
        tmp_path,
    )
    assert 0 < peak < bound
    assert apart < 1e-6


def test_with_few_pairs_all_images_are_held_where_memory_allows():
    few = memory.Problem(torch.device("cpu"), torch.float32, 400, 400, 20, (14, 14), 384, (1, 3, 5))
    assert memory.cut(few, 4 << 30) == memory.Cut(200, 400, 400, 400)
    assert memory.cut(few, 1 << 30).block < 200
    all_others = memory.Problem(torch.device("cpu"), torch.float32, 400, 400, 399, (14, 14), 384, (1, 3, 5))
    assert memory.cut(all_others, 4 << 30).block == 32
