"""What a model did on a set, sample by sample."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

RECALLS = (1, 5, 10)
"""The k of the recalls that are reported."""
DIRECTIONS = ("image_to_text", "text_to_image")


@dataclass(frozen=True)
class Outcome:
    """What a model did on one set."""

    samples: tuple[str, ...]
    """Names of the set's usable images, in order."""

    def same_set(self, other: Outcome) -> bool:
        """Return whether the other outcome answers the same questions about the same samples."""
        return type(self) is type(other) and self.samples == other.samples


@dataclass(frozen=True)
class Classified(Outcome):
    """The outcome for images that belong to one class each."""

    labels: Integers
    """(N,), in [0, classes)."""
    places: Integers
    """(N,), number of classes that the model puts before the right one; 5 stands for 5 or more."""
    classes: int
    margins: Floats | None = None
    """(N,), score of class 1 less that of class 0; only for sets of two classes."""

    def same_set(self, other: Outcome) -> bool:
        """Return whether samples, labels and number of classes agree."""
        return (
            super().same_set(other)
            and isinstance(other, Classified)
            and self.classes == other.classes
            and np.array_equal(self.labels, other.labels)
        )


@dataclass(frozen=True)
class Labelled(Outcome):
    """The outcome for images that may show several classes."""

    labels: NDArray[np.bool_]
    """(N, C)."""
    scores: Floats
    """(N, C)."""

    def same_set(self, other: Outcome) -> bool:
        """Return whether samples and labels agree."""
        return (
            super().same_set(other)
            and isinstance(other, Labelled)
            and np.array_equal(self.labels, other.labels)
        )


@dataclass(frozen=True)
class Ranked(Outcome):
    """The outcome for images and texts that are ranked against each other.

    The model is judged per query by the number of wrong answers at or above the best right one.
    """

    texts: tuple[str, ...]
    image_of_text: Integers
    """(M,), place of the image that a text describes."""
    image_to_text: Integers
    """(N,), wrong texts per image."""
    text_to_image: Integers
    """(M,), wrong images per text."""

    def wrong_answers(self, direction: str) -> Integers:
        """Return the wrong answers per query in one of `DIRECTIONS`."""
        return self.image_to_text if direction == "image_to_text" else self.text_to_image

    def same_set(self, other: Outcome) -> bool:
        """Return whether samples, texts and their pairing agree."""
        return (
            super().same_set(other)
            and isinstance(other, Ranked)
            and self.texts == other.texts
            and np.array_equal(self.image_of_text, other.image_of_text)
        )
