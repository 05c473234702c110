"""The store on S3 beyond the contract: faults, parts, damaged objects, what a killed upload leaves."""

from __future__ import annotations

import os
import random
import threading

import pytest

from pointsweep.errors import StoreError
from pointsweep.storage import s3 as module
from pointsweep.storage.base import walk
from pointsweep.storage.s3 import S3Store
from pointsweep.storage.stores import open_store
from tests.support.s3 import BUCKET, Faults, served


@pytest.fixture(scope="module")
def server():
    with served() as faults:
        yield faults


@pytest.fixture
def faults(server: Faults, monkeypatch) -> Faults:
    monkeypatch.setattr(module, "PAUSE_S", (0.01, 0.05))
    server.share, server.met = 0.0, 0
    yield server
    server.share = 0.0


def test_under_faults_nothing_is_lost_and_nobody_sees_half(faults, monkeypatch):
    monkeypatch.setattr(module, "PART_BYTES", 5 * 2**20)  # S3 takes no smaller ones
    store, stop, seen = S3Store(f"s3://{BUCKET}/faults", attempts=20), threading.Event(), set()
    versions = [bytes([letter]) * 11_000_000 for letter in b"abcdef"]
    store.write("big", versions[0])

    def look():
        while not stop.is_set():
            seen.add(store.read("big"))

    faults.share = 0.2
    reader = threading.Thread(target=look)
    reader.start()
    for number, version in enumerate(versions):
        store.write("big", version)
        store.write(f"small/{number}", str(number).encode())
    stop.set()
    reader.join()
    assert faults.met > 5
    assert seen <= set(versions)
    assert store.read("big") == versions[-1]
    assert [store.read(f"small/{name}") for name in store.list("small")] == [str(number).encode() for number in range(6)]


def test_a_store_that_stays_away_is_told_after_the_last_attempt(faults, monkeypatch):
    faults.share = 1.0
    monkeypatch.setattr(faults, "kinds", ("refused",))
    with pytest.raises(StoreError, match=r"s3://bucket/away/x: .*after 3 attempts; check bucket, AWS_ENDPOINT_URL_S3"):
        S3Store(f"s3://{BUCKET}/away", attempts=3).write("x", b"1")


def test_a_failed_upload_in_parts_leaves_none_and_the_old_object(faults, monkeypatch):
    monkeypatch.setattr(module, "PART_BYTES", 100_000)
    store = S3Store(f"s3://{BUCKET}/parts", attempts=2)
    store.write("x", b"old")
    monkeypatch.setattr(store.client, "complete_multipart_upload", lambda **_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        store.write("x", random.Random(0).randbytes(250_000))
    assert store.uploads() == []
    assert store.read("x") == b"old"


def test_an_object_that_was_changed_behind_our_back_is_refused(faults):
    store = S3Store(f"s3://{BUCKET}/damaged", attempts=2)
    store.client.put_object(Bucket=BUCKET, Key="damaged/x", Body=b"two", Metadata={"sha256": "0" * 64})
    with pytest.raises(StoreError, match="what arrived is not what was written"):
        store.read("x")


def test_a_part_of_a_replaced_object_is_refused(faults):
    store = S3Store(f"s3://{BUCKET}/ranges", attempts=2)
    store.write("x", b"0123456789")
    _, version, _ = store.stat("x")
    assert store.read_range("x", 2, 5, version) == b"234"
    store.write("x", b"9876543210")
    with pytest.raises(StoreError, match="PreconditionFailed"):
        store.read_range("x", 2, 5, version)


def test_uploads_that_a_killed_process_left_are_listed_and_removed(faults):
    store = S3Store(f"s3://{BUCKET}/orphans")
    store.client.create_multipart_upload(Bucket=BUCKET, Key="orphans/a/b")
    store.client.create_multipart_upload(Bucket=BUCKET, Key="orphans-of-others/a/b")
    [(name, upload, _)] = store.uploads()
    assert name == "a/b"
    store.abort(name, upload)
    assert store.uploads() == []


def test_names_are_walked_however_deep(faults):
    store = S3Store(f"s3://{BUCKET}/walk")
    for name in ("a/b/c", "a/d", "e"):
        store.write(name, b"")
    assert list(walk(store, "")) == ["a/b/c", "a/d", "e"]
    assert list(walk(store, "a")) == ["a/b/c", "a/d"]


def test_what_is_wrong_with_an_address_or_the_credentials_is_said(monkeypatch):
    with pytest.raises(StoreError, match="names no bucket"):
        open_store("s3://")
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    with pytest.raises(StoreError, match=r"NoCredentialsError: .*after 1 attempts"):
        S3Store("s3://bucket/x").read("x")
