"""Fewer comparisons on purpose: shortlists of look-alikes, and coresets."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import pairwise_distances
from test_msm import kernels, tokens  # noqa: F401

from benchmarks import scale
from musc import MuScConfig, msm
from musc.cli.options import Parser
from musc.cli.settings import add_settings, given_settings
from musc.datasets.base import Sample
from musc.errors import ConfigError
from musc.features import Features
from musc.scoring import neighbours
from musc.scoring.maps import patch_scores

GRID = (5, 6)


def features(N=12, seed=0):
    stages = [tokens(N, GRID, C=16, seed=seed + n) for n in range(2)]
    samples = tuple(Sample(f"{n}.png", Path(f"{n}.png")) for n in range(N))
    return Features(stages, None, (GRID, GRID), samples)


def scores(f, **settings):
    return patch_scores(f, None, MuScConfig(**settings), device=torch.device("cpu"))[GRID]


def test_differences_are_those_of_coarse_tokens():
    x = neighbours.sketches(tokens(6, GRID, C=80), GRID)
    assert x.shape == (6, 16, 64)
    got = neighbours.differences(x)
    for i in range(6):
        for j in range(6):
            expected = pairwise_distances(x[i].double(), x[j].double()).min(axis=1).mean()
            assert got[i, j] == pytest.approx(expected, abs=1e-3)


def test_a_shortlist_finds_the_images_of_the_same_kind():
    g = torch.Generator().manual_seed(1)
    kinds = torch.randn(4, 30, 24, generator=g)
    kind = torch.arange(20) % 4
    found = neighbours.chosen(4, kinds[kind] + 0.3 * torch.randn(20, 30, 24, generator=g), GRID)
    assert (kind[found] == kind[:, None]).all()
    assert (found != torch.arange(20)[:, None]).all()


def test_a_coreset_has_every_kind_and_treats_all_images_alike():
    g = torch.Generator().manual_seed(1)
    kinds = torch.randn(5, 30, 24, generator=g)
    kind = torch.tensor([0] * 16 + [1, 2, 3, 4])
    found = neighbours.chosen("coreset:5", kinds[kind] + 0.1 * torch.randn(20, 30, 24, generator=g), GRID)
    assert found.shape == (20, 5)
    assert set(kind[found[3]].tolist()) == {0, 1, 2, 3, 4}
    assert len(found[:16].unique(dim=0)) <= 3  # the two centres among them are not scored by themselves
    assert (found != torch.arange(20)[:, None]).all()


def test_eq_2_over_a_shortlist_takes_as_many_distances_as_over_all():
    for full in (1, 10, 399):
        for interval in ((0.0, 0.3), (0.1, 0.5), (0.0, 1.0)):
            low, high = msm.interval_bounds(full, interval)
            for J in range(1, full + 1):
                got = msm.interval_bounds(J, neighbours.interval_of_shortlist(interval, J, full))
                assert got == (min(low, J - 1), max(min(high, J), min(low, J - 1) + 1))


def test_a_shortlist_never_scores_lower_and_all_of_it_is_exact():
    """The K lowest of fewer images are no lower; with all the others it is the method itself."""
    f = features()
    exact = scores(f)
    torch.testing.assert_close(scores(f, neighbours=1.0), exact)
    torch.testing.assert_close(scores(f, neighbours=11), exact)
    for share in (0.4, 0.7):
        assert (scores(f, neighbours=share) >= exact - 1e-6).all()
    K = msm.interval_bounds(11)[1]
    pool = neighbours.chosen(5, f.patch_tokens[-1], GRID)
    for n, stage in enumerate(f.patch_tokens):
        d = msm.stage_distances(stage, (1, 3, 5), grid=GRID, pool=pool).numpy()
        part = np.sort(d, axis=2)[:, :, :K].mean(axis=(0, 2))
        total = part if n == 0 else total + part  # noqa: F821
    np.testing.assert_allclose(scores(f, neighbours=5), total / 2, atol=1e-6)


def test_settings():
    for good in ("exact", "coreset:8", 0.25, 1.0, 3):
        c = MuScConfig(neighbours=good)
        assert MuScConfig.from_dict(c.to_dict()) == c
    for wrong in ("near", "coreset:0", 0, 0.0, 1.5, -2):
        with pytest.raises(ConfigError, match=r"neighbours = .*: give a share of the images such as 0.1"):
            MuScConfig(neighbours=wrong)
    for other in ({"references": 5}, {"consistency": "warn"}, {"tiles": 2, "tile_pool": "all"}):
        with pytest.raises(ConfigError):
            MuScConfig(neighbours=0.1, **other)
    with pytest.raises(ConfigError, match=r"max_memory = 0: give a whole number from 1"):
        MuScConfig(max_memory=0)


def test_words_of_the_command_line(capsys):
    parser = Parser(prog="musc")
    add_settings(parser, ("neighbours", "max_memory"))
    read = lambda *words: given_settings(parser.parse_args(words))  # noqa: E731
    assert read("--neighbours", "0.1", "--max-memory", "2GiB") == {"neighbours": 0.1, "max_memory": 2 << 30}
    assert read("--neighbours", "40", "--max-memory", "500MB") == {"neighbours": 40, "max_memory": 500_000_000}
    assert read("--neighbours", "coreset:20")["neighbours"] == "coreset:20"
    for words in (["--max-memory", "much"], ["--neighbours", "few"]):
        with pytest.raises(SystemExit):
            parser.parse_args(words)
        assert "give" in capsys.readouterr().err


def test_the_benchmark_measures_what_the_package_scores():
    """Its choices among distances that were computed once are the package's own scores, way by way."""
    f = features(24)
    every = np.stack([msm.stage_distances(stage, scale.DEGREES, grid=GRID).numpy() for stage in f.patch_tokens])
    chosen = list(scale.ways(f))
    for way, got in zip(chosen, scale.scores_of(every, chosen), strict=True):
        settings = {"neighbours": float(way.setting)} if way.name == "look-alikes" else {}
        if way.name == "references":
            settings = {"references": way.pool.shape[1], "seed": way.seed}
        if way.name == "coreset":
            settings = {"neighbours": f"coreset:{way.pool.shape[1]}"}
        np.testing.assert_allclose(got, scores(f, **settings), atol=1e-6, err_msg=str(way[:3]))
    assert scale.compared(None, 24) == 1
    assert scale.compared(torch.tensor([[1], [0], [0]]), 3) == pytest.approx(2 / 3)


def test_a_row_of_the_benchmark_is_measured_once(tmp_path):
    for _ in range(2):
        table = scale.Table(tmp_path / "t.csv", ("way", "images"), ("seconds",))
        if not table.has("exact", 5):
            table.add("exact", 5, "1.0")
    assert (tmp_path / "t.csv").read_text() == "way,images,seconds\nexact,5,1.0\n"


def test_the_table_of_devices_has_what_the_chapter_reads(tmp_path):
    """With the processor as device; a row that is there is not measured again."""
    scale.on_devices("cpu", (6,), 2, tmp_path)
    text = (tmp_path / "scale_gpu.csv").read_text()
    rows = list(csv.DictReader(text.splitlines()))
    ways = [*scale.WAYS, scale.BOUNDED]
    assert [(r["devices"], r["images"], r["way"]) for r in rows] == [("1", "6", way) for way in ways]
    assert all(float(r["seconds"]) > 0 for r in rows)
    assert float(rows[-1]["largest error"]) < 1e-6
    assert "peak (MiB)" in rows[0]
    scale.on_devices("cpu", (6,), 2, tmp_path)
    assert (tmp_path / "scale_gpu.csv").read_text() == text
