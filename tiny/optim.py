"""The optimiser of the miniature family: orthogonalised momentum for matrices, AdamW for the rest."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

_QUINTIC = (3.4445, -4.7750, 2.0315)


def orthogonalise(matrix: Tensor, iterations: int = 5) -> Tensor:
    """Push the singular values of a matrix towards 1 by a quintic Newton-Schulz iteration."""
    wide = matrix.shape[0] <= matrix.shape[1]
    x = matrix if wide else matrix.T
    x = x / (x.norm() + 1e-7)
    a, b, c = _QUINTIC
    for _ in range(iterations):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x if wide else x.T


class Muon(torch.optim.Optimizer):
    """Nesterov momentum whose update is orthogonalised; convolutions count as (out, rest) matrices.

    The update has the root-mean-square AdamW's would have, so learning rates are comparable.
    """

    def __init__(
        self, params: Iterable[nn.Parameter], lr: float, momentum: float = 0.95, decay: float = 0.0
    ) -> None:
        """``decay`` is decoupled weight decay."""
        super().__init__(params, {"lr": lr, "momentum": momentum, "decay": decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """Update every parameter that has a gradient; ``closure`` is not supported."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                momentum = state.setdefault("momentum", torch.zeros_like(parameter))
                momentum.lerp_(parameter.grad, 1 - group["momentum"])
                update = parameter.grad.lerp(momentum, group["momentum"]).flatten(1)
                update = orthogonalise(update) * (0.2 * max(update.shape) ** 0.5)
                parameter.mul_(1 - group["lr"] * group["decay"])
                parameter.sub_(group["lr"] * update.view_as(parameter))


class Optimiser:
    """Muon for hidden matrices and AdamW for all other parameters behind one learning-rate factor."""

    def __init__(self, module: nn.Module, *, matrix_lr: float, lr: float, plain: set[str]) -> None:
        """Names in ``plain`` (prefixes) go to AdamW although they are matrices."""
        hidden, rest = [], []
        for name, parameter in module.named_parameters():
            matrix = parameter.ndim >= 2 and min(parameter.flatten(1).shape) >= 8
            use = matrix and not any(name.startswith(prefix) for prefix in plain)
            (hidden if use else rest).append(parameter)
        self.parts: list[torch.optim.Optimizer] = [
            Muon(hidden, lr=matrix_lr),
            torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.98), weight_decay=0.0),
        ]
        self.parameters = [*hidden, *rest]
        self.rates = (matrix_lr, lr)

    def step(self, factor: float, clip: float = 1.0) -> None:
        """One update with the learning rates times ``factor``; gradients are clipped and cleared."""
        torch.nn.utils.clip_grad_norm_(self.parameters, clip)
        for part, rate in zip(self.parts, self.rates, strict=True):
            part.param_groups[0]["lr"] = rate * factor
            part.step()
            part.zero_grad(set_to_none=True)

    def state_dict(self) -> list[dict[str, Any]]:
        """State of both parts."""
        return [part.state_dict() for part in self.parts]

    def load_state_dict(self, state: list[dict[str, Any]]) -> None:
        """Restore :meth:`state_dict`."""
        for part, saved in zip(self.parts, state, strict=True):
            part.load_state_dict(saved)
