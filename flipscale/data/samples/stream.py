"""The stream of a process's batches, from any number of samples seen, decoded by loader workers."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from flipscale.budget import Budget, Step
from flipscale.child_process import FORK, die_with_parent
from flipscale.data.order.lanes import Int64s, rank_positions
from flipscale.data.quarantine import BadRecord
from flipscale.data.samples.reader import Chunk, SampleReader
from flipscale.data.samples.worker_crash import WorkerCrashes, noticed_when_read, worker_processes
from flipscale.errors import StoppedEarly, UserError
from flipscale.order_digest import ContentDigest, OrderDigest

CHUNK = 64
"""Samples that a loader worker hands over at once."""

_CPU = torch.device("cpu")
_LIFETIME_AFTER_TERM = 120  # seconds that a worker survives SIGTERM, unless training ends it earlier


@dataclass(frozen=True)
class Batch:
    """One process's share of a step's global batch, on its device.

    The number of samples n is the step's size divided by the world size.
    """

    step: Step
    images: Tensor  # uint8 (n, 3, size, size)
    tokens: Tensor  # int64 (n, context_length)
    lengths: tuple[int, ...]  # tokens up to the largest id of each caption, CLIP's end of text; on the host
    positions: Tensor  # int64 (n,)
    digest: OrderDigest
    content: ContentDigest
    bad: list[BadRecord]  # samples that were found unusable and replaced


class LaneShare(NamedTuple):
    """The lanes that one process reads: those of its rank."""

    lanes: int  # number of lanes; a multiple of world_size
    rank: int = 0
    world_size: int = 1


class Stream:
    """The reader of one process's batches, in the order of the budget.

    A batch reaches a GPU from pinned memory, on a CUDA stream of its own. Training does not wait for the
    device between two log steps, so the copy runs while the GPU computes the previous step.

    Args:
        reader: Reads samples by position; every worker has its own copy.
        budget: The steps of the job.
        share: The lanes of this process.
        workers: Loader worker processes; 0 reads in this process.
        device: Device of the batches.
        image_sizes: Side of the images in pixels, per phase; default: the reader's size in every phase.
    """

    def __init__(
        self,
        reader: SampleReader,
        budget: Budget,
        share: LaneShare,
        workers: int,
        device: torch.device = _CPU,
        image_sizes: Sequence[int] | None = None,
    ) -> None:
        self._reader = reader
        self._budget = budget
        self._share = share
        self._workers = workers
        self._device = device
        self._image_sizes = image_sizes
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None

    def batches(self, samples_seen: int) -> Generator[Batch]:
        """Yield the batch of every step from `samples_seen` to the end of the budget.

        Close the generator if you leave it before its end: that ends the loader workers.

        Raises:
            DataReadError: If a shard cannot be read.
            UserError: If a shard changed, or a window holds no usable sample.
            RunError: If loader workers crash again and again, and no sample is to blame.
        """
        # Workers share this process's heap until a process writes to it. A full garbage collection writes to
        # every object that is not frozen, so that each worker would end up with its own copy.
        gc.freeze()

        loader = _Loader(self, samples_seen)
        try:
            for step in self._budget.steps_from(samples_seen):
                parts, crashed = loader.read(step)
                images, tokens, positions = self._on_device(parts)

                digest = sum((part.digest for part in parts), OrderDigest())
                content = sum((part.content for part in parts), ContentDigest())
                bad = crashed + [record for part in parts for record in part.bad]
                ends = np.concatenate([part.tokens.numpy().argmax(axis=1) for part in parts])
                lengths = tuple(map(int, ends + 1))
                yield Batch(step, images, tokens, lengths, positions, digest, content, bad)
        finally:
            loader.close()
            gc.unfreeze()

    def requests(self, samples_seen: int) -> Iterator[ChunkRequest]:
        """Yield all requests to loader workers from `samples_seen` on, in the order of the batches."""
        for step in self._budget.steps_from(samples_seen):
            yield from self.step_requests(step)

    def step_requests(self, step: Step) -> list[ChunkRequest]:
        """Return the requests to loader workers for this process's part of one step, in order."""
        positions = rank_positions(step.start, step.size, *self._share)
        size = self._image_sizes[step.phase] if self._image_sizes else None
        parts = np.array_split(positions, -(-len(positions) // CHUNK))

        return [ChunkRequest(part, size) for part in parts]

    def _on_device(self, parts: list[Chunk]) -> list[Tensor]:
        """Return the chunks' images, tokens and positions, each as one tensor on the device."""
        columns = [
            [part.images for part in parts],
            [part.tokens for part in parts],
            [part.positions for part in parts],
        ]
        if self._copies is None:
            return [torch.cat(tensors) for tensors in columns]

        with torch.cuda.stream(self._copies):
            whole = [torch.cat([t.to(self._device, non_blocking=True) for t in ts]) for ts in columns]

        # Training waits for the copies; the allocator must not reuse their memory while training reads it.
        training = torch.cuda.current_stream(self._device)
        training.wait_stream(self._copies)
        for tensor in whole:
            tensor.record_stream(training)

        return whole

    def crash_records(self) -> WorkerCrashes:
        """Return a new record of what the loader workers do, for the case that one crashes."""
        return WorkerCrashes(self._reader, self._workers)

    def chunks(self, samples_seen: int, crashes: WorkerCrashes) -> Iterator[Chunk | Exception]:
        """Start the loader workers, and return the chunks from `samples_seen` on."""
        loader = DataLoader(
            _Chunks(self._reader, crashes.in_progress),
            batch_size=None,
            sampler=_ChunkSampler(self, samples_seen),
            num_workers=self._workers,
            multiprocessing_context=FORK if self._workers else None,
            pin_memory=self._copies is not None,
            prefetch_factor=self._prefetch() if self._workers else None,
            worker_init_fn=partial(_start_worker, os.getpid()),
        )
        with noticed_when_read():
            return iter(loader)

    def _prefetch(self) -> int:
        """Return the number of chunks that each worker holds ready: one batch ahead of the current one."""
        largest = max(span.phase.batch_size for span in self._budget.spans) // self._share.world_size
        return max(2, -(-2 * largest // (CHUNK * self._workers)))


class _Loader:
    """The loader workers of a stream, which start again if a sample crashes one of them."""

    def __init__(self, stream: Stream, samples_seen: int) -> None:
        self._stream = stream
        self._crashes = stream.crash_records()
        self._chunks: Iterator[Chunk | Exception] = stream.chunks(samples_seen, self._crashes)

    def read(self, step: Step) -> tuple[list[Chunk], list[BadRecord]]:
        """Return the chunks of a step, and the samples that crashed a worker meanwhile.

        New workers begin with the step again and leave out the sample that is to blame, as if it had been
        found unusable by its bytes.

        Raises:
            RunError: If workers crash for another reason than a sample.
        """
        crashed: list[BadRecord] = []
        while True:
            try:
                parts = [next(self._chunks) for _ in self._stream.step_requests(step)]
            except Exception as error:  # half a chunk of a worker that was killed may be read as anything
                record = self._crashes.judge(worker_processes(self._chunks), error)
                crashed += [record] if record else []
            else:
                return [_raise_errors(part) for part in parts], crashed

            self.close()
            self._chunks = self._stream.chunks(step.start, self._crashes)

    def close(self) -> None:
        """End the workers here, even if a traceback keeps a frame alive."""
        workers = worker_processes(self._chunks)
        self._chunks = iter(())
        for worker in workers:
            worker.kill()  # one that was stopped does not end, and Python would wait for it at its exit


class ChunkRequest(NamedTuple):
    """A request to a loader worker for one chunk."""

    positions: Int64s  # (n,)
    image_size: int | None  # pixels; None for the reader's size


class _Chunks(Dataset[Chunk | Exception]):
    """The chunks, by request. Errors that end the run are returned as values.

    If a loader worker raised such an error, it would reach the training process with the worker's traceback
    as its message.
    """

    def __init__(self, reader: SampleReader, in_progress: Tensor) -> None:
        self._reader = reader
        self._in_progress = in_progress

    def __getitem__(self, index: ChunkRequest) -> Chunk | Exception:
        worker = get_worker_info()
        if worker is not None:
            self._reader.in_progress = self._in_progress[worker.id].numpy()

        try:
            return self._reader.read(*index)
        except (UserError, StoppedEarly) as error:
            return error


def _raise_errors(chunk: Chunk | Exception) -> Chunk:
    if isinstance(chunk, Exception):
        raise chunk

    return chunk


class _ChunkSampler(Sampler[ChunkRequest]):
    """The requests for all chunks in order; loader workers take turns."""

    def __init__(self, stream: Stream, samples_seen: int) -> None:
        self._stream = stream
        self._samples_seen = samples_seen

    def __iter__(self) -> Iterator[ChunkRequest]:
        return self._stream.requests(self._samples_seen)


def default_workers(cores: int) -> int:
    """Return the number of loader workers of a process: one core is for the process itself, 1 to 16 workers.

    Args:
        cores: The cores for the process and its workers.
    """
    return max(1, min(16, cores - 1))


def _start_worker(parent: int, _: int) -> None:
    """Prepare a loader worker: it leaves stop signals to the training process, which ends it in order."""
    die_with_parent(parent)
    for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)

    # Slurm sends TERM to every process of a step, but the training step in progress still needs its data.
    # Python ends forgotten workers with TERM as well, so the worker must not ignore it permanently.
    signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(_LIFETIME_AFTER_TERM))

    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch.set_num_threads(1)
