"""Export of a search to sweeps/<name>/search.json, from which the report draws it without the
study's database.
"""

from __future__ import annotations

import json
from typing import Any

from pointsweep.hpo.study import Study
from pointsweep.storage.base import Store
from pointsweep.sweep.sweep import Sweep


def write_searched(sweep: Sweep, studies: dict[str, Study], store: Store) -> None:
    """Write every suggestion that was told, the space it is of, and the importances. `studies`: by
    the name of their arm.
    """
    assert sweep.search is not None
    data = {
        "objectives": dict(sweep.search.objectives),
        "parameters": [
            {
                "key": parameter.key,
                "kind": parameter.kind,
                "log": parameter.log,
                "labels": parameter.labels,
            }
            for parameter in sweep.search.space
        ],
        "arms": [{"name": name, **_arm(study)} for name, study in studies.items()],
    }

    store.write(f"sweeps/{sweep.name}/search.json", json.dumps(data).encode())


def _arm(study: Study) -> dict[str, Any]:
    ended = []
    for item in study.suggestions():
        if item.state in ("complete", "stopped", "failed"):
            ended.append(item)

    return {
        "study": study.name,
        "importances": study.importances(),
        "suggestions": [
            {
                "number": item.number,
                "state": item.state,
                "drawn": dict(item.drawn),
                "values": list(item.values),
                "known": item.known,
            }
            | ({"curve": list(item.curve.items())} if item.curve else {})
            | ({"times": list(item.times)} if len(item.times) == 2 else {})
            for item in ended
        ],
    }
