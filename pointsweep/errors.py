"""Errors a user can act on: every problem of an input at once, each with the nearest allowed
name.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """One thing wrong with an input: where it stands, what is wrong, and on which line of the file
    (1-based) if known.
    """

    path: str
    message: str
    line: int | None = None

    def __str__(self) -> str:
        where = f"{self.path} (line {self.line})" if self.line else self.path
        if where:
            return f"{where}: {self.message}"

        return self.message


class ConfigError(ValueError):
    """The input is invalid; nothing was launched. Lists every problem found, not only the first."""

    def __init__(self, source: str, problems: Sequence[Problem]) -> None:
        self.source = source
        self.problems = list(problems)
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        lines = [
            f"{source}: {count}, nothing was launched",
            *(f"  {problem}" for problem in problems),
        ]

        super().__init__("\n".join(lines))

    def __reduce__(self) -> tuple[type[ConfigError], tuple[str, list[Problem]]]:
        # An exception is made again from its arguments; those of ValueError hold the whole text
        # alone.
        return type(self), (self.source, self.problems)


class PluginError(ValueError):
    """Somebody else's component cannot be used; the message names it, its file and line, and what
    it lacks.

    `plugin` is the name of the plug-in, where it is one.
    """

    def __init__(self, message: str, plugin: str = "") -> None:
        super().__init__(message)
        self.plugin = plugin

    def __reduce__(self) -> tuple[type[PluginError], tuple[str, str]]:
        return type(self), (str(self), self.plugin)


class StoreError(ValueError):
    """A store, or something in it, that this version cannot read; the message names it."""


class NotAFileError(StoreError):
    """A folder, where the store should have a file."""


class RecordError(StoreError):
    """A record that cannot be believed: damaged, edited, of another trial, or at odds with the
    files beside it.
    """


class ComputedMetricError(StoreError):
    """A metric that stored predictions do not give; the message names the trials and what is
    missing.
    """


class NewerRecordError(StoreError):
    """A record that a later version of pointsweep wrote: it is whole, and this version cannot read
    it.
    """


class StoreUnavailableError(OSError):
    """The store's disk refuses a write: full, read-only, not allowed. The message says which file
    and why.
    """


class ResourcesError(ValueError):
    """The machines at hand cannot run the sweep: a trial would wait for ever for what they have
    not.
    """


class RayLostError(RuntimeError):
    """Ray ended while trials ran, and not because it was told to. What is done is in the store."""


class SearchFailedError(RuntimeError):
    """Every suggestion of a search failed, so it found nothing; the message says where the reasons
    are.
    """


class MissingPackageError(ValueError):
    """A package that an extra of pointsweep brings is not installed; the message says how it is."""


class MissingDataError(ValueError):
    """A data set is not at hand; the message says where it was looked for and where it is
    obtained.
    """


class MissingWeightsError(ValueError):
    """Pretrained weights are not at hand; the message names the hub id, the expected cache and the
    `weights:` key.
    """


class WeightsNotFetchedError(MissingWeightsError):
    """Pretrained weights are not at hand, and can be had: a launch gets them first."""


def unknown(what: str, found: object, allowed: Iterable[str], several: str) -> str:
    """The message for a name that is not allowed, e.g. unknown("backbone", "dino", names,
    "Known").
    """
    names = sorted(allowed)
    word = str(found)
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    near += difflib.get_close_matches(word.lower(), names, n=1, cutoff=0.5)

    if _initials(word) in names:
        near.append(_initials(word))

    hint = f" Did you mean '{near[0]}'?" if near else ""

    return f"unknown {what} '{found}'.{hint} {several}: {', '.join(names) or 'none'}"


def _initials(name: str) -> str:
    """The first letters of a name's words: lr of learning_rate."""
    return "".join(word[:1] for word in name.split("_"))


@dataclass(frozen=True)
class Finding:
    """Finding of the audit of a sweep's arms: it `refuses` the launch, or is only said."""

    refuses: bool
    text: str
