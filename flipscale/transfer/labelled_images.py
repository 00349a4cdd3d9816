"""Labelled sets that classifiers are trained and tested on: any type of `evaluation.labelled_sets`."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from flipscale.distributed.world import World
from flipscale.errors import UserError
from flipscale.evaluation.labelled_sets import labelled_set
from flipscale.evaluation.labels import label_of
from flipscale.evaluation.samples import RawSample
from flipscale.evaluation.set_types import NamedClasses, SampleSource
from flipscale.evaluation.shards import SPLIT_SHARD_COUNT, is_converted

_read_label = label_of(sys.maxsize)


@dataclass(frozen=True)
class LabelledImages:
    """A set's samples, which are not decoded yet; each class has a labelled image."""

    data: str
    """Path or shard pattern of the set, as the user wrote it."""
    samples: list[RawSample]
    numbers: dict[int, int]
    """Places of the classes, from 0, by the labels that the samples store."""
    names: tuple[str, ...]
    """Names of the classes by place: those of the set, or the labels that occur."""

    @property
    def classes(self) -> int:
        """The number of classes."""
        return len(self.names)

    def label(self, sample: RawSample) -> int:
        """Return the place of a sample's class.

        Raises:
            BadSample: If the sample has no label.
        """
        return self.numbers[_read_label(sample)]


class TrainTestSets(NamedTuple):
    """A training and a test set of the same classes."""

    train: LabelledImages
    test: LabelledImages


def list_train_test(train: str, test: str, world: World) -> TrainTestSets:
    """List two sets on the leading process, and give them to all processes of `world`.

    Raises:
        UserError: On every process, if a set cannot be used or the two have different classes.
    """

    def both() -> TrainTestSets:
        sets = TrainTestSets(labelled_images(train), labelled_images(test))
        check_same_classes(sets.train, sets.test)
        return sets

    return world.lead(both)


def labelled_images(data: str) -> LabelledImages:
    """List the images of a set; it has the classes that it names, or the labels that occur.

    Args:
        data: Shards with .cls labels, a folder of class folders, or another registered type.

    Raises:
        UserError: If the set is missing, damaged, without labels or of one class. Also if the path is a
            folder of shards, or a class folder has no images.
    """
    _check_no_folder_of_shards(data)
    source = labelled_set(data)
    images = _named(data, source) if isinstance(source, NamedClasses) else _numbered(data, source)
    if images.classes == 1:
        raise UserError(f"{data} has only one class; give a set with two or more to distinguish")
    return images


def check_same_classes(train: LabelledImages, test: LabelledImages) -> None:
    """Check that two sets have the same classes.

    Raises:
        UserError: If they differ; the message gives one class that only one of them has.
    """
    ours = set(train.names)
    theirs = set(test.names)
    if ours == theirs:
        return

    name = next(name for name in (*train.names, *test.names) if (name in ours) != (name in theirs))
    holder = train if name in ours else test
    raise UserError(
        f"{train.data} has {len(ours):,} classes and {test.data} has {len(theirs):,}, and only "
        f"{holder.data} has {name}; give two sets with the same classes"
    )


def _numbered(data: str, source: SampleSource) -> LabelledImages:
    samples = list(source.samples())
    counts = _label_counts(data, samples)
    numbers = {label: place for place, label in enumerate(sorted(counts))}
    return LabelledImages(data, samples, numbers, tuple(str(label) for label in numbers))


def _named(data: str, source: NamedClasses) -> LabelledImages:
    names = tuple(source.images)
    samples = list(source.labelled({name: place for place, name in enumerate(names)}))
    _check_no_shards(data, samples)

    counts = _label_counts(data, samples)
    empty = [name for place, name in enumerate(names) if not counts[place]]
    if empty:
        raise UserError(
            f"{data} has {counts.total():,} images for {len(names):,} classes, and none in {len(empty):,} of "
            f"its {source.group}s, the first being {empty[0]}; add images, or remove those {source.group}s"
        )
    return LabelledImages(data, samples, {place: place for place in range(len(names))}, names)


def _label_counts(data: str, samples: list[RawSample]) -> Counter[int]:
    """Return how often each label occurs; at least one does."""
    counts = Counter(_read_label(sample) for sample in samples if sample.label is not None)
    if not counts:
        raise UserError(
            f"{data} holds no labelled image; give shards with .cls labels, or a folder with a sub-folder of "
            "images for each class"
        )
    return counts


def _check_no_folder_of_shards(data: str) -> None:
    """Refuse a directory of CLIP_benchmark's converter, or one split of it.

    Such a directory does not say which of its splits is meant for training.
    """
    if Path(data, SPLIT_SHARD_COUNT).is_file():
        raise UserError(f"{data} is a folder of shards; name them, as in {Path(data)}/{{0..9}}.tar")
    if is_converted(data):
        raise _shards_in_place_of_images(data, Path("test", "0.tar"))


def _check_no_shards(data: str, samples: list[RawSample]) -> None:
    """Refuse class folders that hold the shards of a set, as CLIP_benchmark's converter writes them."""
    files = [Path(sample.name) for sample in samples]
    shards = [file for file in files if file.suffix == ".tar"]
    if shards and (len(shards) == len(files) or any(file.name == SPLIT_SHARD_COUNT for file in files)):
        raise _shards_in_place_of_images(data, shards[0])


def _shards_in_place_of_images(data: str, shard: Path) -> UserError:
    return UserError(
        f"{data} holds shards, such as {shard}, in place of images; name its shards, as in "
        f"{Path(data)}/train/{{0..9}}.tar"
    )
