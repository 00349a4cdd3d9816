"""`flipscale data vocab`."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flipscale.cli.options import Shards
from flipscale.errors import UserError

if TYPE_CHECKING:
    from flipscale.data.shards.index import Index


def vocab(
    shards: Shards,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="vocab.txt to write.", show_default=False)],
    size: Annotated[int, typer.Option(help="Largest number of word pieces.")] = 30_522,
) -> None:
    """Learn a WordPiece vocabulary from the shards' captions."""
    from flipscale.cli.data.cores import worker_count
    from flipscale.data.shards.indexing import build_index
    from flipscale.data.text.vocabulary import learn_vocab

    if out.suffix != ".txt":
        raise UserError(f"{out} must end in .txt: a vocabulary is a file such as vocab.txt")

    with tempfile.TemporaryDirectory() as scratch:
        index = build_index(shards, Path(scratch) / "index", workers=worker_count())
        pieces = learn_vocab(_captions(index), size, out)

    print(f"{out}: {len(pieces)} word pieces from the captions of {index.samples} samples")


def _captions(index: Index) -> Iterator[str]:
    from flipscale.data.quarantine import BadSample
    from flipscale.data.samples.decode import decode_caption
    from flipscale.data.shards.source import ShardSource

    source = ShardSource(index)
    for shard, count in enumerate(index.counts.tolist()):
        for ordinal in range(count):
            row = source.member(shard, ordinal)
            try:
                yield decode_caption(source.bytes(shard, int(row["text"]), int(row["text_bytes"])))
            except BadSample:
                continue  # `data check` reports it; a vocabulary does not need every caption
