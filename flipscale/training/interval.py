"""Throughput between two log steps."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Interval:
    """Time since the last log step, and how much of it the loader kept training waiting."""

    def __init__(self, samples_seen: int) -> None:
        self._samples = samples_seen
        self._began = time.perf_counter()
        self._waited = 0.0

    @contextmanager
    def waiting_for_data(self) -> Iterator[None]:
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
        """Return (images per second, share of the time spent waiting for data) since the last call."""
        now = time.perf_counter()
        seconds = now - self._began
        result = (samples_seen - self._samples) / seconds, self._waited / seconds
        self._began, self._waited, self._samples = now, 0.0, samples_seen
        return result
