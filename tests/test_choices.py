import pytest
import torch

from musc import msm
from musc.features import Features
from musc.scoring import choices, consistency


@pytest.fixture
def features():
    g = torch.Generator().manual_seed(0)
    stages = [torch.randn(7, 9, 8, generator=g) for _ in range(2)]
    return Features(stages, None, ((3, 3), (3, 3)), (), ())


def test_a_choice_of_images_is_scored_as_if_it_were_all(features):
    full = choices.all_distances(features, (1, 3))
    assert full.shape == (4, 7, 7, 9)
    assert (full.diagonal(dim1=1, dim2=2) == 0).all()
    for rows in ([0, 1], [6, 2, 3, 0], list(range(7))):
        alone = msm.mutual_scores([stage[rows] for stage in features.patch_tokens], (1, 3))
        torch.testing.assert_close(choices.patch_scores(full, rows), alone, atol=1e-5, rtol=0)


def test_a_window_is_handed_on(features):
    full = choices.all_distances(features, (1,), position_window=0)
    alone = msm.mutual_scores(list(features.patch_tokens), (1,), grid=(3, 3), position_window=0)
    torch.testing.assert_close(choices.patch_scores(full, list(range(7))), alone, atol=1e-5, rtol=0)


def test_the_correction_is_that_of_a_run(features):
    shared = [stage.clone() for stage in features.patch_tokens]
    for stage in shared:
        stage[:3, 4] = 9 * torch.ones(8)[:, None].T * torch.tensor([1.0, -1, 1, -1, 1, -1, 1, -1])
    same = Features(shared, None, features.grids, (), ())
    plain, corrected, groups = choices.corrected_scores(choices.all_distances(same, (1,)), list(range(7)))
    whole, found = consistency.mutual_scores(shared, (1,))
    assert [g.images for g in groups] == [g.images for g in found]
    torch.testing.assert_close(corrected, whole, atol=1e-5, rtol=0)
    torch.testing.assert_close(plain, msm.mutual_scores(shared, (1,)), atol=1e-5, rtol=0)
