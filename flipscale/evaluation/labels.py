"""The labels of samples: one class number, or any number of them."""

from __future__ import annotations

import io
from collections.abc import Callable, Container

import numpy as np
from numpy.typing import NDArray

from flipscale.data.quarantine import BadSample
from flipscale.errors import UserError
from flipscale.evaluation.samples import RawSample

_LONGEST_LABEL = 18  # digits


def label_of(classes: int) -> Callable[[RawSample], int]:
    """Return a function that reads the class number of a sample.

    The function raises BadSample if the label is missing, and UserError if it is not a number in [0,
    classes).
    """

    def read(sample: RawSample) -> int:
        return _number(sample.name, _text(sample), classes)

    return read


def labels_of(classes: int) -> Callable[[RawSample], NDArray[np.bool_]]:
    """Return a function that reads which classes a sample shows, as booleans (classes,).

    A .npy holds one number per class, 0 for those not shown, as CLIP_benchmark writes VOC2007; a .cls holds
    class numbers, separated by spaces. The function raises BadSample if the sample has neither, and UserError
    for any other content.
    """

    def read(sample: RawSample) -> NDArray[np.bool_]:
        if sample.label_vector is not None:
            return _vector(sample.name, sample.label_vector, classes)
        shown = np.zeros(classes, np.bool_)
        shown[[_number(sample.name, text, classes) for text in _text(sample).split()]] = True
        return shown

    return read


def class_filter(numbers: Container[int], classes: int) -> Callable[[RawSample], bool]:
    """Return a function that says whether a sample's class is one of `numbers`.

    A sample without a label passes, so that it counts as unusable later.
    """
    read = label_of(classes)
    return lambda sample: sample.label is None or read(sample) in numbers


def _text(sample: RawSample) -> str:
    if sample.label is None:
        raise BadSample("the label is missing")
    return sample.label.decode("utf-8", errors="replace").strip()


def _number(name: str, text: str, classes: int) -> int:
    if not text.isdecimal() or len(text) > _LONGEST_LABEL:
        raise UserError(f"the label of {name} is {text[:40]!r}; a .cls holds a class number from 0")

    label = int(text)
    if label >= classes:
        raise UserError(
            f"the label of {name} is {label}, but there are {classes} class names (0 to {classes - 1}); use "
            "the class names that belong to this set"
        )
    return label


def _vector(name: str, data: bytes, classes: int) -> NDArray[np.bool_]:
    try:
        vector = np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise UserError(
            f"the labels of {name} are not an array of numbers ({error}); save them again"
        ) from None

    if vector.shape != (classes,):
        raise UserError(
            f"the labels of {name} have the shape {vector.shape}, but there are {classes} class names; use "
            "the class names that belong to this set"
        )
    return vector > 0
