"""Any tuner of the library `peft`, put into the frozen blocks.

Source: https://huggingface.co/docs/peft, `inject_adapter_in_model`; config/peft_tuners.py lists the
tuners, and why some are refused. The library draws its start from torch's generator, which the
model seeds for the method; what is saved of a trial are the tensors that train, and everything else
of a tuner follows from the frozen weights and fixed seeds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from pointsweep.config.peft_tuners import TUNERS, Tuner
from pointsweep.models.backbones.base import Backbone, TransformerBlock
from pointsweep.models.backbones.timm_import import declare_torchvision_operators
from pointsweep.models.layers import Linear
from pointsweep.models.methods.base import Method

NORMS = ("norm1", "norm2")


class PEFT(Method):
    """A tuner of peft. Trains what the tuner puts beside the targets: as many values as the library
    itself counts.
    """

    def attach(self, backbone: Backbone, prefix: int, num_views: int) -> None:
        tuner = TUNERS[self.config.tuner]
        self.starts_from_weights = tuner.starts_from_weights
        targets = self.config.target or tuner.targets
        paths = paths_of(backbone, {*targets, "fc2"})
        modules: list[str] = []

        for target in targets:
            modules += paths[target]

        _give_torchs_own(backbone.blocks, modules)
        layers = [backbone.blocks.get_submodule(path) for path in modules]
        if tuner.rewrites_weights:
            _take_own_weights(layers)

        parameters = nn.ModuleList(layers).parameters()
        on_meta = any(parameter.is_meta for parameter in parameters)
        try:
            if on_meta and tuner.reads_weights:
                with torch.device("cpu"):
                    for layer in layers:
                        layer.to_empty(device="cpu")
                    self._inject(tuner, modules, layers, backbone, paths)

                backbone.blocks.to("meta")
            else:
                self._inject(tuner, modules, layers, backbone, paths)
        except (ValueError, TypeError, RuntimeError, AssertionError) as error:
            text = (
                f"method: peft's {self.config.tuner} cannot be put into {', '.join(targets)} of"
                f" {backbone.config.name}"
            )
            raise ValueError(f"{text}: {error}") from error

    def _inject(
        self,
        tuner: Tuner,
        modules: list[str],
        layers: list[nn.Module],
        backbone: Backbone,
        paths: Mapping[str, list[str]],
    ) -> None:
        declare_torchvision_operators()
        import peft

        settings = dict(tuner.settings)

        if tuner.kind == "IA3":
            feed_forward = [path for path in modules if path in paths["fc2"]]
            settings["feedforward_modules"] = feed_forward

        if tuner.kind == "GLORA":
            lacks_bias = any(getattr(layer, "bias", None) is None for layer in layers)
            if lacks_bias:  # its scale of the bias would train nothing
                settings["config_D_E"] = "none"

        if self.config.r is not None:
            assert tuner.size is not None
            settings[tuner.size] = self.config.r

        is_sized = self.config.alpha is not None or self.config.r is not None
        if tuner.alpha is not None and is_sized:
            settings[tuner.alpha] = self._alpha(tuner)

        config_classes: dict[Any, Any] = peft.PEFT_TYPE_TO_CONFIG_MAPPING
        config_class = config_classes[peft.PeftType(tuner.kind)]
        tuner_config = config_class(target_modules=modules, **settings)
        peft.inject_adapter_in_model(tuner_config, backbone.blocks)

    def _alpha(self, tuner: Tuner) -> float:
        if self.config.alpha is None:
            return int(tuner.ratio * self.config.r)

        alpha: float = self.config.alpha
        return int(alpha) if alpha.is_integer() else alpha


def paths_of(backbone: Backbone, targets: set[str]) -> dict[str, list[str]]:
    """Return where all blocks together hold what each target names. Raises ValueError for a target
    that a block does not have.
    """
    names = {module: name for name, module in backbone.blocks.named_modules()}
    paths: dict[str, list[str]] = {}

    for block in backbone.blocks:
        assert isinstance(block, TransformerBlock)
        for target in sorted(targets):
            if target in NORMS:
                attributes = [block.norms()[NORMS.index(target)]]
            else:
                attributes = block.projections(target)

            target_paths = paths.setdefault(target, [])
            for owner, name in attributes:
                target_paths.append(names[getattr(owner, name)])

    return paths


def _give_torchs_own(blocks: nn.Module, paths: list[str]) -> None:
    """Put torch's linear layers back in the place of ours, tensors and all: some tuners take no
    other type.
    """
    for path in paths:
        layer = blocks.get_submodule(path)
        if isinstance(layer, Linear):
            blocks.set_submodule(path, layer.plain())


def _take_own_weights(layers: list[nn.Module]) -> None:
    """Copy the layers' matrices, which members of a pack have in common until then."""
    for layer in layers:
        assert isinstance(layer, nn.Linear)
        layer.weight = nn.Parameter(layer.weight.detach().clone(), requires_grad=False)
