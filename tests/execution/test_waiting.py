"""What is said of packs that wait for nodes, and of nodes that were lost. On a real cluster: end_to_end/test_cluster_words.py."""

from __future__ import annotations

import json

import pytest

from pointsweep.execution import waiting
from pointsweep.execution.cluster_nodes import Cluster, Demand, Node, adds_nodes, launch_line, waiting_line
from pointsweep.execution.waiting import Lost, PackCount, cause_of, lost_lines

NO_GPU = Cluster([Node("a", {"CPU": 2}), Node("b", {"CPU": 4})])
TWO_KINDS = Cluster([Node("a", {"CPU": 8}), Node("b", {"CPU": 2, "GPU": 1})])
# As Ray 2.60 says it of a worker whose node was killed
DIED = """Failure # 1 (occurred at 2026-11-30_08-50-38)
The actor died unexpectedly before finishing this task.
\tclass_name: ImplicitFunc
\tactor_id: 3b8564f63a1d1d1d191f238101000000
\tpid: 10674
\tnamespace: 689f7389-d0af-42de-9ab8-641a1d5a4ed2
\tip: 192.0.2.2
The actor died because its node has died. Node Id: c7da3c7f79d347c1a449ac1b0ae0b79a81ef6e1c5050a93ede334f84
\tthe actor's node was terminated unexpectedly: health check failed due to missing too many heartbeats
"""


@pytest.mark.parametrize(
    ("demand", "cluster", "words"),
    [
        (Demand(1, 1), NO_GPU, "waiting for 9 x {GPU: 1}; the cluster has 0; ask for less or add nodes"),
        (Demand(6, 0), NO_GPU, "waiting for 9 x {CPU: 6}; the largest node has {CPU: 4}; ask for less or add nodes"),
        (Demand(4, 1), TWO_KINDS, "waiting for 9 x {CPU: 4, GPU: 1}; no node of the cluster has all of it; ask for less or add nodes"),
        (Demand(2, 2, 2), TWO_KINDS, "waiting for 9 x 2 x {CPU: 1, GPU: 1}; the cluster has room for 1 of the 2; ask for less or add nodes"),
        (Demand(1, 1), Cluster([]), "waiting for 9 x {CPU: 1, GPU: 1}; the cluster has 0; ask for less or add nodes"),
    ],
)  # fmt: skip
def test_what_no_node_has_is_named_with_what_there_is(demand, cluster, words):
    assert waiting_line(9, demand, cluster) == words
    assert launch_line(demand, cluster)


@pytest.mark.parametrize("demand", [Demand(4, 0), Demand(2, 1), Demand(0.5, 0.25), Demand(6, 0, 3), Demand(0, 0)])
def test_what_the_nodes_have_is_no_alarm(demand):
    assert launch_line(demand, TWO_KINDS) == ""
    assert waiting_line(2, demand, TWO_KINDS).startswith("waiting for a free worker: 2 x ")


def test_an_autoscaling_cluster_is_named():
    growing = Cluster(NO_GPU.nodes, autoscales=True)
    assert "it is an autoscaling one" not in waiting_line(1, Demand(1, 0), NO_GPU)
    assert waiting_line(1, Demand(1, 0), growing).endswith("it is an autoscaling one and may add nodes by itself")
    assert "the cluster has 0; the cluster is an autoscaling one" in waiting_line(9, Demand(1, 1), growing)


def test_rays_autoscaler_has_names_for_the_kinds_of_nodes_that_it_starts():
    """Its status as Ray 2.60 writes it: of a fixed cluster, and of one made by `ray up`."""
    fixed = {"autoscaler_report": {"active_nodes": {"node_4f91": 1}, "node_type_mapping": {"4f91": "node_4f91"}}}
    scaling = {"autoscaler_report": {"active_nodes": {}, "node_type_mapping": {"ffff": "ray.head.default"}}}
    assert not adds_nodes(json.dumps(fixed).encode())
    assert adds_nodes(json.dumps(scaling).encode())
    assert not adds_nodes(None)
    assert not adds_nodes(b"{}")


def test_a_launch_looks_after_half_a_minute_without_a_worker_and_never_while_one_runs(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(waiting.time, "monotonic", lambda: now[0])
    packs = PackCount(2, idle_since=100.0)
    now[0] = 129.0
    assert not packs.is_stuck()
    now[0] = 131.0
    assert packs.is_stuck()
    now[0] = 140.0
    assert not packs.is_stuck(), "not every second"
    packs.start("one")
    now[0] = 300.0
    assert not packs.is_stuck()
    packs.stop("one", ended=False)
    assert packs.waiting == 2
    now[0] = 331.0
    assert packs.is_stuck()
    for name in ("one", "two"):
        packs.start(name)
        packs.stop(name, ended=True)
    now[0] = 900.0
    assert not packs.is_stuck(), "nothing waits"


def test_a_lost_node_is_one_sentence():
    node, cause = cause_of(DIED)
    assert (node, cause) == ("192.0.2.2 c7da3c", "node 192.0.2.2 c7da3c was lost")
    lost = [Lost("lora / vit / seed 0", 12, node, cause), Lost("lora / vit / seed 1", 0, node, cause)]
    assert list(lost_lines(lost)) == [
        "node 192.0.2.2 c7da3c was lost: lora / vit / seed 0 goes on after epoch 12, lora / vit / seed 1 begins again, on other workers"
    ]
    assert list(lost_lines(lost[:1])) == [
        "node 192.0.2.2 c7da3c was lost: lora / vit / seed 0 goes on after epoch 12, on another worker"
    ]
    [many] = lost_lines(lost * 4)
    assert "begins again, lora / vit / seed 0 goes on after epoch 12, 5 more too, on other workers" in many


def test_a_worker_that_died_alone_is_no_lost_node():
    assert cause_of("\tip: 10.0.0.3\nThe actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR")[1] == (
        "a worker on node 10.0.0.3 was lost"
    )
    assert cause_of("\tip: 10.0.0.3\nTask was killed due to the node running low on memory.")[1] == (
        "a worker on node 10.0.0.3 was ended, as the node ran out of memory"
    )
    assert cause_of("")[1] == "a worker on node unknown was lost"
