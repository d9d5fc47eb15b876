"""MuSc, MuSc+ and MuSc-V2 under the interface of the other methods: mutual scoring, then re-scoring."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from musc import msm
from musc.config import MuScConfig
from musc.features import Features
from musc.methods.base import NO_BLUR, Blur, Scores, need_pool, need_references
from musc.scoring.aggregation import SalientTokens
from musc.scoring.maps import Scorer, anomaly_maps, patch_scores, rescored
from musc.sizes import Size


@dataclass(frozen=True)
class Mutual:
    """Mutual scoring by the settings of `config` (Sec. 3), from tokens alone; `MuSc.run` reads images too.

    size: of the maps in pixels, whose maximum is the image score before re-scoring. scorer: see `patch_scores`.
    """

    blur: ClassVar[Blur] = NO_BLUR
    corners: ClassVar[bool] = True
    config: MuScConfig
    size: Size
    device: torch.device | str = "cpu"
    scorer: Scorer = msm.scores

    def score(self, features: Features, references: Features | None = None) -> Scores:
        """Patch scores (Eq. 3), and image scores after RsCIN (Eq. 5) or RsCon.

        Raises DataError for one image without references, ConfigError for MuSc+ without references.
        """
        if references is None:
            need_pool("MuSc", features)
        if self.config.references == 0:
            need_references("MuSc+", features, references)
        found = patch_scores(features, references, self.config, device=torch.device(self.device), scorer=self.scorer)
        raw = anomaly_maps(found, self.size).flatten(1).amax(dim=1)
        tokens = features.class_tokens
        if self.config.rescoring == "rscon":
            tokens = SalientTokens(self.config).add(features, found)
        scores, _ = rescored(raw, tokens, self.config.windows)
        return Scores(found, scores)
