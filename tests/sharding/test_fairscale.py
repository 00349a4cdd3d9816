"""fairscale: OSS step by step in one process and by the command in two, and its FSDP on a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
import torch.distributed as dist
from fairscale.optim.oss import OSS
from support.one_process import SPEC, OneProcess, assert_same
from support.tiny_run import TinyRun
from torch import Tensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from flipscale.config import Optimizer, Sharding
from flipscale.distributed.world import World, leave_world
from flipscale.models.flip import build_model
from flipscale.sharding.fairscale_oss import FairscaleOssModel

MakeRun = Callable[..., TinyRun]
SHORT = [{"name": "p", "samples": 96, "mask_ratio": 0.5, "batch_size": 16, "base_lr": 0.02, "warmup": 64}]

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
ON_A_GPU = [pytest.param("fairscale_fsdp", "cuda", marks=[pytest.mark.gpu, needs_gpu])]
STRATEGIES = [("fairscale_oss", "cpu"), *ON_A_GPU]


@pytest.fixture(scope="module", autouse=True)
def _one_process_group() -> Iterator[None]:
    torch.set_num_threads(1)
    yield
    leave_world()


def fill(tensors: dict[str, Tensor], values: dict[str, Tensor]) -> None:
    assert tensors.keys() == values.keys()
    for name, tensor in tensors.items():
        tensor.copy_(values[name])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("strategy", "device"), STRATEGIES)
def test_one_process_trains_as_ddp(strategy: str, device: str, precision: str) -> None:
    plain = OneProcess.start("ddp", device, precision=precision)
    sharded = OneProcess.start(strategy, device, precision=precision)
    tolerance = 1e-6 if device == "cpu" else 1e-4 if precision == "fp32" else 1e-2
    for number in range(6):
        expected, got = plain.step(number, clip=0.5), sharded.step(number, clip=0.5)
        assert got == pytest.approx(expected, rel=tolerance)


@pytest.mark.parametrize(("strategy", "device"), STRATEGIES)
def test_a_step_that_is_not_finite_changes_nothing(strategy: str, device: str) -> None:
    run, other = OneProcess.start(strategy, device), OneProcess.start(strategy, device)
    run.steps(range(2))
    before = run.copied_state()
    run.step(2, finite=False)
    assert_same(run.copied_state(), before)
    assert run.model.updates() == 2
    other.steps(range(2))
    assert run.steps(range(3, 5)) == other.steps(range(3, 5))


@pytest.mark.parametrize(("strategy", "device"), STRATEGIES)
def test_restored_model_continues_as_the_saved_one(strategy: str, device: str) -> None:
    saved, restored = OneProcess.start(strategy, device), OneProcess.start(strategy, device)
    saved.steps(range(3))
    state = saved.copied_state()
    restored.model.restore(lambda tensors: fill(tensors, state), saved.model.updates())
    assert_same(restored.copied_state(), state)
    assert restored.model.updates() == 3
    assert restored.steps(range(3, 6)) == saved.steps(range(3, 6))


@pytest.mark.parametrize(("strategy", "device"), STRATEGIES)
def test_a_reset_optimizer_is_a_fresh_one(strategy: str, device: str) -> None:
    run, plain = OneProcess.start(strategy, device), OneProcess.start("ddp", device)
    for each in (run, plain):
        each.steps(range(2))
        each.model.reset_optimizer()
        assert each.model.updates() == 0
    tolerance = 1e-6 if device == "cpu" else 1e-4
    assert run.steps(range(2, 5)) == [pytest.approx(step, rel=tolerance) for step in plain.steps(range(2, 5))]


def test_update_does_not_wait_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """OSS is made to believe that it runs on a GPU, and torch.cuda counts how often it is waited for."""
    waits: list[object] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *args, **settings: waits.append(args))
    on_gpu = property(lambda self: torch.device("cuda"), lambda self, device: None)
    monkeypatch.setattr(OSS, "_default_device", on_gpu, raising=False)

    run = OneProcess.start("fairscale_oss")
    before = run.copied_state()
    run.steps(range(3))
    assert waits == []
    assert not torch.equal(run.copied_state()["model.logit_scale"], before["model.logit_scale"])


@pytest.fixture
def last_of_512() -> Iterator[World]:
    """Yield the last of 512 processes on torch's fake backend; no other process exists."""
    leave_world()
    dist.init_process_group("fake", store=FakeStore(), rank=511, world_size=512)
    yield World(511, 512, 7, 8, torch.device("meta"))
    leave_world()


def test_owner_of_nothing_has_its_norm_on_the_device(
    last_of_512: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A norm on the CPU would be summed by gloo, while the other processes wait in NCCL."""
    summed: list[torch.device] = []
    # Older versions of torch cannot reduce tensors of this device.
    monkeypatch.setattr(dist, "all_reduce", lambda tensor, **settings: summed.append(tensor.device))
    model = build_model(SPEC, device="meta")
    assert len(list(model.parameters())) < last_of_512.size
    sharded = FairscaleOssModel(model, Sharding(strategy="fairscale_oss"), Optimizer(), last_of_512)
    for max_norm in (None, 1.0):
        assert sharded.gradient_norm(max_norm).device == last_of_512.device
    assert set(summed) == {last_of_512.device}


@pytest.mark.slow
def test_micro_batches_on_two_processes_equal_the_whole_batch(tiny_run: MakeRun) -> None:
    """Only the owners add gradients up: a mistake in clearing them shows from the second step on."""
    changes = {"phases": SHORT, "optimizer": {"clip_grad_norm": 0.5}, "logging": {"every": "1 steps"}}
    whole = tiny_run("whole", **changes)
    parts = tiny_run("parts", **changes, sharding={"strategy": "fairscale_oss", "micro_batch": 3})
    for run, processes in ((whole, 1), (parts, 2)):
        done = run.train(processes=processes)
        assert done.returncode == 0, done.stderr
        assert "ShardedDDP" not in done.stderr
        assert "Grads waiting" not in done.stderr
    for expected, got in zip(whole.metrics(), parts.metrics(), strict=True):
        assert got["loss"] == pytest.approx(expected["loss"], rel=1e-5)
        assert got["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-5)


@pytest.mark.slow
@pytest.mark.long
def test_a_run_that_diverges_skips_together_and_ends(tiny_run: MakeRun) -> None:
    phases = [{**SHORT[0], "samples": 640, "base_lr": 1e30, "warmup": 0}]
    run = tiny_run(phases=phases, sharding={"strategy": "fairscale_oss"}, logging={"every": "1 steps"})
    done = run.train(processes=2)
    assert done.returncode == 1
    assert "not finite for the last 20 steps" in done.stderr
    assert run.metrics()[-1]["skipped_steps"] == 20


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_its_fsdp_is_refused_on_cpus_in_one_sentence(tiny_run: MakeRun) -> None:
    done = tiny_run(sharding={"strategy": "fairscale_fsdp"}).train()
    assert done.returncode == 2
    assert done.stderr == (
        "error: sharding.strategy fairscale_fsdp runs on CUDA GPUs only; use fsdp, which also runs on CPUs\n"
    )
