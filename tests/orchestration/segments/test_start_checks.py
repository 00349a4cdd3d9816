"""A start is refused if a process has no GPU, though its node was given some or its peers have theirs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from flipscale.config import Hang
from flipscale.distributed.placement import Placement
from flipscale.distributed.world import World
from flipscale.errors import RunError
from flipscale.orchestration.segments import segment, start_checks
from flipscale.orchestration.segments.segment import Segment
from flipscale.orchestration.segments.start_checks import check_devices, connect_devices
from flipscale.orchestration.segments.stop_requests import StopRequests
from flipscale.progress import Progress
from flipscale.runs.directory import RunDirectory


@dataclass(frozen=True)
class OfThree(World):
    """One of three processes; the others are described, as no machine of the tests has GPUs on some nodes."""

    others: tuple[tuple[str, str, bool], ...] = ()

    def gather(self, value: Any, group: Any = None) -> list[Any]:
        """Return this process's value and those of the others."""
        return [value, *self.others]


def world(device: str, *others: tuple[str, str, bool]) -> OfThree:
    return OfThree(0, 3, 0, 1, torch.device(device), Placement(node="n1"), others=others)


@pytest.fixture(autouse=True)
def _without_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CUDA_VISIBLE_DEVICES", "SLURM_GPUS_ON_NODE", "SLURM_JOB_GPUS", "SLURM_STEP_GPUS"):
        monkeypatch.delenv(name, raising=False)


def test_processes_alike_may_train_on_cpus_or_gpus() -> None:
    check_devices(world("cpu", ("n2", "cpu", False), ("n3", "cpu", False)))
    check_devices(world("cuda", ("n2", "cuda", True), ("n3", "cuda", True)))
    check_devices(World(0, 1, 0, 1, torch.device("cpu")))


def test_a_node_without_gpus_among_nodes_with_gpus_is_blamed() -> None:
    with pytest.raises(RunError, match="torch finds no GPU for the processes on n1, though") as caught:
        check_devices(world("cpu", ("n2", "cuda", False), ("n3", "cuda", False)))
    assert (caught.value.kind, caught.value.suspects) == ("bad_node", ("n1",))

    with pytest.raises(RunError, match="on n2, n3, though") as caught:
        check_devices(world("cuda", ("n2", "cpu", False), ("n3", "cpu", False)))
    assert caught.value.suspects == ("n2", "n3")


@pytest.mark.parametrize(("name", "value"), [("SLURM_GPUS_ON_NODE", "8"), ("SLURM_JOB_GPUS", "0,1,2")])
def test_a_job_that_was_given_gpus_does_not_train_on_cpus(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(RunError, match=r"on this machine, though Slurm gave GPUs .*torch 2") as caught:
        check_devices(World(0, 1, 0, 1, torch.device("cpu")))
    assert caught.value.kind == "bad_node"


@pytest.mark.parametrize("none", ["", "-1"])
def test_a_person_may_hide_the_gpus_of_a_job(none: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_GPUS_ON_NODE", "8")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", none)
    check_devices(World(0, 1, 0, 1, torch.device("cpu")))


def test_gpus_are_connected_by_a_first_collective(monkeypatch: pytest.MonkeyPatch) -> None:
    """The device "meta" stands for a GPU: it is not the CPU, and every torch has it."""
    done: list[object] = []

    def all_reduce(values: Tensor) -> None:
        done.append(values.device)

    monkeypatch.setattr(start_checks.dist, "all_reduce", all_reduce)
    monkeypatch.setattr(torch.cuda, "synchronize", done.append)

    connect_devices(world("cpu"))
    connect_devices(World(0, 1, 0, 1, torch.device("meta")))
    assert done == []

    connect_devices(world("meta"))
    assert done == [torch.device("meta")] * 2


def test_gpus_are_connected_after_each_process_has_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the others would wait for a process without a GPU, and no message would name its node."""
    done: list[str] = []
    monkeypatch.setattr(segment, "check_devices", lambda world: done.append("check"))
    monkeypatch.setattr(segment, "connect_devices", lambda world: done.append("connect"))

    run = RunDirectory(tmp_path)
    start = Segment(run, World(0, 1, 0, 1, torch.device("cpu")), StopRequests(run.stop_file), hang=Hang())
    start.begin(Progress())
    start.end(Progress(), Progress())

    assert done == ["check", "connect"]
