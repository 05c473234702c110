"""The base of all configurations: frozen pydantic models with strict types, and the canonical JSON
that keys are made of.

Nothing below `pointsweep.config` imports torch, so sweeps are checked and tables are printed
without it.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Collection, Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    Strict,
    ValidationError,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

MOST_WHOLE = 2**63 - 1  # seeds and sizes are 64-bit numbers in torch and numpy


def _in_64_bits(value: int) -> int:
    if abs(value) > MOST_WHOLE:
        raise PydanticCustomError(
            "too_many_bits",
            "must be a whole number of at most {most}",
            {"most": MOST_WHOLE},
        )

    return value


def _exact_float(value: Any) -> Any:
    """Return a number as a float; -0.0 is 0.0, so that both have one key."""
    if type(value) is float:
        return value + 0.0
    if type(value) is not int:
        return value

    try:
        number = float(value)
    except OverflowError:
        number = math.inf

    if number != value and math.isfinite(number):
        text = (
            "{value} has more digits than a floating-point number keeps; "
            "the nearest is {nearest}"
        )
        raise PydanticCustomError(
            "inexact", text, {"value": value, "nearest": int(number)}
        )

    return number


# Stand behind a field's range: Annotated[int, Field(ge=2), IN_64_BITS].
IN_64_BITS = AfterValidator(_in_64_bits)
EXACT = BeforeValidator(_exact_float)

Whole = Annotated[int, IN_64_BITS]
Natural = Annotated[int, Field(ge=0), IN_64_BITS]
Count = Annotated[int, Field(ge=1), IN_64_BITS]
Real = Annotated[float, EXACT]
NonNegative = Annotated[float, Field(ge=0), EXACT]
Positive = Annotated[float, Field(gt=0), EXACT]
Share = Annotated[float, Field(ge=0, lt=1), EXACT]
# Lists of a YAML file are tuples here.
Counts = Annotated[tuple[Count, ...], Strict(False), Field(min_length=1)]
Naturals = Annotated[tuple[Natural, ...], Strict(False)]
TwoCounts = Annotated[tuple[Count, Count], Strict(False)]
TwoReals = Annotated[tuple[Real, Real], Strict(False)]
TwoPositives = Annotated[tuple[Positive, Positive], Strict(False)]

Compat = Literal["fixed", "official"]
Modality = Literal["1d", "2d", "3d"]

T = TypeVar("T")
AFTER_FIRST_KEYS = "left out of keys at its default"
# A field that came after trials had been stored: left out of the key while it has its default, so
# old keys stay.
Added = Annotated[T, AFTER_FIRST_KEYS]


class Config(BaseModel):
    """A node of a trial's configuration.

    A subclass lists its fields, with ranges in their types, and yields from `problems` what types
    cannot say.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        defer_build=True,
    )

    # Raised by one whenever the code behind this configuration starts to give other numbers for the
    # same fields: keys change.
    code_revision: ClassVar[int] = 1

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield (field, message) for values that do not go together; the field may be empty."""
        yield from ()

    @model_validator(mode="wrap")
    @classmethod
    def _check_together(
        cls, data: Any, handler: ModelWrapValidatorHandler[Self]
    ) -> Self:
        if isinstance(data, cls):
            return data  # it was checked when it was made

        config = handler(data)
        conflicts = [config._conflict(field, text) for field, text in config.problems()]
        if conflicts:
            raise ValidationError.from_exception_data(cls.__name__, conflicts)

        return config

    def _conflict(self, field: str, text: str) -> InitErrorDetails:
        return InitErrorDetails(
            type=PydanticCustomError("conflict", "{text}", {"text": text}),
            loc=tuple(field.split(".")) if field else (),
            input=getattr(self, field, None),
        )

    def replace(self, **changes: Any) -> Self:
        """Return a copy with other values of some fields, checked as any other configuration."""
        return type(self)(**(dict(self) | changes))

    def model_copy(
        self, *, update: Mapping[str, Any] | None = None, deep: bool = False
    ) -> Self:
        """Return a copy with other values, unchecked; what was computed of the old ones is
        dropped.
        """
        copied = super().model_copy(update=update, deep=deep)
        for name in ("_canonical_json", "_key"):
            vars(copied).pop(name, None)

        return copied

    @functools.cached_property
    def _canonical_json(self) -> str:
        """Sorted, compact JSON of what a key is made of. Parts that several trials share are
        written once.
        """
        return self._json_of_key()

    def _json_of_key(self) -> str:
        entries = [
            f'"{name}":{text}' for name, text in sorted(self.canonical().items())
        ]
        return "{" + ",".join(entries) + "}"

    def canonical(self) -> dict[str, str]:
        """Return what a key is made of: the JSON of every field.

        `Added` fields at their default are left out, a code revision above 1 is put in as
        `revision`.
        """
        node = {}
        for name, default in _fields_of_keys(type(self)):
            value = getattr(self, name)
            if default is _ALWAYS or value != default:
                node[name] = _json_of(value)

        if self.code_revision > 1:
            node["revision"] = json.dumps(self.code_revision)

        return node

    def to_dict(self, only: Collection[str] | None = None) -> dict[str, Any]:
        """Return plain dicts, lists and scalars; `validation.trial_from_dict` is its inverse for
        trials.

        `only`: of these fields.
        """
        return {
            name: _plain(value) for name, value in self if only is None or name in only
        }


_ALWAYS = object()


@functools.cache
def _fields_of_keys(kind: type[Config]) -> tuple[tuple[str, Any], ...]:
    """Return (field, default with which it is left out of keys) of a class."""
    fields = []
    for name, field in kind.model_fields.items():
        added = AFTER_FIRST_KEYS in field.metadata
        fields.append((name, field.default if added else _ALWAYS))

    return tuple(fields)


def canonical_json(config: Config) -> str:
    """Return sorted, compact JSON of all fields that a key is made of."""
    return config._canonical_json


def _json_of(value: Any) -> str:
    if isinstance(value, Config):
        return value._canonical_json

    if isinstance(value, float):
        value += 0.0  # -0.0 is 0.0

    if isinstance(value, tuple):
        value = [item + 0.0 if isinstance(item, float) else item for item in value]

    return json.dumps(value, separators=(",", ":"), allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, Config):
        return value.to_dict()
    return list(value) if isinstance(value, tuple) else value


class NamedConfig(Config):
    """The configuration of a registered component.

    A subclass narrows `name` to its own: it tells the classes of a kind apart, in the registry, the
    YAML file and the table. `implementation` is for a plug-in whose code is not to be imported with
    its configuration: "module:Class".
    """

    implementation: ClassVar[str] = ""

    name: str = ""
