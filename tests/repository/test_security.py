"""What must not leak, run, or lie outside the store: secrets, code in files, names from a sweep file, ports of cluster/."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file

from pointsweep.cli.run import main
from pointsweep.errors import ConfigError, ResourcesError
from pointsweep.sweep.sweep import load
from pointsweep.testing.chaos_flaky_proxy import free_port
from pointsweep.utils.cli_exit import exit_code
from pointsweep.utils.masking import masked

ROOT = Path(__file__).parents[2]
SWEEP = """
name: guarded
base:
  dataset: {name: synthetic, num_points: 64, presample: 64, train_limit: 32, test_limit: 8}
  tokenizer: {name: point_pn_light, num_tokens: 8, neighbours: 8}
  backbone: {name: tiny, modality: 1d}
  train: {epochs: 1, batch_size: 16, warmup_epochs: 0}
  method: head_only
rows:
  - {label: good, train.lr: 1.0e-3}
  - {label: bad, train.lr: 1.0e+30}
seeds: 1
"""
SECRETS = {
    "AWS_SECRET_ACCESS_KEY": "planted-aws-8a1f", "AWS_SESSION_TOKEN": "planted-session-77c2", "MLFLOW_TRACKING_PASSWORD": "planted-mlflow-51d0",
    "MLFLOW_TRACKING_TOKEN": "planted-bearer-c9e4", "HF_TOKEN": "planted-hub-30b6", "RAY_AUTH_TOKEN": "planted-ray-e2a8",
}  # fmt: skip
IN_URI = "planted-uri-6f05"


def test_planted_secrets_are_nowhere_in_the_store_the_database_or_what_is_printed(store, tmp_path):
    """A trial that finishes, one that fails, a server that is away and whose address holds a password, then a real database."""
    sweep = tmp_path / "guarded.yaml"
    sweep.write_text(SWEEP)
    away = f"http://user:{IN_URI}@127.0.0.1:{free_port()}"
    said = ""
    for uri in (["--tracking-uri", away], []):
        line = [sys.executable, "-m", "pointsweep.run", str(sweep), "--inline", *uri]
        done = subprocess.run(line, capture_output=True, text=True, timeout=600, env=os.environ | SECRETS)
        assert done.returncode == 1, done.stderr
        said += done.stdout + done.stderr
    assert "training goes on without it" in said
    kept = {path: path.read_bytes() for path in store.rglob("*") if path.is_file()}
    assert {"record.json", "history.jsonl", "report.html", "mlflow.db"} <= {path.name for path in kept}
    for secret in (*SECRETS.values(), IN_URI):
        assert secret not in said
        assert [str(path) for path, data in kept.items() if secret.encode() in data] == []


@pytest.mark.parametrize(
    "uri",
    ["https://user:p@ss@host/db", "https://:p@host", "postgresql://u:p%2F@host:5432/x and https://a:b@c/d", "mysql+pymysql://u:p@h"],
)
def test_a_password_in_an_address_is_masked_whole(uri):
    assert not re.search(r"p@|p%2F|ss@|:b@", masked(uri).replace("***@", ""))


@pytest.mark.parametrize("name", ["../evil", "..", ".", "/evil", "a/b", "a\\b", "~/evil", "a\0b", ""])
def test_a_sweeps_name_cannot_lead_out_of_the_store(tmp_path, name):
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(SWEEP), "name": name}))
    with pytest.raises(ConfigError, match="name"):
        load(str(path), [])


def sweep_with(folder: Path, **base) -> Path:
    path = folder / "guarded.yaml"
    data = yaml.safe_load(SWEEP)
    data["base"] |= base
    path.write_text(yaml.safe_dump(data))
    return path


class Bomb:
    """Unpickled, it makes a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


def bert_state() -> dict[str, torch.Tensor]:
    """As a BERT of the wrong width has it."""
    return {"embeddings.position_embeddings.weight": torch.zeros(4, 3)}


@pytest.mark.parametrize(
    ("file", "write", "words"),
    [
        ("bomb.pth", lambda path: torch.save({"weight": Bomb(path.with_name("boom"))}, path), "which is not read, as reading it could run code"),
        ("keys.safetensors", lambda path: save_file({"x": torch.zeros(1)}, path), "does not fit"),
        ("shapes.safetensors", lambda path: save_file(bert_state(), path), "does not fit"),
        ("cut.safetensors", lambda path: path.write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00{\"a\":"), "damaged, truncated, or not a"),
        ("cut.pth", lambda path: path.write_bytes(b"PK\x03\x04"), "damaged, truncated, or not a"),
    ],
)  # fmt: skip
def test_weights_that_cannot_be_used_are_refused_before_any_trial(store, tmp_path, capsys, file, write, words):
    write(tmp_path / file)
    sweep = sweep_with(tmp_path, backbone={"name": "bert", "weights": str(tmp_path / file)})
    assert main([str(sweep), "--inline", "--tracking-uri", "none"]) == 2
    err = capsys.readouterr().err
    assert "nothing was launched" in err
    assert f"weights of bert: {tmp_path / file}" in err and words in err
    assert not (store / "trials").exists()
    assert not (tmp_path / "boom").exists()


@pytest.mark.parametrize("content", [b"\x89HDF\r\n\x1a\n" + bytes(200), b"no HDF5", None], ids=["cut", "text", "not finite"])
def test_data_that_cannot_be_used_are_refused_before_any_trial(store, tmp_path, capsys, monkeypatch, content):
    h5py = pytest.importorskip("h5py")
    folder = tmp_path / "data" / "modelnet40_ply_hdf5_2048"
    folder.mkdir(parents=True)
    for split in ("train", "test"):
        if content is not None:
            (folder / f"ply_data_{split}0.h5").write_bytes(content)
        else:
            with h5py.File(folder / f"ply_data_{split}0.h5", "w") as made:
                made["data"], made["label"] = np.full((2, 2048, 3), np.nan, np.float32), np.zeros((2, 1), np.uint8)
    monkeypatch.setenv("POINTSWEEP_DATA", str(tmp_path / "data"))
    sweep = sweep_with(tmp_path, dataset={"name": "modelnet40"})
    assert main([str(sweep), "--inline", "--tracking-uri", "none"]) == 2
    err = capsys.readouterr().err
    assert "nothing was launched" in err and "modelnet40: " in err and str(folder) in err
    assert "Traceback" not in err
    assert not (store / "trials").exists()


def test_no_reader_admits_pickles():
    for path in (ROOT / "pointsweep").rglob("*.py"):
        text = path.read_text()
        assert not re.search(r"allow_pickle=True|weights_only=False|pickle\.loads?\(|joblib|dill", text), path
        safe = {"np.load": "allow_pickle=False", "torch.load": "weights_only=True"}
        for call in ast.walk(ast.parse(text)):
            if isinstance(call, ast.Call) and ast.unparse(call.func) in safe:
                assert safe[ast.unparse(call.func)] in map(ast.unparse, call.keywords), (path, call.lineno)


def test_servers_of_the_cluster_files_listen_on_loopback_or_demand_authentication():
    """KubeRay's heads stand in a cluster's own network: docs/kubernetes.md says how to close it."""
    slurm = (ROOT / "cluster" / "slurm.sbatch").read_text()
    assert "RAY_AUTH_MODE=token" in slurm and "/dev/urandom" in slurm and "--include-dashboard=false" in slurm
    heads = [
        line
        for line in re.sub(r"\n +--", " --", (ROOT / "cluster" / "aws.yaml").read_text()).splitlines()
        if "ray start --head" in line
    ]
    assert len(heads) == 1 and all("--dashboard-host=127.0.0.1" in line for line in heads)
    start = (ROOT / "cluster" / "mlflow" / "start.sh").read_text()
    assert "--app-name basic-auth" in start and "MLFLOW_AUTH_ADMIN_PASSWORD:?" in start
    for path in (ROOT / "cluster" / "mlflow" / "compose.yaml", ROOT / "dashboards" / "compose.yaml"):
        for name, service in yaml.safe_load(path.read_text())["services"].items():
            listens = [str(port) for port in service.get("ports", [])]
            if service.get("network_mode") == "host":
                listens.append(f"{service.get('command', '')} {service.get('environment', '')}")
            assert all("127.0.0.1" in each for each in listens), (path, name)


SECRET = "planted-secret-5b27"
ADDRESS = f"u:{SECRET}@127.0.0.1:{free_port()}"


@pytest.mark.parametrize(
    ("arguments", "environment"),
    [
        (["--tracking-uri", f"http://{ADDRESS}/x?token={SECRET}"], {}),
        (["--tracking-uri", f"http://127.0.0.1/#{SECRET}", "--only", "nothing"], {}),
        (["--tracking-uri", f"htp://{ADDRESS}"], {}),
        ([], {"MLFLOW_TRACKING_URI": f"postgresql://{ADDRESS}/db?sslpassword={SECRET}"}),
        (["--tracking-uri", "none", "--notify", f"https://{ADDRESS}/{SECRET}?x={SECRET}"], {}),
        (["--tracking-uri", "none", "--notify", f"https://[{SECRET}"], {}),
        (["--tracking-uri", "none", "--notify", f"false --header {SECRET}"], {}),
        (["--tracking-uri", "none", "--store", "s3://bucket/x"], {
            "AWS_ENDPOINT_URL_S3": f"http://{ADDRESS}", "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": SECRET,
        }),
    ],
)  # fmt: skip
def test_a_secret_of_an_address_is_neither_printed_nor_stored(store, tmp_path, monkeypatch, capsys, arguments, environment):
    monkeypatch.setattr("pointsweep.tracking.mlflow.client.PAUSES_S", (0.0,))
    monkeypatch.setattr("pointsweep.storage.s3.PAUSE_S", (0.0, 0.0))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    sweep = tmp_path / "guarded.yaml"
    sweep.write_text(SWEEP.replace("  - {label: bad, train.lr: 1.0e+30}\n", ""))
    code = exit_code(lambda: main([str(sweep), "--inline", *arguments]))
    said = capsys.readouterr()
    assert code in (0, 2)
    assert SECRET not in said.out + said.err
    kept = [path for path in tmp_path.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]
    assert kept == []


def test_an_address_of_a_cluster_is_shown_without_its_secrets(monkeypatch, capsys):
    from pointsweep.execution.ray_cluster import connect

    for address in (f"http://{ADDRESS}", f"ray://{ADDRESS}"):
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(ResourcesError, match=r"RAY_ADDRESS=(http|ray)://\*\*\*@127.0.0.1") as error:
            connect()
        assert SECRET not in str(error.value) + capsys.readouterr().err
