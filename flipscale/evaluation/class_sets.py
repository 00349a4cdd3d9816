"""Classification sets as they lie: shards, CLIP_benchmark's directories, or a folder of class folders."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from flipscale.config import Evaluation, ZeroShot
from flipscale.errors import UserError
from flipscale.evaluation.datasets import RawSample, existing_shards, read_shards
from flipscale.evaluation.labels import within
from flipscale.evaluation.subsets import are_wnids, imagenet_wnids, load_subset, objectnet_names
from flipscale.evaluation.templates import load_class_names, load_templates

FOLDER_NAMES = "folders"  # as `classnames`: the names of the class folders
OWN = "own"  # as `classnames` or `templates`: the files that CLIP_benchmark writes beside a set's shards
_IMAGENET = "imagenet"
_OWN_NAMES, _OWN_TEMPLATES = "classnames.txt", "zeroshot_classification_templates.txt"
_SHARD_COUNT = Path("test", "nshards.txt")


@dataclass(frozen=True)
class ClassSet:
    """Samples, whose labels count the full list of class names, and which of these take part."""

    samples: Iterator[RawSample]
    all_names: list[str]
    numbers: list[int]  # ascending

    @property
    def names(self) -> list[str]:
        return [self.all_names[number] for number in self.numbers]


def class_set(chosen: ZeroShot) -> ClassSet:
    """What a job says of a set, looked up.

    Raises UserError for what is missing, and for class names that do not fit the set's folders or metric.
    """
    if chosen.metric == "map_11_point" and chosen.subset is not None:
        raise UserError(
            f"{chosen.data} has a subset and several labels an image, as the metric map_11_point takes them; "
            "leave out subset, or take another metric"
        )
    found = _class_set(chosen)
    if chosen.metric == "roc_auc" and len(found.numbers) != 2:
        raise UserError(
            f"the metric roc_auc needs two classes, but {chosen.data} has {len(found.numbers)}; take top1 or "
            "mean_per_class"
        )
    return found


def _class_set(chosen: ZeroShot) -> ClassSet:
    root = Path(chosen.data)
    if root.is_dir() and not (root / _SHARD_COUNT).is_file():
        return _folder_set(root, chosen)
    if chosen.classnames == FOLDER_NAMES:
        raise UserError(f"classnames: {FOLDER_NAMES} needs a folder of class folders, and {root} is none")
    names = load_class_names(_own(chosen, chosen.classnames, _OWN_NAMES))
    samples = read_shards(shards_of(chosen.data))
    if chosen.subset is None:
        return ClassSet(samples, names, list(range(len(names))))
    numbers = load_subset(chosen.subset, len(names))
    return ClassSet(filter(within(set(numbers), len(names)), samples), names, numbers)


def set_templates(chosen: ZeroShot) -> list[str]:
    """The prompt templates that a job names. Raises UserError as `load_templates` does."""
    return load_templates(_own(chosen, chosen.templates, _OWN_TEMPLATES))


def shards_of(data: str) -> str:
    """The shard pattern of a directory that CLIP_benchmark's converter wrote; any other `data` as it is.

    Raises UserError where such a directory does not say how many shards it has.
    """
    listed = Path(data, _SHARD_COUNT)
    if not Path(data).is_dir():
        return data
    text = listed.read_text(errors="replace").strip() if listed.is_file() else ""
    if not text.isdecimal() or not int(text):
        raise UserError(
            f"{data} is a directory without {_SHARD_COUNT}, which tells the number of its shards; name the "
            "shards, as in DIRECTORY/{0..9}.tar"
        )
    return "::".join(str(Path(data, "test", f"{number}.tar")) for number in range(int(text)))


def rooted(sets: Evaluation) -> Evaluation:
    """The sets with `root` put before the paths of their data."""
    if sets.root is None:
        return sets
    root = sets.root

    def path(data: str) -> str:
        return "::".join(os.path.join(root, part) for part in data.split("::"))

    zero_shot = {
        name: chosen.model_copy(update={"data": path(chosen.data)}) for name, chosen in sets.zero_shot.items()
    }
    retrieval = {name: path(data) for name, data in sets.retrieval.items()}
    return sets.model_copy(update={"zero_shot": zero_shot, "retrieval": retrieval, "root": None})


def check_class_set(chosen: ZeroShot) -> None:
    """Raise UserError for what is wrong with a set and can be seen without reading its samples."""
    class_set(chosen)
    set_templates(chosen)
    if not Path(chosen.data).is_dir() or Path(chosen.data, _SHARD_COUNT).is_file():
        existing_shards(shards_of(chosen.data))


def _own(chosen: ZeroShot, source: str, file: str) -> str:
    return str(Path(chosen.data, file)) if source == OWN else source


def _folder_set(root: Path, chosen: ZeroShot) -> ClassSet:
    folders = class_folders(root)
    names, numbered = _numbered_folders(root, folders, chosen.classnames)
    wanted = list(range(len(names))) if chosen.subset is None else load_subset(chosen.subset, len(names))
    missing = [number for number in wanted if number not in numbered]
    if missing:
        raise UserError(
            f"{root} has no folder for class {missing[0]} ({names[missing[0]]}) and {len(missing) - 1} more; "
            "name the `subset` of the classes that it has"
        )
    kept = {number: numbered[number] for number in wanted}
    for folder in kept.values():
        if next(_files(folder), None) is None:
            raise UserError(f"the class folder {folder} holds no images; fill it, or remove it with its name")
    return ClassSet(read_folder(root, kept), names, wanted)


def _numbered_folders(root: Path, folders: list[Path], classnames: str) -> tuple[list[str], dict[int, Path]]:
    """Class names, and the folders by the numbers of their classes, without those that ObjectNet alone has.

    What a folder is called says which class it is; by its place it belongs to a name only where there are as
    many names as folders. Raises UserError where neither tells.
    """
    if _is_objectnet(classnames):
        names = objectnet_names(Path(classnames))
        number = {folder: place for place, folder in enumerate(names)}
        return list(names.values()), {number[f.name]: f for f in folders if f.name in number}
    if classnames == FOLDER_NAMES:
        return [folder.name.replace("_", " ") for folder in folders], dict(enumerate(folders))
    names = load_class_names(classnames)
    if classnames == _IMAGENET and any(are_wnids([folder.name]) for folder in folders):
        number = {wnid: place for place, wnid in enumerate(imagenet_wnids())}
        foreign = [folder.name for folder in folders if folder.name not in number]
        if foreign:
            raise UserError(f"{root}/{foreign[0]} is none of ImageNet's 1,000 classes; remove it")
        return names, {number[folder.name]: folder for folder in folders}
    numbered = {int(folder.name): folder for folder in folders if folder.name.isdecimal()}
    if len(numbered) == len(folders) and max(numbered) < len(names):
        return names, numbered
    if classnames == _IMAGENET and all(folder.name.isdecimal() for folder in folders):
        # The development kit of ILSVRC2012 counts from 1, and in another order.
        raise UserError(
            f"{root} has the class folders {folders[0].name} to {folders[-1].name}, and the class numbers of "
            f"{classnames} are 0 to {len(names) - 1}, each once; name the folders by them or by WordNet ids"
        )
    if len(folders) == len(names):
        return names, dict(enumerate(folders))
    raise UserError(
        f"{classnames} has {len(names)} class names, but {root} has {len(folders)} class folders; give each "
        "folder one name, in sorted order, or name the folders by their class numbers, from 0, or say "
        f"`classnames: {FOLDER_NAMES}`"
    )


def _is_objectnet(classnames: str) -> bool:
    return classnames not in (FOLDER_NAMES, OWN, _IMAGENET) and Path(classnames).is_dir()


def class_folders(root: Path) -> list[Path]:
    """The sub-folders of `root`, sorted: as numbers where all names are numbers, as ImageNet-V2's are.

    Raises UserError where there are none.
    """
    folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not folders:
        raise UserError(f"the evaluation folder {root} has no sub-folders; it needs one for each class")
    if all(folder.name.isdecimal() for folder in folders):
        folders.sort(key=lambda folder: int(folder.name))
    return folders


def read_folder(root: Path, folders: dict[int, Path]) -> Iterator[RawSample]:
    """The files below each class folder, with its number as label. Hidden files are no samples."""
    for number, folder in folders.items():
        for path in _files(folder):
            yield RawSample(str(path.relative_to(root)), path, str(number).encode())


def _files(folder: Path) -> Iterator[Path]:
    for parent, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for file in sorted(name for name in files if not name.startswith(".")):
            yield Path(parent, file)
