"""What a type of evaluation set provides.

A type recognises its sets by the path that a job names, and opens them as one of two sources: samples with
class numbers or captions, or images grouped by named classes. `labelled_sets` and `retrieval_sets` register
the types.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from flipscale.evaluation.samples import RawSample


@dataclass(frozen=True)
class SampleSource:
    """A set that gives its samples one after the other, with the labels or captions that it stores."""

    samples: Callable[[], Iterator[RawSample]]
    """Starts to read the samples, in the order of the set.

    Labels are class numbers, which count the list of class names that the job gives. A UserError reports a
    set that is missing or damaged.
    """
    check: Callable[[], None]
    """Raises UserError for what is wrong with the set and can be seen without reading its samples."""


@dataclass(frozen=True)
class NamedClasses:
    """A set that groups its images by classes with names of their own."""

    images: Mapping[str, Iterable[RawSample]]
    """Images without labels, by the name of their class, in the order of the classes.

    Iterating may be slow: it can walk a folder.
    """
    group: str
    """What holds the images of a class, for messages: `class folder`."""

    def labelled(self, numbers: Mapping[str, int]) -> Iterator[RawSample]:
        """Yield the images of these classes, class by class, labelled with the class numbers.

        Args:
            numbers: Class numbers by the names of the classes, in the order in which the classes are read.
        """
        for name, number in numbers.items():
            for sample in self.images[name]:
                yield replace(sample, label=str(number).encode())


Source = TypeVar("Source", bound=SampleSource | NamedClasses, covariant=True)


@dataclass(frozen=True)
class SetType(Generic[Source]):
    """A type of evaluation set."""

    name: str
    recognises: Callable[[str], bool]
    """Returns whether the path or pattern that a job names is a set of this type."""
    open: Callable[[str], Source]
    """Returns the set at this path. It reads no images.

    A UserError reports a set that cannot be used.
    """


def type_of(data: str, types: Sequence[SetType[Source]]) -> SetType[Source]:
    """Return the first type that recognises the set; the last type of `types` recognises everything."""
    return next(kind for kind in types if kind.recognises(data))
