"""The optimisers that a training is executed with: PyTorch's, and Lion, which it has not. Imported only there."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

# torch.optim.SGD without momentum has no state
MOMENTUM = 0.9


class Lion(torch.optim.Optimizer):
    """Steps by the sign of a blend of momentum and gradient (Chen et al., arXiv 2302.06675, algorithm 2)."""

    def __init__(
        self, params: Iterable[Any], lr: float, betas: tuple[float, float] = (0.9, 0.99), weight_decay: float = 0.01
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    def step(self, closure: Any = None) -> Any:
        """Change every weight that has a gradient."""
        with torch.no_grad():
            for group in self.param_groups:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        self._change(parameter, group)

    def _change(self, parameter: Any, group: dict[str, Any]) -> None:
        state, (fast, slow) = self.state[parameter], group["betas"]
        if not state:
            state["exp_avg"] = torch.zeros_like(parameter)
        momentum = state["exp_avg"]
        direction = momentum.lerp(parameter.grad, 1 - fast).sign_()
        parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(direction, alpha=-group["lr"])
        momentum.lerp_(parameter.grad, 1 - slow)


# class and settings by name; the others are planned only
EXECUTED: dict[str, tuple[Any, dict[str, Any]]] = {
    "adamw": (torch.optim.AdamW, {"fused": True}),
    "sgd": (torch.optim.SGD, {"momentum": MOMENTUM}),
    "lion": (Lion, {}),
    "adafactor": (torch.optim.Adafactor, {}),
}
