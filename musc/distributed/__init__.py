"""Mutual scoring by more than one device: several of this machine, or the workers of a Dask cluster.

`blocks` cuts the work and says what a piece of it is, without knowing who does it; `devices` gives pieces to threads of
this process, one per device; `cluster` to the workers of a cluster, by way of `tasks`. The scores are those of
`msm.mutual_scores`, whose signature both share.
"""

from __future__ import annotations

from musc.config import MuScConfig
from musc.errors import ConfigError


def check_shared(config: MuScConfig) -> None:
    """Raises ConfigError where the settings ask for what several devices or a cluster cannot do.

    Example:
        >>> check_shared(MuScConfig(consistency="warn"))
        Traceback (most recent call last):
        musc.errors.ConfigError: consistency = 'warn' is not shared out to a scheduler or several devices: choose off, \
or one device of this machine.
    """
    config.check_mutual("a scheduler or several devices")
    for name, wanted, wrong in (
        ("consistency", "off", config.consistency != "off"),
        ("tile_pool", "position", config.tiles > 1 and config.tile_pool == "all"),
    ):
        if wrong:
            raise ConfigError(
                f"{name} = {getattr(config, name)!r} is not shared out to a scheduler or several devices: choose "
                f"{wanted}, or one device of this machine."
            )
