"""Image-caption sets in a JSON file of captions: COCO's, or one of Karpathy's splits."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import cast

from typing_extensions import NotRequired, TypedDict

from flipscale.errors import UserError
from flipscale.evaluation.samples import RawSample
from flipscale.evaluation.set_types import SampleSource, SetType

_TEST = "test"  # the split of a Karpathy file that is scored
_FOLDERS = ("", "images")  # places of the images, relative to the file


class _CocoImage(TypedDict):
    id: int
    file_name: str


class _CocoAnnotation(TypedDict):
    image_id: int
    caption: str


class _Coco(TypedDict):
    images: list[_CocoImage]
    annotations: list[_CocoAnnotation]


class _KarpathySentence(TypedDict):
    raw: str


class _KarpathyImage(TypedDict):
    filepath: NotRequired[str]
    filename: str
    split: str
    sentences: list[_KarpathySentence]


class _Karpathy(TypedDict):
    images: list[_KarpathyImage]


def read_captions(path: Path) -> Iterator[RawSample]:
    """Yield the images of a file, each with its captions, one per line.

    All images of COCO's `captions_*.json` count, and of Karpathy's `dataset_*.json` those of the test split.
    Images are next to the file, or in the folder `images` next to it.

    Raises:
        UserError: If the file cannot be read, or is neither of the two.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"the captions {path} cannot be read ({error}); name a JSON file of captions"
        ) from None

    try:
        if "annotations" in document:
            captions = _coco_captions(cast("_Coco", document))
        else:
            captions = _karpathy_captions(cast("_Karpathy", document))
    except (TypeError, KeyError, AttributeError):
        raise UserError(
            f"{path} holds neither COCO's nor Karpathy's captions; name captions_*.json or dataset_*.json, "
            "or make shards of the set"
        ) from None

    for name, lines in captions.items():
        text = "\n".join(" ".join(line.split()) for line in lines)
        yield RawSample(name, _image_path(path.parent, name), caption=text.encode())


def open_caption_file(data: str) -> SampleSource:
    """Return the set in a JSON file of captions; the file is not read yet."""

    def check() -> None:
        next(read_captions(Path(data)), None)

    return SampleSource(lambda: read_captions(Path(data)), check)


CAPTION_FILE = SetType("JSON file of captions", lambda data: Path(data).suffix == ".json", open_caption_file)


def _coco_captions(document: _Coco) -> dict[str, list[str]]:
    """Return the captions by file name, in the order of the images."""
    name_of = {image["id"]: str(image["file_name"]) for image in document["images"]}
    captions: dict[str, list[str]] = {name: [] for name in name_of.values()}
    for annotation in document["annotations"]:
        captions[name_of[annotation["image_id"]]].append(str(annotation["caption"]))
    return captions


def _karpathy_captions(document: _Karpathy) -> dict[str, list[str]]:
    """Return the captions of the test split by path, in the order of the images."""
    captions: dict[str, list[str]] = {}
    for image in document["images"]:
        if image["split"] == _TEST:
            name = str(Path(image.get("filepath", ""), image["filename"]))
            captions[name] = [str(sentence["raw"]) for sentence in image["sentences"]]
    return captions


def _image_path(folder: Path, name: str) -> Path:
    """Return the path of an image, or the first possible path if the image is missing."""
    places = [folder / inner / name for inner in _FOLDERS]
    return next((place for place in places if place.is_file()), places[0])
