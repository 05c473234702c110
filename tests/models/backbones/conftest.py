"""Beside a CPU build of torch timm and transformers are imported as the package does it: the operators are declared first."""

from __future__ import annotations

from pointsweep.models.backbones.timm_import import declare_torchvision_operators

declare_torchvision_operators()
