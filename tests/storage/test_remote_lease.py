"""One process at a time works on a trial in a store on S3, whatever the server loses, and whoever has lost it stops writing."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest

from pointsweep.results import working_copy as workdir
from pointsweep.results.trial_dir import TrialFolder
from pointsweep.results.working_copy import Copy
from pointsweep.storage import lease, remote_lease
from pointsweep.storage import s3 as s3_store
from pointsweep.storage.base import walk
from pointsweep.storage.lease import LeaseHeldError, LeaseLostError
from pointsweep.storage.remote_lease import remote_leased
from pointsweep.storage.s3 import NoConditionalWritesError, S3Store
from pointsweep.training.runner import Job, Task, run_pack
from tests.results.test_failures import TAGS
from tests.support.s3 import BUCKET, served
from tests.training.test_trial import config

NAME = "trials/k/lease.json"


@pytest.fixture(scope="module")
def server():
    with served() as faults:
        yield faults


@pytest.fixture
def made(server, tmp_path, monkeypatch) -> S3Store:
    monkeypatch.setattr(s3_store, "PAUSE_S", (0.01, 0.05))
    monkeypatch.setattr(remote_lease, "POLL_S", 0.02)
    monkeypatch.setattr(workdir, "PAUSE_S", 0.05)
    monkeypatch.setenv("POINTSWEEP_CACHE", str(tmp_path / "node"))
    server.share = 0.0
    yield S3Store(f"s3://{BUCKET}/{tmp_path.name}", attempts=20)
    server.share = 0.0


def put(store: S3Store, name: str = NAME, **changes) -> None:
    """A lease of another machine's process, as it lies there when that process renews it no more."""
    holder = lease.Holder("another", "node7", "another machine", 41, time.time() + lease.TERM_S)
    store.write(name, replace(holder, **changes).encode())


def test_of_many_that_write_on_one_condition_one_succeeds_whatever_answers_are_lost(made, server):
    version, server.share = None, 0.3
    for step in range(4):
        made_by: list[tuple[bytes, str]] = []

        def write(body: bytes, version=version, made_by=made_by) -> None:
            new = made.write_if(NAME, body, version)
            if new is not None:
                made_by.append((body, new))

        threads = [threading.Thread(target=write, args=(f"{step} {number}".encode(),)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        [(body, version)] = made_by
        assert made.read_version(NAME) == (body, version)
    assert server.met > 0


def test_a_held_trial_is_refused_with_the_holders_name_and_free_again_at_its_end(made):
    held = r"k/lease.json is held by another process: process \d+ on "
    with remote_leased(made, NAME, 1.0), pytest.raises(LeaseHeldError, match=held), remote_leased(made, NAME, 0.1):
        pass
    with remote_leased(made, NAME, 0.0) as mine:
        mine.check()


def test_the_lease_of_a_node_that_is_gone_is_taken_after_a_term_and_not_before(made, monkeypatch):
    monkeypatch.setattr(lease, "TERM_S", 0.6)
    put(made, expires=time.time() + 1e9)
    begun = time.monotonic()
    with remote_leased(made, NAME, 30.0):
        assert time.monotonic() - begun >= 0.6


def test_the_lease_of_a_dead_process_of_this_machine_is_taken_at_once(made):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    put(made, machine=lease.machine(), pid=dead.pid)
    with remote_leased(made, NAME, 0.0) as mine:
        mine.check()


def test_a_lease_is_renewed_while_its_owner_works_and_answers_are_lost(made, server, monkeypatch):
    monkeypatch.setattr(lease, "TERM_S", 3.0)
    server.share = 0.2
    with remote_leased(made, NAME, 1.0) as mine:
        first = mine.version
        with pytest.raises(LeaseHeldError), remote_leased(made, NAME, 3.5):
            pass
        mine.check()
        assert mine.version != first


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b'{"owner": 1}'])
def test_a_damaged_lease_expires(made, monkeypatch, text):
    monkeypatch.setattr(lease, "TERM_S", 0.2)
    made.write(NAME, text)
    with remote_leased(made, NAME, 30.0):
        pass


def test_a_zombie_uploads_nothing_once_its_trial_was_taken_over(made, tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "TERM_S", 0.0)  # every upload asks
    folder = TrialFolder(tmp_path / "k")
    copy = Copy(made, folder)
    with folder.lock(), copy.hold(1.0):
        folder.start()
        copy.upload()
        put(made)
        before = made.read("trials/k/history.jsonl")
        folder.append({"type": "epoch", "epoch": 1})
        for write in (copy.upload, copy.poke):
            with pytest.raises(LeaseLostError, match="k/lease.json was taken from process"):
                write()
    assert made.read("trials/k/history.jsonl") == before
    assert b"node7" in made.read(NAME)


def test_a_trial_that_another_node_works_on_is_not_run_and_no_failure(made):
    key = config().key()
    put(made, f"trials/{key}/lease.json")
    ended = run_pack([Task(config(), TAGS)], Job(made.url, wait_s=0.1), lambda result: None)[0]
    assert (ended.status, ended.kind) == ("held", "")
    assert "process 41 on node7" in ended.reason
    assert made.list(f"trials/{key}") == ["lease.json"]


@pytest.mark.parametrize("way", ["ignores them", "refuses them"])
def test_a_server_without_conditional_writes_is_found_out_and_told(made, monkeypatch, caplog, way):
    def write(self, name, data, version):
        if way == "refuses them":
            raise NoConditionalWritesError("no")
        self.write(name, data)
        return "new"

    monkeypatch.setattr(S3Store, "write_if", write)
    remote_lease.conditional.cache_clear()
    with remote_leased(made, NAME, 0.0) as mine:
        assert mine is None
    remote_lease.conditional.cache_clear()
    assert "run one at a time on this store" in caplog.text
    assert list(walk(made, "leases")) == []
