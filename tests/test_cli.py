"""The command line: its words are MuScConfig's, its failures are named, and what it leaves behind."""

import argparse
import contextlib
import dataclasses
import functools
import io
import math
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import musc as package
from musc import MuSc, MuScConfig, MuScResult, cli, datasets, reproduce
from musc.cli import batch, data, settings
from musc.cli.failures import explain
from musc.errors import ConfigError, DataError

TINY = ["--backbone", "deit_tiny_patch16_224", "--weights", "random", "--image-size", "64", "--stages", "1,2"]
TINY += ["--device", "cpu", "--workers", "0"]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """The work here is so small that threads only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def musc(capsys):
    def call(*words):
        code = cli.main([str(w) for w in words])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def loaded(monkeypatch, tiny_backbone):
    """The network is not built again."""
    monkeypatch.setattr("musc.pipeline.load_backbone", lambda *_, **__: tiny_backbone)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """`musc run photos` with pictures, once: the folder of five photographs and `out`, and what was said.

    The photographs are a gradient with noise; the last one has a dark spot. Tests that change something copy them.
    """
    place = tmp_path_factory.mktemp("finished")
    (place / "photos").mkdir()
    rng = np.random.default_rng(0)
    for i in range(5):
        pixels = np.linspace(60, 200, 80)[:, None, None] + rng.normal(0, 4, (80, 80, 3))
        if i == 4:
            pixels[30:50, 30:50] = 10
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(place / "photos" / f"{i}.png")
    with contextlib.redirect_stdout(io.StringIO()) as out:
        code = cli.main(["run", str(place / "photos"), *TINY, "--out", str(place / "out")])
    return place, code, out.getvalue()


@pytest.fixture
def workplace(finished, tmp_path):
    """A copy of the photographs and of their finished result, to be changed."""
    return shutil.copytree(finished[0], tmp_path / "work")


@pytest.fixture
def pictures(finished):
    return finished[0] / "photos"


@pytest.fixture
def data_set(tmp_path, pictures):
    """Three categories in the MVTec AD layout; the last has a single image."""
    root = tmp_path / "data"
    for name, good in (("cup", range(2)), ("mug", range(1, 4)), ("solo", ())):
        for defect, numbers in (("good", good), ("spot", (4,))):
            for i in numbers:
                path = root / name / "test" / defect / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(pictures / f"{i}.png", path)
        mask = root / name / "ground_truth" / "spot" / "4_mask.png"
        mask.parent.mkdir(parents=True)
        Image.fromarray(np.pad(np.full((20, 20), 255, np.uint8), 30)).save(mask)
    return root


@functools.cache
def parser():
    return cli.build_parser()


def option_of(name, command="run"):
    (commands,) = (a for a in parser()._actions if isinstance(a, argparse._SubParsersAction))
    return commands.choices[command]._option_string_actions.get(f"--{name.replace('_', '-')}")


# Words


@pytest.mark.parametrize("command", ["run", "evaluate"])
@pytest.mark.parametrize("field", dataclasses.fields(MuScConfig), ids=lambda field: field.name)
def test_every_setting_is_an_option_with_the_same_default_and_help(field, command):
    option = option_of(field.name, command)
    assert field.metadata["help"] in option.help
    assert option.default == (None if field.name in settings.BY_DATA_SET else field.default)
    if field.metadata["choices"]:
        assert all(word in option.metavar for word in field.metadata["choices"])


@pytest.mark.parametrize("command", ["run", "evaluate", "compare", "score", "rscin", "reproduce"])
def test_an_option_that_has_a_setting_s_name_is_made_from_it(command):
    for field in dataclasses.fields(MuScConfig):
        option = option_of(field.name, command)
        assert option is None or field.metadata["help"] in option.help


def test_every_value_survives_the_way_through_the_words():
    """The text of a value, as help shows it, reads back to the value: for the defaults and for others."""
    others = MuScConfig(
        backbone="other", weights="/w.pt", image_size=(64, 96), stages=(1, 2), degrees=(1, 7), interval=(0.1, 0.25),
        reduction="min", windows=(4, math.inf), references=3, subsets=2, precision="float16",
        backbone_precision="float16", mask_protocol="official", position_window=3, tiles=1, tile_overlap=0.5,
        tile_pool="all", full_scale=4095.0, map_size=32, batch_size=4, workers=1, block=5, max_memory=1 << 20,
        device="cuda:1", seed=7, method="musc+", aggregation="snamd", rescoring="rscon",
    )  # fmt: skip
    for config in (MuScConfig(), others.replace(tile_pool="position")):
        words = [
            f"--{f.name.replace('_', '-')}={settings.as_text(value)}"
            for f in dataclasses.fields(MuScConfig)
            if (value := getattr(config, f.name)) is not None
        ]
        args = parser().parse_args(["run", "photos", *words])
        assert MuScConfig(**settings.given_settings(args)) == config


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--nonsense",), "unrecognized arguments: --nonsense"),
        (("--degrees", "1,b"), "--degrees 1,b: give whole numbers with commas between, such as 1,3,5."),
        (("--windows", "2,x"), "--windows 2,x: give whole numbers, or inf, with commas between, such as 2,3."),
        (("--interval", "a"), "--interval a: give two numbers with a comma between, such as 0,0.3."),
        (("--seed", "1.5"), "--seed 1.5: give a whole number."),
        (("--tile-overlap", "much"), "--tile-overlap much: give a number, or inf."),
        (("--precision", "int8"), "--precision int8: choose one of float32, bfloat16, float16."),
        (("--shots", "0"), "--shots 0: give a whole number from 1, or all."),
        (("--category", ","), "--category ,: give names with commas between, such as bottle,cable."),
    ],
)
def test_wrong_words_exit_with_two_and_say_what_to_give(capsys, words, message):
    with pytest.raises(SystemExit) as caught:
        cli.main(["run", "photos", *words])
    assert caught.value.code == 2
    assert f"musc run: {message}\n" in capsys.readouterr().err or "--nonsense" in words


def test_the_version_is_the_one_of_the_project(capsys, monkeypatch):
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    assert package.__version__ == project["version"]
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--version"])
    assert capsys.readouterr().out == f"musc {project['version']}\n"

    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    import importlib.metadata

    monkeypatch.setattr(importlib.metadata, "version", missing)
    assert package.__version__ == "unknown"


def test_help_is_quick_and_needs_no_torch():
    code = "import sys, musc.cli; musc.cli.build_parser().format_help(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("word", ["--help", "--version"])
def test_a_reader_that_went_away_is_no_error(word):
    """As in `musc ... | head`, at the last flush too. argparse itself passes over it where its text is long."""
    read, write = os.pipe()
    os.close(read)
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    words = [sys.executable, "-m", "musc", word]
    done = subprocess.run(words, stdout=write, stderr=subprocess.PIPE, env=buffered, check=False)
    os.close(write)
    assert done.stderr == b""
    assert done.returncode in ((141,) if word == "--version" else (0, 141))


def test_a_reader_that_goes_away_within_a_run_is_no_failed_category(data_set, tmp_path, monkeypatch):
    done = []

    def gone(self, category, references=None):
        done.append(category.name)
        raise BrokenPipeError

    monkeypatch.setattr(MuSc, "run", gone)
    assert cli.main(["run", str(data_set), *TINY, "--out", str(tmp_path / "out")]) == 141
    assert done == ["cup"]


# Runs


def test_run_on_a_flat_folder(finished):
    place, code, out = finished
    assert code == 0
    lines = out.splitlines()
    assert lines[1] == "folder photos: 5 images, most anomalous first"
    assert lines[2].split()[0] == "network:"
    assert lines[3].split() == ["score", "raw", "score"]
    (folder,) = {p.parent for p in (place / "out").rglob("result.json")}
    result = MuScResult.load(folder)
    score, raw, decision, name = lines[4].split()
    assert name == "4.png"  # the most anomalous comes first
    assert decision == "anomalous"
    assert float(score) == pytest.approx(result.image_scores[4], abs=6e-4)
    assert float(raw) == pytest.approx(result.raw_image_scores[4], abs=6e-5)
    assert len(result) == 5
    assert len(list((folder / "overlays").rglob("*.png"))) == 6  # and the legend
    assert f"pictures: {folder / 'overlays'}" in out
    assert (folder / "overview.png").exists()
    assert "random" in result.weights


@pytest.fixture(scope="module")
def plain_maps(finished, tiny_backbone, tiny_config):
    return MuSc(tiny_config, backbone=tiny_backbone).run(finished[0] / "photos").anomaly_maps


@pytest.mark.parametrize(
    "words",
    [
        ["--tiles", "2", "--tile-overlap", "0.25", "--tile-pool", "all"],
        ["--position-window", "1"],
        ["--consistency", "correct"],
    ],
)
def test_remedies_reach_the_result(musc, pictures, tmp_path, words, loaded, plain_maps):
    """As in the package with the same settings, and another result than the plain method's where they matter here."""
    code, out, err = musc("run", pictures, *TINY, *words, "--no-overlays", "--out", tmp_path / "out")
    assert code == 0, err
    assert "pictures:" not in out
    (folder,) = {p.parent for p in (tmp_path / "out").rglob("result.json")}
    result = MuScResult.load(folder)
    for name, value in zip(words[::2], words[1::2], strict=True):
        assert settings.as_text(getattr(result.config, name[2:].replace("-", "_"))) == value
    category = datasets.load_category("folder", pictures)
    expected = MuSc(result.config, cache=tmp_path / "out" / ".cache").run(category)
    np.testing.assert_allclose(result.image_scores, expected.image_scores, atol=1e-6)
    if "--consistency" not in words:  # five images with one defect share none
        assert abs(result.anomaly_maps.mean() - plain_maps.mean()) > 5e-6


def test_a_rerun_reuses_what_is_finished(musc, workplace, loaded):
    photos, out = workplace / "photos", workplace / "out"
    words = ("run", photos, *TINY, "--no-overlays", "--out", out)
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*.npy")}
    assert len(before) == 2
    code, _, err = musc(*words)
    assert code == 0
    assert "finished before" in err
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*.npy")} == before
    (photos / "0.png").write_bytes((photos / "1.png").read_bytes()[:-1] + b"\0")
    assert "finished before" not in musc(*words)[2]
    assert "finished before" not in musc(*words, "--degrees", "1")[2]


def test_bad_images_are_skipped_by_name(musc, workplace, loaded):
    (workplace / "photos" / "0.png").write_bytes(b"")
    (workplace / "photos" / "1.png").write_text("words")
    code, _, err = musc("run", workplace / "photos", *TINY, "--no-overlays", "--out", workplace / "out")
    assert code == 0
    assert err.count("skipped: ") == 2
    assert "0.png" in err
    assert "1.png" in err


def test_windows_are_the_paper_s_on_the_data_set(pictures, tmp_path, loaded):
    words = ["run", str(pictures), *TINY, "--out", str(tmp_path / "out")]
    for more, dataset, expected in (((), "visa", (8, 9)), ((), "folder", (2, 3)), (("--windows", "4"), "visa", (4,))):
        one = batch.Batch(parser().parse_args([*words, *more]))
        one.categories = [datasets.Category(dataset, "cup", ())]
        assert one.musc.config.windows == expected


def test_a_file_of_weights_is_kept_by_its_absolute_path(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for given, kept in (("w.pt", str(tmp_path / "w.pt")), ("random", "random")):
        args = parser().parse_args(["run", "photos", "--weights", given])
        assert settings.given_settings(args)["weights"] == kept


# Tables


def test_evaluate_prints_the_table_and_finishes_the_rest(musc, data_set, tmp_path, loaded):
    words = ("evaluate", data_set, *TINY, "--windows", "2", "--no-overlays", "--out", tmp_path / "out")
    code, out, err = musc(*words)
    assert code == 1  # one category failed, and is named
    assert "mvtec_ad solo: one image alone cannot be scored" in err
    row = next(line for line in out.splitlines() if line.startswith("cup"))
    assert len(row.split()) == 10  # the name and nine figures
    assert "PRO" in out
    assert "2 of the 3 categories; no table row and no mean has solo" in out
    table = pd.read_csv(tmp_path / "out" / "metrics.csv", index_col=0)
    assert list(table.index) == ["cup", "mug", "mean"]
    assert set(table["backbone"]) == {TINY[1]}

    code, out, _ = musc(*words, "--category", "mug")  # does not drop the row of the other one
    assert code == 0
    assert "from earlier runs with the same settings: cup\n" in out
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "out" / "metrics.csv", index_col=0), table)

    code, out, err = musc(*words, "--category", "mug", "--mask-protocol", "official")  # both are measured
    assert "mug: finished before" in err
    assert "masks: official" in out
    assert "from earlier runs with the same settings: cup\n" in out

    code, out, _ = musc(*words, "--category", "mug", "--degrees", "1")  # whose result is of other settings
    assert code == 0
    assert "earlier" not in out
    assert "1 of the 3 categories; no table row and no mean has cup, solo" in out
    assert list(pd.read_csv(tmp_path / "out" / "metrics.csv", index_col=0).index) == ["mug"]


def fails_on(name, error):
    run = MuSc.run

    def run_or_fail(self, category, references=None):
        if category.name == name:
            raise error
        return run(self, category, references)

    return run_or_fail


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "out of memory (no more is known): try --max-memory 1GiB"),
        (
            torch.cuda.OutOfMemoryError("CUDA out of memory."),
            "out of memory (CUDA out of memory.): try --max-memory 1GiB",
        ),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate"), "out of memory ([enforce fail]"),
        (ZeroDivisionError("odd"), "ZeroDivisionError: odd. This is a fault of the program: --verbose shows where"),
        (OSError(28, "No space left on device", "/x/a.npy"), "/x/a.npy: No space left on device: free some space"),
    ],
)
def test_a_category_that_fails_does_not_stop_the_others(musc, data_set, tmp_path, monkeypatch, loaded, error, said):
    monkeypatch.setattr(MuSc, "run", fails_on("cup", error))
    words = ("evaluate", data_set, *TINY, "--category", "cup,mug", "--no-overlays", "--out", tmp_path / "out")
    code, out, err = musc(*words)
    assert code == 1
    assert f"musc: mvtec_ad cup: {said}" in err
    assert "Traceback" not in err
    assert "mug" in out
    assert list(pd.read_csv(tmp_path / "out" / "metrics.csv", index_col=0).index) == ["mug"]
    code, _, err = musc(*words[:1], data_set, *words[2:], "--category", "cup", "--verbose")
    assert code == 1
    assert "Traceback" in err


def test_interrupt_keeps_what_is_finished(musc, data_set, tmp_path, monkeypatch, loaded):
    words = ("run", data_set, *TINY, "--category", "cup,mug", "--no-overlays", "--out", tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(MuSc, "run", fails_on("mug", KeyboardInterrupt()))
        code, _, err = musc(*words)
    assert code == 130
    assert "Traceback" not in err
    assert "interrupted" in err
    assert [p.parent.name for p in (tmp_path / "out").rglob("result.json")] == ["cup"]
    code, _, err = musc(*words)
    assert code == 0
    assert "mvtec_ad cup: finished before" in err
    assert "mvtec_ad mug: finished before" not in err


# Mistakes


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("run", "no/such/folder"), "no/such/folder"),
        (("run", "{photos}", "--weights", "no.safetensors"), r"no.safetensors"),
        (("run", "{photos}", "--image-size", "65"), "65"),
        (("run", "{photos}", "--interval", "0.5,0.2"), "interval"),
        (("run", "{photos}", "--backbone", "ViT-Z"), "ViT-Z"),
        (("run", "{photos}", "--seed", "-1"), "seed = -1: give a whole number from 0."),
        (("run", "{photos}", "--threshold", "rubust"), "'rubust': choose one of robust, mixture, f1-max, none, or a"),
        (("run", "{photos}", "--threshold", "f1-max"), "f1-max"),
        (("run", "{photos}", "--category", "photo"), "--category photo: {photos} has photos."),
        (("run", "{photos}", "--layout", "synthetic"), "--layout synthetic: the built-in data set is in no folder"),
        (("run", "synthetic", "--layout", "visa"), "--layout visa: the built-in data set has none"),
        (("run", "{photos}", "--plus"), "--plus scores by normal reference images alone: name some by"),
        (("run", "{photos}", "--plus", "--shots", "1", "--references", "2"), "--references 2: with --plus"),
        (("run", "{photos}", "--references", "0"), "--references 0 lets normal reference images score alone: name"),
        (("run", "{photos}", "--reference-images", "no/such"), "--reference-images no/such: there is no such folder"),
        (("run", "{photos}", "--cache", "{photos}", "--no-cache"), "--cache {photos}: --no-cache stores no tokens"),
        (("run", "{photos}", "--out", "{photos}/0.png"), "--out {photos}/0.png: {photos}/0.png is no folder. Name an"),
        (("run", "{photos}", "--out", "{photos}/0.png/a/b"), "0.png is no folder, and nothing can lie below it. Name"),
        (("run", "{photos}", "--out", "/proc/musc"), "--out /proc/musc: /proc cannot be written"),
        (("run", "{photos}", "--cache", "{photos}/0.png/x"), "--cache {photos}/0.png/x: {photos}/0.png is no folder"),
        (("evaluate", "{photos}"), "without labels"),
        (("run",), "name a folder"),
        (("score", "no.png", "--against", "no/such"), "no.png: there is no such image or folder; check the path."),
        (("score", "{photos}", "--against", "no/such"), "--against no/such: there is no result; name the folder"),
        (("score", "{photos}", "--against", "x", "--cache", "no/such"), "--cache no/such: there is no such folder"),
        (("score", "{photos}", "--against", "x", "--out", "{photos}/0.png"), "--out {photos}/0.png: "),
        (("rscin", "s.csv", "--class-tokens", "c.npy", "--out", "{photos}"), "--out {photos} is a folder"),
        (("rscin", "s.csv", "--class-tokens", "c.npy", "--out", "{photos}/0.png/s.csv"), "0.png is no folder"),
        (("reproduce", "table_1", "--out", "{photos}/0.png"), "--out {photos}/0.png: "),
        (("reproduce", "table_1", "--profile", "demo", "--data-root", "{photos}"), "--data-root {photos}: the profile"),
    ],
)
def test_mistakes_get_one_clear_line_before_any_image_is_read(musc, pictures, tmp_path, monkeypatch, words, message):
    monkeypatch.setattr(MuSc, "features", lambda *_: pytest.fail("an image is read"))
    tiny = TINY if words[0] in ("run", "evaluate") and len(words) > 1 else []
    out = ["--out", tmp_path / "out"] if tiny and "--out" not in words else []
    before = sorted(pictures.rglob("*"))
    code, said, err = musc(*(str(w).format(photos=pictures) for w in [*words[:2], *tiny, *out, *words[2:]]))
    assert code == 1
    assert message.format(photos=pictures) in err
    assert len(err.splitlines()) == 1
    assert said == ""
    assert sorted(pictures.rglob("*")) == before
    assert not (tmp_path / "out").exists()


def test_a_network_that_cannot_be_loaded_is_said_once(musc, data_set, tmp_path):
    """Not once for each category."""
    code, _, err = musc("run", data_set, *TINY, "--weights", "no.safetensors", "--out", tmp_path / "out")
    assert code == 1
    assert err.count("no.safetensors: the file") == 1


def test_errors_of_the_system_name_the_file_and_the_remedy():
    assert explain(PermissionError(13, "Permission denied", "/a")) == (
        "/a: Permission denied: give yourself the right to it, or choose another place."
    )
    assert explain(OSError("truncated\nmore")) == "truncated: try again; --verbose shows where it happened."
    assert explain(DataError("a.png is empty: leave it out.")) == "a.png is empty: leave it out."


def test_lists(musc, data_set):
    code, out, _ = musc("datasets", data_set)
    assert code == 0
    assert "cup" in out
    assert "2 normal, 1 anomalous" in out
    code, out, _ = musc("backbones")
    assert code == 0
    assert {"ViT-L-14-336", "procedural"} <= {line.split()[0] for line in out.splitlines()}
    assert musc("datasets")[1].startswith("layouts: ")


# New images, and the paper's tables


@pytest.mark.parametrize("against", ["out/folder/photos", "out/folder", "out", "out/photos"])
def test_score_finds_the_only_result_that_can_be_meant(workplace, against):
    left = workplace / "out" / "folder" / "new_against_photos"
    left.mkdir()
    (left / "result.json").touch()  # what an earlier `musc score` left does not stand in the way
    assert cli.score.find_result(workplace / against) == workplace / "out" / "folder" / "photos"
    (workplace / "out" / "folder" / "others").mkdir()
    (workplace / "out" / "folder" / "others" / "result.json").touch()
    if against in ("out/folder", "out"):
        with pytest.raises(ConfigError, match=rf"--against .*{against}: which result\? There are .*others, .*photos"):
            cli.score.find_result(workplace / against)


def test_score_shows_both_scores_and_the_pictures_of_the_new_image(musc, workplace, loaded, monkeypatch):
    monkeypatch.chdir(workplace)
    new = workplace / "new"
    new.mkdir()
    masks = []
    for number, level in ((4, 12), (0, 0)):  # two images of one name, one after the other
        pixels = np.asarray(Image.open(workplace / "photos" / f"{number}.png")).astype(int) + level
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(
            new / "a.png"
        )
        words = ("score", new, "--against", "out/photos", "--out", "out", "--device", "cpu", "--weights", "random")
        code, out, err = musc(*words)
        assert code == 0, err
        assert out.splitlines()[1].split() == ["score", "raw", "score"]
        result = MuScResult.load("out/folder/new_against_photos")
        assert f"{result.raw_image_scores[0]:.4f}" in out.splitlines()[2]
        masks.append(np.asarray(Image.open("out/folder/new_against_photos/masks/a.png.png")).any())
        assert masks[-1] == result.decisions[0]
    assert masks == [True, False]


@pytest.mark.parametrize(
    ("words", "expected"), [((), "demo"), (("--data-root", "{root}"), "paper"), (("--profile", "paper"), "paper")]
)
def test_a_data_root_means_the_profile_paper(monkeypatch, data_set, tmp_path, words, expected):
    given = {}

    def profile(name, roots, **kwargs):
        given.update(kwargs, name=name, roots=roots)
        raise ConfigError("far enough")

    monkeypatch.setattr(reproduce, "profile", profile)
    settings_given = ("--precision", "bfloat16", "--mask-protocol", "clean", "--category", "cup,mug", "--images", "4")
    out = tmp_path / "out"
    words = [w.format(root=data_set) for w in words]
    assert cli.main(["reproduce", "table_1", *words, *settings_given, "--out", str(out)]) == 1
    assert given.pop("roots") == ([data_set] if "--data-root" in words else None)
    assert given == {
        "name": expected, "categories": ["cup", "mug"], "limit_categories": None, "images": 4, "protocol": "clean",
        "folder": out, "progress": True, "precision": "bfloat16", "device": "auto",
    }  # fmt: skip


def test_reproduce_says_what_a_mean_is_over(musc, data_set, tmp_path, monkeypatch, loaded):
    """Also where the tables are finished already, whose own notes are not printed again."""
    monkeypatch.setattr(reproduce, "make_all", lambda lab, out, names: {"table_1": out})
    (data_set / "mug").rename(data_set / "bottle")
    words = ("--data-root", data_set, "--category", "bottle", "--device", "cpu", "--out", tmp_path / "out")
    code, out, _ = musc("reproduce", "table_1", *words)
    assert code == 0
    assert "note: mvtec_ad: 1 of 15 categories; a mean is over what is measured here\n" in out


def test_the_words_for_data(tmp_path):
    parse = parser().parse_args
    assert data.source_of(parse(["run", "synthetic"])) == ("synthetic", None)
    assert data.source_of(parse(["run", "--layout", "synthetic"])) == ("synthetic", None)
    assert data.source_of(parse(["run", str(tmp_path), "--layout", "visa"])) == ("visa", tmp_path)
    with pytest.raises(ConfigError, match="photos does not exist: check the path"):
        data.source_of(parse(["run", str(tmp_path / "photos"), "--layout", "visa"]))


def test_verbose_says_which_engine_was_taken(musc, workplace, loaded):
    words = ("run", workplace / "photos", *TINY, "--no-overlays", "--force", "--out", workplace / "out")
    assert "musc.engines" not in musc(*words)[2]
    assert re.search(r"^musc\.engines\S*: (compiled|gram|blocked)", musc(*words, "--verbose")[2], re.M)
