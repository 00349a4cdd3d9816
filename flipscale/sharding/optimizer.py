"""AdamW as FLIP uses it."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from flipscale.config import Optimizer


def decays(name: str) -> bool:
    """Whether weight decay applies: not to biases, norm scales and position embeddings (released recipe).

    The logit scale and the class token do decay there.
    """
    *_, module, last = ("", *name.split("."))
    return not (last.endswith("bias") or module.startswith("ln_") or last == "positional_embedding")


def build_optimizer(parameters: Iterable[tuple[str, nn.Parameter]], settings: Optimizer) -> torch.optim.AdamW:
    """AdamW over two groups, decayed and not (paper, table 10); fused, so that a step can be skipped on the
    device (see `skip_unless`)."""
    named = [(name, parameter) for name, parameter in parameters if parameter.requires_grad]
    groups = [
        {"params": [p for name, p in named if decays(name)], "weight_decay": settings.weight_decay},
        {"params": [p for name, p in named if not decays(name)], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=0.0, betas=settings.betas, eps=settings.eps, fused=True)
    reset_moments(optimizer)
    return optimizer


def reset_moments(optimizer: torch.optim.Optimizer) -> None:
    """Empty the moments and restart the bias correction, as a fresh optimizer."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            optimizer.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                "exp_avg": torch.zeros_like(parameter, memory_format=torch.preserve_format),
                "exp_avg_sq": torch.zeros_like(parameter, memory_format=torch.preserve_format),
            }


def skip_unless(optimizer: torch.optim.Optimizer, finite: Tensor) -> None:
    """Make the next step a no-op where `finite` (0-d bool, on the device) is false, without a host sync.

    The fused kernels read this flag, made for loss scaling: neither weights, moments nor steps change.
    """
    setattr(optimizer, "found_inf", (~finite).to(torch.float32).reshape(()))  # noqa: B010
    setattr(optimizer, "grad_scale", None)  # noqa: B010


def updates(optimizer: torch.optim.Optimizer) -> int:
    """Updates since the moments were last empty."""
    return int(next(iter(optimizer.state.values()))["step"].item())


def set_updates(optimizer: torch.optim.Optimizer, count: int) -> None:
    for state in optimizer.state.values():
        state["step"].fill_(count)
