"""Controls for a pretrained transformer: the same network with its values permuted, or as its own
program starts it.

`shuffled`: the values of each tensor of the checkpoint in another order, so that every tensor keeps
its scale and its distribution. `reinitialised`: every tensor drawn as the architecture's own
program draws it before training. Sources, by `Backbone.scheme`: transformers (BERT, RoBERTa, ViT,
AST, DINOv2, CLIP, T5), timm and ImageBind (truncated normals of 0.02), the Keyword Transformer
(arXiv 2104.00769: truncated at two standard deviations, as Keras does), torch's own start of a
layer (ViT-MNIST).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

STD = 0.02
PROBE_CLOUDS, PROBE_TOKENS = 4, 16


@dataclass(frozen=True)
class Start:
    """Initialisation of a program's network: the scheme, and the sizes that deviations depend
    on.
    """

    scheme: str  # normal, truncated, keras, clip, t5, torch
    width: int
    num_blocks: int  # of the whole network, however many are taken
    num_heads: int

    def draw(self, tensor: Tensor, std: float, generator: Generator) -> None:
        """Fill a matrix or a table."""
        if self.scheme == "truncated":
            # torch's and timm's limits of -2 and 2 are absolute: they cut nothing at such
            # deviations.
            nn.init.trunc_normal_(tensor, std=std, generator=generator)
        elif self.scheme == "keras":
            nn.init.trunc_normal_(
                tensor, std=std, a=-2 * std, b=2 * std, generator=generator
            )
        else:
            tensor.normal_(0.0, std, generator=generator)

    def matrix_std(self, name: str, weight: Tensor) -> float:
        """The standard deviation of a matrix (out, in)."""
        fan_out, fan_in = weight.shape
        # q, k, v, out; 0 and 2 of the feed-forward branch
        kind = name.removesuffix(".weight").rpartition(".")[2]

        if self.scheme == "clip":  # CLIPAttention and CLIPMLP of transformers
            if kind == "out":
                return float(self.width**-0.5)
            if kind == "0":
                return float((2 * self.width) ** -0.5)

            return float(self.width**-0.5 * (2 * self.num_blocks) ** -0.5)

        if self.scheme == "t5":
            # T5Attention: the query's deviation takes the place of the logits' scale
            head_dim = fan_out // self.num_heads
            return float((fan_in * head_dim) ** -0.5 if kind == "q" else fan_in**-0.5)

        return STD

    def table_std(self, name: str) -> float:
        """The standard deviation of position tables, class tokens, and the extra key and value."""
        # ViT-MNIST draws its table and its class token from torch.randn
        if self.scheme == "torch":
            return 1.0
        if self.scheme == "t5" or (self.scheme == "clip" and name == "cls_token"):
            return float(self.width**-0.5)

        return STD


def generator_for(seed: int, name: str) -> Generator:
    """A generator for one tensor: its draw depends on its name and the seed, not on the tensors
    before it.
    """
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def shuffled(state: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
    """Permute the values of each tensor."""
    permuted: dict[str, Tensor] = {}
    for name, tensor in state.items():
        order = torch.randperm(tensor.numel(), generator=generator_for(seed, name))
        permuted[name] = tensor.reshape(-1)[order].reshape(tensor.shape)

    return permuted


@torch.no_grad()
def reinitialise(backbone: nn.Module, start: Start, seed: int) -> None:
    """Draw every tensor of a backbone; norms start at 1 and 0, biases at 0 (of the scheme torch:
    uniform).
    """
    for path, module in backbone.named_modules():
        own = [
            *module.named_parameters(recurse=False),
            *module.named_buffers(recurse=False),
        ]
        for leaf, tensor in own:
            name = f"{path}.{leaf}" if path else leaf
            _fill(tensor, module, name, start, generator_for(seed, name))


def _fill(
    tensor: Tensor, module: nn.Module, name: str, start: Start, generator: Generator
) -> None:
    leaf = name.rpartition(".")[2]
    layer = isinstance(module, (nn.Linear, nn.Conv1d))
    # The convolutions of a 3D stem start as torch starts them: no program of theirs says otherwise,
    # and their frozen norms would not lift smaller values.
    as_torch = layer and (start.scheme == "torch" or isinstance(module, nn.Conv1d))

    if as_torch:
        fan_in = module.weight[0].numel()  # type: ignore[union-attr,index]
        limit = 1 / math.sqrt(fan_in)
        tensor.uniform_(-limit, limit, generator=generator)
    elif not tensor.is_floating_point():  # the count of batch normalisation
        tensor.zero_()
    elif layer and tensor.dim() > 1:
        start.draw(tensor, start.matrix_std(name, tensor), generator)
    elif tensor.dim() > 1:
        start.draw(tensor, start.table_std(name), generator)
    else:
        tensor.fill_(
            1.0 if leaf in ("weight", "gamma", "running_var") and not layer else 0.0
        )


def probe_tokens(width: int) -> Tensor:
    """Tokens (B, N, C) from N(0, 1), always the same for a width."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(PROBE_CLOUDS, PROBE_TOKENS, width, generator=generator)


def standardised(tokens: Tensor) -> Tensor:
    """Tokens (B, N, C), each with mean 0 and deviation 1 over its channels."""
    return nn.functional.layer_norm(tokens, tokens.shape[-1:])
