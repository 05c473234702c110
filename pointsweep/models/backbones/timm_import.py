"""timm and transformers beside a CPU build of torch.

timm needs torchvision, and transformers imports it wherever it is installed. torchvision's wheel in
the package registry is a CUDA build: beside a CPU build of torch its compiled part cannot be
loaded, and `import torchvision` fails with "operator torchvision::nms does not exist". It imports
once the two operators that it registers kernels for are declared. What then works are models and
transforms; the operators themselves (for detection) have no kernel and raise when they are called.

Call `declare_torchvision_operators` before the first import of timm or transformers. On a matching
pair it does nothing.
"""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path

import torch

SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


@functools.cache  # keeps the library alive: its operators are gone when it is
def declare_torchvision_operators() -> torch.library.Library | None:
    """Declare torchvision's operators if its compiled part cannot be loaded; None where there is
    nothing to declare.
    """
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return None
    if _loads(Path(spec.origin).parent):
        return None

    library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in SCHEMAS:
        library.define(schema)

    return library


def _loads(folder: Path) -> bool:
    """Load torchvision's compiled part as it does so itself; False if that fails."""
    compiled = sorted(folder.glob("_C*.so"))
    if not compiled:
        return False

    try:
        torch.ops.load_library(compiled[0])
    except OSError:
        return False

    return True
