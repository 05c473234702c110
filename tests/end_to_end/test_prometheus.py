"""A real Prometheus with the project's configuration and rules scrapes a running sweep; every panel of the dashboard gets data."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from pathlib import Path

import pytest
import yaml

from tests.end_to_end.test_command import SWEEP
from tests.end_to_end.test_nodes import holders, nodes, wait_until
from tests.repository.test_dashboards import DASHBOARD, FOLDER
from tests.support.ports import free_port

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("prometheus") is None, reason="no prometheus; Debian's package of that name has it"),
]
NEEDS_A_REAL_GPU = {"sum by (instance, GpuIndex) (ray_node_gpus_utilization)", "sum by (instance, GpuIndex) (ray_node_gram_used)"}


def configuration(folder: Path, port: int) -> Path:
    """dashboards/prometheus.yml with its rules, once a second, and the address that Ray's head would list."""
    made = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
    made["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    made["rule_files"] = [str(FOLDER / name) for name in made["rule_files"]]
    [job] = made["scrape_configs"]
    job["file_sd_configs"][0]["files"] = [str(folder / "ray.json")]
    (folder / "ray.json").write_text(json.dumps([{"targets": [f"127.0.0.1:{port}"], "labels": {"job": "ray"}}]))
    (folder / "prometheus.yml").write_text(yaml.safe_dump(made))
    return folder / "prometheus.yml"


def ask(server: str, path: str, **query: str) -> dict:
    try:
        answer = urllib.request.urlopen(f"{server}/api/v1/{path}?{urllib.parse.urlencode(query)}", timeout=10)
        return json.load(answer)["data"]
    except OSError:  # not up yet
        return {"result": [], "groups": []}


def test_every_panel_gets_data_from_a_running_sweep_and_every_rule_is_healthy(store, tmp_path, monkeypatch):
    sweep, port, own = tmp_path / "tiny.yaml", free_port(), free_port()
    failing = SWEEP.replace("plane, ", "plane, train.lr: 1.0e+30, ").replace("epochs: 2", "epochs: 2000")
    sweep.write_text(failing + "resources: {gpus: 0.5}\n")
    # Ray has a GPU to give; there is none.
    with nodes(1, monkeypatch, num_cpus=2, num_gpus=1, metrics_export_port=port) as (cluster, _):
        line = [sys.executable, "-m", "pointsweep.run", str(sweep)]
        environment = os.environ | {"RAY_ADDRESS": cluster.address, "RAY_AUTH_MODE": "disabled"}
        driver = subprocess.Popen(line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        serve = ["prometheus", f"--config.file={configuration(tmp_path, port)}", f"--storage.tsdb.path={tmp_path / 'tsdb'}"]
        log = (tmp_path / "prometheus.log").open("w")
        prometheus = subprocess.Popen([*serve, f"--web.listen-address=127.0.0.1:{own}"], stdout=log, stderr=log)
        server = f"http://127.0.0.1:{own}"
        try:
            wait_until(lambda: bool(holders(store)), "a trial")
            os.kill(holders(store)[0], signal.SIGKILL)  # a panel counts workers that were lost
            targets = [target for panel in DASHBOARD["panels"] for target in panel["targets"]]
            # As Grafana writes the variable when all sweeps are chosen.
            left = {target["expr"].replace("$sweep", ".*") for target in targets} - NEEDS_A_REAL_GPU
            deadline = time.monotonic() + 200
            while left and time.monotonic() < deadline:
                time.sleep(1)
                left -= {expression for expression in left if ask(server, "query", query=expression)["result"]}
            assert left == set()
            groups = ask(server, "rules")["groups"]
            health = {rule["name"]: (rule["health"], rule.get("lastError", "")) for group in groups for rule in group["rules"]}
            assert health
            assert set(health.values()) == {("ok", "")}, health
        finally:
            for process in (driver, prometheus):
                process.kill()
                process.wait()
