"""The command on a store on S3, on a real Ray, killed and continued on another node: the table of an undisturbed run on a disk."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request

import pytest

from pointsweep.storage.base import walk
from pointsweep.storage.s3 import S3Store
from tests.end_to_end.test_command import SWEEP, command, table
from tests.support.s3 import BUCKET, served

SMALL = SWEEP.replace("seeds: 2", "seeds: 1").replace("epochs: 2", "epochs: 4")


@pytest.mark.slow
def test_a_killed_sweep_on_s3_continues_on_another_node_to_the_same_table(store, tmp_path, monkeypatch):
    sweep = tmp_path / "tiny.yaml"
    sweep.write_text(SMALL)
    assert command(sweep, "--inline", "--tracking-uri", "none").returncode == 0
    with served() as faults:
        remote = S3Store(f"s3://{BUCKET}/sweeps-of-a-test")
        faults.share = 0.03
        monkeypatch.setenv("POINTSWEEP_CACHE", str(tmp_path / "first"))
        line = [sys.executable, "-m", "pointsweep.run", str(sweep), "--inline", "--store", remote.url]
        process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        deadline = time.monotonic() + 120
        while not any(name.endswith("/checkpoint.safetensors") for name in walk(remote, "trials")):
            assert time.monotonic() < deadline and process.poll() is None, process.communicate()[0]
        process.kill()
        process.communicate()
        monkeypatch.setenv("POINTSWEEP_CACHE", str(tmp_path / "second"))
        run = command(sweep, "--store", remote.url)
        assert run.returncode == 0, run.stdout + run.stderr
        assert "MLflow" not in run.stdout
        assert f"report   {remote.url}/sweeps/tiny/report.html" in run.stdout
        faults.share = 0.0
        there = {name: remote.read(f"sweeps/tiny/{name}") for name in table(store)}
        assert there == table(store)
        assert not [name for name in walk(remote, "trials") if "checkpoint" in name]
        again = command(sweep, "--store", remote.url)
        assert "4 finished, 0 to run" in again.stdout, again.stdout + again.stderr


@pytest.mark.slow
def test_two_commands_on_two_nodes_share_a_store_on_s3_and_double_nothing(store, tmp_path):
    """Each with a cache of its own, as on another node: only the lease in the store is between them. Faults all the while."""
    sweep = tmp_path / "tiny.yaml"
    sweep.write_text(SMALL)
    assert command(sweep, "--inline", "--tracking-uri", "none").returncode == 0
    with served() as faults:
        remote = S3Store(f"s3://{BUCKET}/two")
        faults.share = 0.03
        line = [sys.executable, "-m", "pointsweep.run", str(sweep), "--inline", "--store", remote.url]
        nodes = [os.environ | {"POINTSWEEP_CACHE": str(tmp_path / name)} for name in ("first", "second")]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        drivers = [subprocess.Popen(line, env=node, **pipes) for node in nodes]
        outputs = [driver.communicate(timeout=400)[0] for driver in drivers]
        assert [driver.returncode for driver in drivers] == [0, 0], outputs
        faults.share = 0.0
        assert {name: remote.read(f"sweeps/tiny/{name}") for name in table(store)} == table(store)
        for folder in remote.list("trials"):
            assert {"lease.json", "checkpoint.safetensors"}.isdisjoint(remote.list(f"trials/{folder.rstrip('/')}"))
            events = [json.loads(text)["event"] for text in remote.read(f"trials/{folder}history.jsonl").splitlines()]
            assert [event["type"] for event in events] == ["start", *["epoch"] * 4], folder


def test_what_a_launch_shows_reaches_prometheus_under_the_names_of_the_dashboard(monkeypatch):
    import ray

    # A process keeps the mode in which it first spoke to a Ray, and another test may have done so without tokens.
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")

    from pointsweep.execution.prometheus import GAUGES, Gauges, TrialCell
    from pointsweep.execution.ray_tune import _Exported

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, _metrics_export_port=port)
    try:
        show = _Exported(Gauges({key: TrialCell("s", "row / column") for key in ("a", "b")}))
        show.gauges.epoch({"key": "a", "epoch": 1, "epochs": 2})
        show.gauges.end("b", "failed", "ValueError: x")
        wanted = [f"ray_{name}{{" for name in GAUGES]
        deadline, text = time.monotonic() + 60, ""
        while time.monotonic() < deadline and not all(name in text for name in wanted):
            show()
            time.sleep(1)
            host = ray.util.get_node_ip_address()
            text = urllib.request.urlopen(f"http://{host}:{port}/metrics", timeout=5).read().decode()
        assert [name for name in wanted if name not in text] == []
        lines = [line for line in text.splitlines() if line.startswith("ray_pointsweep_trials{")]
        running = [line for line in lines if 'state="running"' in line and line.endswith(" 1.0")]
        assert running, lines
        assert all('sweep="s"' in line for line in lines), lines
    finally:
        ray.shutdown()
