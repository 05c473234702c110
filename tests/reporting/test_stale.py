"""A result belongs to the data and weights that it was made with: what has changed since is said, marked, and run again."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from safetensors.torch import save_file

from pointsweep.cli import tables
from pointsweep.cli.run import main
from pointsweep.results.trial_dir import TrialFolder
from pointsweep.sweep.sweep import load
from pointsweep.tracking.mlflow.client import connected
from pointsweep.training.runner import inputs_changed
from pointsweep.utils import fault_injection
from tests.data.made import clouds
from tests.planning.test_inputs import FOLDER, ONE_ROW, WITH_WEIGHTS, data, replace_clouds, run, table, vit_mnist, write

__all__ = ["data"]  # a fixture


def records() -> dict[str, dict]:
    found = sorted(Path("store/trials").glob("*/record.json"))
    return {path.parent.name: json.loads(path.read_text()) for path in found}


def settle() -> None:
    """Wait until files that were just written have times that a later write could not leave the same."""
    time.sleep(2.1)


def test_a_result_of_other_data_is_marked_and_trained_again_when_asked(data, capsys):
    assert run(write(ONE_ROW)) == 0
    [(key, before)] = records().items()
    capsys.readouterr()
    replace_clouds(data / FOLDER, "test", clouds(40, 64, seed=9))

    assert run("sweep.yaml", "--plan") == 0
    assert "1 finished, 0 to run (1 stale: data changed since; --rerun-stale" in capsys.readouterr().out
    said = table(capsys, "sweep.yaml")
    assert f"data changed since: modelnet40 was {before['dataset']['digest'][:12]}" in said
    assert records() == {key: before}, "nothing is thrown away unasked"

    said = table(capsys, "sweep.yaml", "--rerun-stale")
    assert "1 to run (1 stale: to run again)" in said
    assert "data changed since" not in said
    [(again, after)] = records().items()
    assert again == key
    assert after["dataset"]["digest"] != before["dataset"]["digest"]
    [aside] = Path("store/stale").iterdir()
    assert json.loads((aside / "record.json").read_text()) == before
    assert "1 finished, 0 to run" in table(capsys, "sweep.yaml", "--rerun-stale")


def test_two_data_roots_share_a_trial_only_if_their_clouds_are_the_same(data, capsys, monkeypatch):
    assert run(write(ONE_ROW)) == 0
    shutil.copytree(data, "same")
    shutil.copytree(data, "other")
    replace_clouds(Path("other") / FOLDER, "train", clouds(80, 64, seed=9))
    monkeypatch.setenv("POINTSWEEP_DATA", str(Path("same").resolve()))
    assert "stale" not in table(capsys, "sweep.yaml")
    monkeypatch.setenv("POINTSWEEP_DATA", str(Path("other").resolve()))
    assert "1 stale: data changed since" in table(capsys, "sweep.yaml")


def test_a_link_that_leads_to_other_data_is_noticed(data, capsys):
    (data / FOLDER).rename(data / "first")
    shutil.copytree(data / "first", data / "second")
    replace_clouds(data / "second", "train", clouds(80, 64, seed=9))
    (data / FOLDER).symlink_to("first")
    settle()
    assert run(write(ONE_ROW)) == 0
    (data / FOLDER).unlink()
    (data / FOLDER).symlink_to("second")
    assert "1 stale: data changed since" in table(capsys, "sweep.yaml", "--plan")
    (data / FOLDER).unlink()
    (data / FOLDER).symlink_to("first")
    assert "stale" not in table(capsys, "sweep.yaml", "--plan")


def test_a_result_of_other_weights_is_marked_and_trained_again_when_asked(data, capsys):
    save_file(vit_mnist(seed=0), "vit.safetensors")
    assert run(write(WITH_WEIGHTS)) == 0
    capsys.readouterr()
    save_file(vit_mnist(seed=1), "vit.safetensors")
    said = table(capsys, "sweep.yaml")
    assert "1 stale: weights changed since" in said
    assert "weights changed since: vit.safetensors was" in said
    assert "weights changed since" not in table(capsys, "sweep.yaml", "--rerun-stale")


def test_a_table_without_the_data_stands_and_says_nothing(data, capsys, monkeypatch):
    assert run(write(ONE_ROW)) == 0
    shutil.rmtree(data)
    for root in (str(data), ""):
        monkeypatch.setenv("POINTSWEEP_DATA", root)
        said = table(capsys, "sweep.yaml")
        assert "1 finished, 0 to run" in said
        assert "changed since" not in said
        assert tables.main(["inputs", "--store", "store"]) == 0
        said = capsys.readouterr().out
        assert "changed since" not in said
        assert "not compared" not in said


def test_the_table_command_marks_what_it_knows_and_says_what_nobody_has_looked_at(data, capsys):
    assert run(write(ONE_ROW)) == 0
    replace_clouds(data / FOLDER, "test", clouds(40, 64, seed=9))
    settle()
    capsys.readouterr()
    assert tables.main(["inputs", "--store", "store"]) == 0
    assert "not compared with the modelnet40 of this machine" in capsys.readouterr().out
    assert run("sweep.yaml", "--plan") == 0
    capsys.readouterr()
    assert tables.main(["inputs", "--store", "store"]) == 0
    said = capsys.readouterr().out
    assert "data changed since" in said
    assert "not compared" not in said


def test_a_trial_does_not_continue_on_other_data_or_weights():
    def start(digest: str, weights: str) -> dict:
        return {"type": "start", "dataset": {"digest": digest}, "weights": {"origin": weights}}

    assert inputs_changed([], "b", "w") == ""
    assert inputs_changed([start("b", "w"), {"type": "epoch"}], "b", "w") == ""
    assert "digest a, now b" in inputs_changed([start("a", "w")], "b", "w")
    assert "v, now w" in inputs_changed([start("b", "v")], "b", "w")
    assert inputs_changed([{"type": "start"}], "b", "w") == "", "an older history does not say"


def killed_after_its_first_checkpoint(key: str) -> Path:
    """Run sweep.yaml in a process of its own that is killed once the trial has a checkpoint; return the trial's folder."""
    orders = {"ledger": str(Path("ledger").resolve()), "deaths": {f"{key}/checkpoint.safetensors": "after"}}
    command = [sys.executable, "-m", "pointsweep.run", "sweep.yaml", "--inline", "--store", "store", "--tracking-uri", "none"]
    ended = subprocess.run(command, env={**os.environ, fault_injection.VARIABLE: json.dumps(orders)}, capture_output=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()
    folder = Path("store/trials") / key
    assert (folder / "checkpoint.safetensors").is_file()
    assert not (folder / "record.json").exists()
    return folder


def test_a_trial_that_was_interrupted_starts_anew_if_its_data_have_changed(data):
    write(ONE_ROW.replace("epochs: 1", "epochs: 2"))
    [key] = {trial.config.key() for trial in load("sweep.yaml").trials()}
    folder = killed_after_its_first_checkpoint(key)
    interrupted = (folder / "checkpoint.safetensors").read_bytes()
    replace_clouds(data / FOLDER, "train", clouds(80, 64, seed=9))

    assert run("sweep.yaml") == 0
    [resumed] = records().values()
    assert (folder / "checkpoint.stale").read_bytes() == interrupted
    words = [event["word"] for event in TrialFolder(folder).events() if event["type"] == "stale"]
    assert len(words) == 1
    assert words[0].startswith("data changed since the last attempt: digest ")

    shutil.rmtree("store")
    assert run("sweep.yaml") == 0
    [fresh] = records().values()
    assert resumed["attempts"] == 2
    assert fresh["attempts"] == 1
    for name in ("metrics", "dataset", "correct"):
        assert resumed[name] == fresh[name], name
    for name in ("predictions.npz", "weights.safetensors"):
        assert resumed["files"][name] == fresh["files"][name], name


def test_a_trial_that_was_interrupted_goes_on_if_nothing_has_changed(data):
    write(ONE_ROW.replace("epochs: 1", "epochs: 2"))
    [key] = {trial.config.key() for trial in load("sweep.yaml").trials()}
    folder = killed_after_its_first_checkpoint(key)
    assert run("sweep.yaml") == 0
    assert not (folder / "checkpoint.stale").exists()
    assert [event["epoch"] for event in TrialFolder(folder).epochs()] == [1, 2]


def test_a_second_plan_of_data_from_files_needs_no_torch(data):
    settle()
    write(ONE_ROW)
    code = (
        "import sys\nfrom pointsweep.cli.run import main\n"
        "assert main(['sweep.yaml', '--plan', '--store', 'store']) == 0\n"
        "print('torch' in sys.modules, file=sys.stderr)"
    )
    said = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(2)]
    assert [each.stderr.split()[-1] for each in said] == ["True", "False"]
    tables = [each.stdout[each.stdout.index("test/accuracy") :] for each in said]  # behind lines about what takes time
    assert tables[0] == tables[1]


def test_mlflow_shows_the_epochs_of_the_data_that_are_here(data, capsys):
    tracked = ["--inline", "--store", "store", "--tracking-uri", "sqlite:///mlflow.db"]
    assert main([write(ONE_ROW), *tracked]) == 0
    replace_clouds(data / FOLDER, "test", clouds(40, 64, seed=9))
    assert main(["sweep.yaml", "--rerun-stale", *tracked]) == 0
    [record] = records().values()
    client = connected("sqlite:///mlflow.db")
    experiment = client.get_experiment_by_name("inputs").experiment_id
    [run] = client.search_runs([experiment], f"tags.`pointsweep.key` = '{record['key']}'")
    [epoch] = client.get_metric_history(run.info.run_id, "test/loss")
    assert epoch.value == record["metrics"]["last"]["test/loss"]
    [old] = client.search_runs([experiment], "tags.`pointsweep.kind` = 'stale'")
    assert client.get_metric_history(old.info.run_id, "test/loss")[0].value != epoch.value
