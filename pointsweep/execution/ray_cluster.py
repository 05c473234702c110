"""Start Ray on this machine, or join the cluster that RAY_ADDRESS names; ask its nodes. With
launch.py the files with ray.

Ray is started and left in the main thread, one after the other with everything else.
"""

from __future__ import annotations

import gc
import os
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

from pointsweep.errors import RayLostError, ResourcesError
from pointsweep.execution import cluster_nodes
from pointsweep.execution.cluster_nodes import Cluster, node_name
from pointsweep.utils import interruption
from pointsweep.utils.cli_exit import look_less_for_garbage
from pointsweep.utils.masking import masked

SETTINGS = {
    # Usage statistics and Tune's own loggers and snapshots cost time and are never read: the store
    # is the state.
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",  # the traceback of each lost worker
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # interruption.py has the handlers
    "TUNE_GLOBAL_CHECKPOINT_S": "86400",
    # Tune asks the head for resources that nothing here uses, and would hang in that call when the
    # head is away.
    "TUNE_STATE_REFRESH_PERIOD": "86400",
    # A worker for every core, which Tune cannot use: it asks for an environment of its own.
    "RAY_prestart_worker_first_driver": "0",
    # Attempts to speak with what listens at a cluster's address, of 41 s each if it is something
    # else.
    "RAY_NUM_REDIS_GET_RETRIES": "1",
}
# Ray reads some of them when it is imported.
for _name, _value in SETTINGS.items():
    os.environ.setdefault(_name, _value)

WAIT_VARIABLE = "POINTSWEEP_RAY_WAIT_S"
# for a cluster that does not answer; a start on this machine is tried twice, however long that
# takes
WAIT_S = 30.0
ASK_S = 10.0  # for a connection to a head that is asked without joining it
LOOK_S = 0.5  # between two looks whether Ray is still there
HEAD_S = 40.0  # that the head of a cluster may be away
VITAL = ("gcs_server", "raylet")
PAUSE_S = 1.0  # between two attempts
ALLOWED = (
    "allowed are HOST:PORT of the cluster's head (the port of `ray start --head`, usually 6379), "
    "auto (a cluster on this machine), local or nothing (Ray starts on this machine)"
)
WITHOUT = "--inline runs the trials in this process, without Ray"

_joined_here = False
_lost = False


def connect() -> None:
    """Join the cluster that RAY_ADDRESS names (a Ray job sets it), else start Ray on this machine
    for this command.

    Raises ResourcesError if that cannot be done.
    """
    global _joined_here
    import ray

    if ray.is_initialized():
        return

    interruption.check()
    if elsewhere():
        _join(os.environ["RAY_ADDRESS"].strip())
    else:
        _start()

    _joined_here = True
    interruption.check()


def leave() -> None:
    """Leave Ray, and end it if it was started here."""
    global _joined_here
    if not _joined_here or _lost:
        return

    import ray

    _joined_here = False
    # What is left of Tune holds Ray's objects in cycles. They must be freed before Ray is left, or
    # never: a thread that frees one meanwhile ends the process.
    if interruption.received() is None:
        gc.collect()
    else:
        # Freeing takes a second, in which no other thread runs. `ray job stop` kills 3 s after
        # SIGTERM.
        gc.disable()
        gc.freeze()

    with interruption.handlers_kept():
        ray.shutdown()


def lost(reason: str) -> RayLostError:
    """Return the exception to raise when Ray has ended by itself; it is not left any more."""
    global _lost
    _lost = True
    return RayLostError(reason)


def end_without_ray(code: int) -> NoReturn:
    """End the process when Ray has been lost: leaving it would wait 60 s for what is gone, and then
    end with Ray's code.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def elsewhere() -> bool:
    """Tell whether Ray is a cluster that is there already: workers may be on other machines, and it
    may still grow.
    """
    return os.environ.get("RAY_ADDRESS", "").strip() not in ("", "local")


def _start() -> None:
    """Start Ray on this machine. A busy machine may be too slow for Ray's patience of 30 s: it is
    tried again.
    """
    import ray

    started = time.monotonic()
    attempt = 1

    while True:
        try:
            _init(
                address="local",
                include_dashboard=False,
                runtime_env={"worker_process_setup_hook": look_less_for_garbage},
            )
            return
        except Exception as error:
            # Ray raises bare Exceptions here; each ends in ResourcesError.
            ray.shutdown()
            interruption.check()
            reason = _one_line(error)

        took_s = time.monotonic() - started
        if attempt >= 2 and took_s >= _wait_s(default=0.0):
            raise ResourcesError(
                f"Ray did not start on this machine, tried {attempt} times in {took_s:.0f} s:"
                f" {reason}. If the machine is busy, {WAIT_VARIABLE}=300 goes on trying for 300 s;"
                f" {WITHOUT}"
            )

        print(f"Ray did not start: {reason}; trying again", file=sys.stderr, flush=True)
        attempt += 1
        time.sleep(PAUSE_S)


def _join(address: str) -> None:
    """Join the cluster at the address. Raises ResourcesError with what is wrong."""
    import ray

    if address != "auto":
        host, port = _host_and_port(address)
        _wait_for(host, port)

    print(
        f"joining the Ray cluster at {masked(address)} (RAY_ADDRESS)",
        file=sys.stderr,
        flush=True,
    )
    try:
        _init()
    except Exception as error:  # of many kinds; each ends in ResourcesError
        ray.shutdown()
        interruption.check()
        raise ResourcesError(
            f"RAY_ADDRESS={masked(address)}: {_reason(error)}. For RAY_ADDRESS {ALLOWED}; {WITHOUT}"
        ) from error


def ask() -> Cluster:
    """Ask the head that RAY_ADDRESS names for its nodes, without joining it. Raises
    ResourcesError, in one line and within half a minute, if that cannot be done.
    """
    address = os.environ["RAY_ADDRESS"].strip()
    try:
        if address != "auto":
            host_and_port = _host_and_port(address)
            socket.create_connection(host_and_port, timeout=ASK_S).close()
        return cluster_nodes.ask(address)
    except OSError as error:
        raise ResourcesError(
            f"RAY_ADDRESS={masked(address)}: no cluster answers ({_one_line(error)}); {ALLOWED}"
        ) from error
    except ResourcesError as error:
        if str(error).startswith("RAY_ADDRESS"):
            raise
        raise ResourcesError(
            f"RAY_ADDRESS={masked(address)}: {_reason(error)}"
        ) from error


def _init(**options: Any) -> None:
    import ray
    from ray._private import worker

    # Ray would print the last lines of a lost node's log, some 20 of them, into the output.
    # ray_tune.py says in a sentence what was lost.
    worker._worker_logs_enabled = False

    with interruption.handlers_kept():
        ray.init(log_to_driver=False, logging_level="ERROR", **options)


def _host_and_port(address: str) -> tuple[str, int]:
    """Split HOST:PORT. Raises ResourcesError if the address is something else."""
    shown = masked(address)
    scheme, separator, _ = address.partition("://")

    if separator and scheme in ("http", "https"):
        raise ResourcesError(
            f"RAY_ADDRESS={shown} is the address of the dashboard, which `ray job submit` takes;"
            f" {ALLOWED}; {WITHOUT}"
        )
    if separator:
        raise ResourcesError(
            f"RAY_ADDRESS={shown}: a launch runs on a node of the cluster or as a job (`ray job"
            f" submit`), not through {scheme}://; {ALLOWED}; {WITHOUT}"
        )

    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise ResourcesError(
            f"RAY_ADDRESS={shown} is not HOST:PORT; {ALLOWED}; {WITHOUT}"
        )

    return host, int(port)


def _wait_for(host: str, port: int) -> None:
    """Wait until something listens at the address. Raises ResourcesError after
    POINTSWEEP_RAY_WAIT_S seconds.
    """
    wait_s = _wait_s()
    deadline = time.monotonic() + wait_s
    announced = False

    while True:
        left_s = deadline - time.monotonic()
        try:
            socket.create_connection((host, port), timeout=max(left_s, 1.0)).close()
            return
        except OSError as error:
            reason = _one_line(error)

        interruption.check()
        if time.monotonic() + PAUSE_S > deadline:
            raise ResourcesError(
                f"RAY_ADDRESS={host}:{port}: no cluster answered within {wait_s:.0f} s ({reason});"
                f" {ALLOWED}; {WAIT_VARIABLE}=300 waits 300 s for it; {WITHOUT}"
            )

        if not announced:
            announced = True
            print(
                f"waiting up to {wait_s:.0f} s for the Ray cluster at {host}:{port} (RAY_ADDRESS):"
                f" {reason}",
                file=sys.stderr,
                flush=True,
            )

        time.sleep(PAUSE_S)


def _wait_s(default: float = WAIT_S) -> float:
    """Return how long Ray is waited for. Raises ResourcesError if the environment says no
    number.
    """
    text = os.environ.get(WAIT_VARIABLE, "")
    if not text:
        return default

    try:
        return float(text)
    except ValueError:
        raise ResourcesError(
            f"{WAIT_VARIABLE}={text} is not a number of seconds"
        ) from None


def _reason(error: BaseException) -> str:
    """Say why a cluster could not be joined."""
    causes: list[BaseException] = []
    cause: BaseException | None = error

    while cause is not None and cause not in causes:
        causes.append(cause)
        cause = cause.__cause__ or cause.__context__

    # Causes often say the same: each sentence once.
    text = ": ".join(dict.fromkeys(map(_one_line, causes)))
    if "authentication token" in text.lower():
        mode = os.environ.get("RAY_AUTH_MODE") or "not set"
        return (
            f"the cluster's token is missing or wrong. RAY_AUTH_MODE=token (it is {mode}) and "
            "RAY_AUTH_TOKEN_PATH=FILE, the file with the token of the cluster, are both needed"
        )

    return text


def _one_line(error: BaseException) -> str:
    """Return what an exception says in one line, without the tracebacks that Ray puts into its
    texts.
    """
    text, traced, trace = str(error).partition("Traceback (most recent call last)")
    if traced:
        text = f"{text} {trace.strip().splitlines()[-1]}"

    return " ".join(text.split()).rstrip(".")[:400] or type(error).__name__


class Watch:
    """Watch that notices when Ray has ended under a launch. Holds plain data, as Tune pickles
    it.
    """

    def __init__(self) -> None:
        self.looked_at = time.monotonic()
        self.silent_since: float | None = None

    def check(self) -> None:
        """Raise RayLostError if Ray has ended: its processes on this machine, or the head of the
        cluster.
        """
        if time.monotonic() - self.looked_at < LOOK_S:
            return

        self.looked_at = time.monotonic()
        if elsewhere():
            self._check_head()
            return

        import ray

        node = ray._private.worker._global_node
        dead = ["connection"]

        if node is not None:
            dead = [kind for kind, _ in node.dead_processes() if kind in VITAL]

        if dead:
            raise lost(f"Ray's {' and '.join(dead)} ended while trials ran")

    def _check_head(self) -> None:
        """Ask whether the head still listens. It may be started again, and Ray waits 60 s before it
        ends this process.
        """
        import ray

        address = ray.get_runtime_context().gcs_address
        host, port = _host_and_port(address)

        try:
            socket.create_connection((host, port), timeout=1.0).close()
        except OSError as error:
            now = time.monotonic()
            self.silent_since = self.silent_since or now
            if now - self.silent_since > HEAD_S:
                raise lost(
                    f"the head of the Ray cluster at {address} has been away for {HEAD_S:.0f} s:"
                    f" {error}"
                ) from error
        else:
            self.silent_since = None


def check_fits(cpus: float, gpus: float) -> None:
    """Raise ResourcesError if Ray is this machine alone and have not what one pack asks for."""
    import ray

    if elsewhere():
        return

    there = ray.cluster_resources()
    for name, amount in (("cpus", cpus), ("gpus", gpus)):
        has = there.get(name.removesuffix("s").upper(), 0)
        if amount > has:
            hint = "use another machine"
            if has or name == "gpus":
                hint = f"set resources.{name}={has:g}"

            raise ResourcesError(
                f"resources.{name}: a trial asks for {amount:g}, this machine has {has:g}; {hint},"
                " or name a cluster by RAY_ADDRESS"
            )


@dataclass(frozen=True)
class Answer:
    """Answer of a node: what it said, or the exception it ended in. Its clock, and this machine's
    before and after it was read.
    """

    value: Any
    asked: float = 0.0
    clock: float = 0.0
    answered: float = 0.0


def on_every_node(
    function: Callable[[Any], Any], argument: Any, wait_s: float = 120
) -> dict[str, Answer]:
    """function(argument) on each living node of the cluster at once, by the node's name.

    Raises ResourcesError if there is no cluster.
    """
    connect()
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    options: dict[str, dict[str, Any]] = {}
    tasks = {}

    for node in ray.nodes():
        if node["Alive"]:
            name = node_name(node["NodeManagerAddress"], node["NodeID"])
            strategy = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            # Without a CPU, so that a busy node answers too.
            options[name] = {
                "num_cpus": 0,
                "max_retries": 0,
                "scheduling_strategy": strategy,
            }

            tasks[name] = ray.remote(**options[name])(function).remote(argument)

    deadline = time.monotonic() + wait_s
    answers = {}
    for name, task in tasks.items():
        try:
            left_s = max(deadline - time.monotonic(), 1.0)
            value = ray.get(task, timeout=left_s)
            # One node after the other, as the time of an answer says how well a clock is known.
            read_clock = ray.remote(**options[name])(_read_clock)
            asked_at = time.time()
            clock = ray.get(read_clock.remote(), timeout=wait_s)
            answers[name] = Answer(value, asked_at, clock, time.time())
        except (ray.exceptions.RayError, OSError) as error:
            answers[name] = Answer(error)

    return answers


def _read_clock() -> float:
    return time.time()


def on_worker(
    function: Callable[[Any], Any], argument: Any, cpus: float, gpus: float
) -> Any:
    """function(argument) in a worker that has what a pack gets."""
    connect()
    check_fits(cpus, gpus)
    import ray

    task = ray.remote(num_cpus=cpus, num_gpus=gpus)(function)

    return ray.get(task.remote(argument))
