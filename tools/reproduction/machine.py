"""This machine: its cores, its processor, and the precision of toy runs on it."""

from __future__ import annotations

import os
import platform
from pathlib import Path


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0))


def precision() -> str:
    """Return the precision of toy runs: bf16 if the CPU is fast in it, else fp32.

    On a CPU with AVX-512, bf16 is 1.6 times as fast as fp32.
    """
    import torch

    from flipscale.training.precision import slow_in_bf16

    return "fp32" if slow_in_bf16(torch.device("cpu")) else "bf16"


def processor() -> str:
    """Return the name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()

    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
