"""ZeRO compared with ddp step by step in one process, and effects that the library must not have."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support.one_process import (
    CLIP_SPEC,
    OneProcess,
    assert_same,
    make_captioned_pairs,
    release_models_of_deepspeed,
)
from support.tiny_run import TinyRun
from torch import Tensor

from flipscale.distributed.world import World, leave_world
from flipscale.sharding import deepspeed

MakeRun = Callable[..., TinyRun]
STAGES = ["zero1", "zero2", "zero3"]
ONE_IS_LONG = [pytest.param("zero1", marks=pytest.mark.long), "zero3"]
SHORT = [{"name": "p", "samples": 96, "mask_ratio": 0.5, "batch_size": 16, "base_lr": 0.02, "warmup": 64}]

pytestmark = pytest.mark.slow  # the import of DeepSpeed takes seconds


@pytest.fixture(scope="module", autouse=True)
def _one_process_group() -> Iterator[None]:
    torch.set_num_threads(1)
    yield
    leave_world()


@pytest.fixture(autouse=True)
def _released_models() -> Iterator[None]:
    yield
    release_models_of_deepspeed()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("offload", [False, True])
@pytest.mark.parametrize("strategy", STAGES)
def test_one_process_trains_as_ddp(strategy: str, offload: bool, precision: str) -> None:
    """Only the order of the norm's sums differs, and clipping carries this into the weights.

    On some CPUs bf16 (autocast under both) amplifies it to its own rounding: bf16 is compared unclipped.
    """
    plain = OneProcess.start("ddp", precision=precision)
    zero = OneProcess.start(strategy, precision=precision, offload_optimizer=offload)
    clip = 0.5 if precision == "fp32" else None
    for number in range(6):
        expected, got = plain.step(number, clip=clip), zero.step(number, clip=clip)
        assert got == pytest.approx(expected, rel=1e-6)
    state = zero.copied_state()
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}
    for name, tensor in plain.copied_state().items():
        if name.startswith("exp_avg"):  # Adam steps by the sign of gradients that are but rounding, too
            torch.testing.assert_close(state[name], tensor, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize(
    ("strategy", "settings"),
    [("zero2", {"micro_batch": 3}), ("zero3", {"micro_batch": 3, "activation_checkpointing": "selective"})],
)
def test_packed_captions_train_as_whole_ones(strategy: str, settings: dict[str, Any]) -> None:
    whole, packed = (OneProcess.start(strategy, spec=CLIP_SPEC, **settings) for _ in range(2))
    for step in range(4):
        expected = whole.step(step, pairs=make_captioned_pairs(step, packed=False))
        got = packed.step(step, pairs=make_captioned_pairs(step, packed=True))
        assert got == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("mode", ["selective", "full"])
@pytest.mark.parametrize("micro_batch", [None, 3])
def test_zero3_recomputes_what_it_gathers_within_blocks(mode: str, micro_batch: int | None) -> None:
    """It frees weights in other places of the forward than of the recomputation."""
    plain = OneProcess.start("ddp", micro_batch=micro_batch)
    zero = OneProcess.start("zero3", activation_checkpointing=mode, micro_batch=micro_batch)
    for number in range(4):
        assert zero.step(number) == pytest.approx(plain.step(number), rel=1e-5)


@pytest.mark.parametrize("strategy", STAGES)
def test_a_step_that_is_not_finite_changes_nothing(strategy: str) -> None:
    run = OneProcess.start(strategy)
    run.steps(range(2))
    before = run.copied_state()
    run.step(2, finite=False)
    assert_same(run.copied_state(), before)
    assert run.model.updates() == 2
    spoiled = before | {"model.logit_scale": torch.tensor([float("nan")])}
    run.model.restore(lambda state: fill(state, spoiled), 2)
    loss, norm = run.step(3, finite=False)
    assert loss != loss
    assert norm != norm
    run.model.restore(lambda state: fill(state, before), 2)
    other = OneProcess.start(strategy)
    other.steps(range(2))
    assert run.steps(range(3, 5)) == other.steps(range(3, 5))


@pytest.mark.parametrize("strategy", STAGES)
def test_restored_model_continues_as_the_saved_one(strategy: str) -> None:
    saved = OneProcess.start(strategy)
    fresh = saved.copied_state()  # before any step
    assert not any(tensor.any() for name, tensor in fresh.items() if name.startswith("exp_avg"))
    saved.steps(range(3))
    state = saved.copied_state()
    restored = OneProcess.start(strategy)
    restored.model.restore(lambda tensors: fill(tensors, state), saved.model.updates())
    assert_same(restored.copied_state(), state)
    assert restored.model.updates() == 3
    assert restored.steps(range(3, 6)) == saved.steps(range(3, 6))


@pytest.mark.parametrize("strategy", STAGES)
def test_a_reset_optimizer_is_a_fresh_one(strategy: str) -> None:
    run, plain = OneProcess.start(strategy), OneProcess.start("ddp")
    for each in (run, plain):
        each.steps(range(2))
        each.model.reset_optimizer()
        assert each.model.updates() == 0
    assert not any(t.any() for name, t in run.copied_state().items() if name.startswith("exp_avg"))
    assert run.steps(range(2, 5)) == [pytest.approx(step, rel=1e-6) for step in plain.steps(range(2, 5))]


@pytest.mark.parametrize("strategy", STAGES)
def test_host_waits_for_the_device_in_no_micro_batch(strategy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """DeepSpeed's timer begins with the third step, and would wait in each of the eight forwards."""
    from deepspeed.accelerator import get_accelerator

    run = OneProcess.start(strategy, micro_batch=1)
    waits: list[str] = []
    monkeypatch.setattr(get_accelerator(), "synchronize", lambda *args: waits.append("synchronize"))
    run.steps(range(5))
    assert waits == []


@pytest.mark.parametrize("strategy", ["zero1", "zero2"])
def test_reduction_during_the_backward_gives_the_same_numbers(
    strategy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GPUs reduce so; on a CPU there are no streams, but the same buckets, and micro-batches that add up."""
    plain = OneProcess.start(strategy, micro_batch=2)
    expected = plain.steps(range(3), clip=0.5)

    config = deepspeed._engine_config
    on_gpu = lambda stage, offload, device: config(stage, offload, torch.device("cuda"))  # noqa: E731
    monkeypatch.setattr(deepspeed, "_engine_config", on_gpu)
    monkeypatch.setattr(deepspeed, "_BUCKET", 20_000)
    overlapped = OneProcess.start(strategy, micro_batch=2)
    assert isinstance(overlapped.model, deepspeed.ZeroModel)
    assert overlapped.model._zero.overlap_comm == deepspeed._overlap_is_safe()
    assert overlapped.steps(range(3), clip=0.5) == expected
    assert_same(overlapped.copied_state(), plain.copied_state())


@pytest.mark.parametrize(("device", "table"), [("cuda", None), ("cpu", {"deepspeed_shm_comm": False})])
def test_no_operation_is_probed(
    device: str, table: dict[str, bool] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The probes of newer versions run compilers, in every process, on the first use of the table."""
    import deepspeed as library

    monkeypatch.delitem(vars(library.ops), "__compatible_ops__", raising=False)
    deepspeed._quiet_deepspeed(World(0, 1, 0, 1, torch.device(device)))
    assert vars(library.ops).get("__compatible_ops__") == table


def test_the_process_keeps_its_linear_function() -> None:
    linear = torch.nn.functional.linear
    OneProcess.start("zero3").steps(range(1))
    assert torch.nn.functional.linear is linear


def fill(tensors: dict[str, Tensor], values: dict[str, Tensor]) -> None:
    assert tensors.keys() == values.keys()
    for name, tensor in tensors.items():
        tensor.copy_(values[name])


@pytest.mark.parametrize(
    "strategy", ["zero3", *(pytest.param(s, marks=pytest.mark.long) for s in STAGES[:2])]
)
def test_micro_batches_on_two_processes_equal_the_whole_batch(tiny_run: MakeRun, strategy: str) -> None:
    changes = {"phases": SHORT, "optimizer": {"clip_grad_norm": 0.5}, "logging": {"every": "1 steps"}}
    whole = tiny_run("whole", **changes)
    parts = tiny_run("parts", **changes, sharding={"strategy": strategy, "micro_batch": 3})
    for run, processes in ((whole, 1), (parts, 2)):
        done = run.train(processes=processes)
        assert done.returncode == 0, done.stderr
    for expected, got in zip(whole.metrics(), parts.metrics(), strict=True):
        assert got["loss"] == pytest.approx(expected["loss"], rel=1e-5)
        assert got["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-5)


@pytest.mark.parametrize("strategy", ONE_IS_LONG)
def test_no_compiler_and_a_quiet_terminal(
    tiny_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, strategy: str
) -> None:
    """Nothing is on PATH, and the cache of compiled extensions is empty."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "extensions"))
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    monkeypatch.delenv("PYTHONWARNINGS", raising=False)
    done = tiny_run(phases=SHORT, sharding={"strategy": strategy}).train(processes=2)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert "deprecated" not in done.stderr
    assert "deepspeed" not in done.stderr.lower()
    assert not os.path.exists(tmp_path / "extensions")


@pytest.mark.parametrize("strategy", ONE_IS_LONG)
def test_a_run_that_diverges_skips_together_and_ends(tiny_run: MakeRun, strategy: str) -> None:
    phases = [{**SHORT[0], "samples": 640, "base_lr": 1e30, "warmup": 0}]
    run = tiny_run(phases=phases, sharding={"strategy": strategy}, logging={"every": "1 steps"})
    done = run.train(processes=2)
    assert done.returncode == 1
    assert "not finite for the last 20 steps" in done.stderr
    assert run.metrics()[-1]["skipped_steps"] == 20


@pytest.mark.parametrize("strategy", ["zero1", "fairscale_oss"])
def test_fp64_is_refused_in_one_sentence(tiny_run: MakeRun, strategy: str) -> None:
    done = tiny_run(sharding={"strategy": strategy, "precision": "fp64"}).train()
    assert done.returncode == 2
    assert done.stderr == (
        f"error: sharding.strategy {strategy} cannot train in fp64; use ddp or fsdp, or fp32 or bf16\n"
    )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("offload", [False, True])
@pytest.mark.parametrize("strategy", STAGES)
def test_on_a_gpu_it_trains_as_ddp(strategy: str, offload: bool, precision: str) -> None:
    plain = OneProcess.start("ddp", "cuda", precision=precision)
    zero = OneProcess.start(strategy, "cuda", precision=precision, offload_optimizer=offload)
    tolerance = 1e-4 if precision == "fp32" else 1e-2
    for number in range(6):
        expected, got = plain.step(number, clip=0.5), zero.step(number, clip=0.5)
        assert got == pytest.approx(expected, rel=tolerance)


def test_library_takes_the_gpu_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """With --gpus-per-task the process of local rank 5 sees one GPU, whose number is 0."""
    monkeypatch.setenv("LOCAL_RANK", "5")
    deepspeed._quiet_deepspeed(World(5, 8, 5, 8, torch.device("cuda", 0)))
    assert os.environ["LOCAL_RANK"] == "0"
