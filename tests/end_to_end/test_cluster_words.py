"""A launch, a plan and the doctor on a real cluster of several nodes that has not what a sweep asks for, and loses a node."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from pointsweep.cli import doctor
from pointsweep.cli.run import main
from pointsweep.execution import ray_cluster
from tests.end_to_end.test_command import SWEEP
from tests.end_to_end.test_nodes import SMALL, epochs, holders, node_of, nodes, raylets, wait_until

# The command with a shorter patience than half a minute.
COMMAND = """
import sys
from pointsweep.execution import waiting
waiting.PATIENCE_S = 2.0
from pointsweep.cli.run import main
sys.exit(main(sys.argv[1:]))
"""
# A node that was killed is missed sooner than after half a minute.
HASTY = {"health_check_period_ms": 300, "health_check_failure_threshold": 3, "health_check_initial_delay_ms": 0}


def test_what_a_cluster_lacks_is_said_before_and_while_it_is_waited_for_and_a_lost_node_is_one_sentence(
    store, tmp_path, monkeypatch, capsys
):
    sweep = tmp_path / "tiny.yaml"
    text = SWEEP.replace("[lora, head_only]", "[lora]").replace("epochs: 2", "epochs: 100").replace("seeds: 2", "seeds: 1")
    sweep.write_text(text + "resources: {gpus: 1}\n")
    with nodes(1, monkeypatch, include_dashboard=False, _system_config=HASTY) as (cluster, folder):

        def add(name: str, **has):
            return cluster.add_node(**{**SMALL, **has}, temp_dir=str(folder / name))

        with monkeypatch.context() as patch:
            patch.setenv("POINTSWEEP_CACHE", str(sweep / "no_folder"))
            odd = add("odd")  # a node whose cache cannot be made
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)

        # Before a launch
        assert main([str(sweep), "--plan", "--tracking-uri", "none"]) == 0
        assert "tiny: a pack asks for {GPU: 1} and the cluster has 0; ask for less or add nodes" in capsys.readouterr().out
        try:
            assert doctor.main([str(sweep), "--store", str(store)]) == 1
        finally:
            ray_cluster.leave()
        told = capsys.readouterr().out
        names = [f"{node.node_ip_address} {node.node_id[:6]}" for node in (cluster.head_node, odd)]
        lines = told.splitlines()
        assert lines[0].split()[:4] == ["node", "CPUs", "GPUs", "memory"]
        assert sorted(lines[1:3]) == sorted(line for line in lines if line.startswith(tuple(names)))
        assert told.count("MEND resources") == told.count("MEND cache") == 1
        assert "MEND resources: ask for less or add nodes\n    a pack of this sweep asks for {GPU: 1}; the cluster has 0\n" in told
        [cache] = [line for line in lines if "NotADirectoryError" in line]
        assert cache.endswith(f"(on {names[1]})")
        assert f"\n{told.count('MEND ')} to mend\n" in told

        # A launch
        log = tmp_path / "log"
        with log.open("w") as out:
            line = [sys.executable, "-c", COMMAND, str(sweep), "--tracking-uri", "none"]
            run = subprocess.Popen(line, stdout=out, stderr=subprocess.STDOUT)
        try:
            waits = "[0/2] waiting for 2 x {GPU: 1}; the cluster has 0; ask for less or add nodes".partition("] ")[2]
            wait_until(lambda: waits in log.read_text() or run.poll() is not None, "the line about GPUs")
            lost = add("lost", num_gpus=1)
            wait_until(lambda: epochs(store) >= 1 or run.poll() is not None, "an epoch")
            [worker] = holders(store)
            assert node_of(worker) in raylets(lost)
            cluster.remove_node(lost, allow_graceful=False)
            os.kill(worker, signal.SIGKILL)  # a machine that dies takes its processes along
            add("other", num_gpus=1)
            assert run.wait(timeout=400) == 0, log.read_text()
        finally:
            run.kill()
    said = Path(log).read_text()
    name = f"{lost.node_ip_address} {lost.node_id[:6]}"
    [sentence] = [line for line in said.splitlines() if "was lost" in line]
    assert sentence.startswith(f"node {name} was lost: lora / ") and sentence.endswith(", on another worker")
    assert " goes on after epoch " in sentence
    for word in ("Traceback", "state-dump", "raylet", "ActorDied"):
        assert word not in said, said
    assert "[2/2] finished" in said
