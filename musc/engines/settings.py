"""The settings of mutual scoring in one record, which goes from the pipeline to whoever scores."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path


@dataclass(frozen=True)
class Settings:
    """What mutual scoring takes beside tokens and pool: see `msm.mutual_scores`, which has the same defaults.

    Example:
        >>> Settings(degrees=(1,), block=4).of_scores() == Settings(degrees=(1,))
        True
    """

    degrees: tuple[int, ...] = (1, 3, 5)
    interval: tuple[float, float] = (0.0, 0.3)
    reduction: str = "mean"
    grid: tuple[int, int] | None = None
    precision: str = "float32"
    position_window: float = math.inf
    seed: int = 0
    block: int | None = None
    max_bytes: int | None = None
    scratch: Path | str | None = None
    progress: bool = False

    def of_scores(self) -> Settings:
        """Those that scores depend on once it is known which images score which, the others at their defaults."""
        return replace(self, seed=0, block=None, max_bytes=None, scratch=None, progress=False)


PLAIN = Settings()
