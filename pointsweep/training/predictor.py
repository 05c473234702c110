"""A finished trial as a function of clouds: what `mlflow.pyfunc.load_model` returns for a trial's
logged model.

The model's folder holds trial.json (configuration, number and names of the classes) and the trained
weights as safetensors; nothing in it is a pickle or code. Frozen weights are loaded as training
loads them, from where the configuration says. Clouds are sampled to the trial's number of points
and normalised as its test clouds were. Letters: B clouds, P points, C classes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from pointsweep.config.schema import TrialConfig
from pointsweep.config.validation import check_trial
from pointsweep.data.augment import normalise
from pointsweep.data.dataset import sample
from pointsweep.errors import ConfigError, Problem
from pointsweep.models.point_model import build, load_trained_state
from pointsweep.results.records import WEIGHTS

if TYPE_CHECKING:
    import pandas

TRIAL = "trial.json"
BATCH = 32  # clouds


class Predictor:
    """A trained model with its classes."""

    def __init__(
        self, config: TrialConfig, model: nn.Module, class_names: Sequence[str]
    ) -> None:
        self.config = config
        self.model = model.eval()
        self.class_names = list(class_names)

    def predict(
        self, model_input: Any, params: dict[str, Any] | None = None
    ) -> pandas.DataFrame:
        """Return a line for each cloud: its class's number, the class, and the probability of each
        class.

        model_input: (B, P, 3), or (P, 3) of one cloud; with features behind x, y, z as the data
        set has them. Raises ValueError for another shape.
        """
        import pandas

        # a copy: batch_cache.py does not see what NumPy writes into an array later
        clouds = np.array(model_input, dtype=np.float32)
        clouds = clouds[None] if clouds.ndim == 2 else clouds
        width = 3 + self.config.dataset.feature_channels

        if clouds.ndim != 3 or clouds.shape[2] != width:
            raise ValueError(
                f"clouds are an array (clouds, points, {width}), got {clouds.shape}"
            )

        chances = self.probabilities(torch.from_numpy(clouds)).numpy()  # (B, C)
        best = chances.argmax(axis=1)
        table = pandas.DataFrame(
            {"class": best, "label": [self.class_names[number] for number in best]}
        )

        for number, name in enumerate(self.class_names):
            table[f"probability of {name}"] = chances[:, number]

        return table

    @torch.no_grad()
    def probabilities(self, points: Tensor) -> Tensor:
        """points (B, P, 3) as they were measured -> probabilities (B, C)."""
        batches = []
        for start in range(0, len(points), BATCH):
            dataset = self.config.dataset
            batch = points[start : start + BATCH]
            batch = sample(batch, dataset.num_points, dataset.skip_near_origin)
            batch = normalise(batch, dataset)
            batches.append(self.model(batch).float().softmax(dim=1))

        return torch.cat(batches)


def load_predictor(folder: Path) -> Predictor:
    """Return the predictor that a folder holds. Raises ConfigError and ValueError for one that does
    not fit this version.
    """
    from safetensors.torch import load_file

    facts = json.loads((folder / TRIAL).read_text(encoding="utf-8"))
    config, problems = check_trial(facts["config"])

    if config is None or problems:
        raise ConfigError(
            str(folder / TRIAL), [Problem(path, message) for path, message in problems]
        )

    model = build(config, facts["num_classes"])
    load_trained_state(model, load_file(folder / WEIGHTS))
    names = facts["class_names"] or list(map(str, range(facts["num_classes"])))

    return Predictor(config, model, names)


def _load_pyfunc(path: str) -> Predictor:
    """Return the predictor; the name and the argument are those that MLflow calls."""
    return load_predictor(Path(path))
