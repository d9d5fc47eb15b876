"""Pretraining: the image program and the training are reproducible, and the shipped weights are what they say."""

import csv
import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

import pretraining
from musc.backbones import embedded
from musc.errors import ConfigError
from pretraining import __main__ as pretrain
from pretraining.images import Program, batch
from pretraining.objective import (
    DEFECTIVE,
    NORMAL,
    UNCLEAR,
    choose_queries,
    graded_loss,
    hardest_tokens,
    image_loss,
    state_loss,
)
from pretraining.train import Recipe, Trainer, batches, grown
from pretraining.whitening import differences, whitened, whitening

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


def test_a_program_changes_what_is_drawn_and_survives_json():
    """Lines only: every mask is thin; the default program is the one of the recipes that name none."""
    program = Program(speckle=50.0, defects=(1.0, 0, 0, 0, 0, 0, 0))
    recipe = Recipe.from_dict(TINY | {"program": {"speckle": 50.0, "defects": [1, 0, 0, 0, 0, 0, 0]}})
    assert Recipe.from_dict(recipe.to_dict()).program == recipe.program == program
    assert Recipe.from_dict(TINY).program == Program()
    images, masks = batch(5, 7, 2, 3, 64, program)
    assert not np.array_equal(images, batch(5, 7, 2, 3, 64)[0])
    assert 0 < masks.mean() < 0.2


def test_the_image_loss_compares_highest_scores():
    """Image 0 is defective at 0.5 and normal up to 0.3, image 1 normal up to 0.45, image 2 unclear."""
    scores = torch.tensor([[[0.5, 0.3, 0.2], [0.45, 0.1, 0.9], [0.8, 0.7, 0.6]]])
    kinds = torch.tensor([[[DEFECTIVE, NORMAL, NORMAL], [NORMAL, NORMAL, UNCLEAR], [UNCLEAR] * 3]])
    expected = [math.log(1 + math.exp((n - 0.5 + 0.1) / 0.05)) for n in (0.3, 0.45)]
    assert image_loss(scores, kinds).item() == pytest.approx(np.mean(expected), rel=1e-5)
    assert image_loss(scores[:, 1:], kinds[:, 1:]).item() == 0  # nothing defective


def test_the_hardest_tokens_are_those_farthest_from_the_other_images():
    g = torch.Generator().manual_seed(0)
    stages = [torch.nn.functional.normalize(torch.randn(2, 3, 10, 6, generator=g), dim=-1) for _ in range(2)]
    labels = torch.full((2, 3, 10), NORMAL)
    labels[0, 1, 4] = UNCLEAR
    got = hardest_tokens(stages, labels, 2)
    for p in range(2):
        for k in range(3):
            others = [j for j in range(3) if j != k]
            near = sum((s[p, k] @ s[p, others].flatten(0, 1).T).amax(1) for s in stages)
            near[labels[p, k] == UNCLEAR] = torch.inf
            assert set(got[3 * p + k].tolist()) == set(near.topk(2, largest=False).indices.tolist())
    chosen = choose_queries(labels.flatten(0, 1), 5, torch.rand(6, 10, generator=g), got)
    assert all(set(h.tolist()) <= set(c.tolist()) for h, c in zip(got, chosen, strict=True))


def test_whitening_gives_every_direction_the_same_length():
    d = torch.randn(500, 8, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 9)
    S = d.T.double() @ d.double() / 500
    W = whitening(S, shrinkage=0)
    scale = torch.trace(S) / 8
    torch.testing.assert_close(W.double() @ S @ W.double(), scale * torch.eye(8).double(), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(W, W.T, atol=1e-5, rtol=0)


def test_differences_are_those_of_normal_tokens_to_the_nearest_of_other_images():
    units = torch.tensor([[[[1.0, 0.0], [0.0, 1.0]], [[0.6, 0.8], [1.0, 0.0]], [[-1.0, 0.0], [0.0, -1.0]]]])
    labels = torch.tensor([[[NORMAL, NORMAL], [DEFECTIVE, UNCLEAR], [NORMAL, UNCLEAR]]])
    expected = torch.tensor([[0.0, 0.0], [-0.6, 0.2], [-1.0, -1.0]], dtype=torch.float64)
    torch.testing.assert_close(differences(units, labels), expected, atol=1e-6, rtol=0)


def test_a_whitened_network_differs_in_its_patch_tokens_alone(recipe, tmp_path):
    model = Trainer(recipe).averaged()
    new = whitened(model, seed=1, batches=2, products=3, count=2, size=48, shrinkage=0.1, program=Program())
    embedded.save(new, tmp_path / "new.safetensors")
    pixels = torch.randn(3, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    (plain, same), (stages, again) = model.forward_stages(pixels, (2, 4)), new.forward_stages(pixels, (2, 4))
    torch.testing.assert_close(again, same)
    for tokens, out, block in zip(plain, stages, (1, 3), strict=True):
        torch.testing.assert_close(out, tokens @ new.whitening[block].weight)  # symmetric
    saved = embedded.load(tmp_path / "new.safetensors").forward_stages(pixels, (2,))[0][0]
    torch.testing.assert_close(saved, stages[0], atol=0.05, rtol=0.05)


def test_a_shortened_network_stops_after_its_first_blocks(recipe):
    model = Trainer(recipe).averaged()
    short = model.shortened(2)
    pixels = torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    (a, b), _ = model.forward_stages(pixels, (1, 2))
    (c, d), _ = short.forward_stages(pixels, (1, 2))
    assert short.depth == 2
    assert torch.equal(a, c)
    assert torch.equal(b, d)
    assert model.shortened(None).config == model.config


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


def test_the_degrees_of_a_recipe_are_those_it_trains(recipe):
    losses_of = {r: losses(train(Trainer(dataclasses.replace(recipe, degrees=(r,))), 1)) for r in (1, 5)}
    assert losses_of[1] != losses_of[5]
    wide = dataclasses.replace(recipe, degrees=(1, 3, 5))
    assert Recipe.from_dict(wide.to_dict()) == wide


def test_added_blocks_change_no_token_at_first(recipe):
    model = Trainer(recipe).averaged()
    new = grown(model, dataclasses.replace(model.config, depth=6), seed=1)
    images = torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    stages, class_tokens = model.forward_stages(images, (1, 2, 4, 4))
    deeper, class_tokens_deeper = new.forward_stages(images, (1, 2, 4, 6))
    for got, expected in zip([*deeper, class_tokens_deeper], [*stages, class_tokens], strict=True):
        torch.testing.assert_close(got, expected)


def test_unknown_settings_are_named():
    with pytest.raises(ConfigError, match="unknown settings speed"):
        Recipe.from_dict({"speed": 9})


def shipped():
    return json.loads((Path(pretraining.__file__).parent / "procedural.json").read_text())["parts"]


def test_the_shipped_recipe_repeats_the_start_of_its_curve():
    with (Path(pretraining.__file__).parent / "procedural_curve.csv").open() as file:
        known = [float(line["loss"]) for _, line in zip(range(3), csv.DictReader(file), strict=False)]
    again = train(Trainer(Recipe.from_dict(shipped()[0]["recipe"])), 3)
    np.testing.assert_allclose(losses(again), known, rtol=2e-5)  # the curve is written with six digits


def test_parts_follow_each_other(tmp_path):
    """The second goes on from the first one's checkpoint, the third from the mean of both; resuming adds nothing."""
    longer = TINY | {"phases": [TINY["phases"][0] | {"until": 5}]}
    parts = [("random", TINY, 3), ("checkpoint", longer, 5), ("weights", TINY | {"seed": 4}, 4)]
    recipe = {"parts": [{"start": start, "stop": stop, "recipe": recipe} for start, recipe, stop in parts]}
    del recipe["parts"][2]["stop"]  # then the recipe's last step
    recipe["parts"][2]["start"] = {"0": 0.5, "1": 0.5}
    recipe |= {"average": {"1": 0.25, "2": 0.75}, "image_size": 64, "depth": 2}
    recipe["whitening"] = {"seed": 2, "batches": 1, "products": 2, "count": 2, "size": 48, "shrinkage": 0.1}
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
    got = embedded.load(tmp_path / "out.safetensors").state_dict()
    name = next(iter(got))
    expected = 0.25 * ends[1]["average"][name] + 0.75 * ends[2]["average"][name]
    torch.testing.assert_close(got[name], expected, atol=1e-3, rtol=1e-3)
    assert got["position"].shape[-2:] == (8, 8)
    assert got["whitening.1.weight"].shape == (24, 24)
    assert "blocks.2.norm1.weight" not in got
    assert pretrain.main([*command[:3], str(tmp_path / "none"), "--export", str(tmp_path / "none.safetensors")]) == 2


def test_shipped_weights_are_small_and_of_the_recipe_beside_them():
    assert embedded.EMBEDDED_WEIGHTS.stat().st_size <= 16 << 20
    model = embedded.load()
    trained = dataclasses.replace(model.config, whitened=False)
    assert trained == embedded.ViTConfig()  # the defaults describe the shipped network: `musc backbones` shows them
    for part in shipped():
        shape = Recipe.from_dict(part["recipe"]).vit
        assert dataclasses.replace(shape, image_size=256, depth=4) == trained  # the last part's has eight blocks


@pytest.mark.parametrize("size", [256, 160])
def test_shipped_weights_tell_a_defect_from_normal_variation(size):
    """On one easy product the trained network separates images that an untrained one of the same shape does not."""
    from musc import MuSc, MuScConfig
    from musc.datasets import synthetic

    category = synthetic.category("leather", good=6, defects=6, size=256)
    trained = MuSc(MuScConfig(image_size=size, device="cpu")).run(category)
    assert trained.metrics["pixel_clean"]["auroc"] > 0.9
    assert np.isfinite(trained.anomaly_maps).all()
