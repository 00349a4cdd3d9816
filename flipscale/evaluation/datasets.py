"""Evaluation sets: webdataset shards or a folder of class folders, read as batches of squares."""

from __future__ import annotations

import os
import tarfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
import torch
from PIL import Image

from flipscale.data.decode import BadSample, decode_caption, open_image
from flipscale.data.index import IMAGE_EXTENSIONS, expand_shards, split_name
from flipscale.errors import UserError

_EXAMPLES = 20  # skipped samples that are named
_LONGEST_LABEL = 18  # digits

Target = TypeVar("Target")


@dataclass(frozen=True)
class RawSample:
    """One undecoded sample; `None` where a shard has no such member."""

    name: str
    image: bytes | Path | None
    label: bytes | None = None
    caption: bytes | None = None


@dataclass
class Skipped:
    """Samples that could not be used: how many, and why for the first few."""

    count: int = 0
    examples: list[str] = field(default_factory=list)

    def add(self, name: str, reason: str) -> None:
        self.count += 1
        if len(self.examples) < _EXAMPLES:
            self.examples.append(f"{name}: {reason}")


@dataclass(frozen=True)
class Decoding:
    """How samples become batches."""

    image_size: int  # side of the squares, pixels
    batch_size: int = 64
    workers: int = 4  # threads
    max_image_pixels: int = 100_000_000  # larger images are skipped before they are decoded


@dataclass(frozen=True)
class Reader(Generic[Target]):
    """Decodes samples in threads (Pillow leaves the interpreter free) and batches them in their order."""

    samples: Iterable[RawSample]
    target: Callable[[RawSample], Target]
    decoding: Decoding
    skipped: Skipped = field(default_factory=Skipped)

    def batches(self) -> Iterator[tuple[torch.Tensor, list[Target]]]:
        """Images, uint8 (B, 3, image_size, image_size), with their targets; `skipped` counts the rest."""
        images: list[np.ndarray] = []
        targets: list[Target] = []
        for name, result in self._decoded():
            if isinstance(result, BadSample):
                self.skipped.add(name, str(result))
                continue
            images.append(result[0])
            targets.append(result[1])
            if len(images) == self.decoding.batch_size:
                yield torch.from_numpy(np.stack(images)), targets
                images, targets = [], []
        if images:
            yield torch.from_numpy(np.stack(images)), targets

    def _decoded(self) -> Iterator[tuple[str, tuple[np.ndarray, Target] | BadSample]]:
        """Results in the order of the samples, decoded up to two batches ahead."""
        pending: deque[tuple[str, Future[tuple[np.ndarray, Target] | BadSample]]] = deque()
        with ThreadPoolExecutor(self.decoding.workers) as pool:
            for sample in self.samples:
                pending.append((sample.name, pool.submit(self._decode, sample)))
                if len(pending) > 2 * self.decoding.batch_size:
                    name, future = pending.popleft()
                    yield name, future.result()
            for name, future in pending:
                yield name, future.result()

    def _decode(self, sample: RawSample) -> tuple[np.ndarray, Target] | BadSample:
        try:
            return self._square(sample.image), self.target(sample)
        except BadSample as bad:
            return bad

    def _square(self, source: bytes | Path | None) -> np.ndarray:
        try:
            data = source.read_bytes() if isinstance(source, Path) else source
        except OSError as error:
            raise BadSample(f"the image cannot be read ({error.strerror})") from None
        size, max_pixels = self.decoding.image_size, self.decoding.max_image_pixels
        image = open_image(data or b"", max_pixels)
        if max(image.size) / min(image.size) * size**2 > max_pixels:
            raise BadSample(f"the image is too elongated ({image.width} x {image.height} pixels)")
        try:
            pixels = square_view(image, size)
        except (OSError, ValueError, SyntaxError, IndexError, EOFError) as error:
            raise BadSample(f"the image cannot be decoded ({error})") from None
        return np.asarray(pixels, dtype=np.uint8).transpose(2, 0, 1)


def square_view(image: Image.Image, size: int) -> Image.Image:
    """The image as RGB, its shorter side resized to `size` (bicubic, antialiased), and its centre cut out.

    Pixel for pixel OpenCLIP's evaluation transform ('shortest') for RGB and grey images.
    """
    image = image.convert("RGB")
    short, long = min(image.size), max(image.size)
    resized = int(size * long / short)
    width, height = (size, resized) if image.width <= image.height else (resized, size)
    left, top = round((width - size) / 2), round((height - size) / 2)
    resampled = image.resize((width, height), Image.Resampling.BICUBIC)
    return resampled.crop((left, top, left + size, top + size))


def label_of(classes: int) -> Callable[[RawSample], int]:
    """Reads a sample's class; UserError if it is no number in [0, classes)."""

    def read(sample: RawSample) -> int:
        if sample.label is None:
            raise BadSample("the label is missing")
        text = sample.label.decode("utf-8", errors="replace").strip()
        if not text.isdecimal() or len(text) > _LONGEST_LABEL:
            raise UserError(
                f"the label of {sample.name} is {text[:40]!r}; a .cls holds a class number from 0"
            )
        label = int(text)
        if label >= classes:
            raise UserError(
                f"the label of {sample.name} is {label}, but there are {classes} class names (0 to "
                f"{classes - 1}); use the class names that belong to this set"
            )
        return label

    return read


def captions_of(sample: RawSample) -> list[str]:
    """A sample's captions: one a line of its .txt, as CLIP_benchmark writes sets with several."""
    lines = decode_caption(sample.caption or b"").split("\n")
    return [line.strip() for line in lines if line.strip()]


def read_shards(pattern: str) -> Iterator[RawSample]:
    """The samples of webdataset tars (brace expansion, `::`), in order.

    Raises UserError for a shard that is missing or not whole: a score over part of a set is no score.
    """
    paths = expand_shards(pattern)
    for path in paths:
        if not os.path.isfile(path):
            raise UserError(f"the evaluation shard {path} is no file; check the pattern {pattern!r}")
    for path in paths:
        try:
            yield from _read_shard(path)
        except (tarfile.TarError, OSError) as error:
            raise UserError(
                f"the evaluation shard {path} cannot be read whole ({error}); restore it"
            ) from error


def read_folder(root: Path, classes: list[Path]) -> Iterator[RawSample]:
    """The files below each class folder; label = place in `classes`. Hidden files are no samples."""
    for label, folder in enumerate(classes):
        for parent, folders, files in os.walk(folder, followlinks=True):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for file in sorted(name for name in files if not name.startswith(".")):
                path = Path(parent, file)
                yield RawSample(str(path.relative_to(root)), path, str(label).encode())


def class_folders(root: Path) -> list[Path]:
    """The sorted sub-folders of `root`. Raises UserError where there are none."""
    folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not folders:
        raise UserError(f"the evaluation folder {root} has no sub-folders; it needs one for each class")
    return folders


def _read_shard(path: str) -> Iterator[RawSample]:
    members: dict[str, bytes] = {}
    current: str | None = None
    for key, extension, data in _members(path):
        kind = "image" if extension in IMAGE_EXTENSIONS else extension
        if key != current or kind in members:
            if current is not None:
                yield _sample(path, current, members)
            current, members = key, {}
        members[kind] = data
    if current is not None:
        yield _sample(path, current, members)


def _sample(path: str, key: str, members: dict[str, bytes]) -> RawSample:
    name = f"{os.path.basename(path)}/{key}"
    return RawSample(name, members.get("image"), members.get("cls"), members.get("txt"))


def _members(path: str) -> Iterator[tuple[str, str, bytes]]:
    """(key, extension, content) of the image, label and caption members of a tar."""
    size = os.path.getsize(path)
    with tarfile.open(path, "r:") as tar:
        for member in tar:
            key, extension = split_name(member.name)
            if not member.isreg() or extension not in (*IMAGE_EXTENSIONS, "cls", "txt"):
                continue
            if member.offset_data + member.size > size:
                raise tarfile.ReadError("unexpected end of data")
            content = tar.extractfile(member)
            assert content is not None
            yield key, extension, content.read()
        # tarfile takes a damaged header, and a file cut between members, for the end of the archive.
        with open(path, "rb") as file:
            file.seek(tar.offset)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError("no end-of-archive mark where the members end")
