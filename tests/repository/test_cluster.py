"""The files of cluster/ before the tools that will read them, and their pages in docs/."""

from __future__ import annotations

import copy
import re
import shutil
import subprocess
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path

import dockerfile
import jsonschema
import kubernetes_validate
import pytest
import yaml
from check_jsonschema.builtin_schemas import get_builtin_schema

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
KUBERNETES = "1.37"
COMPOSE = [CLUSTER / "mlflow" / "compose.yaml", ROOT / "dashboards" / "compose.yaml"]
DOCKERFILES = {CLUSTER / "Dockerfile": ROOT, CLUSTER / "mlflow" / "Dockerfile": CLUSTER / "mlflow"}  # and what each is built from
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


def fields(required: str, **types: object) -> dict:
    """The schema of an object that has these fields and no others; the required ones by name."""
    made = {name: {"type": kind} if isinstance(kind, str) else kind for name, kind in types.items()}
    return {"type": "object", "additionalProperties": False, "required": required.split(), "properties": made}


# The fields that our files use, as KubeRay 1.7.1 defines them: docs.ray.io/en/master/kuberay/references/api.html. No registry has its
# custom resource definitions. The pods in the templates are Kubernetes' own, and compared with its schema above.
STRINGS = {"type": "object", "additionalProperties": {"type": "string"}}
POD = {"template": "object", "rayStartParams": STRINGS}
NUMBER = {"type": "integer", "minimum": 0}
WORKERS = fields(
    "groupName minReplicas maxReplicas template", groupName="string", replicas=NUMBER, minReplicas=NUMBER, maxReplicas=NUMBER, **POD
)
RAY_CLUSTER = fields(
    "headGroupSpec", rayVersion="string", enableInTreeAutoscaling="boolean", headGroupSpec=fields("template", **POD),
    authOptions=fields("", mode={"enum": ["disabled", "token"]}), workerGroupSpecs={"type": "array", "items": WORKERS},
)  # fmt: skip
RAY_JOB = fields(
    "", entrypoint="string", shutdownAfterJobFinishes="boolean", ttlSecondsAfterFinished=NUMBER, backoffLimit=NUMBER,
    submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]}, rayClusterSpec=RAY_CLUSTER,
)  # fmt: skip


@pytest.mark.parametrize(("name", "kind", "spec"), [("raycluster", "RayCluster", RAY_CLUSTER), ("rayjob", "RayJob", RAY_JOB)])
def test_kuberay_accepts_its_resources(name: str, kind: str, spec: dict):
    [document] = documents(CLUSTER / "kuberay" / f"{name}.yaml")
    head = {"apiVersion": {"const": "ray.io/v1"}, "kind": {"const": kind}, "metadata": fields("name", name="string")}
    schema = jsonschema.Draft202012Validator(fields("apiVersion kind metadata spec", **head, spec=spec))
    schema.validate(document)
    cluster = document["spec"].get("rayClusterSpec", document["spec"])
    cluster["workerGroupSpecs"][0]["minReplica"] = cluster["workerGroupSpecs"][0].pop("minReplicas")
    assert {error.validator for error in schema.iter_errors(document)} == {"required", "additionalProperties"}


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


def test_docker_reads_the_image_files_and_they_copy_what_exists_and_do_not_run_as_root():
    """By the parser of Docker's own builder."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for path, context in DOCKERFILES.items():
        commands = dockerfile.parse_file(str(path))
        for command in commands:
            if command.cmd == "COPY":
                assert all((context / source).exists() for source in command.value[:-1]), command.original
        starts = [number for number, command in enumerate(commands) if command.cmd == "FROM"]
        for begin, end in zip(starts, [*starts[1:], len(commands)], strict=True):
            names = commands[begin].value[2:3]  # FROM image AS name
            assert names == ("base",) or "USER" in {command.cmd for command in commands[begin:end]}, path
    wanted = re.search(r"--editable \"\.\[(.*?)\]", (CLUSTER / "Dockerfile").read_text()).group(1).split(",")
    assert set(wanted) <= set(extras)


@pytest.mark.parametrize("path", COMPOSE, ids=lambda path: path.parent.name)
def test_compose_accepts_its_files(path: Path):
    """By the schema of the Compose specification, that check-jsonschema carries."""
    schema = jsonschema.Draft202012Validator(get_builtin_schema("vendor.compose-spec"))
    [document] = documents(path)
    schema.validate(document)
    for service in document["services"].values():
        mounted = [volume.split(":")[0] for volume in service.get("volumes", [])]
        assert all((path.parent / source).exists() for source in mounted if source.startswith(".")), mounted
    service["imagge"] = "postgres"
    assert not schema.is_valid(document)


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
