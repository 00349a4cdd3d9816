"""Sets that classifiers are trained and tested on: shards with .cls labels, or a folder of class folders."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from flipscale.errors import UserError
from flipscale.evaluation.class_sets import class_folders, read_folder
from flipscale.evaluation.datasets import RawSample, read_shards
from flipscale.evaluation.labels import label_of

_SHARD_COUNT = "nshards.txt"  # CLIP_benchmark's converter writes it beside the shards of each split
_read_label = label_of(sys.maxsize)


@dataclass(frozen=True)
class LabelledImages:
    """A set's samples, none decoded yet, with at least one labelled image of each class."""

    data: str
    samples: list[RawSample]
    numbers: dict[int, int]  # from a label as it is written to the class's place, from 0
    names: tuple[str, ...]  # in the order of these places: class folders, or labels as they are written

    @property
    def classes(self) -> int:
        return len(self.names)

    def label(self, sample: RawSample) -> int:
        """The place of a sample's class. Raises BadSample where it has no label."""
        return self.numbers[_read_label(sample)]


def labelled_images(data: str) -> LabelledImages:
    """List the set that lies at `data`; its classes are its folders, or the labels that occur in its shards.

    Raises UserError for a set that is missing, damaged, without labels or of one class alone, for folders of
    shards, and for class folders without images.
    """
    root = Path(data)
    if (root / _SHARD_COUNT).is_file():
        raise UserError(f"{data} is a folder of shards; name them, as in {root}/{{0..9}}.tar")
    folders = class_folders(root) if root.is_dir() else None
    if folders is None:
        samples = list(read_shards(data))
    else:
        samples = list(read_folder(root, dict(enumerate(folders))))
        _check_no_shards(data, samples)
    counts = Counter(_read_label(sample) for sample in samples if sample.label is not None)
    if not counts:
        raise UserError(
            f"{data} holds no labelled image; give shards with .cls labels, or a folder with a sub-folder of "
            "images for each class"
        )
    numbers = sorted(counts) if folders is None else list(range(len(folders)))
    names = tuple(str(number) for number in numbers) if folders is None else tuple(f.name for f in folders)
    empty = [name for number, name in zip(numbers, names, strict=True) if not counts[number]]
    if empty:
        raise UserError(
            f"{data} has {counts.total():,} images for {len(names):,} classes, and none in {len(empty):,} of "
            f"its folders, the first being {empty[0]}; add images, or remove those folders"
        )
    if len(names) == 1:
        raise UserError(f"{data} has one class alone; give a set with two or more to tell apart")
    return LabelledImages(data, samples, {number: place for place, number in enumerate(numbers)}, names)


def _check_no_shards(data: str, samples: list[RawSample]) -> None:
    """Raise UserError where the class folders are those of a set in shards, as CLIP_benchmark writes it."""
    files = [Path(sample.name) for sample in samples]
    shards = [file for file in files if file.suffix == ".tar"]
    if shards and (len(shards) == len(files) or any(file.name == _SHARD_COUNT for file in files)):
        raise UserError(
            f"{data} holds shards, such as {shards[0]}, in place of images; name its shards, as in "
            f"{Path(data)}/train/{{0..9}}.tar"
        )


def check_same_classes(train: LabelledImages, test: LabelledImages) -> None:
    """Raise UserError where the two sets do not have the same classes."""
    ours, theirs = set(train.names), set(test.names)
    if ours == theirs:
        return
    alone = next(name for name in (*train.names, *test.names) if (name in ours) != (name in theirs))
    holder = train if alone in ours else test
    raise UserError(
        f"{train.data} has {len(ours):,} classes and {test.data} has {len(theirs):,}, and only "
        f"{holder.data} has {alone}; give two sets with the same classes"
    )
