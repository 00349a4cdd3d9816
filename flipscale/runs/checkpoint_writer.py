"""Writes checkpoints in the background: training waits only while the state is copied to the host."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_saver import (
    save as save_distributed,
)

from flipscale.distributed.world import World
from flipscale.errors import RunError
from flipscale.files import write_durably
from flipscale.progress import Progress
from flipscale.runs.checkpoint import reason_of
from flipscale.runs.host_copy import HostCopy
from flipscale.runs.manifest import (
    LATEST,
    MANIFEST,
    Manifest,
    StoredFile,
    directory_name,
    read_latest,
)
from flipscale.runs.pruning import Pruner
from flipscale.runs.unfinished import discard, new_token, remove_unfinished, unfinished
from flipscale.runs.verification import sha256

FILE_BYTES = 1 << 29
"""Bytes of a file, over the shares of all processes; a process holds its share of one file in memory."""


class CheckpointWriter:
    """The background writer of a process, which saves one checkpoint at a time.

    Every process has a writer, and all processes call the same methods in the same order.

    A checkpoint is first written to a directory with a name that no other start of the run knows. It gets its
    final name when it is whole. A process of an older start that was left behind on a lost node therefore
    cannot overwrite any of its files.
    """

    def __init__(
        self,
        root: Path,
        job: dict[str, Any],
        keep_last: int,
        committed: Progress,
        world: World,
        note: Callable[[int], None] = lambda samples: None,
    ) -> None:
        """Start the background thread and remove what interrupted saves have left.

        Args:
            root: The directory of the run's checkpoints.
            job: The resolved job as a document, which every manifest stores.
            keep_last: How many checkpoints stay; see `Pruner`.
            committed: Progress of the checkpoint that this start resumed from.
            world: The processes of this start.
            note: A function that the leading process calls in the background with the samples of each
                committed checkpoint; it does not raise.
        """
        self.committed = committed
        """Progress of the newest checkpoint that is known to be whole on disk."""
        self._root = root
        self._job = job
        self._world = world
        self._note = note

        # The background collectives need their own group: on a shared one they would meet those of training.
        self._group = world.new_group()
        # Without a device of its own the thread would take memory on GPU 0 of the node.
        self._thread = ThreadPoolExecutor(
            1, thread_name_prefix="checkpoint", initializer=_use_device, initargs=(world.device,)
        )
        self._copy = HostCopy()
        self._pending: Future[None] | None = None
        # Only the leading process deletes.
        self._pruner: Pruner | None = None
        self._start = world.lead(lambda: self._begin(keep_last))

    def prepare(self, state: Iterable[tuple[str, Tensor]]) -> None:
        """Take a first copy when training starts, so that the first save has its memory.

        Args:
            state: Names and tensors, as `ShardedModel.state` yields them.
        """
        self._copy.take(state)

    def save(self, state: Iterable[tuple[str, Tensor]], progress: Progress, *, permanent: bool) -> None:
        """Copy `state` to the host and return; the background thread writes the copy.

        Args:
            state: Names and tensors, as `ShardedModel.state` yields them.
            progress: Progress of the run at this state.
            permanent: Whether the checkpoint is never deleted.

        Raises:
            RunError: On every process, if the save before this one failed on any process.
        """
        # The host copy is in use until the last save is committed.
        self.wait()

        path = unfinished(self._root, progress.samples_seen, self._start)
        self._agreed(path, lambda: path.mkdir(parents=True) if self._world.leads else None)
        copy = self._copy.take(state)
        self._pending = self._thread.submit(self._commit, path, copy, progress, permanent)

    def wait(self) -> None:
        """Wait until the last save is committed.

        Raises:
            RunError: On every process, if the save failed on any process.
        """
        if self._pending is not None:
            pending = self._pending
            self._pending = None
            pending.result()

    def close(self) -> None:
        """Wait for the last save, then end the background thread.

        Raises:
            RunError: On every process, if the last save failed on any process.
        """
        try:
            self.wait()
        finally:
            self._thread.shutdown()

    def _begin(self, keep_last: int) -> str:
        """Put right what a killed start has left, and return a name that only this start has.

        Raises:
            RunError: If the directory cannot be written.
        """
        remove_unfinished(self._root)
        self._pruner = Pruner(self._root, self._job, keep_last, self.committed.samples_seen)

        # A start may have been killed between the checkpoint and LATEST.
        name = directory_name(self.committed.samples_seen)
        try:
            if (self._root / name).is_dir() and read_latest(self._root) != name:
                write_durably(self._root / LATEST, name + "\n")
        except OSError as error:
            raise RunError(
                f"{self._root / LATEST} cannot be written: {reason_of(error)}", kind="disk"
            ) from None
        return new_token()

    def _commit(self, path: Path, copy: dict[str, Tensor], progress: Progress, permanent: bool) -> None:
        # Every file must be on disk before the manifest, which makes the checkpoint count.
        self._agreed(path, lambda: self._write(path, copy))
        described = self._agreed(path, lambda: _synced_files(path, self._world))
        files = {name: entry for part in described for name, entry in part.items()}

        def publish() -> None:
            if self._pruner is not None:
                manifest = Manifest(progress, permanent, files, self._job, self._pruner.commits + 1)
                self._publish(path, manifest, self._pruner)

        self._agreed(path, publish)
        self.committed = progress

    def _publish(self, path: Path, manifest: Manifest, pruner: Pruner) -> None:
        """Make a whole checkpoint the newest of the run; only the leading process does so."""
        write_durably(path / MANIFEST, manifest.to_json())
        samples = manifest.progress.samples_seen
        final = self._root / directory_name(samples)
        # Whatever has that name is damaged: otherwise the run would have resumed from it.
        if os.path.lexists(final):
            discard(final, samples)
        os.replace(path, final)

        # Before the others know: even if one of them dies now, the checkpoint is on disk.
        self.committed = manifest.progress
        write_durably(self._root / LATEST, final.name + "\n")
        self._note(samples)
        pruner.committed(final)

    def _write(self, path: Path, copy: dict[str, Tensor]) -> None:
        own_sizes = {name: tensor.numel() * tensor.element_size() for name, tensor in copy.items()}
        sizes: dict[str, int] = {}
        for part in self._world.gather(own_sizes, self._group):
            sizes |= part  # a process may hold tensors that the others do not have

        save_distributed(
            copy,
            storage_writer=HuggingFaceStorageWriter(str(path), file_numbers(sizes), save_distributed=True),
            process_group=self._group,
            no_dist=not dist.is_initialized(),
        )

    def _agreed(self, path: Path, work: Callable[[], Any]) -> list[Any]:
        """Do this process's part of a save, and return the results of all processes.

        Raises:
            RunError: On every process, if the part of any process failed.
        """
        result = None
        problem = None
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
                "so fix the cause and run the same command again",
                kind="disk",
            )

        return [result for result, _ in outcomes]


def file_numbers(sizes: dict[str, int]) -> dict[str, int]:
    """Assign tensors to files, so that no file grows far beyond FILE_BYTES.

    Args:
        sizes: Bytes of each tensor by name, over the shares of all processes.

    Returns:
        The number of each tensor's file by the tensor's name, counted from 1.
    """
    numbers: dict[str, int] = {}
    total = 0
    for name, size in sizes.items():
        total += size
        numbers[name] = 1 + total // FILE_BYTES
    return numbers


def _use_device(device: torch.device) -> None:
    """Make a GPU the current device of this thread: torch's writer synchronizes the current device."""
    if device.type == "cuda":
        torch.cuda.set_device(device)


def _synced_files(path: Path, world: World) -> dict[str, StoredFile]:
    """Sync this process's share of the files to disk, and return their sizes and digests by name."""
    described: dict[str, StoredFile] = {}
    # Not by `glob`, which takes a directory that cannot be read for an empty one.
    names = sorted(name for name in os.listdir(path) if name.endswith(".safetensors"))
    for name in names[world.rank :: world.size]:
        file = path / name
        with open(file, "rb") as handle:
            os.fsync(handle.fileno())
        described[file.name] = StoredFile(file.stat().st_size, sha256(file))
    return described
