"""The command doctor: look at every node of a cluster before a long sweep.

It prints the nodes side by side, what is the same on all, and each problem once with its nodes and
what to do. Exit code 0 if a sweep can run, 1 if something must be mended, 2 if there is no cluster
to look at.
"""

from __future__ import annotations

import os
import shutil
import socket
import sys
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from pointsweep.cli.command import AllowPluginsOption, Program, StoreOption, Version
from pointsweep.config.plugins import Source, adopt
from pointsweep.errors import ConfigError, ResourcesError
from pointsweep.execution import ray_cluster
from pointsweep.execution.cluster_nodes import (
    Cluster,
    advice,
    amounts,
    demand_of,
    joined_cluster,
    shortage,
)
from pointsweep.storage import remote_lease
from pointsweep.storage.base import Store
from pointsweep.storage.stores import folder_of, is_address, open_store, remote_of
from pointsweep.sweep.resources import Resources
from pointsweep.tracking.trackers import open_tracker
from pointsweep.utils.array_cache import cache_folder
from pointsweep.utils.masking import masked, scrubbed
from pointsweep.utils.provenance import bf16_unit, cpu_flags, origin, tree_digest

SKEW_S = 2.0  # of a node's clock: MLflow and histories order by it
FREE_BYTES = 10 * 2**30  # of a node's cache: converted data, weights, working copies
COMPARED = ("versions", "code")  # must be the same on all nodes, and are said once


@dataclass(frozen=True)
class Finding:
    """One check: `mend` says what to do, and is empty if all is well. `short` is what the table of
    nodes shows of it, if not whether all is well.
    """

    check: str
    found: str
    mend: str = ""
    short: str = ""

    @property
    def cell(self) -> str:
        """Return what stands in the table of nodes."""
        return self.short or ("mend" if self.mend else "ok")


@dataclass(frozen=True)
class NodeQuestion:
    """The question that every node answers."""

    store: str
    tracking_uri: str
    # one config of each data set and backbone of a sweep
    trials: tuple[Mapping[str, Any], ...] = ()
    plugins: tuple[Source, ...] = ()  # of the sweep


def look(question: NodeQuestion) -> list[Finding]:
    """Return all checks of the node that this runs on."""
    checks: tuple[Callable[[NodeQuestion], list[Finding]], ...] = (
        _versions,
        _gpus,
        _bf16,
        _store,
        _tracking,
        _cache,
        _data,
    )

    findings = []

    for check in checks:
        try:
            findings += check(question)
        except Exception as error:
            # a check that cannot be made is a finding, and the others still are
            name = check.__name__.strip("_")
            message = scrubbed(f"{type(error).__name__}: {error}")
            findings.append(Finding(name, message, "see the message"))

    return findings


def _versions(question: NodeQuestion) -> list[Finding]:
    facts = origin("none")
    versions = []
    for name in ("python", "version.ray", "version.torch"):
        versions.append(f"{name.removeprefix('version.')} {facts.get(name, 'none')}")

    return [
        Finding("versions", ", ".join(versions)),
        Finding("code", f"tree {tree_digest()}"),
    ]


def _gpus(question: NodeQuestion) -> list[Finding]:
    import torch

    # The task holds no GPU, so Ray hides them: what the node has stands in Ray's resources, what
    # torch can use in its build.
    build = torch.version.cuda or "none"
    driver = "none"
    mend = ""

    if shutil.which("nvidia-smi") is not None:
        driver = "present"
        if build == "none":
            mend = "install the CUDA build of torch on this node"

    return [Finding("GPU", f"torch's CUDA {build}, driver {driver}", mend)]


def _bf16(question: NodeQuestion) -> list[Finding]:
    unit = bf16_unit(cpu_flags()) or "no"
    return [Finding("CPU bf16", f"by {unit}", short=unit)]


def _store(question: NodeQuestion) -> list[Finding]:
    store = open_store(question.store)
    name = f"doctor/{uuid.uuid4().hex}"
    begun = time.monotonic()

    try:
        store.write(name, b"pointsweep")
        same = store.read(name) == b"pointsweep"
    except (OSError, ValueError) as error:
        mend = "give the node a role with get, put, list, delete"
        if folder_of(store) is not None:
            mend = "mount the folder on this node"

        message = scrubbed(f"{type(error).__name__}: {error}")
        return [Finding("store", message, f"{mend}, or pass --store another")]

    store.delete(name)
    took = f"{1000 * (time.monotonic() - begun):.0f} ms"
    text = f"{store.url} written and read in {took}"

    if same:
        finding = Finding("store", text, short=took)
    else:
        mend = "another node's bytes came back: use a folder that all nodes share"
        finding = Finding("store", text, mend)

    return [finding, *_lease(store)]


def _lease(store: Store) -> list[Finding]:
    """Return how two launches are kept apart in a store."""
    if remote_of(store) is None:
        return []
    if remote_lease.conditional(store.url):
        return [Finding("lease", "held by conditional writes")]

    return [Finding("lease", remote_lease.WORDS)]


def _tracking(question: NodeQuestion) -> list[Finding]:
    if question.tracking_uri == "none":
        return [Finding("MLflow", "off", short="off")]

    tracker = open_tracker(question.tracking_uri)
    problem = tracker.problem()
    mend = ""

    if problem:
        mend = "start the server or correct MLFLOW_TRACKING_URI; training goes on without it"

    return [Finding(tracker.title, problem or masked(question.tracking_uri), mend)]


def _cache(question: NodeQuestion) -> list[Finding]:
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    mend = ""

    if free < FREE_BYTES:
        mend = (
            "free some space, or name a larger disk by POINTSWEEP_CACHE:"
            f" {FREE_BYTES >> 30} GiB are wanted"
        )

    room = f"{free / 2**30:.0f} GiB free"
    return [Finding("cache", f"{folder}: {room}", mend, "" if mend else room)]


def _data(question: NodeQuestion) -> list[Finding]:
    from pointsweep.config.validation import trial_from_dict
    from pointsweep.data.inputs import needed

    if not question.trials:
        return _data_root()

    adopt(question.plugins)
    inputs = needed([trial_from_dict(trial) for trial in question.trials], fetch=False)
    lacking = [*inputs.missing, *inputs.to_fetch]
    check = "data and weights"

    if not lacking:
        return [Finding(check, f"all there for {len(question.trials)} arms")]

    mend = "get it to this node, or let POINTSWEEP_DATA name s3://bucket/prefix"
    return [Finding(check, text, mend) for text in lacking]


def _data_root() -> list[Finding]:
    root = os.environ.get("POINTSWEEP_DATA", "")
    if not root:
        return []

    mend = ""
    if not is_address(root) and not Path(root).is_dir():
        mend = "set POINTSWEEP_DATA on this node to the folder of the data"

    return [Finding("data root", root, mend)]


def clock(asked: float, node_time: float, answered: float) -> Finding:
    """Compare a node's clock with this one, as far as the time of the answer allows."""
    skew_s = max(asked - node_time, node_time - answered, 0.0)
    mend = ""

    if skew_s > SKEW_S:
        mend = f"run an NTP client: more than {SKEW_S:.0f} s are too many"

    within = f"{skew_s + (answered - asked) / 2:.1f} s"
    return Finding("clock", f"within {within} of this machine", mend, within)


@dataclass(frozen=True)
class Examination:
    """Every node's findings by its name, those of the cluster as a whole, and what the nodes
    have.
    """

    nodes: Mapping[str, Sequence[Finding]]
    cluster: Sequence[Finding]
    has: Cluster

    def problems(self) -> dict[tuple[str, str], dict[str, list[str]]]:
        """Return each problem once: check and what to do -> what was found -> on which nodes."""
        problems: dict[tuple[str, str], dict[str, list[str]]] = {}
        for node, findings in [*self.nodes.items(), ("", self.cluster)]:
            for finding in findings:
                if finding.mend:
                    problem = finding.check, finding.mend
                    nodes_of = problems.setdefault(problem, {})
                    nodes_of.setdefault(finding.found, []).append(node)

        return problems


def _alike(reports: Mapping[str, Sequence[Finding]]) -> list[Finding]:
    """Compare what must be the same on all nodes."""
    compared = []
    for check in ("versions", "code"):
        nodes_of: dict[str, list[str]] = defaultdict(list)  # by what was found there
        for node, findings in reports.items():
            for finding in findings:
                if finding.check == check:
                    nodes_of[finding.found].append(node)

        if len(nodes_of) <= 1:
            compared += [Finding(check, value) for value in nodes_of]
            continue

        values = [f"{value} on {', '.join(nodes)}" for value, nodes in nodes_of.items()]
        mend = "install the same versions everywhere: one image, or a runtime env"
        compared.append(Finding(check, "; ".join(values), mend))

    return compared


def _resources(requested: Resources | None, cluster: Cluster) -> list[Finding]:
    """Compare what a pack of the sweep asks for with what the nodes have."""
    findings = []
    if cluster.autoscales:
        findings.append(Finding("autoscaling", "the cluster adds nodes by itself"))

    if requested is None:
        return findings

    demand = demand_of(requested)
    lacking, instead = shortage(demand, cluster)
    if lacking:
        text = f"a pack of this sweep asks for {lacking}; {instead}"
        if cluster.autoscales:
            # It may have no worker until somebody asks for one.
            findings.append(Finding("resources", f"{text}; {advice(cluster)}"))
        else:
            findings.append(Finding("resources", text, advice(cluster)))
    elif demand.share():
        room = demand.room(cluster) // demand.processes
        description = f"room for {room:g} packs of {amounts(demand.share())} at once"
        findings.append(Finding("resources", description))

    return findings


def examine(question: NodeQuestion, requested: Resources | None = None) -> Examination:
    """Look at every node of the cluster that RAY_ADDRESS names, else of Ray on this machine."""
    if ray_cluster.elsewhere():
        ray_cluster.ask()  # what is wrong with the address or the token is said soon

    reports: dict[str, list[Finding]] = {}
    for node, answer in ray_cluster.on_every_node(look, question).items():
        if isinstance(answer.value, Exception):
            message = " ".join(str(answer.value).split())[:300]
            reason = message or type(answer.value).__name__
            mend = "look at the node's log, or remove it from the cluster"
            reports[node] = [Finding("node", f"no answer: {reason}", mend)]
            continue

        node_clock = clock(answer.asked, answer.clock, answer.answered)
        reports[node] = [*answer.value, node_clock]

    cluster = joined_cluster()
    findings = [*_alike(reports), *_resources(requested, cluster)]
    return Examination(reports, findings, cluster)


def wanted_by(
    file: str | None,
    store: str | None,
    tracking_uri: str | None,
    allow_plugins: bool = False,
) -> tuple[NodeQuestion, Resources | None]:
    """Return what a sweep needs of a node, and what its packs ask for; without a file, what every
    sweep needs. Raises ConfigError.
    """
    uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or "none"
    url = open_store(store).url

    if file is None:
        return NodeQuestion(url, uri), None

    from pointsweep.sweep.sweep import load

    sweep = load(file, allow_plugins=allow_plugins)
    trial_of = {}

    for trial in sweep.trials():
        inputs = str(trial.config.dataset), str(trial.config.backbone)
        trial_of[inputs] = trial.config.to_dict()

    question = NodeQuestion(url, uri, tuple(trial_of.values()), sweep.plugins)
    return question, sweep.resources


@dataclass(frozen=True)
class DoctorOptions:
    """The options of doctor, as the command line gives them."""

    sweep: str | None = None
    address: str | None = None
    store: str | None = None
    tracking_uri: str | None = None
    allow_plugins: bool = False


def doctor(
    sweep: Annotated[
        str | None,
        typer.Argument(
            metavar="SWEEP",
            help="a sweep file: its data and weights are looked for on every node",
        ),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(
            "--address",
            metavar="ADDRESS",
            help="the cluster (default: $RAY_ADDRESS, else Ray on this machine)",
        ),
    ] = None,
    store: StoreOption = None,
    tracking_uri: Annotated[
        str | None,
        typer.Option(
            "--tracking-uri",
            metavar="URI",
            help="MLflow server (default: $MLFLOW_TRACKING_URI; else not looked for)",
        ),
    ] = None,
    allow_plugins: AllowPluginsOption = False,
    version: Version = False,
) -> int:
    """Look at every node of a cluster before a long sweep.

    exit codes: 0 all is well, 1 something must be mended, 2 there is no cluster
    """
    return report(DoctorOptions(sweep, address, store, tracking_uri, allow_plugins))


main = Program(
    "doctor", doctor, examples=("", "any2point_table1 --address 10.0.0.1:6379")
)


def report(options: DoctorOptions) -> int:
    """Print every node's findings; return the exit code."""
    if options.address:
        os.environ["RAY_ADDRESS"] = options.address

    try:
        question, resources = wanted_by(
            options.sweep, options.store, options.tracking_uri, options.allow_plugins
        )
        examination = examine(question, resources)
    except (ConfigError, ResourcesError, ConnectionError) as error:
        print(f"{socket.gethostname()}: {error}", file=sys.stderr)
        return 2
    finally:
        ray_cluster.leave()

    print("\n".join([*table_of(examination), "", *_alike_lines(examination)]))
    problems = examination.problems()
    for (check, mend), nodes_of in problems.items():
        print(f"\nMEND {check}: {mend}")
        for text, nodes in nodes_of.items():
            print(f"    {text}{_where(nodes, len(examination.nodes))}")

    print(f"\n{len(problems)} to mend" if problems else "\nall is well")
    return 1 if problems else 0


def table_of(examination: Examination) -> list[str]:
    """Return the nodes side by side: a line each, with what it has and how its checks ended."""
    resources_of = {node.name: node.resources for node in examination.has.nodes}
    checks: dict[str, None] = {}

    for findings in examination.nodes.values():
        for finding in findings:
            if finding.check not in COMPARED:
                checks[finding.check] = None

    lines = [["node", "CPUs", "GPUs", "memory", *checks]]
    for node, findings in examination.nodes.items():
        resources = resources_of.get(node, {})
        line = [
            node,
            f"{resources.get('CPU', 0.0):g}",
            f"{resources.get('GPU', 0.0):g}",
            f"{resources.get('memory', 0.0) / 2**30:.0f} GiB",
        ]
        for check in checks:
            results = [finding.cell for finding in findings if finding.check == check]
            if "mend" in results:
                line.append("mend")
            else:
                line.append(results[0] if results else "-")

        lines.append(line)

    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    aligned = []
    for line in lines:
        padded = map(str.ljust, line, widths)
        aligned.append("  ".join(padded).rstrip())

    return aligned


def _alike_lines(examination: Examination) -> list[str]:
    """Return what holds for the cluster as a whole, and what all nodes answer alike."""
    lines = []
    for finding in examination.cluster:
        if not finding.mend:
            lines.append(f"{finding.check:18} {finding.found}")

    answers: Counter[tuple[str, str]] = Counter()
    for findings in examination.nodes.values():
        for finding in findings:
            if not finding.mend and not finding.short and finding.check not in COMPARED:
                answers[finding.check, finding.found] += 1

    for (check, text), number in answers.items():
        if number == len(examination.nodes):
            lines.append(f"{check:18} {text}")

    return lines


def _where(nodes: Sequence[str], number: int) -> str:
    """Return " (on all 3 nodes)", or " (on A, B)"; nothing for the cluster as a whole."""
    if "" in nodes:
        return ""
    if len(nodes) == number > 1:
        return f" (on all {number} nodes)"

    return f" (on {', '.join(nodes)})"
