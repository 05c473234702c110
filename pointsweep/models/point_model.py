"""PointModel: tokenizer + backbone + method + head, and the counts that a table prints.

Letters: B clouds, P points, N tokens, C channels, M views.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pointsweep.config import official, registry
from pointsweep.config.parts import HeadConfig
from pointsweep.config.schema import TrialConfig
from pointsweep.models.backbones.base import Backbone
from pointsweep.models.backbones.initialisation import generator_for
from pointsweep.models.layers import Dropout, drawn
from pointsweep.models.methods.base import Method
from pointsweep.models.positional_encoding import Positions
from pointsweep.models.probe_head import ProbeHead
from pointsweep.models.segmentation_head import Level, SegmentationHead, levels

# a stack whose blocks change the stream by less, each, is called close to an identity
NEAR_IDENTITY = 0.05


@contextmanager
def start_of(part: str, seed: int) -> Iterator[None]:
    """Give the random start of one part a stream of its own, which depends on the trial's seed and
    the part's name.

    Arms of one seed so share what they have in common: the head, the tokenizer and the class token
    start alike, whatever the method or the number of blocks draws. Paired comparisons are then of
    the arms, not of their luck.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator_for(seed, f"start of {part}").initial_seed())
        yield


def start_layers(module: nn.Module, part: str, seed: int) -> None:
    """Draw each layer of a new module again, by its name: a wider first layer then changes no
    other.
    """
    for name, layer in module.named_modules():
        if not isinstance(layer, (nn.Linear, nn.Conv1d, nn.Conv2d)):
            continue

        if not layer.weight.is_meta:
            with start_of(f"{part}.{name}", seed):
                layer.reset_parameters()


class Head(nn.Module):
    """The pooled tokens, with what the method pools beside them -> logits (spec 2.6). At width 768,
    15 classes: 463,631 values.
    """

    def __init__(
        self,
        config: HeadConfig,
        dim: int,
        prefix: int,
        method: Method,
        num_classes: int,
        blind_class_token: bool = False,
    ) -> None:
        super().__init__()
        if config.pool == "class_max" and blind_class_token:
            raise ValueError(
                "head.pool: class_max takes the class token, and in a causal model this first token"
                " sees no point; allowed: mean_max, mean_plus_max, or backbone.causal: false"
            )

        by_class_token = prefix > 0 and not blind_class_token
        self.pool = config.pool or ("class_max" if by_class_token else "mean_max")
        self.prefix = prefix
        self.max_first = config.order == "max_cls"
        self.takes_first_mean = method.takes_first_mean
        num_features = 1 if self.pool == "mean_plus_max" else 2
        inputs = dim * (num_features + method.extra_features)
        wide, last = config.hidden, config.last_hidden or config.hidden
        self.dropout = Dropout(config.input_dropout)
        self.layers = nn.Sequential(
            nn.Linear(inputs, wide, bias=config.bias), nn.BatchNorm1d(wide), nn.ReLU(),
            Dropout(config.dropout),
            nn.Linear(wide, last, bias=config.bias), nn.BatchNorm1d(last), nn.ReLU(),
            Dropout(config.dropout),
            nn.Linear(last, num_classes),
        )  # fmt: skip

        if config.kind == "one_layer":
            self.layers = nn.Sequential(
                nn.Linear(inputs, wide, bias=config.bias),
                nn.ReLU(),
                Dropout(config.dropout),
                nn.Linear(wide, num_classes),
            )

    def forward(self, tokens: Tensor, extra: list[Tensor]) -> Tensor:
        """tokens (B, prefix + N, C) and further features (B, C) -> logits (B, classes)."""
        if self.pool == "class_max":
            first, last = tokens[:, 0], tokens[:, self.prefix :].amax(dim=1)
        else:
            first, last = tokens.mean(dim=1), tokens.amax(dim=1)
            if self.takes_first_mean:
                first = first[:1].expand_as(first)

        if self.pool == "mean_plus_max":
            features = [first + last, *extra]
        elif self.max_first:
            features = [last, *extra, first]
        else:
            features = [first, *extra, last]

        logits: Tensor = self.layers(self.dropout(torch.cat(features, dim=1)))
        return logits


class PointModel(nn.Module):
    """A frozen backbone behind a tokenizer and in front of a trained head, with a method in it.
    Loads it, unless one is given.

    Trained in every model: tokenizer (not a 3d backbone's own), class token and its position, the
    final norm, the head (spec 2.7).
    """

    def __init__(
        self, config: TrialConfig, num_classes: int, backbone: Backbone | None = None
    ) -> None:
        super().__init__()
        assert (
            config.tokenizer
            and config.backbone
            and config.positions
            and config.method
            and config.head
        )

        self.weights_origin = "none"
        # of the frozen blocks as loaded (Backbone.change_per_block)
        self.change_per_block: float | None = None

        if backbone is None:
            backbone = registry.load("backbones", config.backbone.name)(config.backbone)
            # On the meta device there is nothing to load: the model is only counted.
            if not backbone.norm.weight.is_meta:
                self.weights_origin = backbone.load()
                self.change_per_block = backbone.change_per_block()

        program = official.program(config)
        backbone.use_compat(config.compat)
        backbone.follow(program)
        self.backbone = backbone.requires_grad_(False)

        if config.probes and backbone.cls_token is None:
            backbone.prefix = 0  # a class token that starts new says nothing

        prefix = backbone.prefix
        with start_of("tokenizer", config.seed):
            self.tokenizer = registry.load("tokenizers", config.tokenizer.name)(
                config.tokenizer, backbone, config.compat
            )

        self.tokenizer.skips_near_origin = program.skips_near_origin
        with start_of("positions", config.seed):
            self.positions = Positions(
                config.positions, backbone, self.tokenizer.num_tokens, config.compat
            )

        own_class_token = backbone.cls_token is not None
        if prefix:
            with start_of("class token", config.seed):
                self._take_class_token(backbone, config.positions.init_std)

        backbone.norm.requires_grad_(True)
        self.method: Method = registry.load("methods", config.method.name)(
            config.method, config.compat
        )
        self.method.program = program

        with start_of("method", config.seed):
            self.method.attach(backbone, prefix, config.positions.num_views)

        if own_class_token and not self.method.trains_class_token:
            self.cls_token.requires_grad_(False)

        if backbone.stem is not None and not self.tokenizer.uses_stem:
            # it makes no token here, so there is nothing to tune
            backbone.stem.patches[0].requires_grad_(False)

        self.norm = backbone.norm
        backbone.norm = nn.Identity()  # type: ignore[assignment]
        self.head = self._make_head(config, num_classes)
        start_layers(self.head, "head", config.seed)

        if config.train.init == "trunc_normal":
            self._init_as_modelnet_program(config.seed)

        if config.probes:
            self.requires_grad_(False)

    def _make_head(self, config: TrialConfig, num_classes: int) -> nn.Module:
        """Make the head, and say in `levels` of which blocks a head of parts takes the output."""
        assert config.head
        backbone = self.backbone
        categories = config.dataset.num_categories
        self.levels = levels(len(backbone.blocks)) if categories else []

        if categories:
            widths = [backbone.widths[index] for index in self.levels]
            extra = backbone.dim * self.method.extra_features
            return SegmentationHead(config.head, widths, extra, categories, num_classes)

        if config.probes:
            return ProbeHead(config.head, backbone.prefix, num_classes)

        return Head(
            config.head,
            backbone.dim,
            backbone.prefix,
            self.method,
            num_classes,
            backbone.blind_class_token,
        )

    def _take_class_token(self, backbone: Backbone, std: float) -> None:
        """The class token and its position become the model's, and train; they start as the
        checkpoint's, where it has them.
        """
        self.cls_token = nn.Parameter(drawn(0.02, 1, 1, backbone.dim))
        if backbone.cls_token is not None:
            self.cls_token = nn.Parameter(backbone.cls_token.detach().clone())
            backbone.cls_token = None

        self.cls_position = nn.Parameter(drawn(std, 1, 1, backbone.dim))
        if backbone.cls_position is not None:
            self.cls_position = nn.Parameter(backbone.cls_position.detach().clone())
            backbone.cls_position = None

    @torch.no_grad()
    def _init_as_modelnet_program(self, seed: int) -> None:
        """Truncated normals of 0.02 in every linear and 1D convolution that is new; a method has a
        setting of its own (spec 2.8).
        """
        frozen = set(self.backbone.modules())
        for part, root in (("tokenizer", self.tokenizer), ("head", self.head)):
            for name, module in root.named_modules():
                if isinstance(module, (nn.Linear, nn.Conv1d)) and module not in frozen:
                    with start_of(f"{part}.{name}", seed):
                        nn.init.trunc_normal_(module.weight, std=0.02)
                    if module.bias is not None:
                        nn.init.zeros_(module.bias)

    def forward(
        self,
        points: Tensor,
        category: Tensor | None = None,
        tokenized: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """points (B, P, 3), or (B, P, 4) with heights -> logits (B, classes).

        On a data set of parts with category (B,) -> (B, parts, P). `tokenized` is what the
        tokenizer gave for these points, where it has been run already.
        """
        tokens, extra, levels = self._encode(points, tokenized)
        if levels:
            return self.head(points, category, levels, extra)  # type: ignore[no-any-return]

        return self.head(tokens, extra)  # type: ignore[no-any-return]

    def fit(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Fit a probe's head to the features of training clouds (B, P, 3) with labels (B,)."""
        assert isinstance(self.head, ProbeHead)
        self.eval()
        features: list[Tensor] = []
        labels: list[Tensor] = []

        for points, batch_labels in batches:
            tokens, _, _ = self._encode(points)
            features.append(self.head.features(tokens))
            labels.append(batch_labels)

        self.head.fit(torch.cat(features), torch.cat(labels))

    def _encode(
        self, points: Tensor, tokenized: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, list[Tensor], list[Level]]:
        """Return the normed tokens that the head pools, features (B, C) beside them, and what a
        head of parts takes.
        """
        if tokenized is None:
            tokenized = self.tokenizer(points)

        tokens, centers = tokenized  # (B, N, C), (B, N, 3)
        tokens, observed = self.method.observe(points[:, :, :3], tokens)
        context = None
        encoding = None
        bias = None
        levels: list[Level] = []

        for index, block in enumerate(self.backbone.blocks):
            if index in self.backbone.scale_starts:
                if index > 0:
                    tokens, centers = self.backbone.enter_scale(index, tokens, centers)

                projected = self.positions.project(centers)
                # (B, prefix + N, C)
                encoding = self._encoding(index, tokens, centers, projected)
                bias = self.positions.attention_bias(index, centers, projected)

                if index == 0:
                    tokens = self._start(tokens, encoding)

                tokens, context = self.method.begin(
                    index, tokens, centers, projected, observed
                )

            if self.positions.at_every_block and encoding is not None:
                tokens = self._add(tokens, encoding)

            tokens = self.method.before_block(index, tokens, context)
            tokens = self._run(block, index, tokens, context, bias)
            tokens = self.method.after_block(index, tokens, context)

            if index in self.levels:
                levels.append(self._level(tokens, centers))

        if len(self.backbone.blocks) == 0:
            tokens = self._without_blocks(tokens, centers)

        tokens, extra = self.method.pool(self.norm(tokens), context)
        return tokens, extra, levels

    def geometry(self, points: Tensor) -> None:
        """Work out what a forward makes of points (B, P, 3) alone, for the cache of batches:
        neighbourhoods, projections, cells.
        """
        centers = self.tokenizer.geometry(points)
        self.method.geometry(centers, self.positions.project(centers))

    def _without_blocks(self, tokens: Tensor, centers: Tensor) -> Tensor:
        """Tokens (B, N, C) with class token and positions: what a first block would get; encodings
        are added once.
        """
        encoding = self._encoding(0, tokens, centers, self.positions.project(centers))
        tokens = self._start(tokens, encoding)

        if self.positions.at_start:
            return tokens

        return self._add(tokens, encoding)

    def _level(self, tokens: Tensor, centers: Tensor) -> Level:
        """The N point tokens, which stand last, and their centres; normed where they are as wide as
        the last block's.
        """
        of_points = tokens[:, -centers.shape[1] :]  # (B, N, C)
        if of_points.shape[2] == self.backbone.dim:
            of_points = self.norm(of_points)

        return of_points, centers

    def _start(self, tokens: Tensor, encoding: Tensor) -> Tensor:
        if self.backbone.prefix:
            class_token = self.cls_token.expand(len(tokens), -1, -1)
            tokens = torch.cat([class_token, tokens], dim=1)

        if self.positions.at_start:
            tokens = tokens + encoding

        return self.backbone.start(tokens)

    def _encoding(
        self, index: int, tokens: Tensor, centers: Tensor, projected: Tensor | None
    ) -> Tensor:
        """Return the encoding of the class token, where there is one, and of the N point tokens."""
        points = self.positions(centers, projected, index)  # (B, N, C)
        if points is None:
            points = tokens.new_zeros(*centers.shape[:2], tokens.shape[2])

        if not self.backbone.prefix:
            return points

        class_position = self.cls_position.expand(len(tokens), -1, -1)
        return torch.cat([class_position, points], dim=1)

    def _add(self, tokens: Tensor, encoding: Tensor) -> Tensor:
        """Encodings on the class token and the last N tokens; prompts that walk along between them
        have none.
        """
        between = tokens.shape[1] - encoding.shape[1]
        if between == 0:
            return tokens + encoding

        prefix = self.backbone.prefix
        of_class_token, of_points = encoding[:, :prefix], encoding[:, prefix:]
        none = encoding.new_zeros(len(encoding), between, encoding.shape[2])

        return tokens + torch.cat([of_class_token, none, of_points], dim=1)

    def _run(
        self, block: nn.Module, index: int, tokens: Tensor, context: Any, bias: Any
    ) -> Tensor:
        after_ffn = partial(self._after_ffn, index, context)
        bias = self.method.attention_bias(index, bias)
        if not self.method.works_between:
            return block(tokens, after_ffn, bias)  # type: ignore[no-any-return]

        def between(stream: Tensor) -> Tensor:
            return self.method.after_attention(index, stream, context)

        return block(tokens, after_ffn, bias, between)  # type: ignore[no-any-return]

    def _after_ffn(
        self, index: int, context: Any, output: Tensor, inputs: Tensor
    ) -> Tensor:
        changed: Tensor = self.method.after_ffn(index, output, inputs, context)
        return changed


@dataclass(frozen=True)
class ParameterCounts:
    """Any2Point's tables leave the head out, Point-PEFT's count it (spec 8, T21): both are kept."""

    trainable: int
    trainable_without_head: int
    total: int


def build(config: TrialConfig, num_classes: int) -> nn.Module:
    """The trial's model: trained weights new, frozen ones loaded. Under `torch.device("meta")`:
    only its structure, to count.
    """
    if config.network is None:
        return PointModel(config, num_classes)

    network_class = registry.load("networks", config.network.name)
    arguments: list[Any] = [config.network, num_classes, config.compat]
    # A network that takes nothing but coordinates has no parameter for further channels.
    if config.dataset.feature_channels:
        arguments.append(config.dataset.feature_channels)

    network: nn.Module = network_class(*arguments)
    return network


def count_parameters(model: nn.Module) -> ParameterCounts:
    """Count the parameters of a built model; works on the meta device."""
    total = trainable = head = 0
    for name, parameter in model.named_parameters():
        size = parameter.numel()
        total += size
        if parameter.requires_grad:
            trainable += size
            head += size if name.startswith("head.") else 0

    return ParameterCounts(trainable, trainable - head, total)


def trained_state(model: nn.Module) -> dict[str, Tensor]:
    """Return what training changes, by name: trainable parameters and the statistics of batch
    normalisation. Detached, not copied.
    """
    state: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            state[name] = parameter.detach()

    for prefix, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for name, buffer in module.named_buffers(recurse=False):
                state[f"{prefix}.{name}"] = buffer

    return state


@torch.no_grad()
def load_trained_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """The inverse of `trained_state`, in place. Raises ValueError if a name or a shape does not
    fit.
    """
    own = trained_state(model)
    wrong = sorted(own.keys() ^ state.keys())

    if not wrong:
        wrong = [name for name in own if own[name].shape != state[name].shape]

    if wrong:
        raise ValueError(f"saved weights do not fit the model: {', '.join(wrong[:10])}")

    for name, tensor in own.items():
        tensor.copy_(state[name])
