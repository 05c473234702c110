"""The papers' named backbones against the general way to the same network.

    python -m benchmarks.named_backbones [--names bert t5] [--rounds 9] [--blocks 2] [--quick]

The general way is `transformers` or `timm`. For each name a checkpoint of its full width with
random values is written as the library writes one, and read by both ways. Printed are:

- start, blocks, norm: the largest difference, where both get the same input, of what goes into the
  first block (positions, class token), of a block's output and of the final norm's, relative to the
  largest value; in single precision. double: the largest of the three in double precision.
- pack / alone: how far what members of a general pack train is from what each trains alone;
  pack / hand-written: how far it is from what the hand-written pack trains (adapter).
- head_only, adapter: processor seconds of a training step's forward and backward pass, general over
  hand-written: median and quartiles of the ratios of an interleaved run, and both medians.
- holds: which of the three conditions of an alias are met.

Letters: B clouds, N tokens, C channels.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from benchmarks.common import machine
from pointsweep.config import registry
from pointsweep.config.validation import trial_from_dict
from pointsweep.models.backbones.base import Backbone
from pointsweep.models.backbones.timm_import import declare_torchvision_operators
from pointsweep.models.layers import set_noise
from pointsweep.models.point_model import PointModel
from pointsweep.tracking.target import TrialTags
from pointsweep.training.runner import Job, Task, run_pack

METHODS = ("head_only", "adapter")
NOISE = 0.02  # added to every value of a checkpoint, so that no bias is zero and no norm one
EQUAL, SPEED = 1e-6, 1.05
WORDS = {"vocab_size": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
BASE_TOWER = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}
# the tower that is not taken
OTHER_TEXT = {**TOWER, **WORDS, "num_hidden_layers": 1}
OTHER_VISION = {**TOWER, "num_hidden_layers": 1, "image_size": 32, "patch_size": 16}


@dataclass(frozen=True)
class Counterpart:
    """A named backbone's network in a library: how it is built, and the fields of `backbone:` that
    are the papers' settings.
    """

    library: str
    architecture: str
    depth: str = "num_hidden_layers"  # the key of the number of blocks
    tower: str = ""
    sizes: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)


COUNTERPARTS = {
    "bert": Counterpart("transformers", "bert", sizes=WORDS),
    "minilm": Counterpart(
        "transformers",
        "bert",
        sizes={
            **WORDS,
            "hidden_size": 384,
            "num_attention_heads": 12,
            "intermediate_size": 1536,
        },
    ),
    "roberta": Counterpart(
        "transformers",
        "roberta",
        sizes={
            **WORDS,
            "pad_token_id": 1,
            "bos_token_id": 0,
            "max_position_embeddings": 514,
            "type_vocab_size": 1,
            "layer_norm_eps": 1e-5,
        },
    ),
    "clip_text": Counterpart(
        "transformers",
        "clip",
        tower="text",
        sizes={"text_config": {**BASE_TOWER, **WORDS}, "vision_config": OTHER_VISION},
        settings={"causal": False},
    ),
    "clip_vision": Counterpart(
        "transformers",
        "clip",
        tower="vision",
        sizes={
            "text_config": OTHER_TEXT,
            "vision_config": {**BASE_TOWER, "image_size": 224, "patch_size": 16},
        },
    ),
    "t5": Counterpart(
        "transformers",
        "t5",
        depth="num_layers",
        sizes={
            "d_model": 768,
            "d_kv": 64,
            "d_ff": 3072,
            "num_heads": 12,
            "vocab_size": 64,
        },
    ),
    "dinov2": Counterpart(
        "transformers",
        "dinov2",
        sizes={"image_size": 518, "patch_size": 14},
        settings={"cell": 26.0},
    ),
    "deit": Counterpart("timm", "deit_base_patch16_224"),
    "vit_in21k": Counterpart("timm", "vit_base_patch16_224"),
}


def write_checkpoint(counterpart: Counterpart, blocks: int, folder: Path) -> None:
    """Write a model of the library with random values, of at least the two blocks by which the
    general way finds what a layer is. A folder of timm's says no number, so it has all of them.
    """
    declare_torchvision_operators()
    torch.manual_seed(0)
    blocks = max(blocks, 2)

    if counterpart.library == "timm":
        import timm

        model = timm.create_model(counterpart.architecture)
    else:
        from transformers import AutoConfig, AutoModel

        sizes = dict(counterpart.sizes)
        if counterpart.tower:
            key = f"{counterpart.tower}_config"
            sizes[key] = {**sizes[key], counterpart.depth: blocks}
        else:
            sizes[counterpart.depth] = blocks

        model = AutoModel.from_config(
            AutoConfig.for_model(counterpart.architecture, **sizes)
        )

    with torch.no_grad():
        for parameter in model.parameters():
            parameter += NOISE * torch.randn_like(parameter)

    if counterpart.library == "timm":
        state = {
            name: tensor.contiguous() for name, tensor in model.state_dict().items()
        }
        save_file(state, folder / "model.safetensors")
        (folder / "config.json").write_text(
            json.dumps({"architecture": counterpart.architecture})
        )
    else:
        model.save_pretrained(folder)


def both_ways(name: str, blocks: int, folder: Path) -> dict[str, dict[str, Any]]:
    """Return `backbone:` of the hand-written way and of the general one."""
    counterpart = COUNTERPARTS[name]
    general = {
        "name": counterpart.library,
        "model": str(folder),
        **counterpart.settings,
    }

    if counterpart.tower:
        general["tower"] = counterpart.tower

    return {
        "hand-written": {
            "name": name,
            "weights": str(folder / "model.safetensors"),
            "num_blocks": blocks,
        },
        "general": {**general, "num_blocks": blocks},
    }


def load(fields: dict[str, Any]) -> Backbone:
    config = registry.config_class("backbones", fields["name"]).model_validate(fields)
    backbone: Backbone = registry.load("backbones", fields["name"])(config)
    backbone.load()
    return backbone.requires_grad_(False).eval()


def relative(theirs: Tensor, ours: Tensor) -> float:
    """The largest difference, of the largest value."""
    return float((ours - theirs).abs().max() / theirs.abs().max())


@torch.no_grad()
def differences(
    first: Backbone, second: Backbone, tokens: int = 48
) -> tuple[float, float, float]:
    """The largest relative differences of what goes into the first block, of a block's output, and
    of the final norm's, where both get the same input.
    """
    assert first.plane == second.plane, (first.plane, second.plane)
    assert first.plane is not None
    generator = torch.Generator().manual_seed(1)
    kind = first.blocks[0].norms()[0]
    dtype = getattr(*kind).weight.dtype
    stream = torch.randn(2, tokens, first.dim, generator=generator).to(dtype)
    last = torch.tensor(
        [first.plane.width - 1.0, first.plane.height - 1.0], dtype=dtype
    )
    size = (2, 3, tokens) if first.plane.height == 1 else (2, 3, tokens, 2)
    places = torch.rand(size, generator=generator, dtype=dtype) * (
        last[0] if first.plane.height == 1 else last
    )
    centers = torch.zeros(2, tokens, 3, dtype=dtype)
    begun = []

    for backbone in (first, second):
        encodings = backbone.positions(places)
        placed = stream if encodings is None else stream + encodings.mean(dim=1)
        begun.append(backbone.start(placed))

    at_start = relative(*begun)
    if first.cls_token is not None or second.cls_token is not None:
        assert first.cls_token is not None and second.cls_token is not None
        at_start = max(at_start, relative(first.cls_token, second.cls_token))

    # a token in front, which has no place
    stream = torch.cat(
        [torch.ones(2, 1, first.dim, dtype=dtype), begun[0]], dim=1
    )  # (B, 1 + N, C)
    in_blocks = 0.0
    for index, pair in enumerate(zip(first.blocks, second.blocks, strict=True)):
        outputs = [
            block(
                stream,
                lambda branch, _: branch,
                backbone.attention_bias(index, centers, places),
            )
            for backbone, block in zip((first, second), pair, strict=True)
        ]
        in_blocks = max(in_blocks, relative(*outputs))
        stream = outputs[0]

    return at_start, in_blocks, relative(first.norm(stream), second.norm(stream))


def trial(
    backbone: dict[str, Any], method: str, seed: int, sizes: Mapping[str, int]
) -> Any:
    points = sizes["points"]
    return trial_from_dict({
        "dataset": {"name": "synthetic", "num_points": points, "presample": points,
        "source_points": points, "train_limit": 2 * sizes["clouds"], "test_limit": 8},
        "tokenizer": {"name": "point_pn_light", "num_tokens": sizes["tokens"], "neighbours": 8},
        "backbone": backbone, "method": method, "seed": seed,
        "train": {"epochs": 1, "batch_size": sizes["clouds"], "warmup_epochs": 0, "lr": 1e-3},
    })  # fmt: skip


def trained(configs: Sequence[Any], together: bool) -> list[dict[str, np.ndarray]]:
    """What every trial trained, in one pack or each in its own."""
    with tempfile.TemporaryDirectory() as folder:
        tasks = [
            Task(config, TrialTags("benchmark", "r", "c", config.seed))
            for config in configs
        ]
        for pack in [tasks] if together else [[task] for task in tasks]:
            outcomes = run_pack(pack, Job(f"file://{folder}"), lambda result: None)
            for outcome in outcomes:
                if outcome.status != "finished":
                    raise RuntimeError(f"a trial of the benchmark ended as {outcome}")

        return [
            load_file(Path(folder, "trials", config.key(), "weights.safetensors"))
            for config in configs
        ]


def furthest(
    first: list[dict[str, np.ndarray]], second: list[dict[str, np.ndarray]]
) -> float:
    """The largest difference of the trained values that both have under one name."""
    found = 0.0
    for one, other in zip(first, second, strict=True):
        names = [name for name in one if name in other]
        if not names:
            raise RuntimeError("the trials have no trained tensor in common")

        found = max(
            found, *(float(np.abs(one[name] - other[name]).max()) for name in names)
        )

    return found


def pack_result(
    ways: dict[str, dict[str, Any]], sizes: Mapping[str, int]
) -> tuple[float, float]:
    """How far what a general pack's members train is from what they train alone, and from what a
    hand-written pack's train.
    """
    packs = {
        way: [trial(fields, "adapter", seed, sizes) for seed in range(sizes["members"])]
        for way, fields in ways.items()
    }

    packed = {way: trained(configs, together=True) for way, configs in packs.items()}
    alone = trained(packs["general"], together=False)

    return furthest(alone, packed["general"]), furthest(
        packed["hand-written"], packed["general"]
    )


class Step:
    """A training step's forward and backward pass."""

    def __init__(
        self, backbone: dict[str, Any], method: str, sizes: Mapping[str, int]
    ) -> None:
        torch.manual_seed(0)
        self.model = PointModel(
            trial(backbone, method, 0, sizes), sizes["clouds"]
        ).train()
        shape = sizes["clouds"], sizes["points"], 3
        clouds = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        self.points = clouds / clouds.norm(dim=2).amax(dim=1)[:, None, None]

    def seconds(self) -> float:
        """Processor seconds."""
        self.model.zero_grad(set_to_none=True)
        set_noise(self.model, torch.Generator().manual_seed(0))
        begun = time.process_time()
        F.cross_entropy(
            self.model(self.points), torch.arange(len(self.points))
        ).backward()

        return time.process_time() - begun


def step_seconds(steps: Mapping[str, Step], rounds: int) -> dict[str, list[float]]:
    """Processor seconds of every round; each side begins every other round, and first steps are not
    counted.
    """
    found: dict[str, list[float]] = {way: [] for way in steps}
    for step in steps.values():
        step.seconds()

    for number in range(rounds):
        for way in list(steps)[:: 1 if number % 2 == 0 else -1]:
            found[way].append(steps[way].seconds())

    return found


def speed(
    ways: dict[str, dict[str, Any]], method: str, rounds: int, sizes: Mapping[str, int]
) -> tuple[float, str]:
    """The median ratio, and all that is said of it."""
    seconds = step_seconds(
        {way: Step(fields, method, sizes) for way, fields in ways.items()}, rounds
    )
    ratios = [
        general / own
        for own, general in zip(
            seconds["hand-written"], seconds["general"], strict=True
        )
    ]

    ratio = statistics.median(ratios)
    spread = ""

    if rounds > 1:
        low, _, high = statistics.quantiles(ratios, n=4)
        spread = f" ({low:.2f} to {high:.2f})"

    medians = ", ".join(
        f"{1e3 * statistics.median(each):.0f}" for each in seconds.values()
    )
    return ratio, f"{ratio:.3f}{spread} of {medians} CPU-ms"


def row(name: str, blocks: int, rounds: int, sizes: Mapping[str, int]) -> str:
    """A line of the table."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_checkpoint(COUNTERPARTS[name], blocks, folder)
        ways = both_ways(name, blocks, folder)
        first, second = (load(fields) for fields in ways.values())
        single = differences(first, second)
        exact = max(differences(first.double(), second.double()))
        alone, other = pack_result(ways, sizes)
        speeds = [speed(ways, method, rounds, sizes) for method in METHODS]

    met = max(single) <= EQUAL, alone == 0.0, max(each for each, _ in speeds) <= SPEED
    words = ("equal", "packs", "speed")
    verdict = ", ".join(word for word, holds in zip(words, met, strict=True) if holds)
    cells = (
        name,
        COUNTERPARTS[name].library,
        *(f"{each:.1e}" for each in single),
        f"{exact:.1e}",
        f"{alone:.1e}",
        f"{other:.1e}",
        *(said for _, said in speeds),
        verdict or "none",
    )

    return f"| {' | '.join(cells)} |"


HEADINGS = (
    "name", "library", "start", "blocks", "norm", "double", "pack / alone", "pack / hand-written",
    *METHODS, "holds",
)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--names", nargs="+", choices=COUNTERPARTS, default=list(COUNTERPARTS)
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument(
        "--quick",
        action="store_true",
        help="one block, tiny shapes: its seconds say nothing",
    )

    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    sizes = {"clouds": 4, "points": 128, "tokens": 32, "members": 3}

    if args.quick:
        sizes = {"clouds": 2, "points": 32, "tokens": 8, "members": 2}
        args.rounds, args.blocks = 1, 1

    print(machine())
    print(f"| {' | '.join(HEADINGS)} |")
    print(f"|{' --- |' * len(HEADINGS)}")

    for name in args.names:
        print(row(name, args.blocks, args.rounds, sizes), flush=True)

    print(machine())


if __name__ == "__main__":
    main()
