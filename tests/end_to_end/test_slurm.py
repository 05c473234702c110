"""The batch script on a real Slurm of one node: it runs the sweep, and preempted it goes back into the queue and continues."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pointsweep.cli.run import main
from tests.end_to_end.test_command import SWEEP, table
from tests.support.ports import free_port

ROOT = Path(__file__).parents[2]
TOOLS = ("sbatch", "scontrol", "squeue", "scancel", "slurmctld", "slurmd", "munged")
OF_ROOT = "/usr/sbin:/sbin"  # where Debian keeps the daemons
MISSING = [tool for tool in TOOLS if not shutil.which(tool, path=f"{os.environ.get('PATH', '')}:{OF_ROOT}")]

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(MISSING), reason=f"no {', '.join(MISSING)}: apt-get install slurm-wlm munge")]


@pytest.fixture
def slurm() -> Iterator[dict[str, str]]:
    """A cluster of this machine alone, with files and a key of its own; the environment of its commands."""
    folder, host = Path(tempfile.mkdtemp(prefix="slurm")), socket.gethostname().partition(".")[0]
    folder.chmod(0o755)  # munge refuses a socket in a private folder
    user = "root" if os.geteuid() == 0 else os.environ["USER"]
    settings = {
        "ClusterName": "test", "SlurmctldHost": f"{host}(127.0.0.1)", "AuthType": "auth/munge", "AuthInfo": f"socket={folder}/munge",
        "SlurmUser": user, "SlurmdUser": user, "SlurmctldPort": free_port(), "SlurmdPort": free_port(),
        "StateSaveLocation": folder / "state", "SlurmdSpoolDir": folder / "spool", "SlurmctldPidFile": folder / "slurmctld.pid",
        "SlurmdPidFile": folder / "slurmd.pid", "ProctrackType": "proctrack/linuxproc", "TaskPlugin": "task/none",
        "SelectType": "select/cons_tres", "SelectTypeParameters": "CR_CPU", "MpiDefault": "none", "ReturnToService": 2,
    }  # fmt: skip
    lines = [f"{name}={value}" for name, value in settings.items()]
    lines += [f"NodeName={host} NodeAddr=127.0.0.1 CPUs=2", "PartitionName=all Nodes=ALL Default=YES State=UP"]
    (folder / "slurm.conf").write_text("\n".join(lines) + "\n")
    (folder / "state").mkdir()
    (folder / "key").write_bytes(os.urandom(1024))
    (folder / "key").chmod(0o600)
    environment = os.environ | {"SLURM_CONF": f"{folder}/slurm.conf", "PATH": f"{os.environ['PATH']}:{OF_ROOT}"}
    files = {"key-file": "key", "socket": "munge", "pid-file": "munged.pid", "log-file": "munged.log", "seed-file": "seed"}
    munged = ["munged", "--foreground", "--force", *(f"--{name}={folder / file}" for name, file in files.items())]
    with contextlib.ExitStack() as daemons:
        for line in (munged, ["slurmctld", "-D"], ["slurmd", "-D"]):
            log = daemons.enter_context((folder / f"{line[0]}.out").open("w"))
            daemons.callback(end, subprocess.Popen(line, env=environment, stdout=log, stderr=log))
            if line is munged:
                wait(lambda: (folder / "munge").exists(), "munge")
        wait(lambda: "idle" in said(environment, "sinfo", "--noheader", "--format=%T"), "Slurm's node")
        yield environment
        said(environment, "scancel", "--user", user)
        wait(lambda: not said(environment, "squeue", "--noheader"), "the end of the jobs")
    shutil.rmtree(folder)


def end(process: subprocess.Popen) -> None:
    process.terminate()
    process.wait(60)


def said(environment: dict[str, str], *line: str) -> str:
    return subprocess.run(line, env=environment, capture_output=True, text=True).stdout.strip()


def wait(there: Callable[[], bool], what: str, limit_s: float = 300) -> None:
    ends = time.monotonic() + limit_s
    while not there():
        assert time.monotonic() < ends, f"no sign of {what}"
        time.sleep(0.5)


def submit(slurm: dict[str, str], store: Path, log: Path, *arguments: str) -> str:
    """The number of a job on one node."""
    line = ["sbatch", "--parsable", "--nodes=1", "--cpus-per-task=2", f"--output={log}", "cluster/slurm.sbatch", *arguments]
    run = subprocess.run(line, env=slurm | {"POINTSWEEP_STORE": str(store)}, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


def test_a_preempted_job_continues_and_its_table_is_that_of_an_undisturbed_run(slurm, tmp_path, monkeypatch):
    (tmp_path / "tiny.yaml").write_text(SWEEP.replace("epochs: 2", "epochs: 20"))
    line, log = [str(tmp_path / "tiny.yaml"), "--tracking-uri", "none"], tmp_path / "job.log"
    store = tmp_path / "store"
    job = submit(slurm, store, log, *line)

    def state() -> str:
        return said(slurm, "squeue", "--noheader", "--jobs", job, "--format=%T")

    wait(lambda: list(store.glob("trials/*/record.json")), "a finished trial")
    said(slurm, "scancel", "--batch", "--signal=TERM", job)
    wait(lambda: state() == "PENDING", "the job in the queue again")
    assert "the same command continues" in log.read_text()
    finished = {path: path.stat().st_mtime_ns for path in store.glob("trials/*/record.json")}
    assert len(finished) < 8
    said(slurm, "scontrol", "update", f"JobId={job}", "StartTime=now")  # Slurm would wait two minutes
    wait(lambda: not state() or state() == "COMPLETED", "the end of the job")
    assert len(list(store.glob("trials/*/record.json"))) == 8, log.read_text()
    assert all(path.stat().st_mtime_ns == before for path, before in finished.items()), "a finished trial ran again"
    assert "ExitCode=0:0" in said(slurm, "scontrol", "show", "job", job)
    monkeypatch.setenv("POINTSWEEP_STORE", str(tmp_path / "inline"))
    assert main([*line, "--inline"]) == 0
    assert table(store) == table(tmp_path / "inline")
