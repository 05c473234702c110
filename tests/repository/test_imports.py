"""Who may import whom (docs/design.md, section 3), read from the syntax trees."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "pointsweep"
FILES = sorted(PACKAGE.rglob("*.py"))
# An outside service is imported in one package, and in a shim's place nowhere else.
OWNERS = {
    "ray": "execution",
    "optuna": ("hpo", "reporting.html"),  # its figures
    "mlflow": "tracking.mlflow",
    "boto3": "storage",
    "hydra": "sweep",
    "fastapi": "serving",
    "uvicorn": "serving",
    "timm": "models.backbones",
    "transformers": "models.backbones",
}
TORCH_FREE = [
    "config.schema",
    "config.validation",
    "execution.ray_cluster",
    "config.registry",
    "reporting.build",
    "reporting.formats.registry",
    "reporting.formats.text",
    "reporting.html.page",
    "results.records",
    "statistics.seeds",
    "storage.base",
    "sweep.published",
    "sweep.sweep",
    "tracking.background",
    "tracking.mlflow.tracker",
    "tracking.trackers",
]
MOST_IN_ROOT, MOST_IN_FOLDER = 12, 20


def module(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").as_posix().replace("/", ".")


def imported(path: Path, everywhere: bool = True) -> set[str]:
    """What a file imports; with `everywhere` in its functions too."""
    tree = ast.parse(path.read_text())
    found = set()
    for node in ast.walk(tree) if everywhere else tree.body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_no_package_imports_one_above_it():
    """The contract stands in pyproject.toml."""
    code = "from importlinter.cli import lint_imports; import sys; sys.exit(lint_imports())"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-2000:]


@pytest.mark.parametrize("path", FILES, ids=module)
def test_an_outside_service_has_a_package_of_its_own(path: Path):
    for name in imported(path):
        owner = OWNERS.get(name.split(".")[0])
        owners = (owner,) if isinstance(owner, str) else owner or ()
        allowed = owner is None or any(module(path).startswith(f"{each}.") for each in owners)
        assert allowed, f"{module(path)} imports {name}; only {' and '.join(owners)} may"


@pytest.mark.parametrize("path", FILES, ids=module)
def test_a_launch_knows_no_tracker_by_its_module(path: Path):
    """The chaos tool alone does: it is about what arrives in MLflow."""
    if module(path).startswith(("tracking.mlflow.", "testing.chaos")):
        return
    assert not [name for name in imported(path) if name.startswith("pointsweep.tracking.mlflow")]


def test_no_modules_import_each_other():
    """What functions import when they are called is left out."""
    names = {module(path) for path in FILES}
    edges = {}
    for path in FILES:
        own = [name for name in imported(path, everywhere=False) if name.startswith("pointsweep.")]
        found = {name.removeprefix("pointsweep.") for name in own}
        edges[module(path)] = found & names - {module(path)}
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, f"a cycle: {' -> '.join([*path[path.index(name) :], name])}"
        if name not in done:
            for other in sorted(edges[name]):
                visit(other, (*path, name))
            done.add(name)

    for name in sorted(names):
        visit(name, ())


def test_the_design_lists_every_file_and_no_other():
    text = (PACKAGE.parent / "docs" / "design.md").read_text().split("## 3. Files")[1].split("\n## ")[0]
    listed: set[str] = set()
    for section in text.split("\n**")[1:]:
        folder = section.split("/**")[0].replace("/", ".")
        block = section.split("\n\n", 1)[1]
        names = re.findall(r"^\| `(\w+)` \|", block, re.M) or re.findall(r"`(\w+)`", block.splitlines()[0])
        listed |= {f"{folder}.{name}" for name in names}
    there = {module(path) for path in FILES if path.parent != PACKAGE and not path.stem.startswith("__")}
    assert listed == there


# of other programs, or made up as an example
FOREIGN = {"collect_indoor3d_data.py", "gcs.py", "mine.py", "vision_transformer.py"}


def test_files_named_in_docstrings_and_comments_exist():
    """A module that was renamed leaves no old name behind."""
    names = {path.name for folder in (PACKAGE, PACKAGE.parent / "tests") for path in folder.rglob("*.py")} | FOREIGN
    texts = [*FILES, PACKAGE.parent / "docs" / "design.md"]
    missing = []
    for path in texts:
        named = re.findall(r"(?<!benchmarks/)\b[a-z0-9_]+\.py\b", path.read_text())
        missing += [f"{path.relative_to(PACKAGE.parent)}: {name}" for name in named if name not in names]
    assert missing == []


def test_a_folder_can_be_seen_at_once():
    for folder in {path.parent for path in FILES}:
        files = [path for path in folder.glob("*.py") if path.name != "__init__.py" or folder == PACKAGE]
        most = MOST_IN_ROOT if folder == PACKAGE else MOST_IN_FOLDER
        if folder.name != "backbones":
            assert len(files) <= most, f"{folder.relative_to(PACKAGE.parent)} holds {len(files)} modules"


@pytest.mark.parametrize("name", TORCH_FREE)
def test_light_files_stay_free_of_torch_and_of_the_services(name: str):
    code = f"import sys, pointsweep.{name}; print([m for m in ('torch', 'ray', 'mlflow', 'transformers') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_config_classes_are_read_without_torch():
    code = (
        "import sys; from pointsweep.config import registry\n"
        "for kind in registry.KINDS:\n"
        "    for name in registry.names(kind): assert registry.config_class(kind, name).__name__.endswith('Config')\n"
        "print('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "False"


def heavy_modules_of(*arguments: str) -> str:
    """Which heavy packages the command has imported when it ends."""
    code = (
        "import sys\nfrom pointsweep.cli.run import main\nmain(sys.argv[1:])\n"
        "print([m for m in ('torch', 'ray', 'mlflow', 'transformers', 'optuna', 'numba', 'plotly') if m in sys.modules], file=sys.stderr)"
    )
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True).stderr.strip()


def test_help_and_a_second_plan_import_nothing_heavy(store, monkeypatch, tmp_path):
    monkeypatch.setenv("POINTSWEEP_CACHE", str(tmp_path / "cache"))
    plan = (str(PACKAGE.parent / "sweeps" / "smoke.yaml"), "--plan", "--only", "row=head_only", "seeds=1")
    assert heavy_modules_of("--help") == "[]"
    assert "torch" in heavy_modules_of(*plan)
    assert heavy_modules_of(*plan) == "[]"


PLAN_AND_TRAIN = """
import sys
import torch
from pointsweep.config.validation import trial_from_dict
from pointsweep.models.point_model import build
from pointsweep.planning.plan import count_arms
from pointsweep.config.registry import config_class, names
from pointsweep.tracking.target import TrialTags
from pointsweep.training.runner import Job, Task, run_pack
base = {
    "dataset": {"name": "synthetic", "num_points": 64, "presample": 64, "train_limit": 16, "test_limit": 8},
    "tokenizer": {"name": "point_pn_light", "num_tokens": 8, "neighbours": 8}, "backbone": {"name": "tiny", "modality": "1d"},
    "train": {"epochs": 1, "batch_size": 8, "warmup_epochs": 0},
}

def arm(method):
    modality = config_class("methods", method).modalities[0]
    return trial_from_dict({**base, "backbone": {"name": "tiny", "modality": modality}, "method": method})

arms = [arm(method) for method in names("methods") if config_class("methods", method).package is None]
assert len(count_arms({str(number): arm for number, arm in enumerate(arms)})) == len(arms)
[end] = run_pack([Task(trial_from_dict({**base, "method": "lora"}), TrialTags("s", "r", "c", 0))], Job(sys.argv[1]), lambda result: None)
assert end.status == "finished", end
print([name for name in ("torch._dynamo", "sympy") if name in sys.modules])
"""


def test_neither_a_plan_nor_training_loads_the_compiler_of_torch(tmp_path):
    """It takes more than a second of every process."""
    line = [sys.executable, "-c", PLAN_AND_TRAIN, f"file://{tmp_path}"]
    run = subprocess.run(line, capture_output=True, text=True, check=False)
    assert run.stdout.splitlines()[-1:] == ["[]"], run.stdout + run.stderr
