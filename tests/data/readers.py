"""Sample readers over real shards, for the tests of reading, streaming and auditing."""

from __future__ import annotations

from pathlib import Path

from shards import tiny_tokenizer

from flipscale.config import Augmentation
from flipscale.data.index import Index, build_index
from flipscale.data.lanes import Lanes
from flipscale.data.reader import ReaderSettings, SampleReader

MAX_PIXELS = 100_000_000


def open_reader(
    source: str | Index,
    lanes: int = 1,
    *,
    window: int = 8,
    seed: int = 0,
    size: int = 16,
    augmentation: Augmentation | None = None,
) -> tuple[SampleReader, Lanes]:
    """A reader with nothing remembered, and the order it reads in; a pattern is indexed beside its shards."""
    index = source if isinstance(source, Index) else build_index(source, Path(source).parent / "index")
    order = Lanes(index.counts, lanes, window, seed)
    settings = ReaderSettings(size, augmentation or Augmentation(), MAX_PIXELS)
    return SampleReader(index, order, tiny_tokenizer(), settings), order
