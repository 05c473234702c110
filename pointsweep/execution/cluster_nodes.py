"""Resources of the nodes of a Ray cluster, the packs that fit on them, and messages where one does
not fit.

A cluster can be asked without joining it, from any machine that reaches its head. Ray goes on
trying for 40 s where something else listens at the address; so it is asked in a process of its own,
which is given up earlier.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pointsweep.errors import ResourcesError
from pointsweep.sweep.resources import Resources

ASK_S = 15.0  # for a head that is asked without joining it; most of it is Ray's import
STATUS_KEY = b"__autoscaling_status"
KINDS = ("CPU", "GPU")
FIXED = "node_"  # how Ray's autoscaler calls the kinds of nodes that it has not started


@dataclass(frozen=True)
class Node:
    """A living node: its address and the beginning of its id, and what it has."""

    name: str
    resources: Mapping[str, float]

    def has(self, kind: str) -> float:
        """Return how much the node has of CPU or GPU."""
        return self.resources.get(kind, 0.0)


@dataclass(frozen=True)
class Cluster:
    """The living nodes of a cluster. `autoscales`: it starts further ones by itself."""

    nodes: Sequence[Node]
    autoscales: bool = False

    def largest(self, kind: str) -> float:
        """Return how much the node that has the most has of CPU or GPU."""
        return max((node.has(kind) for node in self.nodes), default=0.0)


@dataclass(frozen=True)
class Demand:
    """Demand of one pack: each of its processes gets an equal part, on one node."""

    cpus: float
    gpus: float
    processes: int = 1

    def share(self) -> dict[str, float]:
        """Return what one process asks for; what it does not ask for is left out."""
        share = {}
        if self.cpus > 0:
            share["CPU"] = self.cpus / self.processes

        if self.gpus > 0:
            share["GPU"] = self.gpus / self.processes

        return share

    def room(self, cluster: Cluster) -> float:
        """Return how many of a pack's processes the cluster has nodes for, if nothing else runs."""
        share = self.share()
        if not share:
            return math.inf

        room = 0
        for node in cluster.nodes:
            processes = []
            for kind, amount in share.items():
                processes.append(math.floor(node.has(kind) / amount + 1e-9))

            room += min(processes)

        return room


def demand_of(resources: Resources) -> Demand:
    """Return the demand of a sweep's packs. What `gpus: auto` comes to is measured on a whole
    GPU.
    """
    gpus = 1.0 if resources.gpus == "auto" else resources.gpus
    return Demand(resources.cpus, gpus, resources.processes)


def amounts(resources: Mapping[str, float]) -> str:
    """Return "{CPU: 2, GPU: 1}"."""
    listed = [f"{kind}: {amount:g}" for kind, amount in resources.items()]
    return f"{{{', '.join(listed)}}}"


def shortage(demand: Demand, cluster: Cluster) -> tuple[str, str]:
    """Return what of a pack's demand the cluster lacks, and what it has instead; empty if it fits.

    For example "{GPU: 1}" and "the cluster has 0".
    """
    if demand.room(cluster) >= demand.processes:
        return "", ""

    share = demand.share()
    lacking = {}
    largest = {}

    for kind, amount in share.items():
        if cluster.largest(kind) + 1e-9 < amount:
            lacking[kind] = amount
            largest[kind] = cluster.largest(kind)

    times = f"{demand.processes} x " if demand.processes > 1 else ""
    if not lacking and demand.processes > 1:
        room = f"the cluster has room for {demand.room(cluster):g} of the {demand.processes}"
        return times + amounts(share), room

    if not lacking:
        return times + amounts(share), "no node of the cluster has all of it"
    if not any(largest.values()):
        return times + amounts(lacking), "the cluster has 0"

    return times + amounts(lacking), f"the largest node has {amounts(largest)}"


def advice(cluster: Cluster) -> str:
    """Return what to do where a pack does not fit."""
    if cluster.autoscales:
        return (
            "the cluster is an autoscaling one and may add such a node by itself (`ray status` on"
            " its head says whether it does); else ask for less"
        )

    return "ask for less or add nodes"


def waiting_line(packs: int, demand: Demand, cluster: Cluster) -> str:
    """Return what is said while no pack runs and so many wait: for what the cluster does not have,
    or for nodes that are busy.
    """
    lacking, instead = shortage(demand, cluster)
    if lacking:
        return f"waiting for {packs} x {lacking}; {instead}; {advice(cluster)}"

    line = (
        f"waiting for a free worker: {packs} x {amounts(demand.share())}, which the cluster has and"
        " others use"
    )
    if cluster.autoscales:
        line += "; it is an autoscaling one and may add nodes by itself"

    return line


def launch_line(demand: Demand, cluster: Cluster) -> str:
    """Return what is said before a launch whose packs do not fit on the cluster; empty if they
    do.
    """
    lacking, instead = shortage(demand, cluster)
    if lacking:
        return f"a pack asks for {lacking} and {instead}; {advice(cluster)}"

    return ""


# Asking


def joined_cluster() -> Cluster:
    """Return the cluster that this process has joined."""
    import ray
    from ray.autoscaler.v2.utils import is_autoscaler_v2
    from ray.experimental.internal_kv import _internal_kv_get

    nodes = []

    for node in ray.nodes():
        if node["Alive"]:
            name = node_name(node["NodeManagerAddress"], node["NodeID"])
            nodes.append(Node(name, _counted(node["Resources"])))

    # The second version of Ray's autoscaler writes no status.
    autoscales = adds_nodes(_internal_kv_get(STATUS_KEY)) or is_autoscaler_v2()
    return Cluster(nodes, autoscales)


def node_name(address: str, node_id: str) -> str:
    """Return a node's name: nodes of one machine share the address."""
    return f"{address} {node_id[:6]}"


def _counted(resources: Mapping[str, float]) -> dict[str, float]:
    return {kind: float(resources.get(kind, 0.0)) for kind in (*KINDS, "memory")}


def adds_nodes(status: bytes | None) -> bool:
    """Tell by the status that Ray's autoscaler writes whether it starts nodes: it then has names
    for their kinds. It runs on a fixed cluster too, and calls each node `node_ID` there.
    """
    report = json.loads(status).get("autoscaler_report") if status else None
    if not report:
        return False

    active_nodes = report.get("active_nodes") or {}
    kind_of_node = report.get("node_type_mapping") or {}
    kinds = [*active_nodes, *kind_of_node.values()]

    return any(not kind.startswith(FIXED) for kind in kinds)


def ask(address: str) -> Cluster:
    """Ask the head at HOST:PORT, or `auto`. Raises ResourcesError, in one line, if it is none."""
    try:
        answer = subprocess.run(
            [sys.executable, "-m", __name__, address],
            capture_output=True,
            text=True,
            timeout=ASK_S,
            env={**os.environ, "RAY_BACKEND_LOG_LEVEL": "error"},
        )
    except subprocess.TimeoutExpired:
        raise ResourcesError(
            f"something listens there and did not answer as the head of a Ray cluster within"
            f" {ASK_S:.0f} s"
        ) from None

    lines = answer.stdout.strip().splitlines()
    if not lines:
        raise ResourcesError(" ".join(answer.stderr.split())[-300:] or "no answer")

    report = json.loads(lines[-1])
    if "problem" in report:
        raise ResourcesError(report["problem"])

    nodes = [Node(**node) for node in report["nodes"]]
    return Cluster(nodes, report["autoscales"])


def _ask_here(address: str) -> Cluster:
    """Ask the head at an address."""
    import ray
    from ray._private.services import canonicalize_bootstrap_address

    gcs_address = canonicalize_bootstrap_address(address)

    if not gcs_address:
        raise ResourcesError("no cluster runs on this machine")

    raylet: Any = ray._raylet
    client = raylet.GcsClient(address=gcs_address)
    nodes = []

    for key, info in client.get_all_node_info(timeout=ASK_S).items():
        if info.state == 0:  # alive
            name = node_name(info.node_manager_address, key.hex())
            nodes.append(Node(name, _counted(dict(info.resources_total))))

    status = client.internal_kv_get(STATUS_KEY, namespace=None, timeout=ASK_S)
    # The second version of Ray's autoscaler writes no status.
    is_v2 = client.internal_kv_get(
        raylet.GCS_AUTOSCALER_V2_ENABLED_KEY.encode(),
        namespace=raylet.GCS_AUTOSCALER_STATE_NAMESPACE.encode(),
        timeout=ASK_S,
    )
    return Cluster(nodes, adds_nodes(status) or is_v2 == b"1")


def main(address: str) -> None:
    """Print the answer of a head as one line of JSON."""
    try:
        answer = asdict(_ask_here(address))
    except Exception as error:  # of many kinds; whoever asks says it in one line
        text = " ".join(str(error).split())[:400] or type(error).__name__
        answer = {"problem": text}

    sys.stdout.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
