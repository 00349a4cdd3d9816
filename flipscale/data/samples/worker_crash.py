"""Loader workers that a signal ended: which sample they were decoding, and whether it is to blame."""

from __future__ import annotations

import signal
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import NoReturn

import torch
from torch import Tensor
from torch.utils.data._utils import signal_handling

from flipscale.data.quarantine import BadRecord
from flipscale.data.samples.isolation import CRASHES, crash_reason, crashes
from flipscale.data.samples.reader import SampleReader
from flipscale.errors import RunError

_LONGEST_END = 10  # seconds from the first error until the worker has ended
_MOST_INNOCENT = 3  # crashes in one start whose sample can be decoded by itself


class WorkerCrashes:
    """The record of what each loader worker is decoding, and the verdicts on crashes.

    A sample is unusable if a process that decodes nothing else crashes, too. Its verdict then rests on its
    bytes, as any other.

    Args:
        reader: The reader of which each worker gets a copy.
        workers: The number of workers.
    """

    def __init__(self, reader: SampleReader, workers: int) -> None:
        self._reader = reader
        self._innocent = 0
        self.in_progress: Tensor = torch.full((workers, 2), -1, dtype=torch.int64).share_memory_()
        """Shared memory (workers, 2): shard and ordinal of each worker's sample; -1 between samples."""

    def judge(self, workers: Sequence[BaseProcess], error: Exception) -> BadRecord | None:
        """Return the record of the sample that ended a worker; None if no sample can be blamed.

        Args:
            workers: The processes by the number of the worker.
            error: What torch raised for the worker, or for a chunk that it can no longer hand over.

        Raises:
            RunError: If workers crash again and again on samples that can be decoded.
            RuntimeError: If no worker crashed: it was killed, for example.
        """
        ended = wait([worker.sentinel for worker in workers], _LONGEST_END)
        for number, worker in enumerate(workers):
            # The kernel closes the sentinel a moment before the process has its exit code.
            worker.join(_LONGEST_END if worker.sentinel in ended else 0)
            if worker.exitcode is None or worker.exitcode >= 0:
                continue
            ended_by = signal.Signals(-worker.exitcode)
            if ended_by not in CRASHES:
                _raise_killed(worker, ended_by)
            return self._suspect(number, ended_by)

        raise error

    def _suspect(self, number: int, ended_by: signal.Signals) -> BadRecord | None:
        shard, ordinal = int(self.in_progress[number, 0]), int(self.in_progress[number, 1])
        self.in_progress[:] = -1
        name = signal.strsignal(ended_by)
        if shard >= 0 and crashes(lambda: self._reader.decode_everywhere(shard, ordinal)):
            return self._reader.exclude(shard, ordinal, crash_reason(ended_by))

        self._innocent += 1
        if self._innocent > _MOST_INNOCENT:
            place = f"sample {ordinal} of shard {shard}" if shard >= 0 else "none"
            raise RunError(
                f"loader workers crashed {self._innocent} times ({name}), and the samples that they read can "
                f"be decoded by themselves (the last was {place}); check the memory of this node, and the "
                "installed image libraries with `flipscale doctor`"
            )
        return None


def _raise_killed(worker: BaseProcess, ended_by: signal.Signals) -> NoReturn:
    """Raise torch's error for a worker that was killed, which torch words in two ways."""
    reason = signal.strsignal(ended_by)
    raise RuntimeError(f"DataLoader worker (pid {worker.pid}) is killed by signal: {reason}") from None


@contextmanager
def noticed_when_read() -> Generator[None]:
    """Have a worker's end noticed where its chunk is awaited, and not in the middle of a training step.

    torch installs a handler when the first loader of a process starts, which raises wherever the process is.
    """
    before = signal.getsignal(signal.SIGCHLD)
    if getattr(before, "__module__", "") == signal_handling.__name__:
        before = signal.SIG_DFL  # another loader had torch install it
    yield
    if signal.getsignal(signal.SIGCHLD) is not before and before is not None:
        signal.signal(signal.SIGCHLD, before)


def worker_processes(chunks: Iterator[object]) -> Sequence[BaseProcess]:
    """Return the processes of a DataLoader's iterator by the number of the worker; none without workers."""
    return getattr(chunks, "_workers", ())
