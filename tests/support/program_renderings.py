"""The released programs' forwards, written out from the method specification in float64 with torch's plain operators.

Nothing here calls the package. Weights are taken by the names of our state dict. A `Rendering` in training takes the batch's
statistics and keeps the moved ones in `moved`; there is no dropout and no drop path. Sections are those of the specification.
Letters: B clouds, P points, N tokens, C channels, G centres, K neighbours, M views.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

HALF = math.pi / 2
VIEW_ANGLES = ((0, 0, 1), (1, 0, 1), (2, 0, 1), (3, 0, 1), (0, -1, 1), (0, 1, 1))  # of 90 degrees, 2.2
NEAR_ORIGIN = 1e-3  # squared


def farthest(points: Tensor, count: int, skip: bool) -> Tensor:
    """points (B, P, 3) -> indices (B, count), 1.1."""
    rows = []
    for cloud in points:
        far = torch.full((len(cloud),), 1e10, dtype=cloud.dtype)
        chosen = [0]
        for _ in range(count - 1):
            far = torch.minimum(far, ((cloud - cloud[chosen[-1]]) ** 2).sum(1))
            allowed = far.clone()
            if skip:
                allowed[(cloud**2).sum(1) <= NEAR_ORIGIN] = -1
            chosen.append(int(allowed.argmax()))
        rows.append(torch.tensor(chosen))
    return torch.stack(rows)


def closest(queries: Tensor, points: Tensor, count: int) -> Tensor:
    """queries (B, G, 3), points (B, P, 3) -> indices (B, G, count), 1.1."""
    return ((queries[:, :, None] - points[:, None]) ** 2).sum(3).argsort(dim=2, stable=True)[:, :, :count]


def take(values: Tensor, index: Tensor) -> Tensor:
    """values (B, P, C) at index (B, ...) -> (B, ..., C)."""
    return torch.stack([one[at] for one, at in zip(values, index, strict=True)])


def position_embedding(relative: Tensor, width: int) -> Tensor:
    """PosE of (..., 3), 1.1: all sines of an axis, then all its cosines."""
    count = width // 6
    parts = []
    for axis in range(3):
        angles = torch.stack([100 * relative[..., axis] / 1000 ** (i / count) for i in range(count)], dim=-1)
        parts += [angles.sin(), angles.cos()]
    return torch.cat(parts, dim=-1)


def at_common_scale(relative: Tensor, kind: str) -> Tensor:
    """Relative coordinates (B, G, K, 3), 1.1 and T42; `scan_eps` is APPT's."""
    if kind == "mn40":
        return relative / (relative.std() + 1e-5)
    largest = relative.abs().amax(2, keepdim=True)
    return relative / (largest + (1e-6 if kind == "scan_eps" else 0.0))


def gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / 2**0.5)) / 2


def quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


def smoothed_loss(logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """Cross-entropy with 1 - smoothing on the label and the rest shared by the other classes (4.4)."""
    others = logits.shape[1] - 1
    target = torch.full_like(logits, smoothing / others)
    target[torch.arange(len(labels)), labels] = 1 - smoothing
    return -(target * (logits - logits.logsumexp(1, keepdim=True))).sum(1).mean()


class Rendering:
    """The weights of a model in float64, those in `trained` with a gradient, and layers that take them by name."""

    def __init__(self, state: Mapping[str, Tensor], trained: set[str], training: bool) -> None:
        self.w = {name: value.detach().double().clone().requires_grad_(name in trained) for name, value in state.items()}
        self.training = training
        self.moved: dict[str, Tensor] = {}

    def linear(self, name: str, x: Tensor) -> Tensor:
        """The layer over the last axis; a convolution of size 1 is one."""
        weight = self.w[f"{name}.weight"]
        out = x @ weight.reshape(weight.shape[:2]).t()
        bias = self.w.get(f"{name}.bias")
        return out if bias is None else out + bias

    def layer_norm(self, name: str, x: Tensor, eps: float) -> Tensor:
        away = x - x.mean(-1, keepdim=True)
        return away / (away.square().mean(-1, keepdim=True) + eps).sqrt() * self.w[f"{name}.weight"] + self.w[f"{name}.bias"]

    def batch_norm(self, name: str, x: Tensor, frozen: bool = False, cut: slice = slice(None)) -> Tensor:
        """Over all axes but the last; `cut`: one view's of the statistics that lie in one tensor; `frozen`: evaluation."""
        stored = self.w[f"{name}.running_mean"][cut], self.w[f"{name}.running_var"][cut]
        mean, var = stored
        if self.training and not frozen:
            rows = x.reshape(-1, x.shape[-1])
            mean = rows.mean(0)
            var = (rows - mean).square().mean(0)
            unbiased = var * len(rows) / (len(rows) - 1)
            for key, old, new in zip(("running_mean", "running_var"), stored, (mean, unbiased), strict=True):
                whole = self.moved.setdefault(f"{name}.{key}", self.w[f"{name}.{key}"].clone())
                whole[cut] = 0.9 * old + 0.1 * new.detach()
        return (x - mean) / (var + 1e-5).sqrt() * self.w[f"{name}.weight"][cut] + self.w[f"{name}.bias"][cut]

    def bottleneck(self, name: str, x: Tensor) -> Tensor:
        return self.linear(f"{name}.3", quick_gelu(self.linear(f"{name}.0", x)))

    def attend(self, name: str, x: Tensor, heads: int) -> Tensor:
        """Self-attention over the second axis of (B, T, C)."""
        batch, tokens, width = x.shape
        q, k, v = (self.linear(f"{name}.{part}", x).reshape(batch, tokens, heads, -1).transpose(1, 2) for part in "qkv")
        weights = (q @ k.transpose(2, 3) / (width // heads) ** 0.5).softmax(3)
        return self.linear(f"{name}.out", (weights @ v).transpose(1, 2).reshape(batch, tokens, width))

    def branches(
        self, name: str, x: Tensor, heads: int, eps: float, quick: bool = False, across: bool = False
    ) -> tuple[Tensor, Tensor]:
        """x after the attention branch, and the feed-forward branch; `across`: the batch for the sequence (T1)."""
        normed = self.layer_norm(f"{name}.norm1", x, eps)
        attended = (
            self.attend(f"{name}.attn", normed.transpose(0, 1), heads).transpose(0, 1)
            if across
            else self.attend(f"{name}.attn", normed, heads)
        )
        x = x + attended * self.w.get(f"{name}.scale1.gamma", 1.0)
        hidden = self.linear(f"{name}.ffn.0", self.layer_norm(f"{name}.norm2", x, eps))
        out = self.linear(f"{name}.ffn.2", quick_gelu(hidden) if quick else gelu(hidden))
        return x, out * self.w.get(f"{name}.scale2.gamma", 1.0)

    def residual(self, name: str, x: Tensor) -> Tensor:
        inner = self.batch_norm(f"{name}.1", self.linear(f"{name}.0", x)).relu()
        return (x + self.batch_norm(f"{name}.4", self.linear(f"{name}.3", inner))).relu()

    def head(self, features: Tensor) -> Tensor:
        for layer in (0, 4):
            features = self.batch_norm(f"head.layers.{layer + 1}", self.linear(f"head.layers.{layer}", features)).relu()
        return self.linear("head.layers.8", features)

    def mini_network(self, points: Tensor, counts: list[int], neighbours: int, kind: str, skip: bool) -> tuple[Tensor, Tensor]:
        """Any2Point's tokens and centres, 1.2."""
        places = points
        features = self.batch_norm("tokenizer.embed.1", self.linear("tokenizer.embed.0", points)).relu()
        for stage, (count, repeats) in enumerate(zip(counts, (2, 1, 1), strict=True)):
            chosen = farthest(places, count, skip)
            centers, own = take(places, chosen), take(features, chosen)
            near = closest(centers, places, neighbours)
            relative = at_common_scale(take(places, near) - centers[:, :, None], kind)
            beside = take(features, near)
            wide = torch.cat([beside, own[:, :, None].expand_as(beside)], dim=3)
            wide = wide + position_embedding(relative, wide.shape[3])
            for repeat in range(repeats):
                wide = self.residual(f"tokenizer.stages.{stage}.{repeat}.layers", wide)
            places, features = centers, wide.amax(2)
        return features, places

    def full_network(self, inputs: Tensor, counts: list[int], neighbours: int) -> Tensor:
        """APPT's tokens, 1.3: inputs (B, P, 4)."""
        places = inputs[:, :, :3]
        features = self.batch_norm("tokenizer.embed.1", self.linear("tokenizer.embed.0", inputs)).relu()
        for stage, (count, repeats) in enumerate(zip(counts, (2, 1, 1, 1), strict=True)):
            chosen = farthest(places, count, skip=False)
            centers, own = take(places, chosen), take(features, chosen)
            near = closest(centers, places, neighbours)
            relative = at_common_scale(take(places, near) - centers[:, :, None], "scan_eps")
            beside = take(features, near)
            pair = torch.cat([beside, own[:, :, None].expand_as(beside)], dim=3)
            wide = self.batch_norm(f"tokenizer.widen.{stage}.1", self.linear(f"tokenizer.widen.{stage}.0", pair)).relu()
            encoding = position_embedding(relative, wide.shape[3])
            wide = (wide + encoding) * encoding
            for repeat in range(repeats):
                wide = self.residual(f"tokenizer.stages.{stage}.{repeat}.layers", wide)
            places, features = centers, wide.amax(2) + wide.mean(2)
        return features

    def patches(self, name: str, groups: Tensor, frozen: bool) -> Tensor:
        """Point-MAE's mini-PointNet over groups (B, G, K, 3), 1.4."""
        hidden = self.batch_norm(f"{name}.first_conv.1", self.linear(f"{name}.first_conv.0", groups), frozen).relu()
        hidden = self.linear(f"{name}.first_conv.3", hidden)
        hidden = torch.cat([hidden.amax(2, keepdim=True).expand_as(hidden), hidden], dim=3)
        hidden = self.batch_norm(f"{name}.second_conv.1", self.linear(f"{name}.second_conv.0", hidden), frozen).relu()
        return self.linear(f"{name}.second_conv.3", hidden).amax(2)

    def places_of(self, name: str, centers: Tensor) -> Tensor:
        return self.linear(f"{name}.2", gelu(self.linear(f"{name}.0", centers)))


def rotation(angles: tuple[int, int, int]) -> Tensor:
    """Rx Ry Rz of quarter turns."""
    x, y, z = (angle * HALF for angle in angles)
    rx = [[1, 0, 0], [0, math.cos(x), -math.sin(x)], [0, math.sin(x), math.cos(x)]]
    ry = [[math.cos(y), 0, math.sin(y)], [0, 1, 0], [-math.sin(y), 0, math.cos(y)]]
    rz = [[math.cos(z), -math.sin(z), 0], [math.sin(z), math.cos(z), 0], [0, 0, 1]]
    made = [torch.tensor(matrix, dtype=torch.float64) for matrix in (rx, ry, rz)]
    return (made[0] @ made[1] @ made[2]).round()


def turned(centers: Tensor) -> Tensor:
    """centers (B, N, 3) -> (B, M, N, 3): R p of each view, 2.2."""
    return torch.stack([centers @ rotation(angles).t() for angles in VIEW_ANGLES], dim=1)


def line_encodings(centers: Tensor, direction: tuple[float, float, float], table: Tensor) -> tuple[Tensor, Tensor, int]:
    """Encodings (B, N, C), segments (B, M, N) and their number, 2.3, in the official form (T5, T6, T8)."""
    axis = torch.tensor(direction, dtype=torch.float64)
    q = turned(centers)
    along = (q - q.mean(2, keepdim=True)) @ (axis / axis.norm())
    low, high = along.amin(2, keepdim=True), along.amax(2, keepdim=True)
    at = (77 * (along - low) / (high - low) - 0.5) % 77
    z = at * 76 / (at.max() - at.min())
    left, right = z.floor().clamp(0, 76), z.ceil().clamp(0, 76)
    found = (right - z)[..., None] * table[left.long()] + (z - left)[..., None] * table[right.long()]
    return found.mean(1), (at / 2).floor().long(), 39


def plane_encodings(
    centers: Tensor, translation: float, width: int, height: int, cell: int, table: Tensor
) -> tuple[Tensor, Tensor, int]:
    """Encodings (B, N, C), cells (B, M, N) and their number, 2.4, in the official form (T13, T14, T41); table (rows, columns, C)."""
    q = turned(centers)
    depth = q[..., 2] - translation + 1e-12
    x = ((q[..., 0] / depth + 1) * width / 2 - 0.5) % width
    y = ((q[..., 1] / depth * (height / width) + 1) * height / 2 - 0.5) % height
    rows, columns, channels = table.shape
    column, row = x / (width - 1) * (columns - 1), y / (height - 1) * (rows - 1)
    padded = torch.zeros(rows + 2, columns + 2, channels, dtype=torch.float64)
    padded[1:-1, 1:-1] = table
    left, top = column.floor(), row.floor()
    found = torch.zeros(*x.shape, channels, dtype=torch.float64)
    for down in (0, 1):
        for across in (0, 1):
            share = (1 - (column - left - across).abs()) * (1 - (row - top - down).abs())
            r = (top.long() + down + 1).clamp(0, rows + 1)
            c = (left.long() + across + 1).clamp(0, columns + 1)
            found += share[..., None] * padded[r, c]
    batch, views, tokens = x.shape
    by_channel = found.transpose(2, 3).reshape(batch * views, channels, tokens)
    encodings = by_channel.reshape(batch, views, tokens, channels).mean(1)
    across_plane, down_plane = math.ceil(width / cell), math.ceil(height / cell)
    cells = (x / cell).floor().long() + (y / cell).floor().long() * across_plane
    return encodings, cells, across_plane * down_plane


def any2point(r: Rendering, points: Tensor, program: Mapping[str, object]) -> Tensor:
    """Logits of Any2Point's programs, 2.1-2.6; `program`: the row of 2.8 and of the table in 2.1."""
    p = program
    tokens, centers = r.mini_network(points, p["counts"], p["neighbours"], p["normalisation"], p["skip"])
    table = r.w["backbone.table"]
    if p["plane"] is None:
        encodings, cells, number = line_encodings(centers, p["line"], table)
    else:
        width, height, cell = p["plane"]
        if width == 192:
            table = table.reshape(19, 12, -1)  # T14
        encodings, cells, number = plane_encodings(centers, p["translation"], width, height, cell, table)
    batch = len(points)
    encodings = torch.cat([r.w["cls_position"].expand(batch, -1, -1), encodings], dim=1)
    x = torch.cat([r.w["cls_token"].expand(batch, -1, -1), tokens], dim=1)
    if p["injection"] != "each_block":
        x = x + encodings
    for block in range(p["blocks"]):
        if p["injection"] != "once":
            x = x + encodings
        x, f = r.branches(f"backbone.blocks.{block}", x, 12, p["eps"], quick=p["clip"], across=p["clip"])
        x = x + f + p["scale"] * r.bottleneck(f"method.bottlenecks.{block}", f)
        t = x[:, 1:] + p["coef"] * guided(r, block, x[:, 1:], centers, cells, number, p)
        x = torch.cat([x[:, :1], t], dim=1)
    x = r.layer_norm("norm", x, p["final_eps"])
    first, largest = x[:, 0], x[:, 1:].amax(1)
    return r.head(torch.cat([largest, first] if p["max_first"] else [first, largest], dim=1))


def guided(r: Rendering, block: int, t: Tensor, centers: Tensor, cells: Tensor, number: int, p: Mapping[str, object]) -> Tensor:
    """What the guided adapter adds to the tokens t (B, N, C), without its factor, 2.5."""
    batch, _, width = t.shape
    grid = ((centers - centers.amin(1, keepdim=True)) / p["voxel"]).floor().long()
    voxels = [torch.unique(one, dim=0, return_inverse=True)[1] for one in grid]
    pooled = [
        torch.stack([t[b][v == i].amax(0) + t[b][v == i].mean(0) for i in range(int(v.max()) + 1)]) for b, v in enumerate(voxels)
    ]
    bases = gelu(r.batch_norm(f"method.voxel_norms.{block}", torch.cat(pooled)))
    starts = [0, *torch.tensor([len(one) for one in pooled]).cumsum(0).tolist()]
    base = torch.stack([bases[starts[b] + v] for b, v in enumerate(voxels)])  # (B, N, C)
    views, weights = [], []
    for j in range(cells.shape[1]):
        y = t + local_attention(r, j, t, cells[:, j])
        means = []
        for b in range(batch):
            for cell in range(number):
                members = y[b][cells[b, j] == cell]
                if not len(members):
                    means.append(torch.zeros(width, dtype=torch.float64))
                    continue
                means.append(members.mean(0) + (members.amax(0) if p["mean_max"] else 0))
        cut = slice(j * width, (j + 1) * width)
        found = gelu(r.batch_norm(f"method.cell_norms.{block}", torch.stack(means), cut=cut)).reshape(batch, number, width)
        view = take(found, cells[:, j])
        views.append(view)
        weights.append((torch.cosine_similarity(view, base, dim=2) + 1) / 2)
    total = torch.stack(weights).sum(0)
    return sum((weight / total)[..., None] * view for weight, view in zip(weights, views, strict=True))


def local_attention(r: Rendering, view: int, t: Tensor, cells: Tensor) -> Tensor:
    """LA of the normed tokens among those of a cell: 6 heads of 2, scaled by 12^-0.5; weights of all views lie in one tensor."""
    batch, tokens, width = t.shape
    cut = slice(view * width, (view + 1) * width)
    away = t - t.mean(-1, keepdim=True)
    normed = away / (away.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    normed = normed * r.w["method.attention.norm_weight"][cut] + r.w["method.attention.norm_bias"][cut]
    bias = r.w["method.attention.qkv_bias"][36 * view : 36 * view + 36]
    qkv = (normed @ r.w["method.attention.qkv_weight"][view] + bias).reshape(batch, tokens, 3, 6, 2).permute(2, 0, 3, 1, 4)
    far = torch.where(cells[:, :, None] == cells[:, None, :], 0.0, -1e5)[:, None]
    weights = (qkv[0] @ qkv[1].transpose(2, 3) * 12**-0.5 + far).softmax(3)
    mixed = (weights @ qkv[2]).transpose(1, 2).reshape(batch, tokens, 12)
    return mixed @ r.w["method.attention.out_weight"][view] + r.w["method.attention.out_bias"][cut]


def appt(r: Rendering, inputs: Tensor, counts: list[int], neighbours: int, blocks: int) -> Tensor:
    """Logits of APPT's demo, 4.1: inputs (B, P, 4)."""
    x = r.full_network(inputs, counts, neighbours)
    g = x.amax(1, keepdim=True) + x.mean(1, keepdim=True)
    w = r.w["method.mix.weight"].flatten()
    x = x + (w[0] * x + w[1] * (x - x.mean(1, keepdim=True)) + r.w["method.mix.bias"])
    tokens = x.shape[1]
    x = torch.cat([r.w["cls_token"].expand(len(x), -1, -1), x], dim=1)
    x = x + torch.cat([r.w["cls_position"], r.w["positions.table"]], dim=1)
    for block in range(blocks):
        x = torch.cat([x[:, : block + 1], g, x[:, -tokens:]], dim=1)
        x, f = r.branches(f"backbone.blocks.{block}", x, 12, 1e-5)
        x = x + f
    x = torch.cat([x[:, :blocks], g, x[:, -tokens:]], dim=1)
    x = r.layer_norm("norm", x, 1e-5)
    return r.head(x.mean(1)[:1] + x.amax(1))  # the first cloud's mean (T3)


def encoder_maximum(r: Rendering, points: Tensor, groups: int, size: int, blocks: int) -> Tensor:
    """Point-PEFT's query (B, C): the maximum over the frozen encoder's tokens, 3.2."""
    name = "method.encoder"
    with torch.no_grad():
        centers = take(points, farthest(points, groups, skip=True))
        near = closest(centers, points, size)
        x = r.patches(f"{name}.stem.patches.0", take(points, near) - centers[:, :, None], frozen=True)
        places = r.places_of(f"{name}.stem.places.0", centers)
        for block in range(blocks):
            x, f = r.branches(f"{name}.blocks.{block}", x + places, 6, 1e-5)
            x = x + f
        return r.layer_norm(f"{name}.norm", x, 1e-5).amax(1)


def point_peft(r: Rendering, points: Tensor, bank_of: Tensor, p: Mapping[str, int]) -> Tensor:
    """Logits of Point-PEFT's program for Point-MAE on ScanObjectNN, 3.1-3.3, with the strides and centres of T2."""
    bank = torch.cat([encoder_maximum(r, one[None], p["bank_groups"], p["bank_size"], p["blocks"]) for one in bank_of])
    bank = bank / bank.norm(dim=1, keepdim=True)
    query = encoder_maximum(r, points, p["bank_groups"], p["bank_size"], p["blocks"])
    similarity = query / query.norm(dim=1, keepdim=True) @ bank.t()
    top = similarity.sort(dim=1, descending=True)
    values, index = top.values[:, : p["prompts"] - 2], top.indices[:, : p["prompts"] - 2]
    mixed = (values.softmax(1)[..., None] * bank[index]).sum(1, keepdim=True)
    known = torch.cat([query[:, None], mixed, bank[index]], dim=1)  # (B, S, C)

    centers = take(points, farthest(points, p["tokens"], skip=True))
    near = closest(centers, points, p["size"])
    x = r.patches("backbone.stem.patches.0", take(points, near) - centers[:, :, None], frozen=False)
    encodings = torch.cat([r.w["cls_position"].expand(len(x), -1, -1), r.places_of("backbone.stem.places.0", centers)], dim=1)
    x = torch.cat([r.w["cls_token"].expand(len(x), -1, -1), x], dim=1)
    cloud = torch.cat([r.w["method.coordinates"].expand(len(x), -1, -1), points], dim=1)
    among_prompts = take(cloud, farthest(cloud.detach(), p["tokens"], skip=True))
    for block in range(p["blocks"]):
        x = x + encodings
        prompted = block < p["depth"]
        if prompted:
            prompt = r.w[f"method.prompts.{block}"] + known + r.bottleneck(f"method.fillers.{block}", known)
            x = torch.cat([x[:, :1], prompt, x[:, 1:]], dim=1)
        x, f = r.branches(f"backbone.blocks.{block}", x, 6, 1e-5)
        x = x + f + 0.7 * r.bottleneck(f"method.adapters.{block}", f)
        values = x[:, 1:]
        found = local_stage(r, block, values, among_prompts if prompted else centers, p)
        front = values[:, : -p["tokens"]]
        x = torch.cat([x[:, :1], front, values[:, -p["tokens"] :] + 0.3 * found], dim=1)
        x = x + r.bottleneck(f"method.closing.{block}", x)
        if prompted:
            x = torch.cat([x[:, :1], x[:, 1 + p["prompts"] :]], dim=1)
    x = r.layer_norm("norm", x, 1e-5)
    return r.head(torch.cat([x[:, 0], x[:, 1:].amax(1)], dim=1))


def local_stage(r: Rendering, block: int, values: Tensor, places: Tensor, p: Mapping[str, int]) -> Tensor:
    """What the local stage spreads to the N tokens, 3.3: indices count N tokens a cloud, whatever `values` holds (T2)."""
    batch, tokens, width = len(values), p["tokens"], values.shape[2]
    chosen = farthest(places.detach(), p["local_centers"], skip=True)
    at = take(places, chosen)
    near = closest(at.detach(), places.detach(), p["local_size"])
    flat = values.reshape(-1, width)
    offset = torch.arange(batch) * tokens
    y = flat[near + offset[:, None, None]]  # (B, G, K, C)
    q, k, v = (
        r.linear("method.local.0.qkv", r.layer_norm("method.local.0.norm", y, 1e-5))
        .reshape(*y.shape[:3], 3, 6, 3)
        .permute(3, 0, 1, 4, 2, 5)
    )
    mixed = ((q @ k.transpose(3, 4) * 18**-0.5).softmax(4) @ v).transpose(2, 3).reshape(*y.shape[:3], 18)
    y = y + r.linear("method.local.0.out", mixed)
    pooled = gelu(r.batch_norm(f"method.norms.{block}", y.amax(2))) + 0.3 * flat[chosen + offset[:, None]]
    closeness = 1 / (((places[:, :, None] - at[:, None]) ** 2).sum(3) + 1e-8)
    return (closeness / closeness.sum(2, keepdim=True)) @ pooled
