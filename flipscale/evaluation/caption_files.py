"""Image-caption sets in a file of captions: COCO's, one of Karpathy's splits, or Flickr30k's own."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import cast

from typing_extensions import NotRequired, TypedDict

from flipscale.errors import UserError
from flipscale.evaluation.flickr_captions import READERS
from flipscale.evaluation.samples import RawSample
from flipscale.evaluation.set_types import SampleSource, SetType

_TEST = "test"  # the split of a Karpathy file that is scored
# Places of the images, as COCO and Flickr30k unpack; relative to the file, or to the folder above it.
_FOLDERS = ("", "images", "flickr30k-images", "flickr30k_images", "flickr30k_images/flickr30k_images")
_SPLIT = re.compile(r"captions_(\w+)")  # COCO names the folder of the images by the split of the file


class _CocoImage(TypedDict):
    id: int
    file_name: object


class _CocoAnnotation(TypedDict):
    image_id: int
    caption: object


class _Coco(TypedDict):
    images: list[_CocoImage]
    annotations: list[_CocoAnnotation]


class _KarpathySentence(TypedDict):
    raw: object


class _KarpathyImage(TypedDict):
    filepath: NotRequired[str]
    filename: str
    split: str
    sentences: list[_KarpathySentence]


class _Karpathy(TypedDict):
    images: list[_KarpathyImage]


def read_captions(path: Path) -> Iterator[RawSample]:
    """Yield the images of a file, each with its captions, one per line.

    All images of COCO's `captions_*.json` and of Flickr30k's `*.token` count, and of Karpathy's
    `dataset_*.json` and Flickr30k's `*.csv` those of the test split. A missing image is skipped and counted
    later.

    Raises:
        UserError: If the file cannot be read, is none of these, or none of its images is there.
    """
    captions = _read(path)
    folders = _image_folders(path)
    folder = _folder_of_images(path, folders, captions)
    for name, lines in captions.items():
        text = "\n".join(" ".join(line.split()) for line in lines)
        # One image may be missing in the folder of the others, or be in another one.
        places = (folder / name, *(other / name for other in folders))
        image = next((place for place in places if place.is_file()), folder / name)
        yield RawSample(name, image, caption=text.encode("utf-8", "replace"))


def _read(path: Path) -> dict[str, list[str]]:
    """Return the captions of a file by the names of their images."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        captions = READERS[path.suffix](text) if path.suffix in READERS else _json_captions(path, text)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"the captions {path} cannot be read ({str(error)[:200]}); give one as COCO, Karpathy or "
            "Flickr30k publish it"
        ) from None

    if not captions:
        raise UserError(f"{path} has no images of the split {_TEST!r}; give one with a test set")
    return captions


def _json_captions(path: Path, text: str) -> dict[str, list[str]]:
    """Return the captions of a JSON file by the names of their images."""
    document = json.loads(text)
    try:
        if "annotations" in document:
            return _coco_captions(cast("_Coco", document))
        return _karpathy_captions(cast("_Karpathy", document))
    except (TypeError, KeyError, AttributeError):
        raise UserError(
            f"{path} holds neither COCO's nor Karpathy's captions; name captions_*.json or dataset_*.json, "
            "or make shards of the set"
        ) from None


def _image_folders(path: Path) -> list[Path]:
    """Return the folders in which the images of a file may be, the most likely first."""
    split = _SPLIT.fullmatch(path.stem)
    inner = (*((split[1], f"images/{split[1]}") if split else ()), *_FOLDERS)
    parents = (path.parent, path.absolute().parent.parent)
    return [parent / folder for parent in parents for folder in inner]


def _folder_of_images(path: Path, folders: Sequence[Path], captions: Iterable[str]) -> Path:
    """Return the folder of the first image that is there."""
    for name in captions:
        for folder in folders:
            if (folder / name).is_file():
                return folder

    looked = ", ".join(str(folder) for folder in folders)
    raise UserError(
        f"none of the images of {path} is there; put their folder next to it (looked in: {looked})"
    )


def open_caption_file(data: str) -> SampleSource:
    """Return the set in a file of captions; the file is not read yet."""

    def check() -> None:
        next(read_captions(Path(data)), None)

    return SampleSource(lambda: read_captions(Path(data)), check)


CAPTION_FILE = SetType(
    "file of captions", lambda data: Path(data).suffix in (".json", *READERS), open_caption_file
)


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
