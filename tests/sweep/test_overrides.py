"""What the command line sets in a file: every key, at any depth, and what is said of a key that is none."""

from __future__ import annotations

import copy

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pointsweep.sweep import overrides
from pointsweep.sweep.sweep import load
from tests.support.sweep_files import problems

BASE = """
name: t
base:
  dataset: {name: synthetic, val_fraction: 0.25}
  tokenizer: {name: point_pn_light, num_tokens: 8, neighbours: 8}
  backbone: {name: tiny, modality: 1d}
  method: {name: lora, rank: 4}
"""
TABLE = """
rows: [{label: a, train.epochs: 3}, {label: b, method: {name: prompt, num_prompts: 3}}]
seeds: 1
resources: {cpus: 1, budget: {hours: 40}}
settings: [{when: {method: lora}, train.lr: 1e-3}]
exclude: [{when: {method: adapter}, because: no}]
profiles: {small: {train.batch_size: 2}}
"""
SEARCH = """
search:
  space:
    method: [lora, prompt]
    train.lr: {float: [1e-4, 1e-2]}
    method.rank: {int: [2, 8], when: {method: lora}}
  sampler: tpe
  trials: 20
"""


def test_a_budget_is_set_where_there_is_one_and_where_there_is_none(write):
    assert load(write(TABLE), ["resources.budget.hours=80"]).resources.budget.hours == 80
    without = write(TABLE.replace(", budget: {hours: 40}", ""))
    assert load(without, ["resources.budget.hours=80"]).resources.budget.hours == 80
    no_section = write(TABLE.replace("resources: {cpus: 1, budget: {hours: 40}}\n", ""))
    money = load(no_section, ["resources.budget.money=100", "resources.budget.per_hour=2.5"]).resources
    assert (money.budget.money, money.budget.per_hour, money.cpus) == (100, 2.5, 1)


def test_a_deeper_key_leaves_its_neighbours_alone(write):
    made = load(write(TABLE), ["resources.budget.per_hour=2"]).resources
    assert (made.cpus, made.budget.hours, made.budget.per_hour) == (1, 40, 2)


def test_a_key_is_taken_out_at_any_depth(write):
    assert load(write(TABLE), ["~resources.budget.hours"]).resources.budget.hours is None
    space = load(write(SEARCH), ["~search.space.method.rank", "~search.space.method"]).search.space
    assert [parameter.key for parameter in space] == ["train.lr"]


def test_settings_keep_their_dots(write):
    sweep = load(write(TABLE), ["rows.0.train.epochs=5", "settings.0.train.lr=2e-3", "base.method.rank=8"])
    assert (sweep.cells[0].trials[0].train.epochs, sweep.cells[0].trials[0].train.lr) == (5, 2e-3)
    assert sweep.cells[0].trials[0].method.rank == 8
    assert load(write(TABLE), ["rows.1.label=c", "rows.1.method.num_prompts=7"]).cells[1].trials[0].method.num_prompts == 7


def test_a_profile_is_changed(write):
    assert load(write(TABLE), ["profile=small", "profiles.small.train.batch_size=7"]).cells[1].trials[0].train.batch_size == 7
    assert load(write(TABLE), ["profile=other", "profiles.other.train.batch_size=7"]).cells[1].trials[0].train.batch_size == 7
    assert load(write(TABLE), ["profile=small", "profiles.small.only=[b]"]).rows == (("b",),)


def test_every_key_of_a_search_is_set(write):
    texts = [
        "search.trials=7",
        "search.sampler.multivariate=true",
        "search.space.train.lr.log=true",
        "search.space.train.weight_decay.float=[0, 0.1]",
        "search.space.train.weight_decay.step=0.02",
        "search.space.method.rank.when.method=lora",
        "search.objectives.parameters=minimize",
        "search.objectives={val/accuracy: maximize, parameters: minimize}",
        "search.scheduler=null",
        "search.enqueue=[{method: lora}]",
        "search.enqueue.0.method.rank=4",
    ]
    search = load(write(SEARCH), texts).search
    space = {parameter.key: parameter for parameter in search.space}
    assert search.trials == 7
    assert (search.sampler, search.options) == ("tpe", {"multivariate": True})
    assert (space["train.lr"].low, space["train.lr"].log) == (1e-4, True)
    assert (space["train.weight_decay"].high, space["train.weight_decay"].step) == (0.1, 0.02)
    assert search.enqueue == ({"method": "lora", "method.rank": 4},)


def test_a_search_of_every_arm_is_set(write):
    text = (
        "rows: {method: [lora, prompt]}\nper_arm: {search: {space: {train.lr: {float: [1e-4, 1e-2]}}, sampler: random}, trials: 20}\n"
    )
    search = load(
        write(text), ["per_arm.then_seeds=4", "per_arm.search.space.train.lr.float=[1e-3,1e-2]", "per_arm.search.batch=2"]
    ).search
    assert (search.then_seeds, search.space[0].low, search.batch, search.trials) == (4, 1e-3, 2, 20)


def test_seeds_become_a_rule_key_by_key(write):
    sweep = load(write(TABLE), ["seeds.min=2", "seeds.max=5", "seeds.until=decided"])
    assert (sweep.adaptive.least, sweep.adaptive.most) == (2, 5)
    assert [config.seed for config in load(write(TABLE), ["seeds=[0,1]"]).cells[0].trials] == [0, 1]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("resources.budgt.hours=80", "resources.budgt: resources has no field 'budgt'. Did you mean 'budget'?"),
        ("resources.budget.hour=80", "resources.budget.hour: budget has no field 'hour'. Did you mean 'hours'?"),
        ("resources.cpus.x=1", "resources.cpus.x=1: resources.cpus is 1, which has no keys"),
        ("reources.budget.hours=80", "unknown key 'reources'. Did you mean 'resources'?"),
        ("~resources.budget.hour", "unknown key 'hour'. Did you mean 'hours'? There are: hours"),
        ("rows.2.label=c", "rows is a list of 2: its entries are named by number, from 0 to 1, not 2"),
        ("rows.a.label=c", "rows is a list of 2: its entries are named by number"),
        ("rows.0.trian.lr=1", "rows[0].trian: unknown key 'trian'. Did you mean 'train'?"),
        ("profiles.small.trian.lr=1", "trian"),
        ("published.papr=Any2Point", "published.papr: unknown column of published.csv 'papr'. Did you mean 'paper'?"),
        ("base.from=other.yaml", "what a file inherits from is read before overrides"),
        ("seed=3", "unknown key 'seed'. Did you mean 'seeds'?"),
        ("train@x.lr=3", "a sweep file has no packages"),
    ],
)  # fmt: skip
def test_an_unknown_key_is_refused_with_the_nearest_name(write, override, message):
    overridden = ["profile=small", override] if override.startswith("profiles") else [override]
    assert message in problems(write(TABLE), overridden)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("search.trails=3", "search.trails: unknown key 'trails'. Did you mean 'trials'?"),
        ("search.space.train.lr.lgo=true", "search.space.train.lr.lgo: unknown key 'lgo'. Did you mean 'log'?"),
        ("search.space.trian.lr=[1,2]", "unknown key 'trian'. Did you mean 'train'?"),
        ("search.sampler.multivariat=true", "unknown option of tpe 'multivariat'. Did you mean 'multivariate'?"),
    ],
)
def test_an_unknown_key_of_a_search_is_refused_with_the_nearest_name(write, override, message):
    assert message in problems(write(SEARCH), [override])


keys = st.sampled_from(["a", "b", "train", "train.lr", "method.rank", "space", "sampler", "log"])
data = st.recursive(
    st.sampled_from([1, None, "tpe"]),
    lambda inner: st.one_of(st.lists(inner, min_size=1, max_size=3), st.dictionaries(keys, inner, max_size=4)),
    max_leaves=10,
)


def leaves(node, path=()):
    if isinstance(node, dict | list) and node:
        for name, inner in node.items() if isinstance(node, dict) else enumerate(node):
            yield from leaves(inner, (*path, name))
    elif path:
        yield path


@given(st.dictionaries(keys, data, min_size=1, max_size=4))
def test_a_key_that_is_there_is_set_and_nothing_else(tree):
    for path in leaves(tree):
        changed = copy.deepcopy(tree)
        dotted = ".".join(map(str, path))
        taken = overrides.assign(changed, dotted, "new")
        if taken != path:
            continue  # two ways to write the key are there, nested and dotted
        expected = copy.deepcopy(tree)
        node = expected
        for name in path[:-1]:
            node = node[name]
        node[path[-1]] = "new"
        assert yaml.safe_dump(changed) == yaml.safe_dump(expected)
