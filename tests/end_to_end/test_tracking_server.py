"""MLflow on PostgreSQL at the end of a bad line, processes killed at their writes: every run once, every epoch once."""

from __future__ import annotations

import pytest

from tests.end_to_end.test_chaos import disturbed
from tests.support.postgres import MISSING, mlflow_server, postgres

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(MISSING), reason=MISSING)]


def test_deaths_change_nothing_on_a_server_with_postgresql(tmp_path):
    with postgres() as database, mlflow_server(database, tmp_path) as uri:
        # In place of the server on SQLite that chaos.py would start.
        before = f"import contextlib\nchaos.server = lambda *_: contextlib.nullcontext({uri.rpartition(':')[2]})"
        line = ["--runs", "4", "--launcher", "inline", "--tracker", "server", "--seed", "3"]
        run = disturbed(tmp_path, *line, before=before)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "MLflow: server      4/4" in run.stdout, run.stdout
