"""The GPU of each process, on machines that show a process all GPUs or only its own."""

from __future__ import annotations

import re

import pytest
import torch

from flipscale.distributed.devices import check_gpus, gpu_id, own_device
from flipscale.distributed.placement import Placement
from flipscale.errors import UserError


def device_of(local_rank: int, visible: int, monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """Return the device of one of 8 processes; few machines of the tests have GPUs."""
    chosen: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: visible > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)

    device = own_device(Placement(8 + local_rank, 16, local_rank, 8, node="n2"))

    assert chosen == ([device] if visible else [])
    return device


def test_process_takes_the_gpu_of_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [device_of(rank, 8, monkeypatch).index for rank in range(8)] == list(range(8))
    assert device_of(5, 0, monkeypatch) == torch.device("cpu")


def test_process_that_sees_one_gpu_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [device_of(rank, 1, monkeypatch).index for rank in range(8)] == [0] * 8


def test_process_that_sees_too_few_gpus_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    message = "8 processes were started on n2, and process 5 sees only 4 GPUs; start one process per GPU"
    with pytest.raises(UserError, match=re.escape(message)):
        device_of(5, 4, monkeypatch)


def test_two_processes_with_the_same_gpu_are_refused() -> None:
    check_gpus(["GPU-a", "GPU-b", "GPU-c"])
    check_gpus([gpu_id(torch.device("cpu"))] * 2)
    with pytest.raises(UserError, match=r"ranks 1, 3 have the same GPU \(GPU-b\); start one process per GPU"):
        check_gpus(["GPU-a", "GPU-b", "GPU-c", "GPU-b"])
