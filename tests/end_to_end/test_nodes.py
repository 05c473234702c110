"""A sweep as a Ray job on several nodes that are killed and added while it runs: the table of an undisturbed run."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pointsweep.cli.run import main
from tests.end_to_end.test_command import SWEEP, command, epochs_in_mlflow, table
from tests.support.ports import free_port

ROOT = Path(__file__).parents[2]
SMALL = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
LONG = SWEEP.replace("epochs: 2", "epochs: 12")
PATIENCE_S = 400
RAY = str(Path(sys.executable).parent / "ray")


@contextlib.contextmanager
def nodes(count: int, monkeypatch, **options) -> Iterator[tuple]:
    """A cluster of `count` nodes with a CPU each, the first one with the dashboard; it, and a folder for more."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    folder = Path(tempfile.mkdtemp(prefix="r", dir="/tmp"))  # Ray's sockets need a short path
    head = {
        "temp_dir": str(folder),
        "include_dashboard": True,
        "dashboard_port": free_port(),
        "ray_client_server_port": free_port(),
        "dashboard_agent_listen_port": free_port(),
    }
    cluster = Cluster(initialize_head=True, head_node_args={**SMALL, **head, **options})
    # as `ray start` does; without it a job joins any cluster of this machine, as of a test that runs beside this one
    (folder / "ray_current_cluster").write_text(cluster.address)
    try:
        for _ in range(count - 1):
            add(cluster, folder)
        yield cluster, folder
    finally:
        cluster.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def add(cluster, folder: Path) -> None:
    """Another node, with files of its own: a node that dies takes its copy of the shipped folder along."""
    cluster.add_node(**SMALL, temp_dir=tempfile.mkdtemp(dir=folder), dashboard_agent_listen_port=free_port())


def wait_until(met: Callable[[], bool], doing: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not met():
        assert time.monotonic() < deadline, doing
        time.sleep(0.2)


def submit(address: str, line: str, variables: dict[str, str], shipped: Path = ROOT):
    """The client and the job's id, as `ray job submit --working-dir .` makes it; a fresh head may have no agent for some seconds."""
    from ray.job_submission import JobSubmissionClient

    client, environment = None, {"working_dir": str(shipped), "env_vars": variables}
    for _ in range(60):
        with contextlib.suppress(RuntimeError, ConnectionError):
            client = client or JobSubmissionClient(address)
            return client, client.submit_job(entrypoint=line, runtime_env=environment)
        time.sleep(1)
    raise AssertionError("no job could be submitted")


def epochs(store: Path) -> int:
    """Epochs in the histories of all trials."""
    return sum(path.read_text().count('"type":"epoch"') for path in (store / "trials").glob("*/history.jsonl"))


def holders(store: Path) -> list[int]:
    """The processes that work on a trial."""
    found = []
    for path in (store / "trials").glob("*/lease.json"):
        text = path.read_text() if path.exists() else ""
        found += [json.loads(text)["pid"]] if text.strip() else []
    return found


def job_of(sweep: Path, store: Path) -> str:
    return f"{sys.executable} -m pointsweep.run {sweep} --store {store}"


def variables() -> dict[str, str]:
    """What the workers of a job have from the tests' environment."""
    return {"POINTSWEEP_CACHE": os.environ["POINTSWEEP_CACHE"], "OMP_NUM_THREADS": "1"}


def starts(store: Path) -> int:
    """How often a trial was begun, over all trials."""
    return sum(path.read_text().count('"type":"start"') for path in (store / "trials").glob("*/history.jsonl"))


def send(pids: list[int], which: signal.Signals) -> None:
    """The signal to each process that is still there."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, which)


def halted(store: Path, count: int, ended: Callable[[], bool]) -> list[int]:
    """`count` processes, each halted (SIGSTOP) between the start and the end of its trial.

    A small trial takes about as long as the removal of a node: only one that is halted is surely there when its node goes.
    """
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline and not ended():
        found = holders(store)
        if len(found) == count:
            send(found, signal.SIGSTOP)
            if sorted(holders(store)) == sorted(found) and starts(store) - finished(store) == count:
                return found
            send(found, signal.SIGCONT)
        time.sleep(0.05)
    raise AssertionError(f"never were {count} trials under way at once")


def node_of(pid: int) -> int:
    """The raylet that a worker belongs to."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def raylets(node) -> set[int]:
    return {each.process.pid for each in node.all_processes["raylet"]}


def finished(store: Path) -> int:
    return len(list((store / "trials").glob("*/record.json")))


def test_a_node_killed_and_one_added_change_nothing_and_the_same_job_again_trains_nothing(store, tmp_path, monkeypatch):
    """The line of the README on four nodes, one of them new: a head that only drives, so that whoever works can be killed."""
    sweep, quiet = tmp_path / "tiny.yaml", tmp_path / "undisturbed"
    sweep.write_text(SWEEP.replace("epochs: 2", "epochs: 40").replace("seeds: 2", "seeds: 1"))
    assert main([str(sweep), "--inline", "--tracking-uri", "none", "--store", str(quiet)]) == 0
    with nodes(3, monkeypatch, num_cpus=0) as (cluster, folder):
        address = f"http://{cluster.head_node.webui_url}"
        client, job = submit(address, job_of(sweep, store), variables())
        first, second = halted(store, 2, lambda: client.get_job_status(job).is_terminal())
        lost = next(node for node in cluster.worker_nodes if node_of(first) in raylets(node))
        cluster.remove_node(lost, allow_graceful=False)
        send([first], signal.SIGKILL)  # a machine that dies takes its processes along
        send([second], signal.SIGCONT)
        add(cluster, folder)
        wait_until(lambda: client.get_job_status(job).is_terminal(), "the end of the job")
        logs = client.get_job_logs(job)
        line = [RAY, "job", "submit", "--address", address, "--working-dir", str(ROOT), "--", *job_of(sweep, store).split()]
        again = subprocess.run(line, capture_output=True, text=True, timeout=PATIENCE_S)
    assert "[4/4] finished" in logs, logs
    assert table(store) == table(quiet), logs
    assert starts(store) == 5, "one trial lost its node, and no other"
    assert sorted(epochs_in_mlflow(store).values()) == [list(range(1, 41))] * 4
    assert "4 finished, 0 to run" in again.stdout, again.stdout + again.stderr
    # A job has no .git: what was shipped is told by its digest.
    records = [json.loads(path.read_text()) for path in (store / "trials").glob("*/record.json")]
    assert {record["origin"]["code"].split()[0] for record in records} == {"tree"}


def test_a_job_that_is_stopped_says_so_and_the_same_job_continues(store, tmp_path, monkeypatch):
    """By `ray job stop`: a line, no traceback, and what was trained is not trained again."""
    sweep = tmp_path / "tiny.yaml"
    sweep.write_text(SWEEP.replace("epochs: 2", "epochs: 40").replace("seeds: 2", "seeds: 1"))
    line = f"{job_of(sweep, store)} --only row=lora"
    with nodes(1, monkeypatch) as (cluster, _):
        address = f"http://{cluster.head_node.webui_url}"
        client, job = submit(address, line, variables())
        wait_until(lambda: epochs(store) >= 3 or client.get_job_status(job).is_terminal(), "three epochs")
        assert client.stop_job(job)  # what `ray job stop` calls; that takes longer to start than these trials take
        wait_until(lambda: client.get_job_status(job).is_terminal(), "the end of the stopped job")
        logs = client.get_job_logs(job)
        assert "interrupted by SIGTERM" in logs, logs
        assert "Traceback" not in logs and "SystemError" not in logs, logs
        before = epochs(store)
        client, job = submit(address, line, variables())
        wait_until(lambda: client.get_job_status(job).is_terminal(), "the end of the job")
        logs = client.get_job_logs(job)
    assert "[2/2] finished" in logs, logs
    assert before > 0 and epochs(store) == 2 * 40, "no epoch is trained twice"


@pytest.mark.slow
def test_nodes_that_are_killed_and_added_change_nothing_in_the_table(store, tmp_path, monkeypatch):
    sweep, quiet = tmp_path / "tiny.yaml", tmp_path / "undisturbed"
    sweep.write_text(LONG)
    assert command(sweep, "--inline", "--tracking-uri", "none", "--store", quiet).returncode == 0
    with nodes(4, monkeypatch) as (cluster, folder):
        client, job = submit(f"http://{cluster.head_node.webui_url}", job_of(sweep, store), variables())

        def passed(count: int) -> Callable[[], bool]:
            return lambda: epochs(store) >= count or client.get_job_status(job).is_terminal()

        for count in (3, 12, 24):
            wait_until(passed(count), f"{count} epochs")
            assert not client.get_job_status(job).is_terminal(), client.get_job_logs(job)
            cluster.remove_node(cluster.worker_nodes.copy().pop(), allow_graceful=False)
            add(cluster, folder)
        wait_until(lambda: client.get_job_status(job).is_terminal(), "the end of the job")
        logs = client.get_job_logs(job)
    assert "[8/8] finished" in logs, logs
    assert table(store) == table(quiet), logs
    assert starts(store) > 8, "no node was lost in the middle of a trial"
    assert sorted(epochs_in_mlflow(store).values()) == [list(range(1, 13))] * 8
