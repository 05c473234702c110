"""Ray that cannot be reached or started: one line that says what to do, exit code 2. With a real Ray: end_to_end."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading

import pytest

from pointsweep.cli import doctor
from pointsweep.cli.run import main
from pointsweep.errors import ResourcesError
from pointsweep.execution import cluster_nodes, ray_cluster
from tests.end_to_end.test_command import SWEEP
from tests.support.ports import free_port


@pytest.fixture
def sweep(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(SWEEP)
    return path


def run_and_doctor(sweep, **environment):
    """Both commands with an environment of their own: their exit codes and what they wrote to stderr."""
    answers = []
    for line in (["pointsweep.run", str(sweep), "--tracking-uri", "none"], ["pointsweep.doctor"]):
        answers.append(
            subprocess.run(
                [sys.executable, "-m", *line],
                capture_output=True,
                text=True,
                env={**os.environ, **environment},
                timeout=300,
            )
        )
    return answers


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("http://127.0.0.1:8265", "is the address of the dashboard, which `ray job submit` takes"),
        ("https://head.example:8265", "is the address of the dashboard, which `ray job submit` takes"),
        ("ray://127.0.0.1:10001", "runs on a node of the cluster or as a job"),
        ("127.0.0.1", "is not HOST:PORT"),
        ("127.0.0.1:port", "is not HOST:PORT"),
        ("127.0.0.1:70000", "is not HOST:PORT"),
    ],
)
def test_an_address_of_another_kind_is_refused_with_what_is_allowed(store, sweep, monkeypatch, capsys, address, words):
    monkeypatch.setenv("RAY_ADDRESS", address)
    assert main([str(sweep), "--tracking-uri", "none"]) == 2
    told = capsys.readouterr().err
    assert f"RAY_ADDRESS={address}" in told
    assert words in told and "allowed are HOST:PORT" in told and "--inline" in told
    assert doctor.main(["--store", str(store)]) == 2
    assert words in capsys.readouterr().err


def test_a_port_at_which_nobody_listens_is_waited_for_and_said_to_be(store, sweep, monkeypatch, capsys):
    address = f"127.0.0.1:{free_port()}"
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setenv("POINTSWEEP_RAY_WAIT_S", "2")
    assert main([str(sweep), "--tracking-uri", "none"]) == 2
    first, last = capsys.readouterr().err.strip().splitlines()
    assert first.startswith(f"waiting up to 2 s for the Ray cluster at {address} (RAY_ADDRESS)")
    assert f"RAY_ADDRESS={address}: no cluster answered within 2 s" in last
    assert "POINTSWEEP_RAY_WAIT_S=300" in last and "--inline" in last


def test_a_cluster_that_comes_up_while_it_is_waited_for_is_found(monkeypatch, capsys):
    monkeypatch.setenv("POINTSWEEP_RAY_WAIT_S", "60")
    listener = socket.socket()
    port = free_port()

    def come_up() -> None:
        listener.bind(("127.0.0.1", port))
        listener.listen()

    timer = threading.Timer(1.5, come_up)
    timer.start()
    ray_cluster._wait_for("127.0.0.1", port)
    timer.join()
    listener.close()
    assert "waiting up to 60 s" in capsys.readouterr().err


def test_something_else_at_the_address_is_one_line_long_before_ray_would_say_so(store, sweep, monkeypatch, capsys):
    """A listener that never answers, and a port at which nobody listens: of the doctor and of a plan."""
    monkeypatch.setattr(cluster_nodes, "ASK_S", 3.0)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{listener.getsockname()[1]}")
        assert doctor.main(["--store", str(store)]) == 2
        [line] = capsys.readouterr().err.strip().splitlines()
        assert "something listens there and did not answer as the head of a Ray cluster within 3 s" in line
    assert doctor.main(["--store", str(store)]) == 2
    [line] = capsys.readouterr().err.strip().splitlines()
    assert "no cluster answers" in line and "allowed are HOST:PORT" in line
    assert main([str(sweep), "--plan", "--tracking-uri", "none"]) == 0
    assert "the cluster was not looked at: RAY_ADDRESS=127.0.0.1:" in capsys.readouterr().out


def test_the_time_to_wait_must_be_a_number(monkeypatch):
    monkeypatch.setenv("POINTSWEEP_RAY_WAIT_S", "long")
    with pytest.raises(ResourcesError, match="POINTSWEEP_RAY_WAIT_S=long is not a number of seconds"):
        ray_cluster._wait_s()


def test_a_ray_that_does_not_start_is_tried_again_and_ends_in_one_line(store, sweep, tmp_path):
    """A real failure: the paths of Ray's sockets in this folder are longer than a socket's may be."""
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    for answer in run_and_doctor(sweep, RAY_TMPDIR=str(deep)):
        assert answer.returncode == 2, answer.stdout + answer.stderr
        assert "Traceback" not in answer.stderr
        assert answer.stderr.count("Ray did not start") == 2, answer.stderr
        last = answer.stderr.strip().splitlines()[-1]
        assert "Ray did not start on this machine, tried 2 times" in last
        assert "POINTSWEEP_RAY_WAIT_S=300" in last and "--inline" in last


def test_nothing_of_ray_is_started_for_a_plan_or_a_sweep_that_is_refused_or_finished(store, sweep, tmp_path, monkeypatch):
    """An address at which nobody answers ends every launch with code 2."""
    monkeypatch.setenv("RAY_ADDRESS", "http://nobody")
    assert main([str(sweep), "--plan"]) == 0
    less = ["--only", "row=head_only", "seeds=1", "--tracking-uri", "none"]
    assert main([str(sweep), *less, "--inline"]) == 0
    assert main([str(sweep), *less]) == 0


def test_leaving_what_was_not_joined_is_nothing():
    ray_cluster.leave()
