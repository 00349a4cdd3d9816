"""Sample readers over real shards, for the tests of reading, streaming and auditing."""

from __future__ import annotations

from pathlib import Path

from support.shards import tiny_tokenizer

from flipscale.config import Augmentation
from flipscale.data.order.mixture import Mixture
from flipscale.data.samples.reader import ReaderSettings, SampleReader
from flipscale.data.shards.index import Index
from flipscale.data.shards.indexing import build_index
from flipscale.data.shards.source import ShardSource
from flipscale.data.shards.storage import Patience, Storage

MAX_PIXELS = 100_000_000


def hasty(*allow_pipe: str) -> Storage:
    """Return storage that gives up soon, for shards that are broken on purpose."""
    return Storage(allow_pipe, Patience(pauses=(0.01, 0.02), attempt=1.0, command=5.0))


def open_reader(
    source: str | Index,
    lanes: int = 1,
    *,
    window: int = 8,
    seed: int = 0,
    size: int = 16,
    augmentation: Augmentation | None = None,
    storage: Storage | None = None,
) -> tuple[SampleReader, Mixture]:
    """Return a reader without known bad samples, and its order. A pattern is indexed next to its shards."""
    index = source if isinstance(source, Index) else build_index(source, Path(source).parent / "index")
    order = Mixture(index.counts, lanes, window, seed)
    settings = ReaderSettings(size, augmentation or Augmentation(), MAX_PIXELS)
    return SampleReader(ShardSource(index, storage), order, tiny_tokenizer(), settings), order
