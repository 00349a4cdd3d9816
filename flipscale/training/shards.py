"""The shards that a run trains on: their index, built if there is none, and the place to read them from."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from flipscale.config import Data
from flipscale.data.order.mixture import shards_by_source
from flipscale.data.shards.cache import BlockCache
from flipscale.data.shards.index import Index, shard_name
from flipscale.data.shards.index_document import load_located
from flipscale.data.shards.source import ShardSource
from flipscale.data.shards.storage import Storage
from flipscale.distributed.world import World
from flipscale.runs.directory import RunDirectory
from flipscale.runs.identity import DataIdentity, recorded_turns
from flipscale.training.run_index import make_run_index


@dataclass(frozen=True)
class TrainingShards:
    """The indexed shards of a run, ready to be read.

    Attributes:
        index: The index of all shards.
        source: Reads samples from the shards, through the cache if the job has one.
        counts: The number of shards of each source of a mixture; None for a single source.
        turns: Version of the rule by which lanes take from the sources of a mixture in turn.
    """

    index: Index
    source: ShardSource
    counts: list[int] | None
    turns: int

    def identity(self, tokenizer: str) -> DataIdentity:
        """Return what must stay the same for the life of a run; see `flipscale.runs`.

        Args:
            tokenizer: The fingerprint of the tokenizer.
        """
        fingerprint = self.index.fingerprint
        if self.counts is not None:
            # The first rule had no number, and is the same for two sources.
            turns = [self.turns] if len(self.counts) > 2 and self.turns > 1 else []
            divided = json.dumps([fingerprint, self.counts, *turns]).encode()
            fingerprint = hashlib.sha256(divided).hexdigest()

        return DataIdentity(
            fingerprint=fingerprint,
            tokenizer=tokenizer,
            samples=self.index.samples,
            shards=tuple((shard_name(shard.path), shard.samples) for shard in self.index.shards),
            sources=None if self.counts is None else tuple(self.counts),
            turns=self.turns,
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
    world.lead(lambda: _prepare_index(data, run, directory, storage))
    index = load_located(directory, data.train, data.images)
    turns = world.lead(lambda: recorded_turns(RunDirectory(run)))

    cache = BlockCache(Path(data.cache.directory), data.cache.size) if data.cache else None
    return TrainingShards(index, ShardSource(index, storage, cache), shards_by_source(data), turns)


def _prepare_index(data: Data, run: Path, directory: Path, storage: Storage) -> None:
    if data.index is None:
        make_run_index(data, RunDirectory(run), directory, storage)

    load_located(directory, data.train, data.images).verify(storage)
