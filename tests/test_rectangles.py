"""Inputs that are no squares: the network, the grids, the tiles and the maps keep the images' proportions."""

import dataclasses

import numpy as np
import plain
import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image

from musc import MuSc, MuScConfig, lnamd, msm, snamd
from musc.backbones import BACKBONES, load_backbone
from musc.backbones.weights import resize_position
from musc.cli import build_parser
from musc.datasets import as_category
from musc.datasets.images import preprocess, resize_mask
from musc.errors import ConfigError
from musc.fewshot import plus
from musc.results import MuScResult
from musc.results.pictures import save_pictures
from musc.scoring import tiles
from musc.scoring.maps import upsample
from musc.sizes import as_size
from musc.stream import Stream, score_against

WIDE = MuScConfig(weights="random", image_size=(32, 80), stages=(1, 3), degrees=(1, 3), device="cpu", workers=0)


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """Six pictures of 100 x 40 pixels; in the last there is a dark spot at the right."""
    folder, rng = tmp_path_factory.mktemp("wide") / "wide", np.random.default_rng(0)
    folder.mkdir()
    for i in range(6):
        pixels = np.linspace(60, 200, 100)[None, :, None] + rng.normal(0, 4, (40, 100, 3))
        if i == 5:
            pixels[10:20, 80:90] = 10
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{i}.png")
    return folder


def tokens(N=4, grid=(3, 7), C=12, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(N, grid[0] * grid[1], C))).float()


@pytest.mark.parametrize("grid", [(3, 7), (7, 3), (1, 9)])
@pytest.mark.parametrize("window", [float("inf"), 1])
def test_scores_on_a_rectangular_grid_equal_brute_force(grid, window):
    stages = [tokens(grid=grid, seed=s) for s in range(2)]
    got = msm.mutual_scores(stages, (1, 3, 5), grid=grid, position_window=window)
    exact = msm.mutual_scores([s.double() for s in stages], (1, 3, 5), grid=grid, position_window=window)
    torch.testing.assert_close(got, exact.float(), atol=2e-6, rtol=0)
    if window == float("inf"):
        np.testing.assert_allclose(exact, plain.mutual_scores([s.double() for s in stages], grid=grid), atol=1e-12)
        return
    expected = []  # only patches at most one row and one column away
    place = np.stack(np.divmod(np.arange(len(stages[0][0])), grid[1]), axis=1)
    near = np.abs(place[:, None] - place).max(axis=2) <= window
    for stage in stages:
        for degree in (1, 3, 5):
            f = plain.aggregate(stage, degree, grid)
            d = np.linalg.norm(f[:, None, :, None] - f[None, :, None], axis=-1)  # [N, N, M, M]
            d = np.where(near, d, np.inf).min(axis=3)
            others = np.stack([np.delete(d[i], i, axis=0) for i in range(len(f))])
            expected.append(plain.interval_average(others))
    np.testing.assert_allclose(exact, np.mean(expected, axis=0), atol=1e-12)


def test_snamd_on_a_rectangular_grid_equals_its_transpose():
    """Rows and columns are treated alike: a picture on its side has the same tokens on their side."""
    a = tokens(grid=(3, 7))
    turned = rearrange(a, "N (h w) C -> N (w h) C", h=3)
    back = rearrange(snamd.aggregate(turned, grid=(7, 3)), "N (w h) C -> N (h w) C", h=3)
    torch.testing.assert_close(snamd.aggregate(a, grid=(3, 7)), back)


def test_deit_takes_a_rectangle_with_its_position_embedding_resized_to_it(tmp_path):
    """By hand: patches are embedded, the stored 14 x 14 embedding is resized to 7 x 28 (as many numbers), the rest is
    timm's own code."""
    from musc.backbones.torchvision_guard import ready_torchvision

    ready_torchvision()
    import timm

    theirs = timm.create_model("deit_tiny_patch16_224", num_classes=0, depth=12).eval()
    torch.save(theirs.state_dict(), tmp_path / "deit.pth")
    ours = load_backbone("deit_tiny", weights=tmp_path / "deit.pth", image_size=(112, 448), stages=(1,))
    assert ours.grids == ((7, 28),)
    x = torch.randn(1, 3, 112, 448, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        patches = theirs.patch_embed.proj(x).flatten(2).mT
        square = theirs.pos_embed[0, 1:].reshape(14, 14, -1)
        position = resize_position(square, 7, 28, "antialias").reshape(1, 196, -1)
        cls = theirs.cls_token + theirs.pos_embed[:, :1]
        first = theirs.blocks[0](torch.cat([cls, patches + position], dim=1))
    torch.testing.assert_close(ours(x, class_token=False).patch_tokens[0], first[:, 1:])
    again = ours.resized(224)  # from the stored embedding, not from the resized one
    torch.testing.assert_close(again.network.pos_embed, theirs.pos_embed)
    assert again.resized(224) is again


@pytest.mark.parametrize("name", ["ViT-B-32", "dinov2_vits14"])
def test_clip_and_dinov2_take_rectangles(name, monkeypatch):
    from musc.backbones import registry

    small = {"ViT-B-32": ("ViT-B-32", 4), "dinov2_vits14": ("vit_small_patch14_dinov2", 14)}[name]
    spec = BACKBONES[name]
    monkeypatch.setitem(registry.BACKBONES, name, dataclasses.replace(spec, model=small[0]))
    p = spec.patch_size
    backbone = load_backbone(name, weights="random", image_size=(p, 3 * p), stages=(1, 2))
    found = backbone(torch.zeros(2, 3, p, 3 * p))
    assert backbone.grids == ((1, 3), (1, 3))
    assert [t.shape[:2] for t in found.patch_tokens] == [(2, 3), (2, 3)]


def test_the_picture_is_resampled_to_the_rectangle():
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 100, 3), dtype=np.uint8))
    got = preprocess(picture, (32, 80), (0.0,) * 3, (1.0,) * 3)
    expected = np.asarray(picture.resize((80, 32), Image.Resampling.BICUBIC)).transpose(2, 0, 1) / 255
    np.testing.assert_allclose(got, expected, atol=1e-6)
    mask = np.zeros((40, 100), dtype=bool)
    mask[:20, 50:] = True
    small = resize_mask(mask, (4, 10))
    assert small.shape == (4, 10)
    assert small[:2, 5:].all()
    assert small.sum() == 10


def test_maps_scores_and_pictures_keep_the_proportions(wide, tmp_path):
    result = MuSc(WIDE).run(wide)
    assert result.anomaly_maps.shape == (6, 32, 80)
    features = MuSc(WIDE).features(as_category(wide).samples)
    side = MuSc(WIDE).backbone.spec.patch_size
    grid = (32 // side, 80 // side)
    assert features.grids == (grid, grid)
    scores = plain.mutual_scores([t.double() for t in features.patch_tokens], (1, 3), grid=grid)
    expected = upsample(torch.from_numpy(scores), grid, (32, 80))
    np.testing.assert_allclose(result.anomaly_maps, expected, atol=2e-6)
    row, column = np.unravel_index(result.anomaly_maps[5].argmax(), (32, 80))
    assert result.raw_image_scores.argmax() == 5
    assert column >= 60  # the spot is at 64 to 72, and a map's corners are aligned
    assert row < 24
    result.decide(float(np.sort(result.raw_image_scores)[-2:].mean()))
    save_pictures(MuScResult.load(result.save(tmp_path / "r")), as_category(wide).samples, tmp_path / "r")
    mask = np.asarray(Image.open(next((tmp_path / "r/masks").glob("5*"))))
    assert mask.shape == (40, 100)
    assert mask[:, 75:].any()
    assert not mask[:, :50].any()
    assert MuScResult.load(tmp_path / "r").config.image_size == (32, 80)


def test_short_side_follows_most_of_the_images_and_names_the_others(wide, tmp_path):
    config = WIDE.replace(image_size="short:32")
    patch = BACKBONES["procedural"].patch_size
    long = round(32 * 100 / 40 / patch) * patch
    result = MuSc(config).run(wide)
    assert result.config.image_size == (32, long)
    assert not any("proportions" in note for note in result.notes)
    np.testing.assert_array_equal(result.anomaly_maps, MuSc(WIDE.replace(image_size=(32, long))).run(wide).anomaly_maps)
    assert MuSc(config).fingerprint(as_category(wide)) == result.fingerprint
    odd = {f"{i}": Image.open(wide / f"{i}.png") for i in range(4)} | {"tall": Image.new("RGB", (40, 100))}
    result = MuSc(config).run(odd)
    assert result.config.image_size == (32, long)
    assert [note for note in result.notes if "proportions" in note and "tall" in note]


def test_square_images_give_the_same_bytes_however_the_size_is_given(photos):
    square = WIDE.replace(image_size=64)
    expected = MuSc(square).run(photos)
    for size in ((64, 64), "short:64", "64x64"):
        result = MuSc(square.replace(image_size=size)).run(photos)
        assert result.anomaly_maps.tobytes() == expected.anomaly_maps.tobytes()
        assert result.image_scores.tobytes() == expected.image_scores.tobytes()
        assert result.fingerprint == expected.fingerprint


def test_tiles_keep_the_proportions(wide):
    """By hand: a tile is a third of rows and of columns with what it shares, and fills the rectangle."""
    config = WIDE.replace(tiles=2, tile_overlap=0.2, stages=(1,), degrees=(1,), windows=())
    musc = MuSc(config)
    samples = as_category(wide).samples
    result = musc.run(wide)
    size = tiles.map_size((32, 80), 2, 0.2)
    assert result.anomaly_maps.shape[1:] == size
    stitcher = tiles.Stitcher(6, size, 2, 0.2)
    for t in range(4):
        features = musc.features([tiles.cut(s, 2, 0.2)[t] for s in samples])
        grid = features.grids[0]
        scores = torch.from_numpy(plain.mutual_scores([features.patch_tokens[0].double()], (1,), grid=grid)).float()
        stitcher.add(t, F.interpolate(scores.reshape(6, 1, *grid), stitcher.shape(t), mode="bilinear")[:, 0])
    np.testing.assert_allclose(result.anomaly_maps, stitcher.maps, atol=5e-6)


def test_references_streams_and_new_images_keep_the_proportions(wide, tmp_path):
    images, normal = [wide / f"{i}.png" for i in (3, 4, 5)], [wide / f"{i}.png" for i in (0, 1, 2)]
    alone = MuSc(plus(WIDE)).run(images, references=normal)
    assert alone.anomaly_maps.shape == (3, 32, 80)
    musc = MuSc(WIDE, cache=tmp_path / "cache")
    earlier = musc.run(normal)
    scored = score_against(images, earlier)
    assert not [note for note in scored.notes if "proportions" in note]
    Image.open(images[0]).rotate(90, expand=True).save(tmp_path / "tall.png")
    (said,) = [n for n in score_against([tmp_path / "tall.png"], earlier).notes if "proportions" in n]
    assert "tall.png (100 x 40) has other proportions than 32 x 80 pixels" in said
    stream = Stream(musc)
    for path in sorted(wide.iterdir()):
        last = stream.push(path)
    assert last.anomaly_map.shape == (32, 80)
    batch = musc.run(sorted(wide.iterdir()))
    np.testing.assert_allclose(stream.result().anomaly_maps, batch.anomaly_maps, atol=2e-6)
    np.testing.assert_allclose(last.raw_score, batch.raw_image_scores[5], atol=2e-6)
    four = musc.run([*normal, images[2]])
    np.testing.assert_allclose(scored.raw_image_scores[2], four.raw_image_scores[3], atol=2e-6)
    with pytest.raises(ConfigError, match="all images at once"):
        Stream(MuSc(WIDE.replace(image_size="short:32")))


def test_metrics_are_those_of_masks_at_the_rectangle(wide, tmp_path):
    from sklearn.metrics import roc_auc_score

    for i in range(6):
        folder = tmp_path / "set/test" / ("spot" if i == 5 else "good")
        folder.mkdir(parents=True, exist_ok=True)
        Image.open(wide / f"{i}.png").save(folder / f"{i}.png")
    mask = np.zeros((40, 100), dtype=np.uint8)
    mask[10:20, 80:90] = 255
    (tmp_path / "set/ground_truth/spot").mkdir(parents=True)
    Image.fromarray(mask).save(tmp_path / "set/ground_truth/spot/5_mask.png")
    result = MuSc(WIDE).run(tmp_path / "set")
    at = [path.startswith("test/spot") for path in result.paths].index(True)
    truth = np.zeros_like(result.anomaly_maps, dtype=bool)
    truth[at] = np.asarray(Image.fromarray(mask).resize((80, 32), Image.Resampling.NEAREST)) > 0
    expected = roc_auc_score(truth.ravel(), result.anomaly_maps.ravel())
    assert result.metrics["pixel_clean"]["auroc"] == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("size", [(30, 64), (32, 65), "short:30", (0, 32), "448xx", True, "short:"])
def test_sizes_that_cannot_work_are_refused(size, wide):
    with pytest.raises(ConfigError, match="image_size"):
        MuSc(WIDE.replace(image_size=size)).run(wide)


def test_swin_and_winclip_take_squares_alone():
    with pytest.raises(ConfigError, match="squares alone"):
        load_backbone("swin_base", weights="random", image_size=(224, 448))
    from musc.methods import registry

    with pytest.raises(ConfigError, match="winclip"):
        registry.check(MuScConfig(method="winclip", backbone="ViT-B-16", image_size=(224, 448)), references=False)


def test_the_command_line_reads_rectangles():
    read = build_parser().parse_args
    assert read(["run", "x", "--image-size", "448x896"]).image_size == (448, 896)
    assert read(["run", "x", "--image-size", "short:448"]).image_size == "short:448"
    assert read(["run", "x", "--image-size", "448"]).image_size == 448
    assert MuScConfig.from_dict(MuScConfig(image_size=(448, 896)).to_dict()).image_size == (448, 896)
    with pytest.raises(ConfigError, match="rows, columns"):
        as_size((1, 2, 3))
    with pytest.raises(SystemExit):
        read(["run", "x", "--image-size", "long:448"])


def test_lnamd_pads_rectangles_with_zeros():
    a = tokens(grid=(2, 5))
    np.testing.assert_allclose(lnamd.aggregate(a.double(), 3, grid=(2, 5)), plain.aggregate(a, 3, (2, 5)), atol=1e-12)
