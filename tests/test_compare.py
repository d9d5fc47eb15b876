"""Methods by name: `MuSc.run`, `musc evaluate --method` and `musc compare` against the parts that they are made of."""

import dataclasses
import mmap

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from musc import MuSc, MuScConfig, MuScResult, cli, compare, fewshot, metrics
from musc.backbones import BACKBONES, text
from musc.backbones.torchvision_guard import ready_torchvision
from musc.config import METHODS, NEED_REFERENCES, OTHER_METHODS
from musc.datasets import load_category
from musc.datasets.base import Category, Sample
from musc.errors import ConfigError, DataError, WeightsError
from musc.methods import registry, winclip
from musc.methods.base import image_scores, method_maps
from musc.reproduce.experiments import ablate
from musc.stream import Stream

TINY = ["--backbone", "deit_tiny_patch16_224", "--weights", "random", "--image-size", "64", "--stages", "1,2"]
TINY += ["--device", "cpu", "--workers", "0"]


@pytest.fixture(scope="module")
def data_set(tmp_path_factory):
    """One category in the MVTec AD layout: four normal images, two with a spot, three to train."""
    root = tmp_path_factory.mktemp("data") / "set"
    rng = np.random.default_rng(0)
    for folder, count in (("test/good", 4), ("test/spot", 2), ("train/good", 3)):
        (root / "cup" / folder).mkdir(parents=True)
        for n in range(count):
            pixels = np.linspace(60, 200, 80)[:, None, None] + rng.normal(0, 4, (80, 80, 3))
            if folder == "test/spot":
                pixels[30:50, 30:50] = 10
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(root / "cup" / folder / f"{n}.png")
    mask = np.zeros((80, 80), np.uint8)
    mask[30:50, 30:50] = 255
    (root / "cup/ground_truth/spot").mkdir(parents=True)
    for n in range(2):
        Image.fromarray(mask).save(root / f"cup/ground_truth/spot/{n}_mask.png")
    return root


@pytest.fixture
def category(data_set):
    return load_category("mvtec_ad", data_set, "cup")


@pytest.fixture
def musc(capsys, monkeypatch, tiny_backbone):
    monkeypatch.setattr("musc.pipeline.load_backbone", lambda *_, **__: tiny_backbone)

    def call(*words):
        code = cli.main([str(w) for w in words])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def test_every_name_is_one_method(tiny_config, tiny_backbone):
    assert set(registry.TITLES) == set(METHODS)
    kinds = {}
    for name in set(METHODS) - {"winclip"}:
        method = registry.build(tiny_config.replace(method=name), tiny_backbone, "cup")
        kinds.setdefault(type(method).__name__, []).append(name)
    assert sorted(kinds.pop("Mutual")) == ["musc", "musc+", "muscv2"]
    assert all(len(names) == 1 for names in kinds.values())


def test_presets():
    assert fewshot.plus(MuScConfig()).replace(method="musc+") == MuScConfig(method="musc+")
    v2 = MuScConfig(method="muscv2")
    assert (v2.aggregation, v2.rescoring, v2.windows) == ("snamd", "rscon", (7,))
    assert MuScConfig(method="muscv2", windows=(4,)).windows == (4,)
    assert MuScConfig.from_dict(v2.to_dict()) == v2


@pytest.mark.parametrize("name", sorted(set(OTHER_METHODS) - {"winclip"}))
def test_a_run_of_another_method_is_its_maps_and_scores(category, tiny_config, tiny_backbone, name, tmp_path):
    musc = MuSc(tiny_config.replace(method=name), backbone=tiny_backbone)
    normal = fewshot.reference_category(category) if name in NEED_REFERENCES else None
    result = musc.run(category, normal)
    features = musc.features(category.samples)
    method = registry.build(musc.config, tiny_backbone, "cup")
    scores = method.score(features, musc.features(normal.samples) if normal else None)
    maps = method_maps(method, scores, 64)
    np.testing.assert_allclose(result.anomaly_maps, maps, atol=1e-6)
    np.testing.assert_allclose(result.image_scores, image_scores(scores, maps), atol=1e-6)
    np.testing.assert_array_equal(result.image_scores, result.raw_image_scores)
    expected = metrics.image_metrics(torch.tensor([s.label for s in category.samples]), image_scores(scores, maps))
    assert result.metrics["image"] == pytest.approx(expected)
    result.decide("robust")
    assert not any("no score can reach" in note for note in (result.threshold.note, *result.notes))
    again = MuScResult.load(result.save(tmp_path / "r"))
    assert again.config.method == name
    assert again.fingerprint == musc.fingerprint(category, normal)
    assert again.fingerprint != MuSc(tiny_config, backbone=tiny_backbone).fingerprint(category, normal)


def test_other_methods_take_no_setting_of_mutual_scoring(category, tiny_config, tiny_backbone, tmp_path):
    for name, value in {"degrees": (1,), "aggregation": "snamd", "subsets": 2, "tiles": 2, "references": 3}.items():
        with pytest.raises(ConfigError, match=f"{name} = .* is not for the method padim"):
            tiny_config.replace(method="padim", **{name: value})
    with pytest.raises(ConfigError, match="method = 'x': choose one of musc, musc"):
        tiny_config.replace(method="x")
    musc = MuSc(tiny_config.replace(method="anomalydino"), backbone=tiny_backbone)
    for attempt in (
        lambda: Stream(musc),
        lambda: ablate(category, musc, tmp_path),
        lambda: fewshot.sweep(category, musc),
        lambda: musc.anomaly_maps(musc.features(category.samples)),
    ):
        with pytest.raises(ConfigError, match="method = 'anomalydino' is not for"):
            attempt()


def test_what_is_missing_is_said_before_the_work(category, tiny_config):
    def nothing(*_, **__):
        raise AssertionError("the network was loaded")

    for name in NEED_REFERENCES:
        musc = MuSc(tiny_config.replace(method=name))
        musc.features = nothing
        with pytest.raises(ConfigError, match="normal reference images"):
            musc.run(category)
    musc = MuSc(tiny_config.replace(method="winclip"))
    musc.features = nothing
    with pytest.raises(ConfigError, match="deit_tiny_patch16_224 has no text tower: choose a CLIP network"):
        musc.run(category)


def test_one_image_alone(category, tiny_config, tiny_backbone):
    one = dataclasses.replace(category, samples=category.samples[:1])
    for name in ("musc", "muscv2", "anomalydino", "subspacead"):
        with pytest.raises(DataError, match="one image alone cannot be scored"):
            MuSc(tiny_config.replace(method=name), backbone=tiny_backbone).run(one)
    for name in ("patchcore", "spade", "padim", "anomalydino"):
        result = MuSc(tiny_config.replace(method=name), backbone=tiny_backbone).run(
            one, fewshot.reference_category(category)
        )
        assert np.isfinite(result.image_scores).all()


def test_evaluate_with_a_method(musc, data_set, tmp_path):
    words = ("evaluate", data_set, *TINY, "--no-overlays", "--out", tmp_path / "out")
    code, _, err = musc(*words, "--method", "padim")  # by all of train/good
    assert code == 0, err
    assert "3 reference images scored" in err
    table = pd.read_csv(tmp_path / "out/metrics.csv", index_col=0)
    result = MuScResult.load(tmp_path / "out/mvtec_ad/cup")
    assert result.config.method == "padim"
    assert len(result.reference_keys) == 3
    assert table.loc["cup", "image AUROC"] == pytest.approx(100 * result.metrics["image"]["auroc"], abs=1e-3)
    code, _, err = musc(*words, "--method", "padim")
    assert "finished before" in err
    code, _, err = musc(*words, "--method", "muscv2")
    assert code == 0
    assert "finished before" not in err
    assert MuScResult.load(tmp_path / "out/mvtec_ad/cup").config.windows == (7,)
    code, _, err = musc(*words, "--method", "spade", "--plus", "--shots", "1")
    assert code == 1
    assert "--plus is the method musc+" in err


def test_compare_measures_once_and_goes_on(musc, data_set, category, tmp_path, tiny_config, tiny_backbone, monkeypatch):
    out, names = tmp_path / "out", "musc,muscv2,anomalydino,padim"
    code, said, err = musc("compare", data_set, *TINY, "--methods", names, "--out", out)
    assert code == 0, err
    for title in ("MuSc", "MuSc-V2", "AnomalyDINO", "PaDiM"):
        assert title in said
    frame = pd.read_csv(out / "compare.csv")
    assert frame["method"].tolist() == names.split(",")
    assert frame["setting"].tolist() == ["0-shot", "0-shot", "0-shot", "3-shot"]
    assert (frame["extraction s"] > 0).tolist() == [True, False, False, False]
    assert (frame["seconds"] > 0).all()
    assert (out / "comparison.png").stat().st_size > 5000
    for name, line in zip(frame["method"], frame.to_dict("records"), strict=True):
        normal = fewshot.reference_category(category) if name == "padim" else None
        alone = MuSc(tiny_config.replace(method=name), backbone=tiny_backbone).run(category, normal).metrics
        assert line["image AUROC"] == pytest.approx(100 * alone["image"]["auroc"], abs=1e-3)
        assert line["pixel AP"] == pytest.approx(100 * alone["pixel_clean"]["ap"], abs=1e-3)
    one = next((out / "compare").glob("cup-muscv2-*.json"))
    one.unlink()  # as if it had been stopped before this one
    measured = []
    original = compare._measure
    monkeypatch.setattr(compare, "_measure", lambda *a: measured.append(a[1]) or original(*a))
    code, _, err = musc("compare", data_set, *TINY, "--methods", names, "--out", out)
    assert measured == ["muscv2"]
    assert err.count("measured before") == 3
    code, _, err = musc("compare", data_set, *TINY, "--methods", "musc", "--degrees", "1", "--out", out)
    assert measured == ["muscv2", "musc"]


def test_compare_with_shots_gives_every_method_the_same_references(musc, data_set, tmp_path):
    words = ("compare", data_set, *TINY, "--methods", "musc,anomalydino,spade", "--shots", "2", "--out", tmp_path)
    code, _, err = musc(*words)
    assert code == 0, err
    assert set(pd.read_csv(tmp_path / "compare.csv")["setting"]) == {"2-shot"}


def test_compare_without_names_takes_all_that_can_run(musc, data_set, tmp_path):
    code, _, err = musc("compare", data_set, *TINY, "--out", tmp_path)
    assert code == 0, err
    assert set(pd.read_csv(tmp_path / "compare.csv")["method"]) == set(METHODS) - {"winclip"}
    assert "left out: method winclip compares images with sentences" in err


@pytest.mark.parametrize(
    ("methods", "said"),
    [
        ("musc,nearest", "method 'nearest': choose from musc, musc"),
        ("musc,winclip", "winclip compares images with sentences, and deit_tiny_patch16_224 has no text"),
    ],
)
def test_compare_says_what_cannot_be_before_the_work(musc, data_set, tmp_path, methods, said):
    code, _, err = musc("compare", data_set, *TINY, "--methods", methods, "--out", tmp_path)
    assert code == 1
    assert said in err
    assert not list(tmp_path.iterdir())


def test_compare_without_training_images_or_labels(category, tiny_config, tiny_backbone, tmp_path, musc, photos):
    code, _, err = musc("compare", photos, *TINY, "--methods", "musc", "--out", tmp_path / "a")
    assert code == 1
    assert "images without labels" in err
    code, _, err = musc("compare", photos, *TINY, "--methods", "spade", "--out", tmp_path / "b")
    assert code == 1
    assert "method spade compares with normal reference images" in err


def test_the_peak_is_that_of_the_block():
    with compare.peak_memory(torch.device("cpu")) as peak:
        block = mmap.mmap(-1, 120_000_000)  # 0.112 GiB that no earlier test has left to the process
        block.write(bytes(len(block)))
        block.close()
    if peak.gib is not None:  # where the system tells
        assert 0.1 < peak.gib < 0.4
    with compare.peak_memory(torch.device("cpu")) as small:
        pass
    if small.gib is not None:
        assert small.gib < 0.05


@pytest.fixture
def small_clip(monkeypatch):
    """A CLIP by name, of 3 x 3 patches, so that the whole way is run without a download."""
    ready_torchvision()
    import open_clip

    found = {
        "embed_dim": 8, "vision_cfg": {"image_size": 24, "layers": 2, "width": 64, "patch_size": 8},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    }  # fmt: skip
    spec = dataclasses.replace(
        BACKBONES["ViT-B-32"], name="small", model="small", image_size=48, native_size=24, patch_size=8, depth=2,
        stages=(1, 2), aliases=(),
    )  # fmt: skip
    monkeypatch.setitem(BACKBONES, "small", spec)
    original = open_clip.get_model_config
    monkeypatch.setattr(open_clip, "get_model_config", lambda name: found if name == "small" else original(name))
    return spec


def test_winclip_by_name(small_clip, category, tmp_path):
    from musc.datasets.images import preprocess, read_image

    config = MuScConfig(method="winclip", backbone="small", weights="random", device="cpu", workers=0)
    musc = MuSc(config, cache=tmp_path / "cache")
    result = musc.run(category)
    assert not (tmp_path / "cache").exists()  # no tokens are extracted
    assert result.cache == ""
    other = MuSc(config.replace(method="subspacead"), backbone=musc.backbone, cache=tmp_path / "cache").run(category)
    assert (tmp_path / "cache").exists()  # as they are for another method
    assert result.keys == other.keys
    clip = text.load_clip(small_clip, "random", 24)
    inputs = [preprocess(read_image(s.image), 24, small_clip.mean, small_clip.std) for s in category.samples]
    scores, maps = winclip.score(clip, torch.stack(inputs), "cup")
    np.testing.assert_allclose(result.image_scores, scores, atol=1e-5)
    np.testing.assert_allclose(result.anomaly_maps, maps, atol=1e-5)
    one = dataclasses.replace(category, samples=category.samples[:1])
    assert np.isfinite(MuSc(config).run(one).image_scores).all()  # sentences need no other image
    # weights of both towers in one file, at another size
    torch.save(clip.state_dict(), tmp_path / "clip.pt")
    again = text.load_clip(small_clip, tmp_path / "clip.pt", 24)
    torch.testing.assert_close(winclip.score(again, torch.stack(inputs), "cup")[0], scores)
    larger = text.load_clip(small_clip, tmp_path / "clip.pt", 32)
    assert larger.visual.positional_embedding.shape == (17, 64)
    torch.save({k: v for k, v in clip.state_dict().items() if k.startswith("visual.")}, tmp_path / "image.pt")
    with pytest.raises(WeightsError, match="holds an image tower and no text tower"):
        text.load_clip(small_clip, tmp_path / "image.pt", 24)
    with pytest.raises(ConfigError, match="no text tower"):
        text.load_clip(BACKBONES["procedural"], None, 24)


def test_samples_without_labels_are_refused(tiny_config, tiny_backbone, photos, tmp_path):
    category = Category("toy", "x", tuple(Sample(p.name, p) for p in sorted(photos.iterdir())))
    with pytest.raises(DataError, match="x has images without labels"):
        compare.compare([category], ["musc"], tiny_config, tmp_path, backbone=tiny_backbone)


@pytest.mark.realdata
def test_methods_on_magnetic_tiles_find_the_defects(shared, tmp_path):
    """Every eighth photograph at 112 px with a pretrained network: above chance, whatever the methods' ranks."""
    tile = load_category("mvtec_ad", shared / "data/magnetic_tile", "tile")
    few = dataclasses.replace(tile, samples=tile.samples[::8])
    config = MuScConfig(
        backbone="deit_tiny_patch16_224", weights=str(shared / "weights/deit_tiny_patch16_224.safetensors"),
        image_size=112, device="cpu", workers=0,
    )  # fmt: skip
    names = ["musc", "muscv2", "anomalydino", "subspacead", "patchcore", "padim"]
    normal = fewshot.reference_category(tile, 16)
    frame = compare.compare(
        [few], names, config, tmp_path, references=lambda c, m: normal if m in NEED_REFERENCES else None
    ).set_index("method")
    assert (frame["images"] == len(few)).all()
    assert (frame["pixel AUROC"] > 65).all(), frame["pixel AUROC"]
    assert frame["image AUROC"].notna().all()
