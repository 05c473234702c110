"""The command on a real Ray: started by itself, killed, and as a job on a cluster."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
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


RARELY = "from pointsweep import history\nhistory.CHECKPOINT_SHARE = 1e-9  # at the first and the last epoch only\n"


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


@contextlib.contextmanager
def cluster(folder: Path) -> Iterator[str]:
    """A Ray head with a dashboard, as `ray start --head` makes it; the address that `ray job submit` takes."""
    environment = os.environ | {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    ports = [
        "--port",
        "6412",
        "--dashboard-port",
        "8412",
        "--ray-client-server-port",
        "20412",
        "--dashboard-agent-listen-port",
        "20413",
        "--min-worker-port",
        "21000",
    ]
    arguments = ["start", "--head", "--block", "--num-cpus", "2", *ports, "--max-worker-port", "21999", "--temp-dir", str(folder)]
    ray = str(Path(sys.executable).parent / "ray")
    process = subprocess.Popen(
        [ray, *arguments], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    address = "http://127.0.0.1:8412"
    try:
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                if urllib.request.urlopen(f"{address}/api/version", timeout=2).status == 200:
                    break
            time.sleep(0.5)
        yield address
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
            time.sleep(2)
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _submit(submit: list[str], environment: dict[str, str]) -> str:
    """The output of a job; a fresh head may answer for some seconds that it has no agent yet."""
    for _ in range(20):
        run = subprocess.run(submit, capture_output=True, text=True, timeout=240, env=environment)
        if "No available agent" not in run.stderr:
            break
        time.sleep(1)
    assert run.returncode == 0, run.stdout + run.stderr[-2000:]
    return run.stdout


def test_ray_job_submit_ships_the_folder_and_continues(store, tmp_path_factory):
    """The line of the README, on a small sweep: twice, the second time with nothing to run; provenance without .git."""
    # Ray's sockets need a short path.
    folder = Path(tmp_path_factory.mktemp("r", numbered=True))
    short = Path(f"/tmp/r{os.getpid()}")
    overrides = ["profile=smoke", "seeds=1"]
    line = f"{sys.executable} -m pointsweep.run sweeps/quickstart.yaml {' '.join(overrides)} --store {store}".split()
    variables = {"POINTSWEEP_CACHE": os.environ["POINTSWEEP_CACHE"], "OMP_NUM_THREADS": "1"}
    with cluster(short) as address:
        ray = str(Path(sys.executable).parent / "ray")
        submit = [
            ray,
            "job",
            "submit",
            "--address",
            address,
            "--working-dir",
            str(ROOT),
            "--runtime-env-json",
            json.dumps({"env_vars": variables}),
        ]
        environment = os.environ | {"RAY_AUTH_MODE": "disabled", "TMPDIR": str(folder)}
        outputs = [_submit([*submit, "--", *line], environment) for _ in range(2)]
    assert "0 finished, 3 to run" in outputs[0], outputs[0]
    assert "[3/3] finished" in outputs[0], outputs[0]
    assert "3 finished, 0 to run" in outputs[1], outputs[1]
    records = [json.loads(path.read_text()) for path in (store / "trials").glob("*/record.json")]
    assert len(records) == 3
    assert all(record["origin"]["code"].startswith("tree ") for record in records)
    assert command("sweeps/quickstart.yaml", *overrides, cwd=ROOT).stdout.startswith("quickstart-smoke: 3 finished, 0 to run")
