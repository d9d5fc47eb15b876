"""The seven metrics against scikit-learn and a PRO loop over 200 thresholds; the peak memory at 200 maps.

`run(quick)` returns rows for `python -m benchmarks`. The plain way is what a reader would write first: three calls of
scikit-learn, each of which sorts all pixels, and, per threshold and per map, SciPy's labelling and a count per region.
Both ways must agree, or `run` fails.
"""

import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from scipy import ndimage
from sklearn.metrics import auc, average_precision_score, precision_recall_curve, roc_auc_score

from musc.metrics import image_metrics, pixel_metrics

STEPS, MAX_FPR = 200, 0.3
MIB = 1 << 20


def run(quick: bool) -> list[dict[str, Any]]:
    """One row for the time of all seven metrics, one for the peak memory of the pixel metrics."""
    n, size, n_memory = (12, 224, 40) if quick else (83, 518, 200)
    return [_time_row(n, size, repeats=1 if not quick else 5), _memory_row(n_memory, size, plain=not quick)]


def draw_maps(n: int, size: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Masks and anomaly maps like MuSc's: token scores on a coarse grid, upsampled; a third of the images is normal.

    Returns bool and float32, [N, size, size] each: about 3 % anomalous pixels, 1 to 6 ragged regions per defect image.
    The maps find most of each defect, displaced and blurred, and some are faint.
    """
    rng = np.random.default_rng(seed)
    masks, maps = np.zeros((n, size, size), bool), np.empty((n, size, size), np.float32)
    grid = max(4, size // 14)
    y, x = np.mgrid[:size, :size].astype(np.float32) / size
    for i in range(n):
        ragged = _upsample(rng.normal(size=(grid // 2, grid // 2)), size)
        for _ in range(rng.integers(1, 7) if i % 3 else 0):
            (a, b), (radius, stretch) = rng.uniform(0.1, 0.9, 2), rng.uniform((0.03, 1), (0.1, 3))
            masks[i] |= (y - a) ** 2 * stretch + (x - b) ** 2 / stretch < (radius + 0.012 * ragged).clip(0) ** 2
        tokens = ndimage.gaussian_filter(_shrink(masks[i], grid), 0.7) * rng.uniform(0.1, 0.5)
        tokens = np.roll(tokens, rng.integers(-1, 2), axis=rng.integers(0, 2))
        maps[i] = _upsample(0.3 + tokens + 0.05 * rng.normal(size=tokens.shape), size)
    return masks, maps


def seven(masks: np.ndarray, maps: np.ndarray) -> dict[str, float]:
    """Ours, named as in the paper's tables; "pro" by 200 thresholds as in the plain way, exact PRO beside it."""
    image = image_metrics(masks.any(axis=(1, 2)), maps.max(axis=(1, 2)))
    pixel = pixel_metrics(masks, maps, pro=("official", "exact"))
    return {f"image_{name}": value for name, value in image.items()} | pixel


def plain_seven(masks: np.ndarray, maps: np.ndarray, seconds: dict[str, float]) -> dict[str, float]:
    """The plain way; adds its parts' times to `seconds`."""
    image = _scikit_learn(masks.any(axis=(1, 2)), maps.max(axis=(1, 2)), {})
    pixel = _scikit_learn(masks.ravel(), maps.ravel(), seconds)
    start = time.perf_counter()
    pixel["pro"] = _plain_pro(masks, maps)
    seconds["PRO loop"] = time.perf_counter() - start
    return {f"image_{name}": value for name, value in image.items()} | pixel


def _scikit_learn(labels: np.ndarray, scores: np.ndarray, seconds: dict[str, float]) -> dict[str, float]:
    start = time.perf_counter()
    auroc = roc_auc_score(labels, scores)
    seconds["AUROC"] = time.perf_counter() - start
    ap = average_precision_score(labels, scores)
    seconds["AP"] = time.perf_counter() - start - seconds["AUROC"]
    precision, recall, _ = precision_recall_curve(labels, scores)
    f1_max = (2 * precision * recall / np.maximum(precision + recall, 1e-300)).max()
    seconds["F1-max"] = time.perf_counter() - start - seconds["AUROC"] - seconds["AP"]
    return {"auroc": float(auroc), "f1_max": float(f1_max), "ap": float(ap)}


def _plain_pro(masks: np.ndarray, maps: np.ndarray) -> float:
    low, high = float(maps.min()), float(maps.max())
    fprs, recalls = [], []
    for threshold in (low + np.arange(STEPS) * (high - low) / STEPS).astype(maps.dtype):
        found = maps > threshold
        region_recalls = []
        for mask, hits in zip(masks, found, strict=True):
            labels, count = ndimage.label(mask, np.ones((3, 3)))
            areas = np.bincount(labels.ravel(), minlength=count + 1)
            region_recalls.extend((np.bincount(labels[hits], minlength=count + 1) / np.maximum(areas, 1))[1:])
        fprs.append((found & ~masks).sum() / (~masks).sum())
        recalls.append(np.mean(region_recalls))
    fpr, recall = np.array(fprs), np.array(recalls)
    fpr, recall = fpr[fpr < MAX_FPR], recall[fpr < MAX_FPR]
    return float(auc((fpr - fpr.min()) / (fpr.max() - fpr.min()), recall))


def _time_row(n: int, size: int, repeats: int) -> dict[str, Any]:
    masks, maps = draw_maps(n, size)
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        ours = seven(masks, maps)
        times.append(time.perf_counter() - start)
    parts: dict[str, float] = {}
    start = time.perf_counter()
    plain = plain_seven(masks, maps, parts)
    plain_s = time.perf_counter() - start
    worst = max(abs(ours[name] - value) for name, value in plain.items())
    if worst > 1e-9:
        raise AssertionError(f"the two ways differ by {worst:.1e}: {ours} against {plain}")
    split = ", ".join(f"{name} {value:.2f} s" for name, value in parts.items())
    return {
        "benchmark": "seven metrics",
        "ours": "one sort",
        "plain": f"scikit-learn + PRO loop of {STEPS} thresholds",
        "ours_s": median(times),
        "plain_s": plain_s,
        "ratio": plain_s / median(times),
        "size": f"{n} maps of {size} x {size}, {masks.mean():.1%} anomalous",
        "note": f"plain: {split}; largest difference {worst:.0e}; ours: median of {repeats}, with exact PRO as well",
    }


def _memory_row(n: int, size: int, plain: bool) -> dict[str, Any]:
    """The peak beyond the inputs, in bytes in the note; each way in a process of its own. Without the PRO loop."""
    ours = _peak_in_child("ours", n, size)
    row = {
        "benchmark": "pixel metrics, peak memory",
        "ours": "one sort",
        "plain": "scikit-learn (no PRO)" if plain else "not run",
        "ours_s": ours["seconds"],
        "plain_s": None,
        "ratio": None,
        "size": f"{n} maps of {size} x {size}",
        "note": f"beyond {ours['inputs'] / MIB:.0f} MiB of inputs: ours {ours['peak'] / MIB:.0f} MiB",
        "ours_bytes": ours["peak"],
    }
    if plain:
        other = _peak_in_child("plain", n, size)
        row |= {"plain_s": other["seconds"], "ratio": other["seconds"] / ours["seconds"], "plain_bytes": other["peak"]}
        row["note"] += f", scikit-learn {other['peak'] / MIB:.0f} MiB"
    return row


def _peak_in_child(who: str, n: int, size: int) -> dict[str, float]:
    command = [sys.executable, str(Path(__file__).resolve()), who, str(n), str(size)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def _child(who: str, n: int, size: int) -> None:
    """Prints the peak resident memory of one way beyond what stood before it: the inputs and the imports."""
    call = seven if who == "ours" else lambda masks, maps: _scikit_learn(masks.ravel(), maps.ravel(), {})
    call(*draw_maps(3, 64))  # loads what is loaded lazily
    masks, maps = draw_maps(n, size)
    before = resident_memory()
    start = time.perf_counter()
    call(masks, maps)
    seconds = time.perf_counter() - start
    print(json.dumps({"peak": peak_memory() - before, "inputs": masks.nbytes + maps.nbytes, "seconds": seconds}))


def peak_memory() -> int:
    """Bytes resident at most. On Linux a child's ru_maxrss starts at its parent's, VmHWM at its own."""
    status = Path("/proc/self/status")
    if status.exists():
        return int(status.read_text().split("VmHWM:")[1].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def resident_memory() -> int:
    """Bytes resident now; where the system does not tell, their peak so far."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * resource.getpagesize() if statm.exists() else peak_memory()


def _upsample(tokens: np.ndarray, size: int) -> np.ndarray:
    return ndimage.zoom(tokens, size / len(tokens), order=3, mode="nearest", grid_mode=True)[:size, :size]


def _shrink(mask: np.ndarray, grid: int) -> np.ndarray:
    """Share of anomalous pixels per cell of a grid x grid layout."""
    edges = np.linspace(0, len(mask), grid + 1).astype(int)[:-1]
    sums = np.add.reduceat(np.add.reduceat(mask.astype(np.float32), edges, axis=0), edges, axis=1)
    return sums * (grid / len(mask)) ** 2


if __name__ == "__main__":
    _child(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
