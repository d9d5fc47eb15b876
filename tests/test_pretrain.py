"""Pretraining: the image program and the training are reproducible, and the shipped weights are what they say."""

import csv
import dataclasses
import json
import math

import numpy as np
import pytest
import torch

from musc import vit
from musc.errors import ConfigError
from musc.pretrain import __main__ as pretrain
from musc.pretrain.images import batch
from musc.pretrain.objective import DEFECTIVE, NORMAL, UNCLEAR, graded_loss, state_loss
from musc.pretrain.train import Recipe, Trainer, batches

TINY = {
    "seed": 3,
    "phases": [{"until": 4, "size": 48, "products": 2, "count": 3}],
    "vit": {"image_size": 48, "width": 24, "depth": 4, "heads": 2, "stem": 8},
    "queries": 8,
    "foreign": 16,
    "pool": 3,
    "warmup": 2,
}


def train(trainer, until):
    for images, masks in batches(trainer.recipe, trainer.number, workers=0):
        if trainer.number == until:
            break
        trainer.step(images, masks)
    return trainer


def losses(trainer):
    return [line["loss"] for line in trainer.log]


@pytest.fixture(scope="module")
def recipe():
    return Recipe.from_dict(TINY)


def test_the_image_program_is_deterministic_and_its_masks_are_true():
    images, masks = batch(5, 7, 2, 3, 64)
    again, _ = batch(5, 7, 2, 3, 64)
    other, _ = batch(6, 7, 2, 3, 64)
    np.testing.assert_array_equal(images, again)
    assert not np.array_equal(images, other)
    assert images.shape[:2] == (2, 3)
    assert not masks[:, 0].all()
    assert 0 < masks.mean() < 0.5


LABELS = torch.tensor([[[NORMAL, NORMAL], [NORMAL, NORMAL], [DEFECTIVE, NORMAL], [UNCLEAR, NORMAL]]])


def test_class_tokens_near_their_own_state_cost_less():
    """Two normal images, one defective, one that takes no part; cosines 0.8 in a state and 0 between states."""
    tokens = torch.tensor([[[1.0, 0, 0], [0.8, 0.6, 0], [0, 0, 1], [0.5, 0.5, 0.5]]])
    expected = math.log(1 + math.exp(-0.8 / 0.1))  # of both normal images; the defective one has no like
    assert state_loss(tokens, LABELS).item() == pytest.approx(expected, rel=1e-4)
    assert state_loss(tokens[:, [0, 2, 1, 3]], LABELS).item() > expected
    assert state_loss(tokens[:, 2:], LABELS[:, 2:]).item() == 0  # no product shows both states


def test_class_tokens_at_their_grades_cost_nothing():
    cosines = torch.tensor([[1.0, 0.3, 0.1, 0.1], [0.3, 1, 0.1, 0.1], [0.1, 0.1, 1, 0.1], [0.1, 0.1, 0.1, 1]])
    tokens = torch.linalg.cholesky(cosines)[None]  # its rows have just these cosines
    others = torch.nn.functional.pad(tokens, (4, 0))  # a second product, orthogonal to the first
    both = torch.cat([torch.nn.functional.pad(tokens, (0, 4)), others])
    assert graded_loss(both, LABELS.repeat(2, 1, 1)).item() == pytest.approx(0, abs=1e-10)
    alike = torch.cat([tokens, tokens])  # two products that look alike: the mean square of all cosines between them
    assert graded_loss(alike, LABELS.repeat(2, 1, 1)).item() == pytest.approx(cosines.square().mean().item(), rel=1e-5)


def test_training_from_the_seed_repeats_itself(recipe):
    one, two = (train(Trainer(recipe), 4) for _ in range(2))
    np.testing.assert_allclose(losses(one), losses(two), atol=1e-4)
    assert len(losses(one)) == 4


def test_resumed_equals_uninterrupted(recipe, tmp_path):
    whole = train(Trainer(recipe), 4)
    train(Trainer(recipe), 2).save(tmp_path / "last.pt")
    resumed = train(Trainer.resume(tmp_path / "last.pt"), 4)
    np.testing.assert_allclose(losses(resumed), losses(whole), atol=1e-4)
    for a, b in zip(resumed.averaged().parameters(), whole.averaged().parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)


def test_unknown_settings_are_named():
    with pytest.raises(ConfigError, match="unknown settings speed"):
        Recipe.from_dict({"speed": 9})


def shipped():
    return json.loads(vit.EMBEDDED_WEIGHTS.with_suffix(".json").read_text())["parts"]


def test_the_shipped_recipe_repeats_the_start_of_its_curve():
    with vit.EMBEDDED_WEIGHTS.with_name("procedural_curve.csv").open() as file:
        known = [float(line["loss"]) for _, line in zip(range(3), csv.DictReader(file), strict=False)]
    again = train(Trainer(Recipe.from_dict(shipped()[0]["recipe"])), 3)
    np.testing.assert_allclose(losses(again), known, rtol=2e-5)  # the curve is written with six digits


def test_parts_follow_each_other(tmp_path):
    """The second part goes on from the first one's checkpoint, the third from its weights; resuming adds nothing."""
    longer = TINY | {"phases": [TINY["phases"][0] | {"until": 5}]}
    parts = [("random", TINY, 3), ("checkpoint", longer, 5), ("weights", TINY | {"seed": 4}, 4)]
    recipe = {"parts": [{"start": start, "stop": stop, "recipe": recipe} for start, recipe, stop in parts]}
    del recipe["parts"][2]["stop"]  # then the recipe's last step
    recipe |= {"average": {"1": 0.25, "2": 0.75}, "image_size": 64}
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    command = ["--config", str(tmp_path / "recipe.json"), "--out", str(tmp_path / "run"), "--workers", "0"]
    assert pretrain.main(command) == 0
    ends = [torch.load(tmp_path / f"run/{k}/last.pt", weights_only=True) for k in range(3)]
    assert [end["step"] for end in ends] == [3, 5, 4]
    assert ends[1]["log"][:3] == ends[0]["log"]
    assert len(ends[2]["log"]) == 4
    log = (tmp_path / "run/2/log.csv").read_text()
    assert pretrain.main([*command, "--resume"]) == 0
    assert (tmp_path / "run/2/log.csv").read_text() == log
    assert pretrain.main([*command, "--export", str(tmp_path / "out.safetensors")]) == 0
    got = vit.load(tmp_path / "out.safetensors").state_dict()
    name = next(iter(got))
    expected = 0.25 * ends[1]["average"][name] + 0.75 * ends[2]["average"][name]
    torch.testing.assert_close(got[name], expected, atol=1e-3, rtol=1e-3)
    assert got["position"].shape[-2:] == (8, 8)
    assert pretrain.main([*command[:3], str(tmp_path / "none"), "--export", str(tmp_path / "none.safetensors")]) == 2


def test_shipped_weights_are_small_and_of_the_recipe_beside_them():
    assert vit.EMBEDDED_WEIGHTS.stat().st_size <= 16 << 20
    model = vit.load()
    trained = dataclasses.replace(model.config, image_size=224)
    assert [Recipe.from_dict(part["recipe"]).vit for part in shipped()] == [trained] * len(shipped())
    assert model.config == vit.ViTConfig()  # the defaults describe the shipped network: `musc backbones` shows them


@pytest.mark.parametrize("size", [256, 160])
def test_shipped_weights_tell_a_defect_from_normal_variation(size):
    """On one easy product the trained network separates images that an untrained one of the same shape does not."""
    from musc import MuSc, MuScConfig
    from musc.datasets import synthetic

    category = synthetic.category("leather", good=6, defects=6, size=256)
    trained = MuSc(MuScConfig(image_size=size, device="cpu")).run(category)
    assert trained.metrics["pixel_clean"]["auroc"] > 0.9
    assert np.isfinite(trained.anomaly_maps).all()
