"""Throughput between two log steps."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Interval:
    """Time since the last log step, and how much of it training waited for the loader.

    On a GPU the host runs ahead and spends in the loader what time it has left, while the GPU is still at
    the steps before. So there the GPU's own time counts: from the end of its work so far to the moment that
    the next batch lies in its memory.
    """

    def __init__(self, samples_seen: int) -> None:
        self._samples = samples_seen
        self._began = time.perf_counter()
        self._waited = 0.0
        self._waits_on_gpu: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        if torch.cuda.is_available():
            idle, ready = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            idle.record()
            yield
            ready.record()
            self._waits_on_gpu.append((idle, ready))
        else:
            entered = time.perf_counter()
            yield
            self._waited += time.perf_counter() - entered

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time that does not count."""
        entered = time.perf_counter()
        yield
        self._began += time.perf_counter() - entered

    def restart(self, samples_seen: int) -> tuple[float, float]:
        """Return (images per second, share of the time spent waiting for data) since the last call.

        Call it where the host has waited for the device, as for the scalars that it logs.
        """
        for idle, ready in self._waits_on_gpu:
            ready.synchronize()
            self._waited += idle.elapsed_time(ready) / 1000
        self._waits_on_gpu.clear()
        now = time.perf_counter()
        seconds = now - self._began
        result = (samples_seen - self._samples) / seconds, self._waited / seconds
        self._began, self._waited, self._samples = now, 0.0, samples_seen
        return result
