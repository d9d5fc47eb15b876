"""Pictures that are changed on purpose show the change, all of it and nothing else."""

import numpy as np
import pytest

from musc.datasets import altered, load_category
from musc.datasets.images import content_key, read_image, read_mask


@pytest.fixture(scope="module")
def samples():
    return load_category("synthetic", None, "board", good=1, defects=1, train=0, size=64).samples


def pixels(sample):
    return np.asarray(read_image(sample.image)).astype(int)


def test_a_shift_moves_picture_and_mask_together(samples):
    flawed = next(s for s in samples if s.label)
    moved = altered.shifted(flawed, 0.25, -0.125)  # 16 pixels to the right, 8 up
    np.testing.assert_array_equal(pixels(moved)[:56, 16:], pixels(flawed)[8:, :48])
    before, after = read_mask(flawed.mask), read_mask(moved.mask)
    np.testing.assert_array_equal(after[:56, 16:], before[8:, :48])


def test_light_scales_and_slopes(samples):
    before = pixels(samples[0])
    np.testing.assert_allclose(pixels(altered.lit(samples[0], 0.5)), before / 2, atol=0.51)
    sloped = pixels(altered.lit(samples[0], 0.5, 0.4))
    np.testing.assert_allclose(sloped[:, 0], before[:, 0] * 0.3, atol=0.51)
    np.testing.assert_allclose(sloped[:, -1], before[:, -1] * 0.7, atol=0.51)


def test_copies_and_dots_change_what_their_mask_says(samples):
    good = next(s for s in samples if not s.label)
    copy = altered.copied(good, (0.0, 0.0, 0.25, 0.125), (0.5, 0.5))
    np.testing.assert_array_equal(pixels(copy)[32:40, 32:48], pixels(good)[:8, :16])
    dot = altered.dotted(good, (0.25, 0.5), 5)
    for changed in (copy, dot):
        assert changed.label == 1
        differs = np.abs(pixels(changed) - pixels(good)).max(axis=2) > 0
        mask = read_mask(changed.mask) > 0
        assert differs.any()
        assert not differs[~mask].any()
    assert (read_mask(copy.mask) > 0).sum() == 8 * 16


def test_keys_tell_changes_apart(samples):
    s = samples[0]
    changes = [s, altered.lit(s, 0.5), altered.lit(s, 0.6), altered.shifted(s, 0.1, 0), altered.dotted(s, (0, 0), 3)]
    assert len({content_key(c.image) for c in changes}) == len(changes)
