import math

import pytest
import torch
from jaxtyping import TypeCheckError

from musc import rscin


def dense(scores, tokens, windows):
    """Eq. 5 word for word, with N x N masks, in float64."""
    C = scores.double()
    C = (C - C.min()) / (C.max() - C.min())
    W = tokens.double() @ tokens.double().T
    N = len(C)
    total = C.clone()
    for k in windows:
        M = torch.zeros_like(W)
        for i in range(N):
            others = sorted((j for j in range(N) if j != i), key=lambda j: -W[i, j].item())
            M[i, [i, *others][: N if k == math.inf else int(k)]] = 1
        D = torch.diag((M * W).sum(1))
        total += torch.linalg.inv(D) @ (M * W) @ C
    return total / (len(windows) + 1)


@pytest.fixture
def sample():
    g = torch.Generator().manual_seed(0)
    scores = torch.rand(40, generator=g)
    tokens = torch.nn.functional.normalize(torch.rand(40, 16, generator=g), dim=1)
    return scores, tokens


@pytest.mark.parametrize("windows", [(2, 3), (8, 9), (1,), (5,), (math.inf,), (2, math.inf), ()])
def test_equals_dense_float64(sample, windows):
    scores, tokens = sample
    torch.testing.assert_close(
        rscin.rescore(scores, tokens, windows), dense(scores, tokens, windows).float(), atol=1e-6, rtol=0
    )


def test_worked_example():
    # Three images: 0 and 1 look alike (similarity 0.8), 2 is apart. Scores 0, 4, 2 become 0, 1, 0.5.
    tokens = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]])
    got = rscin.rescore(torch.tensor([0.0, 4.0, 2.0]), tokens, (2,))
    # window 2 of image 0: itself (1.0) and image 1 (0.8); of image 2: itself and image 1 (0.6)
    expected = [(0 + 0.8 / 1.8) / 2, (1 + 1 / 1.8) / 2, (0.5 + (0.5 + 0.6) / 1.6) / 2]
    torch.testing.assert_close(got, torch.tensor(expected))


def test_window_one_is_the_identity_on_minmax_scores(sample):
    scores, tokens = sample
    tokens[1] = tokens[0]  # an exact duplicate must not take the image's own place
    assert torch.equal(rscin.rescore(scores, tokens, (1,)), rscin.minmax(scores))


def test_permuting_images_permutes_scores(sample):
    scores, tokens = sample
    p = torch.randperm(len(scores), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(rscin.rescore(scores[p], tokens[p]), rscin.rescore(scores, tokens)[p])


def test_scale_of_scores_is_irrelevant(sample):
    scores, tokens = sample
    torch.testing.assert_close(rscin.rescore(7 * scores + 3, tokens), rscin.rescore(scores, tokens))


def test_equal_scores_stay_equal(sample):
    assert torch.equal(rscin.rescore(torch.full((40,), 2.5), sample[1]), torch.zeros(40))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_dtype_follows_the_scores(sample, dtype):
    assert rscin.rescore(sample[0].to(dtype), sample[1]).dtype == dtype


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s, t: (s, t, (41,)), "window 41"),
        (lambda s, t: (s, t, (0,)), "window 0"),
        (lambda s, t: (s, t, (2.5,)), r"window 2\.5"),
        (lambda s, t: (s * math.nan, t, (2,)), "NaN"),
        (
            lambda s, t: (s, t * torch.where(torch.arange(40) % 2 == 0, 1.0, -1.0)[:, None], (math.inf,)),
            "sum to",
        ),
    ],
)
def test_errors_name_the_value(sample, change, message):
    with pytest.raises(ValueError, match=message):
        rscin.rescore(*change(*sample))


def test_one_token_per_score(sample):
    # The suite's type checker sees the wrong length first; users without it get the function's own error.
    with pytest.raises((ValueError, TypeCheckError), match=r"5 image scores but 40 class tokens|f32\[5\]"):
        rscin.rescore(sample[0][:5], sample[1])
