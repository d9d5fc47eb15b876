import numpy as np
import pytest

from musc.datasets import planted
from musc.errors import DataError


@pytest.fixture(scope="module")
def photographs():
    g = np.random.default_rng(0)
    return {name: g.integers(40, 200, (520, 530), dtype=np.uint8) for name in ("sand", "dust", "snow")}


def test_crops_are_the_photograph_but_for_what_the_masks_cover(photographs):
    surface = planted.texture(photographs, "dust")
    assert [s.label for s in surface.samples] == [0, 1] * 8
    assert {s.defect for s in surface.samples} == {"good", *planted.KINDS}
    for number, sample in enumerate(surface.samples):
        row, column = divmod(number, 4)
        there = photographs["dust"][128 * row : 128 * (row + 1), 128 * column : 128 * (column + 1)]
        crop = np.asarray(sample.image())
        assert (crop == crop[..., :1]).all()
        changed = crop[..., 0] != there
        if sample.label:
            mask = np.asarray(sample.mask()) > 0
            assert not changed[~mask].any()
            assert changed[mask].mean() > 0.8
            assert 0.001 < mask.mean() < 0.1
        else:
            assert sample.mask is None
            assert not changed.any()


def test_a_texture_is_the_same_each_time(photographs):
    first, second = (planted.texture(photographs, "sand") for _ in range(2))
    for a, b in zip(first.samples, second.samples, strict=True):
        assert (np.asarray(a.image()) == np.asarray(b.image())).all()


def test_photographs_that_do_not_do_are_named(photographs):
    with pytest.raises(DataError, match="at least two"):
        planted.texture({"sand": photographs["sand"]}, "sand")
    with pytest.raises(DataError, match=r"tiny is \[64, 64\]"):
        planted.texture({**photographs, "tiny": np.zeros((64, 64), np.uint8)}, "sand")
