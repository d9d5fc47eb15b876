"""Eq. 1-3 written out in float64, every difference of two patches formed: the reference of the tests."""

import math

import numpy as np
from scipy.spatial.distance import cdist


def aggregate(tokens, degree, grid):
    """[N, M, C] -> [N, M, C]: joint LayerNorm, mean of the zero-padded r x r neighbourhood, unit length."""
    tokens = np.asarray(tokens, dtype=np.float64)
    N, M, C = tokens.shape
    H, W = grid
    out = np.zeros((N, M, C))
    for i in range(N):
        image = (tokens[i] - tokens[i].mean()) / math.sqrt(tokens[i].var() + 1e-5)
        padded = np.pad(image.reshape(H, W, C), [(degree // 2, degree // 2)] * 2 + [(0, 0)])
        mean = sum(padded[dy : dy + H, dx : dx + W] for dy in range(degree) for dx in range(degree)) / degree**2
        out[i] = mean.reshape(M, C) / np.linalg.norm(mean.reshape(M, C), axis=1, keepdims=True)
    return out


def distances(features, references=None):
    """[N, M, C] -> [N, N-1, M] (or [N, R, M]): || a - b || to the nearest patch, all differences formed."""
    features = np.asarray(features, dtype=np.float64)
    if references is not None:
        references = np.asarray(references, dtype=np.float64)
        return np.array([[cdist(a, b).min(axis=1) for b in references] for a in features])
    N = len(features)
    return np.array([[cdist(features[i], features[j]).min(axis=1) for j in range(N) if j != i] for i in range(N)])


def interval_average(d, low_percent=0, high_percent=30, reduction=np.mean):
    """[N, J, M] -> [N, M]; percent as whole numbers, so that the floor is exact."""
    J = d.shape[1]
    low = min(low_percent * J // 100, J - 1)
    high = max(high_percent * J // 100, low + 1)
    return reduction(np.sort(d, axis=1)[:, low:high], axis=1)


def mutual_scores(stages, degrees=(1, 3, 5), grid=None, references=None, low=0, high=30, reduction=np.mean):
    """List of [N, M, C] -> [N, M]."""
    parts = []
    for n, stage in enumerate(stages):
        for degree in degrees:
            features = aggregate(stage, degree, grid)
            d = distances(features)
            if references is not None:
                d = np.concatenate([d, distances(features, aggregate(references[n], degree, grid))], axis=1)
            parts.append(interval_average(d, low, high, reduction))
    return np.mean(parts, axis=0)
