"""What a method counts beyond what the model has is refused: it would be cut, and the record would not say so."""

from __future__ import annotations

import pytest

from pointsweep.config import registry
from pointsweep.config.validation import trial_from_dict
from pointsweep.errors import ConfigError

SIZES = {"blocks": 4, "tokens": 24, "points": 256}
COUNTED = [
    (name, field, kind)
    for name, config in registry.config_classes("methods").items()
    if config.__module__ == "pointsweep.config.methods"
    for field, kind in config.counted.items()
]


def trial(method: dict):
    points = SIZES["points"]
    return trial_from_dict(
        {
            "dataset": {"name": "synthetic", "num_points": points, "presample": points, "source_points": points},
            "tokenizer": {"name": "patch", "num_tokens": SIZES["tokens"], "neighbours": 8},
            "backbone": {"name": "point_mae", "weights": "random", "num_blocks": SIZES["blocks"]},
            "method": method,
        }
    )


def test_there_are_methods_that_count():
    assert len(COUNTED) >= 9


@pytest.mark.parametrize(("name", "field", "kind"), COUNTED)
def test_more_than_there_are_is_refused_and_as_many_are_not(name, field, kind):
    most = SIZES[kind]
    trial({"name": name, field: most})
    with pytest.raises(ConfigError, match=rf"method.{field}\b.*{most + 1} of {most} {kind}; allowed: at most {most}"):
        trial({"name": name, field: most + 1})


@pytest.mark.parametrize("name", dict.fromkeys(name for name, _, _ in COUNTED))
def test_a_papers_default_fits_itself_to_a_smaller_model(name):
    trial({"name": name})
