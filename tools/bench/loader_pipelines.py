"""The two loaders that the benchmark compares: OpenCLIP's webdataset pipeline, and flipscale's stream."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from loader_settings import BATCH, BUFFER, LANES, LIMIT, OUTPUT, VIEWS

from flipscale.budget import Budget
from flipscale.config import Phase
from flipscale.data.order.mixture import Mixture
from flipscale.data.samples import decode
from flipscale.data.samples.reader import ReaderSettings, SampleReader
from flipscale.data.samples.stream import LaneShare, Stream
from flipscale.data.shards.index import Index
from flipscale.data.shards.source import ShardSource
from flipscale.data.text.tokenizer import load_tokenizer
from flipscale.third_party import import_open_clip


def openclip_batches(pattern: str, packages: Path) -> Iterator[Any]:
    """Return the batches of OpenCLIP's training data.

    Args:
        pattern: The shards, in brace notation.
        packages: Directory with webdataset <= 0.2.86 and pandas.
    """
    sys.path.insert(0, str(packages))
    open_clip = import_open_clip()
    from open_clip_train import data

    # pyrefly: ignore[bad-assignment]: the constants of this process
    data._SAMPLE_SHUFFLE_SIZE = data._SAMPLE_SHUFFLE_INITIAL = BUFFER
    transform = open_clip.transform.image_transform(
        OUTPUT, is_train=True, aug_cfg=open_clip.transform.AugmentationCfg(scale=VIEWS.crop_area)
    )
    arguments = Namespace(
        train_data=pattern,
        train_num_samples=10**9,
        dataset_resampled=True,
        train_data_upsampling_factors=None,
        seed=0,
        workers=0,
        world_size=1,
        batch_size=BATCH,
    )

    info = data.get_wds_dataset(arguments, transform, True, tokenizer=open_clip.get_tokenizer("ViT-B-16"))
    return iter(info.dataloader)


class CountingSource(ShardSource):
    """Shards that record the size of every read."""

    def __init__(self, index: Index) -> None:
        super().__init__(index)
        self.sizes: list[int] = []

    def read(self, shard: int, offset: int, size: int) -> bytes:
        """Read bytes of a shard."""
        self.sizes.append(size)
        return super().read(shard, offset, size)


def open_reader(source: ShardSource, vocab: Path) -> SampleReader:
    """Return flipscale's reader of the shards, with the WordPiece vocabulary of a file."""
    tokenizer = load_tokenizer("wordpiece", str(vocab))
    order = Mixture(source.index.counts, LANES, 2048, seed=0)
    return SampleReader(source, order, tokenizer, ReaderSettings(OUTPUT, VIEWS, LIMIT))


def open_stream(reader: SampleReader, samples: int) -> Stream:
    """Return flipscale's stream over a budget of samples, without loader workers."""
    phase = Phase(name="bench", samples=samples, mask_ratio=0.0, batch_size=BATCH, base_lr=1.0)
    return Stream(reader, Budget.of([phase], LANES), LaneShare(LANES), workers=0)


def use_decoders(libraries: dict[str, Any]) -> None:
    """Decode with these libraries; None stands for one that is not installed."""
    for name, library in libraries.items():
        setattr(decode, name, library)


def flipscale_batches(index: Index, vocab: Path, libraries: dict[str, Any]) -> Iterator[Any]:
    """Yield flipscale's batches, decoded with these libraries whatever the other loaders have set."""
    reader = open_reader(ShardSource(index), vocab)
    batches = open_stream(reader, 10**7 // BATCH * BATCH).batches(0)

    while True:
        use_decoders(libraries)
        yield next(batches)
