"""A sweep as a Ray job on nodes whose network loses packets, and one of which is cut off for a minute: the table of an undisturbed run."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.end_to_end.test_command import SWEEP, command, epochs_in_mlflow, table
from tests.end_to_end.test_nodes import PATIENCE_S, RAY, ROOT, epochs, holders, job_of, variables, wait_until
from tests.support.namespaces import Net, address, network

LOSS = 0.02
CUT_S = 60
EPOCHS = 40
ANSWERS = "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8265/api/version', timeout=5)"
ENVIRONMENT = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}


@pytest.fixture
def net() -> Iterator[Net]:
    with contextlib.ExitStack() as stack:
        try:
            made = stack.enter_context(network(4, LOSS))
        except OSError as error:
            pytest.skip(f"no network namespaces with filters here: {error}")
        yield made


@contextlib.contextmanager
def cluster(net: Net) -> Iterator[None]:
    """Ray with a node and a CPU in every namespace, the head in the first."""
    folder = Path(tempfile.mkdtemp(prefix="r", dir="/tmp"))  # Ray's sockets need a short path
    size = ["--num-cpus", "1", "--object-store-memory", str(80 * 2**20)]
    try:
        for host in range(len(net.hosts)):
            role = ["--address", f"{address(0)}:6379"] if host else ["--head", "--port", "6379"]
            line = [RAY, "start", "--block", "--node-ip-address", address(host), "--temp-dir", str(folder / str(host)), *role, *size]
            start(net, host, line, folder / f"{host}.log")
            if not host:
                ready = net.command(0, [sys.executable, "-c", ANSWERS])
                wait_until(lambda: subprocess.run(ready, capture_output=True).returncode == 0, "Ray's head")  # noqa: B023
        yield
    finally:
        net.end()
        shutil.rmtree(folder, ignore_errors=True)


def start(net: Net, host: int, line: list[str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("w") as output:
        return subprocess.Popen(net.command(host, line), env=os.environ | ENVIRONMENT, stdout=output, stderr=output)


def submit(net: Net, line: list[str], log: Path) -> subprocess.Popen[bytes]:
    """`ray job submit` on the head, with what the job prints in `log`; a fresh head may have no agent for some seconds."""
    environment = json.dumps({"env_vars": {**variables(), **ENVIRONMENT}})
    words = [RAY, "job", "submit", "--address", "http://127.0.0.1:8265", "--working-dir", str(ROOT)]
    words += ["--runtime-env-json", environment, "--", *line]
    for _ in range(30):
        job = start(net, 0, words, log)
        wait_until(lambda: "submitted successfully" in log.read_text() or job.poll() is not None, "a job")  # noqa: B023
        if "No available agent" not in log.read_text():
            return job
    raise AssertionError(log.read_text())


@pytest.mark.slow
def test_lost_packets_and_a_node_cut_off_for_a_minute_change_nothing_in_the_table(store, tmp_path, net):
    sweep, quiet, log = tmp_path / "tiny.yaml", tmp_path / "undisturbed", tmp_path / "job.log"
    sweep.write_text(SWEEP.replace("epochs: 2", f"epochs: {EPOCHS}"))
    with cluster(net):
        job = submit(net, job_of(sweep, store).split(), log)

        def working() -> list[int]:
            """The hosts, but for the head, that train just now."""
            return [host for host in range(1, 4) if net.processes(host) & set(holders(store))]

        wait_until(lambda: (len(working()) >= 2 and epochs(store) > 8) or job.poll() is not None, "trials on two nodes")
        assert job.poll() is None, log.read_text()
        victim = working()[0]
        net.cut(victim)
        time.sleep(CUT_S)
        net.heal(victim)
        assert job.poll() is None, "the sweep ended before the node was back"
        assert job.wait(PATIENCE_S) == 0, log.read_text()
        lost = sum(net.lost(host) for host in range(4))
    assert "[8/8] finished" in log.read_text(), log.read_text()
    assert command(sweep, "--inline", "--tracking-uri", "none", "--store", quiet).returncode == 0
    assert table(store) == table(quiet), log.read_text()
    assert sorted(epochs_in_mlflow(store).values()) == [list(range(1, EPOCHS + 1))] * 8
    assert lost > 100
