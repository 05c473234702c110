"""A trial of several processes: the losses, the weights and the optimiser's state of one process, and what a lost one becomes."""

from __future__ import annotations

import re
from contextlib import contextmanager
from multiprocessing import get_context

import pytest
import torch
from torch import nn

from pointsweep.config.parts import TrainConfig
from pointsweep.config.schema import TrialConfig
from pointsweep.errors import ConfigError
from pointsweep.results.trial_dir import TrialFolder
from pointsweep.storage.base import FileStore
from pointsweep.sweep.sweep import load
from pointsweep.tracking.target import TrialTags
from pointsweep.training.data_parallel import ALONE, Group, alone, joined, meeting, synchronise
from pointsweep.training.data_parallel_worker import follow
from pointsweep.training.loop import accumulate
from pointsweep.training.runner import Job, Task, run_pack
from tests.end_to_end.test_command import SWEEP
from tests.training.test_trial import config

# Processes without the threads that this one may have; the imports are made once.
CONTEXT = get_context("forkserver")
CONTEXT.set_forkserver_preload(["pointsweep.training.data_parallel_worker"])
TAGS = TrialTags("s", "r", "c", 0)


def in_processes(size: int, work, *arguments) -> list:
    """work(group, ...) in the first process, this one, and in others; what each returns."""
    store = meeting("127.0.0.1", size)
    pipes = [CONTEXT.Pipe(duplex=False) for _ in range(1, size)]
    others = [
        CONTEXT.Process(target=_other, args=(sender, work, rank, size, store.port, arguments))
        for rank, (_, sender) in enumerate(pipes, start=1)
    ]
    for other in others:
        other.start()
    with joined(store, 0, size) as group:
        first = work(group, *arguments)
    found = [first, *(receiver.recv() for receiver, _ in pipes)]
    for other in others:
        other.join()
    return found


def _other(sender, work, rank: int, size: int, port: int, arguments) -> None:
    with joined(meeting("127.0.0.1", size, port), rank, size) as group:
        sender.send(work(group, *arguments))


def gradients(group: Group, parts: int) -> tuple[list, float, int, list]:
    """Of a batch of 10 clouds, through a batch normalisation: 3 or 4 to a process."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 7), nn.BatchNorm1d(7), nn.GELU(), nn.Linear(7, 5)).double()
    if group.size > 1:
        synchronise(model)
    points, labels = torch.randn(10, 4, 3, dtype=torch.float64), torch.randint(0, 5, (10,))
    loss, hits = accumulate(model, [points], labels, TrainConfig(label_smoothing=0.1), parts, group)
    buffers = [value.tolist() for value in model.buffers()]
    return [p.grad.flatten().tolist() for p in model.parameters()], float(loss), int(hits), buffers


@pytest.mark.parametrize("size", [2, 3])
def test_processes_have_the_gradient_and_the_batch_statistics_of_the_whole(size):
    whole = gradients(ALONE, 1)
    for found in in_processes(size, gradients, 1):
        assert found[2] == whole[2]
        for one, other in ((found[0], whole[0]), (found[1], whole[1]), (found[3], whole[3])):
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8)


NOISELESS = {"name": "tiny", "modality": "1d", "attention_dropout": 0.0, "drop_path": 0.0}


class Gathering:
    """What launch.py does on Ray, with processes of this machine."""

    def __init__(self) -> None:
        self.others: list = []

    @contextmanager
    def __call__(self, trial: TrialConfig, job: Job):
        store = meeting("127.0.0.1", job.processes)
        shared = (trial.to_dict(), job)
        self.others = [
            CONTEXT.Process(target=follow, args=(*shared, rank, job.processes, "127.0.0.1", store.port))
            for rank in range(1, job.processes)
        ]
        for other in self.others:
            other.start()
        try:
            with joined(store, 0, job.processes) as group:
                yield group
            for other in self.others:
                other.join(60)
                assert other.exitcode == 0
        finally:
            for other in self.others:
                other.kill()


def test_a_trial_of_two_processes_one_of_which_dies_has_the_losses_of_one(tmp_path):
    """Half the batch each. What remains is rounding: sums in another order, which the optimiser carries on."""
    wanted = config("full", backbone=NOISELESS, head={"dropout": 0.0})
    tasks, jobs = [Task(wanted, TAGS)], [Job(str(tmp_path / str(count)), processes=count, device="cpu") for count in (1, 2)]
    folders = [TrialFolder(FileStore(tmp_path / str(count)).path(f"trials/{wanted.key()}")) for count in (1, 2)]
    gathering, killed = Gathering(), []

    def killing(result) -> None:
        if result["epoch"] == 2 and not killed:
            killed.extend(gathering.others)
            killed[0].kill()

    assert run_pack(tasks, jobs[0], lambda result: None, alone)[0].status == "finished"
    [ended] = run_pack(tasks, jobs[1], killing, gathering)
    assert ended.status == "finished", ended.reason
    losses = [[event["metrics"]["train/loss"] for event in folder.epochs()] for folder in folders]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    [failure] = [event for event in folders[1].events() if event["type"] == "failed"]
    assert failure["class"] == "lost_node" and "another process of the trial is gone" in failure["reason"]
    assert folders[1].record().marks[-1] == "batches of 8 by 2 processes"


@pytest.mark.parametrize(
    ("resources", "change", "message"),
    [
        ("{processes: 2}", "", "2 are for what trains whole, a network or the method full; lora does not"),
        ("{processes: 0}", "", "must be at least 1, got 0"),
        ("{processes: auto}", "", "must be a whole number, got 'auto'"),
        ("{processes: 2, pack: 4}", "full", "leave pack at 1, got 4"),
        ("{gpus: 2}", "full", "a process uses one GPU: set processes to as many, got gpus 2 and processes 1"),
        ("{gpus: 1, processes: 2}", "full", "got gpus 1 and processes 2"),
        ("{gpus: auto, processes: 2}", "full", "set gpus to 2 or 0, got auto"),
        ("{processes: 9}", "full", "9 leave less than two clouds of a batch of 16 to each"),
    ],
)
def test_what_several_processes_cannot_do_is_said_before_anything_starts(tmp_path, resources, change, message):
    methods = "[full]" if change else "[lora]"
    (tmp_path / "tiny.yaml").write_text(SWEEP.replace("[lora, head_only]", methods) + f"resources: {resources}\n")
    with pytest.raises(ConfigError, match=re.escape(message)):
        load(str(tmp_path / "tiny.yaml"))
