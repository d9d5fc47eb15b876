"""Lets open_clip and timm be imported where torchvision was built for another torch than the one installed."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import torch

# torchvision's operators that its Python code needs to find at import time, as its C++ library declares them.
SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_declared: list[torch.library.Library] = []  # the declarations live as long as these objects


def ready_torchvision() -> bool:
    """Make `import torchvision` work; True if its own compiled operators are in use.

    pip may pair a CPU torch with a torchvision built for CUDA. The compiled library of such a torchvision cannot be
    loaded, and `import torchvision` then dies with "operator torchvision::nms does not exist". Backbones need none of
    its operators, so it is enough to declare those that the import looks up. Calling one still raises torchvision's own
    error. Where the compiled library loads (a matched pair), nothing is declared.
    """
    if _declared:
        return False
    spec = importlib.util.find_spec("torchvision")
    if "torchvision" in sys.modules or spec is None or spec.origin is None:
        return "torchvision" in sys.modules
    # Wheels for macOS and Windows know one kind of build only, so there is nothing to mismatch.
    compiled = sorted(Path(spec.origin).parent.glob("_C*.so")) if sys.platform == "linux" else []
    if not compiled:
        return True
    try:
        torch.ops.load_library(str(compiled[0]))
    except OSError:
        library = torch.library.Library("torchvision", "DEF")
        for schema in SCHEMAS:
            library.define(schema)
        _declared.append(library)
        return False
    return True
