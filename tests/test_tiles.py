"""Tiles: stitching without seams, equal to scoring the tiles by hand, and a small defect that only tiles show."""

import itertools
import shutil

import numpy as np
import plain
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw

from musc import MuSc, MuScConfig, lnamd
from musc.datasets.base import Category, Sample
from musc.errors import ConfigError
from musc.scoring import tiles
from musc.sizes import rows_columns

LAYOUTS = [(1, 0.25), (2, 0.0), (2, 0.25), (3, 0.3), (4, 0.5), (5, 0.1)]


@pytest.mark.parametrize(("count", "overlap"), LAYOUTS)
def test_spans_cover_the_image_with_the_overlap_asked_for(count, overlap):
    cuts = tiles.spans(count, overlap)
    assert cuts[0][0] == 0
    assert cuts[-1][1] == pytest.approx(1)
    for (low, high), (next_low, _) in itertools.pairwise(cuts):
        assert (high - next_low) / (high - low) == pytest.approx(overlap)


@pytest.mark.parametrize(("count", "overlap"), LAYOUTS)
@pytest.mark.parametrize("size", [64, 101, (64, 150)])
def test_stitched_tiles_of_a_map_are_the_map(count, overlap, size):
    rows, columns = rows_columns(size)
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    whole = torch.stack([torch.full((rows, columns), 7.0), 3 * x - 2.0 * y + 5, torch.sin(0.3 * x) * y])  # [3, H, W]
    stitcher = tiles.Stitcher(3, size, count, overlap)
    for t in range(count**2):
        (top, bottom), (left, right) = stitcher.down[t // count], stitcher.across[t % count]
        assert stitcher.shape(t) == (bottom - top, right - left)
        stitcher.add(t, whole[:, top:bottom, left:right])
    torch.testing.assert_close(stitcher.maps, whole, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize(("count", "overlap"), LAYOUTS)
def test_weights_sum_to_one_and_are_smooth(count, overlap):
    places = tiles.pixel_spans(count, overlap, 200)
    weights = tiles.ramps(places, 200)
    torch.testing.assert_close(weights.sum(dim=0), torch.ones(200, dtype=torch.float64))
    for k, (first, last) in enumerate(places):
        assert (weights[k, :first] == 0).all()
        assert (weights[k, last:] == 0).all()
    if overlap >= 0.25 and count > 1:  # no jump: a seam would show where tiles disagree
        assert weights.diff(dim=1).abs().max() < 0.12


def test_tiles_that_disagree_meet_without_a_seam():
    stitcher = tiles.Stitcher(1, 120, 2, 0.3)
    for t in range(4):
        stitcher.add(t, torch.full((1, *stitcher.shape(t)), float(t % 2)))  # the left tiles say 0, the right ones 1
    row = stitcher.maps[0, 60]
    assert row[0] == 0
    assert row[-1] == 1
    assert (row.diff() >= -1e-6).all()
    assert row.diff().max() < 0.1


def large(number, dot=False, side=640):
    """A large mottled plate, another pattern in every image; with `dot`, 6 pixels of it are dark."""
    rng = np.random.default_rng(number)
    mottle = Image.fromarray(rng.normal(0, 14, (60, 60)).astype(np.float32)).resize(
        (side, side), Image.Resampling.BICUBIC
    )
    pixels = 170 + np.asarray(mottle)[..., None] + rng.normal(0, 3, (side, side, 3))
    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    if dot:
        ImageDraw.Draw(image).ellipse([431, 251, 437, 257], fill=(40, 30, 30))
    return image


@pytest.fixture(scope="module")
def plates(tmp_path_factory):
    """Six plates, the fifth with a dot."""
    folder = tmp_path_factory.mktemp("plates")
    for i in range(6):
        large(i, dot=i == 4).save(folder / f"{i}.png", compress_level=1)
    return sorted(folder.iterdir())


def samples(paths):
    return [Sample(p.name, p) for p in paths]


def test_tile_pictures_are_crops_and_know_their_contents(plates, tmp_path):
    path = shutil.copy(plates[0], tmp_path / "0.png")
    parts = tiles.cut(Sample("0.png", path), 3, 0.25)
    assert len({p.image.key for p in parts}) == 9
    first, last = parts[0].image(), parts[8].image()
    edge = tiles.pixel_spans(3, 0.25, 640)
    whole = np.asarray(Image.open(path))
    np.testing.assert_array_equal(np.asarray(first), whole[: edge[0][1], : edge[0][1]])
    np.testing.assert_array_equal(np.asarray(last), whole[edge[2][0] :, edge[2][0] :])
    before = parts[0].image.key
    large(9).save(path)
    assert parts[0].image.key != before


@pytest.mark.parametrize("references", [0, 2])
def test_maps_equal_scoring_each_tile_by_hand(plates, tiny_config, tiny_backbone, references):
    """By hand: a tile is scored by the same tile of the other images, and of the reference images."""
    musc = MuSc(tiny_config.replace(tiles=2, tile_overlap=0.2, degrees=(1,), map_size=72), backbone=tiny_backbone)
    scored, pool = samples(plates[:3]), samples(plates[6 - references :])
    stitcher = tiles.Stitcher(3, 72, 2, 0.2)
    for t in range(4):
        found = musc.features([tiles.cut(s, 2, 0.2)[t] for s in scored])
        extra = musc.features([tiles.cut(s, 2, 0.2)[t] for s in pool]).patch_tokens if pool else None
        scores = plain.mutual_scores(found.patch_tokens, (1,), found.grids[0], references=extra)
        maps = torch.from_numpy(scores).float().reshape(3, 1, *found.grids[0])
        stitcher.add(t, F.interpolate(maps, stitcher.shape(t), mode="bilinear")[:, 0])
    got = musc.run(Category("", "", tuple(scored)), references=Category("", "", tuple(pool)) if pool else None)
    np.testing.assert_allclose(got.anomaly_maps, stitcher.maps, atol=1e-5)
    assert got.anomaly_maps.shape == (3, 72, 72)
    assert len(got.class_tokens) == 3  # of whole images, for RsCIN


def test_all_tiles_of_another_image_are_searched(plates, tiny_config, tiny_backbone):
    """By hand: the tiles of an image are one long list of patches, its own tiles left out."""
    config = tiny_config.replace(tiles=2, degrees=(3,), map_size=64, tile_pool="all")
    musc = MuSc(config, backbone=tiny_backbone)
    scored = samples(plates[:3])
    found = [musc.features([tiles.cut(s, 2, 0.25)[t] for s in scored]) for t in range(4)]
    grid, expected = found[0].grids[0], []
    for n in range(len(found[0].grids)):
        tokens = torch.stack([lnamd.aggregate(f.patch_tokens[n], 3, grid=grid) for f in found], dim=1)  # [N, T, M, C]
        every = plain.distances(tokens.flatten(1, 2).numpy())  # [N, N - 1, T M]
        expected.append(plain.interval_average(every).reshape(3, 4, -1))
    expected = torch.from_numpy(np.mean(expected, axis=0)).float()
    stitcher = tiles.Stitcher(3, 64, 2, 0.25)
    for t in range(4):
        maps = expected[:, t].reshape(3, 1, *grid)
        stitcher.add(t, F.interpolate(maps, stitcher.shape(t), mode="bilinear")[:, 0])
    got = musc.run(Category("", "", tuple(scored)))
    np.testing.assert_allclose(got.anomaly_maps, stitcher.maps, atol=1e-5)


def test_finds_a_small_defect_that_the_resized_image_hides(plates, pixel_backbone):
    """Squashed to 112 pixels the dot covers one, less than the mottles; in 4 x 4 tiles a good part of a patch."""
    config = MuScConfig(image_size=112, stages=(1,), degrees=(1,), device="cpu", workers=0, windows=())
    backbone = pixel_backbone(112)
    resized = MuSc(config, backbone=backbone).run(plates)
    tiled = MuSc(config.replace(tiles=4), backbone=backbone).run(plates)
    others = np.arange(6) != 4
    assert resized.raw_image_scores[4] < 0.9 * resized.raw_image_scores[others].max()
    assert tiled.raw_image_scores[4] > 1.1 * tiled.raw_image_scores[others].max()
    side = tiled.anomaly_maps.shape[1]
    y, x = np.unravel_index(tiled.anomaly_maps[4].argmax(), (side, side))
    assert abs(y / side - 254 / 640) < 0.02  # it lies where the dot is
    assert abs(x / side - 434 / 640) < 0.02


@pytest.mark.parametrize(
    "changes",
    [
        {"tiles": 0},
        {"tile_overlap": 0.6},
        {"tile_overlap": -0.1},
        {"tile_pool": "some"},
        {"tiles": 2, "tile_pool": "all", "position_window": 2},
        {"tiles": 2, "tile_pool": "all", "subsets": 2},
    ],
)
def test_impossible_settings_are_refused(tiny_config, changes):
    with pytest.raises(ConfigError, match="tile"):
        tiny_config.replace(**changes)
