import shutil

import numpy as np
import plain
import pytest
import torch

from musc import MuSc, MuScConfig, MuScResult, cli, engines, msm
from musc.errors import ConfigError, DataError
from musc.stream import MutualPool, Stream, score_against

GRID = (2, 3)
CONFIG = MuScConfig(degrees=(1, 3))


def tokens(seed, N, C=4):
    return torch.randn(N, 6, C, generator=torch.Generator().manual_seed(seed)) * 2 + 1


def push_all(pool, stages, start=0):
    return [pool.push(f"{i}.png", [stage[i] for stage in stages]) for i in range(start, len(stages[0]))]


def together(scores):
    """Patch scores per stage -> mean over stages [N, M]."""
    return torch.stack([torch.stack(stages).mean(dim=0) for stages in scores.values()])


@pytest.fixture
def musc(tiny_config, tiny_backbone, tmp_path):
    """A pipeline with a cache and the session's network."""
    return MuSc(tiny_config.replace(degrees=(1, 3)), backbone=tiny_backbone, cache=tmp_path / "cache")


@pytest.fixture
def loaded(monkeypatch, tiny_backbone):
    """Networks are not built again."""
    monkeypatch.setattr("musc.pipeline.load_backbone", lambda *_, **__: tiny_backbone)


def test_forty_images_one_at_a_time_equal_the_batch():
    stages = [tokens(1, 40)]
    pool = MutualPool(CONFIG, [GRID])
    last = push_all(pool, stages)[-1]
    batch = msm.mutual_scores(stages, CONFIG.degrees, grid=GRID)
    torch.testing.assert_close(together(pool.scores()), batch, atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.stack(last).mean(dim=0), batch[-1], atol=1e-5, rtol=0)
    assert pool.comparisons == 40 * 39 // 2


def test_every_step_equals_brute_force():
    stages = [tokens(3, 6), tokens(2, 6, 5)]
    pool = MutualPool(CONFIG, [GRID, GRID])
    assert pool.push("0.png", [stage[0] for stage in stages]) is None
    for i in range(1, 6):
        new = pool.push(f"{i}.png", [stage[i] for stage in stages])
        expected = plain.mutual_scores([stage[: i + 1] for stage in stages], CONFIG.degrees, grid=GRID)
        np.testing.assert_allclose(together(pool.scores()), expected, atol=1e-6)
        np.testing.assert_allclose(torch.stack(new).mean(dim=0), expected[i], atol=1e-6)


@pytest.mark.parametrize("keep", ["recent", "reservoir"])
def test_a_bounded_pool_costs_the_same_for_every_image(keep, monkeypatch):
    counted = []
    compare = engines.compare
    monkeypatch.setattr(
        engines, "compare", lambda image, plan, *a: counted.extend(plan.pairs()) or compare(image, plan, *a)
    )
    stages, pool, per_image = [tokens(4, 30)], MutualPool(CONFIG, [GRID], capacity=5, keep=keep), []
    for i in range(30):
        counted.clear()
        pool.push(f"{i}.png", [stages[0][i]])
        per_image.append(len(counted))
    assert per_image == [0, 1, 2, 3, 4] + [5] * 25
    assert len(pool) == 5
    assert pool.comparisons == sum(per_image)
    assert all(len(image.distances) == 4 for image in pool.held.values())
    kept = [int(image.name[:-4]) for image in pool.held.values()]
    expected = plain.mutual_scores([stages[0][kept]], CONFIG.degrees, grid=GRID)
    np.testing.assert_allclose(together(pool.scores()), expected, atol=1e-6)
    assert (kept == [25, 26, 27, 28, 29]) == (keep == "recent")


def test_the_reservoir_is_a_fair_sample(monkeypatch):
    def none(tokens, pool, degrees, **_):
        return (torch.zeros(len(degrees), len(pool), len(tokens)),) * 2

    monkeypatch.setattr(msm, "newcomer_distances", none)  # which images stay does not depend on distances
    kept = np.zeros(12)
    few = tokens(5, 12, 2)[:, :1]
    for seed in range(150):
        pool = MutualPool(MuScConfig(degrees=(1,)), [(1, 1)], capacity=3, keep="reservoir", seed=seed)
        push_all(pool, [few])
        kept[[int(image.name[:-4]) for image in pool.held.values()]] += 1
    # each image stays with probability 1/4: 37.5 of 150, standard deviation 5.3
    assert kept.min() > 37.5 - 4 * 5.3
    assert kept.max() < 37.5 + 4 * 5.3


def test_references_score_from_the_first_image_on():
    images, references = tokens(6, 4), tokens(7, 3)
    pool = MutualPool(CONFIG, [GRID], capacity=4, references=[references])
    first, *_ = push_all(pool, [images])
    alone = plain.mutual_scores([images], CONFIG.degrees, grid=GRID, references=[references])
    np.testing.assert_allclose(together(pool.scores()), alone, atol=1e-6)
    expected = msm.mutual_scores([images[:1]], CONFIG.degrees, references=[references], grid=GRID)
    torch.testing.assert_close(first[0], expected[0], atol=1e-6, rtol=0)


def test_bad_input_leaves_the_pool_as_it_was():
    images = tokens(8, 5)
    pool = MutualPool(CONFIG, [GRID])
    with pytest.raises(DataError, match=r"holds 0 images and 0 references: push at least two"):
        pool.scores()
    push_all(pool, [images[:4]])
    before = together(pool.scores())
    with pytest.raises(DataError, match=r"3\.png is in the pool already"):
        pool.push("3.png", [images[4]])
    with pytest.raises(DataError, match=r"\(6, 5\).*pool of \[\(6, 4\)\].*same backbone, image size"):
        pool.push("4.png", [tokens(8, 1, 5)[0]])
    with pytest.raises(DataError, match=r"4\.png has tokens of"):
        pool.push("4.png", [images[4][:4]])
    with pytest.raises(DataError, match="NaN"):
        pool.push("4.png", [images[4] * torch.nan])
    assert torch.equal(together(pool.scores()), before)
    assert pool.comparisons == 6
    pool.push("4.png", [images[4]])
    np.testing.assert_allclose(
        together(pool.scores()), plain.mutual_scores([images], CONFIG.degrees, grid=GRID), atol=1e-6
    )


@pytest.mark.parametrize(("settings", "message"), [({"capacity": 0}, "capacity = 0"), ({"keep": "best"}, "'best'")])
def test_pools_that_cannot_be(settings, message):
    with pytest.raises(ConfigError, match=message):
        MutualPool(CONFIG, [GRID], **settings)


def test_newcomers_meet_the_pool_both_ways():
    images = tokens(9, 5)
    to_pool, from_pool = msm.newcomer_distances(images[0], list(images[1:]), (1, 3), grid=GRID)
    every = msm.stage_distances(images, (1, 3), grid=GRID)
    torch.testing.assert_close(to_pool, every[:, 0], atol=1e-6, rtol=0)
    torch.testing.assert_close(from_pool, every[:, 1:, 0], atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match="the pool is empty"):
        msm.newcomer_distances(images[0], [], grid=GRID)
    with pytest.raises(ValueError, match="same patches and channels"):
        msm.newcomer_distances(images[0], [images[1][:, :2]], grid=GRID)


def test_a_stream_ends_with_the_scores_of_the_batch(musc, photos):
    paths = sorted(photos.iterdir())
    stream = Stream(musc)
    scored = [stream.push(path) for path in paths]
    assert np.isnan(scored[0].raw_score)
    assert scored[0].anomaly_map is None
    batch, result = musc.run(paths), stream.result()
    assert result.paths == batch.paths
    np.testing.assert_allclose(result.anomaly_maps, batch.anomaly_maps, atol=1e-5)
    np.testing.assert_allclose(result.image_scores, batch.image_scores, atol=1e-5)
    assert scored[5].raw_score == pytest.approx(batch.raw_image_scores[5], abs=1e-5)
    shutil.copy(paths[2], photos / "again.png")
    with pytest.raises(DataError, match=r"again\.png is in the pool already as .*2\.png"):
        stream.push(photos / "again.png")
    (photos / "broken.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"broken\.png"):
        stream.push(photos / "broken.png")
    assert len(stream.pool) == 6
    assert (stream.result().raw_image_scores == result.raw_image_scores).all()


def test_settings_that_need_a_batch_are_refused(tiny_config):
    with pytest.raises(ConfigError, match="subsets"):
        Stream(MuSc(tiny_config.replace(subsets=2)))
    with pytest.raises(ConfigError, match="capacity"):
        Stream(MuSc(tiny_config.replace(references=2)))
    with pytest.raises(ConfigError, match="consistency = 'warn'"):
        Stream(MuSc(tiny_config.replace(consistency="warn")))
    with pytest.raises(ConfigError, match="neighbours = 2 is not for streams: it needs all images at once"):
        Stream(MuSc(tiny_config.replace(neighbours=2)))


def test_a_new_image_is_scored_by_the_whole_pool_where_that_compared_look_alikes(
    photos, tmp_path, tiny_config, tiny_backbone, loaded
):
    *paths, new = sorted(photos.iterdir())
    found = {}
    for few in ("exact", 2):
        musc = MuSc(tiny_config.replace(neighbours=few), backbone=tiny_backbone, cache=tmp_path / "cache")
        found[few] = score_against([new], musc.run(paths), device="cpu")
    np.testing.assert_array_equal(found[2].anomaly_maps, found["exact"].anomaly_maps)


def test_a_new_image_is_scored_as_in_a_batch_with_the_pool(musc, photos, tmp_path, loaded):
    paths = sorted(photos.iterdir())
    earlier = musc.run(paths[:4])
    earlier.decide()
    folder = earlier.save(tmp_path / "result")
    found = score_against(paths[4:], MuScResult.load(folder))
    for i, path in enumerate(paths[4:]):
        batch = musc.run([*paths[:4], path])
        np.testing.assert_allclose(found.anomaly_maps[i], batch.anomaly_maps[4], atol=1e-5)
    assert found.threshold == earlier.threshold
    assert found.decisions.tolist() == [0, 1]
    assert (found.image_scores >= 0).all() and found.image_scores[1] > found.image_scores[0]  # noqa: PT018
    again = score_against(paths, MuScResult.load(folder))
    assert [s.name for s in again.skipped] == [p.as_posix() for p in paths[:4]]
    assert "is in the pool already" in again.skipped[0].reason
    np.testing.assert_array_equal(again.raw_image_scores, found.raw_image_scores)
    with pytest.raises(DataError, match="no image is new"):
        score_against(paths[:2], earlier)


@pytest.mark.parametrize("changes", [{}, {"tile_pool": "all"}, {"rescoring": "rscon", "aggregation": "snamd"}])
def test_a_new_image_is_scored_in_tiles_as_in_a_batch_with_the_pool(
    photos, tmp_path, tiny_config, tiny_backbone, changes, loaded
):
    paths = sorted(photos.iterdir())
    musc = MuSc(tiny_config.replace(tiles=2, **changes), backbone=tiny_backbone, cache=tmp_path / "cache")
    earlier = musc.run(paths[:3])
    found = score_against(paths[3:5], earlier, device="cpu")
    for i, path in enumerate(paths[3:5]):
        batch = musc.run([*paths[:3], path])
        np.testing.assert_allclose(found.anomaly_maps[i], batch.anomaly_maps[3], atol=1e-5)
    referred = musc.run(paths[:3], references=paths[3:4]) if not changes else None
    if referred:
        with pytest.raises(ConfigError, match=r"of the reference images of .* no file is known"):
            score_against(paths[4:], referred)
    paths[0].unlink()
    with pytest.raises(
        DataError, match=r"tiles = 2: they are cut out of the images\. Its images are not where they were: run"
    ):
        score_against(paths[4:], earlier)


def test_a_pool_that_is_gone_is_named(musc, photos, tmp_path, loaded, tiny_config, tiny_backbone):
    paths = sorted(photos.iterdir())
    gone = [shutil.copy(path, tmp_path / path.name) for path in paths[:4]]
    uncached, cached = MuSc(tiny_config, backbone=tiny_backbone).run(gone), musc.run(gone)
    for path in gone:
        path.unlink()
    with pytest.raises(DataError, match=r"without a cache.*run them again with --force"):
        score_against(paths[4:], uncached)
    with pytest.raises(DataError, match=r"tokens of 4 of 4 images \(first .*0\.png\) are not in .*elsewhere"):
        score_against(paths[4:], cached, cache=tmp_path / "elsewhere")
    earlier = musc.run(paths[:4])
    earlier.weights = "others"
    with pytest.raises(ConfigError, match="made with the weights others"):
        score_against(paths[4:], earlier)
    earlier.config = earlier.config.replace(subsets=1)
    with pytest.raises(DataError, match="holds no images"):
        score_against([], musc.run(paths[:4]))


def test_a_pool_whose_tokens_are_gone_is_read_from_its_images(musc, photos, tmp_path, loaded):
    new = tmp_path / "5.png"
    (photos / "5.png").rename(new)
    earlier = musc.run(photos)
    expected = score_against([new], earlier)
    shutil.rmtree(musc.cache)
    np.testing.assert_array_equal(score_against([new], earlier).anomaly_maps, expected.anomaly_maps)
    earlier.cache = ""  # as after --no-cache
    np.testing.assert_allclose(score_against([new], earlier).anomaly_maps, expected.anomaly_maps, atol=1e-6)
    shutil.copy(new, photos / "3.png")
    with pytest.raises(DataError, match=r"3\.png has changed since photos was scored"):
        score_against([new], earlier)


def test_the_command_takes_several_images_and_a_threshold_of_its_own(photos, tmp_path, capsys, loaded):
    tiny = ["--backbone", "deit_tiny_patch16_224", "--weights", "random", "--image-size", "64", "--stages", "1,2"]
    tiny += ["--device", "cpu", "--workers", "0", "--no-overlays", "--out", str(tmp_path / "out")]
    new = [tmp_path / "5.png", tmp_path / "4.png"]
    for path in new:
        (photos / path.name).rename(path)
    assert cli.main(["run", str(photos), *tiny]) == 0
    out = ["--against", str(tmp_path / "out"), "--out", str(tmp_path / "out"), "--no-overlays"]
    words = ["score", *map(str, new), *out]
    assert cli.main([*words, "--threshold", "0"]) == 0
    assert "anomalous: 2 of 2, raw score >= 0" in capsys.readouterr().out
    assert cli.main([*words, "--threshold", "1.99"]) == 0
    assert "anomalous: 0 of 2, raw score >= 1.99" in capsys.readouterr().out
    assert cli.main(["score", str(new[0]), str(photos), *out]) == 1
    assert "is a folder: give one folder, or images" in capsys.readouterr().err


def test_the_command_scores_against_and_takes_references(photos, tmp_path, capsys, loaded):
    tiny = ["--backbone", "deit_tiny_patch16_224", "--weights", "random", "--image-size", "64", "--stages", "1,2"]
    tiny += ["--device", "cpu", "--workers", "0", "--no-overlays", "--out", str(tmp_path / "out")]
    normal, new = tmp_path / "normal", tmp_path / "new"
    for folder, numbers in ((normal, (0, 1)), (new, (5,))):
        folder.mkdir()
        for i in numbers:
            (photos / f"{i}.png").rename(folder / f"{i}.png")
    assert cli.main(["run", str(photos), *tiny, "--reference-images", str(normal)]) == 0
    earlier = tmp_path / "out" / "folder" / "photos"
    assert MuScResult.load(earlier).notes[0] == "2 reference images scored too."
    capsys.readouterr()
    words = ["score", str(new), "--against", str(earlier), "--out", str(tmp_path / "out"), "--no-overlays"]
    assert cli.main([*words, "--device", "cpu"]) == 0
    assert "anomalous" in next(line for line in capsys.readouterr().out.splitlines() if "5.png" in line)
    saved = MuScResult.load(tmp_path / "out" / "folder" / "new_against_photos")
    assert saved.notes[0].startswith("scored against 5 images")
    assert cli.main(["run", str(photos), *tiny, "--plus", "--shots", "1", "--reference-images", str(normal)]) == 0
    again = MuScResult.load(earlier)
    assert again.notes[0] == "1 reference images scored alone."
    assert len(again.reference_keys) == 1
    for bad, message in ((["--plus"], "by normal reference"), (["--shots", "2"], "no normal training images")):
        assert cli.main(["run", str(photos), *tiny, *bad]) == 1
        assert message in capsys.readouterr().err
