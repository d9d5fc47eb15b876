"""MuSc: zero-shot anomaly classification and segmentation by mutual scoring of the unlabeled images (ICLR 2024)."""

from typing import TYPE_CHECKING, Any

__all__ = ["MuSc", "MuScConfig", "MuScResult", "score_folder"]

if TYPE_CHECKING:
    from musc.config import MuScConfig
    from musc.pipeline import MuSc, score_folder
    from musc.results import MuScResult

    __version__: str

_HOME = {"MuSc": "pipeline", "score_folder": "pipeline", "MuScConfig": "config", "MuScResult": "results"}


def __getattr__(name: str) -> Any:
    # Imported on first use: `import musc` and `musc --help` do not wait for torch.
    if name in _HOME:
        import importlib

        return getattr(importlib.import_module(f"musc.{_HOME[name]}"), name)
    if name == "__version__":  # stands in pyproject.toml
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("musc")
        except PackageNotFoundError:  # a source tree that is not installed
            return "unknown"
    raise AttributeError(f"module 'musc' has no attribute {name!r}")
