"""How often neighbours agree: against a loop, and the committed shares of CLIP's class tokens against their source."""

import os
from pathlib import Path

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from benchmarks import agreement as script
from musc.plugin.agreement import agreement, clip_agreement

MVTEC_AD, VISA = 1725, 2162  # test images of the data sets


def test_against_sklearn():
    generator = np.random.default_rng(0)
    tokens = generator.normal(size=(30, 5))
    tokens /= np.linalg.norm(tokens, axis=1, keepdims=True)
    labels = generator.integers(0, 2, 30)
    for k, share in agreement(labels, tokens, (2, 4, 9)).items():
        near = NearestNeighbors(n_neighbors=k).fit(tokens).kneighbors(tokens, return_distance=False)[:, 1:]
        assert share == pytest.approx((labels[near] == labels[:, None]).mean(), abs=1e-12)


def test_all_others_agree_by_chance():
    labels = np.array([0] * 6 + [1] * 4)
    tokens = np.random.default_rng(1).normal(size=(10, 3))
    assert agreement(labels, tokens, (10,))[10] == pytest.approx((6 * 5 + 4 * 3) / (10 * 9))


@pytest.mark.parametrize("window", [1, 4])
def test_a_window_holds_another_image(window):
    with pytest.raises(ValueError, match=f"window {window}: give whole numbers from 2"):
        agreement(np.array([0, 1, 1]), np.eye(3), (window,))


def test_the_table_is_of_whole_data_sets():
    table = clip_agreement()
    assert table.groupby("dataset")["images"].agg(["size", "sum"]).values.tolist() == [[15, MVTEC_AD], [12, VISA]]
    visa = table[table["dataset"] == "visa"]
    assert (visa["images"] - visa["normal"] == script.VISA_ANOMALOUS).all()
    chance = [
        100 * (n * (n - 1) + (N - n) * (N - n - 1)) / (N * (N - 1))
        for N, n in zip(table["images"], table["normal"], strict=True)
    ]
    assert np.allclose(table["chance"], chance, atol=0.006)


@pytest.mark.realdata
def test_the_table_is_what_the_tokens_give():
    path = Path(os.environ.get("MUSC_SHARED", "../shared")) / "data/clip_class_tokens.npz"
    if not path.is_file():
        pytest.skip(f"no class tokens at {path}")
    with np.load(path) as tokens:
        found = [script.row(key, tokens[key]) for key in sorted(tokens)]
    assert clip_agreement().to_dict("records") == found
    # shifted by one image the labels fit worse: the order is the one that is assumed
    shares = {1: [], 0: []}
    with np.load(path) as tokens:
        for key in tokens:
            x = tokens[key].astype(float)
            labels = script.labels_in_order(*key.split("/"), len(x))
            for shift, all_shares in shares.items():
                all_shares.append(agreement(np.roll(labels, shift), x, (2,))[2])
    assert np.mean(shares[0]) > np.mean(shares[1])
