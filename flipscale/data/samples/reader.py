"""Positions in, tensors out: reads, decodes and augments the samples that the order puts at positions."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, NoReturn

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from flipscale.config import Augmentation
from flipscale.data.order import lanes as order
from flipscale.data.order.lanes import Int64s, Samples, UInt32s
from flipscale.data.order.mixture import Mixture
from flipscale.data.quarantine import BadRecord, BadSample
from flipscale.data.samples.augment import DRAWS, random_views
from flipscale.data.samples.captions import CaptionFields, Captions
from flipscale.data.samples.decode import EncodedImage, decode_at_every_scale, open_image, render
from flipscale.data.shards.source import ShardSource
from flipscale.data.text.tokenizer import Tokenizer
from flipscale.errors import UserError
from flipscale.order_digest import ContentDigest, OrderDigest


class Chunk(NamedTuple):
    """Consecutive positions of a batch, ready for the device."""

    images: Tensor  # uint8 (n, 3, size, size)
    tokens: Tensor  # int64 (n, context_length)
    positions: Tensor  # int64 (n,)
    digest: OrderDigest
    content: ContentDigest
    bad: list[BadRecord]  # samples that were found unusable and replaced


@dataclass(frozen=True)
class ReaderSettings:
    """The settings by which samples become tensors."""

    image_size: int  # side of the result, in pixels
    augmentation: Augmentation
    max_image_pixels: int  # larger images count as unusable
    captions: Mapping[str, float] = field(default_factory=lambda: {"txt": 1.0})  # name -> weight


class _Views(NamedTuple):
    """What is read of n samples."""

    images: npt.NDArray[np.uint8]  # (n, 3, size, size)
    captions: list[str]
    checksums: UInt32s  # (n, 2), of image and caption

    @classmethod
    def empty(cls, count: int, size: int) -> _Views:
        images = np.empty((count, 3, size, size), dtype=np.uint8)
        return cls(images, [""] * count, np.zeros((count, 2), np.uint32))


class SampleReader:
    """The reader of any sample by its position. Each loader worker has its own copy.

    Args:
        source: The shards.
        lanes: The sample order.
        tokenizer: Turns captions into token ids.
        settings: How images and captions are read.
    """

    def __init__(
        self, source: ShardSource, lanes: Mixture, tokenizer: Tokenizer, settings: ReaderSettings
    ) -> None:
        self._source = source
        self._lanes = lanes
        self._tokenizer = tokenizer
        self._settings = settings
        self._captions = Captions(CaptionFields(settings.captions, lanes.seed), source)
        self._bad: dict[tuple[int, int], str] = {}  # reasons by shard and ordinal
        self.in_progress: Int64s = np.zeros(2, np.int64)
        """Shard and ordinal of the sample that is being decoded; -1 between samples. A loader worker's are
        in memory that it shares with the training process."""

    def read(self, positions: Int64s, image_size: int | None = None) -> Chunk:
        """Return the samples at `positions`. The next good sample of its window replaces each unusable one.

        Args:
            positions: (n,), positions of the run.
            image_size: Side of the images in pixels; default: that of the settings.

        Raises:
            DataReadError: If a shard cannot be read.
            UserError: If a shard changed, or a window holds no usable sample.
        """
        samples = self._lanes.locate(positions)
        numbers = order.uniforms(self._lanes.seed, positions, DRAWS)
        size = image_size or self._settings.image_size
        views = _Views.empty(len(positions), size)

        bad: list[BadRecord] = []
        attempts = [0] * len(positions)
        places = list(range(len(positions)))
        while places:
            bad += self._fill(places, positions, samples, numbers, views)
            places = [i for i in places if (int(samples.shards[i]), int(samples.ordinals[i])) in self._bad]
            for i in places:
                attempts[i] += 1
                self._replace(samples, i, positions[i : i + 1], attempts[i])

        return Chunk(
            torch.as_tensor(views.images),
            self._tokenizer(views.captions),
            torch.as_tensor(positions),
            order.digest(positions, samples.shards, samples.ordinals),
            order.content_digest(positions, views.checksums),
            bad,
        )

    def exclude(self, shard: int, ordinal: int, reason: str) -> BadRecord:
        """Count a sample as unusable from now on, and return its record."""
        return self._record_bad(shard, ordinal, reason)

    def leave_out(self, records: Iterable[BadRecord]) -> None:
        """Count samples as unusable from now on.

        A verdict lasts for the whole run. Otherwise a version that reads more formats than the one before,
        or a crash that does not repeat itself, would change the order of a run in progress.

        Args:
            records: Those that earlier starts of the run found.
        """
        for record in records:
            self._bad[record.shard, record.ordinal] = sys.intern(record.reason)

    def decode_everywhere(self, shard: int, ordinal: int) -> None:
        """Decode a sample at every scale, in a process that this may crash."""
        data = self._source.content(shard, ordinal, "image")
        decode_at_every_scale(open_image(data, self._settings.max_image_pixels))

    def _fill(
        self,
        places: list[int],
        positions: Int64s,
        samples: Samples,
        numbers: npt.NDArray[np.float64],
        views: _Views,
    ) -> list[BadRecord]:
        """Read the samples at `places` into `views`; return those that prove to be bad."""
        bad: list[BadRecord] = []
        opened: deque[tuple[int, EncodedImage]] = deque()
        for i in places:
            shard, ordinal = int(samples.shards[i]), int(samples.ordinals[i])
            if (shard, ordinal) in self._bad:
                continue
            self.in_progress[:] = shard, ordinal
            try:
                caption = self._captions.caption(shard, ordinal, int(positions[i]))
                data, checksum = self._source.checked_content(shard, ordinal, "image")
                image = open_image(data, self._settings.max_image_pixels)
                views.captions[i] = caption.text
                views.checksums[i] = checksum, caption.checksum
                opened.append((i, image))
            except BadSample as error:
                bad.append(self._record_bad(shard, ordinal, str(error)))

        kept = [i for i, _ in opened]
        widths, heights = np.array([image.size for _, image in opened], dtype=np.int64).reshape(-1, 2).T
        augmentation = self._settings.augmentation
        for view in random_views(widths, heights, numbers[kept], augmentation):
            i, image = opened.popleft()  # frees its pixels before the next image is decoded
            shard, ordinal = int(samples.shards[i]), int(samples.ordinals[i])
            if (shard, ordinal) in self._bad:
                continue
            self.in_progress[:] = shard, ordinal
            try:
                views.images[i] = render(image, view, views.images.shape[-1], augmentation.interpolation)
            except BadSample as error:
                bad.append(self._record_bad(shard, ordinal, str(error)))

        self.in_progress[:] = -1
        return bad

    def _record_bad(self, shard: int, ordinal: int, reason: str) -> BadRecord:
        self._bad[shard, ordinal] = sys.intern(reason)
        path = self._source.index.shards[shard].path
        return BadRecord(shard, ordinal, path, self._source.key(shard, ordinal), reason)

    def _replace(self, samples: Samples, place: int, position: Int64s, attempt: int) -> None:
        """Put the window's next sample in the place of a bad one."""
        if attempt == self._lanes.window_size(int(position[0])):
            self._raise_unusable_window(position)

        other = self._lanes.locate(position, attempt)
        samples.shards[place] = other.shards[0]
        samples.ordinals[place] = other.ordinals[0]

    def _raise_unusable_window(self, position: Int64s) -> NoReturn:
        """Report why the sample at a position (1,) is bad, since its whole window is unusable."""
        here = self._lanes.locate(position)
        shard, ordinal = int(here.shards[0]), int(here.ordinals[0])
        path = self._source.index.shards[shard].path

        raise UserError(
            f"all {self._lanes.window_size(int(position[0]))} samples of a window in {path} are unusable "
            f"(one of them, {self._source.key(shard, ordinal)}: {self._bad[shard, ordinal]}); look at them "
            "with `flipscale data check JOB`, fix or leave out the shard, and start a new run"
        )
