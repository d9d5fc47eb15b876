"""The errors that a user can cause: each says what was wrong, where, and what to do about it."""

import errno

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def cannot_write(what: object, error: OSError) -> str:
    """The text for a place that the system does not let us write.

    Example:
        >>> cannot_write("regions in out", PermissionError(13, "Permission denied"))
        'regions in out cannot be written (Permission denied): give yourself the right to it, or choose another folder.'
    """
    remedy = "free some space" if error.errno in FULL else "give yourself the right to it"
    return f"{what} cannot be written ({error.strerror or error}): {remedy}, or choose another folder."


class MuscError(Exception):
    """A mistake in the input, the settings or the machine's set-up; its text names the value and the remedy."""


class DataError(MuscError):
    """A folder, image or mask that cannot be used."""


class ConfigError(MuscError):
    """A setting that cannot work, or two that contradict each other."""


class WeightsError(MuscError):
    """Weights that are missing, unreadable or of another model."""


class ResultError(MuscError):
    """A result folder that cannot be written or read back."""


class ClusterError(MuscError):
    """A scheduler, or workers of a cluster, that are not there, went away, or cannot do the work."""
