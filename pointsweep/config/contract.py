"""Requirements on a component of somebody else's, checked before anything uses it."""

from __future__ import annotations

import importlib
import re
import typing
from typing import Any

from pointsweep.config.backbones import BackboneConfig
from pointsweep.config.base import NamedConfig
from pointsweep.config.datasets import DatasetConfig
from pointsweep.config.methods import MethodConfig
from pointsweep.config.networks import NetworkConfig
from pointsweep.config.tokenizers import TokenizerConfig

CONFIGS: dict[str, type[NamedConfig]] = {
    "datasets": DatasetConfig,
    "tokenizers": TokenizerConfig,
    "backbones": BackboneConfig,
    "methods": MethodConfig,
    "networks": NetworkConfig,
}
# What a configuration class states beside its fields, and why.
STATED = {
    "datasets": ("num_classes", "the number of classes, which decides the head's size"),
    "backbones": ("modality", "1d, 2d or 3d"),
}
# The class that an implementation derives from, as "module:Class"; importing it imports torch.
BASES = {
    "datasets": "pointsweep.data.dataset:Dataset",
    "tokenizers": "torch.nn:Module",
    "backbones": "pointsweep.models.backbones.base:Backbone",
    "methods": "pointsweep.models.methods.base:Method",
    "networks": "torch.nn:Module",
}
NEEDED = {
    "tokenizers": ("forward", "geometry", "uses_stem", "skips_near_origin"),
    "networks": ("forward",),
}
NAME = re.compile(r"[a-z][a-z0-9_]*")


def kind_of(config: type[NamedConfig]) -> str:
    """Return the kind of component that a configuration class describes; empty if it is of none."""
    for kind, base in CONFIGS.items():
        if issubclass(config, base):
            return kind

    return ""


def stated_name(config: type[NamedConfig]) -> str:
    """Return the name that a configuration class states; empty if it states none."""
    stated = typing.get_args(config.model_fields["name"].annotation)
    if len(stated) != 1 or not isinstance(stated[0], str):
        return ""

    name: str = stated[0]
    return name


def config_problem(config: type[NamedConfig]) -> str:
    """Return what a configuration class lacks; empty if nothing."""
    kind = kind_of(config)
    if not kind:
        bases = ", ".join(base.__name__ for base in CONFIGS.values())
        return f"derives from none of {bases}"

    name = stated_name(config)
    if not name:
        return 'must state its name, as `name: Literal["mine"] = "mine"`'
    if not NAME.fullmatch(name):
        return f"has the name {name!r}; a name is lower-case letters, digits and _, a letter first"
    if config.model_fields["name"].default != name:
        return f"gives its name no default: `name: Literal[{name!r}] = {name!r}`"

    for field, about in config.model_fields.items():
        if about.is_required():
            return (
                f"gives its field {field} no default; every field needs one, so that `{name}` alone"
                " is a configuration"
            )

    if kind in STATED:
        attribute, meaning = STATED[kind]
        if attribute not in config.model_fields and not hasattr(config, attribute):
            return f"has no {attribute}: {meaning}"

    return ""


def implementation_problem(kind: str, implementation: Any) -> str:
    """Return what an implementation lacks; empty if nothing. Imports torch."""
    if not isinstance(implementation, type):
        return f"is {type(implementation).__name__}, not a class"

    module, _, name = BASES[kind].partition(":")
    base = getattr(importlib.import_module(module), name)
    if not issubclass(implementation, base):
        return f"does not derive from {module}.{name}, as all {kind} do"

    for attribute in NEEDED.get(kind, ()):
        inherited = getattr(base, attribute, None)
        if getattr(implementation, attribute, inherited) is inherited:
            return f"has no {attribute}, which all {kind} have"

    return ""
