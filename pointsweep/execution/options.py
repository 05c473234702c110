"""Options of a launch, whoever asks for it: the command line or a program."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LaunchOptions:
    """Options that a launch needs beside its plans and its store."""

    # a name in execution/launchers.py; "inline": in this process, without Ray
    launcher: str = "ray"
    workers: int = 0  # trials at once; 0: as many as fit
    threads: int = 1  # CPU threads of a trial
    # default: $MLFLOW_TRACKING_URI, else sqlite in the store; "none": no MLflow
    tracking_uri: str | None = None
    notify: tuple[str, ...] = ()  # who is told at the end: URLs and commands
