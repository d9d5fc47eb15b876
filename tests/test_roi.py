"""Region of interest: equal to deleting the patches outside, by any way through the pipeline."""

from pathlib import Path

import numpy as np
import plain
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from scipy.spatial.distance import cdist

from musc import MuSc, MuScConfig, snamd
from musc.datasets import as_category, load_category
from musc.errors import ConfigError, DataError
from musc.fewshot import plus
from musc.results import MuScResult
from musc.scoring import neighbours, roi, tiles
from musc.scoring.foreground import foreground, otsu
from musc.scoring.maps import upsample
from musc.stream import Stream, score_against

CONFIG = MuScConfig(weights="random", image_size=64, stages=(1, 3), degrees=(1, 3), device="cpu", workers=0)
SIDE = 8  # of a patch, in pixels of the input


def by_hand(
    stages, patches, degrees=(1, 3), grid=(8, 8), references=None, others=None, low=0, high=30, reduction=np.mean,
    window=np.inf, chosen=None,
):  # fmt: skip
    """Eq. 1-3 in float64 where the patches outside are deleted from both sides, after the aggregation: [N, M], NaN
    outside. window: of places in rows and columns. chosen: the images that score each one."""
    N, M = patches.shape
    place = np.stack(np.divmod(np.arange(M), grid[1]), axis=1)
    far = cdist(place, place, "chebyshev") > window
    parts = []
    for n, stage in enumerate(stages):
        for degree in degrees:
            own = plain.aggregate(stage, degree, grid)
            extra = plain.aggregate(references[n], degree, grid) if references is not None else []
            scores = np.full((N, M), np.nan)
            for i in range(N):
                pool = [(own[j], patches[j]) for j in (range(N) if chosen is None else chosen[i]) if j != i]
                pool += [(e, others[j]) for j, e in enumerate(extra)]
                every = [np.where(far, np.inf, cdist(own[i], tokens))[patches[i]][:, there] for tokens, there in pool]
                d = np.array([each.min(axis=1) for each in every])[None]
                scores[i, patches[i]] = plain.interval_average(d, low, high, reduction)[0]
            parts.append(scores)
    return np.mean(parts, axis=0)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Seven noisy pictures of 64 x 64; the sixth has a spot inside of the region, the seventh one outside."""
    folder, rng = tmp_path_factory.mktemp("set") / "set", np.random.default_rng(0)
    folder.mkdir()
    for i in range(7):
        pixels = np.linspace(60, 200, 64)[:, None, None] + rng.normal(0, 6, (64, 64, 3))
        if i == 5:
            pixels[10:18, 34:42] = 0
        if i == 6:
            pixels[50:62, 2:14] = 255
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def mask(tmp_path_factory):
    """White are the columns 24 to 63 of the rows 0 to 43: of the 8 x 8 patches 5 columns, and 5 rows and a half."""
    path = tmp_path_factory.mktemp("mask") / "region.png"
    white = np.zeros((64, 64), dtype=np.uint8)
    white[:44, 24:] = 255
    Image.fromarray(white).save(path)
    return str(path)


def region_of(mask):
    white = np.asarray(Image.open(mask)) > 127
    return white, white.reshape(8, SIDE, 8, SIDE).mean(axis=(1, 3)).ravel() >= 0.5


@pytest.mark.parametrize("aggregation", ["lnamd", "snamd"])
def test_scores_equal_deleting_the_patches_outside(pictures, mask, aggregation):
    config = CONFIG.replace(roi=mask, aggregation=aggregation)
    musc = MuSc(config)
    result = musc.run(pictures)
    white, inside = region_of(mask)
    assert inside.sum() == 30  # half of the sixth row's patches lies inside, which is enough
    features = musc.features(as_category(pictures).samples)
    stages = [t.double() for t in features.patch_tokens]
    patches = np.tile(inside, (7, 1))
    if aggregation == "lnamd":
        scores = by_hand(stages, patches)
    else:
        scores = by_hand([snamd.as_raw(snamd.aggregate(s, (1, 3))) for s in stages], patches, (1,))
    maps = np.stack([upsample(torch.from_numpy(continued(s))[None], (8, 8), 64)[0].numpy() * white for s in scores])
    np.testing.assert_allclose(result.anomaly_maps, maps, atol=5e-6)
    np.testing.assert_allclose(result.raw_image_scores, maps.max(axis=(1, 2)), atol=5e-6)
    assert (result.anomaly_maps[:, ~white] == 0).all()
    assert result.raw_image_scores.argmax() == 5
    np.testing.assert_array_equal(result.region[0], white)


def continued(scores):
    """The patches outside (NaN) take the score of the nearest one inside: all distances, the first of equal ones."""
    out = scores.copy()
    place = np.stack(np.divmod(np.arange(64), 8), axis=1)
    known = np.flatnonzero(~np.isnan(scores))
    for m in np.flatnonzero(np.isnan(scores)):
        distance = ((place[known] - place[m]) ** 2).sum(axis=1)
        values = scores[known[distance == distance.min()]]
        assert np.ptp(values) == 0  # of a rectangle the nearest patch is unique
        out[m] = values[0]
    return out


def test_what_lies_outside_changes_nothing(pictures, mask, pixel_backbone):
    """With a network whose tokens see their own patch alone, and degree 1, pixels outside of the region have no part:
    neither as they are scored, nor as a neighbour that would be near."""
    config = CONFIG.replace(roi=mask, degrees=(1,), stages=(1,), windows=())
    images = {p.name: np.asarray(Image.open(p)) for p in sorted(pictures.iterdir())}
    _, inside = region_of(mask)
    changed = {}
    outside = ~inside.reshape(8, 8).repeat(8, axis=0).repeat(8, axis=1)
    for name, pixels in images.items():
        changed[name] = pixels.copy()
        # what is inside of the one with the spot stands outside of all others: none is near to it for that
        changed[name][outside] = images["5.png"][12, 36] if name != "5.png" else 128
    # LNAMD's joint LayerNorm sees the whole picture, and moves all tokens of an image alike: patches are compared first
    musc = MuSc(config, backbone=pixel_backbone(64))
    one, two = musc.run(images), musc.run(changed)
    assert one.raw_image_scores.argmax() == two.raw_image_scores.argmax() == 5
    assert two.raw_image_scores[5] > 1.5 * np.delete(two.raw_image_scores, 5).max()


def test_references_and_musc_plus_equal_deleting_them(pictures, mask):
    paths = sorted(pictures.iterdir())
    _, inside = region_of(mask)
    for config in (CONFIG, plus(CONFIG)):
        musc = MuSc(config.replace(roi=mask))
        result = musc.run(paths[3:], references=paths[:3])
        own, normal = (musc.features(as_category(p).samples) for p in (paths[3:], paths[:3]))
        stages, extra = ([t.double() for t in f.patch_tokens] for f in (own, normal))
        patches = np.tile(inside, (4, 1))
        if config.references == 0:
            each = [by_hand([s[i : i + 1] for s in stages], patches[:1], references=extra, others=patches[:3], high=100,
                            reduction=np.min) for i in range(4)]  # fmt: skip
            scores = np.concatenate(each)
        else:
            scores = by_hand(stages, patches, references=extra, others=patches[:3])
        maps = [upsample(torch.from_numpy(continued(s))[None], (8, 8), 64)[0].numpy() for s in scores]
        white, _ = region_of(mask)
        np.testing.assert_allclose(result.anomaly_maps, np.stack(maps) * white, atol=5e-6)


def test_streams_and_new_images_score_as_the_batch(pictures, mask, tmp_path):
    paths = sorted(pictures.iterdir())
    for given in (mask, "auto"):
        musc = MuSc(CONFIG.replace(roi=given, rescoring="rscon"), cache=tmp_path / "cache")
        batch = musc.run(paths)
        stream = Stream(musc)
        for path in paths:
            last = stream.push(path)
        np.testing.assert_allclose(stream.result().anomaly_maps, batch.anomaly_maps, atol=5e-6)
        np.testing.assert_allclose(stream.result().class_tokens, batch.class_tokens, atol=5e-5)
        assert last.raw_score == pytest.approx(batch.raw_image_scores[6], abs=5e-6)
        earlier = MuScResult.load(musc.run(paths[:6]).save(tmp_path / "earlier"))
        new = score_against([paths[6]], earlier)
        np.testing.assert_allclose(new.raw_image_scores, batch.raw_image_scores[6:], atol=5e-6)
        if given == mask:
            earlier.config = earlier.config.replace(roi=str(tmp_path / "gone.png"))  # the result keeps the mask
            kept = score_against([paths[6]], earlier)
            np.testing.assert_array_equal(kept.anomaly_maps, new.anomaly_maps)


@pytest.mark.parametrize("aggregation", ["lnamd", "snamd"])
def test_a_position_window_looks_at_patches_inside_alone(pictures, mask, aggregation, tmp_path):
    """Every place that is scored lies inside in all images, so that there is always a patch near it."""
    config = CONFIG.replace(roi=mask, position_window=1, aggregation=aggregation)
    musc = MuSc(config, cache=tmp_path)
    paths = sorted(pictures.iterdir())
    result = musc.run(paths)
    white, inside = region_of(mask)
    stages = [t.double() for t in musc.features(as_category(pictures).samples).patch_tokens]
    if aggregation == "snamd":
        stages = [snamd.as_raw(snamd.aggregate(s, (1, 3))) for s in stages]
    scores = by_hand(stages, np.tile(inside, (7, 1)), (1,) if aggregation == "snamd" else (1, 3), window=1)
    maps = [upsample(torch.from_numpy(continued(s))[None], (8, 8), 64)[0].numpy() * white for s in scores]
    np.testing.assert_allclose(result.anomaly_maps, np.stack(maps), atol=5e-6)
    stream = Stream(musc)
    for path in paths:
        last = stream.push(path)
    np.testing.assert_allclose(stream.result().anomaly_maps, result.anomaly_maps, atol=5e-6)
    assert last.raw_score == pytest.approx(result.raw_image_scores[6], abs=5e-6)
    new = score_against([paths[6]], musc.run(paths[:6]))
    np.testing.assert_allclose(new.anomaly_maps, result.anomaly_maps[6:], atol=5e-6)


@pytest.mark.parametrize("few", [3, "coreset:3"])
def test_look_alikes_are_chosen_by_what_lies_inside(pictures, mask, few):
    config = CONFIG.replace(roi=mask, neighbours=few, windows=())
    musc = MuSc(config)
    result = musc.run(pictures)
    white, inside = region_of(mask)
    features = musc.features(as_category(pictures).samples)
    stages = [t.double() for t in features.patch_tokens]
    grey = stages[-1].float().clone()  # as if each picture had its own mean there
    for tokens in grey:
        tokens[~inside] = tokens[inside].mean(dim=0)
    chosen = neighbours.chosen(few, grey, (8, 8)).tolist()
    scores = by_hand(stages, np.tile(inside, (7, 1)), chosen=chosen)
    maps = [upsample(torch.from_numpy(continued(s))[None], (8, 8), 64)[0].numpy() * white for s in scores]
    np.testing.assert_allclose(result.anomaly_maps, np.stack(maps), atol=5e-6)


@pytest.mark.parametrize("tile_pool", ["position", "all"])
@pytest.mark.parametrize("small", [False, True])
def test_tiles_equal_each_tile_with_its_part_of_the_region(pictures, mask, tile_pool, small, tmp_path):
    """small: three of the four tiles have no patch inside. The first two pictures are references."""
    if small:
        white = np.zeros((64, 64), dtype=np.uint8)
        white[4:20, 40:60] = 255
        mask = str(tmp_path / "small.png")
        Image.fromarray(white).save(mask)
    config = CONFIG.replace(
        roi=mask, tiles=2, tile_overlap=0.0, stages=(1,), degrees=(1,), windows=(), tile_pool=tile_pool
    )
    musc, paths = MuSc(config), sorted(pictures.iterdir())
    samples = as_category([*paths[2:], *paths[:2]]).samples
    result = musc.run(paths[2:], references=paths[:2])
    assert result.anomaly_maps.shape == (5, 128, 128)
    white = np.asarray(Image.open(mask).resize((128, 128), Image.Resampling.BOX)) > 127
    parts = [tuple(slice(64 * k, 64 * k + 64) for k in divmod(t, 2)) for t in range(4)]
    insides = [white[p].reshape(8, 8, 8, 8).mean(axis=(1, 3)).ravel() >= 0.5 for p in parts]
    cut = [musc.features([tiles.cut(s, 2, 0.0)[t] for s in samples]).patch_tokens[0].double() for t in range(4)]
    tokens = [plain.aggregate(c, 1, (8, 8)) for c in cut]
    expected = np.zeros((5, 128, 128))
    for t, (part, inside) in enumerate(zip(parts, insides, strict=True)):
        if not inside.any():
            continue
        allowed = [t] if tile_pool == "position" else [u for u in range(4) if insides[u].any()]
        for i in range(5):
            pool = [np.concatenate([tokens[u][j][insides[u]] for u in allowed]) for j in range(7) if j != i]
            d = np.array([cdist(tokens[t][i][inside], p).min(axis=1) for p in pool])
            scores = np.full(64, np.nan)
            scores[inside] = plain.interval_average(d[None], 0, 30)[0]
            known = torch.from_numpy(continued(scores)).reshape(1, 1, 8, 8)
            expected[i][part] = F.interpolate(known, (64, 64), mode="bilinear")[0, 0]
    np.testing.assert_allclose(result.anomaly_maps, expected * white, atol=5e-6)


def test_regions_of_their_own_may_differ_in_size(pictures, tmp_path):
    rng, paths = np.random.default_rng(1), sorted(pictures.iterdir())
    (tmp_path / "masks").mkdir()
    inside = rng.random((7, 8, 8)) > np.linspace(0.1, 0.9, 7)[:, None, None]
    inside[:, 0, 0] = True
    for path, grid in zip(paths, inside, strict=True):
        Image.fromarray(grid).resize((64, 64), Image.Resampling.NEAREST).save(tmp_path / "masks" / path.name)
    musc = MuSc(CONFIG.replace(roi=str(tmp_path / "masks")))
    features = musc.with_region(musc.features(as_category(pictures).samples), musc.masks(*as_category(pictures)))
    scores = by_hand([t.double() for t in features.patch_tokens], inside.reshape(7, 64))
    from musc.scoring.maps import patch_scores

    got = patch_scores(features, None, musc.config, device=torch.device("cpu"))[8, 8]
    np.testing.assert_allclose(got, np.nan_to_num(scores), atol=5e-6)
    # and with the correction of consistent defects, of which there are none
    corrected = patch_scores(features, None, musc.config.replace(consistency="correct"), device=torch.device("cpu"))
    assert corrected[8, 8].shape == (7, 64)
    assert (corrected[8, 8].numpy()[~inside.reshape(7, 64)] == 0).all()
    (tmp_path / "masks" / "3.png").unlink()
    with pytest.raises(ConfigError, match=r"no mask for 3\.png"):
        musc.run(pictures)


def test_the_whole_picture_as_region_is_no_region(pictures, tmp_path):
    Image.new("L", (64, 64), 255).save(tmp_path / "all.png")
    plain_run, marked = MuSc(CONFIG).run(pictures), MuSc(CONFIG.replace(roi=str(tmp_path / "all.png"))).run(pictures)
    np.testing.assert_allclose(marked.anomaly_maps, plain_run.anomaly_maps, atol=5e-6)
    assert plain_run.region is None
    assert marked.fingerprint != plain_run.fingerprint


def test_the_fingerprint_knows_the_masks_content_not_its_place(pictures, mask, tmp_path):
    category = as_category(pictures)

    def fingerprint(path):
        return MuSc(CONFIG.replace(roi=str(path))).fingerprint(category)

    copy = tmp_path / "copy.png"
    copy.write_bytes(Path(mask).read_bytes())
    assert fingerprint(copy) == fingerprint(mask)
    Image.new("L", (64, 64), 255).save(copy)
    assert fingerprint(copy) != fingerprint(mask)


def drawn(shape, size=96, seed=0):
    """A bright product on a dark ground."""
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", (size, size), (20, 20, 20))
    getattr(ImageDraw.Draw(image), shape)([24, 30, 72, 66], fill=(210, 180, 120))
    return Image.fromarray((np.asarray(image) + rng.normal(0, 4, (size, size, 3))).clip(0, 255).astype(np.uint8))


def test_auto_finds_the_product_and_leaves_textures_whole(tmp_path):
    config = MuScConfig(image_size=160, roi="auto", windows=(), device="cpu", workers=0)
    images = {f"{i}": drawn("ellipse" if i % 2 else "rectangle", seed=i) for i in range(4)}
    result = MuSc(config).run(images)
    assert result.region.shape == (4, 160, 160)
    assert result.region[:, 60:100, 55:105].all()  # the product
    assert not result.region[:, :8].any()
    assert not result.region[:, :, :8].any()
    assert any("roi" in note or "region" in note for note in result.notes)
    result = MuSc(config).run(load_category("synthetic", name="leather", good=2, defects=1))
    assert result.region.all()
    assert any("no background" in note for note in result.notes)


def test_dirt_beside_the_product_is_no_foreground():
    rng = np.random.default_rng(0)
    kinds = np.zeros((16, 16), dtype=int)
    kinds[4:10, 5:11] = 1  # two products of 36 and 9 patches, and a speck of one
    kinds[12:15, 10:13] = 1
    kinds[1, 13] = 1
    tokens = torch.tensor(np.eye(8)[kinds.ravel()] + rng.normal(0, 0.02, (256, 8)))
    found = foreground(tokens, (16, 16)).reshape(16, 16).numpy()
    assert found[3:11, 4:12].all()  # with a patch around
    assert found[11:15, 9:13].all()
    assert not found[0:3, 12:15].any()
    assert found.sum() < 130


def test_otsu_is_the_best_of_all_thresholds():
    values = torch.from_numpy(np.random.default_rng(3).normal(size=40)).double()
    values[:15] += 2

    def within(cut):
        return sum(float(part.var(correction=0)) * len(part) for part in (values[values <= cut], values[values > cut]))

    ordered = values.sort().values
    best = min(((ordered[:-1] + ordered[1:]) / 2).tolist(), key=within)
    assert within(otsu(values)) == pytest.approx(within(best))


@pytest.mark.parametrize(
    ("what", "error", "said"),
    [
        ("missing", ConfigError, "no such file or folder"),
        ("text", DataError, "text"),
        ("proportions", DataError, "64 x 32 pixels and"),
        ("black", DataError, "black all over"),
        ("thin", DataError, "at least half"),
    ],
)
def test_regions_that_cannot_be_are_refused(what, error, said, pictures, tmp_path):
    path = tmp_path / "m.png"
    if what == "text":
        path.write_text("no picture")
    elif what == "proportions":
        Image.new("L", (64, 32), 255).save(path)
    elif what == "black":
        Image.new("L", (64, 64), 0).save(path)
    elif what == "thin":
        white = np.zeros((64, 64), dtype=np.uint8)
        white[::16] = 255
        Image.fromarray(white).save(path)
    with pytest.raises(error, match=said):
        MuSc(CONFIG.replace(roi=str(path))).run(pictures)


def test_settings_that_do_not_go_with_a_region(mask):
    for changes in (
        {"position_window": 2, "consistency": "warn"},
        {"tiles": 2, "tile_pool": "all", "consistency": "warn"},
        {"position_window": 2, "roi": "auto"},
        {"method": "padim"},
    ):
        with pytest.raises(ConfigError, match="roi"):
            MuScConfig(**{"roi": mask, **changes})


def test_places_that_lie_inside_for_some_images_alone_are_refused(pictures, mask, tmp_path):
    for path in pictures.iterdir():
        Image.open(mask).save(tmp_path / path.name)
    with pytest.raises(ConfigError, match="one mask for all images"):
        MuSc(CONFIG.replace(roi=str(tmp_path), position_window=1)).run(pictures)
    tile = MuSc(CONFIG).features(tiles.cut(as_category(pictures).samples[0], 2, 0.0)[:2])
    tile.region = torch.tensor([True, False])[:, None, None].expand(2, 8, 8)
    with pytest.raises(DataError, match=r"0\.png: no patch of any of its tiles"):
        roi.check_tiles([tile])
