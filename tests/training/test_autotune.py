"""The size of packs: chosen from times by a rule, measured once, and never for what cannot share a backbone."""

from __future__ import annotations

import json

import torch

from pointsweep.execution import launch as launching
from pointsweep.execution.inline import InlineLauncher
from pointsweep.execution.launchers import Resources
from pointsweep.sweep.sweep import load
from pointsweep.tracking.target import TrialTags
from pointsweep.training import autotune as calibrate
from pointsweep.training.runner import Job, Task
from tests.training.test_pack import config


def test_a_larger_pack_has_to_save_time():
    assert calibrate.best({1: 1.0, 2: 0.99, 4: 0.98}) == 1
    assert calibrate.best({1: 1.0, 2: 0.6, 4: 0.59, 8: 0.3}) == 8
    assert calibrate.best({1: 1.0, 2: 0.5, 4: 0.7, 8: 0.9}) == 2


def test_it_is_measured_once_and_remembered(tmp_path, monkeypatch):
    monkeypatch.setenv("POINTSWEEP_CACHE", str(tmp_path))
    monkeypatch.setattr(calibrate, "SIZES", (1, 2))
    monkeypatch.setattr(calibrate, "STEPS", 1)
    first = calibrate.pack_size(config("any2point"), torch.device("cpu"))
    [kept] = (tmp_path / "packs").iterdir()
    assert set(json.loads(kept.read_text())) <= {"1", "2"}
    monkeypatch.setattr(calibrate, "times", lambda *_: 1 / 0)
    # Seed and learning rate change no time; another batch would be measured anew.
    assert calibrate.pack_size(config("any2point", seed=3, lr=1e-4), torch.device("cpu")) == first
    assert calibrate.pack_size(config("full"), torch.device("cpu")) == 1


def test_a_sweep_may_ask_for_it(tmp_path):
    (tmp_path / "s.yaml").write_text(
        "name: s\nbase: {dataset: synthetic, tokenizer: point_pn_light, backbone: tiny, method: lora}\n"
        "rows: {method: [lora, adapter]}\nresources: {pack: auto, gpus: auto, recompute: true}\n"
    )
    asked = load(tmp_path / "s.yaml").resources
    assert (asked.pack, asked.gpus, asked.unit()) == ("auto", "auto", "GPU-hours")


def test_the_part_of_a_gpu_is_the_peak_with_a_fifth_more_and_cudas_own():
    gib = 1 << 30
    # 1.2 * 5 + 0.5 of 80 GiB is 0.08125: rounded up, and so never more packs than fit.
    assert calibrate.share(5 * gib, 80 * gib) == 0.09
    assert calibrate.share(0, 50 * gib) == 0.01
    assert calibrate.share(79 * gib, 80 * gib) == 1.0


def test_the_part_of_a_gpu_is_measured_once_for_an_arm_and_size(tmp_path, monkeypatch):
    """On the CPU, with made-up figures in place of CUDA's."""
    monkeypatch.setenv("POINTSWEEP_CACHE", str(tmp_path))
    monkeypatch.setattr(calibrate, "peak_and_total", lambda device: (2 << 30, 10 << 30))
    cpu = torch.device("cpu")
    assert calibrate.gpu_share(config("any2point"), 2, cpu) == 0.29  # (2.4 + 0.5) / 10
    monkeypatch.setattr(calibrate, "step_s", lambda *_: 1 / 0)
    assert calibrate.gpu_share(config("any2point", seed=3, lr=1e-4), 2, cpu) == 0.29
    assert calibrate.gpu_share(config("full"), 1, cpu) == 1.0  # has no pack: a GPU of its own


def test_a_sweep_gets_the_part_of_a_gpu_that_its_largest_arm_needs(monkeypatch):
    shares = {"lora": 0.1, "any2point": 0.25}
    monkeypatch.setattr(calibrate, "gpu_share", lambda config, size: size * shares[config.method.name])
    tags = TrialTags("s", "row", "column", 0)
    packs = [[Task(config(name, seed=seed), tags) for seed in (0, 1)] for name in shares]
    said: list[str] = []
    assert launching._gpu_share(InlineLauncher(), Resources(1, 1.0), packs, Job("store"), said.append) == 0.5
    assert said == ["gpus: auto: a pack gets 0.5 of a GPU, by the memory of its largest arm"]
