"""Eq. 1-3 written out in float64, one patch loop at a time: the reference of the tests, slow and obvious."""

import math

import numpy as np


def aggregate(tokens, degree, grid):
    """[N, M, C] -> [N, M, C]: joint LayerNorm, mean of the zero-padded r x r neighbourhood, unit length."""
    tokens = np.asarray(tokens, dtype=np.float64)
    N, M, C = tokens.shape
    H, W = grid
    out = np.zeros((N, M, C))
    for i in range(N):
        image = (tokens[i] - tokens[i].mean()) / math.sqrt(tokens[i].var() + 1e-5)
        padded = np.pad(image.reshape(H, W, C), [(degree // 2, degree // 2)] * 2 + [(0, 0)])
        for y in range(H):
            for x in range(W):
                token = padded[y : y + degree, x : x + degree].sum(axis=(0, 1)) / degree**2
                out[i, y * W + x] = token / np.linalg.norm(token)
    return out


def distances(features, references=None):
    """[N, M, C] -> [N, N-1, M] (or [N, R, M]): || a - b || to the nearest patch, all differences formed."""
    features = np.asarray(features, dtype=np.float64)

    def nearest(a, b):
        return np.array([np.sqrt(((b - patch) ** 2).sum(axis=1)).min() for patch in a])

    if references is not None:
        references = np.asarray(references, dtype=np.float64)
        return np.array([[nearest(a, b) for b in references] for a in features])
    N = len(features)
    return np.array([[nearest(features[i], features[j]) for j in range(N) if j != i] for i in range(N)])


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
