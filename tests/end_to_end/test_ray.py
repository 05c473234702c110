"""The command on a real Ray that it starts itself: killed, told to end, out of resources. As a job on a cluster: test_nodes.py."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.end_to_end.test_command import (
    SWEEP,
    command,
    epochs_in_mlflow,
    run_until_complete,
    start_and_wait_for_progress,
    table,
    undisturbed,  # noqa: F401 - a fixture
)

ROOT = Path(__file__).parents[2]


def test_on_ray_the_table_is_the_same_and_a_killed_driver_continues(store, tmp_path, undisturbed):  # noqa: F811
    sweep = tmp_path / "tiny.yaml"
    sweep.write_text(SWEEP.replace("epochs: 2", "epochs: 4"))
    process = start_and_wait_for_progress(sweep, store)
    process.kill()
    process.communicate()
    run_until_complete(sweep)
    assert table(store) == undisturbed
    steps = epochs_in_mlflow(store)
    assert len(steps) == 8
    assert all(sorted(seen) == [1, 2, 3, 4] for seen in steps.values()), steps


@pytest.mark.parametrize("number", [signal.SIGTERM])
def test_a_signal_ends_a_sweep_on_ray_within_3_s(store, tmp_path, number):
    sweep = tmp_path / "tiny.yaml"
    sweep.write_text(SWEEP.replace("epochs: 2", "epochs: 200"))
    process = start_and_wait_for_progress(sweep, store, "--tracking-uri", "none")
    begun = time.monotonic()
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 3, output
    assert time.monotonic() - begun < 15  # 3 s on a quiet machine; the sweep would take minutes


RARELY = (
    "from pointsweep.results import trial_dir as history\nhistory.CHECKPOINT_SHARE = 1e-9  # at the first and the last epoch only\n"
)


@pytest.mark.slow
def test_a_worker_that_is_told_to_end_saves_a_checkpoint_within_3_s(store, tmp_path, monkeypatch):
    """As a node does that is taken away: SIGTERM, and 3 s later SIGKILL. The trial goes on from there in another worker."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(RARELY)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "site"), str(ROOT)]))
    sweep = tmp_path / "tiny.yaml"
    sweep.write_text(SWEEP.replace("epochs: 2", "epochs: 300").replace("seeds: 2", "seeds: 1"))
    driver = start_and_wait_for_progress(sweep, store, "--tracking-uri", "none", "--only", "row=lora", "--only", "column=line")
    folder = next((store / "trials").iterdir())
    holder = json.loads((folder / "lease.json").read_text())
    time.sleep(5)  # some epochs
    os.kill(holder["pid"], signal.SIGTERM)
    time.sleep(3)
    with contextlib.suppress(ProcessLookupError):
        os.kill(holder["pid"], signal.SIGKILL)
    driver.communicate(timeout=300)
    events = [json.loads(line)["event"] for line in (folder / "history.jsonl").read_text().splitlines()]
    types = [event["type"] for event in events]
    again = types.index("start", 1)
    assert types[:again].count("epoch") > 1, "more than the one of the first checkpoint"
    assert "preempted" in [event.get("class") for event in events[:again]]
    assert [event["epoch"] for event in events if event["type"] == "epoch"] == list(range(1, 301))


def test_a_trial_that_asks_for_more_than_the_machine_has_is_refused(store, tmp_path):
    sweep = tmp_path / "tiny.yaml"
    sweep.write_text(SWEEP + "resources: {cpus: 1000}\n")
    run = command(sweep, "--tracking-uri", "none")
    assert run.returncode == 2, run.stdout + run.stderr
    assert "resources.cpus: a trial asks for 1000, this machine has" in run.stderr


def command_lines(store: Path) -> dict[int, str]:
    """The command lines of all living processes that were started with this store, by process."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if str(store).encode() in (path / "environ").read_bytes():
                line = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                found[int(path.name)] = line
    return found


def processes_of(store: Path) -> list[str]:
    """The command lines of all living processes that were started with this store."""
    return list(command_lines(store).values())


@pytest.mark.parametrize("name", ["raylet", "gcs_server"])
def test_a_process_of_ray_that_dies_ends_the_command_in_one_line_and_the_same_command_continues(store, tmp_path, name):
    sweep = tmp_path / "tiny.yaml"
    sweep.write_text(SWEEP.replace("epochs: 2", "epochs: 150"))
    less = ["--only", "row=lora", "--only", "column=line", "seeds=1", "--tracking-uri", "none"]
    process = start_and_wait_for_progress(sweep, store, *less)
    (victim,) = [pid for pid, line in command_lines(store).items() if line.split(" ")[0].endswith(f"/{name}")]
    os.kill(victim, signal.SIGKILL)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 6, output
    assert f"Ray's {name} ended while trials ran: all that is done is kept in {store}" in output.replace("file://", "")
    assert "Traceback" not in output
    if name == "raylet":
        run_until_complete(sweep, *less, "--inline")


def test_a_sweep_that_the_plan_refuses_leaves_no_ray_behind(store, tmp_path):
    sweep = tmp_path / "tiny.yaml"
    sweep.write_text(SWEEP)
    run = command(sweep, "train.compile=true")
    assert run.returncode == 2, run.stdout + run.stderr
    assert "train.compile: true needs a GPU" in run.stderr
    assert processes_of(store) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_while_ray_starts_ends_the_command_as_ever(store, tmp_path, number):
    sweep = tmp_path / "tiny.yaml"
    sweep.write_text(SWEEP)
    line = [sys.executable, "-m", "pointsweep.run", str(sweep), "--tracking-uri", "none"]
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + 120
    while not any("gcs_server" in line for line in processes_of(store)):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 3, output
    assert "the same command continues" in output
    assert not (store / "trials").exists()
