"""A sweep that is killed at its writes ends as if nothing had happened; and with a safety line taken out, chaos.py sees it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pointsweep.testing import chaos
from pointsweep.utils import fault_injection as faults

SWEEP = """
name: chaotic
base:
  dataset: {name: synthetic, num_points: 64, presample: 64, train_limit: 32, test_limit: 8}
  tokenizer: {name: point_pn_light, num_tokens: 8, neighbours: 8}
  backbone: {name: tiny, modality: 1d}
  train: {epochs: 2, batch_size: 16, warmup_epochs: 0, lr: 2.0e-3}
rows: {method: [lora, head_only]}
seeds: 1
"""


def disturbed(folder: Path, *arguments: str, before: str = "", sweep: str = SWEEP) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, as it forks; `before` is run in it first."""
    (folder / "chaotic.yaml").write_text(sweep)
    line = [str(folder / "chaotic.yaml"), *arguments]
    code = f"import sys\nfrom pointsweep.testing import chaos; from pointsweep.results import checkpoint; from pointsweep.utils import fault_injection as faults; from pointsweep.results import trial_dir as history\n{before}\nsys.exit(chaos.main({line!r}))"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=3000, env=_environment(folder))


def _environment(folder: Path) -> dict[str, str]:
    return os.environ | {"TMPDIR": str(folder)}


def test_a_few_deaths_change_nothing(tmp_path):
    run = disturbed(tmp_path, "--runs", "2", "--launcher", "inline", "--tracker", "sqlite", "--seed", "5")
    assert run.returncode == 0, run.stdout + run.stderr
    assert "one MLflow run a trial" in run.stdout
    assert not list(tmp_path.glob("pointsweep-chaos-*")), "what held is cleaned up"


@pytest.mark.slow
def test_without_the_checkpoints_digest_chaos_fails(tmp_path):
    orders = "chaos.choose = lambda *_: [chaos.Round(n, 'inline', 'flip', {6: 'after'}) for n in range(1, 13)]"
    assert disturbed(tmp_path, "--seed", "1", before=orders).returncode == 0
    run = disturbed(tmp_path, "--seed", "1", before=f"{orders}\ncheckpoint._digest = lambda tensors, state: 'same'")
    assert run.returncode == 1, run.stdout + run.stderr


DIRECT = """
from pointsweep.training import supervisor as guard; from pointsweep.storage import base as store
def direct(path, data):
    way = faults.due(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        faults.put(file, data, path, way)
    faults.done(way)
store.write_whole = history.write_whole = guard.write_whole = direct
"""
UNLEASED = """
import contextlib
from pointsweep.storage.lease import Lease
@contextlib.contextmanager
def leased(folder, wait_s):
    folder.mkdir(parents=True, exist_ok=True)
    yield None
history.leased = leased
"""
UNREPAIRED = "history.TrialFolder.repair = lambda self: None"
NETWORK = """
name: chaotic
base:
  dataset: {name: synthetic, num_points: 256, presample: 256, train_limit: 32, test_limit: 8}
rows: {network: [{name: point_nn, neighbours: 8}]}
seeds: 1
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "sweep", "way", "file"),
    [
        (DIRECT, SWEEP, "torn", "record.json"),
        (UNLEASED, SWEEP, "two", ""),
        # The first line of a trial without checkpoints: nothing else would mend it.
        (UNREPAIRED, NETWORK, "torn", "history.jsonl"),
    ],
    ids=["whole files", "one process a trial", "torn lines"],
)
def test_with_a_safety_line_taken_out_chaos_fails_and_with_it_not(tmp_path, line, sweep, way, file):
    """The first write of `file` is disturbed; with `two` none is, and two commands run at once."""
    orders = f"""
def choose(args, seed, writes):
    import glob
    ledger = open(glob.glob("{tmp_path}/pointsweep-chaos-*/undisturbed/ledger")[0]).read().splitlines()
    first = [number for number, line in enumerate(ledger, 1) if "/{file}" in line][:1]
    return [chaos.Round(1, "inline", "{way}", dict.fromkeys(first, "{way}") if "{file}" else {{}})]
chaos.choose = choose
"""
    whole = disturbed(tmp_path, before=orders, sweep=sweep)
    assert whole.returncode == 0, whole.stdout + whole.stderr
    broken = disturbed(tmp_path, before=orders + line, sweep=sweep)
    assert broken.returncode == 1, broken.stdout + broken.stderr
    assert "BROKEN" in broken.stdout


@pytest.mark.slow
def test_every_write_in_every_way_inline(tmp_path):
    ways = [word for way in faults.WAYS for word in ("--way", way)]
    run = disturbed(tmp_path, "--runs", "0", "--launcher", "inline", "--tracker", "sqlite", "--deaths", "1", *ways)
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.slow
@pytest.mark.parametrize("way", ["kill", "two", "torn"])
def test_a_server_that_is_cut_off_changes_nothing(tmp_path, way):
    run = disturbed(tmp_path, "--runs", "3", "--launcher", "inline", "--tracker", "server", "--way", way)
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.slow
def test_deaths_on_ray_change_nothing(tmp_path):
    run = disturbed(tmp_path, "--runs", "12", "--launcher", "ray")
    assert run.returncode == 0, run.stdout + run.stderr


def test_rounds_cover_every_write_in_every_way_and_come_again_with_the_seed():
    options = chaos.ChaosOptions("f.yaml", runs=0, deaths=1)
    rounds = chaos.choose(options, 3, 10)
    deadly = set(chaos.WAYS) - set(chaos.WITHOUT_DEATHS)
    assert {(n, each.way) for each in rounds for n in each.deaths} == {(n, way) for n in range(1, 11) for way in deadly}
    assert {each.way for each in rounds if not each.deaths} == set(chaos.WITHOUT_DEATHS)
    assert {(each.launcher, each.tracker) for each in rounds} == {(a, b) for a in chaos.LAUNCHERS for b in chaos.TRACKERS}
    assert rounds == chaos.choose(options, 3, 10)


def test_an_invalid_file_is_said_to_be(tmp_path, capsys):
    (tmp_path / "bad.yaml").write_text("rows: 3\n")
    assert chaos.main([str(tmp_path / "bad.yaml")]) == 2
    assert "nothing was launched" in capsys.readouterr().err
