"""The command doctor: look at every node of a cluster before a long sweep.

Each line is one check on one node, `ok` or what to do. Exit code 0 if a sweep can run, 1 if
something must be mended, 2 if there is no cluster to look at.
"""

from __future__ import annotations

import os
import shutil
import socket
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from pointsweep.cli.command import AllowPluginsOption, Program, StoreOption, Version
from pointsweep.config.plugins import Source, adopt
from pointsweep.errors import ConfigError, ResourcesError
from pointsweep.execution import ray_cluster
from pointsweep.storage import remote_lease
from pointsweep.storage.base import Store
from pointsweep.storage.stores import folder_of, is_address, open_store, remote_of
from pointsweep.tracking.mlflow_client import reachable
from pointsweep.utils.array_cache import cache_folder
from pointsweep.utils.masking import masked, scrubbed
from pointsweep.utils.provenance import origin, tree_digest

SKEW_S = 2.0  # of a node's clock: MLflow and histories order by it
FREE_BYTES = 10 * 2**30  # of a node's cache: converted data, weights, working copies


@dataclass(frozen=True)
class Finding:
    """One check: `mend` says what to do, and is empty if all is well."""

    check: str
    found: str
    mend: str = ""


@dataclass(frozen=True)
class NodeQuestion:
    """The question that every node answers."""

    store: str
    tracking_uri: str
    # one config of each data set and backbone of a sweep
    trials: tuple[Mapping[str, Any], ...] = ()
    plugins: tuple[Source, ...] = ()  # of the sweep


def look(wanted: NodeQuestion) -> list[Finding]:
    """Return all checks of the node that this runs on."""
    checks: tuple[Callable[[NodeQuestion], list[Finding]], ...] = (
        _versions,
        _gpus,
        _store,
        _tracking,
        _cache,
        _data,
    )
    found = []
    for check in checks:
        try:
            found += check(wanted)
        except Exception as error:
            # a check that cannot be made is a finding, and the others still are
            found.append(
                Finding(
                    check.__name__.strip("_"),
                    scrubbed(f"{type(error).__name__}: {error}"),
                    "see the message",
                )
            )
    return found


def _versions(wanted: NodeQuestion) -> list[Finding]:
    facts = origin("none")
    names = ("python", "version.ray", "version.torch")
    told = ", ".join(f"{name.removeprefix('version.')} {facts.get(name, 'none')}" for name in names)
    return [Finding("versions", told), Finding("code", f"tree {tree_digest()}")]


def _gpus(wanted: NodeQuestion) -> list[Finding]:
    import torch

    # The task holds no GPU, so Ray hides them: what the node has stands in Ray's resources, what
    # torch can use in its build.
    build = torch.version.cuda or "none"
    has = shutil.which("nvidia-smi") is not None
    mend = "install the CUDA build of torch on this node" if has and build == "none" else ""
    return [Finding("GPU", f"torch's CUDA {build}, driver {'present' if has else 'none'}", mend)]


def _store(wanted: NodeQuestion) -> list[Finding]:
    store = open_store(wanted.store)
    name, begun = f"doctor/{uuid.uuid4().hex}", time.monotonic()
    try:
        store.write(name, b"pointsweep")
        same = store.read(name) == b"pointsweep"
    except (OSError, ValueError) as error:
        mend = (
            "mount the folder on this node"
            if folder_of(store) is not None
            else "give the node a role with get, put, list, delete"
        )
        return [
            Finding(
                "store",
                scrubbed(f"{type(error).__name__}: {error}"),
                f"{mend}, or pass --store another",
            )
        ]
    store.delete(name)
    mend = "" if same else "another node's bytes came back: use a folder that all nodes share"
    return [
        Finding(
            "store",
            f"{store.url} written and read in {1000 * (time.monotonic() - begun):.0f} ms",
            mend,
        ),
        *_lease(store),
    ]


def _lease(store: Store) -> list[Finding]:
    """Return how two launches are kept apart in a store."""
    if remote_of(store) is None:
        return []
    return [
        Finding(
            "lease",
            (
                "held by conditional writes"
                if remote_lease.conditional(store.url)
                else remote_lease.WORDS
            ),
        )
    ]


def _tracking(wanted: NodeQuestion) -> list[Finding]:
    if wanted.tracking_uri == "none":
        return [Finding("MLflow", "off")]
    problem = reachable(wanted.tracking_uri)
    mend = (
        "start the server or correct MLFLOW_TRACKING_URI; training goes on without it"
        if problem
        else ""
    )
    return [Finding("MLflow", problem or masked(wanted.tracking_uri), mend)]


def _cache(wanted: NodeQuestion) -> list[Finding]:
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    mend = (
        f"free some space, or name a larger disk by POINTSWEEP_CACHE: {FREE_BYTES >> 30} GiB are"
        " wanted" * (free < FREE_BYTES)
    )
    return [Finding("cache", f"{folder}: {free / 2**30:.0f} GiB free", mend)]


def _data(wanted: NodeQuestion) -> list[Finding]:
    from pointsweep.config.validation import trial_from_dict
    from pointsweep.data.inputs import needed

    root = os.environ.get("POINTSWEEP_DATA", "")
    there = is_address(root) or (bool(root) and Path(root).is_dir())
    found = [
        Finding(
            "data root",
            root or "not set",
            "" if there else "set POINTSWEEP_DATA on this node to the folder of the data",
        )
    ]
    if not wanted.trials:
        return found if root else []
    adopt(wanted.plugins)
    inputs = needed([trial_from_dict(trial) for trial in wanted.trials], fetch=False)
    lacking = [*inputs.missing, *inputs.to_fetch]
    if not lacking:
        return [Finding("data and weights", f"all there for {len(wanted.trials)} arms")]
    return [
        Finding(
            "data and weights",
            text,
            "get it to this node, or let POINTSWEEP_DATA name s3://bucket/prefix",
        )
        for text in lacking
    ]


def clock(node: str, asked: float, told: float, answered: float) -> Finding:
    """Compare a node's clock with this one, as far as the time of the answer allows."""
    skew = max(asked - told, told - answered, 0.0)
    mend = (
        f"run an NTP client on {node}: more than {SKEW_S:.0f} s are too many"
        if skew > SKEW_S
        else ""
    )
    return Finding("clock", f"within {skew + (answered - asked) / 2:.1f} s of this machine", mend)


def _alike(reports: Mapping[str, Sequence[Finding]]) -> list[Finding]:
    """Compare what must be the same on all nodes."""
    found = []
    for check in ("versions", "code"):
        values = {
            node: finding.found
            for node, findings in reports.items()
            for finding in findings
            if finding.check == check
        }
        same = len(set(values.values())) <= 1
        mend = "" if same else "install the same versions everywhere: one image, or a runtime env"
        found.append(Finding(f"{check} alike", "on all nodes" if same else str(values), mend))
    return found


def examine(wanted: NodeQuestion) -> dict[str, list[Finding]]:
    """Join the cluster that RAY_ADDRESS names; return every node's findings by its name, and those
    of the cluster as a whole.
    """
    reports: dict[str, list[Finding]] = {}
    for node, answer in ray_cluster.on_every_node(_timed_look, wanted).items():
        if isinstance(answer.value, Exception):
            reports[node] = [
                Finding(
                    "node",
                    f"no answer: {answer.value}",
                    "look at its log, or remove it from the cluster",
                )
            ]
            continue
        told, found = answer.value
        reports[node] = [*found, clock(node, answer.asked, told, answer.answered)]
    return reports | {"cluster": _alike(reports)}


def _timed_look(wanted: NodeQuestion) -> tuple[float, list[Finding]]:
    return time.time(), look(wanted)


def wanted_by(
    file: str | None, store: str | None, tracking_uri: str | None, allow_plugins: bool = False
) -> NodeQuestion:
    """Return what a sweep needs; without a file, what every sweep needs. Raises ConfigError."""
    uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or "none"
    url = open_store(store).url
    if file is None:
        return NodeQuestion(url, uri)
    from pointsweep.sweep.sweep import load

    loaded = load(file, allow_plugins=allow_plugins)
    arms = {
        (str(trial.config.dataset), str(trial.config.backbone)): trial.config.to_dict()
        for trial in loaded.trials()
    }
    return NodeQuestion(url, uri, tuple(arms.values()), loaded.plugins)


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
            metavar="SWEEP", help="a sweep file: its data and weights are looked for on every node"
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


main = Program("doctor", doctor, examples=("", "any2point_table1 --address 10.0.0.1:6379"))


def report(options: DoctorOptions) -> int:
    """Print every node's findings; return the exit code."""
    if options.address:
        os.environ["RAY_ADDRESS"] = options.address
    try:
        reports = examine(
            wanted_by(options.sweep, options.store, options.tracking_uri, options.allow_plugins)
        )
    except (ConfigError, ResourcesError, ConnectionError) as error:
        print(f"{socket.gethostname()}: {error}", file=sys.stderr)
        return 2
    finally:
        ray_cluster.leave()
    sick = 0
    for node, findings in reports.items():
        for finding in findings:
            sick += bool(finding.mend)
            print(
                f"{node}  {finding.check:18} {finding.found}"
                + (f"\n    MEND: {finding.mend}" if finding.mend else "")
            )
    print(f"{sick} to mend" if sick else "all is well")
    return 1 if sick else 0
