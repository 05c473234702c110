"""AdamW by torch's fused kernel: bit for bit torch.optim.AdamW(fused=True), without that class.

Source: Decoupled Weight Decay Regularization (arXiv 1711.05101). The class would load torch's
compiler at the first step, which costs every worker more than a second and which nothing here
needs.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

BETAS, EPS = (0.9, 0.999), 1e-8  # eps where nothing else is asked for


class AdamW:
    """`param_groups` hold `params`, `weight_decay` and `lr`, which may be changed. No moments
    before a first gradient.

    `lr`, `eps`: of the groups that have none of their own.
    """

    def __init__(
        self, groups: Sequence[Mapping[str, Any]], lr: float = 1e-3, eps: float = EPS
    ) -> None:
        self.param_groups: list[dict[str, Any]] = []
        for group in groups:
            self.param_groups.append({"lr": lr, "eps": eps, **group})

        self.moments: dict[Tensor, dict[str, Tensor]] = {}

    @torch.no_grad()
    def step(self) -> None:
        """One step of every parameter that has a gradient."""
        for group in self.param_groups:
            params: list[Tensor] = []
            gradients: list[Tensor] = []
            first_moments: list[Tensor] = []
            second_moments: list[Tensor] = []
            steps: list[Tensor] = []

            for parameter in group["params"]:
                if parameter.grad is None:
                    continue

                if parameter not in self.moments:
                    self.moments[parameter] = _start(parameter)

                state = self.moments[parameter]
                params.append(parameter)
                gradients.append(parameter.grad)
                first_moments.append(state["exp_avg"])
                second_moments.append(state["exp_avg_sq"])
                steps.append(state["step"])

            adamw(
                params,
                gradients,
                exp_avgs=first_moments,
                exp_avg_sqs=second_moments,
                max_exp_avg_sqs=[],
                state_steps=steps,
                fused=True,
                amsgrad=False,
                maximize=False,
                beta1=BETAS[0],
                beta2=BETAS[1],
                eps=group["eps"],
                lr=group["lr"],
                weight_decay=group["weight_decay"],
            )

    def zero_grad(self) -> None:
        """Let all gradients go."""
        for _, parameter in self._numbered():
            parameter.grad = None

    def state(self) -> dict[int, dict[str, Tensor]]:
        """Return steps and moments by the number of the parameter over all groups, as torch.optim's
        state_dict does. Not copied.
        """
        state = {}
        for index, parameter in self._numbered():
            if parameter in self.moments:
                state[index] = self.moments[parameter]

        return state

    def load(self, state: Mapping[int, Mapping[str, Tensor]]) -> None:
        """The inverse of `state`."""
        parameters = dict(self._numbered())
        self.moments = {}

        for index, values in state.items():
            parameter = parameters[index]
            moments = {}
            for name, value in values.items():
                moments[name] = value.to(parameter.device)

            self.moments[parameter] = moments

    def _numbered(self) -> Iterator[tuple[int, Tensor]]:
        params_of_groups = (group["params"] for group in self.param_groups)
        return enumerate(itertools.chain.from_iterable(params_of_groups))


def _start(parameter: Tensor) -> dict[str, Tensor]:
    step = torch.zeros((), dtype=torch.float32, device=parameter.device)
    return {
        "step": step,
        "exp_avg": torch.zeros_like(parameter),
        "exp_avg_sq": torch.zeros_like(parameter),
    }
