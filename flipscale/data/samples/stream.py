"""The stream of a process's batches from any number of samples seen, decoded by loader workers."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from flipscale.budget import Budget, Step
from flipscale.data.order.lanes import rank_positions
from flipscale.data.quarantine import BadRecord
from flipscale.data.samples.reader import Chunk, SampleReader
from flipscale.errors import StoppedEarly, UserError
from flipscale.order_digest import OrderDigest

CHUNK = 64  # samples that a worker hands over at once
_CPU = torch.device("cpu")
_LEFT_AFTER_TERM = 120  # seconds that a worker lives after SIGTERM, unless the training ends it before


@dataclass(frozen=True)
class Batch:
    """One process's share of a step's global batch, on its device; n = step.size / world size."""

    step: Step
    images: Tensor  # uint8 (n, 3, size, size)
    tokens: Tensor  # int64 (n, context_length)
    positions: Tensor  # int64 (n,)
    digest: OrderDigest
    bad: list[BadRecord]


class Stream:
    """Reads the budget's batches in order for one process of `world_size`.

    Args:
        image_sizes: side of the images in pixels, for each phase; by default the reader's, for all.

    A batch comes to a GPU from pinned memory on a stream of its own. Training never waits for the device
    between two log steps, so that this happens while the GPU is still at the step before.
    """

    def __init__(
        self,
        reader: SampleReader,
        budget: Budget,
        lanes: int,
        rank: int,
        world_size: int,
        workers: int,
        device: torch.device = _CPU,
        image_sizes: Sequence[int] | None = None,
    ) -> None:
        self._reader = reader
        self._budget = budget
        self._share = (lanes, rank, world_size)
        self._workers = workers
        self._device = device
        self._image_sizes = image_sizes
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None

    def batches(self, samples_seen: int) -> Generator[Batch]:
        """Yield the batch of every step from `samples_seen` to the end of the budget.

        Close the generator where it is left before its end: that ends the loader workers.
        """
        # Workers share this process's heap until someone writes to it, and a full garbage collection writes
        # to every object that is not frozen: each worker would come to hold a copy of its own.
        gc.freeze()
        chunks = iter(self._loader(samples_seen))
        try:
            for step in self._budget.steps_from(samples_seen):
                parts = [_whole(next(chunks)) for _ in self.chunks(step)]
                images, tokens, positions = self._on_device(parts)
                digest = sum((part.digest for part in parts), OrderDigest())
                bad = [record for part in parts for record in part.bad]
                yield Batch(step, images, tokens, positions, digest, bad)
        finally:
            del chunks  # ends the workers here, also where a traceback keeps this frame
            gc.unfreeze()

    def _on_device(self, parts: list[Chunk]) -> list[Tensor]:
        """The chunks' images, tokens and positions, each in one piece."""
        columns = [
            [part.images for part in parts],
            [part.tokens for part in parts],
            [part.positions for part in parts],
        ]
        if self._copies is None:
            return [torch.cat(tensors) for tensors in columns]
        with torch.cuda.stream(self._copies):
            whole = [torch.cat([t.to(self._device, non_blocking=True) for t in ts]) for ts in columns]
        training = torch.cuda.current_stream(self._device)
        training.wait_stream(self._copies)
        for tensor in whole:
            tensor.record_stream(training)
        return whole

    def chunks(self, step: Step) -> list[_Wanted]:
        """What loader workers read of a step, for this process, in order."""
        positions = rank_positions(step.start, step.size, *self._share)
        size = self._image_sizes[step.phase] if self._image_sizes else None
        return [_Wanted(part, size) for part in np.array_split(positions, -(-len(positions) // CHUNK))]

    def _loader(self, samples_seen: int) -> DataLoader[Chunk | Exception]:
        parallel = (
            {"prefetch_factor": self._prefetch(), "worker_init_fn": _start_worker} if self._workers else {}
        )
        return DataLoader(
            _Chunks(self._reader),
            batch_size=None,
            sampler=_ChunkSampler(self, samples_seen),
            num_workers=self._workers,
            pin_memory=self._copies is not None,
            **parallel,
        )

    def _prefetch(self) -> int:
        """Chunks that each worker holds ready: enough for one batch ahead of the one in use."""
        world_size = self._share[2]
        largest = max(span.phase.batch_size for span in self._budget.spans) // world_size
        return max(2, -(-2 * largest // (CHUNK * self._workers)))


class _Wanted(NamedTuple):
    """What a chunk is asked for by."""

    positions: np.ndarray  # int64 (n,)
    image_size: int | None  # pixels; the reader's by default


class _Chunks(Dataset[Chunk | Exception]):
    """Chunks by their positions; what stops the run is handed over as a value.

    An exception that is raised in a loader worker reaches the training process with the worker's traceback
    as its message.
    """

    def __init__(self, reader: SampleReader) -> None:
        self._reader = reader

    def __getitem__(self, wanted: _Wanted) -> Chunk | Exception:
        try:
            return self._reader.read(*wanted)
        except (UserError, StoppedEarly) as error:
            return error


def _whole(chunk: Chunk | Exception) -> Chunk:
    if isinstance(chunk, Exception):
        raise chunk
    return chunk


class _ChunkSampler(Sampler[_Wanted]):
    """Names the positions of every chunk in order; loader workers take them in turn."""

    def __init__(self, stream: Stream, samples_seen: int) -> None:
        self._stream = stream
        self._samples_seen = samples_seen

    def __iter__(self) -> Iterator[_Wanted]:
        for step in self._stream._budget.steps_from(self._samples_seen):
            yield from self._stream.chunks(step)


def default_workers(local_world_size: int) -> int:
    """Loader workers for each of `local_world_size` processes: an even share of the cores, at most 16."""
    cores = len(os.sched_getaffinity(0))
    return max(1, min(16, cores // local_world_size - 1))


def _start_worker(_: int) -> None:
    """Workers leave stop signals to the training process, which ends them in order."""
    for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    # Slurm sends TERM to every process of a step, and a training step must still be fed. But Python ends
    # forgotten workers with TERM, too, so that it cannot be ignored for good.
    signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(_LEFT_AFTER_TERM))
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch.set_num_threads(1)
