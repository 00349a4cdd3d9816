"""The index that a run makes of its shards, and makes again if they were moved."""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from pathlib import Path

import numpy as np

from flipscale.config import Data
from flipscale.data.shards.checksumming import MOST_OF_A_RUN, can_have_checksums, write_checksums
from flipscale.data.shards.index import Index, expand_shards
from flipscale.data.shards.index_directory import CHECKSUMS, INDEX, TABLE, is_own, remove_index
from flipscale.data.shards.index_document import is_index_of, load_index
from flipscale.data.shards.indexing import IndexKind, build_index
from flipscale.data.shards.storage import Storage
from flipscale.errors import UserError
from flipscale.runs.directory import RunDirectory

_log = logging.getLogger(__name__)


def make_run_index(data: Data, run: RunDirectory, directory: Path, storage: Storage) -> None:
    """Make the index of a run's shards, unless the run has one. Only the leading process calls it.

    Args:
        data: The `data` block of the job.
        run: The run.
        directory: The run's own directory for the index.
        storage: Reads the shards.

    Raises:
        UserError: If the shards cannot be read, or if they were moved and are not those that the run began
            with.
    """
    if is_index_of(directory, expand_shards(data.train), data.images):
        return

    _log.info("indexing %s (set data.index to reuse an index)", data.train)
    before = _whole_index(directory) if run.index.exists() else None
    if before is None:
        _build(data, directory, storage)
        return

    # In another place: what the run began with stays known until the shards turn out to be the same.
    moved = directory.with_name(f"{directory.name}_moved")
    after = _build(data, moved, storage)
    try:
        _check_same_samples(run, before, after)
        for name in (TABLE, CHECKSUMS, INDEX):
            if (moved / name).exists():
                os.replace(moved / name, directory / name)
    finally:
        remove_index(moved)
        with suppress(OSError):
            moved.rmdir()


def _whole_index(directory: Path) -> Index | None:
    """Return the index in a directory, whatever its shards; None if there is none, or it is damaged."""
    try:
        return load_index(directory)
    except UserError:
        return None


def _build(data: Data, directory: Path, storage: Storage) -> Index:
    # A damaged index in the run's own directory is made again, but not one in a directory of the user.
    if not is_own(directory):
        remove_index(directory)
    cores = len(os.sched_getaffinity(0))
    kind = IndexKind(images=data.images)
    index = build_index(data.train, directory, workers=cores, storage=storage, kind=kind)
    if can_have_checksums(index) and sum(shard.bytes for shard in index.shards) <= MOST_OF_A_RUN:
        write_checksums(index, cores)

    return index


def _check_same_samples(run: RunDirectory, before: Index, after: Index) -> None:
    """Check that moved shards have the names, sizes and samples of those before, and the contents if known.

    Raises:
        UserError: If they have not.
    """
    fix = "restore them, or start a new run with another `output`"
    if before.fingerprint != after.fingerprint:
        raise UserError(
            f"the training shards are not those that {run.path} began with ({before.samples} samples then, "
            f"{after.samples} now, or other names or sizes); {fix}"
        )
    if before.checksums is None or after.checksums is None:
        return

    others = np.flatnonzero(before.checksums != after.checksums)
    if len(others):
        shard, ordinal = after.find(int(others[0]))
        raise UserError(
            f"the training shards are not those that {run.path} began with: sample {ordinal} of {shard.path} "
            f"has another image or caption than before (its checksum differs), as have {len(others) - 1} "
            f"others; {fix}"
        )
