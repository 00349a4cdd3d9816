"""FSDP2 and HSDP through the real command: the curve, the order and the checkpoints of one process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from safetensors import safe_open
from support.tiny_run import TinyRun
from torch import Tensor

from flipscale.config import Job
from flipscale.distributed.world import World, leave_world
from flipscale.models.flip import build_model
from flipscale.models.inputs import Inputs
from flipscale.models.presets import preset
from flipscale.sharding.shard import shard
from flipscale.sharding.strategy import ShardedModel
from flipscale.training.gradients import accumulate_gradients

MakeRun = Callable[..., TinyRun]
SPEC = preset("vit_micro_p8", vocab_size=50, context_length=16)
FSDP = {"strategy": "fsdp"}
HSDP = {"strategy": "hsdp", "shard_size": 2}
EVERY_STEP = {"every": "1 steps", "tensorboard": False}


@pytest.fixture
def alone() -> Iterator[World]:
    """One process; FSDP makes itself a process group, as in a run."""
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
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor  # type: ignore[attr-defined]


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


def test_bf16_differs_from_ddp_by_the_rounding_of_the_norms_alone(alone: World) -> None:
    """At the start the norms are ones and zeros, exact in bf16: the features then are those of ddp."""
    ours, job = sharded(alone, strategy="fsdp", precision="bf16")
    theirs, _ = sharded(alone, strategy="ddp", precision="bf16")
    exact, _ = sharded(alone, strategy="ddp")
    with torch.no_grad():
        features = [model.forward(pairs(alone.device)) for model in (ours, theirs)]
        for mine, yours in zip(*(found[:3] for found in features), strict=True):
            assert mine is not None
            assert mine.dtype is torch.float32
            assert torch.equal(mine, yours)  # type: ignore[arg-type]
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


# Real runs of several processes.


def curve(run: TinyRun, steps: int = 30) -> list[float]:
    return [metric["loss"] for metric in run.metrics()][:steps]


def largest_difference(run: TinyRun, other: TinyRun, steps: int = 30) -> float:
    return max(abs(a - b) for a, b in zip(curve(run, steps), curve(other, steps), strict=True))


def trained(run: TinyRun, processes: int) -> TinyRun:
    done = run.train(processes=processes)
    assert done.returncode == 0, done.stderr
    assert "/fsdp/" not in done.stderr  # where FSDP warns from
    return run


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize(
    ("processes", "sharding"),
    [(2, FSDP), (4, FSDP), (4, HSDP), (2, {**FSDP, "micro_batch": 2, "reshard_after_forward": False})],
    ids=["fsdp2", "fsdp4", "hsdp2x2", "fsdp2_gradcache"],
)
def test_fp32_trains_as_one_process(tiny_run: MakeRun, processes: int, sharding: dict[str, Any]) -> None:
    one = trained(tiny_run("one", logging=EVERY_STEP), 1)
    many = trained(tiny_run("many", sharding=sharding, logging=EVERY_STEP), processes)
    assert [m["digest"] for m in many.metrics()] == [m["digest"] for m in one.metrics()]
    assert largest_difference(many, one, 3) <= 1e-6
    assert largest_difference(many, one) <= 1e-4
    for mine, alone in zip(many.metrics()[:30], one.metrics()[:30], strict=True):
        assert mine["grad_norm"] == pytest.approx(alone["grad_norm"], rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "sharding"),
    [pytest.param(2, FSDP, id="fsdp2"), pytest.param(4, HSDP, id="hsdp2x2", marks=pytest.mark.long)],
)
def test_fp64_shows_that_only_rounding_differs(
    tiny_run: MakeRun, processes: int, sharding: dict[str, Any]
) -> None:
    clipped = {"clip_grad_norm": 1.0}
    settings: dict[str, Any] = {"logging": EVERY_STEP, "optimizer": clipped}
    one = trained(tiny_run("one", sharding={"precision": "fp64"}, **settings), 1)
    many = trained(tiny_run("many", sharding={**sharding, "precision": "fp64"}, **settings), processes)
    assert largest_difference(many, one, 50) <= 1e-9
    expected = one.tensors()
    for name, tensor in many.tensors().items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-7, atol=1e-9, msg=name)


@pytest.mark.slow
@pytest.mark.long
def test_activation_checkpointing_changes_no_bit_of_a_run(tiny_run: MakeRun) -> None:
    modes = ("none", "full", "selective", "every 2")
    runs = {m: tiny_run(m.replace(" ", "_"), sharding={**FSDP, "activation_checkpointing": m}) for m in modes}
    weights = {mode: trained(run, 2).weights() for mode, run in runs.items()}
    assert all(weights[mode] == weights["none"] for mode in modes)


def parts(count: int) -> list[dict[str, Any]]:
    """Phases of 10 steps. A run whose job has only the first of them ends there, and goes on with more."""
    part = {"samples": 160, "mask_ratio": 0.5, "batch_size": 16, "base_lr": 0.02, "warmup": 32}
    return [{"name": f"part{number}", **part} for number in range(count)]


def in_segments(tiny_run: MakeRun, name: str, segments: list[tuple[int, dict[str, Any]]]) -> TinyRun:
    """A run of one part for each of the (processes, sharding), stopped and resumed between them."""
    for number, (processes, sharding) in enumerate(segments, start=1):
        run = tiny_run(name, phases=parts(number), sharding=sharding, logging=EVERY_STEP)
        trained(run, processes)
        assert run.last_manifest()["progress"]["samples_seen"] == 160 * number
    return run


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize(("processes", "sharding"), [(2, FSDP), (4, HSDP)], ids=["fsdp2", "hsdp2x2"])
def test_resumed_under_the_same_it_is_the_same_to_the_bit(
    tiny_run: MakeRun, processes: int, sharding: dict[str, Any]
) -> None:
    settings = {"phases": parts(2), "sharding": sharding, "logging": EVERY_STEP}
    straight = trained(tiny_run("straight", **settings), processes)
    resumed = in_segments(tiny_run, "resumed", [(processes, sharding)] * 2)
    assert resumed.weights() == straight.weights()
    assert resumed.metrics() == straight.metrics()


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-4), ("fp64", 1e-9)])
def test_a_run_may_change_strategy_and_world_size(
    tiny_run: MakeRun, precision: str, tolerance: float
) -> None:
    """ddp, fsdp, hsdp, one process; fp64 shows that moments, too, come over whole."""
    one = {"strategy": "ddp", "precision": precision}
    straight = trained(tiny_run("straight", phases=parts(4), sharding=one, logging=EVERY_STEP), 1)
    segments = [(2, one), (4, {**FSDP, "precision": precision}), (4, {**HSDP, "precision": precision})]
    moved = in_segments(tiny_run, "moved", [*segments, (1, one)])
    assert [m["digest"] for m in moved.metrics()] == [m["digest"] for m in straight.metrics()]
    assert largest_difference(moved, straight, 40) <= tolerance


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize(
    ("processes", "first", "second"),
    [(2, {"strategy": "ddp"}, FSDP), (2, FSDP, {"strategy": "ddp"}), (4, FSDP, HSDP), (4, HSDP, FSDP)],
    ids=["ddp_fsdp", "fsdp_ddp", "fsdp_hsdp", "hsdp_fsdp"],
)
def test_another_strategy_goes_on_with_the_curve(
    tiny_run: MakeRun, processes: int, first: dict[str, Any], second: dict[str, Any]
) -> None:
    straight = tiny_run("straight", phases=parts(2), sharding=first, logging=EVERY_STEP)
    moved = in_segments(tiny_run, "moved", [(processes, first), (processes, second)])
    assert largest_difference(moved, trained(straight, processes), 20) <= 1e-5


@pytest.mark.slow
def test_each_process_writes_its_own_share(tiny_run: MakeRun) -> None:
    run = trained(tiny_run(phases=parts(1), sharding=FSDP), 2)
    stored: dict[str, int] = {}
    files = sorted(run.newest().glob("*.safetensors"))
    for path in files:
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118
                stored[name] = stored.get(name, 0) + file.get_tensor(name).numel()
    assert len(files) == 2
    assert 0.45 < files[0].stat().st_size / sum(file.stat().st_size for file in files) < 0.6
    assert stored == {name: tensor.numel() for name, tensor in run.tensors().items()}
