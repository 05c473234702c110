"""Addresses of MLflow: which there can be, and what a person does about one that cannot be used."""

from __future__ import annotations

import os
import shlex
from importlib.metadata import entry_points
from pathlib import Path
from urllib.parse import urlsplit

from pointsweep.errors import unknown
from pointsweep.tracking.trackers import MLFLOW, TRACKERS
from pointsweep.utils.masking import masked
from pointsweep.utils.sqlite_files import set_aside_name, sqlite_uri

# Schemes of MLflow's tracking servers and databases; plug-ins of MLflow may add others.
SERVERS = ("http", "https", "databricks", "databricks-uc", "uc")
DATABASES = ("sqlite", "postgresql", "postgres", "mysql", "mssql")


def is_database(uri: str) -> bool:
    """Return whether MLflow itself opens the database, without a server."""
    return scheme_of(uri).partition("+")[0] in DATABASES


def scheme_of(uri: str) -> str:
    """Return the scheme of a tracking URI; "" for a path."""
    if uri in SERVERS:
        return uri

    scheme, colon, _ = uri.partition(":")
    if colon and "/" not in scheme:
        return scheme.lower()

    return ""


def target_problem(uri: str) -> str:
    """Return what is wrong with a tracking URI that cannot be written to whatever happens, and what
    to set instead.
    """
    if uri == "none":
        return ""

    scheme = scheme_of(uri)
    # MLflow's own way round
    allowed = os.environ.get("MLFLOW_ALLOW_FILE_STORE", "").lower() in ("true", "1")
    if scheme in ("", "file") and not allowed:
        path = Path(uri.removeprefix("file:").removeprefix("//") or ".").absolute()
        return (
            f"MLflow at {uri}: this is a plain folder, which MLflow 3 does not write to any more;"
            f" set MLFLOW_TRACKING_URI or --tracking-uri to {sqlite_uri(path / 'mlflow.db')}, or to"
            " a server's address"
        )

    return ""


def uri_mistake(uri: str) -> str:
    """Return why a tracking URI can name no MLflow at all, "" if it can."""
    if uri == "none":
        return ""

    scheme = scheme_of(uri)
    if scheme in ("http", "https") and not _host(uri):
        return (
            f"the tracking URI {masked(uri)} names no host; write {scheme}://HOST:PORT"
        )

    known_schemes = [*SERVERS, *DATABASES]
    dialect = scheme.partition("+")[0]  # of SQLAlchemy, before the name of its driver
    if scheme in ("", "file") or dialect in known_schemes or scheme in _plugins():
        return ""

    schemes = known_schemes + [name for name in TRACKERS if name != MLFLOW]
    return (
        f"the tracking URI {masked(uri)}: {unknown('scheme', scheme, schemes, 'Known')}"
    )


def _host(uri: str) -> str:
    try:
        parts = urlsplit(uri)
        port = parts.port  # raises for what is no number
    except ValueError:
        return ""

    if port == 0:
        return ""

    return parts.hostname or ""


def _plugins() -> set[str]:
    return {point.name for point in entry_points(group="mlflow.tracking_store")}


def way_back(path: Path, problem: str) -> str:
    """Return what a person does about a database of MLflow that cannot be used."""
    if "locked" in problem:
        return "end that process, or wait"

    if any(word in problem for word in ("damaged", "folder", "not a file", "a link")):
        aside = shlex.quote(str(set_aside_name(path)))
        return f"all it holds is in the store; move it away: mv {shlex.quote(str(path))} {aside}"

    return "give this user the right to write it"
