"""The captions that a model puts nearest to an image: retrieval, for a few images to look at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import numpy.typing as npt
import torch

from flipscale.evaluation.decoding import Decoding, Reader
from flipscale.evaluation.features import Encoder
from flipscale.evaluation.samples import captions_of
from flipscale.evaluation.shards import read_shards, shards_of

POOL = 256
"""Number of images, the first of a set, whose captions compete."""


@dataclass(frozen=True)
class NearCaption:
    """A caption near an image."""

    caption: str
    similarity: float
    """Cosine similarity to the image."""
    own: bool
    """Whether it is a caption of the image."""


@dataclass(frozen=True)
class NearestCaptions:
    """What a model retrieves for one image."""

    captions: tuple[str, ...]
    """The image's own captions."""
    nearest: tuple[NearCaption, ...]
    """Captions in the order of their similarity, nearest first."""
    rank: int
    """Rank of the first own caption, from 1."""
    pool: int
    """Number of different captions that competed."""


@dataclass(frozen=True)
class ExampleImage:
    """An image of a retrieval set, to be shown."""

    pixels: npt.NDArray[np.uint8]
    """(3, S, S)."""
    captions: tuple[str, ...]


def examples(shards: str, count: int, side: int) -> list[ExampleImage]:
    """Return the first `count` usable images of a retrieval set, as squares of `side` pixels.

    Raises:
        UserError: If the shards cannot be read.
    """
    samples = islice(read_shards(shards_of(shards)), POOL)
    reader = Reader(samples, captions_of, Decoding(side, batch_size=count))

    images: list[ExampleImage] = []
    for batch in reader.batches():
        for pixels, captions in zip(batch.inputs, batch.targets, strict=True):
            images.append(ExampleImage(pixels.numpy(), tuple(captions)))
        if len(images) >= count:
            break
    return images[:count]


def nearest_captions(encoder: Encoder, shards: str, count: int, shown: int = 3) -> list[NearestCaptions]:
    """Return the captions nearest to each image of `examples`.

    All different captions of the set's first images compete.

    Args:
        encoder: The model.
        shards: Shard pattern of the set, or a directory of CLIP_benchmark's converter.
        count: Number of images.
        shown: Number of captions per image.

    Raises:
        UserError: If the shards cannot be read, or a feature is not finite.
    """
    samples = islice(read_shards(shards_of(shards)), POOL)
    reader = Reader(samples, captions_of, Decoding(encoder.image_size))
    features, own_captions, _ = encoder.images(reader, lambda read: None)
    texts = list(dict.fromkeys(caption for captions in own_captions for caption in captions))
    if not texts:
        return []

    scores = (features[:count] @ encoder.texts(texts).T).cpu()
    # There are more captions than rows of scores: only the first `count` images are compared.
    return [_nearest(row, own, texts, shown) for row, own in zip(scores, own_captions, strict=False)]


def _nearest(scores: torch.Tensor, own: Sequence[str], texts: Sequence[str], shown: int) -> NearestCaptions:
    order = [int(number) for number in scores.argsort(descending=True, stable=True)]
    rank = 1 + next(place for place, number in enumerate(order) if texts[number] in own)
    nearest = tuple(
        NearCaption(texts[number], float(scores[number]), texts[number] in own) for number in order[:shown]
    )
    return NearestCaptions(tuple(own), nearest, rank, len(texts))
