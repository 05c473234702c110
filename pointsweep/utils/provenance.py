"""Provenance of a result: versions, commit or digest of the shipped tree, machine. Nothing of it
changes a number.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import os
import platform
import re
import socket
import subprocess
from collections.abc import Set as AbstractSet
from pathlib import Path

PACKAGES = ("pointsweep", "torch", "numpy", "ray", "mlflow", "optuna", "peft")


def origin(device: str) -> dict[str, str]:
    """All of it for a record; `device` is what the trial ran on."""
    return {
        **_fixed(),
        "device": device,
        "host": socket.gethostname(),
        "cpus": str(os.cpu_count()),
    }


@functools.cache
def _fixed() -> dict[str, str]:
    versions = {}
    for name in PACKAGES:
        try:
            versions[f"version.{name}"] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue

    source = {"code": code_version(), "tree": tree_digest()}
    return {
        **versions,
        **source,
        "python": platform.python_version(),
        "platform": platform.platform(),
    }


def code_version() -> str:
    """The commit, with "+" if files differ from it; where there is no .git (in a Ray job), "tree"
    and the tree's digest.
    """
    root = Path(__file__).parents[2]
    try:
        commit = _git(root, "rev-parse", "HEAD")
        return commit + (
            "+" if _git(root, "status", "--porcelain", "--", "pointsweep") else ""
        )
    except (OSError, subprocess.CalledProcessError):
        return f"tree {tree_digest()}"


def _git(root: Path, *arguments: str) -> str:
    if not (root / ".git").exists():
        raise OSError("no .git beside the package")
    return subprocess.run(
        ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True
    ).stdout.strip()


def bf16_unit(flags: AbstractSet[str]) -> str:
    """Return the part of a processor that multiplies in bf16, by its flags; "" where there is none
    and bf16 is slower than fp32.
    """
    if "amx_bf16" in flags:
        return "AMX"
    if "avx512_bf16" in flags:
        return "AVX-512"

    return ""


@functools.cache
def cpu_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """Return what this machine's processor says that it can do, e.g. amx_bf16; empty where the
    system does not tell.
    """
    text = cpuinfo.read_text() if cpuinfo.is_file() else ""
    match = re.search(r"^flags\s*:(.*)$", text, re.MULTILINE)

    if match:
        return frozenset(match[1].split())

    return frozenset()


@functools.cache
def tree_digest() -> str:
    """A digest over the package's Python files, 16 hex digits."""
    folder = Path(__file__).parents[1]
    digest = hashlib.sha256()

    for path in sorted(folder.rglob("*.py")):
        digest.update(
            path.relative_to(folder).as_posix().encode()
            + b"\0"
            + path.read_bytes()
            + b"\0"
        )

    return digest.hexdigest()[:16]
