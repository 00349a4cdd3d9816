"""The optimizers that a job can name, and what the sharding strategies need of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from flipscale.config import Optimizer, Sharding
from flipscale.errors import UserError

ParameterGroups = list[dict[str, Any]]
"""Parameter groups as torch's optimizers take them: "params" and "weight_decay"."""


@dataclass(frozen=True)
class OptimizerKind:
    """An optimizer that a job can name.

    Attributes:
        build: Makes the optimizer from parameter groups and the `optimizer` block of a job. Its step must
            change nothing if its attribute `found_inf` (0-d fp32, on the device) is not zero; see
            `skip_unless`. It counts its updates in the state "step" (0-d fp32) of each parameter.
        moments: Names of the state tensors that a checkpoint holds for every parameter, in their order. Each
            has the shape of its parameter and begins as zeros.
        splits_anywhere: Whether any part of a parameter can be updated without the rest. The strategies that
            cut parameters without regard to their shape need this; norms over a whole parameter rule it out.
    """

    build: Callable[[ParameterGroups, Optimizer], torch.optim.Optimizer]
    moments: tuple[str, ...]
    splits_anywhere: bool


def build_adamw(groups: ParameterGroups, settings: Optimizer) -> torch.optim.Optimizer:
    """Build torch's AdamW; fused, so that a step can be skipped on the device (see `skip_unless`)."""
    return torch.optim.AdamW(groups, lr=0.0, betas=settings.betas, eps=settings.eps, fused=True)


OPTIMIZERS: Mapping[str, OptimizerKind] = {
    "adamw": OptimizerKind(build_adamw, moments=("exp_avg", "exp_avg_sq"), splits_anywhere=True),
}
"""Every optimizer by the name that a job gives it (`optimizer.name`)."""


def check_optimizer(optimizer: Optimizer, sharding: Sharding) -> None:
    """Check that the optimizer exists and that the sharding strategy can work with it.

    Raises:
        UserError: If it does not exist, or if the strategy cannot shard it.
    """
    kind = optimizer_kind(optimizer)
    strategy = sharding.strategy

    if strategy == "fairscale_oss" and optimizer.name != "adamw":
        raise UserError(
            f"sharding.strategy {strategy} shards optimizer.name adamw only, not {optimizer.name}; "
            "use ddp, fsdp or hsdp"
        )
    if strategy.startswith(("zero", "fairscale")) and not kind.splits_anywhere:
        raise UserError(
            f"sharding.strategy {strategy} cannot shard optimizer.name {optimizer.name}, which needs whole "
            "parameters; use ddp, fsdp or hsdp"
        )


def optimizer_kind(settings: Optimizer) -> OptimizerKind:
    """Return the kind of optimizer that a job names.

    Raises:
        UserError: If it does not exist.
    """
    if settings.name not in OPTIMIZERS:
        raise UserError(f"there is no optimizer.name {settings.name!r}; use {' or '.join(OPTIMIZERS)}")
    return OPTIMIZERS[settings.name]


def decays(name: str) -> bool:
    """Return whether weight decay applies to a parameter.

    It spares biases, norm scales and position embeddings (released recipe). The logit scale and the class
    token do decay there.

    Args:
        name: The name of the parameter in the state dict.
    """
    *_, module, last = ("", *name.split("."))
    return not (last.endswith("bias") or module.startswith("ln_") or last == "positional_embedding")


def build_optimizer(
    parameters: Iterable[tuple[str, nn.Parameter]], settings: Optimizer
) -> torch.optim.Optimizer:
    """Build the optimizer of a job over two groups, decayed and not (paper, table 10), with zero moments.

    Args:
        parameters: Names and parameters; those without gradient are left out.
        settings: The `optimizer` block of the job.

    Raises:
        UserError: If no optimizer has this name.
    """
    kind = optimizer_kind(settings)
    named = [(name, parameter) for name, parameter in parameters if parameter.requires_grad]
    groups: ParameterGroups = [
        {"params": [p for name, p in named if decays(name)], "weight_decay": settings.weight_decay},
        {"params": [p for name, p in named if not decays(name)], "weight_decay": 0.0},
    ]

    optimizer = kind.build(groups, settings)
    reset_moments(optimizer, kind.moments)
    return optimizer


def reset_moments(optimizer: torch.optim.Optimizer, moments: Iterable[str]) -> None:
    """Set the moments to zero and restart the bias correction, as in a fresh optimizer.

    Args:
        optimizer: The optimizer.
        moments: Names of its moments.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            optimizer.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                **{
                    name: torch.zeros_like(parameter, memory_format=torch.preserve_format) for name in moments
                },
            }


def skip_unless(optimizer: torch.optim.Optimizer, finite: Tensor) -> None:
    """Make the next step a no-op if `finite` is false, without a host sync.

    The fused kernels read this flag, made for loss scaling: neither weights, moments nor steps change.

    Args:
        optimizer: The optimizer.
        finite: 0-d bool on the device.
    """
    setattr(optimizer, "found_inf", (~finite).to(torch.float32).reshape(()))  # noqa: B010
    setattr(optimizer, "grad_scale", None)  # noqa: B010


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every parameter group."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def updates(optimizer: torch.optim.Optimizer) -> int:
    """Return the number of updates since the moments were last zero. The host waits for the device."""
    return int(next(iter(optimizer.state.values()))["step"].item())


def set_updates(optimizer: torch.optim.Optimizer, count: int) -> None:
    """Set the number of updates since the moments were last zero."""
    for state in optimizer.state.values():
        state["step"].fill_(count)
