"""Who may import whom (docs/design.md, section 3), read from the syntax trees."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "pointsweep"
FILES = sorted(PACKAGE.rglob("*.py"))
OWNERS = {
    "ray": ("ray_cluster", "launch"),
    "optuna": ("search", "samplers"),
    "mlflow": ("tracking",),
    "boto3": ("s3_store",),
    "hydra": ("overrides",),
}
TORCH_FREE = [
    "config",
    "sweep",
    "tables",
    "stats",
    "render",
    "report",
    "tracking",
    "store",
    "records",
    "registry",
    "published",
    "checks",
    "mirror",
    "ray_cluster",
]


def layers() -> dict[str, int]:
    """module -> height, from the block in the design."""
    text = (PACKAGE.parent / "docs" / "design.md").read_text()
    block = text.split("enforces it):")[1].split("```")[1].strip().splitlines()
    return {name.removesuffix("/*"): len(block) - row for row, line in enumerate(block) for name in line.split()}


def module(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").as_posix().replace("/", ".")


def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", FILES, ids=module)
def test_outside_services_have_files_of_their_own(path: Path):
    for name in imported(path):
        owners = OWNERS.get(name.split(".")[0], (module(path),))
        assert module(path) in owners, f"{module(path)} imports {name}; only {' and '.join(owners)} may"


@pytest.mark.parametrize("path", [p for p in FILES if p.stem != "__init__"], ids=module)
def test_a_file_imports_only_from_lower_layers(path: Path):
    height = layers()
    own = module(path).split(".")[0]
    assert own in height, f"docs/design.md does not say in which layer {own} is"
    for name in imported(path):
        parts = name.split(".")
        if parts[0] == "pointsweep" and len(parts) > 1 and parts[1] in height:
            inside = parts[1] == own
            assert inside or height[parts[1]] <= height[own], f"{module(path)} (layer {height[own]}) imports {name}"


@pytest.mark.parametrize("name", TORCH_FREE)
def test_light_files_stay_free_of_torch_and_of_the_services(name: str):
    code = f"import sys, pointsweep.{name}; print([m for m in ('torch', 'ray', 'mlflow', 'transformers') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_config_classes_are_read_without_torch():
    code = (
        "import sys; from pointsweep import registry\n"
        "for kind in registry.REGISTRY:\n"
        "    for name in registry.names(kind): assert registry.config_class(kind, name).__name__.endswith('Config')\n"
        "print('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "False"


def heavy_modules_of(*arguments: str) -> str:
    """Which heavy packages the command has imported when it ends."""
    code = (
        "import sys\nfrom pointsweep.run import main\n"
        "try: main(sys.argv[1:])\nexcept SystemExit: pass\n"
        "print([m for m in ('torch', 'ray', 'mlflow', 'transformers', 'optuna', 'numba') if m in sys.modules], file=sys.stderr)"
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
from pointsweep.checks import trial_from_dict
from pointsweep.model import build
from pointsweep.plan import count_arms
from pointsweep.registry import names
from pointsweep.target import TrialTags
from pointsweep.trial import Job, Task, run_pack
base = {
    "dataset": {"name": "synthetic", "num_points": 64, "presample": 64, "train_limit": 16, "test_limit": 8},
    "tokenizer": {"name": "point_pn_light", "num_tokens": 8, "neighbours": 8}, "backbone": {"name": "tiny", "modality": "1d"},
    "train": {"epochs": 1, "batch_size": 8, "warmup_epochs": 0},
}

def arm(method):
    modality = "3d" if method == "point_peft" else "1d"
    return trial_from_dict({**base, "backbone": {"name": "tiny", "modality": modality}, "method": method})

arms = [arm(method) for method in names("methods")]
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
