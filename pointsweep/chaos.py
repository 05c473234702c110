"""The command: python -m pointsweep.chaos FILE [OVERRIDES...] --runs N. Kills a small sweep again and again; what must hold, holds.

The sweep runs once undisturbed. Then every round runs it in a fresh store while a process dies at one or several writes: before
the write, in the middle of it, or after it, with the loss of all that was not flushed (faults.py); or a bit is flipped between two
runs. The same command is given until it ends well. Exit codes: 0 all invariants hold; 1 one does not; 2 the file is invalid.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pointsweep import faults, run, tracking, trial
from pointsweep.errors import ConfigError
from pointsweep.history import TrialFolder
from pointsweep.sweep import load

LAUNCHERS = ("inline", "ray")
WAYS = (*faults.WAYS, "flip")
LIMIT_S = 300.0  # for one command; what takes longer has hung
SAME = ("key", "config", "metrics", "parameters", "dataset", "weights_origin", "marks")  # of a record; the rest is time and place


@dataclass(frozen=True)
class Round:
    """One disturbed run: the launcher, how it is disturbed, and at which writes of all processes together a process dies."""

    number: int
    launcher: str
    way: str
    deaths: Mapping[int, str]

    def __str__(self) -> str:
        where = ", ".join(f"{way} write {number}" for number, way in sorted(self.deaths.items()))
        return f"round {self.number}, {self.launcher}: {'a bit flipped, ' if self.way == 'flip' else ''}{where}"


@dataclass(frozen=True)
class Subject:
    """The sweep that is disturbed, and the folder for its stores."""

    name: str
    arguments: tuple[str, ...]
    folder: Path
    seed: int

    def store(self, name: str) -> Path:
        return self.folder / name / "store"

    def uri(self, name: str) -> str:
        return f"sqlite:///{self.store(name)}/mlflow.db"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser("python -m pointsweep.chaos", description="Kills a small sweep again and again and checks it.")
    made.add_argument("file", help="the sweep file; seconds long, as it is run again and again")
    made.add_argument("overrides", nargs="*", help="as for pointsweep.run")
    made.add_argument("--runs", type=int, default=20, help="rounds; 0 = every write, in every way (default: 20)")
    made.add_argument("--deaths", type=int, default=2, help="at most so many in a round (default: 2)")
    made.add_argument("--seed", type=int, help="of the choice of writes (default: of the clock; it is printed)")
    made.add_argument("--launcher", action="append", choices=LAUNCHERS, help="default: both, by turns")
    made.add_argument("--way", action="append", choices=WAYS, help="default: all")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    args = parser().parse_intermixed_args(arguments)
    try:
        name = load(args.file, args.overrides).name
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    seed = args.seed if args.seed is not None else time.time_ns() % 2**32
    folder = Path(tempfile.mkdtemp(prefix="pointsweep-chaos-"))
    subject = Subject(name, (args.file, *args.overrides), folder, seed)
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"  # its thread must not be forked
    tracking.steps_by_run(f"sqlite:///{folder}/empty.db", name)  # a database to copy: making one takes seconds
    if command(subject, "undisturbed", "inline", {}) != 0:
        print(f"the undisturbed sweep does not end well: {folder}/undisturbed/log", file=sys.stderr)
        return 2
    writes = len((folder / "undisturbed" / "ledger").read_text().splitlines())
    rounds = choose(args, seed, writes)
    print(f"{name}: {writes} writes, {len(rounds)} rounds, seed {seed}", flush=True)
    held: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for each in rounds:
        for invariant, words in disturb(subject, each).items():
            held[invariant][column(each)].append(not words)
            if words:
                print(f"BROKEN {invariant}: {each}: {words}", flush=True)
    print(matrix(held))
    if not all(all(column) for row in held.values() for column in row.values()):
        print(f"the stores are kept in {folder}")
        return 1
    shutil.rmtree(folder)
    return 0


def choose(args: argparse.Namespace, seed: int, writes: int) -> list[Round]:
    """The rounds: every write in every way, in a random order, cut or repeated to the number asked for."""
    chance = random.Random(seed)
    points = [(number, way) for number in range(1, writes + 1) for way in args.way or WAYS]
    chance.shuffle(points)
    launchers = args.launcher or LAUNCHERS
    rounds = []
    for index in range(args.runs or len(points)):
        number, way = points[index % len(points)]
        more = [chance.randint(number + 1, number + writes) for _ in range(chance.randint(0, args.deaths - 1))]
        deaths = {later: chance.choice(faults.WAYS) for later in more} | {number: "after" if way == "flip" else way}
        rounds.append(Round(index + 1, launchers[index % len(launchers)], way, deaths))
    return rounds


def disturb(subject: Subject, each: Round) -> dict[str, str]:
    """Runs one round; maps every invariant to what is wrong with it, "" if it holds."""
    name = f"round{each.number}"
    chance = random.Random(f"{subject.seed} {each.number}")
    code, flipped = -1, each.way != "flip"
    for _ in range(len(each.deaths) + 3):
        code = command(subject, name, each.launcher, each.deaths)
        if code == 0:
            break
        flipped = flipped or flip(subject.store(name), chance)
    result = subject.folder / name / "found.json"
    found: dict[str, str] = {"the sweep ends well": "" if code == 0 else f"exit code {code}, see {subject.folder / name / 'log'}"}
    if code == 0:
        forked(lambda: result.write_text(json.dumps(compare(subject, name))) * 0, subject.folder / name / "log", {})
        found |= json.loads(result.read_text())
    if not any(found.values()):
        shutil.rmtree(subject.folder / name)
    return found


def command(subject: Subject, name: str, launcher: str, deaths: Mapping[int, str]) -> int:
    """Gives the sweep's command once; its exit code, that of a signal negative."""
    store = subject.store(name)
    if not store.exists():
        store.mkdir(parents=True)
        shutil.copy(subject.folder / "empty.db", store / "mlflow.db")
    folder = store.parent
    orders = {"ledger": str(folder / "ledger"), "deaths": {str(number): way for number, way in deaths.items()}}
    variables = {faults.VARIABLE: json.dumps(orders)}
    line = [*subject.arguments, "--store", str(store), "--tracking-uri", subject.uri(name)]
    if launcher == "inline":
        return forked(lambda: run.main([*line, "--inline"]), folder / "log", variables)
    with (folder / "log").open("ab") as log:
        try:
            whole = [sys.executable, "-m", "pointsweep.run", *line]
            return subprocess.run(whole, env=os.environ | variables, stdout=log, stderr=log, timeout=LIMIT_S).returncode
        except subprocess.TimeoutExpired:
            return 124


def forked(work: Callable[[], int], log: Path, variables: Mapping[str, str]) -> int:
    """The exit code of `work`, done in a copy of this process: what it needs is imported already, and it may be killed."""
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            with log.open("ab") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            sys.stdout = os.fdopen(1, "w")
            sys.stderr = os.fdopen(2, "w")
            os.environ.update(variables)
            code = work()
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    return 124


def flip(store: Path, chance: random.Random) -> bool:
    """Flips a bit in the checkpoint or the history of an unfinished trial; False if there is none yet."""
    folders = [path for path in (store / "trials").glob("*") if not (path / "record.json").exists()]
    files = sorted(
        path for folder in folders for path in folder.glob("*") if path.name in ("checkpoint.safetensors", "history.jsonl")
    )
    if not files:
        return False
    path = chance.choice(files)
    data = bytearray(path.read_bytes())
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    path.write_bytes(bytes(data))
    return True


def compare(subject: Subject, name: str) -> dict[str, str]:
    """Every invariant of a finished round, with what is wrong with it."""
    wanted, found = observe(subject, "undisturbed"), observe(subject, name)
    texts = {what: "; ".join(differences(wanted[what], found[what])) for what in wanted}
    runs = tracking.steps_by_run(subject.uri(name), subject.name)
    keys = [key for key, _ in runs]
    once = {key: sorted(epochs) for key, epochs in runs}
    texts["one MLflow run a trial"] = "; ".join(f"{key} has {keys.count(key)}" for key in wanted["records"] if keys.count(key) != 1)
    told = {key: [epoch for epoch, _ in epochs] for key, epochs in wanted["epochs, each once"].items()}
    texts["MLflow has each epoch once"] = "; ".join(differences(told, once))
    return texts


def observe(subject: Subject, name: str) -> dict[str, dict[str, Any]]:
    """What a finished sweep has left, by invariant: as it must be whatever has happened."""
    store = subject.store(name)
    folders = {path.name: TrialFolder(path) for path in sorted((store / "trials").iterdir())}
    records = {key: json.loads((folder.path / "record.json").read_text()) for key, folder in folders.items()}
    return {
        "records": {key: {part: record[part] for part in SAME} for key, record in records.items()},
        "weights": {key: (folder.path / "weights.safetensors").read_bytes() for key, folder in folders.items()},
        "predictions": {key: {p: v.tolist() for p, v in folder.predictions().items()} for key, folder in folders.items()},
        "epochs, each once": {key: _epochs(folder) for key, folder in folders.items()},
        "table, byte for byte": {path.name: path.read_bytes() for path in (store / "sweeps" / subject.name).glob("table.*")},
    }


def _epochs(folder: TrialFolder) -> list[tuple[int, dict[str, float]]]:
    # As they stand in the file, doubles too.
    return [(event["epoch"], event["metrics"]) for event in folder.events() if event["type"] == "epoch"]


def differences(wanted: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """The names under which two mappings differ."""
    names = sorted(set(wanted) | set(found))
    words = {name: "missing" if name not in found else "too many" if name not in wanted else "differs" for name in names}
    return [f"{name} {word}" for name, word in words.items() if word != "differs" or wanted[name] != found[name]]


def column(each: Round) -> str:
    """The column of the matrix that a round is counted in."""
    return f"{each.launcher} {each.way}"


def matrix(held: Mapping[str, Mapping[str, Sequence[bool]]]) -> str:
    """Invariants by launcher and way: in how many of the rounds that ended each held."""
    columns = sorted({name for row in held.values() for name in row})
    width = max(map(len, held), default=0)
    lines = [" " * width + "".join(f"{name:>15}" for name in columns)]
    for invariant, row in held.items():
        cells = [f"{sum(row[name])}/{len(row[name])}" if name in row else "-" for name in columns]
        lines.append(f"{invariant:<{width}}" + "".join(f"{cell:>15}" for cell in cells))
    return "\n".join(lines)


if __name__ == "__main__":
    assert trial  # imported before the first fork, as torch is with it
    sys.exit(main())
