"""Consistent defects: found and raised where a minority shares them, silent on normal data, honest about a majority."""

import numpy as np
import plain
import pytest
import torch

from musc import MuSc, MuScConfig, msm
from musc.errors import ConfigError
from musc.metrics import image_metrics
from musc.scoring import consistency, links

N, M, C = 20, 36, 48


def tokens(share=0.0, seed=0, clusters=0):
    """Images of one product; the first share * N have the same defect at one or two patches. With `clusters`, every
    image also follows one of so many poses, which moves all its patches a little."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(1, M, C, generator=g) + 0.3 * torch.randn(N, M, C, generator=g)
    if clusters:
        x += 0.3 * torch.randn(clusters, M, C, generator=g)[torch.arange(N) % clusters]
    n = round(share * N)
    x[:n, 7:9] = 1.5 * torch.randn(1, 2, C, generator=g) + 0.2 * torch.randn(n, 2, C, generator=g)
    return x, torch.arange(N) < n


def scored(x, **options):
    return consistency.mutual_scores([x], (1,), **options)


@pytest.mark.parametrize("share", [0.2, 0.3, 0.4, 0.45])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_shared_defect_is_found_and_raised(share, seed):
    x, labels = tokens(share, seed)
    scores, groups = scored(x)
    assert groups[0].images == tuple(range(round(share * N)))
    assert groups[0].share == pytest.approx(share)
    where = groups[0].patches.nonzero()[:, 1].unique().tolist()
    assert set(where) <= {7, 8}
    assert image_metrics(labels, scores.amax(dim=1))["auroc"] == 1
    plain_scores = msm.mutual_scores([x], (1,))
    if share >= 0.4:  # the plain method misses it: that is why this module exists
        assert image_metrics(labels, plain_scores.amax(dim=1))["auroc"] < 0.75
    outside = ~groups[0].patches
    torch.testing.assert_close(scores[outside], plain_scores[outside])


def test_false_alarms_on_normal_data():
    """Of 24 normal sets, half of them with images in 2 to 5 poses, not one is warned of."""
    runs = [tokens(seed=seed, clusters=0 if seed % 2 else 2 + seed % 4)[0] for seed in range(24)]
    assert sum(bool(scored(x)[1]) for x in runs) == 0


def test_without_groups_nothing_changes():
    x, _ = tokens(0)
    scores, groups = scored(x)
    assert groups == []
    torch.testing.assert_close(scores, msm.mutual_scores([x], (1,)))


def test_half_and_half_is_seen_but_not_which_half():
    x, _ = tokens(0.5)
    _, groups = scored(x)
    assert [g.images for g in groups] in ([tuple(range(10))], [tuple(range(10, 20))])


def test_a_majority_defect_passes_as_normal():
    """60 %: the defect is the rule, and by frequency alone nobody can say otherwise. Its images are never blamed."""
    x, labels = tokens(0.6)
    scores, groups = scored(x)
    assert all(not labels[list(g.images)].any() for g in groups)
    assert image_metrics(labels, scores.amax(dim=1))["auroc"] < 0.5


def test_rare_defects_are_left_to_the_method_itself():
    x, labels = tokens(0.1)  # two images, fewer than make a group
    scores, groups = scored(x)
    assert groups == []
    assert image_metrics(labels, scores.amax(dim=1))["auroc"] == 1


def test_correction_equals_eq_2_over_non_members_by_hand():
    x, _ = tokens(0.4, seed=3)
    scores, groups = scored(x.double())
    d = plain.distances(plain.aggregate(x, 1, (6, 6)))
    for i in groups[0].images:
        for m in groups[0].patches[i].nonzero().flatten().tolist():
            others = [j for j in range(N) if j not in groups[0].images]
            kept = sorted(d[i, j - (j > i), m] for j in others)[: int(0.3 * len(others))]
            assert scores[i, m] == pytest.approx(np.mean(kept), abs=1e-9)


def test_contrast_and_links_by_hand():
    """Four images, one patch each, at 0, 1, 2 and 9; and a reference at 9.5."""
    at = torch.tensor([0.0, 1.0, 2.0, 9.0, 9.5])
    full = (at[:4, None] - at)[..., None].abs()  # [4, 5, 1]
    found = links.Suspects(4, torch.arange(4), full[..., 0], torch.full((4,), 9.0), 9.0)
    members = torch.tensor([True, True, True, False, False])
    assert found.contrast(members)[0].tolist() == pytest.approx([9 / 2, 8 / 1, 7 / 2, 0])
    weights = links.graph(found, torch.ones(4, 5))
    for i in range(4):
        for j in range(4):
            strength = max(0.0, 1 - abs(at[i] - at[j]) / 9 / links.ENDURANCE) if i != j else 0
            assert weights[i, j] == pytest.approx(float(strength), abs=1e-6)


def test_a_pose_of_many_images_is_no_defect():
    """Eight images in another pose: every patch is nearer to theirs, and one has a gap as a defect's has."""
    g = torch.Generator().manual_seed(0)
    full = 0.6 + 0.05 * torch.rand(20, 20, M, generator=g)
    full[:8, :8] /= 2  # in all patches
    full[:8, 8:, 7], full[:8, :8, 7] = 0.72, 0.36
    full[range(20), range(20)] = 0
    assert links.linked(full) == []
    full[:8, :8] = torch.where(torch.arange(M) == 7, full[:8, :8], 0.6)  # and now at patch 7 alone
    full[range(8), range(8)] = 0
    assert [images for images, _ in links.linked(full)] == [tuple(range(8))]


def test_few_images_and_duplicates_are_no_trouble():
    for n in (2, 3, 4, 5):
        assert consistency.find(msm.stage_distances(tokens()[0][:n], (1,))[0]) == []
    x, _ = tokens(0)
    x[5:9] = x[5:6]  # duplicates agree on everything, and are nothing out of the ordinary
    scores, groups = scored(x)
    assert torch.isfinite(scores).all()
    assert groups == []


def test_references_are_outside_of_every_group():
    """With normal references a majority's defect is theirs alone: they score it."""
    x, labels = tokens(0.4, seed=1)
    normal = tokens(seed=1)[0][8:14]
    scores, groups = scored(x, references=[normal])
    plain_scores = msm.mutual_scores([x], (1,), references=[normal])
    assert groups[0].images == tuple(range(8))
    assert (scores >= plain_scores - 1e-6).all()
    d = msm.stage_distances(x, (1,), references=normal)[0]  # [20, 25, M]
    i = 3
    at = groups[0].patches[i].nonzero().flatten()
    others = [j - (j > i) for j in range(8, 20)] + list(range(19, 25))
    expected = d[i, others][:, at].sort(dim=0).values[: int(0.3 * len(others))].mean(dim=0)
    torch.testing.assert_close(scores[i, at], torch.maximum(expected, plain_scores[i, at]))
    assert image_metrics(labels, scores.amax(dim=1))["auroc"] == 1


def test_distances_to_all_others_are_needed():
    with pytest.raises(ValueError, match="all 4 others"):
        consistency.find(torch.rand(5, 3, 6))


def test_a_warning_names_images_and_share():
    x, _ = tokens(0.4)
    (text,) = consistency.describe(scored(x)[1], [f"{i}.png" for i in range(N)])
    assert text.startswith("8 of 20 images (40 %)")
    assert "0.png, 1.png, 2.png, 3.png, 4.png and others" in text


def test_the_pipeline_warns_and_corrects(tmp_path, pixel_backbone):
    """Four of ten photographs have the same dark spot, each a little differently lit."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for i in range(10):
        pixels = np.linspace(60, 200, 64)[:, None, None] + rng.normal(0, 3, (64, 64, 3))
        if i < 4:
            pixels[32:48, 32:48] = 20 + rng.normal(0, 3, (16, 16, 3))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(tmp_path / f"{i}.png")
    config, backbone = MuScConfig(image_size=64, stages=(1,), degrees=(1,), device="cpu", workers=0), pixel_backbone(64)
    plain_run, warned, right = (
        MuSc(config.replace(consistency=how), backbone=backbone).run(tmp_path) for how in ("off", "warn", "correct")
    )
    assert plain_run.notes == ()
    assert any("4 of 10 images (40 %)" in note for note in warned.notes)
    assert warned.notes == right.notes
    np.testing.assert_allclose(warned.anomaly_maps, plain_run.anomaly_maps, atol=1e-6)
    assert right.raw_image_scores[:4].min() > 1.5 * right.raw_image_scores[4:].max()
    assert plain_run.raw_image_scores[:4].min() < 1.5 * plain_run.raw_image_scores[4:].max()


def test_settings_that_cannot_be_combined_are_refused(tiny_config, photos):
    for changes in ({"consistency": "on"}, {"consistency": "warn", "references": 2}):
        with pytest.raises(ConfigError, match="consistency"):
            tiny_config.replace(**changes)


def test_references_and_tiles_go_with_it(tiny_config, photos):
    """All tiles as one pool, and reference images: without a shared defect nothing changes."""
    paths = sorted(photos.iterdir())
    for changes in ({"tiles": 2, "tile_pool": "all"}, {"tiles": 2}, {}):
        config = tiny_config.replace(degrees=(1,), **changes)
        references = None if changes else paths[4:]
        plain_run, corrected = (
            MuSc(config.replace(consistency=how)).run(paths[:4], references=references) for how in ("off", "correct")
        )
        np.testing.assert_allclose(corrected.anomaly_maps, plain_run.anomaly_maps, atol=1e-6)
