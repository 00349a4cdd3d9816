"""Masked captions and reconstruction under every strategy, also in a phase that hides no patch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from support.tiny_run import TinyRun

from flipscale.config import Job
from flipscale.distributed.world import World, leave_world
from flipscale.models.flip import build_model
from flipscale.models.inputs import Inputs
from flipscale.models.presets import preset
from flipscale.sharding.shard import shard
from flipscale.training.gradients import accumulate_gradients

MakeRun = Callable[..., TinyRun]
DECODER = {"weight": 0.5, "width": 32, "layers": 2, "heads": 2}
PHASE = {"name": "p", "samples": 96, "batch_size": 16, "base_lr": 0.02, "warmup": 32}
PHASES = [
    {**PHASE, "name": "both", "mask_ratio": 0.75, "text_mask_ratio": 0.5},
    {**PHASE, "name": "neither", "mask_ratio": 0.0},
    {**PHASE, "name": "again", "mask_ratio": 0.5, "text_mask_ratio": 0.5, "text_mask": "random"},
]
CHANGES: dict[str, Any] = {
    "loss": {"reconstruction": DECODER},
    "logging": {"every": "1 steps", "tensorboard": False},
}


@pytest.fixture(scope="module")  # DeepSpeed keeps the first process group it meets
def alone() -> Iterator[World]:
    torch.set_num_threads(1)
    yield World(0, 1, 0, 1, torch.device("cpu"))
    leave_world()


def curve(world: World, **sharding: Any) -> list[dict[str, float]]:
    """Return the scalars of 6 steps; the middle two hide nothing."""
    job = Job.model_validate(
        {
            "name": "x",
            "model": "vit_micro_p8",
            "data": {"train": "x.tar", "tokenizer": {"vocab": "x"}},
            "phases": PHASES,
            "loss": {"reconstruction": DECODER},
            "sharding": sharding,
        }
    )
    spec = preset("vit_micro_p8", vocab_size=50, context_length=16, decoder=job.loss.decoder)
    model = shard(build_model(spec, device="meta"), job.sharding, job.optimizer, job.seed, world)
    found: list[dict[str, float]] = []
    for step in range(6):
        phase, positions = job.phases[step // 2], torch.arange(8) + 8 * step
        generator = torch.Generator().manual_seed(step)
        tokens = torch.randint(50, (8, 16), generator=generator)
        images = torch.randint(256, (8, 3, 32, 32), dtype=torch.uint8, generator=generator)
        images, tokens, positions = (x.to(world.device) for x in (images, tokens, positions))
        pairs = Inputs(images, tokens).masked(positions, phase, spec, padding_id=0, seed=0)
        scalars = accumulate_gradients(model, pairs, job.loss, job.sharding.micro_batch)
        norm = model.gradient_norm(1.0)
        model.update(1e-3, torch.isfinite(norm))
        found.append({**{name: float(value) for name, value in scalars.items()}, "norm": float(norm)})
    return found


MODES: list[Any] = [
    {"strategy": "fsdp"},
    {"strategy": "fsdp", "micro_batch": 3, "activation_checkpointing": "full"},
    pytest.param({"strategy": "fairscale_oss", "micro_batch": 3}, marks=pytest.mark.long),
    *(
        pytest.param({"strategy": zero, "micro_batch": size}, marks=pytest.mark.long)
        for zero in ("zero1", "zero2", "zero3")
        for size in (None, 3)
    ),
]


@pytest.mark.parametrize("sharding", MODES)
def test_one_process_trains_as_ddp(alone: World, sharding: dict[str, Any]) -> None:
    expected = curve(alone, strategy="ddp")
    assert ["reconstruction" in step for step in expected] == [True, True, False, False, True, True]
    for ours, theirs in zip(curve(alone, **sharding), expected, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("strategy", ["fsdp", "fairscale_fsdp"])
def test_on_a_gpu_it_trains_as_ddp(alone: World, strategy: str) -> None:
    world = World(0, 1, 0, 1, torch.device("cuda", 0))
    expected = curve(world, strategy="ddp")
    for ours, theirs in zip(curve(world, strategy=strategy, micro_batch=3), expected, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)


CASES = [
    pytest.param(2, {"strategy": "fsdp", "micro_batch": 3}, id="fsdp_gradcache"),
    pytest.param(2, {"strategy": "ddp"}, id="ddp", marks=pytest.mark.long),
    pytest.param(4, {"strategy": "hsdp", "shard_size": 2}, id="hsdp", marks=pytest.mark.long),
    pytest.param(2, {"strategy": "zero1", "micro_batch": 3}, id="zero1_gradcache", marks=pytest.mark.long),
    pytest.param(2, {"strategy": "zero3"}, id="zero3", marks=pytest.mark.long),
    pytest.param(2, {"strategy": "fairscale_oss"}, id="fairscale_oss", marks=pytest.mark.long),
]


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "sharding"), CASES)
def test_every_number_of_processes_trains_the_same(
    tiny_run: MakeRun, processes: int, sharding: dict[str, Any]
) -> None:
    """Ddp and fsdp in fp64, which shows that nothing but rounding differs."""
    exact = sharding["strategy"] in ("ddp", "fsdp", "hsdp")
    precision, tolerance = ("fp64", 1e-9) if exact else ("fp32", 1e-5)
    one = tiny_run("one", phases=PHASES, **CHANGES, sharding={"precision": precision})
    many = tiny_run("many", phases=PHASES, **CHANGES, sharding={**sharding, "precision": precision})
    for run, count in ((one, 1), (many, processes)):
        done = run.train(processes=count)
        assert done.returncode == 0, done.stderr
    assert ["reconstruction" in line for line in one.metrics()] == [True] * 6 + [False] * 6 + [True] * 6
    for ours, theirs in zip(many.metrics(), one.metrics(), strict=True):
        for name in {"loss", "reconstruction", "grad_norm"} & theirs.keys():
            assert ours[name] == pytest.approx(theirs[name], rel=tolerance), name
