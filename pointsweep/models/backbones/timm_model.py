"""Any plain vision transformer of the library timm, by its name or by a folder that timm has saved.

Weights are the safetensors of the hub's repository that timm names for a model, read by timm
itself. Hierarchies (Swin, ConvNeXt, PVT ...) are refused: they have no stack of equal layers over
the same tokens.
"""

from __future__ import annotations

import difflib
import functools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pointsweep.config.backbones import TimmConfig
from pointsweep.models.backbones.anatomy import LibraryModel, stack_of, to_meta
from pointsweep.models.backbones.library_backbone import LibraryBackbone, structure_of
from pointsweep.models.backbones.library_files import (
    config_file,
    model_folder,
    weight_file,
)
from pointsweep.models.backbones.timm_import import declare_torchvision_operators
from pointsweep.utils.digests import file_sha256


class TimmBackbone(LibraryBackbone):
    """A model of timm."""

    @classmethod
    def empty(cls, config: TimmConfig) -> LibraryModel:
        return _empty(structure_of(config))

    @classmethod
    def drawn(cls, config: TimmConfig) -> nn.Module:
        return _created(config)

    @classmethod
    def pretrained(cls, config: TimmConfig) -> tuple[nn.Module, str]:
        path = cls.locate(config)
        digest = file_sha256(path)
        if config.sha256 is not None and digest != config.sha256:
            raise ValueError(
                f"backbone.sha256: {path} has {digest}, expected {config.sha256}"
            )

        try:
            module = _created(
                config, pretrained=True, pretrained_cfg_overlay={"file": str(path)}
            )
        except (OSError, RuntimeError, KeyError) as error:
            text = " ".join(str(error).split())[:300]
            raise ValueError(
                f"{path}: does not fit {architecture(config)}: {text}"
            ) from error

        revision = ""
        if path.parent.parent.name == "snapshots":
            revision = f", revision {path.parent.name}"

        return module, f"{cls.origin(config)}{revision}, {path.name}, sha256 {digest}"

    @classmethod
    def locate(cls, config: Any, fetch: bool = True) -> Path:
        return weight_file(config, fetch, _repository(config))


def architecture(config: TimmConfig) -> str:
    """The name of timm's model: what the file says, or what the folder's config.json does. Raises
    ValueError, MissingWeightsError.
    """
    if model_folder(config) is None:
        return config.model

    path = config_file(config)
    try:
        name = json.loads(path.read_text()).get("architecture")
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{path}: is no JSON object: {error}") from error

    if not isinstance(name, str):
        raise ValueError(
            f"{path}: names no architecture of timm; expected a key architecture, as timm writes it"
        )

    return name


def _repository(config: TimmConfig) -> str:
    """The hub's repository of a model's weights. Raises ValueError for a model that has none."""
    declare_torchvision_operators()
    import timm

    if model_folder(config) is not None:
        return config.model

    _check_name(config)
    pretrained = timm.get_pretrained_cfg(config.model)
    if pretrained is None or not pretrained.hf_hub_id:
        raise ValueError(
            f"backbone.model: timm names no repository with weights of {config.model}; set weights"
            " to random"
        )

    repository: str = pretrained.hf_hub_id
    return repository


def _check_name(config: TimmConfig) -> None:
    import timm

    name = architecture(config)
    if timm.is_model(name.partition(".")[0]):
        tags = timm.list_pretrained(f"{name.partition('.')[0]}.*")
        if "." not in name or name in tags:
            return

        raise ValueError(
            f"backbone.model: timm has {name.partition('.')[0]} with other weights:"
            f" {', '.join(sorted(tags)[:8]) or 'none'}"
        )

    near = difflib.get_close_matches(
        name, timm.list_models() + timm.list_pretrained(), n=3, cutoff=0.5
    )
    meant = f" Did you mean {', '.join(near)}?" if near else ""
    raise ValueError(
        f"backbone.model: timm has no model {name!r}, and there is no folder of this name.{meant}"
    )


def _created(config: TimmConfig, **more: Any) -> nn.Module:
    declare_torchvision_operators()
    import timm

    _check_name(config)
    sizes: dict[str, Any] = {}

    for entry in config.sizes:
        key, _, value = entry.partition("=")
        sizes[key] = value
        if value[:1] in "-0123456789[" or value in ("true", "false", "null"):
            sizes[key] = json.loads(value)

    if config.image_size is not None:
        sizes["img_size"] = config.image_size

    try:
        with torch.device("cpu"):
            model: nn.Module = timm.create_model(
                architecture(config), num_classes=0, **sizes, **more
            )
    except TypeError as error:
        text = " ".join(str(error).split())[:200]
        raise ValueError(
            f"backbone.sizes: timm cannot build {config.model} with {', '.join(config.sizes)}:"
            f" {text}"
        ) from error

    return model


@functools.lru_cache(maxsize=32)
def _empty(config: TimmConfig) -> LibraryModel:
    module: Any = _created(config)
    cfg = getattr(module, "pretrained_cfg", {})
    channels, height, width = cfg.get("input_size") or (3, 224, 224)
    patches: Any = getattr(module, "patch_embed", None)

    if getattr(patches, "img_size", None) is not None:
        height, width = patches.img_size
    elif config.image_size is not None:
        height = width = config.image_size

    def inputs() -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(0)
        return {"x": torch.randn((1, channels, height, width), generator=generator)}

    to_meta(module)
    model = LibraryModel(
        module=module,
        inputs=inputs,
        heads=1,
        name=f"timm {config.model}",
        reads_images=True,
    )

    layers = module.get_submodule(stack_of(model))

    for part in layers.modules():
        heads = getattr(part, "num_heads", None)
        if isinstance(heads, int):
            return replace(model, heads=heads)

    return model
