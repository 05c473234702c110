"""A transformer of a library of models as a backbone, whatever its name: what all such libraries
have in common.

`anatomy` finds the parts; here they stand under the contract of a backbone. Positions are those of
the model where they can be placed: a table on its line or grid, rotations of queries and keys
(their cosines and sines averaged over the views), and biases on the attention logits by distance.
Where they cannot, none are used, and the plan, the record and every table say so.

Letters: B clouds, N tokens, C channels, M views, H heads, D channels of a rotation.
"""

from __future__ import annotations

import copy
import inspect
from abc import abstractmethod
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from pointsweep.config.backbones import LibraryBackboneConfig
from pointsweep.config.official import Program
from pointsweep.models.backbones.anatomy import (
    Anatomy,
    LibraryModel,
    bucket_of,
    examine,
    fill,
)
from pointsweep.models.backbones.base import (
    Backbone,
    Plane,
    Shape,
    grid_positions,
    lookup_line,
)
from pointsweep.models.backbones.find_call import own_slopes
from pointsweep.models.backbones.initialisation import generator_for, shuffled
from pointsweep.models.backbones.layer_call import (
    ALIBI,
    GRID_ROTARY,
    RELATIVE,
    ROTARY,
    UNPLACED,
)
from pointsweep.models.backbones.library_block import LibraryBlock, prepare

C = TypeVar("C", bound=LibraryBackboneConfig)
LONGEST_LINE = 512  # of a model whose positions have no table: where most were trained
WORDS = {"1d": "a line (1d)", "2d": "a plane (2d)"}
NO_POSITIONS = "the model's positions cannot be placed: none are used"


class LibraryBackbone(Backbone):
    """A backbone made of a library's model. A subclass knows how its library builds and loads
    one.
    """

    def __init__(
        self, config: LibraryBackboneConfig, module: nn.Module | None = None
    ) -> None:
        """`module`: the library's model with its weights; None: one whose weights are still to be
        loaded.
        """
        model = self.empty(config)
        anatomy = anatomy_of(type(self), config)
        library_module = copy.deepcopy(model.module) if module is None else module
        layers = list(library_module.get_submodule(anatomy.stack).children())
        post_norm = anatomy.roles.post_norm
        shape = Shape(
            anatomy.dim,
            anatomy.num_layers,
            model.heads,
            anatomy.mlp,
            post_norm=post_norm,
        )

        rotary = (
            library_module.get_submodule(anatomy.rotary) if anatomy.rotary else None
        )
        layer_types = model.layer_types if _by_layer_type(rotary) else ()
        variants = _variants(layer_types) or [0] * len(layers)

        def make_block(index: int, rate: float) -> LibraryBlock:
            return LibraryBlock(
                layers[index], anatomy.roles, anatomy.call, rate, variants[index]
            )

        super().__init__(config, shape, make_block)
        self.anatomy = anatomy
        self.model_name = model.name
        self.modality = self._modality(config, anatomy, model)
        self.layer_types = tuple(dict.fromkeys(layer_types))
        self.blind_class_token = anatomy.call.causal
        self.norm: nn.Module = nn.LayerNorm(anatomy.dim)

        if anatomy.final_norm:
            self.norm = library_module.get_submodule(anatomy.final_norm)

        self.start_norm: nn.Module = nn.Identity()
        if anatomy.start_norm:
            self.start_norm = library_module.get_submodule(anatomy.start_norm)

        self.rotary = rotary
        tensors = dict(library_module.named_parameters()) | dict(
            library_module.named_buffers()
        )
        if anatomy.class_token:
            token = tensors[anatomy.class_token].detach()
            self.cls_token = nn.Parameter(token.reshape(1, 1, -1).clone())

        self._take_table(tensors)
        self.plane = self._plane(config, model)
        self._take_attention_positions(library_module)

        if torch.empty(0).device.type != "meta":
            fill(self, lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype))

        self.requires_grad_(False)

    @classmethod
    @abstractmethod
    def empty(cls, config: Any) -> LibraryModel:
        """The model with parameters on the meta device. Raises MissingWeightsError, ValueError."""

    @classmethod
    @abstractmethod
    def drawn(cls, config: Any) -> nn.Module:
        """The model as its library starts it, by torch's own generator."""

    @classmethod
    @abstractmethod
    def pretrained(cls, config: Any) -> tuple[nn.Module, str]:
        """The model with its weights, and their origin for the record. Raises MissingWeightsError,
        ValueError.
        """

    @classmethod
    @abstractmethod
    def locate(cls, config: Any, fetch: bool = True) -> Path:
        """The file whose digest stands in the record: of the weights, or of what says how the
        network is built.
        """

    @classmethod
    def check(cls, config: Any) -> None:
        backbone = cls(config)
        if config.weights not in ("random", "reinitialised"):
            backbone.load()

    def load(self) -> str:
        config: Any = self.config
        if config.weights in ("random", "reinitialised"):
            seed = self.own_seed()
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                module = self.drawn(config)

            state = self._state_of(module)
            origin = f"{config.weights}, seed {seed}, {self.origin(config)}"
            if config.weights == "random":
                for name, tensor in state.items():
                    state[name] = _small_values(name, tensor, seed)
        else:
            module, origin = self.pretrained(config)
            state = self._state_of(module)
            if config.weights == "shuffled":
                state = shuffled(state, self.own_seed())
                origin = f"shuffled, seed {self.own_seed()}, {origin}"

        _check_finite(state, origin)
        self.load_state_dict(state)
        return origin

    @classmethod
    def origin(cls, config: Any) -> str:
        """Return what the record says of a network whose weights are drawn."""
        return f"{config.name} {config.model}"

    def _state_of(self, module: nn.Module) -> dict[str, Tensor]:
        config: Any = self.config
        other = type(self)(config, module)
        own = self.state_dict()
        state: dict[str, Tensor] = {}

        for name, tensor in other.state_dict().items():
            state[name] = tensor.to(own[name].dtype)

        return state

    # Positions

    @staticmethod
    def _modality(
        config: LibraryBackboneConfig, anatomy: Anatomy, model: LibraryModel
    ) -> str:
        if config.modality is not None:
            return config.modality
        if anatomy.grid is None and not model.reads_images:
            return "1d"

        return "2d"

    def _take_table(self, tensors: dict[str, Tensor]) -> None:
        """Keep the position table as a buffer: (length, C) of a line, (rows, columns, C) of a
        grid.
        """
        source = self.anatomy.table
        self.has_table = source is not None and (
            self.modality == "1d" or source.grid is not None
        )

        if source is None or not self.has_table:
            return

        rows = tensors[source.name].detach().reshape(-1, self.dim)
        table = rows[source.rows.to(rows.device)]
        for name, row in source.added:
            table = table + tensors[name].detach().reshape(-1, self.dim)[row]

        if self.modality == "2d":
            assert source.grid is not None
            table = table.reshape(*source.grid, self.dim)

        if table.is_meta and torch.empty(0).device.type != "meta":
            table = torch.zeros(table.shape)

        self.register_buffer("table", table)

    def _plane(self, config: LibraryBackboneConfig, model: LibraryModel) -> Plane:
        anatomy = self.anatomy
        if self.modality == "1d":
            length = min(model.context or LONGEST_LINE, LONGEST_LINE)
            if self.has_table:
                length = len(self.get_buffer("table"))

            if config.line is not None:
                if self.has_table and config.line > length:
                    raise ValueError(
                        f"backbone.line: the table of {model.name} has {length} places, got"
                        f" {config.line}"
                    )

                length = config.line

            return Plane(length, 1, config.cell or float(max(1, round(length / 39))))

        rows, columns = anatomy.grid or (14, 14)
        patch = anatomy.patch or (16, 16)
        return Plane(
            columns * patch[1], rows * patch[0], config.cell or float(patch[1])
        )

    def _take_attention_positions(self, library_module: nn.Module) -> None:
        anatomy = self.anatomy
        assert self.plane is not None
        kind = anatomy.call.positions
        is_usable = kind in (ROTARY, RELATIVE, ALIBI)

        if self.modality == "2d":
            is_usable = kind == GRID_ROTARY

        if kind == GRID_ROTARY and anatomy.grid is None:
            is_usable = False

        if kind == RELATIVE and not anatomy.bias_owner:
            is_usable = False

        self.attention_positions = kind if is_usable else ""
        if self.attention_positions == GRID_ROTARY:
            assert anatomy.grid is not None
            height, width = anatomy.grid
            for name, table in zip(
                ("cosines", "sines"), anatomy.call.example, strict=True
            ):
                of_grid = table[-height * width :].float().reshape(height, width, -1)
                self.register_buffer(name, of_grid, persistent=False)

        if kind == RELATIVE and anatomy.bias_owner:
            self._take_biases(
                library_module.get_submodule(anatomy.bias_owner), keep=is_usable
            )

        if self.attention_positions == ALIBI:
            self.register_buffer(
                "slopes", own_slopes(anatomy.call).float(), persistent=False
            )

    def _take_biases(self, owner: nn.Module, keep: bool) -> None:
        """Take the table of biases by distance out of the layer that has it: it is handed to all of
        them.
        """
        assert self.plane is not None
        weight = owner.relative_attention_bias.weight.detach()  # type: ignore[union-attr,operator]
        settings = _of_buckets(owner)

        if any(owner is module for module in self.blocks.modules()):
            owner.relative_attention_bias = None  # type: ignore[assignment]

        if not keep:
            return

        if weight.is_meta and torch.empty(0).device.type != "meta":
            weight = torch.zeros(weight.shape)

        self.register_buffer("biases", weight.clone())  # (buckets, H)
        with torch.device("cpu"):
            distances = torch.arange(-self.plane.width, self.plane.width + 1)
            rows = bucket_of(owner)(distances, **settings)

        # of distances from -width to width
        self.register_buffer("bucket_rows", rows, persistent=False)

    def start(self, tokens: Tensor) -> Tensor:
        return self.start_norm(tokens)

    def positions(self, locations: Tensor) -> Tensor | None:
        if not self.has_table:
            return None

        table = self.get_buffer("table")
        if self.modality == "1d":
            return lookup_line(table, locations)

        assert self.plane is not None
        return grid_positions(table, locations, self.plane)

    def attention_bias(
        self, index: int, centers: Tensor, locations: Tensor | None
    ) -> Any:
        """Rotations ((cos, sin) (B, N, D), ...), one for each kind of layer, or a bias (B, H, N,
        N); None for nothing.
        """
        assert self.plane is not None
        if locations is None or not self.attention_positions:
            return None
        if self.attention_positions == ROTARY:
            return self._rotations(centers, locations)

        if self.attention_positions == GRID_ROTARY:
            rotations = []
            for name in ("cosines", "sines"):
                table = self.get_buffer(name)
                values = grid_positions(table, locations, self.plane)  # (B, M, N, D)
                rotations.append(values.mean(dim=1))

            return (tuple(rotations),)

        # (B, M, N, N): key - query
        away = locations.unsqueeze(2) - locations.unsqueeze(3)
        if self.attention_positions == ALIBI:
            slopes = self.get_buffer("slopes").to(locations.dtype)
            return -slopes[:, None, None] * away.abs().mean(dim=1).unsqueeze(1)

        rows = self.get_buffer("bucket_rows")[away.round().long() + self.plane.width]
        return self.get_buffer("biases")[rows].mean(dim=1).permute(0, 3, 1, 2)

    def _rotations(
        self, centers: Tensor, locations: Tensor
    ) -> tuple[tuple[Tensor, Tensor], ...]:
        assert self.rotary is not None
        kinds: tuple[str | None, ...] = self.layer_types or (None,)
        rotations = []

        for kind in kinds:
            more = {} if kind is None else {"layer_type": kind}
            cosines, sines = [], []  # (B, N, D) each, one a view
            for view in locations.unbind(1):
                cosine, sine = self.rotary(centers, view, **more)
                cosines.append(cosine)
                sines.append(sine)

            mean_cosine = torch.stack(cosines).mean(dim=0)
            mean_sine = torch.stack(sines).mean(dim=0)
            rotations.append((mean_cosine, mean_sine))

        return tuple(rotations)

    # What is said

    def marks(self) -> tuple[str, ...]:
        if self.has_table or self.attention_positions:
            return ()
        return (NO_POSITIONS,)

    def flat_parameters(self, prefix: str = "") -> list[str]:
        """Return names of biases whose gradient is zero by construction: what is added to every key
        changes no softmax.

        So do biases of what a layer does with positions, where it has none: they are the same for
        every pair of tokens.
        """
        roles = self.anatomy.roles
        keys = []

        for path in roles.projections["k"]:
            is_fused = path in roles.fused
            keys.append(f".layer.{path}.k." if is_fused else f".layer.{path}.")

        known = [f".layer.{path}." for path in roles.norms]
        for paths in roles.projections.values():
            known += [f".layer.{path}." for path in paths]

        unplaced = self.anatomy.call.positions == UNPLACED
        names = []
        for name, _ in self.named_parameters():
            if not name.startswith("blocks.") or not name.endswith(("bias", "shift")):
                continue

            of_keys = any(path in name for path in keys)
            of_positions = unplaced and not any(path in name for path in known)
            if of_keys or of_positions:
                names.append(f"{prefix}{name}")

        return names

    def describe(self) -> str:
        anatomy = self.anatomy
        norm = "post-norm" if anatomy.roles.post_norm else "pre-norm"
        attention = "every token looks at all others"

        if anatomy.call.causal:
            attention = "causal"

        if anatomy.call.causal != anatomy.own_causal:
            own_attention = "causal" if anatomy.own_causal else "all others"
            attention += f" (its own program: {own_attention})"

        text = (
            f"{self.model_name}: {WORDS[self.modality]}, width {self.dim}, {len(self.blocks)} of"
            f" {anatomy.num_layers} {norm} blocks, {self.shape.num_heads} heads, {attention},"
            f" {self._positions_in_words()}"
        )

        missing = []
        for role, paths in anatomy.roles.projections.items():
            if not paths:
                missing.append(role)

        if missing:
            text += f"; projections not found: {', '.join(missing)}"

        if anatomy.num_front > 1:
            text += f"; of its {anatomy.num_front} tokens in front the class token alone is used"

        return text

    def _positions_in_words(self) -> str:
        assert self.plane is not None
        words = []
        if self.has_table:
            size = " x ".join(str(side) for side in self.get_buffer("table").shape[:-1])
            words.append(f"a table of {size} positions")

        if self.attention_positions:
            words.append(f"{self.attention_positions} positions in the attention")

        if not words:
            return NO_POSITIONS

        unplaced = self.anatomy.call.positions == UNPLACED or (
            self.anatomy.call.positions and not self.attention_positions
        )
        rest = ""
        if unplaced:
            rest = "; relative positions in its attention cannot be placed and are not used"

        height = "" if self.plane.height == 1 else f" x {self.plane.height}"
        return f"{' and '.join(words)} on {self.plane.width}{height}{rest}"

    def follow(self, program: Program) -> None:
        if program != Program():
            raise ValueError(
                f"compat: official has no model by name; {self.config.name} runs under fixed"
            )


def structure_of(config: C) -> C:
    """The configuration with all that does not change how the network is built at its default; a
    key of what is found of it.
    """
    others = {
        "weights": "random",
        "weights_seed": 0,
        "num_blocks": None,
        "drop_path": 0.0,
        "sha256": None,
    }
    return config.model_copy(update=others)


def anatomy_of(kind: type[LibraryBackbone], config: LibraryBackboneConfig) -> Anatomy:
    """Return what was found of a model, found once in a process."""
    model = kind.empty(config)
    key = structure_of(config)

    if key not in model.found:
        with torch.device("cpu"), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model.found[key] = examine(model, config.causal, prepare)

    return model.found[key]


def _by_layer_type(rotary: nn.Module | None) -> bool:
    """Return whether rotations depend on the kind of a layer (Gemma 3, ModernBERT)."""
    return (
        rotary is not None
        and "layer_type" in inspect.signature(rotary.forward).parameters
    )


def _variants(layer_types: tuple[str, ...]) -> tuple[int, ...]:
    """The number of each layer's kind among the distinct kinds."""
    distinct = list(dict.fromkeys(layer_types))
    return tuple(distinct.index(kind) for kind in layer_types)


def _of_buckets(owner: Any) -> dict[str, Any]:
    """Settings of the function that puts distances into buckets, as the owner itself would call
    it.
    """
    names = inspect.signature(bucket_of(owner)).parameters
    known = {
        "bidirectional": not getattr(owner, "is_decoder", False),
        "num_buckets": owner.relative_attention_bias.num_embeddings,
        "max_distance": getattr(owner, "relative_attention_max_distance", 128),
    }

    return {name: value for name, value in known.items() if name in names}


def _small_values(name: str, tensor: Tensor, seed: int) -> Tensor:
    """N(0, 0.02) for matrices and tables; vectors stay as the library starts them."""
    if tensor.dim() < 2 or not tensor.is_floating_point():
        return tensor

    return torch.empty_like(tensor).normal_(
        0.0, 0.02, generator=generator_for(seed, name)
    )


def _check_finite(state: dict[str, Tensor], origin: str) -> None:
    broken = []
    for name, tensor in state.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            broken.append(name)

    if broken:
        raise ValueError(
            f"{origin}: {broken[0]} has values that are not finite ({len(broken)} such tensors)"
        )
