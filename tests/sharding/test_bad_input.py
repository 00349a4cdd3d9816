"""Impossible shardings end in one sentence and exit code 2, before the processes meet."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from support.tiny_run import TinyRun

from flipscale.config import load_job
from flipscale.errors import UserError
from flipscale.losses.contrastive import contrastive_loss
from flipscale.losses.sigmoid import sigmoid_loss
from flipscale.training.check_job import check_job

MakeRun = Callable[..., TinyRun]

no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")


@pytest.mark.parametrize(
    ("processes", "overrides", "sentence"),
    [
        (3, [], "3 processes cannot share data.lanes = 8 evenly; start 2 or 4 processes, or set data.lanes"),
        (
            4,
            ["sharding.strategy=hsdp", "sharding.shard_size=3"],
            "sharding.shard_size is 3, not a divisor of the 4 processes; set it to a divisor of 4",
        ),
        (
            2,
            ["sharding.strategy=hsdp", "sharding.shard_size=4"],
            "sharding.shard_size is 4, but there are only 2 processes; set it to a divisor of 2",
        ),
        (2, ["sharding.strategy=hsdp"], "hsdp needs shard_size, the processes that share one copy"),
        (2, ["sharding.shard_size=2"], "shard_size belongs to strategy hsdp, not to ddp; leave it out"),
        (2, ["sharding.strategy=hsdp", "sharding.shard_size=0"], "sharding.shard_size"),
        (2, ["sharding.strategy=zero3", "sharding.precision=fp64"], "cannot train in fp64"),
        (
            2,
            ["sharding.strategy=fsdp", "sharding.offload_optimizer=true"],
            "belongs to zero1, zero2 and zero3",
        ),
        (2, ["sharding.activation_checkpointing=every 0"], "give none, full, selective, or `every k` blocks"),
        (2, ["sharding.activation_checkpointing=every"], "sharding.activation_checkpointing"),
        (2, ["loss.tile=0"], "loss.tile"),
        (2, ["loss.kind=softmax"], "loss.kind"),
        pytest.param(
            2, ["sharding.strategy=fairscale_fsdp"], "fairscale_fsdp runs on CUDA GPUs only", marks=no_gpu
        ),
    ],
)
def test_impossible_sharding_is_refused_in_one_sentence(
    tiny_run: MakeRun, processes: int, overrides: list[str], sentence: str
) -> None:
    """The command calls `check_job` before the processes meet."""
    run = tiny_run()
    with pytest.raises(UserError) as raised:
        check_job(load_job(run.job, overrides), processes)
    assert sentence in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.slow
def test_impossible_sharding_exits_2_before_the_processes_meet(tiny_run: MakeRun) -> None:
    """Only one of two processes is started: it would wait for the other one if it tried to meet it."""
    run = tiny_run()
    overrides = ["sharding.strategy=hsdp", "sharding.shard_size=4"]
    done = subprocess.run(
        [sys.executable, "-m", "flipscale", "train", str(run.job), *overrides],
        env={**os.environ, "WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: sharding.shard_size is 4")
    assert not run.output.exists()


def test_a_tile_larger_than_the_batch_is_the_batch() -> None:
    images, texts = torch.nn.functional.normalize(torch.randn(2, 5, 8), dim=-1)
    scale, bias = torch.tensor(3.0), torch.tensor(-3.0)
    contrastive = [contrastive_loss(images, texts, scale, tile=tile) for tile in (5, 10**9)]
    assert torch.equal(*contrastive)
    sigmoid = [sigmoid_loss(images, texts, scale, bias, tile=tile) for tile in (5, 10**9)]
    assert torch.equal(*sigmoid)
