"""Which class of a job's list each class of a set is: by WordNet id, by number, or by place."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from flipscale.errors import UserError
from flipscale.evaluation.set_types import NamedClasses
from flipscale.evaluation.subsets import are_wnids, imagenet_wnids, objectnet_names
from flipscale.evaluation.templates import load_class_names

FOLDER_NAMES = "folders"
"""As `classnames`: the names of the class folders."""
OWN = "own"
"""As `classnames` or `templates`: the files that CLIP_benchmark writes next to a set's shards."""

_IMAGENET = "imagenet"


class ClassNumbers(NamedTuple):
    """The class names of a set, and the numbers of its own classes in that list."""

    names: list[str]
    number_of: dict[str, int]
    """Class numbers by the set's own names; without classes that are not scored (ObjectNet)."""


def number_classes(data: str, classes: NamedClasses, classnames: str) -> ClassNumbers:
    """Return the class names, and which of them each class of the set is.

    The own name of a class decides: a WordNet id, a class number, or a folder of ObjectNet. Its place decides
    only if there are as many class names as classes.

    Args:
        data: Path of the set.
        classes: The classes of the set by their own names, in order.
        classnames: As in the job: `folders`, `imagenet`, a file, or ObjectNet's folder `mappings`.

    Raises:
        UserError: If neither name nor place decides, or the set has a class that the list does not have.
    """
    own = list(classes.images)
    if _is_objectnet(classnames):
        return _objectnet_numbers(own, Path(classnames))
    if classnames == FOLDER_NAMES:
        names = [name.replace("_", " ") for name in own]
        return ClassNumbers(names, _places(own))

    names = load_class_names(classnames)
    if classnames == _IMAGENET and any(are_wnids([name]) for name in own):
        return ClassNumbers(names, _wnid_numbers(data, own))

    numbers = {int(name): name for name in own if name.isdecimal()}
    if len(numbers) == len(own) and max(numbers) < len(names):
        return ClassNumbers(names, {name: number for number, name in numbers.items()})
    if classnames == _IMAGENET and all(name.isdecimal() for name in own):
        # The development kit of ILSVRC2012 counts from 1, and in another order.
        raise UserError(
            f"{data} has the {classes.group}s {own[0]} to {own[-1]}, and the class numbers of {classnames} "
            f"are 0 to {len(names) - 1}, each once; name the {classes.group}s by them or by WordNet ids"
        )

    if len(own) == len(names):
        return ClassNumbers(names, _places(own))
    raise UserError(
        f"{classnames} has {len(names)} class names, but {data} has {len(own)} {classes.group}s; give each "
        f"{classes.group} one name, in sorted order, or name the {classes.group}s by their class numbers, "
        f"from 0, or say `classnames: {FOLDER_NAMES}`"
    )


def _is_objectnet(classnames: str) -> bool:
    return classnames not in (FOLDER_NAMES, OWN, _IMAGENET) and Path(classnames).is_dir()


def _objectnet_numbers(own: list[str], mappings: Path) -> ClassNumbers:
    """Number the classes that ImageNet has too; those that only ObjectNet has get no number."""
    name_of = objectnet_names(mappings)
    number_of = _places(list(name_of))
    return ClassNumbers(list(name_of.values()), {name: number_of[name] for name in own if name in number_of})


def _wnid_numbers(data: str, own: list[str]) -> dict[str, int]:
    number_of = _places(imagenet_wnids())
    foreign = [name for name in own if name not in number_of]
    if foreign:
        raise UserError(f"{data}/{foreign[0]} is none of ImageNet's 1,000 classes; remove it")
    return {name: number_of[name] for name in own}


def _places(names: list[str]) -> dict[str, int]:
    return {name: place for place, name in enumerate(names)}
