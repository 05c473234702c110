"""Names -> classes. A new method, backbone, network, tokenizer or data set is one new file and one line here.

`load` imports the class. `config_class` gives its `Config` without importing torch: of the registered file it executes only
the imports of this package's torch-free files and of the standard library, and the classes whose name ends in `Config`. So a
method stays one file (config on top, code below), and checking a sweep file stays fast.
"""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

REGISTRY: dict[str, dict[str, str]] = {
    "datasets": {
        "files": "pointsweep.data.files:Files",
        "modelnet40": "pointsweep.data.modelnet40:ModelNet40",
        "modelnet40_c": "pointsweep.data.corrupted:ModelNet40C",
        "modelnet40_fewshot": "pointsweep.data.modelnet40_fewshot:ModelNet40Fewshot",
        "scanobjectnn": "pointsweep.data.scanobjectnn:ScanObjectNN",
        "scanobjectnn_c": "pointsweep.data.corrupted:ScanObjectNNC",
        "shapenetpart": "pointsweep.data.shapenetpart:ShapeNetPart",
        "synthetic": "pointsweep.data.synthetic:Synthetic",
        "synthetic_parts": "pointsweep.data.synthetic_parts:SyntheticParts",
    },
    "tokenizers": {
        "patch": "pointsweep.models.tokenizers:Patch",
        "point_pn": "pointsweep.models.tokenizers:PointPN",
        "point_pn_light": "pointsweep.models.tokenizers:PointPNLight",
    },
    "backbones": {
        "bert": "pointsweep.models.backbones.bert:BERT",
        "clip_text": "pointsweep.models.backbones.clip_text:CLIPText",
        "clip_vision": "pointsweep.models.backbones.clip_vision:CLIPVision",
        "deit": "pointsweep.models.backbones.vit:DeiT",
        "dinov2": "pointsweep.models.backbones.dinov2:DINOv2",
        "imagebind_audio": "pointsweep.models.backbones.imagebind_audio:ImageBindAudio",
        "kwt1": "pointsweep.models.backbones.kwt1:KWT1",
        "minilm": "pointsweep.models.backbones.minilm:MiniLM",
        "point_bert": "pointsweep.models.backbones.point_bert:PointBERT",
        "point_m2ae": "pointsweep.models.backbones.point_m2ae:PointM2AE",
        "point_mae": "pointsweep.models.backbones.point_mae:PointMAE",
        "roberta": "pointsweep.models.backbones.roberta:RoBERTa",
        "ssast": "pointsweep.models.backbones.ssast:SSAST",
        "t5": "pointsweep.models.backbones.t5:T5",
        "tiny": "pointsweep.models.backbones.tiny:Tiny",
        "vit_in21k": "pointsweep.models.backbones.vit:ViT",
        "vit_mnist": "pointsweep.models.backbones.vit_mnist:ViTMNIST",
    },
    "methods": {
        "adapter": "pointsweep.models.methods.adapter:Adapter",
        "any2point": "pointsweep.models.methods.any2point:Any2Point",
        "appt": "pointsweep.models.methods.appt:APPT",
        "bitfit": "pointsweep.models.methods.bitfit:BitFit",
        "dapt": "pointsweep.models.methods.dapt:DAPT",
        "full": "pointsweep.models.methods.full:Full",
        "head_only": "pointsweep.models.methods.head_only:HeadOnly",
        "idpt": "pointsweep.models.methods.idpt:IDPT",
        "lora": "pointsweep.models.methods.lora:LoRA",
        "point_peft": "pointsweep.models.methods.point_peft:PointPEFT",
        "prompt": "pointsweep.models.methods.prompt:Prompt",
    },
    "networks": {
        "dgcnn": "pointsweep.models.networks.dgcnn:DGCNN",
        "point_nn": "pointsweep.models.networks.point_nn:PointNN",
        "point_pn": "pointsweep.models.networks.point_pn:PointPN",
        "pointmlp": "pointsweep.models.networks.pointmlp:PointMLP",
        "pointnet": "pointsweep.models.networks.pointnet:PointNet",
        "pointnet2": "pointsweep.models.networks.pointnet2:PointNet2",
        "pointnext": "pointsweep.models.networks.pointnext:PointNeXt",
    },
}

_TORCH_FREE = ("pointsweep.config.schema", "pointsweep.errors")


def names(kind: str) -> list[str]:
    """All registered names of a kind (`methods`, `backbones`, ...), sorted."""
    return sorted(REGISTRY[kind])


def load(kind: str, name: str) -> type:
    """The registered class; imports its module, and with it torch."""
    module, _, attribute = REGISTRY[kind][name].partition(":")
    loaded: type = getattr(importlib.import_module(module), attribute)
    return loaded


@functools.cache
def config_class(kind: str, name: str) -> Any:
    """The `Config` of a registered class: `<Class>Config` in the same file. Does not import torch."""
    module, _, attribute = REGISTRY[kind][name].partition(":")
    return getattr(_config_part(module), f"{attribute}Config")


def modality(backbone: Any) -> str:
    """`1d`, `2d` or `3d` of a backbone's config: a class attribute, or a field where one backbone has several."""
    value: str = backbone.modality
    return value


@functools.cache
def _config_part(module_name: str) -> ModuleType:
    spec = importlib.util.find_spec(module_name)
    assert spec is not None and spec.origin is not None, module_name
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"), filename=spec.origin)
    tree.body = [node for node in tree.body if _belongs_to_config(node)]
    module = ModuleType(f"{module_name}.config_part")
    # Dataclasses and get_type_hints look the module up by name to resolve annotations.
    sys.modules[module.__name__] = module
    exec(compile(tree, spec.origin, "exec"), module.__dict__)
    return module


def _belongs_to_config(node: ast.stmt) -> bool:
    if isinstance(node, ast.ClassDef):
        return node.name.endswith("Config")
    if isinstance(node, ast.ImportFrom):
        return node.module in _TORCH_FREE or (node.module or "").split(".")[0] in sys.stdlib_module_names
    return isinstance(node, ast.Import) and all(alias.name.split(".")[0] in sys.stdlib_module_names for alias in node.names)
