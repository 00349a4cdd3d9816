"""FSDP2 in one process, step by step against ddp."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from flipscale.config import Job
from flipscale.distributed.world import World, leave_world
from flipscale.models.flip import build_model
from flipscale.models.inputs import Inputs
from flipscale.models.presets import preset
from flipscale.sharding.shard import shard
from flipscale.sharding.strategy import ShardedModel
from flipscale.training.gradients import accumulate_gradients

SPEC = preset("vit_micro_p8", vocab_size=50, context_length=16)


@pytest.fixture
def alone() -> Iterator[World]:
    """Yield a world of one process; FSDP makes itself a process group, as in a run."""
    torch.set_num_threads(1)
    yield World(0, 1, 0, 1, torch.device("cpu"))
    leave_world()


def job_of(world: World, **sharding: Any) -> Job:
    return Job.model_validate(
        {
            "name": "tiny",
            "model": SPEC.name,
            "data": {"train": "unused.tar", "tokenizer": {"vocab": "unused.txt"}},
            "phases": [{"name": "p", "samples": 8, "mask_ratio": 0.5, "batch_size": 8, "base_lr": 1.0}],
            "optimizer": {"clip_grad_norm": 1.0},
            "sharding": sharding,
        }
    )


def sharded(world: World, **sharding: Any) -> tuple[ShardedModel, Job]:
    job = job_of(world, **sharding)
    return shard(build_model(SPEC, device="meta"), job.sharding, job.optimizer, job.seed, world), job


def pairs(device: torch.device, count: int = 8) -> Inputs:
    random = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, 3, 32, 32), dtype=torch.uint8, generator=random)
    texts = torch.randint(50, (count, 16), generator=random)
    keep = torch.rand(count, 16, generator=random).argsort(dim=1)[:, :8]
    return Inputs(images.to(device), texts.to(device), keep.to(device))


def train_steps(model: ShardedModel, job: Job, world: World, steps: int) -> list[float]:
    losses: list[float] = []
    for _ in range(steps):
        loss = accumulate_gradients(model, pairs(world.device), job.loss, job.sharding.micro_batch)["loss"]
        norm = model.gradient_norm(job.optimizer.clip_grad_norm)
        model.update(1e-3, torch.isfinite(norm))
        losses.append(float(loss))
    return losses


def whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def test_weights_begin_as_those_of_ddp_under_the_same_names(alone: World) -> None:
    ours, _ = sharded(alone, strategy="fsdp")
    theirs, _ = sharded(alone, strategy="ddp")
    ours_state, theirs_state = dict(ours.state()), dict(theirs.state())
    assert list(ours_state) == list(theirs_state)
    for name, tensor in ours_state.items():
        assert torch.equal(whole(tensor), theirs_state[name]), name


@pytest.mark.parametrize("reshard", [True, False])
@pytest.mark.parametrize("micro_batch", [None, 2])
def test_one_process_trains_as_ddp(alone: World, reshard: bool, micro_batch: int | None) -> None:
    ours, job = sharded(alone, strategy="fsdp", reshard_after_forward=reshard, micro_batch=micro_batch)
    theirs, _ = sharded(alone, strategy="ddp")
    expected = train_steps(theirs, job_of(alone), alone, 3)
    assert train_steps(ours, job, alone, 3) == pytest.approx(expected, abs=1e-6)
    assert ours.updates() == 3


def test_the_gradient_is_clipped_to_its_norm(alone: World) -> None:
    model, job = sharded(alone, strategy="fsdp")
    accumulate_gradients(model, pairs(alone.device), job.loss, job.sharding.micro_batch)
    norm = model.gradient_norm(None)
    assert type(norm) is Tensor
    assert norm.shape == ()
    half = float(norm) / 2
    assert float(model.gradient_norm(half)) == float(norm)
    assert float(model.gradient_norm(None)) == pytest.approx(half, rel=1e-5)
    assert float(model.gradient_norm(100 * half)) == pytest.approx(half, rel=1e-5)
    assert float(model.gradient_norm(None)) == pytest.approx(half, rel=1e-5)


def test_a_step_that_is_not_finite_changes_nothing(alone: World) -> None:
    model, job = sharded(alone, strategy="fsdp")
    train_steps(model, job, alone, 2)
    before = {name: whole(tensor).clone() for name, tensor in model.state()}
    accumulate_gradients(model, pairs(alone.device), job.loss, job.sharding.micro_batch)
    model.update(1e-3, torch.tensor(False))
    assert model.updates() == 2
    assert all(torch.equal(whole(tensor), before[name]) for name, tensor in model.state())
    train_steps(model, job, alone, 1)
    assert model.updates() == 3
    assert not torch.equal(whole(dict(model.state())["model.logit_scale"]), before["model.logit_scale"])


@pytest.mark.slow
def test_bf16_differs_from_ddp_only_by_the_rounding_of_the_norms(alone: World) -> None:
    """At the start the norms are ones and zeros, exact in bf16: the features then are those of ddp."""
    ours, job = sharded(alone, strategy="fsdp", precision="bf16")
    theirs, _ = sharded(alone, strategy="ddp", precision="bf16")
    exact, _ = sharded(alone, strategy="ddp")
    with torch.no_grad():
        features = [model.forward(pairs(alone.device)) for model in (ours, theirs)]
        for mine, yours in zip(*(found[:3] for found in features), strict=True):
            assert mine is not None
            assert mine.dtype is torch.float32
            assert torch.equal(mine, yours)
    expected = train_steps(exact, job_of(alone), alone, 20)
    rounding = [abs(a - b) for a, b in zip(train_steps(theirs, job, alone, 20), expected, strict=True)]
    ours_off = [abs(a - b) for a, b in zip(train_steps(ours, job, alone, 20), expected, strict=True)]
    assert 0 < max(ours_off) < 3 * max(rounding)
    assert all(tensor.dtype is torch.float32 for _, tensor in ours.state())


def test_the_state_is_good_after_forwards_without_gradients(alone: World) -> None:
    """As in an evaluation: FSDP leaves its gathered weights in place of the shares then."""
    model, job = sharded(alone, strategy="fsdp", reshard_after_forward=False)
    train_steps(model, job, alone, 1)
    before = {name: whole(tensor).clone() for name, tensor in model.state()}
    with torch.no_grad():
        model.forward(Inputs(images=pairs(alone.device).images))
        model.forward(Inputs(texts=pairs(alone.device).texts))
    assert all(torch.equal(whole(tensor), before[name]) for name, tensor in model.state())
    train_steps(model, job, alone, 1)
    assert model.updates() == 2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("activation_checkpointing", ["none", "selective"])
def test_five_steps_in_bf16_on_a_gpu(activation_checkpointing: str) -> None:
    world = World(0, 1, 0, 1, torch.device("cuda", 0))
    settings = {"precision": "bf16", "activation_checkpointing": activation_checkpointing}
    try:
        ours, job = sharded(world, strategy="fsdp", **settings)
        theirs, _ = sharded(world, strategy="ddp", **settings)
        expected = train_steps(theirs, job, world, 5)
        losses = train_steps(ours, job, world, 5)
        assert losses[-1] < losses[0]
        assert losses == pytest.approx(expected, abs=0.05)  # bf16
    finally:
        leave_world()
