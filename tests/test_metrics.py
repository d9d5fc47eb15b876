"""Metrics against scikit-learn, and PRO against loops over thresholds that label the masks with SciPy."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from sklearn.metrics import auc, average_precision_score, precision_recall_curve, roc_auc_score

from musc import metrics
from musc.metrics import image_metrics, pixel_metrics

BOTH = ("exact", "official")


def random_case(seed: int, *, n=6, height=16, width=20, levels=None, dtype=np.float32, share=0.06):
    """Blobs as masks (some images without any), smooth noisy maps, quantised to `levels` values where asked."""
    rng = np.random.default_rng(seed)
    masks = ndimage.gaussian_filter(rng.normal(size=(n, height, width)), (0, 1.5, 1.5))
    masks = masks > np.quantile(masks, 1 - share)
    masks[1] = masks[4] = False
    masks[0, 0, 0] = masks[2, -1, -1] = True  # regions at the border, most likely of one pixel
    maps = masks * rng.uniform(0, 2, size=(n, 1, 1)) + rng.normal(size=masks.shape)
    maps = ndimage.gaussian_filter(maps, (0, 1, 1))
    if levels:
        maps = np.round(maps * levels / np.ptp(maps)) / levels
    return masks, maps.astype(dtype)


def reference(labels, scores):
    """scikit-learn's AUROC, F1-max and AP."""
    labels, scores = np.ravel(labels), np.ravel(scores)
    precision, recall, _ = precision_recall_curve(labels, scores)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-300)
    return {
        "auroc": roc_auc_score(labels, scores),
        "f1_max": f1.max(),
        "ap": average_precision_score(labels, scores),
    }


def pro_curve(masks, maps, thresholds, found):
    """FPR and mean region recall at each threshold, from the maps themselves: found(map, threshold) -> bool map."""
    n_normal = sum((mask == 0).sum() for mask in masks)
    fprs, recalls = [], []
    for threshold in thresholds:
        false, region_recalls = 0, []
        for mask, scores in zip(masks, maps, strict=True):
            hit = found(scores, threshold)
            false += (hit & (mask == 0)).sum()
            labels, count = ndimage.label(mask, np.ones((3, 3)))
            region_recalls += [hit[labels == region].mean() for region in range(1, count + 1)]
        fprs.append(false / n_normal)
        recalls.append(np.mean(region_recalls))
    return np.array(fprs), np.array(recalls)


def brute_force_pro(masks, maps, max_fpr=0.3):
    thresholds = np.unique(np.concatenate([scores.ravel() for scores in maps]))[::-1]
    fprs, recalls = pro_curve(masks, maps, thresholds, np.greater_equal)
    area, before = 0.0, (0.0, 0.0)
    for fpr, recall in zip(fprs, recalls, strict=True):
        (fpr_0, recall_0), before = before, (fpr, recall)
        if fpr > max_fpr:
            recall = recall_0 + (recall - recall_0) * (max_fpr - fpr_0) / (fpr - fpr_0)
            return (area + (max_fpr - fpr_0) * (recall_0 + recall) / 2) / max_fpr
        area += (fpr - fpr_0) * (recall_0 + recall) / 2
    return area / max_fpr


def plain_official_pro(masks, maps, max_fpr=0.3):
    low, high = float(maps.min()), float(maps.max())
    thresholds = (low + np.arange(200) * (high - low) / 200).astype(maps.dtype)
    fprs, recalls = pro_curve(masks, maps, thresholds, np.greater)
    fprs, recalls = fprs[fprs < max_fpr], recalls[fprs < max_fpr]
    fprs = (fprs - fprs.min()) / (fprs.max() - fprs.min())
    return auc(fprs, recalls)


@pytest.mark.parametrize("levels", [None, 3, 20])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_pixel_metrics_agree_with_references(levels, dtype):
    masks, maps = random_case(levels or 0, levels=levels, dtype=dtype)
    found = pixel_metrics(masks, maps, pro=BOTH)
    expected = reference(masks, maps)
    expected |= {"pro": brute_force_pro(masks, maps), "pro_official": plain_official_pro(masks, maps)}
    assert found == pytest.approx(expected, abs=1e-9)
    assert pixel_metrics(masks, maps, pro="official")["pro"] == found["pro_official"]
    assert pixel_metrics(masks, maps)["pro"] == found["pro"]


@pytest.mark.parametrize("max_fpr", [0.01, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("levels", [None, 8])
def test_pro_follows_the_fpr_limit(max_fpr, levels):
    masks, maps = random_case(5, n=5, height=12, width=15, levels=levels, share=0.1)
    found = pixel_metrics(masks, maps, max_fpr=max_fpr)["pro"]
    assert found == pytest.approx(brute_force_pro(masks, maps, max_fpr), abs=1e-9)


@pytest.mark.parametrize("levels", [None, 4])
@pytest.mark.parametrize("n", [2, 3, 10, 300])
def test_image_metrics_agree_with_scikit_learn(n, levels):
    rng = np.random.default_rng(n)
    labels = rng.permutation(np.arange(n) % 3 == 0)
    scores = labels + rng.normal(size=n)
    scores = np.round(scores * levels) if levels else scores
    assert image_metrics(labels, scores) == pytest.approx(reference(labels, scores), abs=1e-9)
    assert image_metrics(labels.tolist(), scores.tolist()) == image_metrics(labels, scores)
    assert image_metrics(torch.from_numpy(labels), torch.from_numpy(scores)) == image_metrics(labels, scores)


def test_a_case_worked_by_hand():
    """Two regions (2 pixels and 1), 5 normal pixels; descending scores: P 9, N 8, P 7 = N 7, P 6, N 5, N 4, N 3."""
    masks = np.array([[[1, 1, 0, 0]], [[0, 0, 0, 1]]], np.uint8)
    maps = np.array([[[9, 7, 8, 7]], [[5, 4, 3, 6]]], np.float32)
    found = pixel_metrics(masks, maps, max_fpr=0.4)
    assert found["auroc"] == pytest.approx((5 + 3.5 + 3) / 15)  # normal pixels below, half of the equal ones
    assert found["ap"] == pytest.approx((1 / 1 + 2 / 4 + 3 / 5) / 3)
    assert found["f1_max"] == pytest.approx(2 * 3 / (3 + 5))
    # Recall 1/4 from FPR 0 to 1/5, then up to 1/2 at 2/5 (the tie): 1/4 * 1/5 + (1/4 + 1/2) / 2 * 1/5.
    assert found["pro"] == pytest.approx((0.25 * 0.2 + 0.375 * 0.2) / 0.4)
    # At a limit inside the tie the curve is cut at (3/10, 3/8).
    cut = pixel_metrics(masks, maps, max_fpr=0.3)["pro"]
    assert cut == pytest.approx((0.25 * 0.2 + (0.25 + 0.375) / 2 * 0.1) / 0.3)


def test_regions_touch_at_corners():
    masks, maps = np.zeros((1, 4, 4), bool), np.zeros((1, 4, 4), np.float32)
    masks[0, [0, 1, 3], [0, 1, 3]] = True  # one region of two pixels by a corner, and one of one pixel
    maps[0, 3, 3] = 2
    maps[0, 0, 0] = 1
    # Both stand above all normal pixels: recall (1/2 + 1) / 2 at FPR 0, then a straight line to (1, 1).
    end = 0.75 + 0.25 * 0.3
    assert pixel_metrics(masks, maps)["pro"] == pytest.approx((0.75 + end) / 2)


@pytest.mark.parametrize("blocks", [(7, 13), (1, 1), (1 << 19, 100)])
def test_parts_and_blocks_change_nothing(monkeypatch, blocks):
    masks, maps = random_case(8, levels=40)
    expected = pixel_metrics(masks, maps, pro=BOTH)
    monkeypatch.setattr(metrics, "_BLOCK", blocks[0])
    monkeypatch.setattr(metrics, "_PART", blocks[1])
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert pixel_metrics(masks, maps, pro=BOTH) == pytest.approx(expected, abs=1e-12)


def test_the_cuda_path_counts_alike(monkeypatch):
    """Its sort and look-up are plain torch, so a CPU tensor stands in for one on the GPU."""
    masks, maps = random_case(9, levels=40)
    expected = pixel_metrics(masks, maps, pro=BOTH)
    monkeypatch.setattr(metrics, "_as_scores", torch.as_tensor)
    monkeypatch.setattr(metrics, "_CUDA_PART", 700)
    assert pixel_metrics(masks, maps, pro=BOTH) == expected
    assert pixel_metrics(list(masks), list(maps), pro=BOTH) == expected
    maps[3, 0, 0] = np.nan
    with pytest.raises(ValueError, match=r"maps\[3\]"):
        pixel_metrics(masks, maps)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_equals_cpu():
    masks, maps = map(torch.from_numpy, random_case(10))
    assert pixel_metrics(masks.cuda(), maps.cuda(), pro=BOTH) == pixel_metrics(masks, maps, pro=BOTH)


def test_torch_equals_numpy_in_every_dtype():
    masks, maps = random_case(11)
    expected = pixel_metrics(masks, maps, pro=BOTH)
    tensor = torch.from_numpy(maps).requires_grad_()
    assert pixel_metrics(torch.from_numpy(masks), tensor, pro=BOTH) == expected
    assert pixel_metrics(masks.astype(np.uint8), tensor, pro=BOTH) == expected
    assert pixel_metrics(torch.from_numpy(masks).float(), maps, pro=BOTH) == expected
    halves = torch.from_numpy(maps).bfloat16()
    assert pixel_metrics(masks, halves) == pixel_metrics(masks, halves.float())
    whole = np.round(maps * 100).astype(np.int64)
    assert pixel_metrics(masks, whole) == pixel_metrics(masks, torch.from_numpy(whole).double())


def test_images_may_differ_in_size():
    (masks_a, maps_a), (masks_b, maps_b) = random_case(12, levels=60), random_case(13, height=10, width=8, share=0.2)
    masks, maps = [*masks_a, *masks_b], [*maps_a, *maps_b]
    found = pixel_metrics(masks, maps)
    flat = [np.concatenate([array.ravel() for array in arrays]) for arrays in (masks, maps)]
    assert found == pytest.approx(reference(*flat) | {"pro": brute_force_pro(masks, maps)}, abs=1e-9)
    tensors = [torch.from_numpy(scores) for scores in maps]
    assert pixel_metrics(masks, tensors) == found


def test_only_the_order_of_scores_counts():
    masks, maps = random_case(14, dtype=np.float64)
    expected = pixel_metrics(masks, maps)
    assert pixel_metrics(masks, np.exp(maps)) == expected
    assert pixel_metrics(masks, maps * 8 - 3) == expected
    scaled = pixel_metrics(masks, maps * 8, pro="official")["pro"]
    assert scaled == pixel_metrics(masks, maps, pro="official")["pro"]


def test_permuting_images_changes_nothing():
    masks, maps = random_case(15)
    order = np.random.default_rng(0).permutation(len(masks))
    expected = pixel_metrics(masks, maps, pro=BOTH)
    assert pixel_metrics(masks[order], maps[order], pro=BOTH) == pytest.approx(expected, abs=1e-12)


def test_perfect_and_constant_and_inverted_maps():
    masks, _ = random_case(16)
    perfect = pixel_metrics(masks, masks.astype(np.float32), pro=BOTH)
    assert perfect == pytest.approx({"auroc": 1, "f1_max": 1, "ap": 1, "pro": 1, "pro_official": 1})
    share = masks.mean()
    constant = pixel_metrics(masks, np.full(masks.shape, -7.5, np.float32), pro=BOTH)
    assert constant["auroc"] == 0.5
    assert constant["ap"] == pytest.approx(share)
    assert constant["f1_max"] == pytest.approx(2 * share / (1 + share))
    assert constant["pro"] == pytest.approx(0.15)  # the diagonal: half of max_fpr
    assert constant["pro_official"] == 0  # nothing is above the one threshold
    inverted = pixel_metrics(masks, 1 - masks.astype(np.float32), pro=BOTH)
    assert inverted["auroc"] == inverted["pro"] == inverted["pro_official"] == 0


def test_bad_pixels_are_refused():
    masks, maps = random_case(17)
    with pytest.raises(ValueError, match="no pixel of 1920 is anomalous"):
        pixel_metrics(np.zeros_like(masks), maps)
    with pytest.raises(ValueError, match="every pixel of 1920 is anomalous"):
        pixel_metrics(np.ones_like(masks), maps)
    for bad in (np.nan, np.inf, -np.inf):
        broken = maps.copy()
        broken[2, 3, 4] = bad
        with pytest.raises(ValueError, match=r"maps\[2\] holds NaN or infinite"):
            pixel_metrics(masks, broken)
    with pytest.raises(ValueError, match=r"masks\[0\] is \[16, 20\], maps\[0\] is \[15, 20\]"):
        pixel_metrics(masks, maps[:, 1:])
    with pytest.raises(ValueError, match="6 masks for 5 maps"):
        pixel_metrics(masks, maps[1:])
    with pytest.raises(ValueError, match="0 masks for 0 maps"):
        pixel_metrics(masks[:0], maps[:0])
    for wrong in (masks * np.uint8(255), masks * 0.5, -masks.astype(int)):
        with pytest.raises(ValueError, match="masks hold values other than 0 and 1"):
            pixel_metrics(wrong, maps)
    with pytest.raises(ValueError, match="choose from exact, official"):
        pixel_metrics(masks, maps, pro="fast")
    with pytest.raises(ValueError, match="max_fpr=0"):
        pixel_metrics(masks, maps, max_fpr=0.0)


def test_bad_images_are_refused():
    for labels in ([0, 0, 0], [1, 1, 1], []):
        with pytest.raises(ValueError, match=r"(no|every) image of \d is anomalous"):
            image_metrics(labels, [0.1, 0.2, 0.3][: len(labels)])
    with pytest.raises(ValueError, match=r"labels \[2\] and scores \[3\] differ"):
        image_metrics([0, 1], [0.1, 0.2, 0.3])
    with pytest.raises(ValueError, match="scores hold NaN or infinite"):
        image_metrics([0, 1], [0.1, float("nan")])
    with pytest.raises(ValueError, match="labels hold values other than 0 and 1"):
        image_metrics([0, 2], [0.1, 0.2])


def test_a_sort_is_shared_by_several_sets_of_masks():
    rng = np.random.default_rng(0)
    maps = rng.random((3, 20, 20), dtype=np.float32)
    ranked = metrics.rank(maps)
    for share in (0.1, 0.3):
        masks = rng.random(maps.shape) < share
        assert metrics.pixel_metrics(masks, maps, ranked=ranked) == metrics.pixel_metrics(masks, maps)


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**31), n=st.integers(2, 4), height=st.integers(4, 12), width=st.integers(4, 12),
    levels=st.none() | st.integers(1, 6), share=st.floats(0.02, 0.5), max_fpr=st.floats(0.05, 1),
)  # fmt: skip
def test_any_small_case_agrees_with_the_references(seed, n, height, width, levels, share, max_fpr):
    rng = np.random.default_rng(seed)
    masks = rng.random((n, height, width)) < share
    masks[0, 0, 0], masks[-1, -1, -1] = True, False
    maps = rng.normal(size=masks.shape)
    maps = (np.round(maps * levels) / levels if levels else maps).astype(np.float32)
    expected = reference(masks, maps) | {"pro": brute_force_pro(masks, maps, max_fpr)}
    assert pixel_metrics(masks, maps, max_fpr=max_fpr) == pytest.approx(expected, abs=1e-9)
