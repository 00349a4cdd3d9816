"""The `data` block of a job: which samples are read, from where, and how they are prepared."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from flipscale.config.caption_sources import parse_caption_source
from flipscale.config.image_extensions import IMAGE_EXTENSIONS, parse_image_extensions
from flipscale.config.values import (
    Bytes,
    ClusterSize,
    Count,
    Default,
    Fraction,
    Line,
    ModelSize,
    PositiveCount,
    Strict,
    Weight,
)


class TokenizerSource(Strict):
    """The tokenizer of the captions; it must be the one that the model's text tower is made for."""

    kind: Literal["wordpiece", "clip_bpe"] = "wordpiece"
    """`wordpiece` for the FLIP presets, `clip_bpe` for the CLIP baselines."""
    vocab: Line | None = None
    """WordPiece only, and required there: a vocab.txt, a directory, or a hub name such as
    bert-base-uncased."""
    context_length: Annotated[ModelSize | None, Default("32, or 77 for `clip_bpe`")] = None
    """Tokens per caption. The default for wordpiece is the paper's (section 3.1)."""

    @model_validator(mode="after")
    def _check_vocabulary(self) -> TokenizerSource:
        if self.kind == "wordpiece" and self.vocab is None:
            raise ValueError(
                "tokenizer.vocab is missing: name a vocab.txt, a directory or a hub name, "
                "or learn one with `flipscale data vocab`"
            )
        return self


class Augmentation(Strict):
    """How training images are cropped, flipped and resized."""

    crop_area: tuple[Fraction, Fraction] = (0.5, 1.0)
    """Smallest and largest share of the image's area that a random crop takes (released code of FLIP)."""
    flip: bool = True
    """Flip half of the images left to right. Turn it off if captions name left and right."""
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    """How crops are resized."""

    @model_validator(mode="after")
    def _check_area(self) -> Augmentation:
        low, high = self.crop_area
        if not 0.0 < low <= high:
            raise ValueError(f"[{low}, {high}] is not a range of shares; give 0 < smallest <= largest <= 1")
        return self


class Cache(Strict):
    """A directory on a local disk that keeps what was read of the shards."""

    directory: Line
    """The directory of the cache; processes and nodes may share it."""
    size: Bytes
    """The most that the cache may hold, such as 500GB."""


class Data(Strict):
    """The training set."""

    train: Line
    """Shards by brace expansion: paths such as /data/laion/{000000..041454}.tar, or addresses with s3://,
    gs:// or https://, or `pipe:COMMAND ...`. `::` joins several patterns. In addresses, ${NAME} is an
    environment variable; passwords, signatures and tokens are given only so. See docs/data.md."""
    weights: Annotated[tuple[Weight, ...] | None, Default("one set")] = None
    """One number per pattern that `::` joins: its share of the samples seen. Without weights the patterns are
    one set, of which every sample comes equally often. See docs/data.md."""
    allow_pipe: tuple[Line, ...] = ()
    """Names of the commands that shards of the form `pipe:COMMAND ARGUMENT...` may run."""
    cache: Cache | None = None
    """Keep what was read of the shards on a local disk."""
    images: tuple[Line, ...] = IMAGE_EXTENSIONS
    """The extensions of the images, from the first dot of a member's name on: [jpg], or [input.jpg] for
    KEY.input.jpg. What an image is coded in, its bytes say."""
    captions: dict[Line, Weight] = Field(default={"txt": 1.0}, min_length=1)
    """The sources of the captions, with the probability of each: an extension such as txt or alt.txt, or the
    field of a JSON member, such as json.caption or syn.json.captions; of a list, one is drawn. A sample that
    lacks the source drawn takes the next in this order."""
    max_bad_fraction: Fraction | None = None
    """Stop if a larger share of the samples cannot be used; checked from the first 1,000 samples on."""
    tokenizer: TokenizerSource
    """The tokenizer of the captions."""
    lanes: ClusterSize = 64
    """Parallel sample sequences that every global batch is dealt from; fixed for the life of a run. It must
    divide every batch size, and the number of processes must divide it. See docs/data.md."""
    window: PositiveCount = 2048
    """Consecutive samples of a lane that are shuffled together."""
    index: Annotated[Line | None, Default("built in the run directory")] = None
    """A directory made by `flipscale data index`."""
    workers: Annotated[Count | None, Default("its share of the node's cores, less one")] = None
    """Loader processes per training process."""
    augmentation: Augmentation = Augmentation()
    """How training images are cropped, flipped and resized."""
    max_image_pixels: PositiveCount = 100_000_000
    """Larger images are quarantined before they are decoded."""

    @field_validator("captions")
    @classmethod
    def _read_captions(cls, captions: dict[str, float]) -> dict[str, float]:
        sources = {parse_caption_source(name).name: weight for name, weight in captions.items()}
        if len(sources) < len(captions):
            raise ValueError(f"captions names one source twice ({', '.join(captions)}); name it once")
        if not math.isfinite(sum(sources.values())):
            raise ValueError("the weights of captions are too large to be added; give shares, such as 0.5")
        return sources

    @field_validator("images")
    @classmethod
    def _read_images(cls, images: tuple[str, ...]) -> tuple[str, ...]:
        return parse_image_extensions(images)

    @model_validator(mode="after")
    def _check_sources(self) -> Data:
        patterns = self.train.split("::")
        if self.weights is not None and len(self.weights) != len(patterns):
            raise ValueError(
                f"weights has {len(self.weights)} numbers, but train joins {len(patterns)} patterns; "
                "give one weight for each that `::` joins"
            )

        piped = [pattern for pattern in patterns if pattern.startswith("pipe:")]
        if piped and self.cache is None:
            raise ValueError(
                f"train has the command {piped[0]!r}, whose output can only be read from its start; "
                "set cache: {directory, size} to hold it"
            )

        return self
