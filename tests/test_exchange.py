"""anomalib's and FiftyOne's formats, as they document them: what we write, and what we read of them."""

import json
import os
import shutil
import subprocess

import numpy as np
import pytest
import torch
from PIL import Image

from musc import MuSc, rscin
from musc.cli import main
from musc.datasets import load_category
from musc.errors import ConfigError, DataError
from musc.plugin import rescore_file
from musc.plugin.exports import export
from musc.results import MuScResult


@pytest.fixture(scope="module")
def saved(tmp_path_factory, tiny_config, tiny_backbone):
    """A result of seven labeled pictures, 90 x 60 pixels, in folders good and spot; the threshold marks two of them."""
    place = tmp_path_factory.mktemp("exchange")
    rng = np.random.default_rng(0)
    for i in range(7):
        folder = place / "parts/test" / ("spot" if i > 4 else "good")
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.linspace(60, 200, 60)[:, None, None] + rng.normal(0, 4, (60, 90, 3))
        if i > 4:
            pixels[20:30, 40:60] = 0
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"0.{i}.png")
    result = MuSc(tiny_config, backbone=tiny_backbone).run(place / "parts")
    result.decide(float(np.sort(result.raw_image_scores)[-3:-1].mean()))
    return result.save(place / "result")


def test_anomalib_reads_our_folder_and_fields(saved, tmp_path):
    """As its Folder data module does: images of two folders, and a mask of each abnormal one under the same stem."""
    result = MuScResult.load(saved)
    out = export(result, tmp_path / "out", "anomalib")
    normal, abnormal, masks = (sorted((out / d).iterdir()) for d in ("normal", "abnormal", "mask"))
    assert len(abnormal) == int(result.decisions.sum()) == 2
    assert len(normal) == 5
    for image, mask in zip(abnormal, masks, strict=True):
        assert image.stem == mask.stem
        with Image.open(image) as picture, Image.open(mask) as marked:
            assert marked.size == picture.size == (90, 60)
            assert np.asarray(marked).any()
    with np.load(out / "predictions.npz", allow_pickle=False) as arrays:
        fields = dict(arrays)
    assert set(fields) == {"image_path", "pred_score", "pred_label", "anomaly_map", "pred_mask", "gt_label"}
    for field in fields:  # a NumpyImageBatch has the batch first, and no other sizes
        assert len(fields[field]) == 7
    assert fields["anomaly_map"].shape == fields["pred_mask"].shape == result.anomaly_maps.shape
    np.testing.assert_array_equal(fields["pred_label"], fields["pred_mask"].any(axis=(1, 2)))
    np.testing.assert_array_equal(fields["pred_score"], result.raw_image_scores)
    again = load_category("folder", out)  # and our own reader, which knows that layout
    assert [s.label for s in again] == [1, 1, 0, 0, 0, 0, 0]
    assert again.has_masks


ANOMALIB = """
import json, sys
import numpy as np
from anomalib.data import Folder, NumpyImageBatch

root = sys.argv[1]
data = Folder(name="parts", root=root, normal_dir="normal", abnormal_dir="abnormal", mask_dir="mask", num_workers=0)
data.setup()
found = {}
for part in (data.train_data, data.test_data, getattr(data, "val_data", None)):
    for item in part or ():
        mask = None if item.gt_mask is None else [*item.gt_mask.shape, float(item.gt_mask.sum())]
        found[item.image_path.rpartition("/")[2]] = [int(item.gt_label), [*item.image.shape], mask]
with np.load(root + "/predictions.npz", allow_pickle=False) as arrays:
    fields = {name: arrays[name] for name in arrays.files}
fields["image_path"] = fields["image_path"].tolist()
fields["image"] = np.zeros((len(fields["pred_score"]), 90, 60, 3), dtype=np.float32)
batch = NumpyImageBatch(**fields)
print(json.dumps({"found": found, "batch": [batch.batch_size, *batch.anomaly_map.shape[:1]]}))
"""


def told_by(variable, library, code, folder):
    """What `code` says of a folder, in JSON, run by the interpreter that `variable` names: it has the real library."""
    interpreter = os.environ.get(variable)
    if not interpreter:
        pytest.skip(f"set {variable} to a Python that has {library}")
    done = subprocess.run([interpreter, "-c", code, str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.nightly
def test_anomalib_itself_reads_our_folder_and_fields(saved, tmp_path):
    """Its own data module and batch, in an environment of its own: MUSC_ANOMALIB_PYTHON is an interpreter that imports
    anomalib 2."""
    result = MuScResult.load(saved)
    answer = told_by("MUSC_ANOMALIB_PYTHON", "anomalib", ANOMALIB, export(result, tmp_path / "out", "anomalib"))
    flagged = {name.replace("/", "_"): int(d) for name, d in zip(result.paths, result.decisions, strict=True)}
    assert {name: label for name, (label, _, _) in answer["found"].items()} == flagged
    for name, (label, shape, mask) in answer["found"].items():
        assert shape == [3, 60, 90], name
        assert (mask is not None and mask[-1] > 0) == bool(label), name
    assert answer["batch"] == [7, 7]


FIFTYONE = """
import json, sys
import fiftyone as fo
from fiftyone.utils.data import FiftyOneImageClassificationDatasetImporter
importer = FiftyOneImageClassificationDatasetImporter(dataset_dir=sys.argv[1], data_path="data.json")
found = {}
with importer:
    for path, _, label in importer:
        found[path] = [label.label, label.confidence, label["raw_score"], label["ground_truth"]]
print(json.dumps(found))
"""


@pytest.mark.nightly
def test_fiftyone_itself_reads_our_json(saved, tmp_path):
    """Its own importer, in an environment of its own: MUSC_FIFTYONE_PYTHON is an interpreter that imports fiftyone."""
    result = MuScResult.load(saved)
    found = told_by("MUSC_FIFTYONE_PYTHON", "fiftyone", FIFTYONE, export(result, tmp_path / "out", "fiftyone"))
    assert len(found) == len(result)
    words = ("normal", "anomalous")
    for i, name in enumerate(result.paths):
        label, confidence, raw, truth = next(found[path] for path in found if path.endswith(name))
        score = float(result.image_scores[i])
        assert (label, truth) == (words[result.decisions[i]], words[result.labels[i]])
        assert (confidence, raw) == pytest.approx(
            (score if label == words[1] else 1 - score, result.raw_image_scores[i])
        )


def test_fiftyone_reads_our_json(saved, tmp_path):
    """As its importer does: uuids of labels.json, each with a path in data.json and a label as a dictionary."""
    result = MuScResult.load(saved)
    out = export(result, tmp_path / "out", "fiftyone")
    paths, labels = (json.loads((out / name).read_text()) for name in ("data.json", "labels.json"))
    assert set(labels["labels"]) == set(paths)
    assert len(paths) == 7
    for i, (uuid, target) in enumerate(labels["labels"].items()):
        assert "." not in uuid  # importers may take a suffix off
        assert paths[uuid].endswith(result.paths[i])
        assert target["label"] == ("anomalous" if result.decisions[i] else "normal")
        assert 0 <= target["confidence"] <= 1
        assert target["attributes"]["ground_truth"] == ("anomalous" if result.labels[i] else "normal")
        assert target["attributes"]["raw_score"] == pytest.approx(float(result.raw_image_scores[i]))


def expected(result, scores=None):
    scores = result.raw_image_scores if scores is None else scores
    return rscin.rescore(torch.tensor(scores).double(), torch.tensor(result.class_tokens).double(), (2, 3)).numpy()


@pytest.mark.parametrize("form", ["anomalib", "fiftyone"])
def test_what_we_export_is_read_back(saved, tmp_path, form):
    result = MuScResult.load(saved)
    out = export(result, tmp_path / "out", form)
    done = rescore_file(out / {"anomalib": "predictions.npz", "fiftyone": "labels.json"}[form], saved)
    np.testing.assert_allclose(done.table["score"], expected(result), atol=1e-7)
    np.testing.assert_array_equal(done.table["label"], result.labels)
    assert len(done.metrics) == 1


@pytest.mark.parametrize("shape", ["images", "batches", "batch"])
def test_anomalibs_predictions_in_json(saved, tmp_path, shape):
    """Its fields per image, per batch, or of one batch; absolute paths find the class tokens by how they end."""
    result = MuScResult.load(saved)
    scores = np.random.default_rng(0).random(7)
    fields = [
        {"image_path": f"/data/parts/{p}", "pred_score": s, "pred_label": s > 0.5, "gt_label": int(label)}
        for p, s, label in zip(result.paths, scores.tolist(), result.labels, strict=True)
    ]

    def batch(part):
        return {name: [image[name] for image in part] for name in part[0]}

    content = {"images": fields, "batches": [batch(fields[:4]), batch(fields[4:])], "batch": batch(fields)}[shape]
    (tmp_path / "p.json").write_text(json.dumps(content))
    done = rescore_file(tmp_path / "p.json", saved)
    np.testing.assert_allclose(done.table["score"], expected(result, scores), atol=1e-7)
    np.testing.assert_array_equal(done.table["label"], result.labels)
    (tmp_path / "p.csv").write_text(
        "image_path,pred_score\n" + "".join(f"{f['image_path']},{f['pred_score']}\n" for f in fields)
    )
    done = rescore_file(tmp_path / "p.csv", saved)
    np.testing.assert_allclose(done.table["score"], expected(result, scores), atol=1e-7)


def test_fiftyones_samples_and_labels(saved, tmp_path):
    result = MuScResult.load(saved)
    scores = np.random.default_rng(1).random(7)
    samples = [
        {
            "filepath": f"data/{p}",
            "tags": [],
            "ground_truth": {"_cls": "Classification", "label": ("good", "defect")[label]},
            # its confidence is in its own label
            "model": {"_cls": "Classification", "label": "anomaly" if s > 0.5 else "normal",
                      "confidence": s if s > 0.5 else 1 - s},
        }
        for p, s, label in zip(result.paths, scores.tolist(), result.labels, strict=True)
    ]  # fmt: skip
    (tmp_path / "samples.json").write_text(json.dumps({"samples": samples}))
    done = rescore_file(tmp_path / "samples.json", saved)
    np.testing.assert_allclose(done.table["score"], expected(result, scores), atol=1e-7)
    np.testing.assert_array_equal(done.table["label"], result.labels)
    for sample in samples:
        sample["other"] = sample["model"]
    (tmp_path / "samples.json").write_text(json.dumps({"samples": samples}))
    with pytest.raises(ConfigError, match=r"model, other.*--score-column"):
        rescore_file(tmp_path / "samples.json", saved)
    assert len(rescore_file(tmp_path / "samples.json", saved, column="model").table) == 7
    labels = {s["filepath"]: s["model"] | {"attributes": {}} for s in samples}  # without data.json: uuids are names
    (tmp_path / "labels.json").write_text(json.dumps({"classes": None, "labels": labels}))
    done = rescore_file(tmp_path / "labels.json", saved)
    np.testing.assert_allclose(done.table["score"], expected(result, scores), atol=1e-7)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "cannot be read as predictions"),
        ("[]", "holds no predictions"),
        ('[{"image_path": "a.png"}]', "no image_path and pred_score"),
        ('{"image_path": ["a.png", "b.png"], "pred_score": [1]}', "unequal lengths"),
        ('{"labels": {"a": "normal"}}', "no confidence"),
        ('{"labels": {"a": {"label": "normal"}}}', "no confidence"),
        ('{"samples": [{"p": {"_cls": "Classification", "confidence": 1, "label": "x"}}]}', "no filepath"),
    ],
)
def test_predictions_that_cannot_be_read_are_refused(content, said, saved, tmp_path):
    (tmp_path / "p.json").write_text(content)
    with pytest.raises(DataError, match=said):
        rescore_file(tmp_path / "p.json", saved)


def test_two_paths_with_one_ending_are_refused(saved, tmp_path):
    name = MuScResult.load(saved).paths[0]
    (tmp_path / "p.csv").write_text(f"path,score\n/a/{name},1\n/b/{name},2\n")
    with pytest.raises(DataError, match="two paths"):
        rescore_file(tmp_path / "p.csv", saved)


def test_exports_that_cannot_be_are_refused(saved, tmp_path, capsys):
    assert main(["export", str(saved), "--format", "fiftyone", "--out", str(tmp_path / "new")]) == 0
    assert main(["export", str(saved), "--format", "fiftyone", "--out", str(tmp_path / "new")]) == 1
    assert "new or empty" in capsys.readouterr().err
    result = MuScResult.load(saved)
    shutil.copytree(saved, tmp_path / "moved/deep/result")
    with pytest.raises(DataError, match="not where they were"):
        export(MuScResult.load(tmp_path / "moved/deep/result"), tmp_path / "other", "anomalib")
    result.threshold = None
    with pytest.raises(ConfigError, match="no threshold"):
        export(result, tmp_path / "other", "anomalib")
    assert not (tmp_path / "other").exists()
