"""What the doctor says of a machine, and of a real Ray on it."""

from __future__ import annotations

from pathlib import Path

import pytest

from pointsweep.cli import doctor
from pointsweep.cli.doctor import Examination, Finding, NodeQuestion, clock, look, main, wanted_by
from pointsweep.execution.cluster_nodes import Cluster, Node


def found(findings: list[Finding], check: str) -> Finding:
    return next(finding for finding in findings if finding.check == check)


def test_a_machine_with_all_it_needs_has_nothing_to_mend(tmp_path, monkeypatch):
    monkeypatch.setenv("POINTSWEEP_DATA", str(tmp_path))
    monkeypatch.setattr(doctor, "FREE_BYTES", 1)
    findings = look(NodeQuestion(str(tmp_path / "store"), "none"))
    assert [finding for finding in findings if finding.mend] == []
    assert list((tmp_path / "store" / "doctor").iterdir()) == []


def test_what_is_wrong_is_said_with_how_to_mend_it(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("POINTSWEEP_DATA", str(tmp_path / "none"))
    monkeypatch.setattr(doctor, "FREE_BYTES", 2**70)
    findings = look(NodeQuestion(str(tmp_path / "file"), "http://127.0.0.1:9"))
    store = found(findings, "store")
    assert "is a file, and a store is a folder; name a folder by --store" in store.found
    assert store.mend
    assert "training goes on without it" in found(findings, "MLflow").mend
    assert "POINTSWEEP_CACHE" in found(findings, "cache").mend
    assert "set POINTSWEEP_DATA" in found(findings, "data root").mend


def test_data_and_weights_of_a_sweep_are_looked_for(tmp_path, monkeypatch):
    monkeypatch.delenv("POINTSWEEP_DATA", raising=False)
    wanted, resources = wanted_by("sweeps/quickstart.yaml", str(tmp_path), "none")
    assert wanted.trials
    assert resources is not None and resources.cpus == 1
    assert found(look(wanted), "data and weights").mend == ""


@pytest.mark.parametrize(("told", "mend"), [(100.5, ""), (99.0, ""), (107.0, "NTP client"), (90.0, "NTP client")])
def test_a_clock_is_judged_by_when_its_answer_came(told, mend):
    assert mend in clock(100.0, told, 101.0).mend


def test_nodes_with_other_versions_are_told_apart():
    reports = {"a": [Finding("versions", "ray 1")], "b": [Finding("versions", "ray 2")]}
    [apart] = doctor._alike(reports)
    assert apart.found == "ray 1 on a; ray 2 on b"
    assert "one image, or a runtime env" in apart.mend
    assert doctor._alike({"a": reports["a"]})[0].mend == ""


def test_each_problem_stands_once_with_its_nodes(monkeypatch, capsys):
    off, full = Finding("MLflow", "refused", "start the server"), Finding("cache", "1 GiB free", "free some space")
    nodes = {"a": [off, Finding("cache", "9 GiB", short="9 GiB")], "b": [off, full], "c": [off, full]}
    has = Cluster([Node(name, {"CPU": 2.0}) for name in nodes])
    monkeypatch.setattr(doctor, "examine", lambda *_: Examination(nodes, [], has))
    assert main([]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "node  CPUs  GPUs  memory  MLflow  cache",
        "a     2     0     0 GiB   mend    9 GiB",
        "b     2     0     0 GiB   mend    mend",
        "c     2     0     0 GiB   mend    mend",
        "",
        "",
        "MEND MLflow: start the server",
        "    refused (on all 3 nodes)",
        "",
        "MEND cache: free some space",
        "    1 GiB free (on b, c)",
        "",
        "2 to mend",
    ]


def test_every_node_of_a_real_ray_is_looked_at(tmp_path, monkeypatch, capsys):
    import ray

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("POINTSWEEP_DATA", str(tmp_path))
    monkeypatch.setattr(doctor, "FREE_BYTES", 1)
    try:
        code = main(["--store", str(tmp_path / "store")])
    finally:
        ray.shutdown()
    out = capsys.readouterr().out
    [header, node, *_] = out.splitlines()
    assert header.startswith("node") and node.split()[-2:] == ["0.0", "s"], out
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    unit = "AMX" if "amx_bf16" in flags else "AVX-512" if "avx512_bf16" in flags else "no"
    assert node[header.index("CPU bf16") :].split()[0] == unit
    assert "\nversions           python 3." in out
    assert code == (0 if "all is well" in out else 1)
