"""MLflow on PostgreSQL, eight workers at once, processes killed at their writes: every run once, every epoch once."""

from __future__ import annotations

import pytest

from tests.end_to_end.test_chaos import SWEEP, disturbed
from tests.postgres import MISSING, mlflow_server, postgres

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(MISSING), reason=MISSING)]

# All rounds meet the same server. What a round left there is renamed, so that the next one finds nothing of it.
ON_A_SERVER = """
from pointsweep import tracking
URI, rounds, choose, disturb = {uri!r}, [], chaos.choose, chaos.disturb
def put_aside():
    client = tracking._client(URI)
    rounds.append(client.get_experiment_by_name("chaotic").experiment_id)
    client.rename_experiment(rounds[-1], f"round {{len(rounds)}}")
def chosen(*arguments):
    put_aside()
    return choose(*arguments)
def disturbed(*arguments):
    found = disturb(*arguments)
    put_aside()
    return found
chaos.Subject.uri = lambda self, name: URI
chaos.choose, chaos.disturb = chosen, disturbed
"""


def test_deaths_of_eight_workers_change_nothing(tmp_path):
    eight = SWEEP.replace("seeds: 1", "seeds: 4") + "resources: {cpus: 0.25}\n"  # on two CPUs eight at once
    with postgres() as database, mlflow_server(database, tmp_path) as uri:
        line = ["--runs", "2", "--launcher", "ray", "--launcher", "inline", "--seed", "3"]
        run = disturbed(tmp_path, *line, before=ON_A_SERVER.format(uri=uri), sweep=eight)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "MLflow has each epoch once" in run.stdout
