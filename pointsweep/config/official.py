"""Choices of the released programs that depend on the backbone and the data set: `compat: official`
alone takes them.

Settings that a file leaves out get the program's values (`with_defaults`), so that they stand in
the trial's configuration. What no setting says is a `Program`, which the model reads. Sources: the
programs themselves, as spec 2.1, 2.8, 3.4 and 4.4 list them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pointsweep.config.schema import TrialConfig

# Any2Point: where a program adds the encodings, by backbone, on ScanObjectNN and on ModelNet40
# (T43). DeiT follows DINOv2.
INJECTIONS = {
    "clip_text": ("twice_then_each", "once"),
    "dinov2": ("each_block", "each_block"),
    "deit": ("each_block", "each_block"),
}
VISION_AND_AUDIO = ("dinov2", "deit", "imagebind_audio", "ssast")


@dataclass(frozen=True)
class Program:
    """Settings of a released program: what it does that no setting says; the defaults are those of
    `compat: fixed`.
    """

    block_eps: float | None = (
        None  # of the blocks' layer norms; null = the backbone's own
    )
    final_eps: float | None = None  # of the norm behind the blocks
    # its operator for farthest points never picks what is within 0.0316 of the origin
    skips_near_origin: bool = False
    drops_attention: bool = True  # drop path acts on the attention branch too
    # Point-PEFT's local attention has drop path, drawn for every group (T46)
    drops_groups: bool = False
    # the drop path of local attention is drawn for every token and view (T44)
    drops_each_token: bool = False
    # the frozen embedding's batch norms take the batch's statistics in training (T46)
    trains_frozen_norms: bool = False
    # prompts beside the tokens are normed before they meet the frozen keys and values (T48)
    norms_prompts: bool = True


def program(config: TrialConfig) -> Program:
    """Return what the released program does that a trial stands for; the defaults under `fixed`.

    The tokenizer's `skip_near_origin` stands above it.
    """
    released = _released(config)
    if config.tokenizer is None or config.tokenizer.skip_near_origin is None:
        return released

    return dataclasses.replace(
        released, skips_near_origin=config.tokenizer.skip_near_origin
    )


def _released(config: TrialConfig) -> Program:
    if config.compat != "official" or config.method is None or config.backbone is None:
        return Program()

    modelnet = _is_modelnet(config.dataset.name)
    if config.method.name == "appt":
        return Program(block_eps=1e-5, final_eps=1e-5)
    if config.method.name == "point_peft":
        return Program(
            skips_near_origin=True,
            drops_attention=False,
            drops_groups=True,
            trains_frozen_norms=True,
            norms_prompts=False,
        )

    if modelnet:
        flat = config.backbone.name in VISION_AND_AUDIO
        return Program(
            block_eps=1e-5,
            final_eps=1e-5,
            skips_near_origin=True,
            drops_each_token=flat,
        )

    return Program(final_eps=1e-6)


def with_defaults(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return a trial's plain data with the program's value for every setting of these that it
    leaves out.
    """
    filled = dict(data)
    method = _name(data.get("method"))
    backbone = _name(data.get("backbone"))
    dataset = _name(data.get("dataset"))

    if data.get("compat") != "official" or not method:
        return filled
    if data.get("network") is not None:
        return filled

    if method == "point_peft":
        _fill(filled, "positions", "injection", "each_block")
        _fill(filled, "backbone", "drop_path", 0.1)
        _fill(filled, "dataset", "skip_near_origin", True)

        if _rotation(data.get("dataset")) != "none":
            _fill(filled, "dataset", "rotate_together", True)

    if method == "any2point":
        on_scans, on_modelnet = INJECTIONS.get(backbone, ("once", "once"))
        if _is_modelnet(dataset):
            _fill(filled, "dataset", "skip_near_origin", True)
            _fill(filled, "positions", "injection", on_modelnet)
            if backbone in VISION_AND_AUDIO:
                _fill(filled, "backbone", "drop_path", 0.1)
        else:
            _fill(filled, "positions", "injection", on_scans)

    if method == "appt" and _name(data.get("tokenizer")) == "point_pn":
        _fill(filled, "dataset", "heights", True)

    return filled


def _is_modelnet(dataset: str) -> bool:
    return dataset.startswith("modelnet40")


def _name(part: Any) -> str:
    """Return the name of a part of a trial: a text, a mapping or a configuration; empty where it
    has none.
    """
    name = getattr(part, "name", part)
    if isinstance(part, Mapping):
        name = part.get("name")

    return name if isinstance(name, str) else ""


def _rotation(dataset: Any) -> str:
    """Return how training clouds are turned: as said, or as ScanObjectNN's are by default."""
    default = "gravity" if _name(dataset).startswith("scanobjectnn") else "none"
    if isinstance(dataset, Mapping):
        return dataset.get("rotate", default)

    return default


def _fill(data: dict[str, Any], part: str, field: str, value: Any) -> None:
    given = data.get(part)
    if given is None:
        given = {}
    elif isinstance(given, str):
        given = {"name": given}

    if isinstance(given, Mapping) and field not in given:
        data[part] = {**given, field: value}
