"""The default warm-up: the papers' ten epochs in a long training, a tenth of the steps in a short one."""

from __future__ import annotations

import pytest

from pointsweep.config.parts import TrainConfig
from pointsweep.training.loop import step_rate


def test_a_long_training_warms_up_as_in_the_papers():
    for epochs in (100, 150, 300):
        train = TrainConfig(epochs=epochs)
        assert (train.warmup_epochs, train.warmup_fraction) == (10, None)


@pytest.mark.parametrize("epochs", [1, 5, 12, 99])
def test_a_short_training_rises_from_its_first_step_to_the_full_rate(epochs):
    train = TrainConfig(epochs=epochs, lr=1e-3)
    rates = [step_rate(train, epoch, step, 20) for epoch in range(1, epochs + 1) for step in range(20)]
    warm = round(0.1 * len(rates))
    # Linear over a tenth of all steps: the first one trains, and the last one of it has the full rate.
    assert rates[:warm] == pytest.approx([1e-6 + (1e-3 - 1e-6) * (step + 1) / warm for step in range(warm)])
    assert max(rates) == pytest.approx(1e-3, rel=1e-6)


def test_what_a_file_sets_stands():
    assert TrainConfig(epochs=5, warmup_epochs=1).warmup_fraction is None
    assert TrainConfig(epochs=5, warmup_fraction=None).warmup_epochs == 10
    assert TrainConfig(epochs=5, warmup_fraction=0.4).warmup_fraction == 0.4


def test_a_short_form_of_a_programs_recipe_does_not_lag():
    short = TrainConfig(epochs=20, lag_epochs=1)
    assert (short.warmup_fraction, short.lag_epochs) == (0.1, 0)
    assert TrainConfig(epochs=301, lag_epochs=1).lag_epochs == 1
    assert TrainConfig(epochs=20, warmup_epochs=2, lag_epochs=1).lag_epochs == 1
    with pytest.raises(ValueError, match="has no effect with warmup_fraction"):
        TrainConfig(epochs=301, warmup_fraction=0.1, lag_epochs=1)
