"""Weights of backbones: finding the file, a strict report when its tensors do not fit, and the
names of several libraries.

`checkpoints.py` reads the file.
"""

from __future__ import annotations

import difflib
import functools
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from pointsweep.config.backbones import WEIGHT_KINDS, BackboneConfig
from pointsweep.errors import MissingWeightsError, WeightsNotFetchedError
from pointsweep.storage.staging import staged_file
from pointsweep.storage.stores import is_address

BLOCK = re.compile(r"blocks\.(\d+)\.")
NUM_HINTS = 5  # names that are searched for among hundreds of others
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def local_file(config: BackboneConfig) -> Path:
    """The file that `weights:` names. Raises MissingWeightsError if it is not there."""
    if is_address(config.weights):
        return _from_s3(config, config.weights)

    path = Path(config.weights).expanduser()
    if path.is_dir():
        inside = []
        for entry in sorted(path.iterdir()):
            if entry.suffix in (".safetensors", ".bin", ".pth", ".pt"):
                inside.append(entry.name)

        hint = f"; it holds {', '.join(inside[:5])}: name one of them" if inside else ""
        raise MissingWeightsError(
            f"backbone.weights: {path} is a folder, a file is expected for {config.name}{hint}"
        )

    if not path.is_file():
        raise MissingWeightsError(
            f"backbone.weights: no file {path} for {config.name}; {allowed_weights(config)}"
        )

    return path


def allowed_weights(config: BackboneConfig) -> str:
    """Return what `weights:` can be, the nearest of its words first."""
    near = difflib.get_close_matches(config.weights, WEIGHT_KINDS, n=1)
    meant = f"did you mean {near[0]}? " if near else ""
    return f"{meant}allowed: {', '.join(WEIGHT_KINDS)} or a file's path"


def _from_s3(config: BackboneConfig, address: str) -> Path:
    try:
        return staged_file(address)
    except (ValueError, FileNotFoundError) as error:
        raise MissingWeightsError(
            f"weights of {config.name}: {address} cannot be staged: {error}"
        ) from error


def hub_file(
    config: BackboneConfig,
    repository: str,
    fetch: bool,
    filename: str = "model.safetensors",
) -> Path:
    """A file of a hub repository, from the local cache, or fetched if asked. Raises
    MissingWeightsError naming id, cache, `weights:`.
    """
    from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # of a connection too, which is no OSError

    cached = try_to_load_from_cache(repository, filename)

    if isinstance(cached, str):
        return Path(cached)

    where = (
        f"hub id {repository}, file {filename}, expected in {constants.HF_HUB_CACHE}"
    )
    try:
        if fetch:
            return Path(hf_hub_download(repository, filename))

        _ask_hub(repository, filename)
        raise WeightsNotFetchedError(
            f"weights of {config.name} are not cached: {where}; a launch fetches them first"
        )
    except WeightsNotFetchedError:
        raise
    except (OSError, ValueError, HTTPError) as error:
        cause = f"{type(error).__name__}: {error}".rstrip(".")
        raise MissingWeightsError(
            f"weights of {config.name} are not cached, and the hub cannot be asked: {cause};"
            f" {where}; fetch them there, or set backbone.weights to a local file or to random"
        ) from error


@functools.cache
def _ask_hub(repository: str, filename: str) -> None:
    """Raise what `hf_hub_download` would raise, without the file: OSError, ValueError,
    HTTPError.
    """
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url

    if constants.HF_HUB_OFFLINE:
        raise OSError("HF_HUB_OFFLINE is set")

    get_hf_file_metadata(
        hf_hub_url(repository, filename), timeout=constants.HF_HUB_ETAG_TIMEOUT
    )


def data_file(config: BackboneConfig, relative: str) -> Path:
    """A weight file below the folder that POINTSWEEP_DATA names. Raises MissingWeightsError."""
    root = os.environ.get("POINTSWEEP_DATA")
    if root and is_address(root):
        return _from_s3(config, f"{root.rstrip('/')}/{relative}")

    path = Path(root or "", relative)
    if not root or not path.is_file():
        where = path if root else "POINTSWEEP_DATA, which is not set"
        raise MissingWeightsError(
            f"weights of {config.name} not found: looked for {where}; or set backbone.weights to a"
            " file's path"
        )

    return path


def misfits(module: nn.Module, state: Mapping[str, Tensor]) -> list[str]:
    """Return what is missing, unexpected or misshapen, the first with the nearest names; empty if
    the tensors fit.
    """
    own = module.state_dict()
    missing = [name for name in own if name not in state]
    unexpected = [name for name in state if name not in own]
    problems = []
    num_stored, num_needed = num_blocks(state), num_blocks(own)

    if 0 < num_stored < num_needed:
        problems.append(
            f"the file holds {num_stored} blocks, {num_needed} are needed (num_blocks:"
            f" {num_stored} takes those)"
        )
        missing = [name for name in missing if not _is_block_from(name, num_stored)]

    for word, names, others in (
        ("missing", missing, unexpected),
        ("unexpected", unexpected, missing),
    ):
        for number, name in enumerate(names):
            hint = _nearest(name, others) if number < NUM_HINTS else ""
            problems.append(f"{word} {name}{hint}")

    for name, tensor in own.items():
        if name in state and state[name].shape != tensor.shape:
            found, expected = tuple(state[name].shape), tuple(tensor.shape)
            problems.append(f"{name} is {found}, expected {expected}")

    return problems


def num_blocks(names: Iterable[str]) -> int:
    """Return how many blocks a state dict of this package's names has."""
    numbers = [int(match.group(1)) for name in names if (match := BLOCK.match(name))]
    return max(numbers, default=-1) + 1


def _is_block_from(name: str, first: int) -> bool:
    match = BLOCK.match(name)
    return match is not None and int(match.group(1)) >= first


def _nearest(name: str, others: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, others, n=1, cutoff=0.8)
    return f" (nearest: {near[0]})" if near else ""


def check_values(
    module: nn.Module,
    state: Mapping[str, Tensor],
    raw: Mapping[str, Tensor],
    source: str,
) -> None:
    """Check types and values of tensors that fit `module`; `raw` are those of the file, for their
    names there.

    Raises ValueError naming the file, the first tensor that is quantised or not finite, and how
    many there are.
    """
    names_by_storage: dict[int, list[str]] = {}
    for name, tensor in raw.items():
        if tensor.layout == torch.strided and not tensor.is_quantized:
            names_by_storage.setdefault(tensor.untyped_storage().data_ptr(), []).append(
                name
            )

    def in_the_file(name: str) -> str:
        names = names_by_storage.get(state[name].untyped_storage().data_ptr(), [])
        return names[0] if len(names) == 1 else name

    broken: list[str] = []
    for name, tensor in module.state_dict().items():
        stored = state[name]
        if stored.layout != torch.strided:
            raise ValueError(
                f"{source}: {name} is of the layout {stored.layout}, an ordinary tensor is expected"
            )

        if not tensor.is_floating_point():
            if stored.is_floating_point() or stored.is_complex():
                raise ValueError(
                    f"{source}: {in_the_file(name)} is {_type(stored)}, whole numbers are expected"
                )
        elif stored.dtype not in FLOATS:
            raise ValueError(
                f"{source}: {in_the_file(name)} is {_type(stored)}, expected"
                f" {', '.join(map(_name, FLOATS))}; quantised weights are not read: save them as"
                " they were before"
            )
        elif not (finite := torch.isfinite(stored.to(tensor.dtype))).all():
            count = int((~finite).sum())
            broken.append(
                f"{in_the_file(name)}: {count} of {stored.numel()} values are not finite as"
                f" {_name(tensor.dtype)}"
            )

    if broken:
        raise ValueError(f"{source}: {broken[0]} ({len(broken)} such tensors)")


def _type(tensor: Tensor) -> str:
    return f"of type {_name(tensor.dtype)}"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def init_random(module: nn.Module, seed: int) -> None:
    """The usual start of a transformer from one seed: matrices and tables N(0, 0.02), norms 1 and
    biases 0.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in module.state_dict(keep_vars=True).items():
        if tensor.dim() > 1:
            tensor.data.normal_(0.0, 0.02, generator=generator)
        else:
            tensor.data.fill_(
                1.0 if name.endswith("weight") or name.endswith("gamma") else 0.0
            )


@dataclass(frozen=True)
class Names:
    """Map of a checkpoint's names to this package's. What stands in none of them keeps its name
    and is reported by `misfits`.
    """

    direct: Mapping[str, str]  # whole names
    prefix: str  # of the numbered blocks, e.g. "encoder.layer."
    blocks: Mapping[str, str]  # names inside a block, without .weight and .bias
    dropped: tuple[str, ...] = ()  # prefixes of what is knowingly left out, e.g. a head

    def apply(self, state: Mapping[str, Tensor], depth: int) -> dict[str, Tensor]:
        """The state under this package's names; blocks from `depth` on are left out."""
        renamed: dict[str, Tensor] = {}
        for name, tensor in state.items():
            number, _, inner = name.removeprefix(self.prefix).partition(".")
            if name in self.direct:
                renamed[self.direct[name]] = tensor
            elif name.startswith(self.prefix) and number.isdecimal():
                if int(number) < depth:
                    renamed[f"blocks.{number}.{self._inner(inner)}"] = tensor
            elif not name.startswith(self.dropped):
                renamed[name] = tensor

        return renamed

    def _inner(self, name: str) -> str:
        stem, _, leaf = name.rpartition(".")
        if name in self.blocks:
            return self.blocks[name]
        if stem in self.blocks:
            return f"{self.blocks[stem]}.{leaf}"

        return name


def split_qkv(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Fused projections `...qkv.weight` of (3 C, C) as three, `...q.weight`, `...k.weight`,
    `...v.weight`; the rest as it is.
    """
    split: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if ".qkv." in name:
            for letter, part in zip("qkv", tensor.chunk(3), strict=True):
                split[name.replace(".qkv.", f".{letter}.")] = part
        else:
            split[name] = tensor

    return split


def split_in_proj(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """torch.nn.MultiheadAttention's `in_proj_*` as q, k and v; its `bias_k` and `bias_v` (1, 1, C)
    as one tensor `extra`.
    """
    split: dict[str, Tensor] = {}
    for name, tensor in state.items():
        stem, _, leaf = name.rpartition(".")
        if leaf.startswith("in_proj_"):
            kind = leaf.removeprefix("in_proj_")  # weight or bias
            for letter, part in zip("qkv", tensor.chunk(3), strict=True):
                split[f"{stem}.{letter}.{kind}"] = part
        elif leaf == "bias_k":
            split[f"{stem}.extra"] = torch.stack([tensor, state[f"{stem}.bias_v"]])
        elif leaf != "bias_v":
            split[name] = tensor

    return split


TIMM = {
    "pos_embed": "table",
    "cls_token": "cls_token",
    "norm.weight": "norm.weight",
    "norm.bias": "norm.bias",
}
TIMM_BLOCKS = {  # inside blocks.N; also of the original files of DINOv2, DeiT, SSAST
    "norm1": "norm1", "norm2": "norm2", "attn.q": "attn.q", "attn.k": "attn.k", "attn.v": "attn.v",
    "attn.proj": "attn.out",
    "mlp.fc1": "ffn.0", "mlp.fc2": "ffn.2", "ls1.gamma": "scale1.gamma",
    "ls2.gamma": "scale2.gamma",
}  # fmt: skip
VIT = {
    "embeddings.position_embeddings": "table", "embeddings.cls_token": "cls_token",
    "layernorm.weight": "norm.weight",
    "layernorm.bias": "norm.bias",
}  # fmt: skip
VIT_BLOCKS = {  # inside encoder.layer.N of transformers' ViT, DeiT and AST files
    "layernorm_before": "norm1", "layernorm_after": "norm2", "attention.attention.query": "attn.q",
    "attention.attention.key": "attn.k", "attention.attention.value": "attn.v",
    "attention.output.dense": "attn.out",
    "intermediate.dense": "ffn.0", "output.dense": "ffn.2",
}  # fmt: skip
BERT_BLOCKS = {  # inside encoder.layer.N of BERT's family
    "attention.self.query": "attn.q", "attention.self.key": "attn.k",
    "attention.self.value": "attn.v",
    "attention.output.dense": "attn.out", "attention.output.LayerNorm": "norm1",
    "intermediate.dense": "ffn.0",
    "output.dense": "ffn.2", "output.LayerNorm": "norm2",
}  # fmt: skip
CLIP_BLOCKS = {  # inside encoder.layers.N of both towers
    "layer_norm1": "norm1", "layer_norm2": "norm2", "self_attn.q_proj": "attn.q",
    "self_attn.k_proj": "attn.k",
    "self_attn.v_proj": "attn.v", "self_attn.out_proj": "attn.out", "mlp.fc1": "ffn.0",
    "mlp.fc2": "ffn.2",
}  # fmt: skip


# inside transformer.resblocks.N of OpenAI's own CLIP files, its attention split by `split_in_proj`
OPENAI_BLOCKS = {
    "ln_1": "norm1", "ln_2": "norm2", "attn.q": "attn.q", "attn.k": "attn.k", "attn.v": "attn.v",
    "attn.out_proj": "attn.out",
    "mlp.c_fc": "ffn.0", "mlp.c_proj": "ffn.2",
}  # fmt: skip


def without_prefix(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors below a prefix, without it; all of them where none has it."""
    tensors = {}
    for name, tensor in state.items():
        if name.startswith(prefix):
            tensors[name.removeprefix(prefix)] = tensor

    return tensors or dict(state)


def grid_table(table: Tensor, rows: int, columns: int, leading: int = 1) -> Tensor:
    """A position table (1, leading + rows * columns, C) in row-major order as (rows, columns, C),
    without its leading rows.

    Raises ValueError for a table of another size.
    """
    if (
        table.dim() != 3
        or table.shape[0] != 1
        or table.shape[1] != leading + rows * columns
    ):
        raise ValueError(position_table_size(table.shape, rows, columns, leading))

    return table[0, leading:].reshape(rows, columns, -1)


def position_table_size(
    shape: Sequence[int], rows: int, columns: int, leading: int
) -> str:
    """The message for a position table of a wrong size: the shape that it has and the positions
    that are expected.
    """
    expected = (
        f"expected {rows} x {columns} positions ({leading} + {rows * columns} rows)"
    )
    count = shape[-2] - leading if len(shape) > 1 else 0
    side = math.isqrt(max(count, 0))
    size = f"{count} positions"

    if side and side * side == count:
        size = f"{side} x {side} positions"

    return (
        f"its position table {tuple(shape)} has {size}, {expected}: a checkpoint for another input"
        " size"
    )


def line_table(table: Tensor, rows: int) -> Tensor:
    """A position table (rows, C) as it is. Raises ValueError if it has fewer or more rows."""
    if table.dim() != 2 or len(table) != rows:
        raise ValueError(
            f"its position table has shape {tuple(table.shape)}, {rows} positions are expected"
        )

    return table


def with_new_norm(state: Mapping[str, Tensor], dim: int) -> dict[str, Tensor]:
    """Add a plain final norm, which the model trains, to a checkpoint that has none."""
    return dict(state) | {"norm.weight": torch.ones(dim), "norm.bias": torch.zeros(dim)}
