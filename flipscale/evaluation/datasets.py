"""Evaluation sets: webdataset shards or a folder of class folders, read as batches of squares."""

from __future__ import annotations

import os
import tarfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from PIL import Image

from flipscale.data.quarantine import BadSample
from flipscale.data.samples.decode import decode_caption, open_image
from flipscale.data.shards.index import expand_shards
from flipscale.data.shards.tar import IMAGE_EXTENSIONS, split_name
from flipscale.errors import UserError

_EXAMPLES = 20  # skipped samples that are named
_TARGETS = ("cls", "txt", "npy")  # in the order of RawSample

Target = TypeVar("Target")


@dataclass(frozen=True)
class Member:
    """The bytes of a shard's member, not read yet: a process reads the images of its own batches alone."""

    shard: str
    offset: int
    size: int

    def read_bytes(self) -> bytes:
        try:
            with open(self.shard, "rb") as file:
                file.seek(self.offset)
                data = file.read(self.size)
        except OSError as error:
            raise _not_whole(self.shard, error) from error
        if len(data) < self.size:
            raise _not_whole(self.shard, "unexpected end of data")
        return data


@dataclass(frozen=True)
class RawSample:
    """One undecoded sample; `None` where a shard has no such member."""

    name: str
    image: bytes | Path | Member | None
    label: bytes | None = None
    caption: bytes | None = None
    label_vector: bytes | None = None  # a .npy file


@dataclass
class Skipped:
    """Samples that could not be used: how many, and why for the first few."""

    count: int = 0
    first: dict[int, str] = field(default_factory=dict)  # by the sample's place in the set

    def add(self, place: int, name: str, reason: str) -> None:
        self.count += 1
        if len(self.first) < _EXAMPLES:
            self.first[place] = f"{name}: {reason}"

    @property
    def examples(self) -> list[str]:
        return list(self.first.values())

    @classmethod
    def joined(cls, parts: Iterable[Skipped]) -> Skipped:
        """Those of all the processes that read a set together."""
        parts = list(parts)
        first = sorted(item for part in parts for item in part.first.items())
        return cls(sum(part.count for part in parts), dict(first[:_EXAMPLES]))


@dataclass(frozen=True)
class Batch(Generic[Target]):
    """Model inputs with their targets; `number` puts the batches of several processes in order."""

    number: int
    inputs: torch.Tensor
    targets: list[Target]
    places: list[int]  # of the samples in their set, unusable ones counted too


@dataclass(frozen=True)
class Decoding:
    """How samples become batches."""

    image_size: int  # side of the squares, pixels
    batch_size: int = 64
    workers: int = 4  # threads
    max_image_pixels: int = 100_000_000  # larger images are skipped before they are decoded


@dataclass(frozen=True)
class Reader(Generic[Target]):
    """Decodes samples in threads (Pillow leaves the interpreter free) and batches them in their order.

    A batch is the usable ones of `batch_size` samples that follow each other, whoever reads it.
    """

    samples: Iterable[RawSample]
    target: Callable[[RawSample], Target]
    decoding: Decoding
    skipped: Skipped = field(default_factory=Skipped)

    def batches(self, rank: int = 0, size: int = 1) -> Iterator[Batch[Target]]:
        """Every `size`th batch from number `rank` on; `skipped` counts the samples that are in none.

        Inputs are images, uint8 (B, 3, image_size, image_size), B > 0.
        """
        for number, group in groupby(self._decoded(rank, size), self._number):
            images: list[np.ndarray] = []
            targets: list[Target] = []
            places: list[int] = []
            for place, name, result in group:
                if isinstance(result, BadSample):
                    self.skipped.add(place, name, str(result))
                else:
                    images.append(result[0])
                    targets.append(result[1])
                    places.append(place)
            if images:
                yield Batch(number, torch.from_numpy(np.stack(images)), targets, places)

    def _number(self, decoded: tuple[int, str, object]) -> int:
        return decoded[0] // self.decoding.batch_size

    def _decoded(
        self, rank: int, size: int
    ) -> Iterator[tuple[int, str, tuple[np.ndarray, Target] | BadSample]]:
        """Places, names and results in the order of the samples, decoded up to two batches ahead."""
        pending: deque[tuple[int, str, Future[tuple[np.ndarray, Target] | BadSample]]] = deque()
        with ThreadPoolExecutor(self.decoding.workers) as pool:
            for place, sample in enumerate(self.samples):
                if place // self.decoding.batch_size % size != rank:
                    continue
                pending.append((place, sample.name, pool.submit(self._decode, sample)))
                if len(pending) > 2 * self.decoding.batch_size:
                    first, name, future = pending.popleft()
                    yield first, name, future.result()
            for first, name, future in pending:
                yield first, name, future.result()

    def _decode(self, sample: RawSample) -> tuple[np.ndarray, Target] | BadSample:
        try:
            return self._square(sample.image), self.target(sample)
        except BadSample as bad:
            return bad

    def _square(self, source: bytes | Path | Member | None) -> np.ndarray:
        try:
            data = source.read_bytes() if isinstance(source, (Path, Member)) else source
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


def captions_of(sample: RawSample) -> list[str]:
    """A sample's captions: one a line of its .txt, as CLIP_benchmark writes sets with several."""
    lines = decode_caption(sample.caption or b"").split("\n")
    return [line.strip() for line in lines if line.strip()]


def read_shards(pattern: str) -> Iterator[RawSample]:
    """The samples of webdataset tars (brace expansion, `::`), in order.

    Raises UserError for a shard that is missing or not whole: a score over part of a set is no score.
    """
    for path in existing_shards(pattern):
        try:
            yield from _read_shard(path)
        except (tarfile.TarError, OSError) as error:
            raise _not_whole(path, error) from error


def existing_shards(pattern: str) -> list[str]:
    """The paths of a pattern. Raises UserError for one that is no file."""
    paths = expand_shards(pattern)
    for path in paths:
        if not os.path.isfile(path):
            raise UserError(f"the evaluation shard {path} is no file; check the pattern {pattern!r}")
    return paths


def _not_whole(shard: str, reason: object) -> UserError:
    return UserError(f"the evaluation shard {shard} cannot be read whole ({reason}); restore it")


def _read_shard(path: str) -> Iterator[RawSample]:
    members: dict[str, Any] = {}
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


def _sample(path: str, key: str, members: dict[str, Any]) -> RawSample:
    name = f"{os.path.basename(path)}/{key}"
    return RawSample(name, *(members.get(kind) for kind in ("image", *_TARGETS)))


def _members(path: str) -> Iterator[tuple[str, str, bytes | Member]]:
    """(key, extension, content) of the image, label and caption members of a tar; images are not read."""
    size = os.path.getsize(path)
    with tarfile.open(path, "r:") as tar:
        for member in tar:
            key, extension = split_name(member.name)
            if not member.isreg() or extension not in (*IMAGE_EXTENSIONS, *_TARGETS):
                continue
            if member.offset_data + member.size > size:
                raise tarfile.ReadError("unexpected end of data")
            if extension in IMAGE_EXTENSIONS:
                yield key, extension, Member(path, member.offset_data, member.size)
                continue
            content = tar.extractfile(member)
            assert content is not None
            yield key, extension, content.read()
        # tarfile takes a damaged header, and a file cut between members, for the end of the archive.
        with open(path, "rb") as file:
            file.seek(tar.offset)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError("no end-of-archive mark where the members end")
