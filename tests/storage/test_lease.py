"""One process at a time works on a trial, with flock and without, and whoever has lost it stops writing."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest

from pointsweep.results.trial_dir import TrialFolder
from pointsweep.storage import lease
from pointsweep.storage.lease import LeaseHeldError, LeaseLostError, leased, read_holder
from pointsweep.training.runner import Job, Task, run_pack
from tests.results.test_failures import TAGS
from tests.training.test_trial import config


@pytest.fixture(params=["flock", "no flock"])
def locks(request, monkeypatch):
    """The same tests where flock answers nothing of use."""
    if request.param == "no flock":
        monkeypatch.setattr(lease, "_flock", lambda file: True)


def put(folder, **changes) -> None:
    """A lease of another machine's process, as it lies there when that process writes no more."""
    folder.mkdir(parents=True, exist_ok=True)
    holder = lease.Holder("another", "node7", "another machine", 41, time.time() + lease.TERM_S)
    (folder / "lease.json").write_bytes(replace(holder, **changes).encode())


def test_a_held_folder_is_refused_with_the_holders_name(tmp_path, locks):
    with (
        leased(tmp_path, 1.0),
        pytest.raises(LeaseHeldError, match=rf"worked on by another process: process {os.getpid()} on "),
        leased(tmp_path, 0.2),
    ):
        pass
    with leased(tmp_path, 0.0):
        assert read_holder(tmp_path / "lease.json").pid == os.getpid()
    assert not (tmp_path / "lease.json").exists()


def test_a_living_holder_elsewhere_is_waited_for_and_named(tmp_path):
    put(tmp_path)
    with pytest.raises(LeaseHeldError, match="process 41 on node7"), leased(tmp_path, 0.2):
        pass


def test_a_lease_that_is_not_renewed_for_a_term_is_taken_over_whatever_its_clock_says(tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "TERM_S", 0.5)
    put(tmp_path, expires=time.time() + 1e9)
    begun = time.monotonic()
    with leased(tmp_path, 5.0) as mine:
        assert time.monotonic() - begun >= 0.5
        mine.check()


def test_a_lease_is_renewed_and_not_taken_while_its_owner_works(tmp_path, monkeypatch, locks):
    monkeypatch.setattr(lease, "TERM_S", 1.5)
    with leased(tmp_path, 1.0) as mine:
        with pytest.raises(LeaseHeldError), leased(tmp_path, 3.0):
            pass
        mine.check()


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b'{"owner": 1}'])
def test_a_damaged_lease_expires(tmp_path, monkeypatch, text):
    monkeypatch.setattr(lease, "TERM_S", 0.3)
    (tmp_path / "lease.json").write_bytes(text)
    with leased(tmp_path, 5.0):
        pass


def test_the_lease_of_a_dead_process_of_this_machine_is_taken_at_once(tmp_path, locks):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    put(tmp_path, machine=lease.machine(), pid=dead.pid)
    begun = time.monotonic()
    with leased(tmp_path, 20.0):
        assert time.monotonic() - begun < lease.TERM_S


def test_many_that_take_over_one_expired_lease_work_one_after_the_other(tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "_flock", lambda file: True)
    monkeypatch.setattr(lease, "TERM_S", 3.0)
    put(tmp_path)
    inside, most, done = [], [], []

    def work():
        with leased(tmp_path, 60.0):
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.02)
            inside.pop()
            done.append(1)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (max(most), len(done)) == (1, 8)


def test_without_hard_links_the_lease_holds_too(tmp_path, monkeypatch):
    def refuse(self, target):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("pathlib.Path.hardlink_to", refuse)
    monkeypatch.setattr(lease, "_flock", lambda file: True)
    with leased(tmp_path, 1.0) as mine:
        mine.check()
        with pytest.raises(LeaseHeldError), leased(tmp_path, 0.2):
            pass


def test_a_zombie_writes_nothing_once_its_trial_was_taken_over(tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "_flock", lambda file: True)
    zombie = TrialFolder(tmp_path / "t")
    with zombie.lock():
        zombie.start()
        (tmp_path / "t" / "lease.json").unlink()
        put(tmp_path / "t")
        before = (tmp_path / "t" / "history.jsonl").read_bytes()
        for write in (lambda: zombie.append({"type": "epoch"}), lambda: zombie.save_predictions({}), lambda: zombie.start()):
            with pytest.raises(LeaseLostError, match="process 41 on node7 holds it now"):
                write()
        assert (tmp_path / "t" / "history.jsonl").read_bytes() == before
    assert json.loads((tmp_path / "t" / "lease.json").read_bytes())["host"] == "node7"


def test_a_trial_that_is_held_is_not_run_and_no_failure(tmp_path):
    key = config().key()
    put(tmp_path / "trials" / key)
    ended = run_pack([Task(config(), TAGS)], Job(str(tmp_path), wait_s=0.1), lambda result: None)[0]
    assert (ended.status, ended.kind) == ("held", "")
    assert "process 41 on node7" in ended.reason
    assert TrialFolder(tmp_path / "trials" / key).events() == []


def test_flock_that_is_not_there_is_no_error(tmp_path, monkeypatch):
    def refuse(file, how):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with leased(tmp_path, 1.0) as mine:
        mine.check()
