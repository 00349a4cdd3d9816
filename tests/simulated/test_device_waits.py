"""A training step on a fake GPU: the host never waits for the device, and no operator mixes devices."""

from __future__ import annotations

import itertools
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.simulated_steps import SimulatedStep, run_simulated

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="the fake GPU needs a C++ compiler")

SHARDINGS: dict[str, dict[str, Any]] = {
    "ddp": {"strategy": "ddp"},
    "fsdp": {"strategy": "fsdp"},
    "hsdp": {"strategy": "hsdp", "shard_size": 4},
}
CHECKPOINTING = ("none", "selective", "full")
VARIANTS: dict[str, dict[str, Any]] = {
    "micro-batch": {"sharding": {"micro_batch": 6}},
    "sigmoid": {"loss": {"kind": "sigmoid"}},
    "reconstruction": {"loss": {"reconstruction": {"weight": 1.0}}},
    "captions cut": {"text_mask_ratio": 0.25},
}


def step_of(strategy: str, checkpointing: str, variant: str, **more: Any) -> SimulatedStep:
    """Return a step with clipping, one strategy, one kind of recomputation, and one variant of the loss."""
    fields = {**VARIANTS[variant], **more}
    sharding = {
        **SHARDINGS[strategy],
        "activation_checkpointing": checkpointing,
        **fields.pop("sharding", {}),
    }
    return SimulatedStep(sharding=sharding, optimizer={"clip_grad_norm": 1.0}, **fields)


def problems_of(steps: list[SimulatedStep]) -> list[tuple[SimulatedStep, dict[str, int]]]:
    """Return the steps in which something is wrong."""
    found = zip(steps, run_simulated(steps), strict=True)
    return [(step, record["problems"]) for step, record in found if record["problems"]]


@pytest.mark.slow
def test_host_never_waits_in_a_step_of_each_strategy_and_loss():
    steps = [
        step_of("ddp", "selective", "micro-batch"),
        step_of("ddp", "none", "reconstruction"),
        step_of("fsdp", "full", "captions cut"),
        step_of("hsdp", "selective", "sigmoid"),
        step_of("fsdp", "selective", "micro-batch", model="clip_micro_p8"),  # captions in one row
    ]
    assert problems_of(steps) == []


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("model", ["vit_micro_p8", "clip_b32"])
@pytest.mark.parametrize("strategy", SHARDINGS)
def test_host_never_waits_in_any_combination(strategy: str, model: str):
    worlds = itertools.cycle((8, 64, 256))
    combinations = itertools.product(CHECKPOINTING, VARIANTS)
    steps = [step_of(strategy, *names, model=model, world=next(worlds)) for names in combinations]
    assert problems_of(steps) == []


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_last_rank_of_many_has_empty_shares_and_waits_for_nothing():
    steps = [
        step_of("fsdp", "none", "micro-batch", world=1024, rank=1023),
        step_of("hsdp", "selective", "sigmoid", world=512, rank=511),
    ]
    assert problems_of(steps) == []


FAULTS = """
import sys, tempfile
from pathlib import Path
from flipscale.rehearsal.accelerator import build_accelerator, load_accelerator
load_accelerator(build_accelerator(Path(sys.argv[1])))
import torch
from flipscale.rehearsal.device_time import DeviceTime
from flipscale.rehearsal.fake_device import fake_device
from flipscale.rehearsal.live_memory import LiveMemory
from flipscale.rehearsal.recorder import Recorder

waits = []
recorder = Recorder("cuda", DeviceTime(1e15, 1e14, 1e12), LiveMemory())
with fake_device(torch.device("cuda", 0), waits), recorder:
    x = torch.ones(4, 4, device="cuda")
    x.sum().item()
    x.to("cpu")
    torch.ones(2).to("cuda")
    x.to("cpu", non_blocking=True)
    try:
        x[x > 0]
    except Exception:
        pass
    try:
        x + torch.ones(4)
    except Exception:
        pass
    torch.cuda.synchronize()
    torch.cuda.current_stream().synchronize()
for what in (*recorder.problems, *waits):
    print(what)
"""


def test_detector_sees_each_kind_of_wait(tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-c", FAULTS, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.stdout.splitlines() == [
        "item waits for the device",
        "a blocking copy from cuda to cpu",
        "a blocking copy from cpu to cuda",
        "an index by a mask waits for the device",
        "torch.cuda.synchronize",
        "stream.synchronize",
    ], done.stderr
