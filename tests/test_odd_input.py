"""Odd but possible input of every kind: the right result, or one line that names it and the remedy."""

import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from musc import MuScResult, cli, config, rscin
from musc.backbones import resolve_device
from musc.backbones.weights import read_state_dict
from musc.cli.options import place
from musc.datasets import Sample, load_category, visa
from musc.datasets.images import frames_note
from musc.datasets.words import kind
from musc.errors import ConfigError, DataError, ResultError, WeightsError
from musc.plugin import class_tokens, predictions, score_table
from musc.plugin.exports import export
from musc.results import marks
from musc.results.evaluation import read_truth
from musc.results.thresholds import robust


def unchecked(module):
    """A copy of a module as users import it: the suite's type checker would refuse wrong kinds before it does."""
    spec = importlib.util.spec_from_file_location(f"unchecked_{module.__name__.replace('.', '_')}", module.__file__)
    sys.modules[spec.name] = copy = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(copy)
    return copy


@pytest.fixture
def musc(capsys):
    def call(*words):
        try:
            code = cli.main([str(w) for w in words])
        except SystemExit as leaving:
            code = leaving.code
        captured = capsys.readouterr()
        assert "fault of the program" not in captured.err
        return code, captured.out, captured.err

    return call


@pytest.mark.parametrize(
    "words",
    [
        ("run", ""), ("run", ".", "--out", ""), ("run", ".", "--cache", " "), ("run", ".", "--roi", ""),
        ("run", ".", "--reference-images", ""), ("run", ".", "--layout", ""), ("score", "", "--against", "."),
        ("watch", ".", "--against", ""), ("rscin", "", "--class-tokens", "t.npz"), ("report", ""),
    ],
)  # fmt: skip
def test_an_unset_variable_is_not_the_working_folder(musc, words, tmp_path, monkeypatch):
    """`musc run "$PHOTOS"` without PHOTOS must not score whatever lies in the working folder."""
    monkeypatch.chdir(tmp_path)
    code, _, said = musc(*words)
    assert code in (1, 2)
    assert "empty" in said or "layout = ''" in said
    assert not list(tmp_path.iterdir())


def test_home_folder_that_the_shell_left(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert place("~/out") == tmp_path / "out"
    assert place("~no such user/x") == Path("~no such user/x")


@pytest.mark.parametrize("words", [("--max-memory", "9" * 400), ("--seed", 2**64)])
def test_values_beyond_what_can_be(musc, words, tmp_path):
    code, _, said = musc("run", "synthetic", "--category", "tile", *words, "--out", tmp_path / "out")
    assert code in (1, 2)
    assert str(words[0])[2:].replace("-", "_") in said.replace("-", "_")


@pytest.mark.parametrize(
    ("given", "plain"),
    [
        ({"batch_size": np.int64(4)}, 4), ({"seed": np.int32(3)}, 3), ({"tile_overlap": np.float32(0.25)}, 0.25),
        ({"position_window": np.float32(3)}, 3.0), ({"full_scale": np.uint16(4095)}, 4095),
        ({"degrees": np.array([1, 3])}, (1, 3)), ({"windows": [np.float64(2), math.inf]}, (2, math.inf)),
        ({"roi": Path("mask.png")}, "mask.png"), ({"device": torch.device("cuda", 1)}, "cuda:1"),
    ],
)  # fmt: skip
def test_settings_are_plain(given, plain):
    """A result writes its settings as JSON after all the work: what JSON does not know must not get so far."""
    MuScConfig = unchecked(config).MuScConfig
    made = MuScConfig(**given)
    (name,) = given
    assert getattr(made, name) == plain
    assert MuScConfig.from_dict(json.loads(json.dumps(made.to_dict()))) == made


@pytest.mark.parametrize(
    "given",
    [
        {"degrees": 3}, {"degrees": "1,3"}, {"degrees": (1, 1)}, {"windows": None}, {"windows": "2,3"}, {"windows": 2},
        {"interval": None}, {"interval": ("a", "b")}, {"interval": (0.3,)}, {"batch_size": True}, {"stages": "1,2"},
        {"tile_overlap": "x"}, {"full_scale": "4095"}, {"roi": np.ones((2, 2))}, {"device": None}, {"seed": 2**64},
    ],
)  # fmt: skip
def test_settings_of_another_kind(given):
    with pytest.raises(ConfigError, match=f"^{next(iter(given))} = "):
        unchecked(config).MuScConfig(**given)


def test_a_device_that_holds_no_numbers():
    with pytest.raises(ConfigError, match="device = 'meta' cannot be used here"):
        resolve_device("meta")


@pytest.mark.parametrize("scores", [[0.0] * 6 + [1.0], [0.0] * 50 + [1.0, 1.0]])
def test_threshold_of_copies(scores):
    """Copies score 0: the densest place lies below all scores, and no spread can be told."""
    found = robust(scores)
    assert found.false_alarm_rate is None
    assert found.value > 1


SCORES, CLASS = torch.tensor([0, 2, 6, 10]), torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])


# In a process of its own: the suite's type checker would refuse these before the package does.
OF_OTHER_KINDS = """
import numpy, torch
from musc import lnamd, msm
x = torch.randn(4, 9, 8, generator=torch.Generator().manual_seed(0))
def said(call):
    try:
        call()
    except ValueError as error:
        return str(error)
for tokens in (10 * x).long(), x > 0, x.numpy(), x.tolist(), x[0], x[None], x[:, :0], x.to(torch.complex64):
    for call in (lambda: msm.mutual_scores([tokens]), lambda: lnamd.aggregate(tokens, 3),
                 lambda: msm.patch_to_image_distances(tokens)):
        assert "tokens" in (said(call) or ""), tokens
assert "squares overflow" in said(lambda: msm.mutual_scores([1e30 * x]))
for given, text in [
    ({"degrees": 3}, "degrees = 3"), ({"degrees": (3.0,)}, "degree 3.0"), ({"degrees": "13"}, "degree '1'"),
    ({"interval": (0.3,)}, "interval"), ({"reduction": "median"}, "reduction 'median'"), ({"pool": 2.5}, "pool"),
    ({"block": 0}, "block = 0"), ({"block": -2}, "block = -2"), ({"grid": (-3, -3)}, "grid -3 x -3"),
    ({"references": []}, "references of 0"), ({"references": [x, x]}, "references of 2"),
]:
    assert text in (said(lambda: msm.mutual_scores([x], **given)) or ""), given
pool = [[1, 2], [0, 2], [3, 1], [2, 1]]
expected = msm.mutual_scores([x], pool=torch.tensor(pool))
assert msm.mutual_scores([x.clone().requires_grad_()], pool=pool).equal(expected)
"""


def test_tokens_and_settings_of_another_kind():
    """Whole numbers came back as whole numbers, 1e30 gave scores beyond 2, a block of -2 and a grid of -3 x -3 ran."""
    subprocess.run([sys.executable, "-c", OF_OTHER_KINDS], check=True, cwd=Path(__file__).parents[1])


def test_whole_scores_are_not_rounded():
    expected = rscin.rescore(SCORES.double(), CLASS, windows=(2,))
    found = unchecked(rscin).rescore(SCORES, CLASS, windows=(2,))
    assert found.dtype == torch.float32
    assert found.allclose(expected.float(), atol=1e-7)
    assert expected.tolist() == pytest.approx([0.05, 0.15, 0.7, 0.9])


@pytest.mark.parametrize(
    ("scores", "tokens", "windows"),
    [
        (SCORES[:, None].float(), CLASS, (2,)), (SCORES.numpy(), CLASS, (2,)), (SCORES.float(), CLASS[:, 0], (2,)),
        (SCORES.float(), CLASS, 2), (SCORES.float(), CLASS, "23"), (SCORES.float(), CLASS, (math.nan,)),
        (SCORES.float(), 1e200 * CLASS.double(), (2,)), (1e308 * torch.tensor([-1, 1, 0.5, 0.2]).double(), CLASS, (2,)),
    ],
)  # fmt: skip
def test_rescore_of_another_kind(scores, tokens, windows):
    with pytest.raises(ValueError, match=r"values|window|overflow"):
        unchecked(rscin).rescore(scores, tokens, windows)


@pytest.mark.parametrize(
    ("content", "words", "said"),
    [
        ("path,score\na,1\n".encode("utf-16"), (), "UTF-16"),
        (b"PK\x03\x04\x14", (), "Excel workbook"),
        (b'path,score\na,"1,234"\nb,"12,345"\n', (), "a thousand or a decimal"),
        (b"path,score\na,1e308\nb,-1e308\n", (), "runs from"),
        (b"path,score,label\na,1,0\nb,2,1\n", ("--score-column", "label"), "column label holds no scores"),
    ],
)
def test_score_tables_that_are_none(musc, tmp_path, content, words, said):
    np.savez(tmp_path / "t.npz", class_tokens=np.ones((2, 3)), paths=np.array(["a", "b"]))
    (tmp_path / "s.csv").write_bytes(content)
    code, _, err = musc("rscin", tmp_path / "s.csv", "--class-tokens", tmp_path / "t.npz", *words)
    assert code == 1
    assert said in err
    assert musc("rscin", tmp_path, "--class-tokens", tmp_path / "t.npz")[0] == 1
    assert musc("rscin", "/", "--class-tokens", tmp_path / "t.npz")[0] == 1


def test_predictions_of_odd_kinds(musc, tmp_path):
    np.savez(tmp_path / "t.npz", class_tokens=np.ones((2, 3)), paths=np.array(["a", "b"]))
    words = ("rscin", tmp_path / "p.json", "--class-tokens", tmp_path / "t.npz", "--windows", "2")
    file = tmp_path / "p.json"
    file.write_text('{"image_path": ["a", "b"], "pred_score": [1, 2], "gt_label": [0, "bad"]}')
    assert musc(*words)[0] == 0
    assert [row.split(",")[-1] for row in (tmp_path / "p_rscin.csv").read_text().split()[1:]] == ["0", "1"]
    file.write_text('{"labels": {"a": {"label": "bad", "confidence": 1, "attributes": [1]}}}')
    assert musc(*words)[0] == 1  # one image, a window of two


@pytest.mark.parametrize("kind", ["int8", "complex", "sparse", "meta"])
def test_weights_of_another_kind(tmp_path, kind):
    plain = torch.eye(3)
    odd = {"int8": plain.to(torch.int8), "complex": plain.to(torch.complex64), "sparse": plain.to_sparse(),
           "meta": plain.to("meta")}  # fmt: skip
    torch.save({"fc1.weight": plain, "fc2.weight": odd[kind]}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"w\.pth: fc2\.weight are quantised, sparse, complex"):
        read_state_dict(tmp_path / "w.pth")


@pytest.mark.parametrize("wrapper", ["model_state_dict", "net", "params", "weights"])
def test_weights_that_others_wrap(tmp_path, wrapper):
    torch.save({wrapper: {"fc.weight": torch.eye(3)}, "epoch": 3}, tmp_path / "w.pth")
    assert read_state_dict(tmp_path / "w.pth")["fc.weight"].equal(torch.eye(3))


def test_weights_in_an_unknown_wrapper(tmp_path):
    torch.save({"my_net": {"fc.weight": torch.eye(3)}, "epoch": 3}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="no named tensors, but my_net, epoch"):
        read_state_dict(tmp_path / "w.pth")


def test_weights_of_the_package_are_not_replaced(musc, tmp_path):
    torch.save({"fc.weight": torch.eye(3)}, tmp_path / "w.pth")
    code, _, said = musc("weights", "procedural", "--from", tmp_path / "w.pth")
    assert (code, "comes with the package" in said) == (1, True)


@pytest.fixture
def saved(tmp_path):
    """A small result on disk."""
    rng = np.random.default_rng(0)
    maps = rng.random((4, 8, 8), dtype=np.float32)
    result = MuScResult(
        "folder", "p", ("a.png", "b.png", "c.png", "d.png"), maps.max((1, 2)), maps.max((1, 2)), maps,
        rng.random((4, 3), dtype=np.float32), None, ("",) * 4, config.MuScConfig(), keys=("k",) * 4,
    )  # fmt: skip
    result.decide(0.5)
    return result.save(tmp_path / "result")


def test_scores_that_somebody_sorted(saved):
    """Excel sorts the rows and adds a byte order mark; maps and class tokens stand in the old order."""
    before = MuScResult.load(saved)
    head, *rows = (saved / "scores.csv").read_text().splitlines()
    (saved / "scores.csv").write_text("\ufeff" + "\n".join([head, *sorted(rows, reverse=True)]) + "\n", "utf-8")
    after = MuScResult.load(saved)
    assert after.paths == before.paths
    assert np.array_equal(after.raw_image_scores, before.raw_image_scores)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("metrics", None), ("metrics", {"image": "x"}), ("notes", "hello"), ("keys", ["a"]), ("keys", [1, 2, 3, 4]),
        ("threshold", {"value": "high", "method": "robust"}), ("threshold", {"value": math.nan, "method": "robust"}),
        ("root", 3), ("category", 3), ("timings", {"a": "b"}), ("environment", None), ("skipped", [1]), ("cache", 5),
    ],
)  # fmt: skip
def test_result_that_somebody_edited(saved, name, value):
    header = json.loads((saved / "result.json").read_text())
    (saved / "result.json").write_text(json.dumps(header | {name: value}))
    with pytest.raises(ResultError, match=rf"{name}|keys of all images"):
        MuScResult.load(saved)


@pytest.mark.parametrize(
    ("file", "array"),
    [
        ("anomaly_maps", np.zeros((4, 8), np.float32)),
        ("class_tokens", np.zeros((3, 3), np.float32)), ("class_tokens", np.ones(4, np.float32)),
        ("region", np.ones((2, 8, 8), bool)),
    ],
)  # fmt: skip
def test_arrays_that_do_not_fit(saved, file, array):
    np.save(saved / f"{file}.npy", array)
    with pytest.raises(ResultError, match=rf"{file}\.npy"):
        MuScResult.load(saved)


def process(tmp_path, *words, **options):
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    return subprocess.run([sys.executable, *words], cwd=tmp_path, env=env, capture_output=True, text=True, **options)


WRONG_WORDS = """
import sys
from musc import cli
for words in ("run nothing", "evaluate nothing", "compare nothing", "datasets nothing", "run . --degrees 2",
              "score nothing.png --against .", "score . --against nothing", "watch . --against nothing",
              "report nothing", "export nothing --format anomalib --out x", "threshold nothing",
              "rscin nothing.csv --class-tokens t.npz"):
    assert cli.main(words.split()) == 1, words
    assert not {"torch", "scipy", "pandas"} & set(sys.modules), words
"""


def test_wrong_words_need_no_torch(tmp_path):
    """An error comes at once: torch, scipy and the rest take seconds to import."""
    done = process(tmp_path, "-c", WRONG_WORDS)
    assert done.returncode == 0, done.stderr
    assert len(done.stderr.splitlines()) == 12


def test_closed_streams_and_a_working_folder_that_is_gone(tmp_path):
    assert process(tmp_path, "-m", "musc", "cache", preexec_fn=lambda: os.close(1)).returncode == 1
    assert (
        process(
            tmp_path, "-m", "musc", "--version", preexec_fn=lambda: (os.close(1), os.close(2), os.close(0))
        ).returncode
        == 0
    )
    (tmp_path / "gone").mkdir()
    done = process(tmp_path / "gone", "-m", "musc", "backbones", preexec_fn=lambda: Path.cwd().rmdir())
    assert done.returncode == 1
    assert "the working folder is gone" in done.stderr


def photograph(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (24, 24, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def test_our_own_pictures_are_no_photographs(tmp_path):
    """OUT may lie in the folder of the images: what `watch`, `compare` and `reproduce` draw is not scored."""
    for name in (
        "a.png",
        "b.png",
        "comparison.png",
        "table_1.png",
        "table_1_stand_in.png",
        "watch/new/overlays/x.png.png",
    ):
        photograph(tmp_path / name)
    for name in ("comparison.csv", "table_1.csv"):
        (tmp_path / name).write_text("method\n")
    (tmp_path / "watch/new/watch.json").write_text('{"folder": "/new", "against": "f"}')
    assert [s.name for s in load_category(None, tmp_path)] == ["a.png", "b.png"]
    (tmp_path / "comparison.csv").unlink()  # of somebody's own
    assert "comparison.png" in [s.name for s in load_category(None, tmp_path)]


def test_images_of_several_pages(tmp_path):
    first, other = (Image.open(photograph(tmp_path / f"{n}.png", n)) for n in (0, 1))
    for name in ("pages.tif", "moving.gif", "moving.webp"):
        first.save(tmp_path / name, save_all=True, append_images=[other])
    first.save(tmp_path / "phone.mpo", save_all=True, append_images=[other])
    (note,) = frames_note(load_category(None, tmp_path).samples)
    assert note.startswith("3 images have several frames or pages (moving.gif, moving.webp, pages.tif)")


def test_export_of_images_that_share_a_stem(saved, tmp_path):
    """anomalib finds a mask by its image's stem: three images 3.* had one mask, and a/b.png lost its suffix."""
    result = MuScResult.load(saved)
    names = ("3.bmp", "3.png", "a/b.png", "a_b.png")
    for n, name in enumerate(names):
        photograph(tmp_path / "images" / name, n)
    os.rename(tmp_path / "images/3.bmp", os.fsencode(tmp_path) + b"/images/3\xfc.bmp")
    result.paths, result.root = ("3\\xfc.bmp", *names[1:]), str(tmp_path / "images")
    result.decide(0.0)
    export(result, tmp_path / "out", "anomalib")
    images = sorted(path.stem for path in (tmp_path / "out/abnormal").iterdir())
    assert images == sorted(path.stem for path in (tmp_path / "out/mask").iterdir())
    assert len(set(images)) == 4
    assert {path.suffix for path in (tmp_path / "out/abnormal").iterdir()} == {".png", ".bmp"}


def test_masks_that_cannot_be_used_are_named(tmp_path):
    samples = [Sample("0.png", photograph(tmp_path / "0.png"), 0, "good")]
    small, wide = tmp_path / "small.png", tmp_path / "wide.png"
    Image.new("L", (12, 12), 255).save(small)
    Image.new("L", (24, 24), 255).save(wide)
    image = photograph(tmp_path / "1.png", 1)
    found = read_truth("folder", [*samples, Sample("1.png", image, 1, "bad", small)], 24)
    assert "12 x 12 pixels, 1.png 24 x 24" in found.notes[0]
    found = read_truth("folder", [*samples, Sample("1.png", image, 1, "bad", wide)], 24)
    assert found.notes == [
        "1 of 1 masks mark more than half of their image: white is anomalous; invert them if black is meant."
    ]


def test_words_of_other_languages():
    pairs = [
        ("良品", "欠陥"),
        ("正常品", "不良"),
        ("норма", "брак"),
        ("dobre", "złe"),
        ("bom", "ruim"),
        ("iyi", "kusurlu"),
    ]
    assert [(kind(good), kind(bad)) for good, bad in pairs] == [("good", "bad")] * len(pairs)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
@pytest.mark.parametrize("path", ["a pipe", "/dev/zero"])
def test_no_reader_waits_for_what_never_ends(path, tmp_path):
    if path == "a pipe":
        path = tmp_path / "1cls.csv"
        os.mkfifo(path)
    (tmp_path / "split_csv").mkdir()
    (tmp_path / "split_csv" / "1cls.csv").symlink_to(path)
    for read in (
        lambda: marks.read_marks(Path(path), ["a.png"]),
        lambda: score_table.read_score_table(Path(path)),
        lambda: predictions.read_predictions(Path(path)),
        lambda: class_tokens.read_class_tokens(path),
        lambda: class_tokens.read_pickled_arrays(path),
        lambda: read_state_dict(Path(path)),
        lambda: visa.load(tmp_path, "candle"),
    ):
        with pytest.raises((DataError, WeightsError, OSError), match="no regular file"):
            read()
