"""Registered components: the name of each, its configuration class and where its code is.

A configuration class is imported with this module and needs no torch; `load` imports the code, and
with it torch. To add a component: a configuration class in the module of its kind, a file with its
code, and one line here. Components of others come from plug-ins (plugins.py) and from installed
packages, whose entry points `pointsweep.methods` and so on are read when a name is asked for that
is not known here.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Union

from pydantic import Field, TypeAdapter

from pointsweep.config import (
    backbones,
    contract,
    datasets,
    methods,
    networks,
    tokenizers,
)
from pointsweep.config.base import NamedConfig
from pointsweep.errors import PluginError
from pointsweep.utils import entry_points

KINDS = ("datasets", "tokenizers", "backbones", "methods", "networks")


@dataclass(frozen=True)
class Component:
    """A registered component: its configuration class, and its code as "module:Class".

    `source` is the top-level module of somebody else's component; ours have none.
    """

    config: type[NamedConfig]
    code: str
    source: str = ""


_REGISTERED: dict[str, dict[str, Component]] = {kind: {} for kind in KINDS}


def register(kind: str, config: type[NamedConfig], code: str, source: str = "") -> None:
    """Add a component under the name that its configuration class states.

    `code` is "module:Class". Raises ValueError for an unknown kind, a class that states no name,
    and a name that another class has.
    """
    if kind not in _REGISTERED:
        raise ValueError(f"no kind of component {kind!r}; known: {', '.join(KINDS)}")

    name = contract.stated_name(config)
    if not name:
        text = 'must state its name, as `name: Literal["lora"] = "lora"`'
        raise ValueError(f"{config.__module__}.{config.__qualname__} {text}")

    known = _REGISTERED[kind].get(name)
    if known is not None and known.config is not config:
        raise ValueError(
            f"two components of {kind} are called {name!r}: {known.code} and {code}; rename one"
        )

    _REGISTERED[kind][name] = Component(config, code, source)
    union.cache_clear()


def register_class(component: type, source: str = "") -> tuple[str, str]:
    """Add a component of somebody else's by one of its two classes; return its kind and name.

    `component` is an implementation, whose `Config` names its configuration class, or a
    configuration class, whose `implementation` names its code as "module:Class". Raises PluginError
    for what it lacks.
    """
    is_config = issubclass(component, NamedConfig)
    config = component if is_config else getattr(component, "Config", None)
    shown = f"{component.__module__}.{component.__qualname__}"

    if not isinstance(config, type) or not issubclass(config, NamedConfig):
        raise PluginError(
            f"{shown} names no configuration class: set `Config = ...` in it"
        )

    problem = contract.config_problem(config)
    if problem:
        raise PluginError(f"{config.__module__}.{config.__qualname__} {problem}")

    kind = contract.kind_of(config)
    if is_config:
        code = config.implementation
        if not code:
            text = (
                f'{shown} names no implementation: set `implementation = "module:Class"`, or'
                f" `Config = {component.__name__}` in it"
            )
            raise PluginError(text)
    else:
        code = f"{component.__module__}:{component.__qualname__}"
        problem = contract.implementation_problem(kind, component)
        if problem:
            raise PluginError(f"{shown} {problem}")

    try:
        register(kind, config, code, source)
    except ValueError as error:
        raise PluginError(str(error)) from error

    return kind, contract.stated_name(config)


def forget(source: str) -> None:
    """Take out all components that came from somebody else's module."""
    for kind, components in _REGISTERED.items():
        remaining = {}
        for name, component in components.items():
            if component.source != source:
                remaining[name] = component

        _REGISTERED[kind] = remaining

    union.cache_clear()


def source_of(kind: str, name: str) -> str:
    """Return the top-level module that a component of somebody else's came from; empty for ours."""
    component = _REGISTERED[kind].get(name)
    return component.source if component is not None else ""


def discover(kind: str, name: str) -> bool:
    """Register the component of this name that an installed package offers; tell whether there is
    one.

    Raises PluginError where there is one that cannot be used.
    """
    for point in entry_points.offered(kind, name):
        try:
            component = point.load()
        except (
            Exception
        ) as error:  # whatever another package's import raises: said with its words
            raise PluginError(
                f"{kind} {name!r} of {point.value}: {type(error).__name__}: {error}"
            ) from error

        registered = register_class(component, source=point.module.partition(".")[0])
        if registered != (kind, name):
            text = (
                f"the entry point pointsweep.{kind} {name} = {point.value} is {registered[0]}"
                f" {registered[1]!r}; give it that name"
            )
            raise PluginError(text)

        return True

    return False


def offered(kind: str) -> list[str]:
    """Return all names of a kind: the registered ones and those that installed packages offer,
    sorted.
    """
    return sorted(
        {*_REGISTERED[kind], *(point.name for point in entry_points.offered(kind))}
    )


def names(kind: str) -> list[str]:
    """Return all registered names of a kind (`methods`, `backbones`, ...), sorted."""
    return sorted(_REGISTERED[kind])


def load(kind: str, name: str) -> type:
    """Return the registered class; imports its module, and with it torch."""
    component = _REGISTERED[kind][name]
    if component.source:
        return _load_of_others(kind, component)

    module, _, attribute = component.code.partition(":")
    loaded: type = getattr(importlib.import_module(module), attribute)
    return loaded


def _load_of_others(kind: str, component: Component) -> type:
    """Return the class of somebody else's component. Raises PluginError for what is wrong with
    it.
    """
    module, _, attribute = component.code.partition(":")
    try:
        loaded: type | None = getattr(importlib.import_module(module), attribute, None)
    except (
        Exception
    ) as error:  # whatever somebody else's import raises: said with its words
        raise PluginError(
            f"{component.code}: {type(error).__name__}: {error}"
        ) from error

    if loaded is None:
        raise PluginError(
            f"{module} has no {attribute}, which {component.config.__name__}.implementation names"
        )

    problem = contract.implementation_problem(kind, loaded)
    if problem:
        raise PluginError(f"{component.code} {problem}")

    return loaded


def config_class(kind: str, name: str) -> Any:
    """Return the configuration class of a registered component."""
    return _REGISTERED[kind][name].config


def config_classes(kind: str) -> Mapping[str, type[NamedConfig]]:
    """Return the configuration classes of a kind by name."""
    return {
        name: component.config for name, component in sorted(_REGISTERED[kind].items())
    }


@functools.cache
def union(kind: str) -> TypeAdapter[Any]:
    """Return the validator of a kind: one of its configuration classes, told apart by `name`."""
    classes: Any = Union[tuple(config_classes(kind).values())]  # noqa: UP007
    if len(config_classes(kind)) > 1:
        classes = Annotated[classes, Field(discriminator="name")]

    return TypeAdapter(classes)


def modality(backbone: Any) -> str | None:
    """Return `1d`, `2d` or `3d`: a class attribute, or a field where one backbone has several.

    None: `1d` or `2d`, which is found when the model is built.
    """
    value: str | None = backbone.modality
    return value


OWN: dict[str, dict[type[NamedConfig], str]] = {
    "datasets": {
        datasets.FilesConfig: "pointsweep.data.files:Files",
        datasets.ModelNet10Config: "pointsweep.data.named.modelnet10:ModelNet10",
        datasets.ModelNet40Config: "pointsweep.data.modelnet40:ModelNet40",
        datasets.ModelNet40CConfig: "pointsweep.data.corrupted:ModelNet40C",
        datasets.ModelNet40FewshotConfig: "pointsweep.data.modelnet40_fewshot:ModelNet40Fewshot",
        datasets.OmniObject3DConfig: "pointsweep.data.named.omniobject3d:OmniObject3D",
        datasets.S3DISConfig: "pointsweep.data.scenes.s3dis:S3DIS",
        datasets.ScanObjectNNConfig: "pointsweep.data.scanobjectnn:ScanObjectNN",
        datasets.ScanObjectNNCConfig: "pointsweep.data.corrupted:ScanObjectNNC",
        datasets.ScanObjectNNFewshotConfig: (
            "pointsweep.data.named.scanobjectnn_fewshot:ScanObjectNNFewshot"
        ),
        datasets.ShapeNet55Config: "pointsweep.data.named.shapenet55:ShapeNet55",
        datasets.ShapeNetPartConfig: "pointsweep.data.shapenetpart:ShapeNetPart",
        datasets.SyntheticConfig: "pointsweep.data.synthetic:Synthetic",
        datasets.SyntheticPartsConfig: "pointsweep.data.synthetic_parts:SyntheticParts",
        datasets.SyntheticRoomsConfig: "pointsweep.data.scenes.synthetic_rooms:SyntheticRooms",
    },
    "tokenizers": {
        tokenizers.PatchConfig: "pointsweep.models.tokenizers:Patch",
        tokenizers.PointPNTokenizerConfig: "pointsweep.models.tokenizers:PointPN",
        tokenizers.PointPNLightConfig: "pointsweep.models.tokenizers:PointPNLight",
    },
    "backbones": {
        backbones.BERTConfig: "pointsweep.models.backbones.bert:BERT",
        backbones.CLIPTextConfig: "pointsweep.models.backbones.clip_text:CLIPText",
        backbones.CLIPVisionConfig: "pointsweep.models.backbones.clip_vision:CLIPVision",
        backbones.DeiTConfig: "pointsweep.models.backbones.vit:DeiT",
        backbones.DINOv2Config: "pointsweep.models.backbones.dinov2:DINOv2",
        backbones.ImageBindAudioConfig: (
            "pointsweep.models.backbones.imagebind_audio:ImageBindAudio"
        ),
        backbones.KWT1Config: "pointsweep.models.backbones.kwt1:KWT1",
        backbones.MiniLMConfig: "pointsweep.models.backbones.minilm:MiniLM",
        backbones.PointBERTConfig: "pointsweep.models.backbones.point_bert:PointBERT",
        backbones.PointM2AEConfig: "pointsweep.models.backbones.point_m2ae:PointM2AE",
        backbones.PointMAEConfig: "pointsweep.models.backbones.point_mae:PointMAE",
        backbones.RoBERTaConfig: "pointsweep.models.backbones.roberta:RoBERTa",
        backbones.SSASTConfig: "pointsweep.models.backbones.ssast:SSAST",
        backbones.T5Config: "pointsweep.models.backbones.t5:T5",
        backbones.TimmConfig: "pointsweep.models.backbones.timm_model:TimmBackbone",
        backbones.TinyConfig: "pointsweep.models.backbones.tiny:Tiny",
        backbones.TransformersConfig: (
            "pointsweep.models.backbones.transformers_model:TransformersBackbone"
        ),
        backbones.ViTConfig: "pointsweep.models.backbones.vit:ViT",
        backbones.ViTMNISTConfig: "pointsweep.models.backbones.vit_mnist:ViTMNIST",
    },
    "methods": {
        methods.AdapterConfig: "pointsweep.models.methods.adapter:Adapter",
        methods.Any2PointConfig: "pointsweep.models.methods.any2point:Any2Point",
        methods.APPTConfig: "pointsweep.models.methods.appt:APPT",
        methods.BitFitConfig: "pointsweep.models.methods.bitfit:BitFit",
        methods.DAPTConfig: "pointsweep.models.methods.dapt:DAPT",
        methods.DoRAConfig: "pointsweep.models.methods.dora:DoRA",
        methods.FullConfig: "pointsweep.models.methods.full:Full",
        methods.HeadOnlyConfig: "pointsweep.models.methods.head_only:HeadOnly",
        methods.IA3Config: "pointsweep.models.methods.ia3:IA3",
        methods.IDPTConfig: "pointsweep.models.methods.idpt:IDPT",
        methods.LoRAConfig: "pointsweep.models.methods.lora:LoRA",
        methods.PEFTConfig: "pointsweep.models.methods.peft:PEFT",
        methods.PointGSTConfig: "pointsweep.models.methods.point_gst:PointGST",
        methods.PointPEFTConfig: "pointsweep.models.methods.point_peft:PointPEFT",
        methods.PPTConfig: "pointsweep.models.methods.ppt:PPT",
        methods.PromptConfig: "pointsweep.models.methods.prompt:Prompt",
        methods.SSFConfig: "pointsweep.models.methods.ssf:SSF",
    },
    "networks": {
        networks.DGCNNConfig: "pointsweep.models.networks.dgcnn:DGCNN",
        networks.PointNNConfig: "pointsweep.models.networks.point_nn:PointNN",
        networks.PointPNConfig: "pointsweep.models.networks.point_pn:PointPN",
        networks.PointMLPConfig: "pointsweep.models.networks.pointmlp:PointMLP",
        networks.PointNetConfig: "pointsweep.models.networks.pointnet:PointNet",
        networks.PointNet2Config: "pointsweep.models.networks.pointnet2:PointNet2",
        networks.PointNeXtConfig: "pointsweep.models.networks.pointnext:PointNeXt",
    },
}

for _kind, _components in OWN.items():
    for _config, _code in _components.items():
        register(_kind, _config, _code)
