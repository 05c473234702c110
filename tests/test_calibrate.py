"""The size of packs: chosen from times by a rule, measured once, and never for what cannot share a backbone."""

from __future__ import annotations

import json

import torch

from pointsweep import calibrate
from pointsweep.sweep import load
from tests.test_pack import config


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
        "rows: {method: [lora, adapter]}\nresources: {pack: auto, recompute: true}\n"
    )
    assert load(tmp_path / "s.yaml").resources.pack == "auto"
