"""A trial's folder survives being cut off anywhere."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pointsweep.errors import StoreError
from pointsweep.planning.plan import read_record
from pointsweep.results.events import read_failure
from pointsweep.results.record_index import trial_status
from pointsweep.results.records import Record
from pointsweep.results.trial_dir import LeaseHeldError, TrialFolder
from pointsweep.storage.base import FileStore

RECORD = Record("k", {}, {"last": {"test/accuracy": 0.5}}, {"trainable": 1}, {"name": "synthetic"}, "random")


def event(epoch: int) -> dict:
    return {"type": "epoch", "epoch": epoch, "metrics": {"test/accuracy": epoch / 10}}


def snapshot(epoch: int):
    return lambda: ({"w": torch.full((3,), float(epoch)), "n": torch.tensor(epoch)}, {"epoch": epoch, "best": {}})


def test_events_come_back_in_order(tmp_path):
    folder = TrialFolder(tmp_path / "t")
    folder.start(config={"a": 1})
    for epoch in (1, 2):
        folder.append(event(epoch))
    assert [e["type"] for e in folder.events()] == ["start", "epoch", "epoch"]
    assert [e["epoch"] for e in folder.epochs()] == [1, 2]
    for line in (tmp_path / "t" / "history.jsonl").read_text().splitlines():
        assert set(json.loads(line)) == {"crc", "event"}


def test_cut_at_any_byte_it_opens_and_loses_at_most_the_last_line(tmp_path):
    folder = TrialFolder(tmp_path / "t")
    for epoch in range(1, 6):
        folder.append(event(epoch))
    whole = (tmp_path / "t" / "history.jsonl").read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    for cut in range(len(whole) + 1):
        (tmp_path / "t" / "history.jsonl").write_bytes(whole[:cut])
        kept = sum(end <= cut for end in ends)
        assert len(folder.events()) == kept, cut
        folder.start()
        assert [e["type"] for e in folder.events()] == ["epoch"] * kept + ["start"], cut


def test_a_flipped_bit_ends_the_trusted_part_and_the_rest_is_kept_aside(tmp_path):
    folder = TrialFolder(tmp_path / "t")
    for epoch in range(1, 6):
        folder.append(event(epoch))
    path = tmp_path / "t" / "history.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    for position in range(len(lines[2]) - 1):
        damaged = bytearray(lines[2])
        damaged[position] ^= 1
        path.write_bytes(b"".join([*lines[:2], bytes(damaged), *lines[3:]]))
        assert [e["epoch"] for e in folder.epochs()] in ([1, 2], [1, 2, 3, 4, 5]), position
    folder.start()
    assert (tmp_path / "t" / "history.damaged").is_file()


def test_a_checkpoint_comes_back_bit_for_bit(tmp_path):
    folder = TrialFolder(tmp_path / "t")
    folder.start()
    folder.commit_epoch(event(1), snapshot(1), last=False)
    found = TrialFolder(tmp_path / "t").resume()
    assert found is not None
    assert found[1]["epoch"] == 1
    assert torch.equal(found[0]["w"], torch.full((3,), 1.0))
    assert found[0]["n"].shape == ()


def test_an_epoch_enters_the_history_only_with_a_checkpoint_behind_it(tmp_path):
    folder = TrialFolder(tmp_path / "t")
    folder.start()
    folder.commit_epoch(event(1), snapshot(1), last=False)
    folder._save_s = 1e9  # a checkpoint that took long: the next is not due soon
    folder.commit_epoch(event(2), snapshot(2), last=False)
    assert [e["epoch"] for e in folder.epochs()] == [1]
    folder.commit_epoch(event(3), snapshot(3), last=True)
    assert [e["epoch"] for e in folder.epochs()] == [1, 2, 3]


def test_an_end_between_checkpoint_and_history_is_repaired(tmp_path):
    folder = TrialFolder(tmp_path / "t")
    folder.start()
    folder.commit_epoch(event(1), snapshot(1), last=False)
    before = (tmp_path / "t" / "history.jsonl").read_bytes()
    folder.commit_epoch(event(2), snapshot(2), last=True)
    (tmp_path / "t" / "history.jsonl").write_bytes(before)
    again = TrialFolder(tmp_path / "t")
    again.start()
    assert again.resume()[1]["epoch"] == 2
    assert [e["epoch"] for e in again.epochs()] == [1, 2]


def test_epochs_behind_the_checkpoint_are_taken_back_before_they_are_trained_again(tmp_path):
    folder = TrialFolder(tmp_path / "t")
    folder.start()
    folder.commit_epoch(event(1), snapshot(1), last=False)
    folder.append(event(2))
    folder.resume()
    assert [e["epoch"] for e in folder.epochs()] == [1]


def test_a_damaged_checkpoint_is_set_aside_and_the_trial_starts_anew(tmp_path):
    folder = TrialFolder(tmp_path / "t")
    folder.start()
    folder.commit_epoch(event(1), snapshot(1), last=False)
    path = tmp_path / "t" / "checkpoint.safetensors"
    whole = path.read_bytes()
    for position in [*range(0, len(whole), 7), len(whole) - 1]:
        damaged = bytearray(whole)
        damaged[position] ^= 4
        path.write_bytes(bytes(damaged))
        assert TrialFolder(tmp_path / "t").resume() is None, position
    for length in range(0, len(whole), 11):
        path.write_bytes(whole[:length])
        assert TrialFolder(tmp_path / "t").resume() is None, length
    assert folder.epochs() == []
    assert (tmp_path / "t" / "checkpoint.damaged").is_file()


def test_the_record_ends_a_trial(tmp_path):
    store = FileStore(tmp_path)
    folder = TrialFolder(store.path("trials/k"))
    assert trial_status(store, "k") == "new"
    folder.start()
    folder.commit_epoch(event(1), snapshot(1), last=True)
    assert trial_status(store, "k") == "resumable"
    folder.append({"type": "failed", "reason": "out of luck"})
    assert (trial_status(store, "k"), read_failure(store, "k")) == ("failed", "out of luck")
    folder.start()
    assert read_failure(store, "k") is None
    folder.save_predictions({"last": np.array([1, 2], dtype=np.uint8)})
    folder.finish(RECORD)
    assert trial_status(store, "k") == "finished"
    assert replace(folder.record(), files={}) == RECORD
    assert folder.predictions()["last"].tolist() == [1, 2]
    assert not (tmp_path / "trials" / "k" / "checkpoint.safetensors").exists()


def test_two_processes_do_not_work_on_one_trial(tmp_path):
    folder = TrialFolder(tmp_path / "t")
    code = f"""
from dataclasses import replace
from pathlib import Path
from pointsweep.results.trial_dir import TrialFolder
with TrialFolder(Path({str(tmp_path / "t")!r})).lock():
    print("held", flush=True)
    import time; time.sleep(60)
"""
    other = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"
    with pytest.raises(LeaseHeldError, match="is worked on by another process"), folder.lock(wait_s=0.2):
        pass
    other.kill()
    other.communicate()
    with folder.lock(wait_s=5):
        pass


def test_no_pickle_is_read(tmp_path):
    folder = TrialFolder(tmp_path)
    np.savez(tmp_path / "predictions.npz", last=np.array([object()], dtype=object))
    with pytest.raises(ValueError, match="allow_pickle=False"):
        folder.predictions()
    Path(tmp_path / "checkpoint.safetensors").write_bytes(b"\x80\x04\x95")
    assert folder.resume() is None


def test_a_record_cut_at_any_byte_is_refused_by_name_and_the_whole_one_is_read(tmp_path):
    store = FileStore(tmp_path)
    folder = TrialFolder(store.path("trials/k"))
    folder.finish(RECORD)
    path = tmp_path / "trials" / "k" / "record.json"
    whole = path.read_bytes()
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        with pytest.raises(StoreError, match=r"trials/k/record.json: not a record"):
            read_record(store, "k")
    path.write_bytes(whole)
    assert read_record(store, "k") == RECORD


def test_epochs_that_a_damaged_history_lost_are_trained_again(tmp_path, caplog):
    """The checkpoint is of epoch 3, the history ends after its first line: no table may be made of what is between."""
    folder = TrialFolder(tmp_path / "t")
    folder.start()
    for epoch in (1, 2, 3):
        folder.commit_epoch(event(epoch), snapshot(epoch), last=True)
    path = tmp_path / "t" / "history.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([lines[0], lines[1].replace(b'"epoch":1', b'"epoch":9'), *lines[2:]]))
    again = TrialFolder(tmp_path / "t")
    again.start()
    assert again.resume() is None
    assert again.epochs() == []
    assert "history.jsonl is damaged; the trial starts from scratch" in caplog.text
    assert again.events()[-1]["word"] == "the trial starts from scratch"


def test_a_damaged_checkpoint_is_told_with_a_clear_word(tmp_path, caplog):
    folder = TrialFolder(tmp_path / "t")
    folder.start()
    folder.commit_epoch(event(1), snapshot(1), last=False)
    path = tmp_path / "t" / "checkpoint.safetensors"
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(bytes(damaged))
    assert folder.resume() is None
    assert "checkpoint.safetensors is damaged; the trial starts from scratch" in caplog.text


def test_an_epoch_that_two_owners_wrote_counts_once(tmp_path):
    folder = TrialFolder(tmp_path / "t")
    for epoch in (1, 2, 2, 3):
        folder.append(event(epoch))
    assert [e["epoch"] for e in folder.epochs()] == [1, 2, 3]


@pytest.mark.parametrize("written", [[1, 2, 1], [1, 2, 3, 2, 3, 4], [2, 1, 3], [1, 1, 2]])
def test_epochs_are_in_order_wherever_a_second_owner_began(tmp_path, written):
    folder = TrialFolder(tmp_path / "t")
    for place, epoch in enumerate(written):
        folder.append(event(epoch) | {"place": place})
    assert [e["epoch"] for e in folder.epochs()] == sorted(set(written))
    assert [e["place"] for e in folder.epochs()] == [written.index(epoch) for epoch in sorted(set(written))]  # the first


def test_a_rescue_keeps_the_last_epoch_as_it_was_when_it_ended(tmp_path):
    """No checkpoint is due after the first epoch, and the weights have moved on since the third."""
    folder = TrialFolder(tmp_path / "t")
    folder.start()
    folder.commit_epoch(event(1), snapshot(1), last=False)
    folder._save_s = 1e9
    weights = torch.full((3,), 2.0)
    for epoch in (2, 3):
        folder._hold_s = 0.0
        folder.commit_epoch(
            event(epoch), lambda epoch=epoch, weights=weights: ({"w": weights}, {"epoch": epoch, "best": {}}), last=False
        )
        weights += 1
    folder.rescue()
    again = TrialFolder(tmp_path / "t")
    tensors, state = again.resume()
    assert state["epoch"] == 3
    assert torch.equal(tensors["w"], torch.full((3,), 3.0))
    assert [e["epoch"] for e in again.epochs()] == [1, 2, 3]


def test_epochs_that_were_not_held_stay_untold_by_a_rescue(tmp_path):
    folder = TrialFolder(tmp_path / "t")
    folder.start()
    folder.commit_epoch(event(1), snapshot(1), last=False)
    folder._save_s = 1e9
    folder.commit_epoch(event(2), snapshot(2), last=False)
    folder._hold_s = 1e9
    folder.commit_epoch(event(3), snapshot(3), last=False)
    folder.rescue()
    assert [e["epoch"] for e in folder.epochs()] == [1, 2]
    folder.commit_epoch(event(4), snapshot(4), last=True)
    assert [e["epoch"] for e in folder.epochs()] == [1, 2, 3, 4]
    assert TrialFolder(tmp_path / "t").resume()[1]["epoch"] == 4
