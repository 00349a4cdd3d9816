"""Writes checkpoints beside the training: it is held only while the state is copied."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import HuggingFaceStorageWriter
from torch.distributed.checkpoint.api import CheckpointException

from flipscale.distributed.world import World
from flipscale.errors import RunError
from flipscale.files import write_durably
from flipscale.progress import Progress
from flipscale.runs.checkpoint import prune, reason_of, sha256
from flipscale.runs.host_copy import HostCopy
from flipscale.runs.manifest import LATEST, MANIFEST, Manifest, StoredFile, directory_name

_UNFINISHED = "saving_"
FILE_BYTES = 1 << 29  # of all processes' shares of a file; the writer holds its share of one in memory


class CheckpointWriter:
    """Saves in the background, one checkpoint at a time; every process has one and calls it together.

    Args:
        root: the run's checkpoints directory.
        job: stored in every manifest.
        keep_last: see `checkpoint.prune`.
        committed: progress of the newest checkpoint that is already on disk.

    A checkpoint is written in a directory of its own that no other start of the run knows, and takes its
    name when it is whole: what a process of an older start still writes, left behind on a lost node, hits
    nothing.
    """

    def __init__(
        self, root: Path, job: dict[str, Any], keep_last: int, committed: Progress, world: World
    ) -> None:
        self.committed = committed
        """Progress of the newest checkpoint that is known to be whole on disk."""
        self._root = root
        self._job = job
        self._keep_last = keep_last
        self._world = world
        # Background collectives on a group of their own, lest they meet those of the training.
        self._group = world.new_group()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._copy = HostCopy()
        self._pending: Future[None] | None = None
        self._start = world.lead(self._clear)

    def prepare(self, state: Iterable[tuple[str, Tensor]]) -> None:
        """Take a first copy when training starts, so that the first save finds its memory there."""
        self._copy.take(state)

    def save(self, state: Iterable[tuple[str, Tensor]], progress: Progress, *, permanent: bool) -> None:
        """Copy `state` to the host and return; the rest happens beside the training.

        Args:
            state: names and tensors, as ShardedModel.state gives them.

        Raises RunError on every process where the save before this one failed on any of them.
        """
        self.wait()
        path = self._root / f"{_UNFINISHED}{progress.samples_seen:012d}.{self._start}"
        self._agreed(path, lambda: path.mkdir(parents=True) if self._world.leads else None)
        copy = self._copy.take(state)
        self._pending = self._thread.submit(self._commit, path, copy, progress, permanent)

    def wait(self) -> None:
        """Return when the last save is committed. Raises RunError on every process where it failed."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()

    def _clear(self) -> str:
        """Remove what saves that were cut short have left; return a name for this start alone."""
        for unfinished in self._root.glob(f"{_UNFINISHED}*"):
            shutil.rmtree(unfinished, ignore_errors=True)
        return secrets.token_hex(4)

    def close(self) -> None:
        """Wait, and end the background thread."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()

    def _commit(self, path: Path, copy: dict[str, Tensor], progress: Progress, permanent: bool) -> None:
        self._agreed(path, lambda: self._write(path, copy))
        described = self._agreed(path, lambda: _synced_files(path, self._world))
        manifest = Manifest(
            progress=progress,
            permanent=permanent,
            files={name: entry for part in described for name, entry in part.items()},
            job=self._job,
        )

        def publish() -> None:
            if self._world.leads:
                write_durably(path / MANIFEST, manifest.to_json())
                final = self._root / directory_name(progress.samples_seen)
                # What lies there is damaged: else the run would have gone on from it.
                shutil.rmtree(final, ignore_errors=True)
                os.replace(path, final)
                self.committed = progress  # whatever becomes of the other processes before they know
                write_durably(self._root / LATEST, final.name + "\n")
                prune(self._root, self._keep_last)

        self._agreed(path, publish)
        self.committed = progress

    def _write(self, path: Path, copy: dict[str, Tensor]) -> None:
        sizes: dict[str, int] = {}
        for part in self._world.gather(
            {n: t.numel() * t.element_size() for n, t in copy.items()}, self._group
        ):
            sizes |= part  # a process may hold what the others leave out
        dcp.save(
            copy,
            storage_writer=HuggingFaceStorageWriter(str(path), file_numbers(sizes), save_distributed=True),
            process_group=self._group,
            no_dist=not dist.is_initialized(),
        )

    def _agreed(self, path: Path, work: Callable[[], Any]) -> list[Any]:
        """Do this process's part; return all processes' results, or raise the same error on all of them."""
        result, problem = None, None
        try:
            result = work()
        except (OSError, CheckpointException) as error:
            problem = reason_of(error)
        outcomes = self._world.gather((result if problem is None else None, problem), self._group)
        problems = [problem for _, problem in outcomes if problem]
        if problems:
            if self._world.leads:
                shutil.rmtree(path, ignore_errors=True)
            raise RunError(
                f"the checkpoint {path} could not be written: {problems[0]}; older checkpoints are whole, "
                "so mend the cause and give the same command again",
                kind="disk",
            )
        return [result for result, _ in outcomes]


def file_numbers(sizes: dict[str, int]) -> dict[str, int]:
    """The number of the file of each tensor, counted from 1, so that no file grows far beyond FILE_BYTES.

    Args:
        sizes: bytes of each tensor, the shares of all processes together.
    """
    numbers: dict[str, int] = {}
    held = 0
    for name, size in sizes.items():
        held += size
        numbers[name] = 1 + held // FILE_BYTES
    return numbers


def _synced_files(path: Path, world: World) -> dict[str, StoredFile]:
    """Sync this process's share of the files to disk, and return their sizes and digests by name."""
    described: dict[str, StoredFile] = {}
    for file in sorted(path.glob("*.safetensors"))[world.rank :: world.size]:
        with open(file, "rb") as handle:
            os.fsync(handle.fileno())
        described[file.name] = StoredFile(file.stat().st_size, sha256(file))
    return described
