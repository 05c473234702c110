"""The command chaos: kill a small sweep again and again; what must hold, holds.

The sweep runs once undisturbed. Then every round runs it in a fresh store while a process dies at
one or several writes: before the write, in the middle of it, or after it, with the loss of all that
was not flushed (fault_injection.py); or the disk is full at a write; or a bit is flipped between
two runs; or any of the command's processes, Ray's too, is killed at any time; or the command is
given twice at once. By turns MLflow is a server at the end of a bad line. The same command is given
until it ends well. Exit codes: 0 all invariants hold; 1 one does not; 2 the file is invalid.
"""

from __future__ import annotations

import functools
import itertools
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from pointsweep.cli import sync
from pointsweep.cli.command import Program, Version, one_of, whole_number
from pointsweep.errors import ConfigError
from pointsweep.results.trial_dir import TrialFolder
from pointsweep.storage.base import FileStore
from pointsweep.sweep.sweep import load
from pointsweep.testing import chaos_processes as processes
from pointsweep.testing.chaos_flaky_proxy import Line, server
from pointsweep.testing.chaos_processes import Killer
from pointsweep.tracking.mlflow.reader import rename, steps_by_run
from pointsweep.utils import fault_injection as faults
from pointsweep.utils.cli_exit import INVALID

LAUNCHERS = ("inline", "ray")
TRACKERS = ("sqlite", "server")
WAYS = (*faults.WAYS, "full", "flip", "kill", "two")
WITHOUT_DEATHS = {"kill": "killed", "two": "two commands at once"}
# within so long of its start a command is killed
KILLED_S = {"inline": 15.0, "ray": 30.0}
CUT = 0.2  # share of the requests to the server that go wrong
# of a record; the rest is time and place
SAME = ("key", "config", "metrics", "parameters", "dataset", "weights_origin", "marks")

# invariant -> column of the matrix -> whether it held, round by round
Outcomes = dict[str, dict[str, list[bool]]]


@dataclass(frozen=True)
class Round:
    """One disturbed run: the launcher, how it is disturbed, and at which writes of all processes
    together a process dies.
    """

    number: int
    launcher: str
    way: str
    deaths: Mapping[int, str] = field(default_factory=dict)
    tracker: str = "sqlite"

    @property
    def name(self) -> str:
        """Return the name of a round's folder. The one without a number is undisturbed."""
        return f"round{self.number}" if self.number else "undisturbed"

    def __str__(self) -> str:
        deaths = []
        for number, way in sorted(self.deaths.items()):
            deaths.append(f"{way} write {number}")

        disturbance = ", ".join(deaths) or WITHOUT_DEATHS[self.way]
        if self.way == "flip":
            disturbance = f"a bit flipped, {disturbance}"

        cut = " with a server cut off" if self.tracker == "server" else ""
        return f"round {self.number}, {self.launcher}{cut}: {disturbance}"


UNDISTURBED = Round(0, "inline", "")


@dataclass(frozen=True)
class Subject:
    """The sweep that is disturbed, the folder for its stores, and an MLflow server: its address,
    and that of the bad line to it.
    """

    name: str
    arguments: tuple[str, ...]
    folder: Path
    seed: int
    server: str = ""
    line: str = ""

    def store(self, name: str) -> Path:
        return self.folder / name / "store"

    def uri(self, this_round: Round) -> str:
        """Return where a round's runs are found."""
        if this_round.tracker == "server":
            return self.server

        return f"sqlite:///{self.store(this_round.name)}/mlflow.db"


@dataclass(frozen=True)
class ChaosOptions:
    """The options of chaos, as the command line gives them."""

    file: str
    overrides: tuple[str, ...] = ()
    runs: int = 20  # rounds; 0: every write, in every way
    deaths: int = 2  # at most so many in a round
    seed: int | None = None  # of the choice of writes; default: of the clock
    launchers: tuple[str, ...] = LAUNCHERS
    trackers: tuple[str, ...] = TRACKERS
    ways: tuple[str, ...] = WAYS


def chaos(
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE",
            help="the sweep file; seconds long, as it is run again and again",
        ),
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="as for run")
    ] = None,
    runs: Annotated[
        int,
        typer.Option(
            "--runs",
            metavar="N",
            parser=whole_number,
            help="rounds; 0 = every write, in every way (default: 20)",
        ),
    ] = 20,
    deaths: Annotated[
        int,
        typer.Option(
            "--deaths",
            metavar="N",
            parser=whole_number,
            help="at most so many in a round (default: 2)",
        ),
    ] = 2,
    seed: Annotated[
        int | None,
        typer.Option(
            "--seed",
            metavar="N",
            parser=whole_number,
            help="of the choice of writes (default: of the clock; printed)",
        ),
    ] = None,
    launcher: Annotated[
        list[str] | None,
        typer.Option(
            "--launcher",
            metavar="L",
            parser=one_of("launcher", lambda: LAUNCHERS),
            help="inline or ray (default: both, by turns)",
        ),
    ] = None,
    tracker: Annotated[
        list[str] | None,
        typer.Option(
            "--tracker",
            metavar="T",
            parser=one_of("tracker", lambda: TRACKERS),
            help="sqlite or server (default: both, by turns)",
        ),
    ] = None,
    way: Annotated[
        list[str] | None,
        typer.Option(
            "--way",
            metavar="WAY",
            parser=one_of("way", lambda: WAYS),
            help=f"{', '.join(WAYS)} (default: all)",
        ),
    ] = None,
    version: Version = False,
) -> int:
    """Kill a small sweep again and again and check what it leaves.

    exit codes: 0 all invariants hold, 1 one does not, 2 the file is invalid
    """
    options = ChaosOptions(
        file=file,
        overrides=tuple(overrides or ()),
        runs=runs,
        deaths=deaths,
        seed=seed,
        launchers=tuple(launcher or LAUNCHERS),
        trackers=tuple(tracker or TRACKERS),
        ways=tuple(way or WAYS),
    )
    return disturb_sweep(options)


main = Program("chaos", chaos, examples=("tiny.yaml --runs 5 --launcher inline",))


def disturb_sweep(options: ChaosOptions) -> int:
    """Run a sweep undisturbed, then all rounds, and print in how many each invariant held; return
    the exit code.
    """
    try:
        name = load(options.file, options.overrides).name
    except ConfigError as error:
        print(error, file=sys.stderr)
        return INVALID

    seed = options.seed if options.seed is not None else time.time_ns() % 2**32
    folder = Path(tempfile.mkdtemp(prefix="pointsweep-chaos-"))
    subject = Subject(name, (options.file, *options.overrides), folder, seed)
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"  # its thread must not be forked
    # a database to copy: making one takes seconds
    steps_by_run(f"sqlite:///{folder}/empty.db", name)

    if command(subject, UNDISTURBED) != 0:
        print(
            f"the undisturbed sweep does not end well: {folder}/undisturbed/log",
            file=sys.stderr,
        )
        return INVALID

    writes = len((folder / "undisturbed" / "ledger").read_text().splitlines())
    rounds = choose(options, seed, writes)
    print(f"{name}: {writes} writes, {len(rounds)} rounds, seed {seed}", flush=True)
    # the server and the line to it end too
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))
    held: Outcomes = defaultdict(lambda: defaultdict(list))
    needs_server = any(each.tracker == "server" for each in rounds)

    try:
        with tracker(subject, needs_server) as tracked:
            disturb_all(tracked, rounds, held)
    finally:
        print(matrix(held), flush=True)  # interrupted, that of the rounds so far

    for row in held.values():
        if not all(map(all, row.values())):
            print(f"the stores are kept in {folder}")
            return 1

    shutil.rmtree(folder)
    return 0


@contextmanager
def tracker(subject: Subject, needed: bool) -> Iterator[Subject]:
    """The subject with its MLflow server, if any round needs one."""
    if not needed:
        yield subject
        return

    chance = random.Random(subject.seed)
    # The line is a process of its own: this one forks, and must not have threads.
    with (
        server(subject.folder / "mlflow", subject.folder / "empty.db") as port,
        Line(port, CUT, chance=chance).apart() as line,
    ):
        yield replace(subject, server=f"http://127.0.0.1:{port}", line=line)


def disturb_all(subject: Subject, rounds: Sequence[Round], held: Outcomes) -> None:
    """Run the rounds, say what breaks, and enter into `held` what held."""
    for this_round in rounds:
        begun = time.monotonic()
        problems = disturb(subject, this_round)
        for invariant, problem in problems.items():
            for name in columns(this_round):
                held[invariant][name].append(not problem)

            if problem:
                print(f"BROKEN {invariant}: {this_round}: {problem}", flush=True)

        if not any(problems.values()):
            print(f"held: {this_round} ({time.monotonic() - begun:.0f} s)", flush=True)


def choose(options: ChaosOptions, seed: int, writes: int) -> list[Round]:
    """The rounds: every write in every way, in a random order, cut or repeated to the number asked
    for.
    """
    random_numbers = random.Random(seed)
    points = list(itertools.product(range(1, writes + 1), options.ways))
    random_numbers.shuffle(points)
    launchers, trackers = options.launchers, options.trackers
    rounds = []

    for index in range(options.runs or len(points)):
        number, way = points[index % len(points)]
        later_writes = []
        for _ in range(random_numbers.randint(0, options.deaths - 1)):
            later_writes.append(random_numbers.randint(number + 1, number + writes))

        deaths = {write: random_numbers.choice(faults.WAYS) for write in later_writes}
        deaths[number] = "after" if way == "flip" else way
        if way in WITHOUT_DEATHS:
            deaths = {}

        this_round = Round(
            number=index + 1,
            launcher=launchers[index % len(launchers)],
            way=way,
            deaths=deaths,
            tracker=trackers[index // len(launchers) % len(trackers)],
        )

        rounds.append(this_round)

    return rounds


def disturb(subject: Subject, this_round: Round) -> dict[str, str]:
    """Run one round; map every invariant to what is wrong with it, "" if it holds."""
    chance = random.Random(f"{subject.seed} {this_round.number}")
    folder = subject.folder / this_round.name
    killers = []

    if this_round.way == "kill":
        latest_s = KILLED_S[this_round.launcher]
        killers = [Killer(chance.uniform(0, latest_s), chance) for _ in range(2)]

    code = -1
    flipped = this_round.way != "flip"
    for _ in range(len(this_round.deaths) + len(killers) + 3):
        code = command(subject, this_round, killers.pop() if killers else None)
        if code == 0:
            break

        flipped = flipped or flip(subject.store(this_round.name), chance)

    log = folder / "log"
    if code != 0:
        return {"the sweep ends well": f"exit code {code}, see {log}"}

    problems = {"the sweep ends well": ""}
    result = folder / "found.json"

    def write_comparison() -> int:
        result.write_text(json.dumps(compare(subject, this_round)))
        return 0

    if processes.forked(write_comparison, log, {}) == 0:
        problems |= json.loads(result.read_text())
    else:
        problems["the outcome can be compared"] = f"see {log}"

    if not any(problems.values()):
        shutil.rmtree(folder)

    return problems


def command(subject: Subject, this_round: Round, killer: Killer | None = None) -> int:
    """Give the sweep's command once; return its exit code, that of a signal negative."""
    store = subject.store(this_round.name)
    if not store.exists():
        store.mkdir(parents=True)
        shutil.copy(subject.folder / "empty.db", store / "mlflow.db")

    uri = subject.line if this_round.tracker == "server" else subject.uri(this_round)
    line = [*subject.arguments, "--store", str(store), "--tracking-uri", uri]
    start = processes.inline if this_round.launcher == "inline" else processes.on_ray
    start_process = functools.partial(
        start, line, store.parent, this_round.deaths, killer
    )

    if this_round.way == "two":
        return processes.at_once(start_process, start_process)

    return start_process()


def flip(store: Path, chance: random.Random) -> bool:
    """Flips a bit in the checkpoint or the history of an unfinished trial; False if there is none
    yet.
    """
    files = []
    for folder in sorted((store / "trials").glob("*")):
        if (folder / "record.json").exists():
            continue

        for name in ("checkpoint.safetensors", "history.jsonl"):
            if (folder / name).exists():
                files.append(folder / name)

    if not files:
        return False

    path = chance.choice(files)
    data = bytearray(path.read_bytes())
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    path.write_bytes(bytes(data))

    return True


def compare(subject: Subject, finished: Round) -> dict[str, str]:
    """Every invariant of a finished round, with what is wrong with it."""
    expected = observe(subject, UNDISTURBED.name)
    observed = observe(subject, finished.name)
    problems = {}

    for name in expected:
        problems[name] = "; ".join(differences(expected[name], observed[name]))

    store = subject.store(finished.name)
    if finished.tracker == "server":  # the line may have been too bad to the end
        sync.mirror_sweep(FileStore(store), subject.name, subject.server)

    runs = steps_by_run(subject.uri(finished), subject.name)
    num_runs = Counter(key for key, _ in runs)
    numbers = []

    for key in expected["records"]:
        if num_runs[key] != 1:
            numbers.append(f"{key} has {num_runs[key]}")

    problems["one MLflow run a trial"] = "; ".join(numbers)

    mirrored = {key: sorted(epochs) for key, epochs in runs}
    trained = {}

    for key, epochs in expected["epochs, each once"].items():
        trained[key] = [epoch for epoch, _ in epochs]

    problems["MLflow has each epoch once"] = "; ".join(differences(trained, mirrored))

    if finished.way == "two":
        begun_twice = []
        for path in store.glob("trials/*"):
            if TrialFolder(path).attempts() > 1:
                begun_twice.append(path.name)

        problems["no trial is begun twice"] = ", ".join(begun_twice)

    if finished.tracker == "server":
        # the next round's begins empty
        rename(subject.server, subject.name, f"{subject.name} {finished.name}")

    return problems


def observe(subject: Subject, name: str) -> dict[str, dict[str, Any]]:
    """Return what a finished sweep has left, by invariant: as it must be whatever has happened."""
    store = subject.store(name)
    records = {}
    weights = {}
    predictions: dict[str, dict[str, Any]] = {}
    epochs = {}

    for path in sorted((store / "trials").iterdir()):
        key = path.name
        folder = TrialFolder(path)
        record = json.loads((path / "record.json").read_text())
        records[key] = {name: record[name] for name in SAME}
        weights[key] = (path / "weights.safetensors").read_bytes()
        epochs[key] = _epochs(folder)
        predictions[key] = {}

        for protocol, values in folder.predictions().items():
            predictions[key][protocol] = values.tolist()

    files = (store / "sweeps" / subject.name).glob("table.*")
    return {
        "records": records,
        "weights": weights,
        "predictions": predictions,
        "epochs, each once": epochs,
        "table, byte for byte": {path.name: path.read_bytes() for path in files},
    }


def _epochs(folder: TrialFolder) -> list[tuple[int, dict[str, float]]]:
    epochs = []  # as they stand in the file, doubles too
    for event in folder.events():
        if event["type"] == "epoch":
            epochs.append((event["epoch"], event["metrics"]))

    return epochs


def differences(expected: Mapping[str, Any], observed: Mapping[str, Any]) -> list[str]:
    """Return the names under which two mappings differ, each with how."""
    differing = []
    for name in sorted(expected.keys() | observed.keys()):
        if name not in observed:
            differing.append(f"{name} missing")
        elif name not in expected:
            differing.append(f"{name} too many")
        elif expected[name] != observed[name]:
            differing.append(f"{name} differs")

    return differing


def columns(this_round: Round) -> tuple[str, str]:
    """The columns of the matrix that a round is counted in."""
    return f"{this_round.launcher} {this_round.way}", f"MLflow: {this_round.tracker}"


def matrix(held: Mapping[str, Mapping[str, Sequence[bool]]]) -> str:
    """Return what a round was, by invariant: in how many of the rounds that ended each held."""
    kinds: set[str] = set()
    kinds.update(*held.values())
    ordered = sorted(kinds, key=lambda name: (name.startswith("MLflow"), name))
    width = max(map(len, ordered), default=0)
    lines = []
    heading = " " * width

    for number, invariant in enumerate(held, start=1):
        lines.append(f"({number}) {invariant}")
        heading += f"{f'({number})':>9}"

    lines.append(heading)
    for kind in ordered:
        line = f"{kind:<{width}}"
        for row in held.values():
            cell = "-"
            if kind in row:
                cell = f"{sum(row[kind])}/{len(row[kind])}"

            line += f"{cell:>9}"

        lines.append(line)

    return "\n".join(lines)
