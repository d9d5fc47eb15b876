"""From scores to decisions: a threshold on image scores, without labels, and an estimate of its false alarms.

The paper leaves the threshold open. All thresholds here stand on the scale of `raw_image_scores`: an image score is the
maximum of the anomaly map, so the same number cuts the map into anomalous and normal pixels, and an image counts as
anomalous exactly where a pixel of its map does. Everywhere "anomalous" means "score >= threshold".
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special  # scipy.stats takes half a second to import

from musc.errors import ConfigError

METHODS = ("robust", "mixture", "f1-max", "none")
DEFAULT = "robust"
FALSE_ALARM_RATE = 0.01  # what the thresholds without labels aim at; `robust` at no less than one image of the batch
FEWEST = 5  # scores, below which no spread can be told
BANDWIDTH = 1.3  # of the mode, in units of Silverman's rule: less follows single scores, more blurs two groups into one
MAJOR = 0.5  # a mode this high, relative to the highest, may be that of the normal images


@dataclass(frozen=True)
class Threshold:
    """A score >= value is anomalous.

    value: on the scale of the scores. method: how it was found. false_alarm_rate: the share of normal images at or
    above it, estimated (measured with "f1-max"), None where nothing can be said. note: what to know about it.
    """

    value: float
    method: str
    false_alarm_rate: float | None = None
    note: str = ""


def choose(method: str | float, scores: ArrayLike, labels: ArrayLike | None = None) -> Threshold | None:
    """The threshold of a method in METHODS, or a fixed one given as a number; None for "none".

    scores: [N], finite; labels: [N], 0 or 1, which only "f1-max" uses. Raises ConfigError where `check` does.

    Example:
        >>> choose("f1-max", [0.1, 0.2, 0.9], labels=[0, 0, 1]).value > 0.2, choose("none", [0.1, 0.2, 0.9])
        (True, None)
    """
    check(method, labels)
    if method == "none":
        return None
    if method == "robust":
        return robust(scores)
    if method == "mixture":
        return mixture(scores)
    if method == "f1-max":
        assert labels is not None  # check has seen to it
        return f1_max_threshold(labels, scores)
    return fixed(float(method), scores)


def check(method: str | float, labels: ArrayLike | Sequence[int | None] | None = None) -> None:
    """Raises ConfigError where the method is unknown, or is "f1-max" and the labels do not hold both classes."""
    if method == "f1-max":
        known = set() if labels is None else set(np.asarray(labels, dtype=object).tolist())
        if known != {0, 1}:
            raise ConfigError('threshold "f1-max" needs labels, both normal and anomalous: use robust or mixture.')
    elif isinstance(method, str) and method not in METHODS:
        raise ConfigError(f"threshold = {method!r}: choose one of {', '.join(METHODS)}, or a number.")
    elif not isinstance(method, str) and not (isinstance(method, Real) and math.isfinite(method)):
        raise ConfigError(f'threshold = {method!r}: give a finite number, or "none" for no decisions.')


def robust(scores: ArrayLike, false_alarm_rate: float | None = None) -> Threshold:
    """A threshold from the centre of the normal scores and their spread below it.

    Anomalies score high, so they contaminate the upper side only: the lowest major mode of the scores' density is the
    centre of the normal images, and the root mean square distance of the scores below it their spread. The threshold is
    the quantile of Student's t that lets `false_alarm_rate` of the normal images pass, widened for the uncertainty of
    both estimates. Logarithms of the scores are used where all are positive, since distances are skewed to the right.

    The rate is 1 %, but no less than 1 / N: of ten images, a threshold that only one normal image in a hundred may pass
    lies where hardly a defect gets (measured by `benchmarks.default_threshold`).

    scores: [N], finite. Holds where more than about a third of the images is normal and their log scores are about
    symmetric; a longer upper tail gives more false alarms than estimated (Gumbel scores of skewness 0.9 in their
    logarithm: 4 to 9 % where 1 % is estimated, N = 150). Below 5 scores nothing is flagged.
    """
    x = _finite(scores)
    fit = _NormalPart.of(x)
    if fit is None:
        return _no_alarm(x, "robust")
    rate = max(FALSE_ALARM_RATE, 1 / len(x)) if false_alarm_rate is None else false_alarm_rate
    return Threshold(_float32(fit.quantile(rate)), "robust", rate, _few(x))


def mixture(scores: ArrayLike, false_alarm_rate: float = FALSE_ALARM_RATE) -> Threshold:
    """A threshold from one or two Gaussians of the log scores, whichever the BIC prefers.

    Two: where a score is as likely anomalous as normal; the false alarms are the normal component's tail beyond it.
    One: nothing tells anomalies apart, and the threshold is the quantile that lets `false_alarm_rate` pass.

    scores: [N], finite; used as they are where one is not positive. Below 5 scores nothing is flagged.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    x = _finite(scores)
    if len(x) < FEWEST or np.ptp(x) == 0:
        return _no_alarm(x, "mixture")
    logs = bool(x.min() > 0)
    v = np.log(x) if logs else x
    v = ((v - v.mean()) / v.std())[:, None]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        one, two = (GaussianMixture(k, n_init=3, reg_covar=1e-4, random_state=0).fit(v) for k in (1, 2))
    if one.bic(v) <= two.bic(v):
        at, rate = -special.ndtri(false_alarm_rate), false_alarm_rate
        note = "one component: nothing tells anomalous images from normal ones."
    else:
        normal = int(two.means_[:, 0].argmin())
        low, sd = float(two.means_[normal, 0]), math.sqrt(two.covariances_[normal, 0, 0])
        line = np.linspace(low, max(v.max(), two.means_.max()), 2000)
        beyond = two.predict_proba(line[:, None])[:, normal] < 0.5
        at = float(line[beyond.argmax()]) if beyond.any() else float(line[-1])
        rate = float(special.ndtr((low - at) / sd))
        note = f"two components: {100 * two.weights_[1 - normal]:.0f} % of the images in the anomalous one."
    raw = np.log(x) if logs else x
    value = raw.mean() + at * raw.std()
    return Threshold(_float32(math.exp(value) if logs else value), "mixture", rate, f"{note} {_few(x)}".strip())


def f1_max_threshold(labels: ArrayLike, scores: ArrayLike) -> Threshold:
    """The threshold of the largest F1 (Sec. 4.1), halfway to the next lower score; its false alarms are counted.

    labels: [N], 0 normal, 1 anomalous, both present; scores: [N], finite. Of equally good ones the highest is taken.

    Example:
        >>> threshold = f1_max_threshold([0, 0, 1, 1], [0.1, 0.2, 0.6, 0.9])
        >>> round(threshold.value, 3), threshold.false_alarm_rate
        (0.4, 0.0)
    """
    x, anomalous = _finite(scores), np.asarray(labels).astype(bool)
    if len(x) != len(anomalous) or anomalous.all() or not anomalous.any():
        raise ConfigError("f1-max needs one label per score, with normal and anomalous images among them.")
    levels = np.unique(x)[::-1]  # every distinct score as a threshold, falling
    hits = np.array([(x[anomalous] >= t).sum() for t in levels])
    flagged = np.array([(x >= t).sum() for t in levels])
    best = int((2 * hits / (flagged + anomalous.sum())).argmax())
    value = float(levels[best])
    if best + 1 < len(levels):
        halfway = _float32((value + levels[best + 1]) / 2)
        value = halfway if levels[best + 1] < halfway <= value else value
    rate = float((x[~anomalous] >= value).mean())
    return Threshold(value, "f1-max", rate, "chosen with the labels, and its false alarms counted by them.")


def fixed(value: float, scores: ArrayLike) -> Threshold:
    """A threshold given by the user, with its false alarms estimated as `robust` does."""
    x = _finite(scores)
    fit = _NormalPart.of(x)
    return Threshold(value, "fixed", None if fit is None else fit.false_alarms(value), _few(x))


@dataclass(frozen=True)
class _NormalPart:
    """Student's t around the normal scores: centre and scale of their logarithms (or of the scores), and freedom."""

    centre: float
    scale: float
    freedom: int
    logs: bool

    @classmethod
    def of(cls, x: NDArray[np.float64]) -> _NormalPart | None:
        if len(x) < FEWEST or np.ptp(x) == 0:
            return None
        logs = bool(x.min() > 0)
        v = np.log(x) if logs else x
        centre = _lowest_mode(v)
        below = centre - v[v <= centre]
        if not len(below):  # the mode lies below all: many equal lowest scores, as copies have
            return None
        # a new value beside n known ones has 1 + 1/n times their variance; a mode is less certain than their mean
        scale = math.sqrt(float(np.mean(below**2)) * (1 + 4 / len(below)))
        return cls(centre, scale, len(below), logs) if scale > 0 else None

    def quantile(self, rate: float) -> float:
        at = self.centre - self.scale * float(special.stdtrit(self.freedom, rate))
        return math.exp(at) if self.logs else at

    def false_alarms(self, value: float) -> float:
        if self.logs and value <= 0:
            return 1.0
        at = math.log(value) if self.logs else value
        return float(special.stdtr(self.freedom, (self.centre - at) / self.scale))


def _lowest_mode(v: NDArray[np.float64]) -> float:
    """The lowest major mode of a Gaussian kernel density."""
    quartiles = float(np.subtract(*np.percentile(v, [75, 25]))) / 1.34
    width = BANDWIDTH * 0.9 * min(v.std(), quartiles or v.std()) * len(v) ** -0.2
    line = np.linspace(v.min() - width, v.max() + width, 512)
    density = np.exp(-0.5 * ((line[:, None] - v) / width) ** 2).sum(axis=1)
    inside = density[1:-1]
    peaks = (inside >= density[:-2]) & (inside > density[2:]) & (inside >= MAJOR * density.max())
    return float(line[1 + int(peaks.argmax())]) if peaks.any() else float(line[density.argmax()])


def _finite(scores: ArrayLike) -> NDArray[np.float64]:
    x = np.asarray(scores, dtype=np.float64)
    if x.ndim != 1 or not len(x) or not np.isfinite(x).all():
        raise ConfigError(f"scores of shape {list(x.shape)}: a threshold needs a row of finite scores.")
    return x


def _no_alarm(x: NDArray[np.float64], method: str) -> Threshold:
    why = f"only {len(x)} scores" if len(x) < FEWEST else "all scores, or all below their mode, are equal"
    above = float(np.nextafter(np.float32(x.max()), np.float32(np.inf)))
    return Threshold(above, method, None, f"{why}: no threshold can be estimated, and nothing is flagged.")


def _few(x: NDArray[Any]) -> str:
    return "" if len(x) >= 30 else f"from {len(x)} scores only: take the false alarm rate as a rough guess."


def _float32(value: float) -> float:
    """Rounded to float32, as scores and maps are, so that comparing in either precision decides the same."""
    return float(np.float32(value))
