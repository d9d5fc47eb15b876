import numpy as np
import plain
import pytest
import torch

from musc import lnamd


@pytest.mark.parametrize("grid", [(6, 6), (5, 7), (1, 9)])
@pytest.mark.parametrize("degree", [1, 3, 5])
def test_equals_the_loop_over_patches(grid, degree):
    tokens = torch.randn(3, grid[0] * grid[1], 8, dtype=torch.float64)
    np.testing.assert_allclose(lnamd.aggregate(tokens, degree, grid=grid), plain.aggregate(tokens, degree, grid))


def test_zeros_beyond_the_border_count_in_the_mean():
    tokens = torch.randn(1, 4, 3)
    normed = lnamd.layer_norm(tokens)
    corner = lnamd.aggregate(tokens, 3, normalize=False)[0, 0]
    torch.testing.assert_close(corner, normed[0].sum(dim=0) / 9)  # four patches of a 2 x 2 grid, five zeros


def test_unit_length_and_indifference_to_scale_and_shift():
    tokens = torch.randn(2, 16, 8)
    out = lnamd.aggregate(tokens, 3)
    torch.testing.assert_close(out.norm(dim=-1), torch.ones(2, 16))
    torch.testing.assert_close(lnamd.aggregate(7 * tokens + 2, 3), out, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_dtype_follows_the_tokens(dtype):
    assert lnamd.aggregate(torch.randn(1, 16, 8, dtype=dtype), 3).dtype == dtype


@pytest.mark.parametrize(
    ("M", "degree", "grid", "message"),
    [
        (15, 3, None, "no square number"),
        (16, 3, (3, 5), "3 x 5 has 15"),
        (16, 2, None, "aggregation degree 2"),
        (16, -1, None, "aggregation degree -1"),
    ],
)
def test_mistakes_are_named(M, degree, grid, message):
    with pytest.raises(ValueError, match=message):
        lnamd.aggregate(torch.randn(1, M, 4), degree, grid=grid)
