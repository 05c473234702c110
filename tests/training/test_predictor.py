"""A trained model as a function of clouds."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pointsweep.config.validation import trial_from_dict
from pointsweep.models.point_model import build
from pointsweep.training.predictor import Predictor

TRIAL = {
    "dataset": {"name": "synthetic", "num_points": 64, "presample": 64, "center": False, "unit_sphere": False},
    "tokenizer": {"name": "point_pn_light", "num_tokens": 8, "neighbours": 6},
    "backbone": "tiny", "method": "any2point",
}  # fmt: skip


@pytest.fixture
def predictor() -> Predictor:
    torch.manual_seed(0)
    trial = trial_from_dict(TRIAL)
    return Predictor(trial, build(trial, 3), ["a", "b", "c"])


def test_an_array_that_is_written_to_again_is_other_clouds(predictor):
    """As a program has it that reads every frame of a sensor into one array."""
    first, second = np.random.default_rng(0).random((2, 2, 64, 3), dtype=np.float32)
    expected = predictor.predict(second.copy())
    frame = first.copy()
    predictor.predict(frame)
    frame[:] = second
    assert predictor.predict(frame).equals(expected)


def test_one_cloud_is_a_batch_of_one(predictor):
    clouds = np.random.default_rng(0).random((3, 80, 3))
    alone = predictor.predict(clouds[1])
    assert len(alone) == 1
    assert list(alone.columns) == ["class", "label", "probability of a", "probability of b", "probability of c"]
    together = predictor.predict(clouds)
    np.testing.assert_allclose(alone.iloc[0, 2:].astype(float), together.iloc[1, 2:].astype(float), rtol=1e-5)
    assert together["label"].tolist() == [predictor.class_names[number] for number in together["class"]]


def test_clouds_of_another_width_are_refused(predictor):
    with pytest.raises(ValueError, match=r"clouds are an array \(clouds, points, 3\), got \(2, 64, 4\)"):
        predictor.predict(np.zeros((2, 64, 4)))
