"""What a launch would do."""

from __future__ import annotations

from pathlib import Path

import pytest

from pointsweep.plan import make_plan
from pointsweep.records import Record
from pointsweep.store import FileStore
from pointsweep.sweep import load

SWEEPS = Path(__file__).parent.parent / "sweeps"


@pytest.fixture
def made(tmp_path):
    return FileStore(tmp_path / "store")


def test_table_5_is_planned_without_data_or_weights_and_says_what_is_missing(made, monkeypatch, tmp_path):
    monkeypatch.delenv("POINTSWEEP_DATA", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    plan = make_plan(load(SWEEPS / "ablation_table5.yaml"), made)
    assert plan.counts() == "0 finished, 18 to run"
    counts = [plan.parameters[trial.config.key()]["trainable_without_head"] for trial in plan.sweep.trials()[::3]]
    # No adapter; pooling without the 3D branch; the whole adapter: CLIP and DINOv2 each (spec 2.7, 2.10).
    assert counts == [279_744, 279_744, 929_880, 782_328, 948_312, 800_760]
    text = "\n".join(plan.missing)
    for part in ("data set scanobjectnn: POINTSWEEP_DATA is not set", "openai/clip-vit-large-patch14", "facebook/dinov2-base"):
        assert part in text
    assert not made.root.exists()


def test_states_are_read_from_the_store(made):
    sweep = load(SWEEPS / "smoke.yaml", ["seeds=1"])
    keys = [trial.config.key() for trial in sweep.trials()]
    counts = {"trainable": 1, "trainable_without_head": 1, "total": 1}
    made.write(f"trials/{keys[0]}/record.json", Record(keys[0], {}, {}, counts, {}, "").to_json().encode())
    made.write(f"trials/{keys[1]}/checkpoint.safetensors", b"x")
    plan = make_plan(sweep, made)
    assert plan.counts() == "1 finished, 11 to run (1 to resume)"
    assert [config.key() for config in plan.to_run] == keys[1:]
    assert plan.missing == ()
