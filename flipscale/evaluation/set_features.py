"""Image features of a whole set, with the names and the targets of its usable samples."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

from torch import Tensor

from flipscale.errors import UserError
from flipscale.evaluation.decoding import Decoding, Reader
from flipscale.evaluation.features import Encoder
from flipscale.evaluation.samples import RawSample, Skipped

Target = TypeVar("Target")


@dataclass(frozen=True)
class SetReading:
    """How the samples of a set become features."""

    encoder: Encoder
    decoding: Decoding
    progress: Callable[[int], None]
    """Receives the images that this process has encoded so far."""


@dataclass(frozen=True)
class SetFeatures(Generic[Target]):
    """The usable samples of a set, in order."""

    features: Tensor
    """(N, D) fp32, on the device."""
    names: list[str]
    targets: list[Target]
    skipped: Skipped


def encode_images(
    reading: SetReading,
    data: str,
    samples: Iterable[RawSample],
    target: Callable[[RawSample], Target],
) -> SetFeatures[Target]:
    """Encode the images of a set on all processes.

    Args:
        reading: The encoder, and how samples are decoded.
        data: Path of the set, for messages.
        samples: The samples of the set.
        target: Reads the label or the captions of a sample; BadSample skips the sample.

    Raises:
        UserError: If the set is damaged or has no usable sample, or a feature is not finite.
    """
    reader = Reader(samples, lambda sample: (sample.name, target(sample)), reading.decoding)
    features, targets, skipped = reading.encoder.images(reader, reading.progress)
    if not targets:
        first = f", the first being {skipped.examples[0]}" if skipped.count else ""
        raise UserError(
            f"the evaluation set {data} holds no usable sample ({skipped.count} skipped{first}); check that "
            "its images are of a kind that training reads, with what belongs to them next to them"
        )
    return SetFeatures(features, [name for name, _ in targets], [target for _, target in targets], skipped)
