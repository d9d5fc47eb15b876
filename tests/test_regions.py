"""Regions against brute force, and as COCO's own reader sees them."""

import csv
import itertools
import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle
from pycocotools.coco import COCO
from scipy import ndimage

from musc import MuScResult
from musc.config import MuScConfig
from musc.datasets.base import Sample
from musc.errors import ConfigError, ResultError
from musc.results.outlines import outlines
from musc.results.pictures import binary_mask
from musc.results.regions import COLUMNS, check, find_regions, save_regions

EIGHT = np.ones((3, 3))
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of pycocotools


def random_mask(g, n):
    shape = g.integers(1, 18, 2)
    mask = g.random(shape) < g.choice([0.3, 0.5, 0.7, 0.9])  # ragged, with holes and corners that touch
    return ndimage.binary_opening(np.kron(mask, np.ones((3, 3), bool))) if n % 3 == 0 else mask


def test_filled_outlines_are_exactly_the_region():
    """By pycocotools' own filling."""
    for n in range(60):
        labels, count = ndimage.label(random_mask(np.random.default_rng(n), n), EIGHT)
        for k in range(1, count + 1):
            region = labels == k
            polygons = [list(map(float, p)) for p in outlines(region)]
            filled = rle.decode(rle.merge(rle.frPyObjects(polygons, *region.shape)))
            assert (filled == region).all(), n


def test_outlines_by_hand():
    ring = np.ones((3, 3), bool)
    ring[1, 1] = False
    assert outlines(np.ones((2, 3), bool), (10, 20)) == [(10, 20, 13, 20, 13, 22, 10, 22)]
    (cut,) = outlines(ring)
    corners = list(zip(cut[::2], cut[1::2], strict=True))
    assert (0, 1) in corners  # the cut from the hole's corner (1, 1) leads left, to the edge
    assert len(outlines(np.eye(2, dtype=bool))) == 2  # they touch at a corner: two polygons of one region


def brute_groups(mask, distance):
    """Sets of pixels: 8-connected, and joined where two of them are at most `distance` apart."""
    labels, count = ndimage.label(mask, EIGHT)
    pixels = [np.argwhere(labels == k) for k in range(1, count + 1)]
    group = list(range(count))
    for a, b in itertools.combinations(range(count), 2):
        if np.sqrt(((pixels[a][:, None] - pixels[b][None]) ** 2).sum(-1)).min() <= distance:
            old, new = group[b], group[a]
            group = [new if g == old else g for g in group]
    return [np.concatenate([pixels[k] for k in range(count) if group[k] == g]) for g in sorted(set(group))]


@pytest.mark.parametrize("merge", [0, 1, 2, 2.5, 4, 9])
def test_regions_are_those_of_brute_force(merge):
    g = np.random.default_rng(7)
    for _ in range(6):
        drawn = ndimage.gaussian_filter(g.random((17, 23)), 0.8).astype(np.float32)
        size, t = (47, 31), float(np.quantile(drawn, 0.88))
        stretched = np.asarray(Image.fromarray(drawn).resize(size, Image.Resampling.BILINEAR)).astype(np.float64)
        expected = []
        for pixels in brute_groups(binary_mask(drawn, t, size), merge):
            if len(pixels) >= 6:
                (top, left), (bottom, right) = pixels.min(0), pixels.max(0)
                y, x = pixels.mean(0) + 0.5
                box = (left, top, right - left + 1, bottom - top + 1)
                expected.append((*box, len(pixels), x, y, stretched[tuple(pixels.T)].mean()))
        found = find_regions(drawn, t, size, smallest=6, merge=merge)
        rows = [(*r.box, r.area, *r.centre, r.mean) for r in found]
        assert np.array(sorted(rows)) == pytest.approx(np.array(sorted(expected)))
        assert [r.highest for r in found] == sorted((r.highest for r in found), reverse=True)
        assert max(r.highest for r in found) == pytest.approx(drawn.max())  # of the map: stretching lowers a peak


def test_a_peak_that_stretching_would_lose_is_a_region_of_a_pixel():
    drawn = np.zeros((9, 9), np.float32)
    drawn[4, 4] = 1
    (region,) = find_regions(drawn, 0.999, (90, 90))
    assert (region.area, region.highest) == (1, 1)
    assert find_regions(drawn, 0.999, (90, 90), smallest=2) == []
    assert find_regions(drawn, 1.5, (90, 90)) == []


@pytest.fixture
def result(tmp_path):
    g = np.random.default_rng(1)
    maps = ndimage.gaussian_filter(g.random((3, 20, 20)), (0, 1, 1)).astype(np.float32)
    maps[1] = 0
    samples = []
    for i in range(3):
        name = f"ä {i}.png"
        Image.new("RGB", (50 + 10 * i, 40)).save(tmp_path / name)
        samples.append(Sample(name, tmp_path / name))
    raw = maps.max(axis=(1, 2))
    found = MuScResult(
        dataset="folder", category="x", paths=tuple(s.name for s in samples), image_scores=raw, raw_image_scores=raw,
        anomaly_maps=maps, class_tokens=None, labels=None, defects=("",) * 3, config=MuScConfig(), fingerprint="f",
    )  # fmt: skip
    found.decide(0.65)
    return found, samples


def test_coco_reads_the_regions_back_as_the_masks(result, tmp_path, capsys):
    found, samples = result
    regions = save_regions(found, samples, tmp_path / "out", merge=3)
    coco = COCO(str(tmp_path / "out/regions.json"))
    capsys.readouterr()
    assert [im["file_name"] for im in coco.imgs.values()] == list(found.paths)
    assert regions[1] == []
    for image, drawn, of_image in zip(coco.imgs.values(), found.anomaly_maps, regions, strict=True):
        size = (image["width"], image["height"])
        annotations = coco.loadAnns(coco.getAnnIds(imgIds=image["id"]))
        assert len(annotations) == len(of_image)
        union = np.zeros(size[::-1], bool)
        for a in annotations:
            mask = coco.annToMask(a).astype(bool)
            assert a["area"] == mask.sum()
            ys, xs = np.nonzero(mask)
            assert a["bbox"] == [xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1]
            assert a["centre"] == pytest.approx([xs.mean() + 0.5, ys.mean() + 0.5])
            assert not (union & mask).any()
            union |= mask
        assert (union == binary_mask(drawn, 0.65, size)).all()
    assert coco.dataset["info"]["merging_distance"] == 3
    ids = [a["id"] for a in coco.dataset["annotations"]]
    assert ids == list(range(1, len(ids) + 1))

    with (tmp_path / "out/regions.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    assert len(rows) == len(ids)
    for row, a in zip(rows, coco.dataset["annotations"], strict=True):
        assert row["path"] == coco.imgs[a["image_id"]]["file_name"]
        assert [int(row[c]) for c in ("x", "y", "width", "height")] == a["bbox"]
        assert float(row["highest_score"]) == pytest.approx(a["score"], rel=1e-5)


def test_settings_and_places_that_cannot_be(result, tmp_path):
    found, samples = result
    for smallest, merge in ((0, 0), (1, -1), (1, float("inf")), (1, float("nan"))):
        with pytest.raises(ConfigError, match=r"region = 0|distance"):
            check(smallest, merge)
    (tmp_path / "file").write_text("")
    with pytest.raises(ResultError, match="regions in"):
        save_regions(found, samples, tmp_path / "file")
    sizes = [(im["width"], im["height"]) for im in json.loads(_saved(found, [], tmp_path))["images"]]
    assert sizes == [(20, 20)] * 3  # of images that are gone: pixels of the map
    found.threshold = None
    with pytest.raises(ConfigError, match="choose one with --threshold"):
        save_regions(found, samples, tmp_path)


def _saved(found, samples, tmp_path):
    save_regions(found, samples, tmp_path / "again")
    return (tmp_path / "again/regions.json").read_text()
