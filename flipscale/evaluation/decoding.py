"""Samples decoded into batches of squares, in the order of their set."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import groupby
from typing import Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from flipscale.data.quarantine import BadSample
from flipscale.data.samples.decode import open_image, whole
from flipscale.evaluation.samples import MAX_IMAGE_PIXELS, RawSample, Skipped, image_bytes

Target = TypeVar("Target")


@dataclass(frozen=True)
class Decoding:
    """How samples become batches."""

    image_size: int
    """Side of the squares, in pixels."""
    batch_size: int = 64
    workers: int = 4
    """Threads that decode."""
    max_image_pixels: int = MAX_IMAGE_PIXELS
    """Larger images are skipped before they are decoded."""


@dataclass(frozen=True)
class DecodedBatch(Generic[Target]):
    """Model inputs with their targets."""

    number: int
    """Number of the batch in the set; it puts the batches of several processes in order."""
    inputs: torch.Tensor
    """Images uint8 (B, 3, S, S), or tokens int64 (B, context_length)."""
    targets: list[Target]
    places: list[int]
    """Places of the samples in their set, with unusable samples counted."""


@dataclass(frozen=True)
class _Decoded(Generic[Target]):
    """The result for one sample: its square (3, S, S) and its target, or why it cannot be used."""

    place: int
    name: str
    result: tuple[NDArray[np.uint8], Target] | BadSample


@dataclass(frozen=True)
class Reader(Generic[Target]):
    """A set whose samples are decoded in threads and batched in their order.

    Threads suffice, since Pillow releases the interpreter lock. A batch has the usable ones of `batch_size`
    samples that follow each other, whichever process reads it.
    """

    samples: Iterable[RawSample]
    target: Callable[[RawSample], Target]
    """Reads the target of a sample; BadSample skips the sample."""
    decoding: Decoding
    skipped: Skipped = field(default_factory=Skipped)
    """The samples that are in none of the batches of this process."""

    def batches(self, rank: int = 0, size: int = 1) -> Iterator[DecodedBatch[Target]]:
        """Yield every `size`th batch from number `rank` on, and count skipped samples in `skipped`.

        Inputs are images, uint8 (B, 3, image_size, image_size) with B > 0.

        Raises:
            UserError: If the set is damaged, or a target cannot belong to it.
        """
        for number, group in groupby(self._decoded(rank, size), self._batch_number):
            images: list[NDArray[np.uint8]] = []
            targets: list[Target] = []
            places: list[int] = []

            for sample in group:
                if isinstance(sample.result, BadSample):
                    self.skipped.add(sample.place, sample.name, str(sample.result))
                    continue
                image, target = sample.result
                images.append(image)
                targets.append(target)
                places.append(sample.place)

            if images:
                yield DecodedBatch(number, torch.as_tensor(np.stack(images)), targets, places)

    def _batch_number(self, sample: _Decoded[Target]) -> int:
        return sample.place // self.decoding.batch_size

    def _decoded(self, rank: int, size: int) -> Iterator[_Decoded[Target]]:
        """Yield the results in the order of the samples, decoded up to two batches ahead."""
        pending: deque[Future[_Decoded[Target]]] = deque()

        with ThreadPoolExecutor(self.decoding.workers) as pool:
            for place, sample in enumerate(self.samples):
                if place // self.decoding.batch_size % size != rank:
                    continue
                pending.append(pool.submit(self._decode, place, sample))
                if len(pending) > 2 * self.decoding.batch_size:
                    yield pending.popleft().result()

            for future in pending:
                yield future.result()

    def _decode(self, place: int, sample: RawSample) -> _Decoded[Target]:
        try:
            return _Decoded(place, sample.name, (self._square(sample), self.target(sample)))
        except BadSample as bad:
            return _Decoded(place, sample.name, bad)

    def _square(self, sample: RawSample) -> NDArray[np.uint8]:
        size = self.decoding.image_size
        max_pixels = self.decoding.max_image_pixels
        image = open_image(image_bytes(sample), max_pixels)
        width, height = image.size
        if max(width, height) / min(width, height) * size**2 > max_pixels:
            raise BadSample(f"the image is too elongated ({width} x {height} pixels)")

        view = square_view(Image.fromarray(whole(image)), size)
        return np.asarray(view, dtype=np.uint8).transpose(2, 0, 1)


def square_view(image: Image.Image, size: int) -> Image.Image:
    """Return the centre of an RGB image, with its shorter side resized to `size` (bicubic, antialiased).

    The pixels equal those of OpenCLIP's evaluation transform ('shortest').
    """
    short = min(image.size)
    long = max(image.size)
    resized = int(size * long / short)
    width, height = (size, resized) if image.width <= image.height else (resized, size)

    left = round((width - size) / 2)
    top = round((height - size) / 2)
    resampled = image.resize((width, height), Image.Resampling.BICUBIC)
    return resampled.crop((left, top, left + size, top + size))
