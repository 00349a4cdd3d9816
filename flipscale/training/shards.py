"""The shards that a run trains on: their index, built if there is none, and the place to read them from."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path

from flipscale.config import Data
from flipscale.data.order.mixture import shards_by_source
from flipscale.data.shards.cache import BlockCache
from flipscale.data.shards.checksumming import MOST_OF_A_RUN, can_have_checksums, write_checksums
from flipscale.data.shards.index import Index, expand_shards, shard_name
from flipscale.data.shards.index_directory import is_own, remove_index
from flipscale.data.shards.index_document import is_index_of, load_located
from flipscale.data.shards.indexing import IndexKind, build_index
from flipscale.data.shards.source import ShardSource
from flipscale.data.shards.storage import Storage
from flipscale.distributed.world import World
from flipscale.runs.identity import DataIdentity

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingShards:
    """The indexed shards of a run, ready to be read.

    Attributes:
        index: The index of all shards.
        source: Reads samples from the shards, through the cache if the job has one.
        counts: The number of shards of each source of a mixture; None for a single source.
    """

    index: Index
    source: ShardSource
    counts: list[int] | None

    def identity(self, tokenizer: str) -> DataIdentity:
        """Return what must stay the same for the life of a run; see `flipscale.runs`.

        Args:
            tokenizer: The fingerprint of the tokenizer.
        """
        fingerprint = self.index.fingerprint
        if self.counts is not None:
            divided = json.dumps([fingerprint, self.counts]).encode()
            fingerprint = hashlib.sha256(divided).hexdigest()

        return DataIdentity(
            fingerprint=fingerprint,
            tokenizer=tokenizer,
            samples=self.index.samples,
            shards=tuple((shard_name(shard.path), shard.samples) for shard in self.index.shards),
            sources=None if self.counts is None else tuple(self.counts),
        )


def open_shards(data: Data, run: Path, world: World) -> TrainingShards:
    """Open the shards of a training set; all processes call it together.

    The leading process builds the index, if it does not exist, and checks the shards against it. Then all
    processes load the same files.

    Args:
        data: The `data` block of the job.
        run: The run directory, which holds the index unless `data.index` names another one.
        world: The processes of the run.

    Raises:
        UserError: If the shards cannot be read, or differ from the index.
    """
    storage = Storage(data.allow_pipe)
    directory = Path(data.index) if data.index is not None else run / "index"
    world.lead(lambda: _prepare_index(data, directory, storage))
    index = load_located(directory, data.train, data.images)

    cache = BlockCache(Path(data.cache.directory), data.cache.size) if data.cache else None
    return TrainingShards(index, ShardSource(index, storage, cache), shards_by_source(data))


def _prepare_index(data: Data, directory: Path, storage: Storage) -> None:
    if data.index is None and not is_index_of(directory, expand_shards(data.train), data.images):
        _log.info("indexing %s (set data.index to reuse an index)", data.train)
        # A damaged index in the run's own directory is made again, but not one in a directory of the user.
        if not is_own(directory):
            remove_index(directory)
        cores = len(os.sched_getaffinity(0))
        kind = IndexKind(images=data.images)
        index = build_index(data.train, directory, workers=cores, storage=storage, kind=kind)
        if can_have_checksums(index) and sum(shard.bytes for shard in index.shards) <= MOST_OF_A_RUN:
            write_checksums(index, cores)

    load_located(directory, data.train, data.images).verify(storage)
