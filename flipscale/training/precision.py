"""The devices on which a precision of training is slow."""

from __future__ import annotations

import torch


def slow_in_bf16(device: torch.device) -> bool:
    """Return whether bf16 is far slower than fp32 on this machine.

    x86 CPUs without AVX-512 compute bf16 in many small steps.
    """
    return device.type == "cpu" and torch.backends.cpu.get_cpu_capability() == "AVX2"
