"""One arm built small and looked at once: what it trains, what it gives, where gradients reach,
whether clouds see each other.

The backbone keeps its width and depth, but its frozen weights are slices of one pool of random
numbers, so that twelve wide blocks cost no time to fill; tokens are few. Every trained tensor is
drawn from its own name, so that two arms whose code does the same give the same numbers however
many others each of them has. Letters: B clouds, P points.
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
POOL = 1 << 24  # random numbers that frozen weights are cut from
POOL_SIZE = 0.02  # their standard deviation
SMALL: dict[str, Any] = {
    "num_tokens": 8, "neighbours": 6, "scale_tokens": (6, 4), "scale_neighbours": (4, 4),
    "bank_groups": 8, "bank_group_size": 8,
}  # fmt: skip
# Names of tensors whose gradient is zero by construction: a key's bias adds the same to every logit
# of a softmax, and what is added to all channels is taken out by each norm. Rounding alone decides
# whether such a gradient is exactly zero.
WITHOUT_GRADIENT = re.compile(
    r"(k\.bias|k\.1\.shift|method\.mix\.bias|^tokenizer\.stages\..*\.layers\.[03]\.bias)$"
)
# of its own movement: what another position in the batch may do to a cloud's logits, by rounding
POSITION_NOISE = 0.01
# At the gradients of parts of tensors: what a first look finds without one, another may reach. A
# ReLU behind what is pooled over a cloud is shut for all clouds of a look, half of the time; looks
# end as soon as every part is reached.
LOOKS = 16


@dataclass(frozen=True)
class Probe:
    """Result of looking at an arm. Tensors on the CPU."""

    trained: Mapping[str, tuple[int, ...]]  # names and shapes
    starts_at_zero: frozenset[str]  # trained tensors that are all zero at the start
    outputs: Tensor  # logits in evaluation and in training, (2, B, classes)
    gradients: Mapping[str, float]  # norms
    leak: float  # how far the other clouds' logits move, of what a replaced cloud's own do
    # parts of trained tensors that no gradient reaches, e.g. "method.prompts[:, 5]"
    idle: tuple[str, ...] = ()
    # tensors of the frozen backbone that would train though the method does not say so
    thawed: tuple[str, ...] = ()
    # clouds of the batch whose replacement does not move their own logits
    ignored: tuple[int, ...] = ()
    # trained tensors that no gradient reaches in any look
    unreached: tuple[str, ...] = ()

    def differs(self, other: Probe) -> bool:
        """Return whether the two train, start, give or learn anything that is not the same."""
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
    """Probe an arm: with few tokens and points, or with `full_size` with as many as its
    configuration says.
    """
    config = config if full_size else _smaller(config)
    size = config.dataset.num_points if full_size else POINTS
    model, thawed = _build(config)
    zero = set()

    for name, parameter in model.named_parameters():
        if parameter.requires_grad and _is_all(parameter, 0.0):
            zero.add(name)

    _draw_trained(model)
    inputs = _inputs(config, size)

    if not any(p.requires_grad for p in model.parameters()):
        return _probe_untrained(model, inputs[0])

    if isinstance(model, PointModel):
        model.method.prepare(model, [_clouds(6, size, seed=1)])

    set_noise(model, torch.Generator().manual_seed(0))
    model.train()
    logits = model(*inputs)
    F.cross_entropy(logits, _labels(logits)).backward()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    gradients = {}

    for name, p in trained.items():
        gradients[name] = 0.0 if p.grad is None else float(p.grad.norm())

    unreached = [name for name, norm in gradients.items() if norm == 0.0]
    idle: tuple[str, ...] = ()
    if isinstance(model, PointModel):
        flat = set(model.backbone.flat_parameters("backbone."))
        suspects = []
        for name in unreached:
            if name not in flat and not WITHOUT_GRADIENT.search(name):
                suspects.append(name)

        idle, unreached = _find_unreached(
            model, trained, unreached=suspects, inputs=inputs, size=size
        )

    model.eval()
    evaluated, leak, ignored = _examine_batch(model, inputs)
    shapes = {name: tuple(p.shape) for name, p in trained.items()}

    return Probe(
        trained=shapes,
        starts_at_zero=frozenset(zero),
        outputs=torch.stack([evaluated, logits.detach()]),
        gradients=gradients,
        leak=leak,
        idle=idle,
        thawed=thawed,
        ignored=ignored,
        unreached=tuple(unreached),
    )


def _find_unreached(
    model: nn.Module,
    trained: Mapping[str, Tensor],
    unreached: Sequence[str],
    inputs: Sequence[Tensor],
    size: int,
) -> tuple[tuple[str, ...], list[str]]:
    """Return the parts of trained tensors, along any axis, whose gradient stays exactly zero while
    that of others does not, and those of `unreached` whose gradient stays zero altogether.

    A maximum or a ReLU may hide a tensor or a part of one from a few clouds, so what has no
    gradient is looked at again with other clouds and weights. Parts are not looked for in a head,
    whose dropout and ReLU hide single units from a batch as small as this, nor in what a method
    declares (`Method.idle_parts`), nor in biases, whose gradient may be rounding alone.
    """
    declared = {f"method.{name}" for name in model.method.idle_parts}  # type: ignore[union-attr]
    examined = []

    for name in trained:
        if not name.startswith("head.") and name not in declared:
            examined.append(name)

    # by name and axis: which slices of a tensor had a gradient with any of the batches
    reached_parts: dict[tuple[str, int], Tensor] = {}
    for attempt in range(LOOKS):
        if attempt > 0:
            _draw_trained(model, attempt)
            model.zero_grad()
            set_noise(model, torch.Generator().manual_seed(attempt))
            points, *others = inputs
            channels = points.shape[2] - 3
            clouds = _clouds(CLOUDS, size, seed=10 + attempt, channels=channels)
            logits = model(clouds, *others)
            F.cross_entropy(logits, _labels(logits)).backward()

        for name in examined:
            gradient = trained[name].grad
            if gradient is None or gradient.dim() < 2:
                continue

            for axis, reached in enumerate(_reached_slices(gradient)):
                before = reached_parts.get((name, axis))
                if before is not None:
                    reached = reached | before

                reached_parts[name, axis] = reached

        unreached = [name for name in unreached if not _has_gradient(trained[name])]
        if not unreached and not any(map(_is_mixed, reached_parts.values())):
            break

    return tuple(_idle_slices(trained, reached_parts)), list(unreached)


def _reached_slices(gradient: Tensor) -> list[Tensor]:
    """Return for each axis which slices along it have a gradient that is not zero."""
    sizes = gradient.abs()
    reached = []

    for axis in range(sizes.dim()):
        others = [other for other in range(sizes.dim()) if other != axis]
        reached.append(sizes.amax(dim=others) > 0)

    return reached


def _idle_slices(
    trained: Mapping[str, Tensor], reached_parts: Mapping[tuple[str, int], Tensor]
) -> Iterator[str]:
    """Yield the slices without a gradient of tensors that have one, as "weight[:, 3-5]"."""
    for (name, axis), reached in reached_parts.items():
        if _is_mixed(reached):
            slices = [":"] * trained[name].dim()
            slices[axis] = _ranges((~reached).nonzero().flatten().tolist())
            yield f"{name}[{', '.join(slices)}]"


def _is_mixed(reached: Tensor) -> bool:
    return bool(reached.any()) and not bool(reached.all())


def _has_gradient(parameter: Tensor) -> bool:
    return parameter.grad is not None and bool(parameter.grad.any())


def _ranges(numbers: Sequence[int]) -> str:
    """ "3", "3-5", or "3-5 and 7 more"."""
    end = 0
    while end + 1 < len(numbers) and numbers[end + 1] == numbers[end] + 1:
        end += 1

    first = str(numbers[0]) if end == 0 else f"{numbers[0]}-{numbers[end]}"
    rest = len(numbers) - end - 1
    return f"{first} and {rest} more" if rest else first


@torch.no_grad()
def run_once(config: TrialConfig) -> None:
    """Let one cloud of the full size through what reads points: the tokenizer, or the whole
    network. Raise what that raises.

    Of a tokenizer its geometry alone, which is what depends on the size; `probe` runs the rest of
    it.
    """
    if config.backbone is None:
        points = _clouds(1, config.dataset.num_points)
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
    """Let one cloud of so many points through a tokenizer. Most arms of a sweep share theirs."""
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
    bank = _clouds(2 * CLASSES, points.shape[1], seed=1)
    model.fit([(bank, torch.arange(len(bank)) % CLASSES)])  # type: ignore[operator]
    logits, leak, ignored = _examine_batch(model.eval(), [points])

    if isinstance(model, PointModel):
        ignored = ()  # the votes of neighbours change in steps: another cloud may have the same

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
    """Return logits, the leak, and the clouds whose own logits do not move when they are replaced.

    The leak is how far the logits of a cloud move with the other clouds, of how far they move when
    it is itself replaced. Two further batches show it. Of clouds 0, 1, 2 the first has another one
    in the middle, so 0 and 2 show what comes from behind and from before. The second is a new
    cloud, 1, 0: cloud 1 has both neighbours replaced, and cloud 0 has another position.
    """
    points, *others = inputs
    before = model(points, *others)
    new = _clouds(2, points.shape[1], seed=2) * 2.0
    middle = torch.cat([points[:1], new[1:], points[2:]])
    outer = torch.cat([new[:1], points[1:2], points[:1]])
    other_middle = model(middle, *others)
    other_outer = model(outer, *(tensor[[0, 1, 0]] for tensor in others))

    by_middle = _movement(other_middle, before)
    by_outer = _movement(other_outer, before)
    own = torch.stack([by_outer[0], by_middle[1], by_outer[2]])
    by_others = torch.stack([by_middle[0], by_outer[1], by_middle[2]])
    by_position = float(_movement(other_outer[2:], before[:1]))
    ignored = tuple((own <= 1e-12).nonzero().flatten().tolist())
    ratios = []

    for number in range(CLOUDS):
        if number not in ignored:
            ratios.append(float(by_others[number] / own[number]))

    leak = max(ratios, default=0.0)

    # Rounding differs with a cloud's position, so that little says nothing.
    if 0 not in ignored and by_position > POSITION_NOISE * float(own[0]):
        leak = max(leak, by_position / float(own[0]))

    return before, leak, ignored


def _movement(logits: Tensor, before: Tensor) -> Tensor:
    """Logits (B, classes) or (B, parts, P), twice -> the largest difference of each cloud's
    (B,).
    """
    return (logits - before).abs().flatten(1).amax(dim=1)


def _inputs(config: TrialConfig, size: int) -> list[Tensor]:
    """Return what the model takes: clouds, and on a data set of parts their categories (B,)."""
    categories = config.dataset.num_categories
    inputs = [_clouds(CLOUDS, size, channels=config.dataset.feature_channels)]

    if categories:
        inputs.append(torch.arange(CLOUDS) % categories)

    return inputs


def _labels(logits: Tensor) -> Tensor:
    """A class for every cloud of logits (B, classes), or for every point of logits (B, parts,
    P).
    """
    num_clouds, _, *point_shape = logits.shape
    labels = torch.arange(num_clouds * math.prod(point_shape)) % CLASSES

    return labels.view(num_clouds, *point_shape)


def _clouds(count: int, size: int, seed: int = 0, channels: int = 0) -> Tensor:
    """Blobs of two scales (B, P, 3): uneven, so that neighbourhoods, cells and voxels differ; with
    `channels` of features behind the coordinates.
    """
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(count, size, 3, generator=generator)
    points[:, ::3] *= 0.25
    points = points / points.norm(dim=2).amax(dim=1)[:, None, None]

    if not channels:
        return points

    features = torch.randn(count, size, channels, generator=generator)
    return torch.cat([points, features], dim=2)


def _smaller(config: TrialConfig) -> TrialConfig:
    """Few tokens of small neighbourhoods, from fewer points; everything else as it is."""
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
    """The model, and the names of the backbone's own tensors that would train though the method
    does not say so.
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

    # The names above are those of classes, so all blocks would have the same weights.
    for number, block in enumerate(backbone.blocks):
        for name, parameter in block.named_parameters():
            parameter.data = _values(parameter, f"{number}.{name}")

    return backbone


def _values(tensor: Tensor, name: str) -> Tensor:
    """Numbers of standard deviation 0.02, about 1 for a norm's scale and else about 0; always the
    same for a name.
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

    # A tensor of its own, for statistics change; they and a norm's scale lie about 1.
    mean = 1.0 if name.endswith(("weight", "gamma", "running_var")) else 0.0
    return values + mean


def _large_values(tensor: Tensor, name: str) -> Tensor:
    """Values of a tensor that the pool does not hold: its rows are pieces of the pool that overlap,
    so it takes no memory.
    """
    rows, width = tensor.shape[0], tensor[0].numel()
    step = (POOL - width - 1) // max(rows, 1)  # from one row to the next

    if tensor.dim() < 2 or step < 1:
        raise ValueError(
            f"{name}: a tensor of shape {tuple(tensor.shape)} is too large to be looked at before a"
            " launch"
        )

    start = zlib.crc32(name.encode()) % (POOL - width - step * (rows - 1))
    values = _pool().as_strided((rows, width), (step, 1), start)
    if tensor.dim() == 2:
        return values

    return values.unflatten(1, tensor.shape[1:])


@functools.cache
def _pool() -> Tensor:
    return torch.randn(POOL, generator=torch.Generator().manual_seed(0)).mul_(POOL_SIZE)


@torch.no_grad()
def _draw_trained(model: nn.Module, attempt: int = 0) -> None:
    """Move every trained tensor by noise that depends on its name alone, at least 0.05, so that
    nothing is hidden by a zero.
    """
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            size = 0.05 if parameter.dim() > 1 else 0.1
            mean = 1.0 if _is_all(parameter, 1.0) else 0.0
            noise = _noise(parameter.shape, zlib.crc32(f"{attempt} {name}".encode()))
            # A new tensor: a thawed one may still be a slice of the pool.
            parameter.data = (noise * (size / POOL_SIZE)).add_(mean)


def _noise(shape: torch.Size, number: int) -> Tensor:
    """Normal numbers of the pool's size that depend on a number alone: a slice of the pool where it
    has as many.
    """
    pool, count = _pool(), shape.numel()
    if count >= len(pool) // 2:
        generator = torch.Generator().manual_seed(number)
        return torch.randn(shape, generator=generator).mul_(POOL_SIZE)

    start = number % (len(pool) - count)
    return pool[start : start + count].view(shape)


def _is_all(tensor: Tensor, value: float) -> bool:
    """Return whether every element has this value; the first one settles it for most tensors."""
    if tensor.numel() and tensor.flatten()[0] != value:
        return False

    return bool((tensor == value).all())
