"""The captions that a model puts nearest to an image: what retrieval is, for a few images to look at."""

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

POOL = 256  # images of a set, whose captions compete


@dataclass(frozen=True)
class NearCaption:
    caption: str
    similarity: float  # cosine
    own: bool
    """Whether it is a caption of the image."""


@dataclass(frozen=True)
class NearestCaptions:
    """What a model finds for one image."""

    captions: tuple[str, ...]  # the image's own
    nearest: tuple[NearCaption, ...]  # nearest first
    rank: int  # of the first own caption, from 1
    pool: int  # different captions that competed


@dataclass(frozen=True)
class ExampleImage:
    pixels: npt.NDArray[np.uint8]  # (3, S, S)
    captions: tuple[str, ...]


def examples(shards: str, count: int, side: int) -> list[ExampleImage]:
    """The first `count` usable images of a retrieval set, as squares of `side` pixels.

    Raises UserError where the shards cannot be read.
    """
    reader = Reader(
        islice(read_shards(shards_of(shards)), POOL), captions_of, Decoding(side, batch_size=count)
    )
    found: list[ExampleImage] = []
    for batch in reader.batches():
        found += [
            ExampleImage(pixels.numpy(), tuple(captions))
            for pixels, captions in zip(batch.inputs, batch.targets, strict=True)
        ]
        if len(found) >= count:
            break
    return found[:count]


def nearest_captions(encoder: Encoder, shards: str, count: int, shown: int = 3) -> list[NearestCaptions]:
    """For the images of `examples`, the `shown` nearest of the different captions of the set's first images.

    Raises UserError where the shards cannot be read or hold nothing usable, and for features that are not
    finite.
    """
    reader = Reader(islice(read_shards(shards_of(shards)), POOL), captions_of, Decoding(encoder.image_size))
    features, own, _ = encoder.images(reader, lambda read: None)
    texts = list(dict.fromkeys(caption for captions in own for caption in captions))
    if not texts:
        return []
    scores = (features[:count] @ encoder.texts(texts).T).cpu()
    return [_found(row, captions, texts, shown) for row, captions in zip(scores, own, strict=False)]


def _found(scores: torch.Tensor, own: Sequence[str], texts: Sequence[str], shown: int) -> NearestCaptions:
    order = scores.argsort(descending=True, stable=True).tolist()
    rank = 1 + next(place for place, number in enumerate(order) if texts[number] in own)
    nearest = tuple(
        NearCaption(str(texts[number]), float(scores[number]), texts[number] in own)
        for number in order[:shown]
    )
    return NearestCaptions(tuple(own), nearest, rank, len(texts))
