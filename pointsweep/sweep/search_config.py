"""The keys of a sweep file's `search:` and `per_arm:` sections, with their types and defaults.

Space, constraints, objectives, sampler, scheduler and start points are open here: what is right in
one depends on another, or on the trials of the file, and is read by search_section.py.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from pointsweep.config import scalars
from pointsweep.config.base import MOST_WHOLE, Config

MOST_TRIALS = 1000  # where only hours are given


def _refused(text: str, value: Any) -> PydanticCustomError:
    shown = {"text": text, "value": scalars.shown(value)}
    return PydanticCustomError("conflict", "{text}, got {value}", shown)


def whole_from(least: int) -> Any:
    """Return the type of a whole number from `least` on."""

    def check(value: Any) -> Any:
        if type(value) is not int or not least <= value <= MOST_WHOLE:
            raise _refused(f"must be a whole number from {least} on", value)
        return value

    return BeforeValidator(check)


def _check_hours(value: Any) -> Any:
    if value is not None and (type(value) not in (int, float) or not 0 < value < math.inf):
        raise _refused("must be a number above 0", value)
    return value


def _check_address(value: Any) -> Any:
    if value is not None and (not isinstance(value, str) or "://" not in value):
        raise _refused("must be the URL of a database, e.g. postgresql://host/name", value)
    user = (value or "").partition("://")[2].rpartition("@")[0]
    if ":" in user:
        # Not repeated in the message: the file is kept in the store, and a log is read by many.
        raise PydanticCustomError(
            "conflict",
            "holds a password, and this file is kept in the store; ~/.pgpass is a place for it",
        )
    return value


# The limits are for the JSON Schema: the validators come first, with their own words.
FromZero = Annotated[int, Field(ge=0, le=MOST_WHOLE), whole_from(0)]
FromOne = Annotated[int, Field(ge=1), whole_from(1)]
Hours = Annotated[Annotated[float, Field(gt=0)] | None, BeforeValidator(_check_hours)]
Address = Annotated[Annotated[str, Field(pattern="://")] | None, BeforeValidator(_check_address)]


class StudyConfig(Config):
    """Keys of `per_arm.search`, the study that every row gets; `search` has them too."""

    space: Any = None
    """Keys of a trial and their ranges."""
    constraints: Any = None
    """Arithmetic and comparisons of keys."""
    objectives: Any = Field(default={"val/accuracy": "maximize"})
    """Several give the Pareto front."""
    sampler: Any = "tpe"
    scheduler: Any = None
    seed: FromZero = 0
    """Of the sampler."""
    batch: FromOne = 4
    """Suggestions that are made at once."""
    storage: Address = None
    """The URL of a database."""


class SearchConfig(StudyConfig):
    """Keys of `search`, a search that takes the place of a table."""

    enqueue: Any = None
    """Points to start with."""
    trials: FromOne = 20
    """Of the study; 1000 where hours: is given alone."""
    hours: Hours = None
    """Of training, after which no further batch starts."""
    use_finished: bool = True
    """Finished trials of the store are told first."""
    top: FromOne = 10
    """Rows of the table."""


class PerArmConfig(Config):
    """Keys of `per_arm`, a search for every row of a table."""

    search: Any = None
    """The study of every row."""
    trials: FromOne = 20
    """Of each study; 1000 where hours: is given alone."""
    hours: Hours = None
    """Of training for each row, after which no further batch starts."""
    then_seeds: FromOne = 3
    """Seeds that every row's winner is trained with."""
    then_on: Literal["train", "train_and_val"] = "train"
    """What the winners are trained on."""
