"""A budget in the sweep file: the launch ends when it is used up, and goes on with a larger one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pointsweep.cli.run import main
from pointsweep.errors import ConfigError
from pointsweep.sweep.sweep import load
from tests.end_to_end.test_command import SWEEP, command

QUIET = ("--inline", "--tracking-uri", "none")


def sweep(folder: Path, resources: str) -> str:
    (folder / "tiny.yaml").write_text(f"{SWEEP}resources: {resources}\n")
    return str(folder / "tiny.yaml")


def device_s(store: Path) -> dict[str, float]:
    """trial key -> the seconds that its epochs had of devices, as its history says."""
    found = {}
    for path in store.glob("trials/*/history.jsonl"):
        events = [json.loads(line)["event"] for line in path.read_text().splitlines()]
        found[path.parent.name] = sum(event["device_s"] for event in events if event["type"] == "epoch")
    return found


@pytest.fixture
def store(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("POINTSWEEP_STORE", str(tmp_path / "store"))
    return tmp_path / "store"


def test_a_launch_ends_when_its_budget_is_used_up_and_a_larger_one_continues(store, tmp_path, capsys):
    # Any trial is longer than this: the first one is trained to its end, no second one starts.
    assert main([sweep(tmp_path, "{budget: {hours: 1.0e-9}}"), *QUIET]) == 4
    said = capsys.readouterr()
    assert "7 trials were not started" in said.err and "CPU-hours used" in said.err
    assert "failed" not in said.err
    assert len(device_s(store)) == 1
    assert "n=1/2" in (store / "sweeps/tiny/table.txt").read_text()
    # What earlier launches used counts: the same command starts nothing.
    assert main([sweep(tmp_path, "{budget: {hours: 1.0e-9}}"), *QUIET]) == 4
    assert len(device_s(store)) == 1
    assert main([sweep(tmp_path, "{budget: {hours: 1000}}"), *QUIET]) == 0
    assert len(device_s(store)) == 8


def test_costs_by_cell_are_the_sums_of_the_histories(store, tmp_path):
    # Two CPUs, five an hour each.
    assert main([sweep(tmp_path, "{cpus: 2, budget: {money: 1000, per_hour: 5}}"), *QUIET, "seeds=1"]) == 0
    plan = json.loads((store / "sweeps/tiny/plan.json").read_text())["layout"]
    costs = json.loads((store / "sweeps/tiny/cost.json").read_text())
    spent = device_s(store)
    assert len(costs) == len(plan["cells"]) == 4
    for cell, cost in zip(plan["cells"], costs, strict=True):
        [key] = [key for _, key in cell["keys"] if key in spent]  # the table has a second seed, which was not asked for
        record = json.loads((store / "trials" / key / "record.json").read_text())
        assert spent[key] == pytest.approx(2 * record["seconds"]["total"])
        assert cost["hours"] == pytest.approx(spent[key] / 3600)
        assert cost["money"] == pytest.approx(5 * spent[key] / 3600)
        assert cost["row"] == plan["rows"][cell["row"]] and cost["column"] == plan["columns"][cell["column"]]
    assert "price of all" in (store / "sweeps/tiny/report.html").read_text()


def test_members_of_a_pack_share_its_devices(store, tmp_path):
    assert main([sweep(tmp_path, "{cpus: 2, pack: 4, budget: {per_hour: 1}}"), *QUIET, "seeds=2"]) == 0
    for path in store.glob("trials/*/record.json"):
        seconds = json.loads(path.read_text())["seconds"]
        assert seconds["device"] == pytest.approx(seconds["total"] * 2 / 4)


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ("{hour: 1}", "resources.budget.hour.*budget has no field 'hour'. Did you mean 'hours'\\?"),
        ("{hours: 0}", "resources.budget.hours.*must be a number above 0, got 0"),
        ("{hours: .nan}", "must be a number above 0"),
        ("{money: 10}", "needs per_hour, the price of an hour of one device"),
        ("12", "must be a mapping of hours, money, per_hour, got 12"),
    ],
)
def test_what_is_wrong_with_a_budget_is_said(tmp_path, budget, message):
    with pytest.raises(ConfigError, match=message):
        load(sweep(tmp_path, f"{{budget: {budget}}}"))


def test_money_and_hours_limit_together(tmp_path):
    def limit(text: str) -> float:
        return load(sweep(tmp_path, f"{{budget: {text}}}")).resources.budget.limit_hours()

    assert limit("{money: 10, per_hour: 4}") == 2.5
    assert limit("{money: 10, per_hour: 4, hours: 2}") == 2
    assert limit("{per_hour: 4}") == float("inf")


def test_a_search_has_a_budget_of_its_own(tmp_path):
    text = SWEEP.replace("rows: {method: [lora, head_only]}", "").partition("columns:")[0]
    search = "search: {space: {train.lr: {float: [1.0e-4, 1.0e-2]}}}\nresources: {budget: {hours: 1}}\n"
    (tmp_path / "search.yaml").write_text(text.replace("test_limit: 20", "test_limit: 20, val_fraction: 0.2") + search)
    with pytest.raises(ConfigError, match="a search has trials: and hours: of its own"):
        load(tmp_path / "search.yaml")


@pytest.mark.slow
def test_on_ray_what_runs_is_trained_to_its_end_and_little_more_starts(store, tmp_path):
    path = sweep(tmp_path, "{budget: {hours: 1.0e-9}}")
    run = command(path, "--tracking-uri", "none", "--workers", "1")
    assert run.returncode == 4, run.stdout + run.stderr
    trained = len(device_s(store))
    assert 1 <= trained <= 2, "the first one, and one that waited"
    assert f"{8 - trained} trials were not started" in run.stderr
    assert len(list(store.glob("trials/*/record.json"))) == trained
