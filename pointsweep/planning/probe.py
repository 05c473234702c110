"""Probe of an arm before a launch: its model is built with few tokens, runs on a few random clouds,
and shows what it trains, its logits, which tensors have a gradient, and whether the logits of a
cloud depend on the other clouds of its batch.

The backbone keeps its width and depth, but its frozen weights are slices of one pool of random
numbers, so that twelve wide blocks cost no time to fill. The noise of every trained tensor depends
on its name alone, so that two arms with the same computation have the same logits, whatever other
tensors each of them has. Letters: B clouds, P points.
"""

from __future__ import annotations

import functools
import math
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pointsweep.config import registry
from pointsweep.config.backbones import BackboneConfig
from pointsweep.config.schema import TrialConfig
from pointsweep.config.tokenizers import TokenizerConfig
from pointsweep.models.backbones.base import Backbone
from pointsweep.models.layers import set_noise
from pointsweep.models.point_model import PointModel, build

CLOUDS, POINTS, CLASSES = 3, 160, 5
NUM_POOL = 1 << 24  # random numbers of the pool, whose slices are the frozen weights
POOL_STD = 0.02  # their standard deviation
# values of configuration fields with which a model is small
SMALL: dict[str, Any] = {
    "num_tokens": 8, "neighbours": 6, "scale_tokens": (6, 4), "scale_neighbours": (4, 4),
    "bank_groups": 8, "bank_group_size": 8,
}  # fmt: skip
# Names of tensors whose gradient is zero by construction: a key's bias adds the same to every logit
# of a softmax, and a norm subtracts what is added to all channels. Rounding alone decides whether
# such a gradient is exactly zero.
WITHOUT_GRADIENT = re.compile(
    r"(k\.bias|k\.1\.shift|method\.mix\.bias|^tokenizer\.stages\..*\.layers\.[03]\.bias)$"
)
# How far another position in the batch may change a cloud's logits by rounding, as a fraction of
# their change when the cloud itself is replaced.
POSITION_NOISE = 0.01
# Most batches on which gradients are examined. A slice of a tensor may have no gradient with one
# batch and one with another: half of the ReLUs after a maximum over a cloud are inactive for all
# clouds of a batch. No further batch is needed once every slice has had a gradient.
MAX_BATCHES = 16


@dataclass(frozen=True)
class Probe:
    """Result of probing an arm. Tensors are on the CPU."""

    trained: Mapping[str, tuple[int, ...]]  # names and shapes
    starts_at_zero: frozenset[str]  # trained tensors that are all zero at the start
    outputs: Tensor  # logits in evaluation and in training, (2, B, classes)
    gradients: Mapping[str, float]  # norms
    # Dependence of a cloud's logits on the other clouds of its batch: their largest change when the
    # others are replaced, as a fraction of that when the cloud itself is. 0 without dependence.
    leak: float
    # slices of trained tensors that no gradient reaches, e.g. "method.prompts[:, 5]"
    without_gradient: tuple[str, ...] = ()
    # tensors of the frozen backbone that would train though the method does not say so
    thawed: tuple[str, ...] = ()
    # clouds of the batch whose replacement does not move their own logits
    ignored: tuple[int, ...] = ()
    # trained tensors that no gradient reaches with any batch
    unreached: tuple[str, ...] = ()

    def differs(self, other: Probe) -> bool:
        """Return whether the two differ in their trained tensors, which of them start at zero,
        their logits or their gradients.
        """
        if self.trained != other.trained or self.starts_at_zero != other.starts_at_zero:
            return True
        if not torch.allclose(self.outputs, other.outputs, rtol=1e-5, atol=1e-6):
            return True

        for name, norm in self.gradients.items():
            other_norm = other.gradients[name]
            scale = max(abs(norm), abs(other_norm), 1e-6)
            if abs(norm - other_norm) > 1e-4 * scale:
                return True

        return False


@functools.lru_cache(maxsize=256)
def probe(config: TrialConfig, full_size: bool = False) -> Probe:
    """Probe an arm with few tokens and points; with `full_size`, with as many as its configuration
    has.
    """
    num_points = POINTS
    if full_size:
        num_points = config.dataset.num_points
    else:
        config = _smaller(config)

    model, thawed = _build(config)
    starts_at_zero = set()

    for name, parameter in model.named_parameters():
        if parameter.requires_grad and _is_all(parameter, 0.0):
            starts_at_zero.add(name)

    # A tensor that is zero at the start, as LoRA's B, hides what another one does.
    _draw_trained(model)
    inputs = _inputs(config, num_points)

    if not any(p.requires_grad for p in model.parameters()):
        return _probe_untrained(model, inputs[0])

    # A method may read training clouds before the first epoch, e.g. into a bank.
    if isinstance(model, PointModel):
        model.method.prepare(model, [_clouds(6, num_points, seed=1)])

    # dropout that is the same for every arm
    set_noise(model, torch.Generator().manual_seed(0))
    model.train()
    logits = model(*inputs)
    F.cross_entropy(logits, _labels(logits)).backward()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    gradients = {}

    for name, p in trained.items():
        gradients[name] = 0.0 if p.grad is None else float(p.grad.norm())

    unreached = [name for name, norm in gradients.items() if norm == 0.0]
    without_gradient: tuple[str, ...] = ()
    if isinstance(model, PointModel):
        zero_by_construction = set(model.backbone.flat_parameters("backbone."))
        suspects = []
        for name in unreached:
            if name in zero_by_construction or WITHOUT_GRADIENT.search(name):
                continue

            suspects.append(name)

        # One batch may miss a tensor, so the suspects are examined with further batches.
        without_gradient, unreached = _find_unreached(
            model, trained, unreached=suspects, inputs=inputs, num_points=num_points
        )

    model.eval()
    evaluated, leak, ignored = _examine_batch(model, inputs)
    shapes = {name: tuple(p.shape) for name, p in trained.items()}

    return Probe(
        trained=shapes,
        starts_at_zero=frozenset(starts_at_zero),
        outputs=torch.stack([evaluated, logits.detach()]),
        gradients=gradients,
        leak=leak,
        without_gradient=without_gradient,
        thawed=thawed,
        ignored=ignored,
        unreached=tuple(unreached),
    )


def _find_unreached(
    model: nn.Module,
    trained: Mapping[str, Tensor],
    unreached: Sequence[str],
    inputs: Sequence[Tensor],
    num_points: int,
) -> tuple[tuple[str, ...], list[str]]:
    """Return the slices of trained tensors, along any axis, whose gradient stays exactly zero while
    that of others does not, and the tensors of `unreached` whose gradient stays zero altogether.

    A maximum or a ReLU may hide a tensor or a slice of one from a few clouds, so whatever has no
    gradient is examined again with other clouds and weights. Slices are not examined in a head,
    whose dropout and ReLU hide single units from a batch as small as this, nor in tensors that a
    method declares (`Method.parts_lack_gradient`), nor in biases, whose gradient may be rounding
    alone.
    """
    method: Any = model.method
    in_parts = {f"method.{name}" for name in method.parts_lack_gradient}
    altogether = {f"method.{name}" for name in method.lack_gradient}
    examined = []

    for name in trained:
        if not name.startswith("head.") and name not in in_parts:
            examined.append(name)

    # by name and axis: which slices of a tensor had a gradient with any of the batches
    reached_parts: dict[tuple[str, int], Tensor] = {}
    for attempt in range(MAX_BATCHES):
        # The first batch is the one that `probe` has run.
        if attempt > 0:
            _draw_trained(model, attempt)
            model.zero_grad()
            set_noise(model, torch.Generator().manual_seed(attempt))
            points, *others = inputs
            channels = points.shape[2] - 3
            clouds = _clouds(CLOUDS, num_points, seed=10 + attempt, channels=channels)
            logits = model(clouds, *others)
            F.cross_entropy(logits, _labels(logits)).backward()

        for name in examined:
            gradient = trained[name].grad
            if gradient is None or gradient.dim() < 2:  # fewer than two axes: a bias
                continue

            for axis, reached in enumerate(_reached_slices(gradient)):
                before = reached_parts.get((name, axis))
                if before is not None:
                    reached = reached | before

                reached_parts[name, axis] = reached

        unreached = [
            name
            for name in unreached
            if name not in altogether and not _has_gradient(trained[name])
        ]
        if not unreached and not any(map(_is_mixed, reached_parts.values())):
            break

    return tuple(_slices_without_gradient(trained, reached_parts)), list(unreached)


def _reached_slices(gradient: Tensor) -> list[Tensor]:
    """Return for each axis which slices along it have a gradient that is not zero."""
    magnitudes = gradient.abs()
    reached = []

    for axis in range(magnitudes.dim()):
        others = [other for other in range(magnitudes.dim()) if other != axis]
        reached.append(magnitudes.amax(dim=others) > 0)

    return reached


def _slices_without_gradient(
    trained: Mapping[str, Tensor], reached_parts: Mapping[tuple[str, int], Tensor]
) -> Iterator[str]:
    """Yield the slices without a gradient of tensors that have one, as "weight[:, 3-5]"."""
    for (name, axis), reached in reached_parts.items():
        if _is_mixed(reached):
            slices = [":"] * trained[name].dim()
            slices[axis] = _ranges((~reached).nonzero().flatten().tolist())
            yield f"{name}[{', '.join(slices)}]"


def _is_mixed(reached: Tensor) -> bool:
    """Return whether some slices have a gradient and others do not."""
    return bool(reached.any()) and not bool(reached.all())


def _has_gradient(parameter: Tensor) -> bool:
    return parameter.grad is not None and bool(parameter.grad.any())


def _ranges(numbers: Sequence[int]) -> str:
    """Return ascending numbers as "3", "3-5", or "3-5 and 7 more"."""
    end = 0
    while end + 1 < len(numbers) and numbers[end + 1] == numbers[end] + 1:
        end += 1

    first = str(numbers[0]) if end == 0 else f"{numbers[0]}-{numbers[end]}"
    rest = len(numbers) - end - 1
    return f"{first} and {rest} more" if rest else first


@torch.no_grad()
def run_once(config: TrialConfig) -> None:
    """Run the tokenizer, or a whole network, on one cloud with the configuration's number of
    points. Errors of the model, e.g. for too few points, are raised as they are.

    Of a tokenizer only its geometry runs (the choice of centres and neighbours), where it has one
    that is separate: nothing else depends on the number of points, and `probe` runs the rest.
    """
    if config.backbone is None:
        points = _clouds(
            1, config.dataset.num_points, channels=config.dataset.feature_channels
        )
        model = build(config, CLASSES).eval()
        if any(p.requires_grad for p in model.parameters()):
            model(points)
        else:
            model.encode(points)  # type: ignore[operator]

        return

    assert config.tokenizer
    num_points = config.dataset.num_points
    _read_points(config.tokenizer, config.backbone, config.compat, num_points)


@functools.lru_cache(maxsize=256)
def _read_points(
    tokenizer: TokenizerConfig, backbone: BackboneConfig, compat: str, num_points: int
) -> None:
    """Run a tokenizer on one cloud. Cached, as most arms of a sweep have the same tokenizer."""
    make_tokenizer = registry.load("tokenizers", tokenizer.name)
    with torch.device("meta"):
        structure = registry.load("backbones", backbone.name)(backbone)
        built = make_tokenizer(tokenizer, structure, compat)

    points = _clouds(1, num_points)
    if hasattr(built, "geometry"):
        built.geometry(points)
        return

    make_tokenizer(tokenizer, frozen_backbone(backbone), compat).eval()(points)


def _probe_untrained(model: nn.Module, points: Tensor) -> Probe:
    """Probe a model without trained tensors, which is fitted to labelled clouds instead."""
    bank = _clouds(2 * CLASSES, points.shape[1], seed=1, channels=points.shape[2] - 3)
    model.fit([(bank, torch.arange(len(bank)) % CLASSES)])  # type: ignore[operator]
    logits, leak, ignored = _examine_batch(model.eval(), [points])

    if isinstance(model, PointModel):
        # A nearest-neighbour vote takes few values, so that another cloud may have the same one.
        ignored = ()

    return Probe(
        trained={},
        starts_at_zero=frozenset(),
        outputs=torch.stack([logits, logits]),
        gradients={},
        leak=leak,
        ignored=ignored,
    )


@torch.no_grad()
def _examine_batch(
    model: nn.Module, inputs: Sequence[Tensor]
) -> tuple[Tensor, float, tuple[int, ...]]:
    """Return the logits, the leak (see `Probe.leak`), and the numbers of the clouds whose logits do
    not change when they are themselves replaced.

    Two further batches measure the leak. For a batch of the clouds 0, 1, 2 they are:

    - `middle`, the clouds 0, new, 2: the logits of 0 and of 2 change if they depend on cloud 1,
      which follows the one and precedes the other;
    - `outer`, the clouds new, 1, 0: the logits of 1 change if they depend on either neighbour, and
      those of 0 if they depend on the position in the batch.
    """
    points, *others = inputs
    before = model(points, *others)
    new = _clouds(2, points.shape[1], seed=2, channels=points.shape[2] - 3) * 2.0
    middle = torch.cat([points[:1], new[1:], points[2:]])
    outer = torch.cat([new[:1], points[1:2], points[:1]])
    other_middle = model(middle, *others)
    other_outer = model(outer, *(tensor[[0, 1, 0]] for tensor in others))

    by_middle = _movement(other_middle, before)
    by_outer = _movement(other_outer, before)
    own = torch.stack([by_outer[0], by_middle[1], by_outer[2]])
    by_others = torch.stack([by_middle[0], by_outer[1], by_middle[2]])
    by_position = float(_movement(other_outer[2:], before[:1]))
    # A quotient by a change this small would be one of rounding errors.
    ignored = tuple((own <= 1e-12).nonzero().flatten().tolist())
    ratios = []

    for number in range(CLOUDS):
        if number not in ignored:
            ratios.append(float(by_others[number] / own[number]))

    leak = max(ratios, default=0.0)

    # Rounding differs with a cloud's position, so a small change is no dependence.
    if 0 not in ignored and by_position > POSITION_NOISE * float(own[0]):
        leak = max(leak, by_position / float(own[0]))

    return before, leak, ignored


def _movement(logits: Tensor, before: Tensor) -> Tensor:
    """Return the largest change of each cloud's logits (B,), from logits (B, classes) or
    (B, parts, P).
    """
    return (logits - before).abs().flatten(1).amax(dim=1)


def _inputs(config: TrialConfig, num_points: int) -> list[Tensor]:
    """Return the model's arguments: clouds, and for part segmentation their categories (B,)."""
    categories = config.dataset.num_categories
    channels = config.dataset.feature_channels
    inputs = [_clouds(CLOUDS, num_points, channels=channels)]

    if categories:
        inputs.append(torch.arange(CLOUDS) % categories)

    return inputs


def _labels(logits: Tensor) -> Tensor:
    """Return a class for every cloud of logits (B, classes), or for every point of logits
    (B, parts, P).
    """
    num_clouds, _, *point_shape = logits.shape
    labels = torch.arange(num_clouds * math.prod(point_shape)) % CLASSES

    return labels.view(num_clouds, *point_shape)


def _clouds(count: int, num_points: int, seed: int = 0, channels: int = 0) -> Tensor:
    """Return random clouds (B, P, 3), followed by `channels` features (B, P, 3 + channels).

    Every third point is nearer to the centre: with an uneven density, neighbourhoods, cells and
    voxels differ.
    """
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(count, num_points, 3, generator=generator)
    points[:, ::3] *= 0.25
    points = points / points.norm(dim=2).amax(dim=1)[:, None, None]

    if not channels:
        return points

    features = torch.randn(count, num_points, channels, generator=generator)
    return torch.cat([points, features], dim=2)


def _smaller(config: TrialConfig) -> TrialConfig:
    """Return a configuration with few tokens, small neighbourhoods and fewer points, and otherwise
    the same.
    """
    dataset = config.dataset.model_copy(
        update={"num_points": POINTS, "presample": POINTS}
    )
    parts: dict[str, Any] = {"dataset": dataset}

    for name in ("tokenizer", "network", "backbone", "method", "head"):
        part = getattr(config, name)
        if part is not None:
            known = type(part).model_fields
            values = {field: SMALL[field] for field in SMALL if field in known}
            parts[name] = part.model_copy(update=values)

    return config.model_copy(update=parts)


def _build(config: TrialConfig) -> tuple[nn.Module, tuple[str, ...]]:
    """Return the model, and the names of the frozen backbone's tensors that would train although
    the method does not declare it (`Method.thaws`).
    """
    torch.manual_seed(0)
    if config.backbone is None:
        return build(config, CLASSES), ()

    backbone = frozen_backbone(config.backbone)
    own = list(backbone.named_parameters())
    model = PointModel(config, CLASSES, backbone=backbone)
    # The final norm trains in every model; a class token becomes the model's own.
    allowed = ("norm.", "cls_token", "cls_position")
    thawed = []

    for name, tensor in own:
        is_declared = name.startswith(allowed) or model.method.thaws(name)
        if tensor.requires_grad and not is_declared:
            thawed.append(name)

    return model, tuple(thawed)


def frozen_backbone(config: Any) -> Backbone:
    """Return the backbone with frozen stand-ins for its weights: slices of one pool of random
    numbers, small in matrices and tables, about 1 in the scales of norms.
    """
    with torch.device("meta"):
        backbone: Backbone = registry.load("backbones", config.name)(config)

    for module in backbone.modules():
        kind = type(module).__name__
        for name, parameter in list(module.named_parameters(recurse=False)):
            values = _values(parameter, f"{kind}.{name}")
            module.register_parameter(name, nn.Parameter(values, requires_grad=False))

        for name, buffer in list(module.named_buffers(recurse=False)):
            # A backbone may compute a constant, the frequencies of rotations for one, on the CPU.
            if buffer.is_meta:
                module.register_buffer(name, _values(buffer, f"{kind}.{name}"))

    # Values depend on a name that has the module's class, so that all blocks have the same ones up
    # to here; a name with the block's number makes them differ.
    for number, block in enumerate(backbone.blocks):
        for name, parameter in block.named_parameters():
            parameter.data = _values(parameter, f"{number}.{name}")

    return backbone


def _values(tensor: Tensor, name: str) -> Tensor:
    """Return values of a tensor's shape with standard deviation `POOL_STD`, and mean 1 for a norm's
    scale, 0 otherwise. They depend on the name and the shape alone.
    """
    if tensor.dtype == torch.long:
        return torch.zeros(tensor.shape, dtype=torch.long)

    pool, count = _pool(), tensor.numel()
    if count >= len(pool) // 2:
        return _large_values(tensor, name)

    start = zlib.crc32(name.encode()) % (len(pool) - count)
    values = pool[start : start + count].view(tensor.shape)
    if tensor.dim() > 1:
        return values

    # The sum is a copy and not a slice of the pool: running statistics change in place.
    mean = 1.0 if name.endswith(("weight", "gamma", "running_var")) else 0.0
    return values + mean


def _large_values(tensor: Tensor, name: str) -> Tensor:
    """Return values for a tensor with too many elements for the pool, as a view without memory of
    its own: its rows are slices of the pool that overlap.
    """
    rows, width = tensor.shape[0], tensor[0].numel()
    step = (NUM_POOL - width - 1) // max(rows, 1)  # from one row to the next

    if tensor.dim() < 2 or step < 1:
        raise ValueError(
            f"{name}: a tensor of shape {tuple(tensor.shape)} is too large to be looked at before a"
            " launch"
        )

    start = zlib.crc32(name.encode()) % (NUM_POOL - width - step * (rows - 1))
    values = _pool().as_strided((rows, width), (step, 1), start)
    if tensor.dim() == 2:
        return values

    return values.unflatten(1, tensor.shape[1:])


@functools.cache
def _pool() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(NUM_POOL, generator=generator).mul_(POOL_STD)


@torch.no_grad()
def _draw_trained(model: nn.Module, attempt: int = 0) -> None:
    """Set every trained tensor to noise of standard deviation 0.05 (0.1 for a vector), about 1 for
    a tensor of ones and about 0 otherwise, so that no zero hides what another tensor does. The
    noise depends on the tensor's name and `attempt` alone.
    """
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            std = 0.05 if parameter.dim() > 1 else 0.1
            mean = 1.0 if _is_all(parameter, 1.0) else 0.0
            noise = _noise(parameter.shape, zlib.crc32(f"{attempt} {name}".encode()))
            # A new tensor, as that of a thawed backbone is a slice of the pool.
            parameter.data = (noise * (std / POOL_STD)).add_(mean)


def _noise(shape: torch.Size, number: int) -> Tensor:
    """Return normal noise of standard deviation `POOL_STD` that depends on `number` and the shape
    alone: a slice of the pool, or new numbers for a shape that is too large for one.
    """
    pool, count = _pool(), shape.numel()
    if count >= len(pool) // 2:
        generator = torch.Generator().manual_seed(number)
        return torch.randn(shape, generator=generator).mul_(POOL_STD)

    start = number % (len(pool) - count)
    return pool[start : start + count].view(shape)


def _is_all(tensor: Tensor, value: float) -> bool:
    """Return whether every element has this value."""
    # The first element decides for most tensors, at no cost.
    if tensor.numel() and tensor.flatten()[0] != value:
        return False

    return bool((tensor == value).all())
