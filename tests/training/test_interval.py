"""The share of the time that training waited for data."""

from __future__ import annotations

import time

import pytest
import torch

from flipscale.training import interval as module
from flipscale.training.interval import Interval

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now


def test_on_a_cpu_it_is_the_time_inside_the_loader(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    interval = Interval(1000)
    for waited, worked in [(3.0, 1.0), (0.5, 3.5)]:
        with interval.waiting_for_data():
            clock.now += waited
        clock.now += worked
    assert interval.restart(1400) == (400 / 8.0, 3.5 / 8.0)
    clock.now += 2.0
    assert interval.restart(1500) == (50.0, 0.0)  # nothing is left over from before


@pytest.mark.gpu
@needs_gpu
def test_on_a_gpu_only_its_idle_time_counts():
    """The host waits for data both times; the GPU is busy the first time and idle the second."""

    def share(busy_cycles: int) -> float:
        torch.cuda.synchronize()
        interval = Interval(0)
        torch.cuda._sleep(busy_cycles)
        with interval.waiting_for_data():
            began = time.perf_counter()
            while time.perf_counter() - began < 0.05:
                pass
        torch.cuda._sleep(busy_cycles)
        torch.cuda.synchronize()
        return interval.restart(1)[1]

    share(1000)  # what is set up once
    assert share(400_000_000) < 0.05  # some 200 ms
    assert share(1000) > 0.9
