"""Code of a user's own in a sweep file: nothing of it runs unasked, all that is wrong with it is one line, and it is told apart by its text."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft7Validator

from pointsweep.cli.run import main
from pointsweep.cli.tables import main as tables
from pointsweep.config import plugins, registry
from pointsweep.errors import ConfigError
from pointsweep.results import metrics
from pointsweep.sweep.json_schema import sweep_schema
from pointsweep.sweep.sweep import load
from tests.support import lines_tracker, shelf_store

METHOD = """
from typing import Literal

import torch
from torch import nn

from pointsweep.config.base import Real
from pointsweep.config.methods import MethodConfig
from pointsweep.models.methods.base import Method


class ShiftConfig(MethodConfig):
    name: Literal["shift"] = "shift"
    start: Real = 0.5


class Shift(Method):
    Config = ShiftConfig

    def attach(self, backbone, prefix, num_views):
        self.shifts = nn.ParameterList(nn.Parameter(torch.full((width,), self.config.start)) for width in backbone.widths)

    def after_block(self, index, tokens, context):
        return tokens + self.shifts[index]
"""

SWEEP = """
name: own
plugins: [shifts.py]
base:
  dataset: {name: synthetic, num_points: 64, presample: 64, train_limit: 32, test_limit: 20}
  tokenizer: {name: point_pn_light, num_tokens: 8, neighbours: 8}
  backbone: {name: tiny, modality: 1d}
  train: {epochs: 1, batch_size: 16, warmup_epochs: 0}
rows: {method: [shift]}
seeds: 1
"""


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    """An empty folder, in which a method lies; plug-ins of a test are forgotten after it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(plugins.ALLOW_VARIABLE, raising=False)
    Path("shifts.py").write_text(METHOD)
    Path("own.yaml").write_text(SWEEP)
    known = dict(metrics.METRICS)
    yield
    for name in list(plugins._active):
        plugins.forget(name)
    metrics.METRICS.clear()
    metrics.METRICS.update(known)
    metrics._ORIGINS.clear()


def said(text: str = SWEEP, allowed: bool = True) -> str:
    """What is printed of a sweep file that is refused."""
    Path("own.yaml").write_text(text)
    with pytest.raises(ConfigError) as error:
        load("own.yaml", allow_plugins=allowed)
    head, *lines = str(error.value).splitlines()
    assert head.endswith("1 problem, nothing was launched")
    assert len(lines) == 1
    return lines[0]


# Permission


def test_nothing_of_a_file_runs_unasked_and_what_would_run_is_named(tmp_path, capsys):
    Path("shifts.py").write_text("from pathlib import Path\nPath('it_ran').write_text('')\n" + METHOD)
    for command in ([], ["--plan"], ["--cfg"]):
        assert main(["own.yaml", "--inline", *command]) == 2
        printed = capsys.readouterr().err
        assert f"would import Python code: {tmp_path}/shifts.py. Nothing of it was run" in printed
        assert "--allow-plugins" in printed
    assert not Path("it_ran").exists()
    load("own.yaml", allow_plugins=True)
    assert Path("it_ran").exists()


@pytest.mark.parametrize(
    "where", ["rows: {method: [PATH]}", "rows: {method.name: [PATH]}", "rows: [{label: a, method: {name: PATH}}]"]
)
def test_an_import_path_runs_nothing_unasked_either(where, tmp_path):
    text = SWEEP.replace("plugins: [shifts.py]\n", "").replace("rows: {method: [shift]}", where.replace("PATH", '"shifts:Shift"'))
    assert f"{tmp_path}/shifts.py" in said(text, allowed=False)
    assert "shifts" not in sys.modules


def test_an_override_can_name_code_and_runs_nothing_unasked():
    asked = ["method=shifts:Shift"]
    rows = "rows: {train.lr: [1.0e-3]}"
    Path("own.yaml").write_text(SWEEP.replace("plugins: [shifts.py]\n", "").replace("rows: {method: [shift]}", rows))
    with pytest.raises(ConfigError, match="would import Python code"):
        load("own.yaml", asked)
    sweep = load("own.yaml", asked, allow_plugins=True)
    assert {trial.config.method.name for trial in sweep.trials()} == {"shift"}


@pytest.mark.parametrize("value", ["1", ".", "/somewhere/else:."])
def test_the_environment_allows_all_code_or_that_below_a_folder(value, monkeypatch):
    monkeypatch.setenv(plugins.ALLOW_VARIABLE, value)
    assert [source.name for source in load("own.yaml").plugins] == ["shifts"]


@pytest.mark.parametrize("value", ["0", "", "/somewhere/else"])
def test_the_environment_allows_nothing_else(value, monkeypatch):
    monkeypatch.setenv(plugins.ALLOW_VARIABLE, value)
    assert "would import" in said(allowed=False)


def test_the_plan_names_what_is_imported(tmp_path):
    sweep = load("own.yaml", allow_plugins=True)
    [source] = sweep.plugins
    assert sweep.remarks == (f"it imports {tmp_path}/shifts.py (digest {source.digest})",)


def test_a_module_that_comes_with_python_is_no_plug_in():
    text = SWEEP.replace("plugins: [shifts.py]\n", "")
    assert "antigravity is no plug-in: it comes with Python" in said(text.replace("[shift]", '["antigravity:geohash"]'))


# What a sweep file can say


def test_an_import_path_and_a_listed_file_are_one_trial_with_one_key():
    keys = []
    for row in ("shift", '"shifts:Shift"', '{name: "shifts:Shift", start: 0.5}'):
        listed = "" if ":" in row else "plugins: [shifts.py]\n"
        Path("own.yaml").write_text(SWEEP.replace("plugins: [shifts.py]\n", listed).replace("[shift]", f"[{row}]"))
        keys += [trial.config.key() for trial in load("own.yaml", allow_plugins=True).trials()]
    assert len(set(keys)) == 1


def test_a_file_inherits_plug_ins_whose_paths_are_relative_to_its_parent():
    Path("below").mkdir()
    Path("below/child.yaml").write_text("name: child\nbase: {from: ../own.yaml}\nrows: {method: [shift, lora]}\nseeds: 1\n")
    assert len(load("below/child.yaml", allow_plugins=True).trials()) == 2


def test_a_package_is_a_plug_in_with_all_its_files():
    Path("mine").mkdir()
    Path("mine/__init__.py").write_text("from mine.shifts import Shift, ShiftConfig\n")
    Path("mine/shifts.py").write_text(METHOD)
    Path("own.yaml").write_text(SWEEP.replace("shifts.py", "mine"))
    before = load("own.yaml", allow_plugins=True).plugins[0]
    assert sorted(before.texts) == ["mine/__init__.py", "mine/shifts.py"]
    Path("mine/shifts.py").write_text(METHOD.replace("0.5", "0.25"))
    after = load("own.yaml", allow_plugins=True)
    assert after.plugins[0].digest != before.digest
    assert after.trials()[0].config.method.start == 0.25


def test_a_changed_file_is_read_anew_in_the_same_process():
    first = load("own.yaml", allow_plugins=True).trials()[0].config
    Path("shifts.py").write_text(METHOD.replace("0.5", "0.7"))
    second = load("own.yaml", allow_plugins=True).trials()[0].config
    assert (first.method.start, second.method.start) == (0.5, 0.7)
    assert first.key() != second.key()


def test_a_package_whose_init_has_configurations_alone_is_checked_without_torch():
    config, code = METHOD.split("\n\nclass Shift(")
    config = config.replace("import torch\nfrom torch import nn\n", "").replace(
        "from pointsweep.models.methods.base import Method\n", ""
    )
    Path("mine").mkdir()
    Path("mine/__init__.py").write_text(config.replace("    name:", '    implementation = "mine.code:Shift"\n    name:'))
    code = f"class Shift({code}".replace("    Config = ShiftConfig\n", "")
    Path("mine/code.py").write_text(f"import torch\nfrom torch import nn\nfrom pointsweep.models.methods.base import Method\n{code}")
    Path("own.yaml").write_text(SWEEP.replace("shifts.py", "mine"))
    check = "import sys\nfrom pointsweep.sweep.sweep import load\nload('own.yaml', allow_plugins=True)\nprint('torch' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=False)
    assert ran.stdout.strip() == "False", ran.stdout + ran.stderr
    assert main(["own.yaml", "--plan", "--allow-plugins"]) == 0


# What is wrong with one is one line


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"shift.py": METHOD, "shifts.py": None}, "plugins[0] (line 3): no file shifts.py. Did you mean 'shift.py'?"),
        ({"shifts.py": METHOD.replace("class Shift(Method):", "class Shift(Method)")}, "shifts.py, line 17: SyntaxError: expected ':'"),
        ({"shifts.py": METHOD + "\nimport nothing_of_this_name\n"}, "line 26: ModuleNotFoundError: No module named 'nothing_of_this_name'"),
        ({"shifts.py": METHOD + "\nimport helper\n", "helper.py": ""}, "helper lies beside it: list it under plugins: too"),
        ({"shifts.py": METHOD + "\nraise SystemExit(3)\n"}, "shifts.py, line 26: SystemExit: 3"),
        ({"shifts.py": METHOD.replace('"shift"', '"lora"')}, "shifts.py, line 17: two components of methods are called 'lora'"),
        ({"shifts.py": METHOD.replace("Real = 0.5", "Real")}, "shifts.ShiftConfig gives its field start no default"),
        ({"shifts.py": METHOD.replace('= "shift"', "")}, "shifts.ShiftConfig gives its name no default"),
        ({"shifts.py": METHOD.replace('Literal["shift"] =', "str =")}, "shifts.ShiftConfig must state its name"),
        ({"shifts.py": METHOD.replace("(MethodConfig)", "(NamedConfig)").replace("Real", "NamedConfig, Real", 1)}, "derives from none of"),
        ({"shifts.py": METHOD.replace("class Shift(Method)", "class Shift(nn.Module)")}, "shifts.Shift does not derive from pointsweep.models"),
        ({"shifts.py": METHOD.replace("    Config = ShiftConfig\n", "")}, "shifts.py, line 12: shifts.ShiftConfig names no implementation"),
        ({"shifts.py": b"\xff\xfe\x00"}, "shifts.py cannot be read"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_plug_in_is_one_line_with_file_and_line(change, words, capsys):
    for name, text in change.items():
        if text is None:
            Path(name).unlink()
        else:
            Path(name).write_bytes(text if isinstance(text, bytes) else text.encode())
    line = said()
    assert "plugins[0] (line 3)" in line
    assert words in line
    assert main(["own.yaml", "--allow-plugins", "--inline"]) == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ("{a: 1}", "must be the name of a file or folder of Python, got {'a': 1}"),
        ("own.yaml", "own.yaml is no Python file"),
        ("a-b.py", "'a-b' is not a Python name"),
        ("empty", "the folder empty is no package: it has no __init__.py"),
        ("elsewhere/x.py", "there is no folder elsewhere"),
        ("random.py", "the name random is that of another module here"),
        ("yaml", "the name yaml is that of another module here"),
    ],
)
def test_an_entry_that_is_no_plug_in_is_refused(entry, words):
    Path("empty").mkdir()
    Path("yaml").mkdir()
    Path("yaml/__init__.py").write_text("")
    for name in ("random.py", "a-b.py"):
        Path(name).write_text("")
    assert words in said(SWEEP.replace("[shifts.py]", f"[{entry}]"))


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("shifts:Shfit", "rows.method[0] (line 8): shifts has no class Shfit. Did you mean 'Shift'?"),
        ("shfits:Shift", "there is no module shfits: no shfits.py beside this file, nor an installed package"),
        ("shifts.more:Shift", "No module named 'shifts.more'"),
    ],
)
def test_an_import_path_that_leads_nowhere_is_refused_with_its_line(path, words):
    assert words in said(SWEEP.replace("plugins: [shifts.py]\n", "").replace("[shift]", f'["{path}"]'))


def test_a_method_is_no_data_set():
    text = (
        SWEEP.replace("plugins: [shifts.py]\n", "")
        .replace("[shift]", "[lora]")
        .replace("{name: synthetic,", '{name: "shifts:Shift",')
    )
    assert "base.dataset.name (line 4): shifts:Shift is one of the methods, not of the datasets" in said(text)


def test_a_metric_has_a_name_of_its_own():
    Path("shifts.py").write_text(
        METHOD + "\nfrom pointsweep.results.metrics import computed_metric\nloss = computed_metric('loss', '', max)\n"
    )
    assert "the metric 'loss' is pointsweep's own; rename it" in said()


def test_an_unknown_field_of_an_own_method_is_refused_as_that_of_any():
    text = SWEEP.replace("[shift]", "[{name: shift, strat: 1.0}]")
    assert "shift has no field 'strat'. Did you mean 'start'? Fields: start" in said(text)


def test_a_file_that_does_not_list_a_plug_in_cannot_use_what_another_file_brought():
    load("own.yaml", allow_plugins=True)
    line = said(SWEEP.replace("plugins: [shifts.py]\n", ""))
    assert "shift comes from the plug-in shifts.py, which this file does not list" in line


def test_the_schema_for_editors_takes_plug_ins_and_import_paths():
    validator = Draft7Validator(sweep_schema())
    for text, good in {
        "plugins: [shifts.py]": True,
        "plugins: shifts.py": False,
        'base: {method: "mine.shifts:Shift"}': True,
        'base: {method: {name: "mine.shifts:Shift", start: 0.5}}': True,
        'rows: {method.name: ["mine.shifts:Shift", lora]}': True,
        'metric: "worst_class:worst_class"': True,
        "base: {method: mine.shifts}": False,
        "base: {method: lorra}": False,
    }.items():
        assert validator.is_valid(yaml.safe_load(text)) == good, text


# What installed packages offer


@pytest.fixture
def installed(tmp_path) -> Path:
    """A folder with an installed package: a method, a metric, a format and a kind of store under entry points."""
    folder = tmp_path / "site"
    (folder / "their_package").mkdir(parents=True)
    (folder / "their_package" / "__init__.py").write_text("print('imported')\n" + METHOD)
    (folder / "their_package" / "more.py").write_text(
        "from pointsweep.reporting.formats.base import Format\n"
        "from pointsweep.results.metrics import computed_metric\n"
        "always = computed_metric('always', 'one', lambda predicted, labels: 1.0)\n"
        "FORMAT = Format('names', lambda table, options: table.name + chr(10))\n"
    )
    (folder / "their_package" / "shelf.py").write_text(Path(shelf_store.__file__).read_text())
    (folder / "their_package" / "lines.py").write_text(Path(lines_tracker.__file__).read_text())
    about = folder / "their_package-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: their-package\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(
        "[pointsweep.methods]\nshift = their_package:Shift\nwrong = their_package:Shift\n"
        "[pointsweep.metrics]\nalways = their_package.more:always\n"
        "[pointsweep.formats]\nnames = their_package.more:FORMAT\n"
        "[pointsweep.stores]\nshelf = their_package.shelf:ShelfStore\n"
        "[pointsweep.trackers]\njsonl = their_package.lines:LinesTracker\n"
    )
    return folder


def ran(*words: str, cwd: Path, path: Path | None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(path) if path else "", "POINTSWEEP_STORE": str(cwd / "store")}
    line = [sys.executable, "-m", f"pointsweep.{words[0]}", *words[1:]]
    return subprocess.run(line, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def test_what_an_installed_package_offers_needs_no_list_and_no_permission(installed, tmp_path):
    text = SWEEP.replace("plugins: [shifts.py]\n", "metric: test/always\n")
    Path("own.yaml").write_text(text)
    ended = ran("run", "own.yaml", "--inline", "--tracking-uri", "none", cwd=tmp_path, path=installed)
    assert ended.returncode == 0, ended.stderr
    assert "100.0" in ended.stdout
    [record] = records()
    assert len(record["origin"]["plugin.their_package"]) == 16
    shown = ran("tables", "own", "--format", "names", cwd=tmp_path, path=installed)
    assert shown.stdout.splitlines()[-1] == "own"


def test_a_table_is_shown_by_a_metric_that_an_installed_package_offers(installed, tmp_path):
    Path("own.yaml").write_text(SWEEP.replace("plugins: [shifts.py]\n", "").replace("shift", "head_only"))
    assert ran("run", "own.yaml", "--inline", "--tracking-uri", "none", cwd=tmp_path, path=installed).returncode == 0
    ended = ran("tables", "own", "--metric", "always", cwd=tmp_path, path=installed)
    assert ended.returncode == 0, ended.stderr
    assert "test/always in %" in ended.stdout
    ended = ran("tables", "own", "--metric", "alway", cwd=tmp_path, path=installed)
    assert ended.returncode == 2
    assert "unknown metric 'test/alway'. Did you mean 'test/always'?" in ended.stderr
    Path("own.yaml").write_text(Path("own.yaml").read_text() + "metric: test/alway\n")
    ended = ran("run", "own.yaml", "--plan", cwd=tmp_path, path=installed)
    assert "unknown metric 'test/alway'. Did you mean 'test/always'?" in ended.stderr


def test_an_installed_package_needs_no_init_file(installed, tmp_path):
    package = installed / "their_package"
    (package / "__init__.py").rename(package / "method.py")
    points = installed / "their_package-1.0.dist-info" / "entry_points.txt"
    points.write_text("[pointsweep.methods]\nshift = their_package.method:Shift\n")
    Path("own.yaml").write_text(SWEEP.replace("plugins: [shifts.py]\n", ""))
    ended = ran("run", "own.yaml", "--inline", "--tracking-uri", "none", cwd=tmp_path, path=installed)
    assert ended.returncode == 0, ended.stderr
    [record] = records()
    assert len(record["origin"]["plugin.their_package"]) == 16


def test_a_folder_without_an_init_file_is_no_plug_in_by_import_path(tmp_path, monkeypatch):
    (tmp_path / "lacks_init").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(plugins.PluginError, match=rf"lacks_init is no package: {tmp_path}/lacks_init has no __init__.py"):
        plugins.locate("lacks_init", tmp_path / "elsewhere")


def test_the_project_folder_of_an_editable_installation_does_not_change_its_digest(installed, tmp_path):
    # As pip install --editable does: Python finds the package by a finder behind those of folders.
    project = tmp_path / "their_package"
    project.mkdir()
    package = (installed / "their_package").rename(project / "their_package")
    (project / "setup.py").write_text("")
    (installed / "sitecustomize.py").write_text(
        "import importlib.util, sys\n"
        "class Finder:\n"
        "    @staticmethod\n"
        "    def find_spec(name, path=None, target=None):\n"
        f"        files = {{'their_package': '__init__', 'their_package.code': 'code'}}\n"
        "        if name in files:\n"
        f"            return importlib.util.spec_from_file_location(name, {str(package)!r} + f'/{{files[name]}}.py')\n"
        "sys.meta_path.append(Finder)\n"
    )
    (package / "__init__.py").rename(package / "code.py")
    (package / "__init__.py").write_text("")
    points = installed / "their_package-1.0.dist-info" / "entry_points.txt"
    points.write_text("[pointsweep.methods]\nshift = their_package.code:Shift\n")
    Path("own.yaml").write_text(SWEEP.replace("plugins: [shifts.py]\n", ""))
    run = ("run", "own.yaml", "--inline", "--tracking-uri", "none")
    ended = ran(*run, cwd=tmp_path, path=installed)
    assert ended.returncode == 0, ended.stderr

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "own.yaml").write_text(Path("own.yaml").read_text())
    ended = ran(*run, cwd=elsewhere, path=installed)
    assert ended.returncode == 0, ended.stderr
    [record] = records()
    [other] = [json.loads(path.read_text()) for path in elsewhere.glob("store/trials/*/record.json")]
    assert record["origin"]["plugin.their_package"] == other["origin"]["plugin.their_package"]


def test_an_installed_package_offers_a_kind_of_store(installed, tmp_path):
    Path("own.yaml").write_text(SWEEP.replace("plugins: [shifts.py]\n", "").replace("shift", "head_only"))
    address = f"shelf://{tmp_path}/shelf.sqlite"
    ended = ran("run", "own.yaml", "--inline", "--tracking-uri", "none", "--store", address, cwd=tmp_path, path=installed)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "1 finished, 0 to run" in ran("run", "own.yaml", "--plan", "--store", address, cwd=tmp_path, path=installed).stdout
    without = ran("tables", "own", "--store", address, cwd=tmp_path, path=None)
    assert without.returncode == 2
    assert "shelf:// is not a store this version knows" in without.stderr


def test_an_installed_package_offers_a_tracker(installed, tmp_path):
    Path("own.yaml").write_text(SWEEP.replace("plugins: [shifts.py]\n", "").replace("shift", "head_only"))
    words = ("run", "own.yaml", "--inline", "--tracking-uri", f"jsonl:{tmp_path}/lines")
    ended = ran(*words, cwd=tmp_path, path=installed)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert f"Lines    {tmp_path}/lines/own.jsonl" in ended.stdout
    without = ran(*words, cwd=tmp_path, path=None)
    assert without.returncode == 2
    assert "unknown scheme 'jsonl'" in without.stderr


def test_a_package_that_lies_in_the_current_folder_is_not_installed(installed):
    """`python -m` looks there, so that a folder from somebody else could offer anything."""
    (installed / "own.yaml").write_text(SWEEP.replace("plugins: [shifts.py]\n", ""))
    for path in (None, installed):
        ended = ran("run", "own.yaml", "--plan", cwd=installed, path=path)
        assert ended.returncode == 2
        assert "unknown method 'shift'" in ended.stderr
        assert "imported" not in ended.stdout


def test_an_entry_point_that_is_something_else_is_refused_with_its_name(installed, tmp_path):
    Path("own.yaml").write_text(SWEEP.replace("plugins: [shifts.py]\n", "").replace("[shift]", "[wrong]"))
    ended = ran("run", "own.yaml", "--plan", cwd=tmp_path, path=installed)
    assert ended.returncode == 2
    assert (
        "rows.method[0] (line 8): the entry point pointsweep.methods wrong = their_package:Shift is methods 'shift'" in ended.stderr
    )


# The record


def records() -> list[dict]:
    return [json.loads(path.read_text()) for path in Path("store/trials").glob("*/record.json")]


def test_a_table_is_shown_by_a_metric_of_the_sweeps_own_code_where_that_may_run(capsys):
    Path("wrong.py").write_text(
        "from pointsweep.results.metrics import computed_metric\n"
        "wrong = computed_metric('wrong', 'one', lambda predicted, labels: 1.0)\n"
    )
    Path("own.yaml").write_text(SWEEP.replace("[shifts.py]", "[wrong.py]").replace("[shift]", "[head_only]"))
    store = ["--store", "store"]
    assert main(["own.yaml", "--inline", "--tracking-uri", "none", *store, "--allow-plugins"]) == 0
    plugins.forget("wrong")
    metrics.METRICS.pop("wrong")
    capsys.readouterr()

    assert tables(["own", "--metric", "wrong", *store]) == 2
    said = capsys.readouterr().err
    assert "unknown metric 'test/wrong'" in said and "--allow-plugins allows it once" in said
    assert tables(["own", "--metric", "wrong", *store, "--allow-plugins"]) == 0
    assert "test/wrong in %" in capsys.readouterr().out


def test_a_metric_below_zero_has_a_plan(capsys):
    Path("below.py").write_text(
        "from pointsweep.results.metrics import computed_metric\n"
        "below = computed_metric('below', 'half less than none', lambda predicted, labels: -0.5)\n"
    )
    Path("own.yaml").write_text(
        SWEEP.replace("[shifts.py]", "[below.py]").replace("[shift]", "[head_only, lora]").replace("seeds: 1", "seeds: 2")
        + "metric: test/below\n"
    )
    options = ["own.yaml", "--inline", "--tracking-uri", "none", "--store", "store", "--allow-plugins"]
    assert main(options) == 0
    capsys.readouterr()
    assert main([*options, "--plan"]) == 0
    accuracies = [record["metrics"]["last"]["test/accuracy"] for record in records()]
    assert f"accuracy {100 * sum(accuracies) / 4:.0f} % as in the finished trials" in capsys.readouterr().out


def test_a_changed_source_makes_a_trial_stale(capsys):
    run = ["own.yaml", "--inline", "--tracking-uri", "none", "--store", "store", "--allow-plugins"]
    assert main(run) == 0
    digest = plugins.digest_of("shifts")
    assert [record["origin"]["plugin.shifts"] for record in records()] == [digest]
    assert Path("store/sweeps/own/plugins/shifts.py").read_text() == METHOD
    assert main([*run, "--plan"]) == 0
    assert "1 finished, 0 to run\n" in capsys.readouterr().out

    Path("shifts.py").write_text(METHOD + "# another way\n")
    changed = f"plug-in changed since: shifts was {digest[:12]}"
    assert main([*run, "--plan"]) == 0
    printed = capsys.readouterr().out
    assert "1 finished, 0 to run (1 stale: plug-in changed since; --rerun-stale" in printed
    assert changed in printed
    # The command tables imports nothing: it reads the file.
    from pointsweep.cli import tables

    assert tables.main(["own", "--store", "store"]) == 0
    assert changed in capsys.readouterr().out
    assert main([*run, "--rerun-stale"]) == 0
    assert "plug-in changed" not in capsys.readouterr().out
    assert [record["origin"]["plugin.shifts"] for record in records()] == [plugins.digest_of("shifts")] != [digest]


def test_a_trial_that_runs_no_plug_in_is_not_stale_when_one_changes(capsys):
    text = SWEEP.replace("[shift]", "[shift, lora]")
    Path("own.yaml").write_text(text)
    run = ["own.yaml", "--inline", "--tracking-uri", "none", "--store", "store", "--allow-plugins"]
    assert main(run) == 0
    assert {record["config"]["method"]["name"]: "plugin.shifts" in record["origin"] for record in records()} == {
        "shift": True,
        "lora": False,
    }
    Path("shifts.py").write_text(METHOD + "# another way\n")
    assert main([*run, "--plan"]) == 0
    assert "2 finished, 0 to run (1 stale" in capsys.readouterr().out


def test_the_digest_of_what_a_plug_in_imports_is_in_the_record_too():
    Path("helper.py").write_text("START = 0.5\n")
    Path("shifts.py").write_text("from helper import START\n" + METHOD.replace("0.5", "START"))
    load(_with_helper(), allow_plugins=True)
    assert set(plugins.digests([("methods", "shift")])) == {"helper", "shifts"}
    assert registry.source_of("methods", "shift") == "shifts"
    before = load("own.yaml", allow_plugins=True).trials()[0].config.method.start
    Path("helper.py").write_text("START = 0.75\n")
    assert (before, load("own.yaml", allow_plugins=True).trials()[0].config.method.start) == (0.5, 0.75)


def _with_helper() -> str:
    Path("own.yaml").write_text(SWEEP.replace("[shifts.py]", "[shifts.py, helper.py]"))
    return "own.yaml"
