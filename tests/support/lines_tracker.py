"""A second tracker, as somebody outside the package would write it: JSON lines in a folder, a file a sweep; jsonl:FOLDER."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pointsweep.results.events import epochs_of
from pointsweep.results.records import Layout, Record, from_json, layout_from_json
from pointsweep.results.trial_dir import TrialFolder
from pointsweep.results.working_copy import read_folder
from pointsweep.storage.base import Store
from pointsweep.tracking.target import NotMirroredError, Target, TrackerUnavailableError, TrialTags


class LinesTracker:
    title = "Lines"

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.folder = Path(uri.removeprefix("jsonl:"))

    def mistake(self) -> str:
        return "" if self.folder.is_absolute() else f"{self.uri}: the folder is relative; write jsonl:/PATH"

    def problem(self) -> str:
        return f"{self.folder} is a file" if self.folder.is_file() else ""

    def begin(self, store: Store, layout: Layout) -> Target:
        with self._opened(layout.name) as lines:
            lines.add("sweep", layout=layout.to_json())
        return Target(self.uri, layout.name, "", layout.name)

    def writer(self, target: Target) -> LinesWriter:
        return LinesWriter(self, target.sweep)

    def end(self, target: Target, store: Store, trials: Mapping[str, TrialTags]) -> str:
        writer = self.writer(target)
        for key, tags in trials.items():
            folder = read_folder(store, key)
            if folder.events():
                writer.send(folder, tags)
        return ""

    def publish(self, target: Target, files: Mapping[str, bytes], metrics: Mapping[str, float]) -> None:
        with self._opened(target.sweep) as lines:
            lines.add("published", files=sorted(files), metrics=dict(metrics))

    def set_aside(self, sweep: str, keys: Iterable[str]) -> None:
        with self._opened(sweep) as lines:
            lines.add("stale", keys=sorted(keys))

    def read_table(self, sweep: str) -> tuple[Layout, dict[str, Record], dict[str, str]]:
        if not (self.folder / f"{sweep}.jsonl").exists():
            raise NotMirroredError(f"{self.folder} has no sweep {sweep!r}")
        with self._opened(sweep) as lines:
            trials = lines.trials()
            layout = next(line["layout"] for line in reversed(lines.all) if line["kind"] == "sweep")
        records = {key: from_json(trial["record"]) for key, trial in trials.items() if "record" in trial}
        failures = {key: trial["reason"] for key, trial in trials.items() if trial["state"] == "failed"}
        return layout_from_json(layout), records, failures

    def is_there(self) -> bool:
        return self.folder.is_dir()

    def form(self) -> Mapping[str, object]:
        return {"version": 1}

    def lines(self, experiment: str) -> list[str]:
        return [str(self.folder / f"{experiment}.jsonl")]

    def trial_page(self, experiment: str, key: str) -> str:
        return ""

    def epochs(self, sweep: str) -> dict[str, list[int]]:
        with self._opened(sweep) as lines:
            return {key: trial["epochs"] for key, trial in lines.trials().items()}

    @contextmanager
    def _opened(self, sweep: str) -> Iterator[Lines]:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            file = (self.folder / f"{sweep}.jsonl").open("a+")
        except OSError as error:
            raise TrackerUnavailableError(f"Lines at {self.folder}: {error}") from error
        with file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            yield Lines(file)


class Lines:
    """What stands in a sweep's file, locked."""

    def __init__(self, file: Any) -> None:
        self.file = file
        self.all = [json.loads(line) for line in file]

    def add(self, kind: str, **values: Any) -> None:
        self.file.write(json.dumps({"kind": kind, **values}) + "\n")

    def trials(self) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {}
        for line in self.all:
            if line["kind"] == "stale":
                for key in line["keys"]:
                    found.pop(key, None)
            elif line["kind"] == "trial":
                trial = found.setdefault(line["key"], {"epochs": []})
                trial["epochs"] += line.pop("new")
                trial.update(line)
        return found


class LinesWriter:
    def __init__(self, tracker: LinesTracker, sweep: str) -> None:
        self.tracker, self.sweep = tracker, sweep

    def send(self, folder: TrialFolder, tags: TrialTags) -> None:
        events, record, key = folder.events(), folder.record(), folder.path.name
        with self.tracker._opened(self.sweep) as lines:
            known = lines.trials().get(key, {"epochs": [], "state": ""})
            new = [event["epoch"] for event in epochs_of(events) if event["epoch"] not in known["epochs"]]
            values: dict[str, Any] = {"state": "running", "cell": tags.cell}
            if record is not None:
                values |= {"state": "finished", "record": record.to_json()}
            elif events and events[-1]["type"] == "failed":
                values |= {"state": "failed", "reason": events[-1]["reason"]}
            if new or values["state"] != known["state"]:
                lines.add("trial", key=key, new=new, **values)
