"""What of the sweeps of a store is done, failed, running and open."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from pointsweep.cli import ls, status
from pointsweep.reporting.standing import standing
from pointsweep.results.trial_dir import TrialFolder
from pointsweep.storage.base import FileStore
from pointsweep.storage.lease import leased


@pytest.fixture
def half_done(trained, tmp_path) -> Path:
    """A copy of the store of four trials: one finished, one failed, one of which a process works on, one interrupted."""
    root = tmp_path / "half_done"
    shutil.copytree(trained, root)
    folders = trials_of(root)
    for folder in folders[1:]:
        (folder / "record.json").unlink()
    TrialFolder(folders[1]).append(
        {"type": "failed", "class": "diverged", "reason": "the loss is not finite", "trace": "", "time": 1.0}
    )
    return root


def trials_of(root: Path) -> list[Path]:
    """The folders of the trials in the order of the table."""
    layout = json.loads((root / "sweeps/tiny/plan.json").read_text())["layout"]
    return [root / "trials" / key for cell in layout["cells"] for _, key in cell["keys"]]


def test_trials_are_counted_by_what_their_folders_say(half_done):
    with leased(trials_of(half_done)[2], 0.0):
        found = standing(FileStore(half_done), "tiny")
    assert [trial.state for trial in found.trials] == ["finished", "failed", "running", "open"]
    assert found.trials[0].label == "lora / 1d / seed 0"
    assert found.trials[1].reason == "the loss is not finite"
    assert found.trials[2].worker.startswith("process ")
    assert found.trials[3].epoch == 2
    record = json.loads((trials_of(half_done)[0] / "record.json").read_text())
    assert found.trained_s == record["seconds"]["total"]
    assert found.left_s == 3 * record["seconds"]["total"]


def test_a_lease_of_a_process_that_is_gone_is_no_running_trial(half_done):
    with leased(trials_of(half_done)[2], 0.0):
        lease = (trials_of(half_done)[2] / "lease.json").read_bytes()
    holder = json.loads(lease)
    holder["pid"] = 2**22 + 1  # more than Linux gives
    (trials_of(half_done)[2] / "lease.json").write_text(json.dumps(holder))
    assert standing(FileStore(half_done), "tiny").count("running") == 0


def test_status_prints_counts_times_failures_and_what_is_running(half_done, capsys):
    with leased(trials_of(half_done)[2], 0.0):
        assert status.main(["tiny", "--store", str(half_done)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "tiny: A tiny sweep"
    assert lines[1] == "trials   1 finished, 1 failed, 1 running, 1 open; 4 in all"
    assert lines[2].startswith("time     ") and lines[2].endswith(" left, one trial after the other")
    assert lines[3].startswith("running  head_only / 1d / seed 0: epoch 2, process ")
    assert lines[4].startswith(f"failed   lora / 1d / seed 1: the loss is not finite  log: {half_done}/trials/")
    assert lines[5] == "open     head_only / 1d / seed 1: interrupted after epoch 2, continues there"
    assert lines[6] == f"report   {half_done}/sweeps/tiny/report.html"


def test_status_takes_the_file_too_and_names_the_sweeps_there_are(trained, capsys):
    assert status.main([str(trained.parent / "tiny.yaml"), "--store", str(trained)]) == 0
    assert "4 finished, 0 failed, 0 running, 0 open; 4 in all" in capsys.readouterr().out
    assert status.main(["tinny", "--store", str(trained)]) == 2
    assert "unknown sweep 'tinny'. Did you mean 'tiny'?" in capsys.readouterr().err


def test_ls_lists_every_sweep_with_its_counts_whatever_is_wrong_with_another(half_done, capsys):
    (half_done / "sweeps/damaged").mkdir()
    (half_done / "sweeps/damaged/plan.json").write_text("{")
    (half_done / "sweeps/searching").mkdir()
    assert ls.main(["--store", str(half_done)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["sweep", "done", "failed", "open", "title"]
    assert lines[1][:4] == ["damaged", "-", "-", "-"] and "plan.json:" in " ".join(lines[1])
    assert lines[2] == ["searching", "-", "-", "-", "no", "table", "yet:", "a", "search", "that", "has", "not", "ended"]
    assert lines[3] == ["tiny", "1", "1", "2", "A", "tiny", "sweep"]


def test_ls_of_an_empty_store_and_of_none(tmp_path, capsys):
    assert ls.main(["--store", str(tmp_path / "nothing")]) == 0
    assert capsys.readouterr().out == f"{tmp_path}/nothing: no sweeps yet\n"
    (tmp_path / "file").write_text("")
    assert ls.main(["--store", str(tmp_path / "file")]) == 2
    assert "is a file, and a store is a folder" in capsys.readouterr().err
