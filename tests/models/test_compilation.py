"""Compiled parts against the plain ones, on a CPU with the compiler's front end alone: no C compiler, no GPU."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from pointsweep.models import compilation as compiled
from pointsweep.models.activation_checkpointing import recompute_stages
from pointsweep.models.point_model import build
from pointsweep.training.fusion import coroutines as members
from pointsweep.training.loop import accumulate, make_optimizer
from tests.training.test_pack import assert_same, config, run

CPU = torch.device("cpu")


@pytest.fixture
def graphs(monkeypatch):
    """Counts what is compiled; `eager` runs the captured graphs as they are."""
    torch.compiler.reset()
    counter = CompileCounterWithBackend("eager")
    monkeypatch.setattr(compiled, "BACKENDS", {"cpu": counter})
    yield counter
    torch.compiler.reset()


def losses(compile_them: bool, recompute: bool = False) -> list[float]:
    torch.manual_seed(0)
    trial = config("any2point")
    model = build(trial, 5).train()
    for stage in model.tokenizer.stages:
        stage.compiled = True  # both sides take the plain layers
    model.method.compiled_aggregate = model.method.aggregate
    if compile_them:
        compiled.compile_parts(model, CPU)
    if recompute:
        recompute_stages(model.tokenizer)
    optimizer, noise = make_optimizer(model, trial.train), torch.Generator().manual_seed(0)
    for module in model.modules():
        if hasattr(module, "generator"):
            module.generator = noise
    points, labels = torch.rand(8, 64, 3, generator=torch.Generator().manual_seed(1)), torch.arange(8) % 5
    found = []
    for _ in range(3):
        found.append(float(accumulate(model, [points], labels, trial.train, 1)[0]))
        optimizer.step()
        optimizer.zero_grad()
    return found


@pytest.mark.parametrize("recompute", [False, True])
def test_a_compiled_step_is_the_plain_one(graphs, recompute):
    """Three stages and the views: four graphs, one for both blocks, so no shape and no block makes another."""
    assert losses(True, recompute) == pytest.approx(losses(False), rel=2e-6)
    assert graphs.frame_count == 4
    assert not torch._dynamo.utils.counters["graph_break"]


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compilers_give_the_plain_step(monkeypatch, backend):
    """With a compiled backward pass too; `inductor` needs a C++ compiler here."""
    monkeypatch.setattr(compiled, "BACKENDS", {"cpu": backend})
    assert losses(True) == pytest.approx(losses(False), rel=2e-6)
    torch.compiler.reset()


def test_in_a_pack_compiled_trials_are_what_they_are_alone(graphs, tmp_path, monkeypatch):
    monkeypatch.setattr(members, "JOINED_ON", {"cpu"})
    configs = [config("any2point", seed=seed, compile=True, epochs=1) for seed in (0, 1)]
    for alone, packed in zip(run(configs, tmp_path / "a", False), run(configs, tmp_path / "b", True), strict=True):
        assert_same(alone, packed)
    assert graphs.frame_count > 0


def test_without_a_gpu_it_is_refused():
    with pytest.raises(ValueError, match="needs a GPU"):
        compiled.compile_parts(torch.nn.Identity(), CPU)


def test_it_is_another_trial_and_leaves_the_keys_of_others_alone():
    assert config("lora", compile=True).key() != config("lora").key() == config("lora", compile=False).key()
