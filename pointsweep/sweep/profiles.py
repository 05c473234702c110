"""Profiles: the same sweep in another size.

`smoke` is built in: synthetic clouds (or shapes of parts), tiny backbones of the same modality, two
epochs. A file may add to it, or bring its own: `profiles: {smoke: {train.epochs: 3, only:
[adapter]}}`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pointsweep.config import registry
from pointsweep.config.backbones import DRAWN_WEIGHTS
from pointsweep.config.datasets import DatasetConfig
from pointsweep.sweep.overlay import Location, Settings
from pointsweep.sweep.yaml_document import Document

SMOKE = Location("profile smoke", None)
SMALL_DATA = {
    "name": "synthetic", "num_points": 128, "presample": 128, "source_points": 128,
    "train_per_class": 8, "test_per_class": 4,
}  # fmt: skip
SMALL_PARTS = {
    "name": "synthetic_parts", "num_points": 128, "presample": 128, "source_points": 128,
    "train_per_category": 8,
    "test_per_category": 4,
}  # fmt: skip
SMALL_ROOMS = {
    **SMALL_PARTS, "name": "synthetic_rooms", "train_per_category": 32, "test_per_category": 16,
}  # fmt: skip
SMALL = {
    "synthetic": SMALL_DATA,
    "synthetic_parts": SMALL_PARTS,
    "synthetic_rooms": SMALL_ROOMS,
}
SMALL_TRAIN = {
    "epochs": 2,
    "warmup_epochs": 0,
    "warmup_fraction": None,
    "batch_size": 16,
    "eval_batch_size": 64,
}
# fields that tell models by name apart
OF_A_MODEL = ("model", "model_type", "tower", "revision", "sizes", "causal")
SMALL_TOKENS = {"num_tokens": 8, "neighbours": 8}


def names(documents: Sequence[Document]) -> list[str]:
    """The profiles that a sweep knows."""
    known = {"smoke"}
    for document in documents:
        known.update(document.data.get("profiles") or {})

    return sorted(known)


SEARCH_TRIALS, FRESH_SEEDS = 4, 2


def shrink(name: str, data: dict[str, Any]) -> None:
    """Make a file's own sections small, before overrides are laid over them: few trials of a
    search, one core.
    """
    if name != "smoke":
        return

    for key in ("search", "per_arm"):
        section = data.get(key)
        if isinstance(section, Mapping):
            trials = _at_most(SEARCH_TRIALS, section.get("trials"))
            data[key] = {**section, "trials": trials}

    per_arm = data.get("per_arm")
    if isinstance(per_arm, dict):
        per_arm["then_seeds"] = _at_most(FRESH_SEEDS, per_arm.get("then_seeds"))

    data.pop("resources", None)


def _at_most(most: int, value: Any) -> Any:
    """Return the smaller number; what is no number stays as it is, to be refused."""
    if value is None:
        return most
    if isinstance(value, int) and not isinstance(value, bool):
        return min(most, value)

    return value


def own_settings(
    name: str, documents: Sequence[Document]
) -> Iterator[tuple[Document, str, Any]]:
    """Yield what files add to a profile, the eldest first: the document, the key and the value."""
    for document in documents:
        added = (document.data.get("profiles") or {}).get(name) or {}
        for key, value in added.items():
            if key != "only":
                yield document, str(key), value


def apply(name: str, settings: Settings, documents: Sequence[Document]) -> None:
    """Lay a profile over the settings of a cell."""
    if name == "smoke":
        _smoke(settings)

    for document, key, value in own_settings(name, documents):
        settings.set(key, value, location_of(document, name, key))


def location_of(document: Document, name: str, key: str) -> Location:
    """Return where a key of a profile stands."""
    path = ("profiles", name, key)
    return Location(f"{document.shown}{document.where(*path)}", document.line(path))


def only(name: str, documents: Sequence[Document]) -> list[str]:
    """The part of the table that a profile keeps, as patterns of --only; none: all of it. The
    youngest file that says so counts.
    """
    path = ("profiles", name, "only")
    for document in reversed(documents):
        profile = (document.data.get("profiles") or {}).get(name) or {}
        listed = profile.get("only")
        if listed is None:
            continue
        if not isinstance(listed, list):
            return [document.text_of(path, listed)]

        patterns = []
        for i, pattern in enumerate(listed):
            patterns.append(document.text_of((*path, i), pattern))

        return patterns

    return []


def _smoke(settings: Settings) -> None:
    location = SMOKE
    data = settings.data

    def put(part: str, value: Mapping[str, Any]) -> None:
        settings.drop(part)
        settings.set(part, dict(value), location)

    dataset = data.get("dataset", {})
    held_out = dataset.get("val_fraction", 0.0) or dataset.get("val") is not None
    dataset_class: Any = DatasetConfig

    if dataset.get("name") in registry.names("datasets"):
        dataset_class = registry.config_class("datasets", dataset["name"])

    small_data = SMALL[dataset_class.stand_in]
    put("dataset", {**small_data, "val_fraction": 0.25 if held_out else 0.0})
    settings.set("train", SMALL_TRAIN, location)
    network = data.get("network")

    if isinstance(network, dict):
        network_class = registry.config_class("networks", network["name"])
        if "neighbours" in network_class.model_fields:
            settings.set("network.neighbours", 8, location)

        return

    backbone = data.get("backbone")
    if isinstance(backbone, dict):
        name = backbone.get("name")
        if name != "tiny" and name in registry.names("backbones"):
            put("backbone", _stand_in(backbone))

    settings.set("tokenizer", SMALL_TOKENS, location)


def _stand_in(backbone: Mapping[str, Any]) -> dict[str, Any]:
    """The tiny backbone for another one; a stand-in for drawn weights differs from that for the
    pretrained ones.
    """
    backbone_class = registry.config_class("backbones", backbone["name"])
    # A model by its name says what it is where the file does; of one that does not, a line is as
    # good as a plane.
    modality = (
        backbone.get("modality") or getattr(backbone_class, "modality", None) or "1d"
    )
    like = str(backbone["name"])

    for field in OF_A_MODEL:
        value = backbone.get(field)
        if value not in (None, ""):
            like += f" {field} {value}"

    weights = backbone.get("weights")
    is_drawn = weights in DRAWN_WEIGHTS
    if is_drawn:
        like += f"-{weights}"

    stand_in = {"name": "tiny", "modality": modality, "like": like}
    if is_drawn and "weights_seed" in backbone:
        stand_in["weights_seed"] = backbone["weights_seed"]

    if backbone.get("num_blocks") == 0:
        stand_in["num_blocks"] = 0

    return stand_in
