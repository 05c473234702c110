"""pointsweep: a YAML file that is the paper's table, and the command that fills it.

For programs and notebooks: `load`, `plan`, `run`, `read_table`, `read_records` and `open_store`,
described in api.py and in docs/python.md. They are imported when they are first used.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pointsweep.api import load, open_store, plan, read_records, read_table, run

__version__ = "0.1.0"
__all__ = [
    "__version__",
    "load",
    "open_store",
    "plan",
    "read_records",
    "read_table",
    "run",
]


def __getattr__(name: str) -> Any:
    """Import the public functions when they are asked for."""
    if name.startswith("_") or name not in __all__:
        raise AttributeError(f"module 'pointsweep' has no attribute {name!r}")

    from pointsweep import api

    return getattr(api, name)


def __dir__() -> list[str]:
    """Return the names that the module has, those that are imported later too."""
    return sorted({*globals(), *__all__})
