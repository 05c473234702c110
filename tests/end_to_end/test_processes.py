"""A trial of two processes on a real Ray: one of them started by the other in what Tune has reserved."""

from __future__ import annotations

import json

import pytest

from tests.end_to_end.test_command import SWEEP, command

WHOLE = SWEEP.replace("[lora, head_only]", "[full]").replace("seeds: 2", "seeds: 1")
WHOLE = WHOLE.replace("modality: 1d}", "modality: 1d, attention_dropout: 0, drop_path: 0}\n  head: {dropout: 0}", 1)


def losses(store) -> dict[str, list[float]]:
    """trial key -> its training losses."""
    found = {}
    for path in store.glob("trials/*/history.jsonl"):
        events = [json.loads(line)["event"] for line in path.read_text().splitlines()]
        found[path.parent.name] = [event["metrics"]["train/loss"] for event in events if event["type"] == "epoch"]
    return found


@pytest.mark.slow
def test_on_ray_trials_of_two_processes_have_the_losses_of_one(store, tmp_path):
    sweep, alone = tmp_path / "tiny.yaml", tmp_path / "alone"
    sweep.write_text(WHOLE + "resources: {cpus: 2, processes: 2}\n")
    run = command(sweep, "--tracking-uri", "none")
    assert run.returncode == 0, run.stdout + run.stderr
    assert "batches of 16 by 2 processes" in (store / "sweeps/tiny/table.txt").read_text()
    assert command(sweep, "--inline", "--tracking-uri", "none", "--store", alone).returncode == 0
    assert len(losses(store)) == 2
    for key, found in losses(alone).items():
        assert losses(store)[key] == pytest.approx(found, rel=1e-4)
