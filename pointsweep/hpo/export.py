"""Export of a search to sweeps/<name>/search.json, from which the report draws it without the
study's database.
"""

from __future__ import annotations

import json
from typing import Any

from pointsweep.hpo.study import Study
from pointsweep.hpo.suggestion import Suggestion
from pointsweep.storage.base import Store
from pointsweep.sweep.sweep import Sweep


def write_searched(sweep: Sweep, studies: dict[str, Study], store: Store) -> None:
    """Write every suggestion that was told, the space it is of, and the importances. `studies`: by
    the name of their arm.
    """
    assert sweep.search is not None
    parameters = []

    for parameter in sweep.search.space:
        parameters.append(
            {
                "key": parameter.key,
                "kind": parameter.kind,
                "log": parameter.log,
                "labels": parameter.labels,
            }
        )

    data = {
        "objectives": dict(sweep.search.objectives),
        "parameters": parameters,
        "arms": [{"name": name, **_arm(study)} for name, study in studies.items()],
    }

    store.write(f"sweeps/{sweep.name}/search.json", json.dumps(data).encode())


def _arm(study: Study) -> dict[str, Any]:
    suggestions = []
    for item in study.suggestions():
        if item.state in ("complete", "stopped", "failed"):
            suggestions.append(_suggestion(item))

    return {
        "study": study.name,
        "importances": study.importances(),
        "suggestions": suggestions,
    }


def _suggestion(item: Suggestion) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "number": item.number,
        "state": item.state,
        "drawn": dict(item.drawn),
        "values": list(item.values),
        "known": item.known,
    }
    if item.curve:
        entry["curve"] = list(item.curve.items())

    if len(item.times) == 2:
        entry["times"] = list(item.times)

    return entry
