"""The procedural data set: deterministic, exactly masked, and varied where it says so."""

import hashlib
import pickle
import subprocess
import sys

import numpy as np
import pytest

from musc.datasets import synthetic
from musc.datasets.base import Rendered
from musc.datasets.synthetic import CATEGORIES, HARD, PRODUCTS, Mask, Photo
from musc.errors import DataError

ALL = (*CATEGORIES, *HARD)
KINDS = [(name, kind) for name in ALL for kind in PRODUCTS[name].defects]


def array(source):
    return np.asarray(source(), np.float32)


def digest(name):
    """Of two images and a mask of one category."""
    c = synthetic.category(name, good=1, defects=1, train=1, size=96, seed=3)
    pictures = [c.samples[0].image, c.samples[1].image, c.train[0].image, next(s.mask for s in c.samples if s.mask)]
    return hashlib.sha256(b"".join(p().tobytes() for p in pictures)).hexdigest()


def test_another_process_draws_the_same_bytes():
    code = "from tests.test_synthetic import digest; print(*map(digest, ('weave', 'board', 'bottle_top', 'screw')))"
    command = [sys.executable, "-c", code]
    env = {"PYTHONHASHSEED": "7", "PATH": "", "OMP_NUM_THREADS": "1"}
    root = __file__.rsplit("/tests/", 1)[0]
    there = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, check=True).stdout.split()
    assert there == [digest(name) for name in ("weave", "board", "bottle_top", "screw")]


@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_the_mask_is_where_the_defect_changed_the_picture(name, kind):
    for number in (0, 1):
        photo = Photo(name, f"test/{kind}", number, size=128)
        with_it, without = photo.pixels(), photo.pixels(defect=False)
        mask = array(Mask(photo))
        assert set(np.unique(mask)) == {0, 255}, "a mask is binary and not empty"
        assert 0 < (mask > 0).mean() <= 0.35
        change = np.abs(with_it - without).max(axis=0)
        assert change[mask == 0].max() < 8.1, "what lies outside the mask looks as if there were no defect"
        assert np.mean(change[mask == 0] > 4.1) < 5e-3
        assert np.mean(change[mask > 0] > 4) > 0.5
        assert change[mask > 0].max() > 12, "a person can see it"


def test_images_are_rgb_of_the_size_asked_for_and_masks_grey():
    for name in ALL:
        c = synthetic.category(name, good=1, defects=1, train=1, size=80)
        bad = next(s for s in c.samples if s.label)
        image, mask = bad.image(), bad.mask()
        assert (image.mode, image.size, mask.mode, mask.size) == ("RGB", (80, 80), "L", (80, 80))
        # A photograph: neither blown out nor black, and with sensor noise.
        pixels = array(bad.image)
        assert 40 < pixels.mean() < 225
        assert np.mean(pixels >= 255) < 0.05


@pytest.mark.parametrize("name", ALL)
def test_a_category_lists_what_was_asked_for(name):
    c = synthetic.category(name, good=7, defects=8, train=3)
    assert (c.dataset, c.name, len(c), len(c.train)) == ("synthetic", name, 15, 3)
    assert c.labeled
    assert c.has_masks
    names = [s.name for s in c.samples]
    folders = [n.split("/")[1] for n in names]
    assert folders == sorted(folders), "sorted by defect folder, then number"
    assert len(set(names)) == 15
    for s in (*c.samples, *c.train):
        assert (s.label, s.mask is None) == ((0, True) if s.defect == "good" else (1, False))
        assert s.name.split("/")[1] == s.defect
    keys = [s.image.key for s in (*c.samples, *c.train)] + [s.mask.key for s in c.samples if s.mask]
    assert len(set(keys)) == len(keys)
    assert len(set(PRODUCTS[name].defects)) >= 3


def test_sources_satisfy_the_protocol_and_survive_pickling():
    c = synthetic.category("wood", good=1, defects=1, size=48)
    for s in c.samples:
        for source in filter(None, (s.image, s.mask)):
            assert isinstance(source, Rendered)
            again = pickle.loads(pickle.dumps(source))
            assert again == source
            assert again.key == source.key
            assert again().tobytes() == source().tobytes()


def test_keys_tell_category_seed_size_and_generator_apart():
    keys = {
        Photo("wood", "test/good", 0).key,
        Photo("tile", "test/good", 0).key,
        Photo("wood", "train/good", 0).key,
        Photo("wood", "test/good", 0, seed=1).key,
        Photo("wood", "test/good", 0, size=128).key,
        Photo("wood", "test/stain", 0).key,
        Photo("wood", "test/stain", 0, planted=True).key,
    }
    assert len(keys) == 7
    assert all(f"v{synthetic.GENERATOR_VERSION}" in key for key in keys)


def test_an_image_does_not_depend_on_how_many_there_are():
    few = {s.name: s.image for s in synthetic.category("grid", good=2, defects=5).samples}
    many = {s.name: s.image for s in synthetic.category("grid", good=9, defects=20).samples}
    assert few.items() <= many.items()


def test_seeds_and_numbers_give_different_pictures_of_one_product():
    first, second = (array(Photo("weave", "test/good", k, size=96)) for k in (0, 1))
    other = array(Photo("weave", "test/good", 0, seed=1, size=96))
    for image in (second, other):
        assert np.abs(first - image).mean() > 4
        assert abs(first.mean() - image.mean()) < 12


def test_the_hard_category_lies_at_any_angle_and_the_easy_one_does_not():
    def angles(name):
        found = []
        for number in range(12):
            dark = 255 - array(Photo(name, "test/good", number, size=96)).mean(axis=2)
            dark = np.where(dark > 90, dark, 0)  # the screw, without the sheet of paper
            y, x = np.nonzero(dark)
            _, vectors = np.linalg.eigh(np.cov(np.stack([x, y])))
            found.append(np.degrees(np.arctan2(vectors[1, 1], vectors[0, 1])) % 180)
        doubled = np.exp(2j * np.radians(found))  # axes, so angles modulo 180 degrees
        return abs(doubled.mean())

    assert angles("screw") > 0.98
    assert angles("screw_random") < 0.75


def test_the_same_defect_is_planted_in_the_share_asked_for():
    c = synthetic.category("leather", good=12, defects=8, size=96, same_defect=0.4)
    bad = [s for s in c.samples if s.label]
    assert (len(c), len(bad)) == (20, 8)
    assert len({s.defect for s in bad}) == 1
    masks = [array(s.mask) > 0 for s in bad[:3]]
    overlap = (masks[0] & masks[1] & masks[2]).sum() / (masks[0] | masks[1] | masks[2]).sum()
    assert overlap > 0.5, "same kind, place and size"
    assert np.abs(array(bad[0].image) - array(bad[1].image)).mean() > 2, "in different pieces of leather"
    usual = synthetic.category("leather", good=12, defects=8, size=96)
    assert not {s.image.key for s in bad} & {s.image.key for s in usual.samples}
    assert not any(s.label for s in synthetic.category("leather", same_defect=0.0).samples)


def test_defects_are_graded_in_size():
    areas = [(array(Mask(Photo("wood", "test/stain", k, size=96))) > 0).mean() for k in range(8)]
    assert max(areas) > 4 * min(areas)


def test_wrong_arguments_are_named():
    with pytest.raises(DataError, match=r"no synthetic category 'brick'.*board.*screw_random"):
        synthetic.category("brick")
    with pytest.raises(DataError, match=r"same_defect = 1\.5.*from 0 to 1"):
        synthetic.category("wood", same_defect=1.5)
