"""The training set that a command on data reads: shards and the sources of their captions, or a job's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flipscale.errors import UserError

if TYPE_CHECKING:
    from flipscale.data.shards.index import Index
    from flipscale.data.shards.storage import Storage

ShardsOrJob = Annotated[
    str,
    typer.Argument(
        metavar="SHARDS|JOB",
        help="Shards by brace expansion, or a job file (.yaml) that names them.",
        show_default=False,
    ),
]
CaptionNames = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME",
        help="Source of the captions, such as json.caption; may be repeated. Default: the job's, or txt.",
        show_default=False,
    ),
]
ImageNames = Annotated[
    list[str] | None,
    typer.Option(
        metavar="EXTENSION",
        help="Extension of the images, such as input.jpg; may be repeated. Default: the job's, or jpg, jpeg, "
        "png, webp.",
        show_default=False,
    ),
]

_JOB_FILES = (".yaml", ".yml")


@dataclass(frozen=True)
class TrainingSet:
    """Shards, and how a job reads them."""

    pattern: str
    captions: Mapping[str, float]
    """Weight of each source of captions."""
    images: tuple[str, ...]
    """The extensions of images."""
    max_image_pixels: int
    storage: Storage

    def build_index(self, directory: Path) -> Index:
        """Index the shards with all cores, and return the index.

        Args:
            directory: Where to write it.

        Raises:
            UserError: If the shards cannot be indexed.
        """
        from flipscale.cli.data.cores import worker_count
        from flipscale.data.shards.indexing import build_index
        from flipscale.data.shards.journal import IndexKind

        kind = IndexKind(images=self.images)
        return build_index(self.pattern, directory, workers=worker_count(), storage=self.storage, kind=kind)


def read_training_set(
    shards: str,
    captions: Sequence[str] | None,
    allow_pipe: Sequence[str] | None,
    images: Sequence[str] | None = None,
) -> TrainingSet:
    """Return the training set of a command.

    Args:
        shards: The shards' pattern, or the path of a job file.
        captions: Sources of captions that replace the job's.
        allow_pipe: Commands that shards may run, in addition to the job's.
        images: Extensions of images that replace the job's.

    Raises:
        UserError: If the job cannot be read, or a source has no possible name.
    """
    from flipscale.config import Data, TokenizerSource, load_job
    from flipscale.data.shards.storage import Storage

    if shards.endswith(_JOB_FILES):
        data = load_job(Path(shards)).data
    else:
        data = Data.model_construct(train=shards, tokenizer=TokenizerSource(kind="clip_bpe"))

    return TrainingSet(
        data.train,
        _sources(captions) if captions else data.captions,
        image_extensions(images) if images else data.images,
        data.max_image_pixels,
        Storage((*data.allow_pipe, *(allow_pipe or ()))),
    )


def _sources(names: Sequence[str]) -> dict[str, float]:
    from flipscale.config import parse_caption_source

    try:
        return {parse_caption_source(name).name: 1.0 for name in names}
    except ValueError as error:
        raise UserError(f"--captions: {error}") from None


def image_extensions(names: Sequence[str] | None) -> tuple[str, ...]:
    """Return the extensions that --images names; the usual ones if it names none.

    Raises:
        UserError: If a name is not an extension.
    """
    from flipscale.config import IMAGE_EXTENSIONS, parse_image_extensions

    try:
        return parse_image_extensions(names) if names else IMAGE_EXTENSIONS
    except ValueError as error:
        raise UserError(f"--images: {error}") from None
