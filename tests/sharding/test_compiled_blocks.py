"""Compiled blocks under the strategies that shard them, with and without recomputed activations."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import pytest
from support.tiny_run import TinyRun

MakeRun = Callable[..., TinyRun]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.long,
    pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on CPUs"),
]

# Two batch sizes and two mask ratios: blocks are compiled for each shape that a run has.
PHASES = [
    {"name": "p", "samples": 72, "mask_ratio": 0.5, "batch_size": 16, "base_lr": 0.02, "warmup": 32},
    {"name": "q", "samples": 32, "mask_ratio": 0.0, "batch_size": 16, "base_lr": 0.02},
]
CASES = [
    ("ddp", "full"),
    ("fsdp", "none"),
    ("fsdp", "selective"),
    ("zero2", "selective"),
    ("zero3", "selective"),
    ("fairscale_oss", "selective"),
]


@pytest.mark.parametrize(("strategy", "activation_checkpointing"), CASES)
def test_compiled_it_trains_as_one_eager_process(
    tiny_run: MakeRun, strategy: str, activation_checkpointing: str
) -> None:
    """Compiled kernels round in another order; training multiplies that."""
    settings: dict[str, Any] = {"phases": PHASES, "logging": {"every": "1 steps", "tensorboard": False}}
    compiled = {"strategy": strategy, "activation_checkpointing": activation_checkpointing, "compile": True}
    eager, run = tiny_run("eager", **settings), tiny_run("compiled", **settings, sharding=compiled)
    for each, processes in ((eager, 1), (run, 2)):
        done = each.train(processes=processes)
        assert done.returncode == 0, done.stderr
    assert "compiled no block" not in done.stderr
    for mine, theirs in zip(run.metrics(), eager.metrics(), strict=True):
        assert mine["digest"] == theirs["digest"]
        assert mine["loss"] == pytest.approx(theirs["loss"], abs=1e-4)
        assert mine["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-3)
