"""Image-caption sets as they lie: shards, CLIP_benchmark's directories, or a file of captions (JSON)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flipscale.errors import UserError
from flipscale.evaluation.class_sets import shards_of
from flipscale.evaluation.datasets import RawSample, existing_shards, read_shards

_TEST = "test"  # the split of a Karpathy file that is scored
_FOLDERS = ("", "images")  # where images lie, seen from the file


def retrieval_set(data: str) -> Iterator[RawSample]:
    """The samples of a set, each with its captions, one a line.

    A JSON file is one of COCO's (`captions_*.json`, of which every image counts) or of Karpathy's splits
    (`dataset_*.json`, of which the test split counts); images lie beside it or in `images` beside it.

    Raises UserError for what is missing, and for a file that is neither.
    """
    if Path(data).suffix == ".json":
        return _of_file(Path(data))
    return read_shards(shards_of(data))


def check_retrieval_set(data: str) -> None:
    """Raise UserError for what is wrong with a set and can be seen without reading its samples."""
    if Path(data).suffix == ".json":
        next(_of_file(Path(data)), None)
    else:
        existing_shards(shards_of(data))


def _of_file(path: Path) -> Iterator[RawSample]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"the captions {path} cannot be read ({error}); name a JSON file of captions"
        ) from None
    try:
        captions = _coco(document) if "annotations" in document else _karpathy(document)
    except (TypeError, KeyError, AttributeError):
        raise UserError(
            f"{path} holds neither COCO's nor Karpathy's captions; name captions_*.json or dataset_*.json, "
            "or make shards of the set"
        ) from None
    for name, lines in captions.items():
        text = "\n".join(" ".join(line.split()) for line in lines)
        yield RawSample(name, _image(path.parent, name), caption=text.encode())


def _coco(document: Any) -> dict[str, list[str]]:
    """Captions by file name, in the order of the images."""
    name_of = {image["id"]: str(image["file_name"]) for image in document["images"]}
    captions: dict[str, list[str]] = {name: [] for name in name_of.values()}
    for annotation in document["annotations"]:
        captions[name_of[annotation["image_id"]]].append(str(annotation["caption"]))
    return captions


def _karpathy(document: Any) -> dict[str, list[str]]:
    return {
        str(Path(image.get("filepath", ""), image["filename"])): [str(s["raw"]) for s in image["sentences"]]
        for image in document["images"]
        if image["split"] == _TEST
    }


def _image(folder: Path, name: str) -> Path:
    """Where an image lies; the first of the places where it is looked for, if in none."""
    places = [folder / inner / name for inner in _FOLDERS]
    return next((place for place in places if place.is_file()), places[0])
