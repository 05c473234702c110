"""The files of cluster/kubernetes: what Kubernetes and KubeRay accept, and what an operator of a cluster asks of them."""

from __future__ import annotations

import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "cluster" / "kubernetes"
KUBERNETES = "1.37"
OVERLAYS = ("cpu", "gpu", "dev")
IMAGES = yaml.safe_load((FOLDER / "components/images/kustomization.yaml").read_text())["images"]


def documents(path: Path) -> list[dict]:
    return list(yaml.safe_load_all(path.read_text()))


def gpu_workers() -> dict:
    [patch] = documents(FOLDER / "components" / "gpu-workers" / "workers.yaml")[0]
    assert (patch["op"], patch["path"]) == ("add", "/spec/workerGroupSpecs/-")
    return patch["value"]


def everything() -> list[dict]:
    """All objects of the base and the job of a sweep, with the group of GPU workers that an overlay adds."""
    found = []
    for path in [*sorted((FOLDER / "base").glob("*.yaml")), FOLDER / "sweep" / "job.yaml"]:
        if path.name != "kustomization.yaml":
            found += documents(path)
    [cluster] = [one for one in found if one["kind"] == "RayCluster"]
    cluster["spec"]["workerGroupSpecs"].append(gpu_workers())
    return found


ALL = everything()
[CLUSTER] = [one for one in ALL if one["kind"] == "RayCluster"]
GROUPS = [CLUSTER["spec"]["headGroupSpec"], *CLUSTER["spec"]["workerGroupSpecs"]]


def templates() -> Iterator[tuple[str, dict]]:
    """Every pod that the files ask for: a name, and its template."""
    for one in ALL:
        name, spec = one["metadata"]["name"], one.get("spec", {})
        if one["kind"] == "RayCluster":
            for group in GROUPS:
                yield f"{name} {group.get('groupName', 'head')}", group["template"]
        elif one["kind"] == "CronJob":
            yield name, spec["jobTemplate"]["spec"]["template"]
        elif "template" in spec:
            yield name, spec["template"]


PODS = dict(templates())
CONTAINERS = {
    f"{name}/{container['name']}": (template, container)
    for name, template in PODS.items()
    for container in template["spec"]["containers"]
}
each_pod = pytest.mark.parametrize("name", PODS)
each_container = pytest.mark.parametrize("name", CONTAINERS)


def test_kubernetes_accepts_every_object_and_the_pods_of_the_ray_cluster():
    known = [one for one in ALL if not one["apiVersion"].startswith("ray.io/")]
    for one in known:
        kubernetes_validate.validate(one, KUBERNETES, strict=True)
    for template in PODS.values():
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x", **template["metadata"]}}
        kubernetes_validate.validate({**pod, "spec": template["spec"]}, KUBERNETES, strict=True)


def fields(required: str, **types: object) -> dict:
    """The schema of an object that has these fields and no others; the required ones by name."""
    made = {key: {"type": kind} if isinstance(kind, str) else kind for key, kind in types.items()}
    return {
        "type": "object",
        "additionalProperties": False,
        "required": required.split(),
        "properties": made,
    }


# The fields that our file uses, as KubeRay 1.7.1 defines them: docs.ray.io/en/master/kuberay/references/api.html.
# No registry has its custom resource definitions. The pods in the templates are Kubernetes' own, and compared above.
STRINGS = {"type": "object", "additionalProperties": {"type": "string"}}
POD = {"template": "object", "rayStartParams": STRINGS}
NUMBER = {"type": "integer", "minimum": 0}
COUNTS = {"replicas": NUMBER, "minReplicas": NUMBER, "maxReplicas": NUMBER}
WORKERS = fields("groupName minReplicas maxReplicas template", groupName="string", **COUNTS, **POD)
AUTOSCALER = fields(
    "",
    idleTimeoutSeconds=NUMBER,
    resources="object",
    securityContext="object",
    volumeMounts="array",
)
RAY_CLUSTER = fields(
    "headGroupSpec",
    rayVersion="string",
    enableInTreeAutoscaling="boolean",
    autoscalerOptions=AUTOSCALER,
    headGroupSpec=fields("template", **POD),
    authOptions=fields("", mode={"enum": ["disabled", "token"]}),
    workerGroupSpecs={"type": "array", "items": WORKERS},
)


def test_kuberay_accepts_the_cluster():
    schema = jsonschema.Draft202012Validator(RAY_CLUSTER)
    schema.validate(CLUSTER["spec"])
    first = dict(CLUSTER["spec"]["workerGroupSpecs"][0])
    first["minReplica"] = first.pop("minReplicas")
    wrong = CLUSTER["spec"] | {"workerGroupSpecs": [first]}
    found = {error.validator for error in schema.iter_errors(wrong)}
    assert found == {"required", "additionalProperties"}


def test_the_ray_version_is_the_pinned_one():
    pinned = re.search(r"^ray==(.+)$", (ROOT / "constraints.txt").read_text(), re.M).group(1)
    assert CLUSTER["spec"]["rayVersion"] == pinned


def test_the_cluster_asks_for_a_token_and_no_other_secret_has_its_name():
    assert CLUSTER["spec"]["authOptions"] == {"mode": "token"}
    name = CLUSTER["metadata"]["name"]  # the operator names the token's secret so
    assert name not in secrets()
    page = (ROOT / "docs" / "kubernetes.md").read_text()
    assert f"create secret generic {name}" in page and f"service/{name}-head-svc" in page
    [job] = documents(FOLDER / "sweep" / "job.yaml")
    text = json.dumps(job)
    assert f"http://{name}-head-svc:8265" in text
    assert f'{{"name": "{name}", "key": "auth_token"}}' in text


@each_pod
def test_no_pod_runs_as_root(name: str):
    context = PODS[name]["spec"]["securityContext"]
    assert context["runAsNonRoot"] is True
    assert context["runAsUser"] > 0 and context["runAsGroup"] > 0 and context["fsGroup"] > 0
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}


@each_container
def test_no_container_has_privileges_or_a_root_that_it_can_write(name: str):
    context = CONTAINERS[name][1]["securityContext"]
    assert context["allowPrivilegeEscalation"] is False
    assert context["readOnlyRootFilesystem"] is True
    assert context["capabilities"] == {"drop": ["ALL"]}
    assert not context.get("privileged", False)


def test_the_autoscaler_has_no_privileges_either():
    context = CLUSTER["spec"]["autoscalerOptions"]["securityContext"]
    assert context["readOnlyRootFilesystem"] is True
    assert context["allowPrivilegeEscalation"] is False


@each_container
def test_what_a_container_writes_has_a_volume(name: str):
    """With a root that cannot be written there are still folders for temporary files and, for Ray, a home and shared memory."""
    template, container = CONTAINERS[name]
    mounted = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    assert "/tmp" in mounted
    if "ray" in container["name"]:
        assert {"/home/ray", "/dev/shm"} <= set(mounted)
    volumes = {volume["name"] for volume in template["spec"].get("volumes", [])}
    for one in ALL:
        for claim in one.get("spec", {}).get("volumeClaimTemplates", []):
            volumes.add(claim["metadata"]["name"])
    assert set(mounted.values()) <= volumes


@each_container
def test_every_container_says_what_it_needs_and_how_much_it_may_take(name: str):
    resources = CONTAINERS[name][1]["resources"]
    assert {"cpu", "memory"} <= set(resources["requests"])
    assert {"cpu", "memory"} <= set(resources["limits"])


def test_every_server_is_asked_whether_it_lives():
    """Those of Ray's containers are KubeRay's own, which know its tokens; they call wget."""
    for one in ALL:
        if one["kind"] in ("Deployment", "StatefulSet"):
            for container in one["spec"]["template"]["spec"]["containers"]:
                assert {"startupProbe", "readinessProbe", "livenessProbe"} <= set(container)
    assert re.search(r"apt-get install .*wget", (ROOT / "cluster" / "Dockerfile").read_text())


@each_pod
def test_only_the_head_may_talk_to_kubernetes(name: str):
    may = PODS[name]["spec"].get("automountServiceAccountToken", True)
    assert may == (name == "pointsweep-ray head")


def used_secrets(template: dict) -> set[str]:
    return set(
        re.findall(
            r'(?:"secretRef": \{"name": |"secretKeyRef": \{"name": |"secretName": )"([\w-]+)"',
            json.dumps(template),
        )
    )


def secrets() -> dict[str, dict[str, str]]:
    """What secrets.sh makes."""
    line = ["sh", str(FOLDER / "secrets.sh")]
    text = subprocess.run(line, capture_output=True, text=True, check=True).stdout
    made = [one for one in yaml.safe_load_all(text) if one]
    for one in made:
        kubernetes_validate.validate(one, KUBERNETES, strict=True)
        assert one["metadata"]["namespace"] == "pointsweep"
    return {one["metadata"]["name"]: one["stringData"] for one in made}


def test_every_secret_and_configmap_that_is_named_is_made():
    made = set(secrets()) | {CLUSTER["metadata"]["name"]}
    for name, template in PODS.items():
        assert used_secrets(template) <= made, name
    maps = {one["metadata"]["name"] for one in ALL if one["kind"] == "ConfigMap"} | {"submit"}
    for name, template in PODS.items():
        named = re.findall(r'"configMap(?:Ref)?": \{"name": "([\w-]+)"', json.dumps(template))
        assert set(named) <= maps, name


def test_passwords_are_new_long_and_not_shared():
    first, second = secrets(), secrets()
    for name, values in first.items():
        for key, value in values.items():
            if key.endswith(("PASSWORD", "KEY")):
                assert len(value) == 48 and value != second[name][key], (name, key)


def test_workers_hold_no_administrators_password():
    made = secrets()
    for name, template in PODS.items():
        if name.startswith("pointsweep-ray"):
            assert used_secrets(template) == {"pointsweep-worker"}, name
    worker = made["pointsweep-worker"]
    privileged = made["pointsweep-administrator"] | made["pointsweep-mlflow"]
    for key, value in privileged.items():
        if key not in ("SWEEPS_USERNAME", "SWEEPS_PASSWORD"):
            assert value not in worker.values(), key
    assert worker["MLFLOW_TRACKING_USERNAME"] not in ("admin", "root")
    settings = json.dumps([one for one in ALL if one["kind"] == "ConfigMap"])
    assert "admin" not in settings and "root" not in settings


def test_the_object_store_gives_each_user_its_own_bucket():
    made = secrets()
    users = json.loads(made["pointsweep-objects"]["s3.json"])["identities"]
    by_name = {user["name"]: user for user in users}
    for secret, name, bucket in (
        ("pointsweep-worker", "sweeps", "pointsweep"),
        ("pointsweep-mlflow", "mlflow", "mlflow"),
    ):
        held = made[secret]
        [pair] = by_name[name]["credentials"]
        assert pair["accessKey"] == held["AWS_ACCESS_KEY_ID"]
        assert pair["secretKey"] == held["AWS_SECRET_ACCESS_KEY"]
        assert all(action.endswith(f":{bucket}") for action in by_name[name]["actions"])
        assert not any(action.startswith("Admin") for action in by_name[name]["actions"])
    [store] = [one for one in ALL if one["metadata"]["name"] == "objects" and one["kind"] == "StatefulSet"]
    assert "minio" not in json.dumps(store), "it is no longer maintained"


def test_a_refused_or_failed_sweep_is_not_repeated_and_an_interrupted_one_is():
    """By the table of exit codes in docs/failures.md."""
    [job] = documents(FOLDER / "sweep" / "job.yaml")
    assert job["spec"]["template"]["spec"]["restartPolicy"] == "Never"
    rules = {rule["action"]: rule for rule in job["spec"]["podFailurePolicy"]["rules"]}
    codes = rules["FailJob"]["onExitCodes"]
    assert codes["operator"] == "In" and set(codes["values"]) == {1, 2, 4, 5}
    assert codes["containerName"] in [one["name"] for one in job["spec"]["template"]["spec"]["containers"]]
    assert not set(codes["values"]) & {3, 6, 7}, "the same command continues"
    assert job["spec"]["backoffLimit"] > 0


class Head(http.server.BaseHTTPRequestHandler):
    """What `submit.py` asks of Ray's head: one job, whose end each test says."""

    end: dict
    asked: list

    def do_GET(self) -> None:
        if self.path.startswith("/api/version"):
            self.answer({"version": "4", "ray_version": "2.60.0", "ray_commit": "x"})
        elif self.path.endswith("/logs"):
            self.answer({"logs": "the table\n"})
        else:
            self.asked.append(self.path)
            job = {"type": "SUBMISSION", "submission_id": "j1", "entrypoint": "x", **self.end}
            status = "RUNNING" if len(self.asked) < 2 else job["status"]
            self.answer(job | {"status": status})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.asked.append(json.loads(body)["entrypoint"])
        self.answer({"job_id": "j1", "submission_id": "j1"})

    def answer(self, value: dict) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words: object) -> None:
        pass


@pytest.mark.parametrize(
    ("end", "code"),
    [
        ({"status": "SUCCEEDED", "driver_exit_code": 0}, 0),
        ({"status": "FAILED", "driver_exit_code": 2, "message": "refused"}, 2),
        ({"status": "FAILED", "driver_exit_code": 1, "message": "some failed"}, 1),
        ({"status": "FAILED", "driver_exit_code": None, "message": "node died"}, 6),
        ({"status": "FAILED", "driver_exit_code": -9, "message": "killed"}, 6),
    ],
)
def test_a_submitted_sweep_ends_with_its_own_exit_code(end: dict, code: int):
    handler = type("One", (Head,), {"end": end, "asked": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    environment = os.environ | {"RAY_API_SERVER_ADDRESS": address, "RAY_AUTH_MODE": "disabled"}
    line = [sys.executable, str(FOLDER / "sweep" / "submit.py"), "python", "-m", "x", "a b"]
    try:
        done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=120, check=False)
    finally:
        server.shutdown()
        server.server_close()
    assert done.returncode == code, done.stderr
    assert handler.asked[0] == "python -m x 'a b'"
    assert "the table" in done.stdout


def test_images_have_their_names_in_one_place_and_are_pinned():
    names = {image["name"] for image in IMAGES}
    asked = {container["image"] for _, container in CONTAINERS.values()}
    assert asked == names, "an image that has no tag of its own gets one in components/images"
    for image in IMAGES:
        pinned = image.get("digest") or image["newTag"]
        assert re.search(r"\d+\.\d+", pinned) or pinned.startswith("sha256:"), image
    for overlay in [*(f"overlays/{name}" for name in OVERLAYS), "sweep"]:
        made = yaml.safe_load((FOLDER / overlay / "kustomization.yaml").read_text())
        assert made["components"][-1].endswith("components/images")
    text = (ROOT / "cluster" / "Dockerfile").read_text()
    for image in IMAGES:
        if image["newName"].startswith("pointsweep"):
            assert f"--tag {image['newName']}:{image['newTag']} " in text


def test_gpu_workers_tolerate_what_keeps_others_away_and_there_are_cpu_workers_too():
    [cpu] = [group for group in GROUPS if group.get("groupName") == "cpu"]
    assert "nvidia.com/gpu" not in json.dumps(cpu)
    gpu = gpu_workers()["template"]["spec"]
    keys = [each["key"] for each in gpu["tolerations"] if each["effect"] == "NoSchedule"]
    assert keys == ["nvidia.com/gpu"]
    resources = gpu["containers"][0]["resources"]
    assert resources["requests"]["nvidia.com/gpu"] == resources["limits"]["nvidia.com/gpu"] == "1"


def selects(selector: dict, labels: dict) -> bool:
    if any(labels.get(key) != value for key, value in selector.get("matchLabels", {}).items()):
        return False
    return all(labels.get(each["key"]) in each["values"] for each in selector.get("matchExpressions", []))


def may_reach(source: str, target: str, port: int) -> bool:
    """Whether the policies let a pod reach a port of another: both sides must allow it."""
    policies = [one["spec"] for one in ALL if one["kind"] == "NetworkPolicy"]
    labels = {name: PODS[name]["metadata"]["labels"] for name in (source, target)}

    def allowed(at: str, other: str, rules: str, peer: str) -> bool:
        for policy in policies:
            if not selects(policy["podSelector"], labels[at]):
                continue
            for rule in policy.get(rules, []):
                ports = [each["port"] for each in rule.get("ports", [])]
                if ports and port not in ports:
                    continue
                peers = rule.get(peer)
                if peers is None:
                    return True
                inside = [each for each in peers if "namespaceSelector" not in each]
                if any(selects(each["podSelector"], labels[other]) for each in inside):
                    return True
        return False

    return allowed(source, target, "egress", "to") and allowed(target, source, "ingress", "from")


HEAD, CPU, GPU = (f"pointsweep-ray {name}" for name in ("head", "cpu", "gpu"))


def test_pods_reach_what_they_need_and_nothing_else():
    everybody = {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    assert any(one["kind"] == "NetworkPolicy" and one["spec"] == everybody for one in ALL)
    needed = {
        (GPU, HEAD, 6379), (CPU, HEAD, 6379), (HEAD, GPU, 20000), (CPU, GPU, 30000),
        (GPU, "objects", 8333), (CPU, "mlflow", 5000), ("mlflow", "postgres", 5432),
        ("mlflow", "objects", 8333), ("buckets", "objects", 8333), ("mlflow-users", "mlflow", 5000),
        ("backup", "postgres", 5432), ("quickstart", HEAD, 8265),
    }  # fmt: skip
    for source, target, port in needed:
        assert may_reach(source, target, port), (source, target, port)
    forbidden = {
        (GPU, "postgres", 5432), (HEAD, "postgres", 5432), ("quickstart", "postgres", 5432),
        ("quickstart", HEAD, 6379), ("postgres", "mlflow", 5000), ("objects", HEAD, 8265),
        ("mlflow", HEAD, 8265), ("backup", "objects", 8333), ("buckets", "mlflow", 5000),
    }  # fmt: skip
    for source, target, port in forbidden:
        assert not may_reach(source, target, port), (source, target, port)


def test_a_drained_node_does_not_take_the_driver_away():
    budgets = {one["metadata"]["name"]: one["spec"] for one in ALL if one["kind"] == "PodDisruptionBudget"}
    head = budgets["ray-head"]
    assert head["minAvailable"] == 1
    assert head["selector"]["matchLabels"]["ray.io/node-type"] == "head"
    assert budgets["ray-workers"]["maxUnavailable"] == 1


def test_no_service_is_open_to_the_world():
    for one in ALL:
        if one["kind"] == "Service":
            assert one["spec"].get("type", "ClusterIP") == "ClusterIP"


def test_every_file_is_part_of_a_kustomization():
    for path in FOLDER.rglob("*.yaml"):
        if path.name == "kustomization.yaml":
            continue
        text = (path.parent / "kustomization.yaml").read_text()
        assert path.name in text, path


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="no kubectl, which has kustomize")
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_is_built_and_accepted(overlay: str):
    line = ["kubectl", "kustomize", str(FOLDER / "overlays" / overlay)]
    text = subprocess.run(line, capture_output=True, text=True, check=True).stdout
    made = list(yaml.safe_load_all(text))
    for one in made:
        if not one["apiVersion"].startswith("ray.io/"):
            kubernetes_validate.validate(one, KUBERNETES, strict=True)
    [cluster] = [one for one in made if one["kind"] == "RayCluster"]
    jsonschema.Draft202012Validator(RAY_CLUSTER).validate(cluster["spec"])
    groups = [group["groupName"] for group in cluster["spec"]["workerGroupSpecs"]]
    assert groups == (["cpu", "gpu"] if overlay == "gpu" else ["cpu"])
    images = set(re.findall(r"^\s+image: (.+)$", text, re.M))
    wanted = {f"{image['newName']}:{image['newTag']}" for image in IMAGES}
    if overlay != "gpu":
        wanted -= {"pointsweep:0.1.0-cuda"}
    assert images == wanted
    namespaced = [one for one in made if one["kind"] != "Namespace"]
    assert all(one["metadata"]["namespace"] == "pointsweep" for one in namespaced)
