"""Every class of failure gets what its policy says, seen in the history and in the final list."""

from __future__ import annotations

import errno
import json
import math
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
import yaml
from torch import nn

from pointsweep.config.parts import TrainConfig
from pointsweep.config.schema import with_seed
from pointsweep.config.validation import trial_from_dict
from pointsweep.errors import ConfigError, MissingDataError, Problem, StoreError, StoreUnavailableError
from pointsweep.execution import ray_tune as launch
from pointsweep.execution.inline import InlineLauncher
from pointsweep.execution.launchers import Resources
from pointsweep.results.events import read_failure_kind
from pointsweep.results.failures import POLICIES, DataError, DivergedError, HungError, classify
from pointsweep.results.trial_dir import TrialFolder
from pointsweep.storage.base import FileStore
from pointsweep.tracking.target import TrialTags
from pointsweep.training import runner as trial
from pointsweep.training import supervisor as guard
from pointsweep.training.loop import accumulate
from pointsweep.training.runner import Job, Task, run_pack
from tests.training.test_trial import config, outcome

TAGS = TrialTags("s", "r", "c", 0)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (MemoryError(), "out_of_memory"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "out_of_memory"),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory"), "out_of_memory"),
        (DivergedError("the training loss of epoch 1 is nan"), "diverged"),
        (MissingDataError("no folder"), "data"),
        (DataError("cloud 3 holds a coordinate that is not finite"), "data"),
        (OSError(errno.EIO, "Input/output error"), "data"),
        (StoreUnavailableError("the store cannot be written"), "store"),
        (OSError(errno.ENOSPC, "No space left on device"), "store"),
        (RuntimeError("value cannot be converted to type float without overflow"), "diverged"),
        (ConfigError("sweep.yaml", [Problem("method", "unknown method 'x'")]), "config"),
        (StoreError("store: no folder"), "store"),
        (HungError("no progress"), "hang"),
        (TypeError("forward() got an unexpected argument"), "bug"),
        (ZeroDivisionError(), "bug"),
    ],
)
def test_every_error_has_a_class(error, kind):
    assert classify(error) == kind
    assert kind in POLICIES


class Plain(nn.Module):
    """No batch statistics, no noise."""

    def __init__(self, normalised: bool = False) -> None:
        super().__init__()
        norm = nn.BatchNorm1d(8) if normalised else nn.LayerNorm(8)
        self.layers = nn.Sequential(nn.Linear(3, 8), norm, nn.ReLU(), nn.Linear(8, 5))

    def forward(self, points: torch.Tensor) -> torch.Tensor:
        return self.layers(points.mean(dim=1))


def gradients(parts: int, normalised: bool = False) -> tuple[torch.Tensor, torch.Tensor, int]:
    torch.manual_seed(0)
    model = Plain(normalised).double()
    points, labels = torch.randn(10, 4, 3, dtype=torch.float64), torch.randint(0, 5, (10,))
    loss, hits = accumulate(model, [points], labels, TrainConfig(label_smoothing=0.1), parts)
    return torch.cat([p.grad.flatten() for p in model.parameters()]), loss, int(hits)


@pytest.mark.parametrize("parts", [2, 3, 4, 5])
def test_a_batch_in_parts_has_the_gradient_of_the_whole(parts):
    """Parts of unequal size too: 10 clouds in 3 or 4."""
    whole, split = gradients(1), gradients(parts)
    assert torch.allclose(whole[0], split[0], rtol=1e-6, atol=1e-8)
    assert torch.allclose(whole[1], split[1], rtol=1e-6)
    assert whole[2] == split[2]


def test_batch_statistics_are_those_of_a_part():
    """The caveat that the record states is real."""
    assert not torch.allclose(gradients(1, True)[0], gradients(2, True)[0], rtol=1e-3)


NETWORK = {"name": "pointnet"}


@pytest.mark.parametrize(("arm", "lr"), [("adapter", 1e10), ("lora", 1e39), ("pointnet", 1e36)])
def test_numbers_that_are_not_finite_are_diverged_for_each_seed(tmp_path, arm, lr):
    """One epoch: its training loss may be finite while that of the evaluation after it is not."""
    train = {"epochs": 1, "batch_size": 8, "warmup_epochs": 0, "lr": lr}
    made = config(train=train) if arm == "pointnet" else config(arm, train=train)
    if arm == "pointnet":
        plain = {"dataset": made.to_dict()["dataset"], "network": NETWORK, "train": train, "seed": 3}
        made = trial_from_dict(plain)
    tasks = [Task(with_seed(made, seed), TAGS) for seed in (0, 1)]
    ended = InlineLauncher().run([[task] for task in tasks], Job(str(tmp_path)), Resources(), lambda event: None)
    assert [(o.status, o.kind) for o in ended] == [("failed", "diverged")] * 2
    assert not any("not started" in o.reason for o in ended)
    if arm != "lora":
        return
    packed = run_pack(tasks, Job(str(tmp_path / "pack")), lambda result: None)
    assert [(o.status, o.kind) for o in packed] == [("failed", "diverged")] * 2


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["train/loss", "test/loss", "val/loss", "val/class_miou"])
def test_any_metric_that_is_not_finite_is_diverged_by_its_name(name, value):
    good = {"train/loss": 1.0, "test/loss": 1.0, "val/loss": 2.0, "val/accuracy": 0.5}
    trial.require_finite(good, Plain(), 3)
    with pytest.raises(DivergedError, match=f"{name} of epoch 3 is {value}"):
        trial.require_finite({**good, name: value}, Plain(), 3)


@pytest.mark.parametrize("name", ["layers.0.weight", "layers.1.running_var", "layers.3.bias"])
def test_a_weight_or_statistic_that_is_not_finite_is_diverged_by_its_name(name):
    """A variance that is infinite gives finite outputs."""
    model = Plain(normalised=True)
    assert trial.not_finite_weight(model) == ""
    model.state_dict()[name].view(-1)[1] = math.inf
    with pytest.raises(DivergedError, match=f"{name} is not finite after epoch 2"):
        trial.require_finite({"test/loss": 1.0}, model, 2)


def test_what_a_library_raises_over_broken_weights_is_diverged_and_over_good_ones_a_bug(tmp_path, monkeypatch):
    whole = trial.train_epoch

    def train_epoch(model, *rest):
        if broken:
            next(p for p in model.parameters() if p.requires_grad).data.fill_(math.nan)
        whole(model, *rest)
        raise ValueError("the input holds NaN")

    monkeypatch.setattr(trial, "train_epoch", train_epoch)
    kinds = []
    for broken in (True, False):
        job = Job(str(tmp_path / str(broken)))
        kinds.append(run_pack([Task(config(), TAGS)], job, lambda result: None)[0].kind)
    assert kinds == ["diverged", "bug"]


def test_fewer_clouds_than_a_batch_are_a_matter_of_the_data(tmp_path):
    train = {"epochs": 1, "batch_size": 64, "warmup_epochs": 0}
    ended = run_pack([Task(config(train=train), TAGS)], Job(str(tmp_path)), lambda result: None)[0]
    assert ended.kind == "data"
    assert "30 training clouds are fewer than train.batch_size 64" in ended.reason


def folder_of(store: FileStore, trial_config) -> TrialFolder:
    return TrialFolder(store.path(f"trials/{trial_config.key()}"))


def failing(monkeypatch, raises) -> None:
    """`raises(config, epoch, parts)` may raise before an epoch is trained."""
    whole = trial.train_epoch

    def train_epoch(model, optimizer, dataset, trial_config, epoch, parts, group):
        raises(trial_config, epoch, parts)
        return whole(model, optimizer, dataset, trial_config, epoch, parts, group)

    monkeypatch.setattr(trial, "train_epoch", train_epoch)


def test_after_out_of_memory_the_batch_is_halved_until_it_fits_and_the_record_says_so(tmp_path, monkeypatch):
    def raises(trial_config, epoch, parts):
        if epoch == 2 and parts < 4:
            raise torch.OutOfMemoryError("CUDA out of memory")

    failing(monkeypatch, raises)
    store = FileStore(tmp_path)
    assert run_pack([Task(config(), TAGS)], Job(store.url), lambda result: None)[0].status == "finished"
    folder = folder_of(store, config())
    failures = [(event["class"], event["retried"]) for event in folder.events() if event["type"] == "failed"]
    assert failures == [("out_of_memory", True)] * 2
    record = folder.record()
    assert record is not None
    assert "batches of 8 in 4 parts (out of memory), batch statistics over 2" in record.marks
    assert [event["epoch"] for event in folder.epochs()] == [1, 2, 3, 4]


def test_memory_that_never_suffices_is_given_up_at_two_clouds(tmp_path, monkeypatch):
    def raises(trial_config, epoch, parts):
        raise MemoryError

    failing(monkeypatch, raises)
    ended = run_pack([Task(config(), TAGS)], Job(str(tmp_path)), lambda result: None)[0]
    assert (ended.status, ended.kind) == ("failed", "out_of_memory")
    assert folder_of(FileStore(tmp_path), config()).parts() == 4


def test_data_are_read_once_more_and_then_given_up(tmp_path, monkeypatch):
    calls = []

    def raises(trial_config, epoch, parts):
        calls.append(epoch)
        raise OSError(errno.EIO, "Input/output error")

    failing(monkeypatch, raises)
    ended = run_pack([Task(config(), TAGS)], Job(str(tmp_path)), lambda result: None)[0]
    assert (ended.status, ended.kind, len(calls)) == ("failed", "data", 2)
    assert read_failure_kind(FileStore(tmp_path), config().key()) == "data"


def test_after_a_bug_the_arms_other_seeds_are_not_started_and_other_arms_are(tmp_path, monkeypatch):
    started = []

    def raises(trial_config, epoch, parts):
        started.append((trial_config.method.name, trial_config.seed))
        if trial_config.method.name == "lora":
            raise TypeError("unexpected argument")

    failing(monkeypatch, raises)
    configs = [config(seed=0), config(seed=1), config("head_only", seed=0)]
    job = Job(str(tmp_path))
    ended = InlineLauncher().run([[Task(each, TAGS)] for each in configs], job, Resources(), lambda event: None)
    assert [(o.status, o.kind) for o in ended] == [("failed", "bug"), ("failed", "bug"), ("finished", "")]
    assert ended[1].reason == f"not started: its arm failed with a bug in trial {configs[0].key()}"
    assert ("lora", 1) not in started
    # The next launch tries again.
    monkeypatch.undo()
    again = InlineLauncher().run([[Task(each, TAGS)] for each in configs], Job(str(tmp_path)), Resources(), lambda event: None)
    assert [o.status for o in again] == ["finished"] * 3


def test_the_folds_of_a_few_shot_arm_are_its_seeds_and_fixed_folds_are_columns(tmp_path, monkeypatch):
    """What would load the data fails: the arm's other folds are not started, those of another column are."""
    started = []

    def load(dataset):
        started.append(dataset.fold)
        raise TypeError("unexpected argument")

    monkeypatch.setattr(trial, "load_dataset", load)
    few_shot = config(dataset={"name": "modelnet40_fewshot", "num_points": 64, "presample": 64, "fold": None})
    tasks = [Task(with_seed(few_shot, seed), TAGS) for seed in (0, 1, 2)] + [
        Task(with_seed(few_shot, 5), replace(TAGS, column="fold 5"))
    ]
    ended = InlineLauncher().run([[task] for task in tasks], Job(str(tmp_path)), Resources(), lambda event: None)
    assert started == [0, 5]
    assert [outcome.reason.startswith("not started") for outcome in ended] == [False, True, True, False]
    assert {outcome.kind for outcome in ended} == {"bug"}


def test_a_hang_is_interrupted_with_its_stacks_and_tried_again(tmp_path, monkeypatch):
    hung = []

    def raises(trial_config, epoch, parts):
        if epoch == 3 and not hung:
            hung.append(epoch)
            time.sleep(60)

    monkeypatch.setenv("POINTSWEEP_HANG_S", "5")
    monkeypatch.setattr(guard, "HANG_FACTOR", 1)
    failing(monkeypatch, raises)
    ended = run_pack([Task(config(), TAGS)], Job(str(tmp_path)), lambda result: None)[0]
    assert ended.status == "finished"
    folder = folder_of(FileStore(tmp_path), config())
    assert [event["class"] for event in folder.events() if event["type"] == "failed"] == ["hang"]
    assert "in raises" in (folder.path / "stacks.txt").read_text()


def test_a_trial_that_hangs_again_and_again_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setenv("POINTSWEEP_HANG_S", "0.3")
    monkeypatch.setattr(guard, "FIRST_EPOCH_S", 0.3)
    failing(monkeypatch, lambda *_: time.sleep(60))
    ended = run_pack([Task(config(), TAGS)], Job(str(tmp_path)), lambda result: None)[0]
    assert (ended.status, ended.kind) == ("failed", "hang")
    kinds = [event["class"] for event in folder_of(FileStore(tmp_path), config()).events() if event["type"] == "failed"]
    assert kinds == ["hang"] * (1 + POLICIES["hang"].retries)


def test_an_attempt_that_ended_without_a_word_is_counted_as_lost(tmp_path):
    job = Job(str(tmp_path))
    folder = folder_of(FileStore(tmp_path), config())
    folder.launch = job.launch
    folder.start(config={}, dataset={}, origin={})
    assert run_pack([Task(config(), TAGS)], job, lambda result: None)[0].status == "finished"
    assert [event["class"] for event in folder.events() if event["type"] == "failed"] == ["lost_node"]


def test_what_a_launch_has_given_up_is_not_begun_again_when_its_pack_is(tmp_path, monkeypatch):
    failing(monkeypatch, lambda *_: (_ for _ in ()).throw(DivergedError("nan")))
    job = Job(str(tmp_path))
    first, second = (run_pack([Task(config(), TAGS)], job, lambda result: None)[0] for _ in range(2))
    assert first == second
    assert first.kind == "diverged"
    assert folder_of(FileStore(tmp_path), config()).attempts() == 1


def test_a_full_disk_and_a_read_only_folder_are_clear_and_leave_the_others_alone(tmp_path, monkeypatch):
    """The folder of the first trial is a file; of the second the record cannot be written."""
    store, (blocked, full, well) = FileStore(tmp_path), (config(seed=seed) for seed in (0, 1, 2))
    store.write(f"trials/{blocked.key()}", b"in the way")
    orders = {"ledger": str(tmp_path / "ledger"), "deaths": {f"{full.key()}/record.json": "full"}}
    monkeypatch.setenv("POINTSWEEP_CHAOS", json.dumps(orders))
    ended = run_pack([Task(each, TAGS) for each in (blocked, full, well)], Job(store.url), lambda result: None)
    assert [(o.status, o.kind) for o in ended] == [("failed", "store"), ("failed", "store"), ("finished", "")]
    assert "File exists" in ended[0].reason
    assert ended[1].reason.startswith("the store cannot be written: No space left on device: ")
    assert read_failure_kind(store, full.key()) == "store"
    assert not list(store.path(f"trials/{full.key()}").glob(".*.tmp"))
    monkeypatch.delenv("POINTSWEEP_CHAOS")
    alone = FileStore(tmp_path / "alone")
    assert run_pack([Task(full, TAGS)], Job(store.url), lambda result: None)[0].status == "finished"
    assert run_pack([Task(full, TAGS)], Job(alone.url), lambda result: None)[0].status == "finished"
    assert outcome(folder_of(store, full)) == outcome(folder_of(alone, full))


RARELY = """
import os, signal, sys
from pointsweep.results import trial_dir as history; from pointsweep.cli import run; from pointsweep.training import runner as trial
history.CHECKPOINT_SHARE, history.HOLD_SHARE = 1e-9, 1e9
whole = trial.train_epoch
def train_epoch(model, optimizer, dataset, config, epoch, parts, group):
    if epoch == 4:
        os.kill(os.getpid(), signal.SIGTERM)
    return whole(model, optimizer, dataset, config, epoch, parts, group)
trial.train_epoch = train_epoch
sys.exit(run.main(sys.argv[1:]))
"""


@pytest.mark.parametrize("pack", [1, 2])
def test_a_sweep_that_is_told_to_end_keeps_the_epochs_since_the_last_checkpoint(tmp_path, pack):
    """Checkpoints are due at the first and the last epoch only, copies in memory at every one; SIGTERM comes in the fourth."""
    sweep = tmp_path / "told.yaml"
    base = {
        name: value for name, value in config().to_dict().items() if value is not None and name in ("dataset", "tokenizer", "train")
    }
    sweep.write_text(
        yaml.safe_dump({
            "name": "told", "base": base | {"backbone": {"name": "tiny"}}, "rows": {"method": ["lora"]}, "seeds": pack,
            "resources": {"pack": pack},
        })
    )  # fmt: skip
    line = [sys.executable, "-c", RARELY, str(sweep), "--inline", "--store", str(tmp_path / "store"), "--tracking-uri", "none"]
    ended = subprocess.run(line, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 3, ended.stdout + ended.stderr
    folders = [TrialFolder(path) for path in (tmp_path / "store" / "trials").iterdir()]
    assert [1, 2, 3] in [[event["epoch"] for event in folder.epochs()] for folder in folders]
    for folder in folders:
        assert folder.events()[-1]["class"] == "preempted"
        assert folder.resume()[1]["epoch"] == len(folder.epochs())


def test_an_exception_in_a_worker_beside_its_trials_ends_them_in_its_own_words(tmp_path):
    """The worker has other code than the command: it does not know a method. Ray would try again and call it a lost machine."""
    tasks = [Task(config(seed=seed), TAGS) for seed in (0, 1)]
    text = launch._encode(tasks).replace('"name": "lora"', '"name": "loro"')
    job = Job(str(tmp_path))
    ended = launch.run_encoded(text, job, lambda result: None)
    assert [(o.key, o.status, o.kind) for o in ended] == [(task.config.key(), "failed", "config") for task in tasks]
    assert "unknown method 'loro'. Did you mean 'lora'?" in ended[0].reason
    assert "nothing was launched" not in ended[0].reason
    folder = folder_of(FileStore(tmp_path), tasks[0].config)
    assert folder.failure() == ended[0].reason
    assert "Traceback" in folder.events()[-1]["trace"]
