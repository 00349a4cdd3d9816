"""Classification sets of a job: their samples, their class names, and which classes take part."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from flipscale.config import Evaluation, ZeroShot
from flipscale.errors import UserError
from flipscale.evaluation.class_numbers import FOLDER_NAMES, OWN, number_classes
from flipscale.evaluation.labelled_sets import labelled_set
from flipscale.evaluation.labels import class_filter
from flipscale.evaluation.samples import RawSample
from flipscale.evaluation.set_types import NamedClasses, SampleSource
from flipscale.evaluation.subsets import load_subset
from flipscale.evaluation.templates import load_class_names, load_templates

_OWN_NAMES = "classnames.txt"
_OWN_TEMPLATES = "zeroshot_classification_templates.txt"


@dataclass(frozen=True)
class ClassSet:
    """A set's samples, the full list of class names, and which of the classes take part."""

    samples: Iterator[RawSample]
    """Their labels are numbers in the full list."""
    all_names: list[str]
    numbers: list[int]
    """Numbers of the classes that take part, ascending."""

    @property
    def names(self) -> list[str]:
        """The names of the classes that take part."""
        return [self.all_names[number] for number in self.numbers]


def class_set(config: ZeroShot) -> ClassSet:
    """Open the set that a job describes.

    Raises:
        UserError: If the data or a named file is missing, or the class names do not fit the set's classes or
            its metric.
    """
    if config.metric == "map_11_point" and config.subset is not None:
        raise UserError(
            f"{config.data} has a subset and several labels per image, as the metric map_11_point takes "
            "them; leave out subset, or take another metric"
        )

    source = labelled_set(config.data)
    opened = _named(config, source) if isinstance(source, NamedClasses) else _numbered(config, source)
    if config.metric == "roc_auc" and len(opened.numbers) != 2:
        raise UserError(
            f"the metric roc_auc needs two classes, but {config.data} has {len(opened.numbers)}; take top1 "
            "or mean_per_class"
        )
    return opened


def set_templates(config: ZeroShot) -> list[str]:
    """Return the prompt templates that a job names.

    Raises:
        UserError: As `load_templates` does.
    """
    return load_templates(_own_file(config, config.templates, _OWN_TEMPLATES))


def check_class_set(config: ZeroShot) -> None:
    """Check what can be checked without reading the samples of a set.

    Raises:
        UserError: If the set, its class names or its templates cannot be used.
    """
    class_set(config)
    set_templates(config)

    source = labelled_set(config.data)
    if isinstance(source, SampleSource):
        source.check()


def rooted(sets: Evaluation) -> Evaluation:
    """Return the sets with `root` put before the paths of their data."""
    if sets.root is None:
        return sets
    root = sets.root

    def path(data: str) -> str:
        return "::".join(os.path.join(root, part) for part in data.split("::"))

    zero_shot = {
        name: config.model_copy(update={"data": path(config.data)}) for name, config in sets.zero_shot.items()
    }
    retrieval = {name: path(data) for name, data in sets.retrieval.items()}
    return sets.model_copy(update={"zero_shot": zero_shot, "retrieval": retrieval, "root": None})


def _own_file(config: ZeroShot, source: str, file: str) -> str:
    return str(Path(config.data, file)) if source == OWN else source


def _numbered(config: ZeroShot, source: SampleSource) -> ClassSet:
    """Open a set whose labels are class numbers already."""
    if config.classnames == FOLDER_NAMES:
        raise UserError(
            f"classnames: {FOLDER_NAMES} needs a folder of class folders, and {Path(config.data)} is not one"
        )

    names = load_class_names(_own_file(config, config.classnames, _OWN_NAMES))
    samples = source.samples()
    if config.subset is None:
        return ClassSet(samples, names, list(range(len(names))))

    numbers = load_subset(config.subset, len(names))
    return ClassSet(filter(class_filter(set(numbers), len(names)), samples), names, numbers)


def _named(config: ZeroShot, source: NamedClasses) -> ClassSet:
    """Open a set of named classes; the samples come class by class, by ascending number."""
    names, number_of = number_classes(config.data, source, config.classnames)
    wanted = list(range(len(names)))
    if config.subset is not None:
        wanted = load_subset(config.subset, len(names))

    own_name = {number: name for name, number in number_of.items()}
    missing = [number for number in wanted if number not in own_name]
    if missing:
        raise UserError(
            f"{config.data} has no {source.group} for class {missing[0]} ({names[missing[0]]}) and "
            f"{len(missing) - 1} more; name the `subset` of the classes that it has"
        )

    for name in (own_name[number] for number in wanted):
        if next(iter(source.images[name]), None) is None:
            raise UserError(
                f"the {source.group} {Path(config.data, name)} holds no images; fill it, or remove it "
                "with its name"
            )
    return ClassSet(source.labelled({own_name[number]: number for number in wanted}), names, wanted)
