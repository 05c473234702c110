"""Any transformer of the library transformers: language, vision or audio, by its hub id, its folder
or its architecture.

The model is the library's own, from its config.json and its safetensors; no code that comes with a
model is run. Of models with an encoder and a decoder the encoder is taken, of models with several
towers the one that `tower` names.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pointsweep.config.backbones import WITHOUT_CHECKPOINT, TransformersConfig
from pointsweep.models.backbones.anatomy import LibraryModel, to_meta
from pointsweep.models.backbones.library_backbone import (
    LibraryBackbone,
    anatomy_of,
    structure_of,
)
from pointsweep.models.backbones.library_files import config_file, weight_file
from pointsweep.models.backbones.timm_import import declare_torchvision_operators
from pointsweep.utils.digests import file_sha256

TOWERS = {  # where models keep the towers that their configuration calls by these names
    "text": ("text_model", "language_model"),
    "vision": ("vision_model", "vision_tower", "visual"),
    "audio": ("audio_model", "audio_tower"),
}
WORDS, SAMPLES = 12, 16_000  # of the inputs that a copy is run on


class TransformersBackbone(LibraryBackbone):
    """A model of transformers."""

    @classmethod
    def empty(cls, config: TransformersConfig) -> LibraryModel:
        return _empty(structure_of(config), _stamp(config))

    @classmethod
    def drawn(cls, config: TransformersConfig) -> nn.Module:
        hf = library_config(config)
        with torch.device("cpu"):
            return _tower(_auto_model().from_config(hf), hf, config)[0]

    @classmethod
    def pretrained(cls, config: TransformersConfig) -> tuple[nn.Module, str]:
        path = weight_file(config, fetch=True)
        digest = file_sha256(path)
        if config.sha256 is not None and digest != config.sha256:
            raise ValueError(
                f"backbone.sha256: {path} has {digest}, expected {config.sha256}"
            )

        hf = library_config(config)
        try:
            with torch.device("cpu"), _no_progress_bar():
                loaded, report = _auto_model().from_pretrained(
                    str(path.parent),
                    config=hf,
                    use_safetensors=True,
                    local_files_only=True,
                    dtype=torch.float32,
                    output_loading_info=True,
                )
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            text = " ".join(str(error).split())[:300]
            raise ValueError(
                f"{path}: cannot be read as {config.model}: {text}"
            ) from error

        module, prefix = _tower(loaded, hf, config)
        _check_loaded(config, path, prefix, report)
        return module, f"{cls.origin(config)}, {path.name}, sha256 {digest}"

    @classmethod
    def locate(cls, config: Any, fetch: bool = True) -> Path:
        path = config_file(config)
        if config.weights in WITHOUT_CHECKPOINT:
            return path

        return weight_file(config, fetch)

    @classmethod
    def origin(cls, config: TransformersConfig) -> str:
        if config.model_type:
            return f"transformers' {config.model_type}{_sizes(config)}"

        path = config_file(config)
        revision = ""
        if path.parent.parent.name == "snapshots":
            revision = f", revision {path.parent.name}"

        if config.weights in WITHOUT_CHECKPOINT:
            return (
                f"transformers {config.model}{revision}{_sizes(config)}, config.json, sha256"
                f" {file_sha256(path)}"
            )

        return f"transformers {config.model}{revision}"


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """Load without the library's bar, which it draws into logs too."""
    from transformers.utils import logging

    enabled = logging.is_progress_bar_enabled()

    if enabled:
        logging.disable_progress_bar()

    try:
        yield
    finally:
        if enabled:
            logging.enable_progress_bar()


def _sizes(config: TransformersConfig) -> str:
    if config.sizes:
        return f" ({', '.join(config.sizes)})"
    return ""


def _check_loaded(
    config: TransformersConfig, path: Path, prefix: str, report: Any
) -> None:
    """Raise ValueError where the file lacks what the backbone uses: the library would fill it with
    random numbers.
    """
    anatomy = anatomy_of(TransformersBackbone, config)
    used = [
        anatomy.stack,
        anatomy.start_norm,
        anatomy.final_norm,
        anatomy.class_token,
        anatomy.bias_owner,
    ]

    if anatomy.table is not None:
        used.append(anatomy.table.name)

    beginnings = tuple(f"{prefix}{name}" for name in used if name)
    missing_keys = sorted(report["missing_keys"])
    missing = [name for name in missing_keys if name.startswith(beginnings)]

    if missing:
        raise ValueError(
            f"{path}: does not fit {config.model}: it has no {missing[0]} ({len(missing)} such"
            " tensors)"
        )


def _stamp(config: TransformersConfig) -> Any:
    """Return what a changed config.json changes."""
    if config.model_type:
        return None

    path = config_file(config)
    return str(path), path.stat().st_mtime_ns


@functools.lru_cache(maxsize=32)
def _empty(config: TransformersConfig, stamp: Any) -> LibraryModel:
    declare_torchvision_operators()
    from transformers.initialization import no_init_weights

    hf = library_config(config)

    with torch.device("cpu"), no_init_weights():
        try:
            module, _ = _tower(_auto_model().from_config(hf), hf, config)
        except ValueError as error:
            text = " ".join(str(error).split())[:300]
            raise ValueError(
                f"{named(config)}: the library has no model of this kind: {text}"
            ) from error

    own = _config_of(hf, config)
    words = _word_table(module)
    to_meta(module)

    return LibraryModel(
        module=module,
        inputs=_inputs(module, own, named(config)),
        heads=_heads(own),
        name=named(config),
        words=words,
        reads_images=getattr(module, "main_input_name", "") == "pixel_values",
        layer_types=tuple(getattr(own, "layer_types", None) or ()),
        context=getattr(own, "max_position_embeddings", None),
    )


def _heads(hf: Any) -> int:
    for name in ("num_attention_heads", "encoder_attention_heads"):
        value = getattr(hf, name, None)
        if isinstance(value, int):
            return value

    return 1


def named(config: TransformersConfig) -> str:
    """The model in words."""
    tower = f" ({config.tower})" if config.tower else ""
    return f"transformers {config.model or config.model_type}{tower}"


def _auto_model() -> Any:
    declare_torchvision_operators()
    from transformers import AutoModel

    return AutoModel


def library_config(config: TransformersConfig) -> Any:
    """The library's configuration of a model, with the file's sizes and without noise. Raises
    MissingWeightsError, ValueError.
    """
    declare_torchvision_operators()
    from transformers import CONFIG_MAPPING, AutoConfig

    if config.model_type:
        known = list(CONFIG_MAPPING.keys())
        if config.model_type not in known:
            near = difflib.get_close_matches(config.model_type, known, n=3, cutoff=0.5)
            meant = f" Did you mean {', '.join(near)}?" if near else ""
            raise ValueError(
                "backbone.model_type: transformers has no architecture"
                f" {config.model_type!r}.{meant}"
            )

        hf = AutoConfig.for_model(config.model_type)
        return _without_noise(_resized(hf, {}, config))

    path = config_file(config)
    try:
        hf = AutoConfig.from_pretrained(str(path.parent), local_files_only=True)
        written = json.loads(path.read_text())
    except (OSError, ValueError, KeyError) as error:
        text = " ".join(str(error).split())[:300]
        raise ValueError(
            f"{path}: is no model of transformers, or one whose own code would have to be run:"
            f" {text}"
        ) from error

    return _without_noise(_resized(hf, written, config))


def _entry(entry: str) -> tuple[str, Any]:
    key, _, value = entry.partition("=")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value


def _resized(hf: Any, written: dict[str, Any], config: TransformersConfig) -> Any:
    """The configuration made again with other sizes than are written. Raises ValueError for a size
    that it does not have.
    """
    from huggingface_hub.errors import StrictDataclassError

    sizes = dict(_entry(entry) for entry in config.sizes)

    if not sizes:
        return hf

    settings = {name: value for name, value in written.items() if name != "model_type"}
    own, kind = settings, hf
    if config.tower and hasattr(hf, f"{config.tower}_config"):
        kind = getattr(hf, f"{config.tower}_config")
        own = settings[f"{config.tower}_config"] = dict(
            written.get(f"{config.tower}_config") or {}
        )

    allowed = {
        *kind.to_dict(),
        *getattr(kind, "attribute_map", {}),
        *inspect.signature(type(kind)).parameters,
    }
    for name in sizes:
        if name not in allowed:
            near = difflib.get_close_matches(name, list(allowed), n=3, cutoff=0.5)
            meant = f" Did you mean {', '.join(near)}?" if near else ""
            raise ValueError(
                f"backbone.sizes: the configuration of {named(config)} has no {name!r}.{meant}"
            )

    if "layer_types" not in sizes:
        own.pop("layer_types", None)  # one for each layer: the library writes it anew

    own.update(sizes)
    try:
        return type(hf)(**settings)
    except (ValueError, TypeError, StrictDataclassError) as error:
        text = " ".join(str(error).split())[:300]
        raise ValueError(
            f"backbone.sizes: {named(config)} cannot have them: {text}"
        ) from error


def _without_noise(hf: Any) -> Any:
    """Turn off what draws random numbers, and what is for generating text."""
    configs = [hf]
    for name in getattr(hf, "sub_configs", {}):
        sub_config = getattr(hf, name, None)
        if sub_config is not None:
            configs.append(sub_config)

    for part in configs:
        for name, value in list(vars(part).items()):
            if isinstance(value, float) and "drop" in name:
                setattr(part, name, 0.0)

        if hasattr(part, "apply_spec_augment"):
            part.apply_spec_augment = False

        if hasattr(part, "use_cache"):
            part.use_cache = False

        if hasattr(part, "mask_ratio"):
            part.mask_ratio = 0.0

    return hf


def _config_of(hf: Any, config: TransformersConfig) -> Any:
    if config.tower:
        return getattr(hf, f"{config.tower}_config", hf)
    return hf


def _tower(loaded: Any, hf: Any, config: TransformersConfig) -> tuple[nn.Module, str]:
    """The part of a model that is taken, and what the names of its tensors begin with."""
    module: Any = loaded
    towers = [name for name in TOWERS if hasattr(hf, f"{name}_config")]

    if config.tower:
        module = _first_module(loaded, TOWERS.get(config.tower, ()))
        if module is None:
            allowed = ", ".join(towers) or "none, leave tower out"
            raise ValueError(
                f"backbone.tower: {named(config)} has no tower {config.tower!r}; allowed: {allowed}"
            )
    elif len(towers) > 1:
        raise ValueError(
            f"backbone.tower: {named(config)} has several towers, name one: {', '.join(towers)}"
        )
    elif getattr(hf, "is_encoder_decoder", False) and hasattr(loaded, "get_encoder"):
        module = loaded.get_encoder()

    prefix = next(name for name, part in loaded.named_modules() if part is module)
    return module, f"{prefix}." if prefix else ""


def _first_module(owner: Any, names: Sequence[str]) -> nn.Module | None:
    """Return the first of the attributes that is a module; None if there is none."""
    for name in names:
        module = getattr(owner, name, None)
        if isinstance(module, nn.Module):
            return module

    return None


def _word_table(module: Any) -> str:
    """The path of a table of words; empty where a model reads none."""
    try:
        table = module.get_input_embeddings()
    except (NotImplementedError, AttributeError):
        return ""

    if not isinstance(table, nn.Embedding):
        return ""

    return next((name for name, part in module.named_modules() if part is table), "")


def _inputs(module: Any, hf: Any, name: str) -> Callable[[], dict[str, Tensor]]:
    """Inputs of a model's own kind. Raises ValueError for a kind that is not known."""
    kind = getattr(module, "main_input_name", "input_ids")
    if kind == "input_ids":
        return lambda: {
            kind: torch.arange(WORDS).remainder(WORDS // 2).unsqueeze(0) + 5
        }

    bands = getattr(hf, "num_mel_bins", None)
    is_image = hasattr(hf, "image_size") and not hasattr(hf, "num_frames")
    shape: tuple[int, ...]

    if kind == "pixel_values" and is_image:
        size = hf.image_size
        if not isinstance(size, (tuple, list)):
            size = (size, size)

        shape = (1, getattr(hf, "num_channels", 3), *size)
    elif kind == "input_values" and bands:
        shape = (1, hf.max_length, bands)
    elif kind == "input_values":
        shape = (1, SAMPLES)
    elif kind == "input_features" and hasattr(hf, "max_source_positions") and bands:
        shape = (1, bands, 2 * hf.max_source_positions)
    elif kind == "input_features" and hasattr(hf, "feature_projection_input_dim"):
        shape = (1, 4 * WORDS, hf.feature_projection_input_dim)
    else:
        raise ValueError(
            f"{name}: it reads {kind}, and how these look is not known here: words, images and"
            " sound are"
        )

    more = {}
    if "noise" in inspect.signature(module.forward).parameters:
        # a masked autoencoder sorts its patches by it
        count = (shape[-1] // hf.patch_size) * (shape[-2] // hf.patch_size)
        more["noise"] = torch.arange(count, dtype=torch.float32).unsqueeze(0)

    def inputs() -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(0)
        return {kind: torch.randn(shape, generator=generator), **more}

    return inputs
