"""How many images a second the loader of a job gives on this machine."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from flipscale.budget import Budget
from flipscale.config import Job, Phase
from flipscale.data.samples.stream import CHUNK
from flipscale.distributed.world import World
from flipscale.runs.directory import RunDirectory
from flipscale.training.setup import open_data


@dataclass(frozen=True)
class LoaderRate:
    """What the loader of a job gave on this machine."""

    images: int
    bad: int  # samples found unusable meanwhile
    seconds: float
    workers: int
    images_per_second: float
    images_per_second_per_core: float


def measure_loader(
    job: Job, seconds: float, workers: int | None, progress: Callable[[float], None] = lambda seconds: None
) -> LoaderRate:
    """Read batches as training does, for about so many seconds after the first.

    Args:
        workers: loader processes, one a core; all cores by default. With 0 this process reads.
        progress: called with the seconds that have passed.

    Raises UserError for data that training could not use either.
    """
    workers = len(os.sched_getaffinity(0)) if workers is None else workers
    lanes = job.data.lanes
    batch_size = lanes * -(-CHUNK // lanes)
    endless = Phase(
        name="bench", samples=batch_size * 10**9, mask_ratio=0.0, batch_size=batch_size, base_lr=1.0
    )
    job = job.model_copy(update={"data": job.data.model_copy(update={"workers": workers})})
    with TemporaryDirectory() as scratch:
        run, world = RunDirectory(Path(scratch)), World(0, 1, 0, 1, torch.device("cpu"))
        data = open_data(job, run, Budget.of([endless], lanes), world)
        with closing(data.stream.batches(0)) as batches:
            next(batches)  # starts the workers
            images = bad = 0
            began = time.perf_counter()
            while (passed := time.perf_counter() - began) < seconds or not images:
                progress(passed)
                batch = next(batches)
                images += batch.step.size
                bad += len(batch.bad)
            passed = time.perf_counter() - began
    return LoaderRate(images, bad, passed, workers, images / passed, images / passed / max(1, workers))
