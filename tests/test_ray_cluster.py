"""Ray begins to start before it is needed; on a real one: end_to_end/test_ray.py."""

from __future__ import annotations

import threading

import pytest

from pointsweep import ray_cluster
from pointsweep.run import main
from tests.end_to_end.test_command import SWEEP


@pytest.fixture
def begun(monkeypatch) -> list[str]:
    """What has been begun, in place of Ray."""
    seen: list[str] = []
    monkeypatch.setattr(ray_cluster, "begin", lambda: seen.append("ray"))
    return seen


def test_nothing_is_begun_for_a_plan_a_finished_sweep_or_one_that_lacks_its_data(store, tmp_path, begun, monkeypatch, capsys):
    sweep = tmp_path / "tiny.yaml"
    sweep.write_text(SWEEP)
    assert main([str(sweep), "--plan"]) == 0
    less = ["--only", "row=head_only", "seeds=1", "--tracking-uri", "none"]
    assert main([str(sweep), *less, "--inline"]) == 0
    assert main([str(sweep), *less]) == 0
    assert "2 finished, 0 to run" in capsys.readouterr().out
    monkeypatch.setenv("POINTSWEEP_DATA", str(tmp_path))
    assert main([str(sweep), "dataset=modelnet40"]) == 2
    assert begun == []
    assert main([str(sweep), "train.compile=true"]) == 2
    assert begun == ["ray"], "what the audit refuses is not known so early"


def test_what_goes_wrong_is_raised_where_ray_is_needed_and_tried_again_there(monkeypatch):
    answers = iter([ConnectionError("nobody there"), ConnectionError("still nobody")])
    joined = threading.Event()

    def join() -> bool:
        joined.set()
        raise next(answers)

    monkeypatch.setattr(ray_cluster, "_join", join)
    ray_cluster.begin()
    assert joined.wait(10)
    for words in ("nobody there", "still nobody"):
        with pytest.raises(ConnectionError, match=words):
            ray_cluster.connect()


def test_leaving_what_could_not_be_joined_is_nothing(monkeypatch):
    monkeypatch.setattr(ray_cluster, "_join", lambda: 1 / 0)
    ray_cluster.leave()
    ray_cluster.begin()
    ray_cluster.leave()
    ray_cluster.wait_until_left()
