"""Who waits at a rung, who goes on, and what the sampler hears of it; whole or cut off anywhere."""

from __future__ import annotations

import math
from collections import defaultdict

import pytest

from pointsweep.hpo.batching import Batches
from pointsweep.hpo.pruners import bracket_of
from pointsweep.hpo.study import Study
from pointsweep.sweep.sweep import load

EPOCHS = 9
ASHA = "{name: asha, reduction: 2, min_epochs: 1}"
HYPERBAND = ASHA.replace("asha", "hyperband")
FILE = """
name: t
base:
  dataset: {name: synthetic, val_fraction: 0.25}
  tokenizer: {name: point_pn_light, num_tokens: 8, neighbours: 8}
  backbone: {name: tiny, modality: 1d}
  method: lora
  train: {epochs: 9, warmup_epochs: 0}
search:
  space: {train.lr: {float: [1e-4, 1e-2], log: true}, train.weight_decay: {float: [0.0, 0.1]}}
  sampler: SAMPLER
  scheduler: SCHEDULER
  trials: TRIALS
  batch: BATCH
"""


@pytest.fixture
def study(tmp_path):
    def made(sampler: str = "random", scheduler: str = ASHA, batch: int = 1, trials: int = 24, name: str | None = None) -> Study:
        text = (
            FILE.replace("SAMPLER", sampler)
            .replace("SCHEDULER", scheduler)
            .replace("BATCH", str(batch))
            .replace("TRIALS", str(trials))
        )
        (tmp_path / "t.yaml").write_text(text)
        sweep = load(tmp_path / "t.yaml")
        return Study(f"sqlite:///{tmp_path}/{name}.db" if name else None, "t", sweep.cells[0].arm, sweep.search)

    return made


def curve(drawn: dict) -> dict[int, float]:
    """Whoever learns slowly ends higher, so that the best of the end are not those of the first rung."""
    best = 1 - abs(math.log10(drawn["train.lr"]) + 2.5) / 2
    slow = 40 * drawn["train.weight_decay"]
    return {epoch: (best + slow / 8) * (1 - math.exp(-epoch / (1 + slow))) for epoch in range(1, EPOCHS + 1)}


def train(study: Study, batches: Batches) -> dict[int, dict[int, float]]:
    """Trains a batch and tells it: number -> what was seen of it by now; nothing once the search is over."""
    seen = {}
    for item in batches.ask():
        whole, limits = curve(item.drawn), batches.limits(item)
        end = next((epoch for epoch in range(1, EPOCHS) if whole[epoch] < limits.get(epoch, 0)), EPOCHS)
        seen[item.number] = {epoch: value for epoch, value in whole.items() if epoch <= end}
    finished = {number: (each[EPOCHS],) if EPOCHS in each else None for number, each in seen.items()}
    if seen:
        study.tell(finished, seen, [number for number, values in finished.items() if values is None])
    return seen


def search(study: Study) -> list[list[tuple[int, int]]]:
    """A whole search, or the rest of one: of every batch the numbers of its suggestions and the epochs to which they came."""
    study.start([])
    batches, trace = Batches(study), []
    while seen := train(study, batches):
        trace.append([(number, max(each)) for number, each in seen.items()])
    study.close()
    return trace


@pytest.mark.parametrize("scheduler", [ASHA, HYPERBAND])
def test_who_waits_goes_on_as_in_algorithm_2(study, scheduler):
    """get_job of arXiv 1810.05934: from the highest rung down, who is among its best floor(n / eta) and was not promoted; else new.

    But at least the best one of each.
    """
    made = study(scheduler=scheduler)
    reduction = made.search.schedule["reduction"]
    trace = search(made)
    values = {item.number: curve(item.drawn) for item in made.suggestions()}
    bracket = {number: bracket_of(number, made.search, EPOCHS) for number in values}
    ends: dict[int, int] = {}
    again = 0
    for ((number, end),) in trace:
        rungs = defaultdict(list)
        for other, there in ends.items():
            for rung in (reduction**k for k in range(bracket[other], 4) if reduction**k <= min(there, EPOCHS - 1)):
                rungs[rung, bracket[other]].append(other)
        jobs = defaultdict(set)
        for (rung, _), members in rungs.items():
            best = sorted(members, key=lambda other: (-values[other][rung], other))[: max(1, len(members) // reduction)]
            jobs[rung] |= {other for other in best if ends[other] == rung}
        waiting = [members for _, members in sorted(jobs.items(), reverse=True) if members]
        assert number in waiting[0] if waiting else number not in ends
        assert end > ends.get(number, 0)
        again += number in ends
        ends[number] = end
    assert len(ends) == 24 and again >= 2
    states = {item.number: item.state for item in made.suggestions()}
    assert states == {number: "complete" if end == EPOCHS else "stopped" for number, end in ends.items()}


@pytest.mark.parametrize(("sampler", "batch"), [("tpe", 2)])
def test_a_search_that_ends_anywhere_lets_the_same_go_on(study, sampler, batch):
    """Cut off after any few writes to the log, which a new process then reads."""

    def told(each: Study) -> list:
        return [(t.params, t.values, t.state, t.intermediate_values, t.user_attrs) for t in each.log.trials]

    whole = study(sampler, ASHA, batch, 20, "whole")
    search(whole)
    assert any("promoted" in trial.user_attrs for trial in whole.log.trials)

    class End(Exception):
        pass

    def ends(write, left):
        def counted(*args, **options):
            if not left[0]:
                raise End
            left[0] -= 1
            return write(*args, **options)

        return counted

    for round_ in range(2000):
        cut = study(sampler, ASHA, batch, 20, "cut")
        storage, left = cut.log._storage, [17 + round_ % 7]
        for name in ("create_new_trial", "set_trial_user_attr", "set_trial_intermediate_value", "set_trial_state_values"):
            setattr(storage, name, ends(getattr(storage, name), left))
        try:
            search(cut)
            break
        except End:
            continue
    assert round_ > 5 and told(cut) == told(whole)


def test_the_sampler_hears_of_all_trials_at_the_highest_rung_that_ten_have_reached(study):
    """Section 3.3 of BOHB, arXiv 1807.01774; and of what ran to its end, once ten did."""
    made = study("tpe", batch=2, trials=60)
    made.start([])
    batches, seen = Batches(made), set()
    while train(made, batches):
        items = made.suggestions()
        at = {epoch: [item.number for item in items if epoch in item.curve] for epoch in (1, 2, 4, 8, EPOCHS)}
        epoch = max((epoch for epoch, there in at.items() if len(there) >= 10), default=1)
        seen.add(epoch)
        heard = [trial.value for trial in made.live.get_trials(deepcopy=False)]
        assert heard == [item.curve.get(epoch) for item in items]
    assert len(seen) >= 3
