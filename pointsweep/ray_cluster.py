"""Joins the cluster that RAY_ADDRESS names, or starts Ray on this machine; asks its nodes. With launch.py the files with ray.

It imports nothing heavy: Ray takes seconds to start, in which torch is imported and a plan is made.
"""

from __future__ import annotations

import ctypes
import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cache
from typing import Any

from pointsweep.command import look_less_for_garbage
from pointsweep.errors import Unfit

SETTINGS = {
    # Usage statistics and Tune's own loggers and snapshots cost time and are never read: the store is the state.
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # run.py ends the command itself, within 3 s
    "TUNE_GLOBAL_CHECKPOINT_S": "86400",
    # A worker for every core, which Tune cannot use: it asks for an environment of its own.
    "RAY_prestart_worker_first_driver": "0",
}
LEAVES = "leaves ray"  # the name of a thread
ACTION_BYTES = 512  # at least those of a struct sigaction


def begin() -> None:
    """Begins to connect, for a launch that is to come. `connect` waits for it, and raises what has gone wrong."""
    _joining()


def connect() -> None:
    """Joins the cluster that RAY_ADDRESS names (a Ray job sets it), else starts Ray on this machine for this command."""
    joining = _joining()
    try:
        joining.result()
    except Exception:
        _joining.cache_clear()
        raise
    import ray

    if not ray.is_initialized():  # somebody has left since
        _joining.cache_clear()
        _joining().result()


def leave() -> None:
    """Lets go of Ray, if it was joined or begun here, while this process does something else; it ends after that."""
    if _joining.cache_info().currsize:
        threading.Thread(target=_let_go, args=(_joining(),), name=LEAVES).start()
        _joining.cache_clear()


def wait_until_left() -> None:
    """Until `leave` is done: Ray's processes that are killed in place of it look for each other for minutes."""
    for thread in threading.enumerate():
        if thread.name == LEAVES:
            thread.join()


def _let_go(joining: Future[bool]) -> None:
    if joining.exception() is None and joining.result():
        import ray

        ray.shutdown()


@cache
def _joining() -> Future[bool]:
    """Whether it was joined or started here, once that is known."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    import ray  # noqa: F401 - here, as modules that import each other must not be imported in two threads at once

    told: Future[bool] = Future()
    threading.Thread(target=_stay, args=(told,), name="ray", daemon=True).start()
    return told


def _stay(told: Future[bool]) -> None:
    try:
        told.set_result(_join())
    except BaseException as error:  # raised where somebody waits for it
        told.set_exception(error)
    # Linux ends Ray's processes as soon as the thread ends that has started them.
    threading.Event().wait()


def _join() -> bool:
    wait_until_left()
    import ray

    if ray.is_initialized():
        return False
    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    # ray.init puts a handler of its own under Python's, and it aborts the process. Python sets signals in its main thread alone.
    libc = ctypes.CDLL(None)
    actions = {number: ctypes.create_string_buffer(ACTION_BYTES) for number in (signal.SIGINT, signal.SIGTERM)}
    for number, action in actions.items():
        libc.sigaction(number, None, action)
    if elsewhere():
        ray.init(**quiet)
    else:
        ray.init(address="local", include_dashboard=False, runtime_env={"worker_process_setup_hook": look_less_for_garbage}, **quiet)
    for number, action in actions.items():
        libc.sigaction(number, action, None)
    return True


def elsewhere() -> bool:
    """Whether Ray is a cluster that is there already: workers may be on other machines, and it may still grow."""
    return bool(os.environ.get("RAY_ADDRESS"))


def check_fits(cpus: float, gpus: float) -> None:
    """Raises Unfit if Ray is this machine alone and has not what one pack asks for."""
    import ray

    if elsewhere():
        return
    there = ray.cluster_resources()
    for name, asked in (("cpus", cpus), ("gpus", gpus)):
        has = there.get(name.removesuffix("s").upper(), 0)
        if asked > has:
            hint = f"set resources.{name}={has:g}" if has or name == "gpus" else "use another machine"
            raise Unfit(
                f"resources.{name}: a trial asks for {asked:g}, this machine has {has:g}; {hint}, or name a cluster by RAY_ADDRESS"
            )


@dataclass(frozen=True)
class Answer:
    """What a node said, or the exception it ended in; times of this machine before and after."""

    asked: float
    answered: float
    value: Any


def on_every_node(function: Callable[[Any], Any], argument: Any, wait_s: float = 120) -> dict[str, Answer]:
    """function(argument) on each living node of the cluster, by the node's name. Raises ConnectionError if there is none."""
    connect()
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    answers = {}
    for node in ray.nodes():
        if not node["Alive"]:
            continue
        strategy = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        # Without a CPU, so that a busy node answers too.
        task = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=strategy)(function)
        gpus = f", {node['Resources']['GPU']:g} GPUs" if "GPU" in node["Resources"] else ""
        name = f"{node['NodeManagerAddress']} {node['NodeID'][:6]}{gpus}"
        # A first call starts the node's worker and imports; the second one's times are those of the answer alone.
        try:
            ray.get(task.remote(argument), timeout=wait_s)
            asked = time.time()
            value = ray.get(task.remote(argument), timeout=wait_s)
        except (ray.exceptions.RayError, OSError) as error:
            asked, value = time.time(), error
        answers[name] = Answer(asked, time.time(), value)
    return answers


def on_worker(function: Callable[[Any], Any], argument: Any, cpus: float, gpus: float) -> Any:
    """function(argument) in a worker that has what a pack gets."""
    connect()
    check_fits(cpus, gpus)
    import ray

    return ray.get(ray.remote(num_cpus=cpus, num_gpus=gpus)(function).remote(argument))
