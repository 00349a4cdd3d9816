"""`flipscale data vocab`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flipscale.cli.data.training_set import CaptionNames, ShardsOrJob, read_training_set
from flipscale.cli.options import AllowPipe
from flipscale.errors import UserError
from flipscale.terminal import say

if TYPE_CHECKING:
    from flipscale.cli.data.training_set import TrainingSet
    from flipscale.data.shards.index import Index


def vocab(
    shards: ShardsOrJob,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="vocab.txt to write.", show_default=False)],
    size: Annotated[int, typer.Option(help="Largest number of word pieces.")] = 30_522,
    captions: CaptionNames = None,
    allow_pipe: AllowPipe = None,
) -> None:
    """Learn a WordPiece vocabulary from all captions that a job reads from its shards."""
    from flipscale.data.text.vocabulary import learn_vocab
    from flipscale.files import check_writable
    from flipscale.scratch import scratch_directory

    if out.suffix != ".txt":
        raise UserError(f"{out} must end in .txt: a vocabulary is a file such as vocab.txt")
    check_writable(out, "OUT")

    training_set = read_training_set(shards, captions, allow_pipe)
    with scratch_directory() as scratch:
        index = training_set.build_index(scratch / "index")
        pieces = learn_vocab(_captions(index, training_set), size, out)

    say(f"{out}: {len(pieces)} word pieces from the captions of {index.samples} samples")


def _captions(index: Index, training_set: TrainingSet) -> Iterator[str]:
    """Yield every caption of every sample; `data check` reports the samples that have none."""
    from flipscale.data.samples.captions import CaptionFields, Captions
    from flipscale.data.shards.source import ShardSource

    source = ShardSource(index, training_set.storage)
    captions = Captions(CaptionFields(training_set.captions), source)
    for shard, count in enumerate(index.counts.tolist()):
        for ordinal in range(count):
            yield from captions.all(shard, ordinal)
