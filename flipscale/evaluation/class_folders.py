"""Evaluation sets in a folder with one sub-folder of images per class."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from flipscale.errors import UserError
from flipscale.evaluation.samples import RawSample
from flipscale.evaluation.set_types import NamedClasses, SetType


def class_folders(root: Path) -> list[Path]:
    """Return the sub-folders of `root` without hidden ones, sorted.

    They are sorted as numbers if all names are numbers, like those of ImageNet-V2.

    Raises:
        UserError: If there are none.
    """
    folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not folders:
        raise UserError(f"the evaluation folder {root} has no sub-folders; it needs one for each class")

    if all(folder.name.isdecimal() for folder in folders):
        folders.sort(key=lambda folder: int(folder.name))
    return folders


@dataclass(frozen=True)
class FolderImages:
    """The files below a class folder, in order; each iteration walks the folder again."""

    root: Path
    """Folder of the set; samples are named by their paths below it."""
    folder: Path

    def __iter__(self) -> Iterator[RawSample]:
        """Yield the files without labels. Hidden files and folders are left out."""
        for parent, folders, files in os.walk(self.folder, followlinks=True):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for file in sorted(name for name in files if not name.startswith(".")):
                path = Path(parent, file)
                yield RawSample(str(path.relative_to(self.root)), path)


def open_class_folders(data: str) -> NamedClasses:
    """Return the set in a folder of class folders; its classes are named as the folders are.

    Raises:
        UserError: If the folder has no sub-folders.
    """
    root = Path(data)
    images = {folder.name: FolderImages(root, folder) for folder in class_folders(root)}
    return NamedClasses(images, "class folder")


CLASS_FOLDERS = SetType("folder of class folders", lambda data: Path(data).is_dir(), open_class_folders)
