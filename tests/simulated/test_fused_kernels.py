"""The kernels of a step on a fake GPU, and those that torch's compiler chooses for blocks."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.simulated_steps import SimulatedStep, run_simulated

pytestmark = [
    pytest.mark.skipif(shutil.which("g++") is None, reason="the fake GPU needs a C++ compiler"),
    pytest.mark.slow,
]

PAIRS, TOKENS, WIDTH = 64, 50, 256

CHOOSE = f"""
import sys
from pathlib import Path
from types import SimpleNamespace
from flipscale.rehearsal.accelerator import build_accelerator, load_accelerator

load_accelerator(build_accelerator(Path(sys.argv[1])))
import torch
from flipscale.models.presets import TowerSpec
from flipscale.rehearsal.block_calls import BlockCall
from flipscale.rehearsal.fused_kernels import bytes_of_fused_kernels
from flipscale.sharding.activation_checkpointing import apply_activation_checkpointing

for words in sys.argv[2:]:
    mode, weights, backward = words.split(",")
    block = SimpleNamespace(recompute=None)
    towers = [SimpleNamespace(resblocks=[block])]
    apply_activation_checkpointing(SimpleNamespace(transformers=towers), mode)
    call = BlockCall(
        TowerSpec(width={WIDTH}, layers=1, heads=4),
        False,
        ({PAIRS}, {TOKENS}, {WIDTH}),
        None,
        torch.bfloat16,
        getattr(torch, weights),
        None if weights == "bfloat16" else torch.bfloat16,
        backward == "backward",
        block.recompute,
    )
    print(*bytes_of_fused_kernels(call, torch.device("cuda", 0)))
"""


def choose(directory: Path, *calls: str) -> list[list[int]]:
    """Return the bytes of each kernel of a block.

    Args:
        directory: A directory for the fake GPU.
        *calls: Recomputation, dtype of the weights, and forward or backward, separated by commas.
    """
    done = subprocess.run(
        [sys.executable, "-c", CHOOSE, str(directory), *calls], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [[int(word) for word in line.split()] for line in done.stdout.splitlines()]


def test_kernels_of_a_forward_are_fused(tmp_path: Path):
    native, cast = choose(tmp_path, "none,bfloat16,forward", "none,float32,forward")

    stream = 2 * PAIRS * TOKENS * WIDTH  # bytes of the residual stream in bf16
    # A norm; a sum with its norm; GELU on four times the width; the sums, of which the first is repeated.
    expected = sorted((2 * stream, 3 * stream, 2 * 4 * stream, 4 * stream))
    assert sorted(native) == pytest.approx(expected, rel=0.01)  # and the weights of the norms
    assert len(cast) > len(native)  # and the casts of fp32 weights


@pytest.mark.long
def test_recomputation_costs_kernels(tmp_path: Path):
    calls = [f"{mode},bfloat16,backward" for mode in ("none", "selective", "full")]
    forward, none, selective, full = map(sum, choose(tmp_path, "none,bfloat16,forward", *calls))
    assert none > 2 * forward
    assert none < selective < full < 1.01 * (none + forward)


@pytest.fixture(scope="module")
def fsdp() -> list[dict[str, Any]]:
    """A step of a small model; the same compiled; and one of a model with two more blocks."""
    return run_simulated(
        [
            SimulatedStep(sharding={"strategy": "fsdp"}),
            SimulatedStep(sharding={"strategy": "fsdp", "compile": True}),
            SimulatedStep(sharding={"strategy": "fsdp"}, model="vit_tiny_p8"),
        ]
    )


def test_blocks_that_fsdp_gathers_in_bf16_convert_nothing(fsdp: list[dict[str, Any]]):
    """Two more blocks bring no conversion: their norms read and write bf16, as their products do.

    The time of a conversion this small is that of one kernel, whatever its size.
    """
    few, _, many = fsdp
    assert many["seconds"]["norms"] > few["seconds"]["norms"]
    assert many["seconds"]["casts"] == pytest.approx(few["seconds"]["casts"])


def test_step_that_compiles_has_the_costs_of_compiled_blocks(fsdp: list[dict[str, Any]]):
    assert_compiled(*fsdp[:2])


@pytest.mark.long
def test_step_that_compiles_and_recomputes_has_the_costs_of_compiled_blocks():
    sharding = {"strategy": "ddp", "activation_checkpointing": "selective"}
    assert_compiled(
        *run_simulated([SimulatedStep(sharding={**sharding, "compile": on}) for on in (False, True)])
    )


def assert_compiled(eager: dict[str, Any], compiled: dict[str, Any]) -> None:
    """Check that compiled blocks save kernels of norms and sums, and change nothing else."""
    assert (eager["not_fused"], compiled["not_fused"]) == ("", None)
    for what in ("peak", "collectives", "flops", "problems"):
        assert compiled[what] == eager[what]
    for group in ("products", "attention", "loss", "optimizer"):
        assert compiled["seconds"][group] == pytest.approx(eager["seconds"][group])
    assert compiled["seconds"]["fused"] > 0
    for group in ("norms", "elementwise"):
        assert compiled["seconds"][group] < eager["seconds"][group]
    assert compiled["bytes"] < eager["bytes"]
