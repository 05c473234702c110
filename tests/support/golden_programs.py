"""Outputs of the papers' released programs, and our models with the weights that those outputs were made with.

The folder is named by POINTSWEEP_GOLDEN; without it, `golden` beside the folder POINTSWEEP_DATA. A program's file lists the
names and shapes of its tensors; a weight is drawn from a generator seeded with its name.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from torch import Tensor

from pointsweep.config.validation import trial_from_dict
from pointsweep.models.point_model import PointModel
from pointsweep.ops.point_ops import farthest_points, gather

CLASSES = 15
TOKENIZER = (
    (r"raw_point_embed\.net\.", "embed."),
    (r"LGA_list\.(\d+)\.linear1\.net\.", r"widen.\1."),
    (r"LGA_list\.(\d+)\.linear2\.(\d+)\.net1\.", r"stages.\1.\2.layers."),
)


def golden_folder() -> Path:
    """Return the folder of the outputs; the test is skipped where there is none."""
    named = os.environ.get("POINTSWEEP_GOLDEN")
    data = os.environ.get("POINTSWEEP_DATA")
    folder = Path(named) if named else Path(data).parent / "golden" if data else None
    if folder is None or not folder.is_dir():
        pytest.skip("neither POINTSWEEP_GOLDEN nor a folder golden beside POINTSWEEP_DATA")
    return folder


def data_folder() -> Path:
    data = os.environ.get("POINTSWEEP_DATA")
    if not data or not Path(data).is_dir():
        pytest.skip("POINTSWEEP_DATA names no folder of real data")
    return Path(data)


def outputs(program: str) -> dict[str, np.ndarray]:
    with np.load(golden_folder() / f"{program}.npz") as arrays:
        return dict(arrays)


def generator(name: str) -> torch.Generator:
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "little")
    return torch.Generator().manual_seed(seed)


def weight(name: str, shape: list[int]) -> Tensor:
    drawn = torch.randn(shape, generator=generator(name))
    if name.endswith("running_var"):
        return 0.5 + torch.rand(shape, generator=generator(name))
    if name.endswith("running_mean"):
        return 0.1 * drawn
    if drawn.dim() == 1 and name.endswith("weight"):
        return 1 + 0.2 * drawn
    if drawn.dim() <= 1:
        return 0.1 * drawn
    return drawn * (1 / max(drawn[0].numel(), 1)) ** 0.5


def weights(program: str) -> dict[str, Tensor]:
    shapes = json.loads((golden_folder() / f"{program}.json").read_text())
    return {name: weight(name, shape) for name, shape in shapes.items()}


def model(trial: dict[str, Any], state: dict[str, Tensor]) -> PointModel:
    """Return the model of a trial with the given weights, all of them and no others, in evaluation mode."""
    built = PointModel(trial_from_dict(trial), CLASSES)
    own = {name for name in built.state_dict() if not name.endswith("num_batches_tracked")}
    assert own == set(state), sorted(own ^ set(state))
    built.load_state_dict(state, strict=False)
    return built.eval()


def any2point_state(program: dict[str, Tensor], table: Tensor) -> dict[str, Tensor]:
    """Return the weights of Any2Point's program under our names; its per-view tensors lie in one of ours each."""
    state = {"backbone.table": table}
    views: dict[str, dict[int, Tensor]] = {}
    for name, value in program.items():
        new = name.removeprefix("encoder.").replace("cls_pos", "cls_position")
        parted = re.match(r"(attn1|norm3)\.(\d+)\.(.*)", new)
        cells = re.match(r"(?:res)?blocks\.(\d+)\.out_transform_[12]d\.(\d+)\.0\.(.*)", new)
        if parted:
            views.setdefault(_of_views(parted[1], parted[3]), {})[int(parted[2])] = value
        elif cells:
            views.setdefault(f"method.cell_norms.{cells[1]}.{cells[3]}", {})[int(cells[2])] = value
        elif new.startswith("patch_embed."):
            state["tokenizer." + tokenizer_name(new.removeprefix("patch_embed.EncP."))] = value
        elif new.startswith("prediction.head."):
            state["head." + head_name(new.removeprefix("prediction.head."))] = value
        else:
            state |= block_state(new, value)
    for name, parts in views.items():
        ordered = [parts[view] for view in sorted(parts)]
        matrices = ordered[0].dim() == 2
        state[name] = torch.stack([part.t() for part in ordered]) if matrices else torch.cat(ordered)
    return state


def appt_state(program: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of APPT's demo under our names. Its `cls_pos` is used nowhere."""
    positions = program["pos_embed"]
    state = {"cls_position": positions[:, :1], "positions.table": positions[:, 1:], "backbone.table": torch.zeros(14, 14, 768)}
    for name, value in program.items():
        if name in ("pos_embed", "cls_pos"):
            continue
        if name.startswith("encoder_large."):
            state["tokenizer." + tokenizer_name(name.removeprefix("encoder_large.EncP."))] = value
        elif name.startswith("head."):
            state[name.replace("head.", "head.layers.", 1)] = value
        elif name.startswith("conv_block."):
            state[name.replace("conv_block", "method.mix")] = value.reshape(1, 2) if value.dim() == 3 else value
        else:
            state |= block_state(name.replace("enc_norm", "norm"), value)
    return state


def tokenizer_name(name: str) -> str:
    for pattern, ours in TOKENIZER:
        name = re.sub(pattern, ours, name)
    second = re.fullmatch(r"LGA_list\.(\d+)\.linear2\.(\d+)\.net2\.(\d)\.(.*)", name)
    return f"stages.{second[1]}.{second[2]}.layers.{int(second[3]) + 3}.{second[4]}" if second else name


def head_name(name: str) -> str:
    layer, part, rest = name.split(".", 2)
    return f"layers.{ {0: 0, 2: 4, 4: 8}[int(layer)] + int(part) }.{rest}"


def block_state(name: str, value: Tensor) -> dict[str, Tensor]:
    """Return one tensor of a block, or one that stands outside of blocks, under our names; fused projections are parted."""
    adapter = re.fullmatch(r"(?:res)?blocks\.(\d+)\.adapter\.ln([12])\.(.*)", name)
    if adapter:
        return {f"method.bottlenecks.{adapter[1]}.{0 if adapter[2] == '1' else 3}.{adapter[3]}": value}
    voxels = re.fullmatch(r"(?:res)?blocks\.(\d+)\.out_transform_3d\.0\.(.*)", name)
    if voxels:
        return {f"method.voxel_norms.{voxels[1]}.{voxels[2]}": value}
    block = re.fullmatch(r"(?:res)?blocks\.(\d+)\.(.*)", name)
    if not block:
        return {name: value}
    place = f"backbone.blocks.{block[1]}."
    fused = re.fullmatch(r"attn\.(?:qkv\.|in_proj_)(weight|bias)", block[2])
    if fused:
        return {f"{place}attn.{part}.{fused[1]}": rows for part, rows in zip("qkv", value.chunk(3), strict=True)}
    renamed = block[2]
    pairs = {
        "attn.out_proj": "attn.out", "attn.proj": "attn.out", "ln_1": "norm1", "ln_2": "norm2", "ls1": "scale1", "ls2": "scale2",
        "mlp.c_fc": "ffn.0", "mlp.c_proj": "ffn.2", "mlp.fc1": "ffn.0", "mlp.fc2": "ffn.2",
    }  # fmt: skip
    for theirs, ours in pairs.items():
        renamed = renamed.replace(theirs, ours)
    return {place + renamed: value}


def _of_views(module: str, rest: str) -> str:
    names = {
        "qkv.weight": "qkv_weight", "qkv.bias": "qkv_bias", "proj.weight": "out_weight", "proj.bias": "out_bias",
        "weight": "norm_weight", "bias": "norm_bias",
    }  # fmt: skip
    return f"method.attention.{names[rest]}"


def scanobjectnn_clouds() -> Tensor:
    """Return the two clouds of the programs for ScanObjectNN, 1,024 farthest points of each, where they are stored."""
    folder = data_folder() / "scanobjectnn_dev"
    found = []
    for split in ("training", "test"):
        path = next(folder.rglob(f"{split}_objectdataset_augmentedrot_scale75.h5"))
        with h5py.File(path) as file:
            found.append(file["data"][:2])
    points = torch.from_numpy(np.concatenate(found)[:2].astype(np.float32))
    return gather(points, farthest_points(points, 1024))


def point_nn_clouds() -> Tensor:
    """Return the three clouds of Point-NN, centred and of norm 1, where they are stored."""
    folder = data_folder() / "modelnet40_mini"
    with h5py.File(next(folder.rglob("ply_data_test0.h5"))) as file:
        stored = file["data"]
        rows = np.linspace(0, len(stored) - 1, 16).round().astype(int)[:3]
        points = torch.from_numpy(stored[rows].astype(np.float32))
    return on_unit_sphere(points - points.mean(dim=1, keepdim=True))


def on_unit_sphere(points: Tensor) -> Tensor:
    return points / points.norm(dim=2).amax(dim=1)[:, None, None]


def thinned(tensor: Tensor) -> Tensor:
    """Return every so many of the tokens and channels of (B, T, C), as the outputs are stored."""
    return tensor[:, :: max(tensor.shape[1] // 12, 1), :: max(tensor.shape[2] // 40, 1)]


def difference(found: Tensor, wanted: np.ndarray) -> float:
    """Return the largest difference, relative to the largest value."""
    return float(np.abs(found.numpy() - wanted).max() / np.abs(wanted).max())
