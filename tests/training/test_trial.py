"""A trial from its seed to its record, and from a checkpoint to the same record."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from pointsweep.config import registry
from pointsweep.config.schema import TrialConfig
from pointsweep.config.validation import trial_from_dict
from pointsweep.models.point_model import build, load_trained_state, trained_state
from pointsweep.results.trial_dir import TrialFolder
from pointsweep.statistics.paired_objects import unpacked
from pointsweep.storage.base import FileStore
from pointsweep.tracking.target import TrialTags
from pointsweep.training.loop import evaluate, make_optimizer, stream, train_epoch
from pointsweep.training.runner import Job, Task, Trial, load_dataset, run_pack

TAGS = TrialTags("s", "r", "c", 0)


class Killed(BaseException):
    """Ends a trial as a kill would: nothing after it runs."""


def config(method: str | dict = "lora", modality: str = "1d", **changes) -> TrialConfig:
    return trial_from_dict({
        "dataset": {"name": "synthetic", "num_points": 64, "presample": 64, "train_limit": 40, "test_limit": 20, "val_fraction": 0.2},
        "tokenizer": {"name": "patch" if modality == "3d" else "point_pn_light", "num_tokens": 6, "neighbours": 6},
        "backbone": {"name": "tiny", "modality": modality, "attention_dropout": 0.1, "drop_path": 0.1},
        "method": method,
        "train": {"epochs": 4, "batch_size": 8, "warmup_epochs": 1, "lr": 2e-3},
        "seed": 3,
    } | changes)  # fmt: skip


def run(trial: TrialConfig, folder: TrialFolder, stop_after: int | None = None) -> None:
    def report(result):
        if result["epoch"] == stop_after:
            raise Killed

    with pytest.raises(Killed) if stop_after else contextlib.nullcontext():
        Trial(trial, folder, torch.device("cpu"), report, lambda: None).run()


def outcome(folder: TrialFolder) -> tuple:
    record = folder.record()
    assert record is not None
    weights = {name: value.tobytes() for name, value in load_file(folder.path / "weights.safetensors").items()}
    epochs = [(event["epoch"], event["metrics"], event["lr"]) for event in folder.epochs()]
    return weights, record.metrics, {k: v.tobytes() for k, v in folder.predictions().items()}, epochs


def test_a_trial_that_a_search_let_wait_goes_on_with_the_same_bits(tmp_path):
    """Halted twice, as at two rungs, then let go on to its end."""
    run(config(), TrialFolder(tmp_path / "whole"))
    store, trial = FileStore(tmp_path / "store"), config()
    folder = TrialFolder(store.path(f"trials/{trial.key()}"))
    for halt in (1, 3):
        jobs = [Job(store.url, limits={trial.key(): {halt: 2.0}})] * 2  # asked again for an open batch it stays where it is
        assert [run_pack([Task(trial, TAGS)], job, lambda result: None)[0].status for job in jobs] == ["stopped"] * 2
        assert folder.stopped() == halt == len(folder.epochs())
    assert run_pack([Task(trial, TAGS)], Job(store.url), lambda result: None)[0].status == "finished"
    assert folder.stopped() is None and outcome(folder) == outcome(TrialFolder(tmp_path / "whole"))


def test_the_load_of_the_machine_stands_in_the_history_and_not_in_the_record(tmp_path):
    folder = TrialFolder(tmp_path / "trial")
    run(config(), folder)
    names = {"cpu_utilization_percentage", "system_memory_usage_megabytes", "system_memory_usage_percentage"}
    assert [set(event["system"]) for event in folder.epochs()] == [names] * 4
    assert not any(name in (folder.path / "record.json").read_text() for name in ("utilization", "memory_usage"))


METHODS = [(name, registry.config_class("methods", name).modalities[0]) for name in registry.names("methods")]


@pytest.mark.parametrize(("method", "modality"), METHODS)
def test_a_resumed_trial_gives_the_same_bits_as_an_undisturbed_one(tmp_path, method, modality):
    run(config(method, modality), TrialFolder(tmp_path / "whole"))
    for stop in (1, 3):
        path = tmp_path / f"cut{stop}"
        run(config(method, modality), TrialFolder(path), stop_after=stop)
        assert TrialFolder(path).record() is None
        run(config(method, modality), TrialFolder(path))
        assert outcome(TrialFolder(path)) == outcome(TrialFolder(tmp_path / "whole"))
        assert TrialFolder(path).attempts() == 2


@pytest.mark.parametrize(
    "backbone",
    [
        {"name": "transformers", "model_type": "gpt2", "sizes": ["n_embd=32", "n_layer=2", "n_head=4"]},
        {"name": "timm", "model": "eva02_tiny_patch14_224", "image_size": 56, "sizes": ["depth=2", "embed_dim=32", "num_heads=4"]},
    ],
    ids=["gpt2", "eva02"],
)
def test_a_resumed_trial_over_a_model_by_name_gives_the_same_bits_as_an_undisturbed_one(tmp_path, backbone):
    """The libraries' own dropout, whose noise no trial can set back, is off."""
    given = registry.config_class("backbones", backbone["name"]).model_validate(backbone | {"weights": "random"})
    one = config("any2point", "1d").replace(backbone=given)
    run(one, TrialFolder(tmp_path / "whole"))
    run(one, TrialFolder(tmp_path / "cut"), stop_after=2)
    run(one, TrialFolder(tmp_path / "cut"))
    assert outcome(TrialFolder(tmp_path / "cut")) == outcome(TrialFolder(tmp_path / "whole"))
    assert "sha256" not in TrialFolder(tmp_path / "cut").record().weights_origin


def test_another_seed_gives_other_numbers(tmp_path):
    for seed in (0, 1):
        run(config(seed=seed), TrialFolder(tmp_path / str(seed)))
    assert outcome(TrialFolder(tmp_path / "0"))[3] != outcome(TrialFolder(tmp_path / "1"))[3]


def test_protocols_select_the_epoch_they_say(tmp_path):
    folder = TrialFolder(tmp_path / "t")
    run(config(), folder)
    record, epochs = folder.record(), folder.epochs()
    assert record is not None
    for protocol, metric in (("best_test", "test/accuracy"), ("best_val", "val/accuracy")):
        values = [event["metrics"][metric] for event in epochs]
        assert record.metrics[protocol]["epoch"] == 1 + values.index(max(values))
    assert record.metrics["last"]["epoch"] == 4
    assert set(folder.predictions()) == {"last", "best_test", "best_val"}


def test_predictions_are_those_of_the_recorded_accuracy(tmp_path):
    folder, trial = TrialFolder(tmp_path / "t"), config()
    run(trial, folder)
    record = folder.record()
    assert record is not None
    data = registry.load("datasets", "synthetic")(trial.dataset)
    labels, names = folder.truth()
    assert (labels.tolist(), names) == (data.test.labels.tolist(), data.class_names)
    for protocol, predicted in folder.predictions().items():
        assert np.mean(predicted == labels) == record.metrics[protocol]["test/accuracy"]


def test_a_trial_that_raises_leaves_the_rest_of_its_pack_alone(tmp_path):
    store = FileStore(tmp_path)
    bad = config(train={"epochs": 3, "batch_size": 8, "lr": 1e30, "warmup_epochs": 0})
    outcomes = run_pack([Task(bad, TAGS), Task(config(), TAGS)], Job(store.url), lambda result: None)
    assert [o.status for o in outcomes] == ["failed", "finished"]
    assert outcomes[0].reason.startswith("DivergedError: the training loss of epoch")
    folder = TrialFolder(store.path(f"trials/{bad.key()}"))
    assert folder.failure() == outcomes[0].reason
    assert "Traceback" in folder.events()[-1]["trace"]


def test_a_finished_trial_is_not_trained_again(tmp_path):
    store, trial = FileStore(tmp_path), config()
    reports: list[dict] = []
    task = Task(trial, TAGS)
    for _ in range(2):
        assert run_pack([task], Job(store.url), reports.append)[0].status == "finished"
    assert [r["epoch"] for r in reports] == [1, 2, 3, 4]


def test_random_weights_and_synthetic_data_are_marked(tmp_path):
    folder = TrialFolder(tmp_path / "t")
    run(config(), folder)
    record = folder.record()
    assert record is not None
    assert record.marks == ("random frozen weights", "synthetic data")
    assert record.weights_origin == "random, seed 0"


def test_too_few_clouds_for_a_batch_are_refused(tmp_path):
    with pytest.raises(ValueError, match="its 30 training clouds are fewer than train.batch_size 64"):
        Trial(config(train={"batch_size": 64}), TrialFolder(tmp_path), torch.device("cpu"), lambda r: None, lambda: None).run()


def test_the_weights_of_a_finished_trial_load_back_and_predict_the_same(tmp_path):
    folder = TrialFolder(tmp_path / "trial")
    trial = config("lora")
    run(trial, folder)
    dataset = load_dataset(trial.dataset)
    torch.manual_seed(12345)  # whatever the trained weights start from
    model = build(trial, dataset.num_classes)
    weights = {name: torch.from_numpy(value) for name, value in load_file(folder.path / "weights.safetensors").items()}
    load_trained_state(model, weights)
    assert all(torch.equal(value, weights[name]) for name, value in trained_state(model).items())
    found = evaluate(model, dataset, dataset.test, trial)
    assert found.predictions.tobytes() == folder.predictions()["last"].tobytes()


def test_a_result_does_not_depend_on_batch_size_order_or_threads(data_root):
    """Real clouds through a frozen language model: what is predicted of a cloud is its own."""
    trial = config(
        {"name": "any2point", "voxel_size": 0.2},
        dataset={
            "name": "modelnet40",
            "folder": "modelnet40_mini/modelnet40_ply_hdf5_2048",
            "num_points": 128,
            "presample": 160,
            "test_limit": 45,
        },
        backbone={"name": "tiny", "modality": "2d"},
        tokenizer={"name": "point_pn_light", "num_tokens": 8, "neighbours": 8, "normalisation": "mn40"},
    )
    dataset = load_dataset(trial.dataset)
    torch.manual_seed(0)
    model = build(trial, dataset.num_classes)
    train_epoch(model, make_optimizer(model, trial.train), dataset, trial.replace(dataset=trial.dataset.replace(train_limit=80)), 2)
    expected = evaluate(model, dataset, dataset.test, trial)
    for size in (1, 7, 45):
        for order in ("by_class", "shuffled"):
            changed = trial.replace(train=trial.train.replace(eval_batch_size=size), dataset=trial.dataset.replace(test_order=order))
            torch.set_num_threads(1 + size % 2)
            found = evaluate(model, load_dataset(changed.dataset), load_dataset(changed.dataset).test, changed)
            assert found.predictions.tobytes() == expected.predictions.tobytes(), (size, order)
            assert found.loss == pytest.approx(expected.loss, rel=1e-5)


def test_votes_are_the_mean_over_augmented_copies(tmp_path):
    trial = config("head_only")
    dataset = load_dataset(trial.dataset)
    torch.manual_seed(0)
    model = build(trial, dataset.num_classes).eval()
    voted = evaluate(model, dataset, dataset.test, trial.replace(train=trial.train.replace(votes=3)))
    points, labels = dataset.eval_batch(dataset.test, np.arange(20))
    generator = torch.Generator().manual_seed(stream(trial.seed, "vote", 0))
    copies = [points, dataset.augmented(points, generator), dataset.augmented(points, generator)]
    with torch.no_grad():
        chances = torch.stack([model(copy).softmax(dim=1) for copy in copies]).mean(dim=0)
    assert voted.predictions.tolist() == chances.argmax(dim=1).tolist()
    assert voted.loss == pytest.approx(float(torch.nn.functional.nll_loss(chances.log(), labels)), rel=1e-5)


def test_the_record_says_which_objects_were_right(tmp_path):
    folder = TrialFolder(tmp_path)
    run(config(), folder)
    record, labels = folder.record(), folder.truth()[0]
    assert set(record.correct) == set(record.metrics)
    for protocol, text in record.correct.items():
        right = unpacked(text, record.dataset["num_test"])
        assert (right == (folder.predictions()[protocol] == labels)).all()
        assert right.mean() == pytest.approx(record.metrics[protocol]["test/accuracy"])
