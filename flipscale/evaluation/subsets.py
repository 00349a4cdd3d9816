"""Which of ImageNet's classes a set has, and how the folders of such sets are named.

The tables come with timm and ObjectNet; ImageNet's class names are OpenCLIP's.
"""

from __future__ import annotations

import json
import re
from importlib.util import find_spec
from pathlib import Path
from typing import cast

from flipscale.errors import UserError, words_of

SUBSETS = {"imagenet_a": "imagenet_a_indices.txt", "imagenet_r": "imagenet_r_indices.txt"}
"""The subsets that have a name, and timm's tables of them."""

_WNIDS = "imagenet_synsets.txt"
_WNID = re.compile(r"n\d{8}")
_OBJECTNET_LABELS = "folder_to_objectnet_label.json"
_OBJECTNET_OVERLAP = "objectnet_to_imagenet_1k.json"


def load_subset(source: str, classes: int) -> list[int]:
    """Return the class numbers of a subset, ascending.

    Args:
        source: `imagenet_a`, `imagenet_r`, or a file with one number per line.
        classes: Number of classes in the full list.

    Raises:
        UserError: If the file is missing or empty, or a line is repeated or not a number in [0, classes).
    """
    if source in SUBSETS:
        lines = _timm_table(SUBSETS[source])
    elif Path(source).is_file():
        lines = Path(source).read_text(encoding="utf-8", errors="replace").split()
    else:
        raise UserError(
            f"subset: there is no file {source}; name one with a number per line, or {' or '.join(SUBSETS)}"
        )

    for line in lines:
        if not line.isdecimal() or int(line) >= classes:
            raise UserError(f"subset {source}: {line[:40]!r} is not a class number from 0 to {classes - 1}")

    numbers = sorted({int(line) for line in lines})
    if len(numbers) < len(lines) or not numbers:
        raise UserError(f"subset {source} has a class twice or none at all; give each one line")
    return numbers


def are_wnids(names: list[str]) -> bool:
    """Return whether all names are WordNet ids, such as n01440764, the names of ImageNet's folders."""
    return all(_WNID.fullmatch(name) for name in names)


def imagenet_wnids() -> list[str]:
    """Return the WordNet ids of ImageNet's classes, in the order of their numbers."""
    return _timm_table(_WNIDS)


def objectnet_names(mappings: Path) -> dict[str, str]:
    """Return the names of the ObjectNet classes that ImageNet has too, by folder name, sorted by folder.

    Args:
        mappings: The folder `mappings` that comes with ObjectNet.

    Raises:
        UserError: If its files are missing or contradict each other.
    """
    folder_of = {label: folder for folder, label in _table(mappings / _OBJECTNET_LABELS).items()}
    shared = _table(mappings / _OBJECTNET_OVERLAP)
    unknown = [label for label in shared if label not in folder_of]
    if unknown:
        raise UserError(
            f"{mappings / _OBJECTNET_OVERLAP} names {unknown[0]!r}, which {_OBJECTNET_LABELS} does not; take "
            "both from one copy of ObjectNet"
        )
    return dict(sorted((folder_of[label], label.lower()) for label in shared))


def _table(path: Path) -> dict[str, str]:
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{path} cannot be read ({words_of(error)}); as class names give a file, or the folder "
            "`mappings` that comes with ObjectNet"
        ) from None

    if not isinstance(table, dict):
        raise UserError(f"{path} holds no table of names; restore it from ObjectNet")
    return {str(key): str(value) for key, value in cast("dict[object, object]", table).items()}


def _timm_table(name: str) -> list[str]:
    spec = find_spec("timm")  # timm itself is not imported: it would import torchvision
    if spec is None or not spec.submodule_search_locations:
        raise UserError("ImageNet's class tables come with timm, which is not installed; pip install timm")

    return Path(spec.submodule_search_locations[0], "data", "_info", name).read_text().split()
