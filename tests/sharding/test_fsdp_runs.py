"""FSDP2 and HSDP through the real command: the curve, the order and the checkpoints of one process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from safetensors import safe_open
from support.tiny_run import TinyRun

MakeRun = Callable[..., TinyRun]
FSDP = {"strategy": "fsdp"}
HSDP = {"strategy": "hsdp", "shard_size": 2}
EVERY_STEP = {"every": "1 steps", "tensorboard": False}


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
    settings: dict[str, Any] = {"logging": EVERY_STEP, "optimizer": clipped, "phases": parts(2)}
    one = trained(tiny_run("one", sharding={"precision": "fp64"}, **settings), 1)
    many = trained(tiny_run("many", sharding={**sharding, "precision": "fp64"}, **settings), processes)
    assert largest_difference(many, one, 20) <= 1e-9
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
    """Return phases of 10 steps. A run whose job has only some of them ends there, and resumes with more."""
    part = {"samples": 160, "mask_ratio": 0.5, "batch_size": 16, "base_lr": 0.02, "warmup": 32}
    return [{"name": f"part{number}", **part} for number in range(count)]


def in_segments(tiny_run: MakeRun, name: str, segments: list[tuple[int, dict[str, Any]]]) -> TinyRun:
    """Train one part under each (processes, sharding); the run stops and resumes between them."""
    for number, (processes, sharding) in enumerate(segments, start=1):
        run = tiny_run(name, phases=parts(number), sharding=sharding, logging=EVERY_STEP)
        trained(run, processes)
        assert run.last_manifest()["progress"]["samples_seen"] == 160 * number
    return run  # pyrefly: ignore[unbound-name]: there are segments


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize(("processes", "sharding"), [(2, FSDP), (4, HSDP)], ids=["fsdp2", "hsdp2x2"])
def test_run_resumed_under_the_same_strategy_is_the_same_to_the_bit(
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
    """The order is ddp, fsdp, hsdp, one process; fp64 shows that moments are restored as well."""
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
def test_another_strategy_continues_the_curve(
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
