"""A deterministic job: what torch is set to, and that no operation of a step refuses."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from support.tiny_run import TinyRun

from flipscale.cli.train import _train_segment
from flipscale.config import load_job
from flipscale.errors import UserError
from flipscale.orchestration.segments.stop_requests import StopRequests
from flipscale.runs.directory import run_directory
from flipscale.training.determinism import use_deterministic_algorithms

MakeRun = Callable[..., TinyRun]
MEMORY: Any = torch.utils.deterministic


@pytest.fixture
def _former_settings() -> Iterator[None]:
    fill = MEMORY.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(False)
    MEMORY.fill_uninitialized_memory = fill


@pytest.mark.usefixtures("_former_settings")
def test_torch_raises_instead_of_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    """With warnings only, flash attention still adds gradients in any order."""
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    use_deterministic_algorithms()
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.is_deterministic_algorithms_warn_only_enabled()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert not MEMORY.fill_uninitialized_memory


@pytest.mark.usefixtures("_former_settings")
def test_a_workspace_that_a_person_has_set_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    use_deterministic_algorithms()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"


@pytest.mark.usefixtures("_former_settings")
@pytest.mark.parametrize("deterministic", [False, True])
def test_the_setting_is_there_before_the_job_is_checked(tiny_run: MakeRun, deterministic: bool) -> None:
    job = load_job(tiny_run(deterministic=deterministic, optimizer={"name": "none"}).job)
    run = run_directory(job)
    with pytest.raises(UserError, match=r"optimizer\.name"):
        _train_segment(job, run, StopRequests(run.stop_file), from_zero=False)
    assert torch.are_deterministic_algorithms_enabled() == deterministic


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_deterministic_run_on_a_cpu_is_the_same_run(tiny_run: MakeRun, precision: str) -> None:
    """It has every kind of operation: both masks, the decoder, and a resumption with the other setting."""
    phase = {"samples": 64, "mask_ratio": 0.5, "batch_size": 16, "base_lr": 0.02, "text_mask_ratio": 0.5}
    phases = [{"name": "first", **phase}, {"name": "second", **phase}]
    more = {
        "loss": {"reconstruction": {"width": 32, "layers": 1, "heads": 2}},
        "sharding": {"precision": precision},
    }
    straight = tiny_run("straight", phases=phases, **more)
    assert straight.train().returncode == 0

    for number, deterministic in ((1, True), (2, False)):
        run = tiny_run("deterministic", phases=phases[:number], deterministic=deterministic, **more)
        done = run.train()
        assert done.returncode == 0, done.stderr
    assert run.weights() == straight.weights()
    assert run.metrics() == straight.metrics()
