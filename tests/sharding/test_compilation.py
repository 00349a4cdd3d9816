"""The graphs that torch makes of compiled blocks, and what a run says if it makes none."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from support.one_process import SPEC, OneProcess, make_pairs
from torch._dynamo.testing import CompileCounterWithBackend
from torch._dynamo.utils import counters
from torch.nn.parallel import DistributedDataParallel

from flipscale.distributed.world import World, leave_world
from flipscale.errors import UserError
from flipscale.models.flip import build_model
from flipscale.sharding.compilation import CompilationCheck, check_compiler, compile_blocks
from flipscale.sharding.wrapping import ensure_process_group

STRATEGIES: dict[str, dict[str, Any]] = {"ddp": {}, "fsdp": {}, "hsdp": {"shard_size": 1}}


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch.set_num_threads(1)
    torch.compiler.reset()
    counters.clear()
    yield
    leave_world()
    torch.compiler.reset()


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def graphs_by_phase(run: OneProcess) -> list[int]:
    """Return the graphs after a step with half of the patches masked, and after one with none masked.

    No kernel is made of the graphs: they run as torch has captured them.
    """
    count = CompileCounterWithBackend("eager")
    graphs: list[int] = []
    with torch.compiler.set_stance(force_backend=count):
        for phase in range(2):
            pairs = make_pairs(phase)
            run.step(phase, pairs=pairs._replace(keep=None) if phase else pairs)
            graphs.append(count.frame_count)
    return graphs


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(
    ("mode", "graphs"),
    [  # one for each tower; the unmasked phase has more image tokens and as many text tokens
        ("none", [2, 3]),
        ("selective", [2, 3]),
        ("full", [2, 3]),
        ("every 2", [4, 6]),  # a block that recomputes is another graph than one that does not
    ],
)
def test_every_block_is_one_graph_whatever_it_recomputes(
    strategy: str, mode: str, graphs: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    run = OneProcess.start(strategy, compile=True, activation_checkpointing=mode, **STRATEGIES[strategy])
    assert graphs_by_phase(run) == graphs
    assert not counters["graph_break"]
    assert warnings(caplog) == []  # torch warns of recomputation in a graph


def test_each_size_of_micro_batch_has_a_graph_of_its_own() -> None:
    """Parts of 5 and 3 pairs, with a gradient and without: more graphs than torch's limit of 8."""
    run = OneProcess.start("ddp", compile=True, activation_checkpointing="selective", micro_batch=5)
    assert graphs_by_phase(run) == [8, 12]
    assert not counters["graph_break"]


def test_ddp_does_not_cut_the_graph_of_a_block() -> None:
    """It does in torch's default settings if a block has more than 1 MB of weights, as this one."""
    tower = dataclasses.replace(SPEC.vision, width=192, heads=3)
    model = build_model(dataclasses.replace(SPEC, vision=tower))
    compile_blocks(model)
    ensure_process_group(World(0, 1, 0, 1, torch.device("cpu")))

    count = CompileCounterWithBackend("eager")
    with torch.compiler.set_stance(force_backend=count):
        images, texts, *_ = DistributedDataParallel(model)(make_pairs(0))
        (images.sum() + texts.sum()).backward()
    assert count.frame_count == 2


def test_a_step_without_a_graph_is_reported_once(caplog: pytest.LogCaptureFixture) -> None:
    run = OneProcess.start("ddp", compile=True)
    check = CompilationCheck(wanted=True)
    with torch.compiler.set_stance("force_eager"):
        run.step(0)
    check.after_step()
    check.after_step()
    (warning,) = warnings(caplog)
    assert "torch compiled no block" in warning


def test_a_step_with_graphs_is_not_reported(caplog: pytest.LogCaptureFixture) -> None:
    run = OneProcess.start("ddp", compile=True)
    check = CompilationCheck(wanted=True)
    with torch.compiler.set_stance(force_backend="eager"):
        run.step(0)
    check.after_step()
    assert warnings(caplog) == []


@pytest.mark.parametrize(("device_type", "variable"), [("cpu", "CXX"), ("cuda", "CC")])
def test_a_machine_without_a_compiler_is_refused(
    device_type: str, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "/none/c++")
    with pytest.raises(UserError, match=f"no /none/c\\+\\+; install one, name another in {variable}"):
        check_compiler(device_type)
    monkeypatch.setenv(variable, "sh -c")
    check_compiler(device_type)
