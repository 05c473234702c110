"""What a launch would do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pointsweep.planning.design_power import resolution
from pointsweep.planning.plan import make_plan, of_the_machine
from pointsweep.results.records import Record
from pointsweep.statistics.all_pairs import half_widths
from pointsweep.statistics.power import assumed_sd
from pointsweep.statistics.seeds import summary
from pointsweep.storage.base import FileStore
from pointsweep.sweep.sweep import load
from pointsweep.utils.provenance import cpu_flags

SWEEPS = Path(__file__).parents[2] / "sweeps"


@pytest.fixture
def made(tmp_path):
    return FileStore(tmp_path / "store")


def test_table_5_is_planned_without_data_or_weights_and_says_what_is_missing(made, monkeypatch, tmp_path):
    monkeypatch.delenv("POINTSWEEP_DATA", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    plan = make_plan(load(SWEEPS / "ablation_table5.yaml", only=["column=*)"]), made)
    assert plan.counts() == "0 finished, 18 to run"
    counts = [plan.parameters[trial.config.key()]["trainable_without_head"] for trial in plan.sweep.trials()[::3]]
    # No adapter; pooling without the 3D branch; the whole adapter: CLIP and DINOv2 each (spec 2.7, 2.10).
    assert counts == [279_744, 279_744, 929_880, 782_328, 948_312, 800_760]
    text = "\n".join(plan.missing)
    for part in ("data set scanobjectnn: POINTSWEEP_DATA is not set", "openai/clip-vit-large-patch14", "facebook/dinov2-base"):
        assert part in text
    assert not made.root.exists()


def test_states_are_read_from_the_store(made):
    sweep = load(SWEEPS / "smoke.yaml", ["seeds=1"])
    keys = [trial.config.key() for trial in sweep.trials()]
    counts = {"trainable": 1, "trainable_without_head": 1, "total": 1}
    made.write(f"trials/{keys[0]}/record.json", Record(keys[0], {}, {}, counts, {}, "").to_json().encode())
    made.write(f"trials/{keys[1]}/checkpoint.safetensors", b"x")
    plan = make_plan(sweep, made)
    assert plan.counts() == "1 finished, 11 to run (1 to resume)"
    assert [config.key() for config in plan.to_run] == keys[1:]
    assert plan.missing == ()


def test_every_cell_gets_its_first_seed_before_any_gets_its_second(made):
    sweep = load(SWEEPS / "smoke.yaml", ["seeds=[4,2,9]"])
    plan = make_plan(sweep, made)
    assert [config.seed for config in plan.to_run] == [4] * 12 + [2] * 12 + [9] * 12
    assert [config.key() for config in plan.to_run[:12]] == [cell.trials[0].key() for cell in sweep.cells]


# What the design resolves


SMALL = ["backbone.num_blocks=1", "tokenizer.num_tokens=16", "tokenizer.neighbours=8"]  # what it resolves depends on none of them


def resolved(made, file: str, *overrides: str, only: tuple[str, ...] = ()) -> list[str]:
    return resolution(make_plan(load(SWEEPS / file, list(overrides), only=only), made))


def test_the_plan_says_what_the_design_resolves(made):
    [said] = resolved(made, "any2point_table2.yaml", *SMALL, only=("column=*)",))
    sd = assumed_sd(summary([one / 100 for one in (79.9, 85.3, 89.1, 86.4, 89.6, 85.9, 86.3, 85.1, 91.9, 87.7)]).mean, 2882)
    assert said.startswith("with 2,882 test objects and 3 seeds a gain of 4.2 is seen with 90 % power, 1.6 is not (20 %)")
    assert "Tukey's test of all pairs of 5 rows at 5 % over the table's 2 columns and the columns themselves" in said
    assert "(assumed: accuracy 87 % as published)" in said
    for gain, power in ((0.042, 0.9), (0.016, 0.2)):
        values = np.random.default_rng(1).normal(0, sd / np.sqrt(2), (20_000, 5, 3))
        values[:, 0] += gain
        half = half_widths(values, np.array([0]), np.array([1]), 5, families=3)[:, 0]
        simulated = np.mean((values[:, 0] - values[:, 1]).mean(axis=1) > half)
        assert simulated == pytest.approx(power, abs=0.03)


def test_one_seed_resolves_models_and_no_arms(made):
    [said] = resolved(made, "quickstart.yaml", "seeds=1")
    gain, discordant = 0.073, 0.13
    needed = (1.96 * discordant**0.5 + 1.2816 * (discordant - gain**2) ** 0.5) ** 2 / gain**2  # Connor 1987, 90 % power
    assert needed == pytest.approx(250, rel=0.02)
    assert "1 seed no gain of an arm is seen, for one seed has no spread; between two trained models a gain of 7.3 is seen" in said


def test_a_single_cell_is_told_how_well_its_mean_will_be_known(made):
    [said] = resolved(made, "smoke.yaml", "seeds=3", "dataset.test_limit=200", only=("row=lora", "column=1d"))
    sd = (0.85 * 0.15 / 200) ** 0.5
    half = 4.302653 * sd / 3**0.5  # Student's t at 97.5 %, 2 degrees of freedom
    assert f"with 200 test objects and 3 seeds the mean of the only cell is known to ±{100 * half:.1f} points" in said
    assert "all pairs" not in said


def test_arms_that_are_tuned_first_resolve_by_their_winners_seeds_and_a_search_on_its_own_by_none(made, tmp_path):
    rows = "rows:\n  - {label: a, method: lora}\n  - {label: b, method: head_only}\n"
    base = "name: t\nbase: {dataset: {name: modelnet40, num_points: 64, val_fraction: 0.2}, tokenizer: point_pn_light, backbone: tiny, method: lora}\n"
    search = "search: {space: {train.lr: {float: [1.0e-4, 1.0e-2], log: true}}"
    file = tmp_path / "t.yaml"
    file.write_text(f"{base}{rows}per_arm: {{{search}}}, trials: 4, then_seeds: 7}}\n")
    sweep = load(file)
    [said] = resolution(make_plan(sweep.probe(), made), sweep.search)
    assert said.startswith("with 2,468 test objects and 7 seeds a gain of ")
    file.write_text(f"{base}{search}, trials: 4}}\n")
    sweep = load(file)
    assert resolution(make_plan(sweep.probe(), made), sweep.search) == []


def test_test_objects_are_counted_as_the_sweep_cuts_them(made):
    [said] = resolved(made, "smoke.yaml", "dataset.test_limit=40")
    assert said.startswith("with 40 test objects and 2 seeds a gain of more than 100 is seen with 90 % power")
    assert resolved(made, "quickstart.yaml")[0].startswith("with 250 test objects")


def test_finished_trials_tell_the_spread(made):
    sweep = load(SWEEPS / "any2point_table2.yaml", only=["column=*)"])
    for cell in sweep.cells:
        for seed, config in enumerate(cell.trials):
            value = 0.8 + 0.01 * cell.row + (0.004, -0.004, 0.0)[seed] * (-1) ** cell.row
            counts = {"trainable": 1, "trainable_without_head": 1, "total": 1}
            done = Record(
                config.key(),
                {},
                {"last": {"test/accuracy": value}, "best_test": {"test/accuracy": value}},
                counts,
                {"num_test": 1000},
                "",
            )
            made.write(f"trials/{config.key()}/record.json", replace(done, seconds={"total": 1.0}).to_json().encode())
    [said] = resolution(make_plan(sweep, made))
    assert said.startswith("with 1,000 test objects and 3 seeds")
    assert said.endswith("the seeds' differences have sd 0.80 (measured, 16 degrees of freedom)")


@pytest.mark.parametrize(
    ("train", "resources", "flags", "said"),
    [
        ("precision: bf16", "{}", {"avx2"}, [(False, "no bf16: slower than fp32")]),
        ("precision: bf16", "{}", {"avx512_bf16"}, [(False, "AVX-512's bf16 alone")]),
        ("precision: bf16", "{}", {"amx_bf16"}, []),
        ("precision: bf16", "{gpus: 1}", {"avx2"}, []),
        ("compile: true", "{}", {"amx_bf16"}, [(True, "needs a GPU")]),
        ("compile: true", "{gpus: auto}", set(), []),
        ("precision: fp32", "{}", set(), []),
    ],
)
def test_what_a_cpu_cannot_do_is_said_or_refused(tmp_path, train, resources, flags, said):
    (tmp_path / "s.yaml").write_text(
        "name: s\nbase: {dataset: synthetic, tokenizer: point_pn_light, backbone: tiny, method: lora, "
        f"train: {{{train}}}}}\nrows: {{method: [lora]}}\nresources: {resources}\n"
    )
    sweep = load(tmp_path / "s.yaml")
    found = list(of_the_machine(sweep, [trial.config for trial in sweep.trials()], flags))
    assert [(finding.refuses, text in finding.text) for finding, (_, text) in zip(found, said, strict=True)] == [
        (r, True) for r, _ in said
    ]


def test_a_processors_flags_are_read_where_the_system_tells_them(tmp_path):
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: X\nflags\t\t: fpu amx_bf16 amx_tile\nbugs\t\t: none\n")
    assert cpu_flags(tmp_path / "cpuinfo") == {"fpu", "amx_bf16", "amx_tile"}
    assert cpu_flags(tmp_path / "none") == set()
