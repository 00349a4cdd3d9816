"""The devices on which a precision of training is slow."""

from __future__ import annotations

import torch


def slow_in_bf16(device: torch.device) -> bool:
    """Return whether bf16 is far slower than fp32 on this machine.

    x86 CPUs without AVX-512 compute bf16 in many small steps.
    """
    return device.type == "cpu" and torch.backends.cpu.get_cpu_capability() == "AVX2"


def slow_precision(precision: str, device: torch.device) -> str | None:
    """Return a warning if another precision is far faster on a device, else None.

    Args:
        precision: `sharding.precision` of the job.
        device: The device that trains.
    """
    if precision == "bf16" and slow_in_bf16(device):
        return "this CPU has no AVX-512, and bf16 is slow on it: set sharding.precision to fp32 in a new run"

    if precision == "fp32" and device.type == "cuda" and _has_bf16_units(device):
        return (
            "sharding.precision is fp32, and bf16 is about ten times as fast on this GPU: set "
            "sharding.precision to bf16 in a new run"
        )
    return None


def _has_bf16_units(device: torch.device) -> bool:
    major, _ = torch.cuda.get_device_capability(device)
    return major >= 8
