"""The files of cluster/ before the tools that will read them, and their pages in docs/."""

from __future__ import annotations

import copy
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

ROOT = Path(__file__).parents[1]
CLUSTER = ROOT / "cluster"
KUBERNETES = "1.34"
SCRIPTS = sorted([*CLUSTER.rglob("*.sh"), *CLUSTER.rglob("*.sbatch")])
PAGES = {
    "aws": "ray up cluster/aws.yaml", "kubernetes": "kubectl apply", "slurm": "sbatch cluster/slurm.sbatch", "docker": "docker build",
    "tracking-server": "docker compose", "dashboards": "docker compose", "s3": "python -m pointsweep.run",
}  # fmt: skip


def documents(path: Path) -> list[dict]:
    return list(yaml.safe_load_all(path.read_text()))


def test_ray_accepts_the_aws_configuration():
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(documents(CLUSTER / "aws.yaml")[0])
    validate_config(config)
    workers = config["available_node_types"]["gpu_spot"]["node_config"]
    assert workers["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert all("IamInstanceProfile" in kind["node_config"] for kind in config["available_node_types"].values())
    wrong = copy.deepcopy(config) | {"max_workerz": 1}
    with pytest.raises(Exception, match="max_workerz"):
        validate_config(wrong)


def test_kubernetes_accepts_the_services():
    for document in documents(CLUSTER / "kuberay" / "services.yaml"):
        kubernetes_validate.validate(document, KUBERNETES, strict=True)


def ray_specs() -> Iterator[dict]:
    yield documents(CLUSTER / "kuberay" / "raycluster.yaml")[0]["spec"]
    yield documents(CLUSTER / "kuberay" / "rayjob.yaml")[0]["spec"]["rayClusterSpec"]


def test_kubernetes_accepts_the_pods_of_the_ray_clusters():
    for spec in ray_specs():
        for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
            template = group["template"]
            pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x", **template["metadata"]}, "spec": template["spec"]}
            kubernetes_validate.validate(pod, KUBERNETES, strict=True)


def test_kuberay_fields_are_those_of_its_version_1():
    cluster = {"rayVersion", "authOptions", "enableInTreeAutoscaling", "headGroupSpec", "workerGroupSpecs"}
    worker = {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"}
    for spec in ray_specs():
        assert set(spec) == cluster
        assert set(spec["headGroupSpec"]) == {"rayStartParams", "template"}
        assert all(set(group) == worker for group in spec["workerGroupSpecs"])
        assert all(isinstance(value, str) for value in spec["headGroupSpec"]["rayStartParams"].values())


def test_every_ray_cluster_asks_for_a_token():
    from ray._raylet import AuthenticationMode, get_authentication_mode  # noqa: F401 - the pinned Ray has it

    assert all(spec["authOptions"] == {"mode": "token"} for spec in ray_specs())
    cluster = documents(CLUSTER / "kuberay" / "raycluster.yaml")[0]["metadata"]["name"]
    services = {document["metadata"]["name"] for document in documents(CLUSTER / "kuberay" / "services.yaml")}
    named = set(re.findall(r"(?:secretRef|secretKeyRef): \{name: ([\w-]+)", "".join(p.read_text() for p in CLUSTER.rglob("*.yaml"))))
    # The operator names the token's secret as the cluster: no other secret may have that name.
    assert cluster not in named | services
    page = (ROOT / "docs" / "kubernetes.md").read_text()
    assert f"create secret generic {cluster} --from-literal=auth_token=" in page and f"service/{cluster}-head-svc" in page
    config = documents(CLUSTER / "aws.yaml")[0]
    starts = [line for key in ("head", "worker") for line in config[f"{key}_start_ray_commands"] if "ray start" in line]
    assert len(starts) == 2 and all("RAY_AUTH_MODE=token" in line for line in starts)
    assert config["file_mounts"]["/home/ubuntu/.ray/auth_token"] == "~/.ray/auth_token"
    assert "ray get-auth-token --generate" in (ROOT / "docs" / "aws.md").read_text()


def test_the_ray_version_is_the_pinned_one():
    pinned = re.search(r"^ray==(.+)$", (ROOT / "constraints.txt").read_text(), re.M).group(1)
    assert {spec["rayVersion"] for spec in ray_specs()} == {pinned}


def test_every_secret_and_configmap_that_is_named_exists():
    text = "".join(path.read_text() for path in (CLUSTER / "kuberay").glob("*.yaml"))
    named = set(re.findall(r"(?:configMapRef|secretRef|configMap|secretKeyRef): \{name: ([\w-]+)", text))
    made = {document["metadata"]["name"] for document in documents(CLUSTER / "kuberay" / "services.yaml")}
    created = set(re.findall(r"create secret generic ([\w-]+)", (ROOT / "docs" / "kubernetes.md").read_text()))
    assert named <= made | created


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
    calls = log.read_text()
    assert "ray start --block --num-cpus 8 --num-gpus 4 --temp-dir /tmp/ray-7 --head --node-ip-address n1 --port 6407" in calls
    assert "--nodelist=n2 ray start --block --num-cpus 8 --num-gpus 4 --temp-dir /tmp/ray-7 --address n1:6407" in calls
    assert "python -m pointsweep.run sweeps/x.yaml seeds=2" in calls
    (tmp_path / "wait").touch()
    log.unlink()
    job = subprocess.Popen(line, env=environment, stdout=subprocess.PIPE)
    while "pointsweep.run" not in (log.read_text() if log.exists() else ""):
        pass
    job.terminate()
    assert job.wait(timeout=30) == 3
    assert "scontrol requeue 7" in log.read_text()


def test_what_the_images_copy_exists_and_they_do_not_run_as_root():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for path, context in ((CLUSTER / "Dockerfile", ROOT), (CLUSTER / "mlflow" / "Dockerfile", CLUSTER / "mlflow")):
        lines = re.sub(r"\\\n", " ", path.read_text()).splitlines()
        instructions = [line.split() for line in lines if line and not line.startswith("#")]
        assert {words[0] for words in instructions} <= {"FROM", "RUN", "ENV", "WORKDIR", "COPY", "ARG", "USER", "EXPOSE", "CMD"}
        for words in instructions:
            if words[0] == "COPY":
                assert all((context / source).exists() for source in words[1:-1]), words
        stages = re.split(r"^FROM ", path.read_text(), flags=re.M)[1:]
        assert all("USER " in stage for stage in stages if " AS base" not in stage.splitlines()[0])
    wanted = re.search(r"--editable \"\.\[(.*?)\]", (CLUSTER / "Dockerfile").read_text()).group(1).split(",")
    assert set(wanted) <= set(extras)


def test_the_tracking_server_is_the_pinned_one_and_listens_on_loopback():
    compose = documents(CLUSTER / "mlflow" / "compose.yaml")[0]
    assert all(port.startswith("127.0.0.1:") for service in compose["services"].values() for port in service.get("ports", []))
    pinned = re.search(r"^mlflow==(.+)$", (ROOT / "constraints.txt").read_text(), re.M).group(1)
    assert f"mlflow[auth]=={pinned}" in (CLUSTER / "mlflow" / "Dockerfile").read_text()
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
