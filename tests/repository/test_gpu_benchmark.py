"""The rows of benchmarks/gpu.py on a CPU: they run, tell no figure, and their baseline computes what the method computes."""

from __future__ import annotations

from argparse import Namespace
from functools import partial

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import gpu
from benchmarks.operators import Operators, a_step
from pointsweep.models.methods.any2point import Any2Point
from pointsweep.models.point_model import build, count_parameters
from pointsweep.training.autotune import train_steps
from pointsweep.training.fusion import coroutines as members
from pointsweep.training.fusion.coroutines import run_together
from pointsweep.training.fusion.pack import SharedBackbone
from tests.training.test_pack import config


def test_without_a_gpu_no_figure_is_printed(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("sys.argv", ["gpu"])
    with pytest.raises(SystemExit, match="not measured"):
        gpu.main()
    assert capsys.readouterr().out == ""


def test_all_rows_run_in_a_quick_form_and_tell_no_figure(monkeypatch, capsys):
    """G2 too, with its processes. What makes a ratio void is computed: rows that fail end with 1."""
    monkeypatch.setattr("sys.argv", ["gpu", "--quick", "--steps", "1"])
    with pytest.raises(SystemExit, match="0"):
        gpu.main()
    rows = capsys.readouterr().out.splitlines()[4:]
    assert rows == [f"| {name} | runs; a figure needs a GPU and the full shapes |" for name in gpu.ROWS]


def test_losses_that_must_be_equal_are(monkeypatch):
    monkeypatch.setattr(members, "JOINED_ON", {"cpu"})
    args = Namespace(quick=True, steps=1)
    assert "equal losses: yes" in gpu.g1(args)
    assert "equal losses: yes" in gpu.g3(args)
    assert gpu.told_equal(6e-5, gpu.FUSED_EQUAL) == "equal losses: NO, the ratio is void (6e-05)"


def test_the_full_setting_is_a_trial_with_the_counted_parameters():
    """948,312 values of CLIP's text tower without the head (spec 2.7), so that the benchmark cannot fail there at first."""
    config = gpu.trial(Namespace(quick=False))
    with torch.device("meta"):
        assert count_parameters(build(config, 15)).trainable_without_head == 948_312


def test_views_in_a_loop_are_the_views_in_one_tensor():
    torch.manual_seed(0)
    config = gpu.trial(Namespace(quick=True), "fp32")
    model = gpu.shared_of(config).build(config, 5).train()
    for parameter in model.method.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    torch.testing.assert_close(gpu.block(model, True)(), gpu.block(model, False)(), rtol=1e-4, atol=1e-5)


def test_views_in_one_tensor_take_a_third_of_the_operators(monkeypatch):
    """Forward and backward of one block with everything in it, six views: launches are what a GPU waits for here.

    The operator of a CPU, which works on one view after the other, is left out.
    """
    monkeypatch.setattr(Any2Point, "_works_in_place", lambda *_: False)
    config = gpu.trial(Namespace(quick=True), "fp32")
    model = gpu.shared_of(config).build(config, 5).train()
    counts = []
    for loop in (False, True):
        work = gpu.block(model, loop)
        work()
        with Operators() as operators:
            work()
        counts.append(operators.count)
    assert counts[0] <= 280
    assert counts[1] >= 3 * counts[0]


def test_a_step_of_a_pack_takes_little_more_operators_than_that_of_one_trial(monkeypatch):
    """What is each member's own: loss, clipping, a group of its rate in the optimiser, noise, what its clouds are projected to."""
    monkeypatch.setattr(members, "JOINED_ON", {"cpu"})
    configs = [config("adapter", "2d", seed) for seed in range(4)]
    shared = SharedBackbone(configs[0].backbone, torch.device("cpu"))
    alone, pack = a_step(shared, configs[:1]), a_step(shared, configs)
    assert pack <= 1.3 * alone + len(configs) * 80


class Waits(TorchDispatchMode):
    """Notes the operators that the CPU has to wait for (a number, a shape of the batch)."""

    names = ("_local_scalar_dense", "item", "nonzero", "_unique2", "unique_dim", "masked_select")

    def __init__(self, seen):
        super().__init__()
        self.seen = seen

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        self.seen.extend([name] if name in self.names else [])
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("count", [1, 2])
def test_nothing_of_a_step_depends_on_what_a_gpu_has_worked_out(monkeypatch, count):
    """A queue of kernels is never drained within a step, of a trial alone or of members as one."""
    monkeypatch.setattr(members, "JOINED_ON", {"cpu"})
    waits = []

    def member(config):
        steps = train_steps(config, gpu.shared_of(config), 3)
        next(steps)
        with Waits(waits):
            next(steps)

    configs = [gpu.trial(Namespace(quick=True), "bf16").replace(seed=seed) for seed in range(count)]
    with Waits(waits):
        run_together([partial(member, config) for config in configs], 1)
    assert waits == []
