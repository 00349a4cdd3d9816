"""The speed of a job's loader on this machine."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass

import torch

from flipscale.budget import Budget
from flipscale.config import Job, Phase
from flipscale.data.samples.stream import CHUNK, Stream
from flipscale.distributed.world import World
from flipscale.scratch import scratch_directory
from flipscale.training.data import open_data


@dataclass(frozen=True)
class LoaderRate:
    """The speed of a job's loader on this machine."""

    images: int
    """Images that were read in the measured time."""
    bad: int
    """Samples that were found unusable meanwhile."""
    seconds: float
    """The measured time."""
    workers: int
    """Loader processes."""
    images_per_second: float
    images_per_second_per_core: float


def measure_loader(
    job: Job, seconds: float, workers: int | None, progress: Callable[[float], None] = lambda seconds: None
) -> LoaderRate:
    """Read batches as training does, and measure the speed after the first.

    Args:
        job: The job.
        seconds: The time to measure for, at least until the first image.
        workers: Loader processes, one per core; default: all cores. With 0 this process reads.
        progress: A callback that gets the seconds that have passed.

    Raises:
        UserError: If training could not use the data either.
    """
    workers = len(os.sched_getaffinity(0)) if workers is None else workers
    job = job.model_copy(update={"data": job.data.model_copy(update={"workers": workers})})

    # Batches of whole chunks of a lane, and a budget that does not end.
    lanes = job.data.lanes
    batch_size = lanes * -(-CHUNK // lanes)
    endless = Phase(
        name="bench", samples=batch_size * 10**9, mask_ratio=0.0, batch_size=batch_size, base_lr=1.0
    )

    with scratch_directory() as scratch:
        world = World(0, 1, 0, 1, torch.device("cpu"))
        data = open_data(job, scratch, Budget.of([endless], lanes), world)
        images, bad, passed = _read_for(data.stream, seconds, progress)

    rate = images / passed
    return LoaderRate(images, bad, passed, workers, rate, rate / max(1, workers))


def _read_for(stream: Stream, seconds: float, progress: Callable[[float], None]) -> tuple[int, int, float]:
    """Return the images read, the bad samples among them, and the seconds that passed."""
    images = 0
    bad = 0
    with closing(stream.batches(0)) as batches:
        next(batches)  # starts the workers
        began = time.perf_counter()
        while (passed := time.perf_counter() - began) < seconds or not images:
            progress(passed)
            batch = next(batches)
            images += batch.step.size
            bad += len(batch.bad)
        return images, bad, time.perf_counter() - began
