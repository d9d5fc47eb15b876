import math
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from musc import MuSc, MuScResult, cli, datasets

TINY = ["--backbone", "deit_tiny_patch16_224", "--weights", "random", "--image-size", "64", "--stages", "1,2"]
TINY += ["--device", "cpu", "--workers", "0"]


@pytest.fixture
def musc(capsys):
    def call(*words):
        code = cli.main([str(w) for w in words])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def data_set(tmp_path, photos):
    """Two categories in the MVTec AD layout; the second has a single image."""
    root = tmp_path / "data"
    for name, good in (("cup", range(4)), ("lonely", ())):
        for defect, numbers in (("good", good), ("spot", (5,))):
            for i in numbers:
                path = root / name / "test" / defect / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes((photos / f"{i}.png").read_bytes())
        mask = root / name / "ground_truth" / "spot" / "5_mask.png"
        mask.parent.mkdir(parents=True)
        Image.fromarray(np.pad(np.full((20, 20), 255, np.uint8), 30)).save(mask)
    return root


def test_run_on_a_flat_folder(musc, photos, tmp_path):
    code, out, _ = musc("run", photos, *TINY, "--out", tmp_path / "out")
    assert code == 0
    assert "5.png" in out.splitlines()[2]  # the most anomalous comes first
    (folder,) = {p.parent for p in (tmp_path / "out").rglob("result.json")}
    result = MuScResult.load(folder)
    assert len(result) == 6
    assert len(list((folder / "overlays").rglob("*.png"))) == 7  # and the legend
    assert (folder / "overview.png").exists()
    assert "random" in result.weights


@pytest.mark.parametrize(
    "words",
    [
        ["--tiles", "2", "--tile-overlap", "0.25", "--tile-pool", "all"],
        ["--position-window", "1"],
        ["--consistency", "correct"],
    ],
)
def test_remedies_reach_the_result(musc, photos, tmp_path, words):
    """As in the package with the same settings, and another result than the plain method's where they matter here."""
    code, _, err = musc("run", photos, *TINY, *words, "--no-overlays", "--out", tmp_path / "out")
    assert code == 0, err
    (folder,) = {p.parent for p in (tmp_path / "out").rglob("result.json")}
    result = MuScResult.load(folder)
    for name, value in zip(words[::2], words[1::2], strict=True):
        assert str(getattr(result.config, name[2:].replace("-", "_"))).removesuffix(".0") == value
    category = datasets.load_category("folder", photos)
    expected = MuSc(result.config).run(category)
    np.testing.assert_allclose(result.image_scores, expected.image_scores, atol=1e-6)
    if "--consistency" not in words:  # six images with one defect share none
        plain = MuSc(result.config.replace(tiles=1, position_window=math.inf)).run(category)
        assert abs(result.anomaly_maps.mean() - plain.anomaly_maps.mean()) > 5e-6


def test_evaluate_prints_the_table_and_finishes_the_rest(musc, data_set, tmp_path):
    code, out, err = musc("evaluate", data_set, *TINY, "--windows", "2", "--out", tmp_path / "out")
    assert code == 1  # one category failed, and is named
    assert "lonely: one image alone cannot be scored" in err
    row = next(line for line in out.splitlines() if line.startswith("cup"))
    assert len(row.split()) == 10  # the name and nine figures
    assert "PRO" in out
    assert (tmp_path / "out" / "metrics.csv").exists()


def test_a_rerun_reuses_what_is_finished(musc, photos, tmp_path):
    words = ("run", photos, *TINY, "--out", tmp_path / "out")
    musc(*words)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*.npy")}
    code, _, err = musc(*words)
    assert code == 0
    assert "finished before" in err
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*.npy")} == before
    (photos / "0.png").write_bytes((photos / "1.png").read_bytes())
    assert "finished before" not in musc(*words)[2]
    assert "finished before" not in musc(*words, "--degrees", "1")[2]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("run", "no/such/folder"), "no/such/folder"),
        (("run", "{photos}", "--weights", "no.safetensors"), r"no.safetensors"),
        (("run", "{photos}", "--image-size", "65"), "65"),
        (("run", "{photos}", "--interval", "0.5,0.2"), "interval"),
        (("run", "{photos}", "--backbone", "ViT-Z"), "ViT-Z"),
        (("evaluate", "{photos}"), "without labels"),
        (("run",), "name a folder"),
    ],
)
def test_mistakes_get_one_clear_line(musc, photos, words, message):
    code, _, err = musc(
        *(w.format(photos=photos) for w in [*words[:2], *TINY, *words[2:]][: None if len(words) > 1 else 1])
    )
    assert code == 1
    assert message in err
    assert "Traceback" not in err


def test_unknown_words_exit_with_two(musc):
    with pytest.raises(SystemExit, match="2"):
        musc("run", "--nonsense")


def test_bad_images_are_skipped_by_name(musc, photos, tmp_path):
    (photos / "0.png").write_bytes(b"")
    (photos / "1.png").write_text("words")
    code, _, err = musc("run", photos, *TINY, "--out", tmp_path / "out")
    assert code == 0
    assert err.count("skipped: ") == 2
    assert "0.png" in err
    assert "1.png" in err


def test_lists(musc, data_set):
    code, out, _ = musc("datasets", data_set)
    assert code == 0
    assert "cup" in out
    assert "4 normal, 1 anomalous" in out
    code, out, _ = musc("backbones")
    assert code == 0
    assert {"ViT-L-14-336", "procedural"} <= {line.split()[0] for line in out.splitlines()}
    assert musc("datasets")[1].startswith("layouts: ")


def test_interrupt_keeps_what_is_finished(photos, tmp_path):
    words = [sys.executable, "-m", "musc", "run", photos, *TINY, "--out", tmp_path / "out", "--batch-size", "1"]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 60
    while (
        not list((tmp_path / "out").rglob("*.safetensors")) and time.monotonic() < deadline and process.poll() is None
    ):
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode in (0, 130)  # 0: it was done before the signal came
    assert "Traceback" not in err
    assert list((tmp_path / "out").rglob("*.safetensors"))


def test_help_is_quick_and_needs_no_torch():
    code = "import sys, musc.cli; musc.cli.build_parser(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
