"""Training that repeats to the bit on GPUs, too."""

from __future__ import annotations

import os
from typing import Any

import torch


def use_deterministic_algorithms() -> None:
    """Have torch use only algorithms that repeat to the bit. Call it before anything uses CUDA.

    An operation that has no such algorithm then raises RuntimeError. torch's `warn_only` would not do: with
    it the backward of flash attention still adds in any order (torch's attention_backward.cu).
    """
    # cuBLAS reads its workspace when CUDA starts, and Inductor its mode when it is imported.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    os.environ.setdefault("TORCHINDUCTOR_DETERMINISTIC", "1")  # choose kernels without timing them

    torch.use_deterministic_algorithms(True)
    # torch would also fill new memory with NaN, which helps to find errors only.
    memory: Any = torch.utils.deterministic  # its types leave out the setting
    memory.fill_uninitialized_memory = False
