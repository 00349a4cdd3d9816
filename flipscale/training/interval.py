"""The throughput between two log steps."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager

import torch


class Interval:
    """The time since the last log step, and the part of it in which training waited for the loader.

    On a GPU the host runs ahead: it waits in the loader while the GPU computes the steps before. There the
    GPU's own time counts, from the end of its work so far until the next batch is in its memory.

    Args:
        samples_seen: Samples seen at the start.
    """

    def __init__(self, samples_seen: int) -> None:
        self._samples = samples_seen
        self._began = time.perf_counter()
        self._waited = 0.0
        self._waits_on_gpu: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def waiting_for_data(self) -> Generator[None]:
        """Measure the wait for the next batch, inside the context."""
        if torch.cuda.is_available():
            idle = torch.cuda.Event(enable_timing=True)
            ready = torch.cuda.Event(enable_timing=True)
            idle.record()
            yield
            ready.record()
            self._waits_on_gpu.append((idle, ready))
        else:
            entered = time.perf_counter()
            yield
            self._waited += time.perf_counter() - entered

    @contextmanager
    def paused(self) -> Generator[None]:
        """Exclude the time inside the context."""
        entered = time.perf_counter()
        yield
        self._began += time.perf_counter() - entered

    def restart(self, samples_seen: int) -> tuple[float, float]:
        """Begin a new interval, and return the throughput of the last one.

        Call it after the host has waited for the device, as for the scalars that it logs.

        Args:
            samples_seen: Samples seen so far.

        Returns:
            Images per second, and the share of the time spent waiting for data.
        """
        for idle, ready in self._waits_on_gpu:
            ready.synchronize()
            self._waited += idle.elapsed_time(ready) / 1000
        self._waits_on_gpu.clear()

        now = time.perf_counter()
        seconds = now - self._began
        result = (samples_seen - self._samples) / seconds, self._waited / seconds

        self._began = now
        self._waited = 0.0
        self._samples = samples_seen
        return result
