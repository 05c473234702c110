"""The files of cluster/ before the tools that will read them, and their pages in docs/."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
import tomllib
from pathlib import Path

import dockerfile
import jsonschema
import pytest
import yaml
from check_jsonschema.builtin_schemas import get_builtin_schema

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
COMPOSE = [CLUSTER / "mlflow" / "compose.yaml", ROOT / "dashboards" / "compose.yaml"]
DOCKERFILE = CLUSTER / "Dockerfile"
SCRIPTS = sorted([*CLUSTER.rglob("*.sh"), *CLUSTER.rglob("*.sbatch")])
PAGES = {
    "aws": "ray up cluster/aws.yaml", "kubernetes": "kubectl apply --kustomize cluster/kubernetes/overlays/gpu", "slurm": "sbatch cluster/slurm.sbatch", "docker": "docker build",
    "tracking-server": "docker compose", "dashboards": "docker compose", "s3": "pointsweep run",
}  # fmt: skip


def documents(path: Path) -> list[dict]:
    return list(yaml.safe_load_all(path.read_text()))


def test_the_cluster_on_aws_asks_for_a_token():
    from ray._raylet import AuthenticationMode, get_authentication_mode  # noqa: F401 - the pinned Ray has it

    config = documents(CLUSTER / "aws.yaml")[0]
    starts = [line for key in ("head", "worker") for line in config[f"{key}_start_ray_commands"] if "ray start" in line]
    assert len(starts) == 2 and all("RAY_AUTH_MODE=token" in line for line in starts)
    assert config["file_mounts"]["/home/ray/.ray/auth_token"] == "~/.ray/auth_token"
    assert "ray get-auth-token --generate" in (ROOT / "docs" / "aws.md").read_text()


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_shells_accept_the_scripts(path: Path):
    shell = "bash" if "bash" in path.read_text().splitlines()[0] else "sh"
    subprocess.run([shell, "-n", path], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", path], check=True)


def test_the_slurm_script_runs_the_sweep_on_all_nodes_and_requeues(tmp_path):
    """With stand-ins for Slurm's and Ray's commands that write down how they were called."""
    tools = tmp_path / "tools"
    tools.mkdir()
    log = tmp_path / "calls"
    for name, body in {
        "scontrol": 'if [ "$2" = hostnames ]; then printf "n1\\nn2\\n"; fi', "srun": "", "ray": "",
        "python": 'if [ -e "$WAIT" ]; then sleep 30 & wait $!; fi; exit 1',
    }.items():  # fmt: skip
        (tools / name).write_text(f'#!/bin/bash\necho "{name} $*" >> {log}\n{body}\n')
        (tools / name).chmod(0o755)
    environment = {
        "PATH": f"{tools}:/usr/bin:/bin", "SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-2]",
        "SLURM_GPUS_ON_NODE": "4", "SLURM_CPUS_PER_TASK": "8", "POINTSWEEP_STORE": "/shared", "WAIT": str(tmp_path / "wait"),
    }  # fmt: skip
    line = ["bash", str(CLUSTER / "slurm.sbatch"), "sweeps/x.yaml", "seeds=2"]
    assert subprocess.run(line, env=environment, timeout=30).returncode == 1  # the sweep's own exit code
    # The script starts its nodes in the background: the last of them may write after the script's end.
    deadline = time.monotonic() + 30
    while log.read_text().count("srun ") < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    calls = log.read_text()
    assert "ray start --block --num-cpus 8 --num-gpus 4 --temp-dir /tmp/ray-7 --head --node-ip-address n1 --port 6407" in calls
    assert "--nodelist=n2 ray start --block --num-cpus 8 --num-gpus 4 --temp-dir /tmp/ray-7 --address n1:6407" in calls
    assert "python -m pointsweep.run sweeps/x.yaml seeds=2" in calls
    (tmp_path / "wait").touch()
    log.unlink()
    job = subprocess.Popen(line, env=environment, stdout=subprocess.PIPE)
    while "pointsweep.run" not in (log.read_text() if log.exists() else ""):
        time.sleep(0.05)
    job.terminate()
    assert job.wait(timeout=30) == 3
    assert "scontrol requeue 7" in log.read_text()


def stages() -> dict[str, list]:
    """The commands of each target of the Dockerfile, by the parser of Docker's own builder."""
    found: dict[str, list] = {}
    name = ""
    for command in dockerfile.parse_file(str(DOCKERFILE)):
        if command.cmd == "FROM":
            name = command.value[2]  # FROM image AS name
            found[name] = []
        if name:
            found[name].append(command)
    return found


TARGETS = ("cpu", "cuda", "dev", "mlflow")


def test_one_file_has_all_images_and_copies_what_exists():
    assert [path for path in ROOT.glob("**/Dockerfile") if ".venv" not in path.parts] == [DOCKERFILE]
    assert set(TARGETS) < set(stages())
    for command in dockerfile.parse_file(str(DOCKERFILE)):
        if command.cmd == "COPY":
            assert all((ROOT / source).exists() for source in command.value[:-1]), command.original
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    wanted = re.search(r"--editable \"\.\[(.*?)\]", DOCKERFILE.read_text()).group(1).split(",")
    assert set(wanted) <= set(extras)


@pytest.mark.parametrize("target", TARGETS)
def test_an_image_runs_without_rights_and_says_how_its_health_is_asked(target: str):
    commands = stages()[target]
    assert [each.value[0] for each in commands if each.cmd == "USER"] == ["ray"]
    assert [each.cmd for each in commands].count("HEALTHCHECK") == 1


def test_the_base_image_is_one_release_and_the_user_can_have_the_hosts_ids():
    text = DOCKERFILE.read_text()
    [base] = re.findall(r"^ARG PYTHON=(.+)$", text, re.M)
    assert re.fullmatch(r"python:3\.11\.\d+-slim-\w+(@sha256:[0-9a-f]{64})?", base)
    assert "ARG UID=1000" in text and "ARG GID=1000" in text
    assert re.findall(r"^FROM (?!\$\{PYTHON\})(\S+)", text, re.M) == ["python", "base", "base", "base", "python"]


def test_the_folder_that_a_volume_is_mounted_on_belongs_to_the_user_of_the_image():
    """A new volume of Docker's takes over the owner of the folder below it; else root's, which the server cannot write."""
    mounted = documents(CLUSTER / "mlflow" / "compose.yaml")[0]["services"]["mlflow"]["volumes"]
    [folder] = [volume.split(":")[1] for volume in mounted]
    made = [each.value[0] for each in stages()["mlflow"] if each.cmd == "RUN"]
    assert f"mkdir {folder} && chown ray:ray {folder}" in made


def test_images_are_built_from_what_they_copy_and_from_nothing_else():
    """.dockerignore leaves everything out but what is named; no store, secret or history can get in."""
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    let_in = {rule[1:] for rule in rules if rule.startswith("!")}
    copied = set()
    for command in dockerfile.parse_file(str(DOCKERFILE)):
        if command.cmd == "COPY":
            copied |= {str(Path(source)) for source in command.value[:-1]}
    assert let_in == copied


def test_the_devcontainer_is_a_target_of_the_same_file():
    made = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text())
    build = made["build"]
    folder = ROOT / ".devcontainer"
    assert (folder / build["dockerfile"]).resolve() == DOCKERFILE
    assert (folder / build["context"]).resolve() == ROOT
    assert build["target"] in stages()
    assert f"{made['postCreateCommand'].removeprefix('make ')}:" in (ROOT / "Makefile").read_text().replace("$(VENV)", ".venv")


@pytest.mark.parametrize("path", COMPOSE, ids=lambda path: path.parent.name)
def test_compose_accepts_its_files(path: Path):
    """By the schema of the Compose specification, that check-jsonschema carries."""
    schema = jsonschema.Draft202012Validator(get_builtin_schema("vendor.compose-spec"))
    [document] = documents(path)
    schema.validate(document)
    for service in document["services"].values():
        assert "latest" not in service["image"] and re.search(r":v?\d+\.\d+", service["image"]), service
        mounted = [volume.split(":")[0] for volume in service.get("volumes", [])]
        assert all((path.parent / source).exists() for source in mounted if source.startswith(".")), mounted
    service["imagge"] = "postgres"
    assert not schema.is_valid(document)


def test_the_tracking_server_is_the_pinned_one_and_listens_on_loopback():
    compose = documents(CLUSTER / "mlflow" / "compose.yaml")[0]
    assert all(port.startswith("127.0.0.1:") for service in compose["services"].values() for port in service.get("ports", []))
    pinned = re.search(r"^mlflow==(.+)$", (ROOT / "constraints.txt").read_text(), re.M).group(1)
    assert f"mlflow[auth]=={pinned}" in DOCKERFILE.read_text()
    needed = set(re.findall(r"\$\{(\w+):\?", (CLUSTER / "mlflow" / "compose.yaml").read_text()))
    offered = set(re.findall(r"^(\w+)=", (CLUSTER / "mlflow" / "example.env").read_text(), re.M))
    assert needed == offered


def test_options_of_the_tracking_server_exist():
    from mlflow.cli import server

    known = {option for parameter in server.params for option in parameter.opts}
    command = (CLUSTER / "mlflow" / "start.sh").read_text().partition("exec mlflow server")[2]
    assert set(re.findall(r"--[a-z-]+", command)) <= known


def test_no_file_holds_a_key():
    for path in CLUSTER.rglob("*"):
        if path.is_file():
            text = path.read_text()
            assert not re.search(r"AKIA[0-9A-Z]{16}|aws_secret_access_key\s*[=:]\s*\S|-----BEGIN", text), path
            assert not re.search(r"^\s*(POSTGRES_PASSWORD|MLFLOW_AUTH_ADMIN_PASSWORD)[=:][ ]*[A-Za-z0-9]", text, re.M), path


@pytest.mark.parametrize("name", PAGES)
def test_each_page_begins_with_one_command(name: str):
    text = (ROOT / "docs" / f"{name}.md").read_text()
    block = text.split("```")[1].removeprefix("bash\n").strip()
    assert PAGES[name] in block and "\n" not in block
    assert text.index("```") < 120  # right below the title
    for path in re.findall(r"(?:cluster|dashboards)/[\w/.-]*\w", text):
        assert (ROOT / path).exists() or path.endswith("/.env"), path
