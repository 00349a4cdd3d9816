"""The reader of a job's samples: in the order of its mixture, prepared as its `data` block says."""

from __future__ import annotations

from collections.abc import Sequence

from flipscale.config import Data
from flipscale.data.order.mixture import Mixture, job_sources
from flipscale.data.samples.reader import ReaderSettings, SampleReader
from flipscale.data.shards.source import ShardSource
from flipscale.data.text.tokenizer import Tokenizer


def open_reader(
    data: Data,
    seed: int,
    source: ShardSource,
    shards: Sequence[int] | None,
    tokenizer: Tokenizer,
    image_size: int,
    turns: int,
) -> SampleReader:
    """Return a reader of a job's samples by their positions in its order.

    Args:
        data: The `data` block of the job.
        seed: The seed of the job.
        source: The indexed shards.
        shards: The number of shards of each source of a mixture; None for a single source.
        tokenizer: The tokenizer of the captions.
        image_size: Side of the images in pixels, unless a read names another one.
        turns: Version of the rule by which lanes take from the sources of a mixture in turn.

    Raises:
        UserError: If a source has fewer samples than the job has lanes, or if weights cannot be kept exactly.
    """
    order = Mixture(source.index.counts, data.lanes, data.window, seed, job_sources(data, shards), turns)
    settings = ReaderSettings(image_size, data.augmentation, data.max_image_pixels, data.captions)
    return SampleReader(source, order, tokenizer, settings)
