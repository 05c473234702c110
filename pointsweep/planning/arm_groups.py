"""Keys of arms: what two trials must have in common to be the same model, or the same training, for
the audit.

A plan of thousands of cells has few models: whatever is expensive is done once for each key. Keys
are tuples of the canonical JSON of parts, which the cells of a sweep share, so that a key costs a
few look-ups. Importing this is free of torch.
"""

from __future__ import annotations

import functools
import json

from pointsweep.config.base import Config, canonical_json
from pointsweep.config.schema import TrialConfig

Key = tuple[object, ...]
# Fields of a backbone that choose its weights. The audit draws weights of its own, so it sees none
# of them.
OF_WEIGHTS = ("weights", "sha256", "weights_seed", "like")


def model_key(config: TrialConfig) -> Key:
    """Return what the model of a trial depends on, but for the weights of its backbone."""
    dataset = config.dataset
    num_classes: int = dataset.num_classes  # type: ignore[attr-defined]
    seen_of_data = (
        dataset.name,
        dataset.num_points,
        dataset.heights,
        dataset.feature_channels,
        dataset.num_categories,
        num_classes,
    )

    return (*_components(config), config.compat, config.train.init, seen_of_data)


def training_key(config: TrialConfig) -> Key:
    """Return what tells apart two arms whose training is looked at: the model's parts and the kind
    of data.
    """
    dataset = config.dataset
    return (*_components(config), config.compat, dataset.name, dataset.feature_channels)


def _components(config: TrialConfig) -> Key:
    components = (
        config.network,
        config.tokenizer,
        config.positions,
        config.method,
        config.head,
    )
    return (*map(_json, components), _without_weights(_json(config.backbone)))


@functools.lru_cache(maxsize=1024)
def _without_weights(backbone: str) -> str:
    """Return the canonical JSON of a backbone without the fields that choose its weights."""
    fields = json.loads(backbone) if backbone else {}
    for name in OF_WEIGHTS:
        fields.pop(name, None)

    return json.dumps(fields)


def _json(component: Config | None) -> str:
    return "" if component is None else canonical_json(component)
