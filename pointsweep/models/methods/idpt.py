"""IDPT: one prompt in front of the last block, made of each cloud's own tokens by a small graph
network.

Source: Instance-aware Dynamic Prompt Tuning (arXiv 2304.07221), section 3.2; spec 5. The published
count of 1.7M is met with the final norm frozen and no norm behind the layer that joins the three
edge convolutions. Letters: B clouds, N tokens, C channels, K neighbours.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pointsweep.models.backbones.base import Backbone
from pointsweep.models.layers import drawn, insert_tokens, remove_tokens
from pointsweep.models.methods.base import Method
from pointsweep.models.networks.dgcnn import EdgeConv
from pointsweep.ops.point_ops import nearest


class IDPT(Method):
    """IDPT. With Point-MAE and the two-layer head for 15 classes: 1,696,399 values. The head sees
    class token, prompt and maximum.
    """

    extra_features = 1

    def attach(self, backbone: Backbone, prefix: int, num_views: int) -> None:
        layers = self.config.num_layers
        self.prefix = prefix
        self.last = len(backbone.blocks) - 1
        dim = backbone.dim
        self.layers = nn.ModuleList(EdgeConv(dim, dim) for _ in range(layers))
        self.join = nn.Linear(layers * dim, dim, bias=False)
        self.prompt_position = nn.Parameter(drawn(0.02, 1, 1, dim))
        backbone.norm.requires_grad_(False)

    def before_block(self, index: int, tokens: Tensor, context: Any) -> Tensor:
        if index < self.last:
            return tokens

        x = tokens[:, self.prefix :]
        features = []
        for layer in self.layers:
            num_neighbours = min(self.config.neighbours, x.shape[1])
            near = nearest(x.detach(), x.detach(), num_neighbours)
            x = layer(x, near)
            features.append(x)

        joined = self.join(torch.cat(features, dim=2))
        prompt = F.leaky_relu(joined, 0.2).amax(dim=1, keepdim=True)  # (B, 1, C)
        return insert_tokens(tokens, prompt + self.prompt_position, at=self.prefix)

    def pool(self, tokens: Tensor, context: Any) -> tuple[Tensor, list[Tensor]]:
        return remove_tokens(tokens, 1, at=self.prefix), [tokens[:, self.prefix]]
