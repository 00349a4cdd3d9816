"""Positions in, tensors out: reads, decodes and augments the samples that the order puts at positions."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, NoReturn

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor

from flipscale.config import Augmentation
from flipscale.data.order import lanes as order
from flipscale.data.order.lanes import Samples
from flipscale.data.order.mixture import Mixture
from flipscale.data.quarantine import BadRecord, BadSample
from flipscale.data.samples.augment import DRAWS, random_views
from flipscale.data.samples.captions import Captions
from flipscale.data.samples.decode import open_image, render
from flipscale.data.shards.source import ShardSource
from flipscale.data.text.tokenizer import Tokenizer
from flipscale.errors import UserError
from flipscale.order_digest import OrderDigest


class Chunk(NamedTuple):
    """Consecutive positions of a batch, ready for the device."""

    images: Tensor  # uint8 (n, 3, size, size)
    tokens: Tensor  # int64 (n, context_length)
    positions: Tensor  # int64 (n,)
    digest: OrderDigest
    bad: list[BadRecord]  # samples found unusable on the way


@dataclass(frozen=True)
class ReaderSettings:
    image_size: int  # pixels
    augmentation: Augmentation
    max_image_pixels: int
    captions: Mapping[str, float] = field(default_factory=lambda: {"txt": 1.0})


class SampleReader:
    """Reads any sample by its position; each loader worker has its own copy."""

    def __init__(
        self, source: ShardSource, lanes: Mixture, tokenizer: Tokenizer, settings: ReaderSettings
    ) -> None:
        self._source = source
        self._lanes = lanes
        self._tokenizer = tokenizer
        self._settings = settings
        self._captions = Captions(settings.captions, source, lanes.seed)
        self._bad: set[tuple[int, int]] = set()

    def read(self, positions: np.ndarray, image_size: int | None = None) -> Chunk:
        """Return the samples at `positions`; each unusable one is replaced by the next good of its window.

        Args:
            positions: (n,) global sample positions.
            image_size: side of the images in pixels; that of the settings by default.

        Raises DataReadError where a shard cannot be read, UserError where it changed or a window holds no
        usable sample.
        """
        found = self._lanes.locate(positions)
        numbers = order.uniforms(self._lanes.seed, positions, DRAWS)
        size = image_size or self._settings.image_size
        images = np.empty((len(positions), 3, size, size), dtype=np.uint8)
        captions = [""] * len(positions)
        bad: list[BadRecord] = []
        attempts = [0] * len(positions)
        places = list(range(len(positions)))
        while places:
            bad += self._show(places, positions, found, numbers, images, captions)
            places = [i for i in places if (int(found.shards[i]), int(found.ordinals[i])) in self._bad]
            for i in places:
                attempts[i] += 1
                self._replace(found, i, positions[i : i + 1], attempts[i])
        return Chunk(
            torch.from_numpy(images),
            self._tokenizer(captions),
            torch.from_numpy(positions),
            order.digest(positions, found.shards, found.ordinals),
            bad,
        )

    def _show(
        self,
        places: list[int],
        positions: np.ndarray,
        found: Samples,
        numbers: np.ndarray,
        images: np.ndarray,
        captions: list[str],
    ) -> list[BadRecord]:
        """Put at each of `places` the sample found for it; return, and remember, which turn out to be bad."""
        bad: list[BadRecord] = []
        opened: deque[tuple[int, Image]] = deque()
        for i in places:
            shard, ordinal = int(found.shards[i]), int(found.ordinals[i])
            if (shard, ordinal) in self._bad:
                continue
            try:
                captions[i], image = self._open(shard, ordinal, int(positions[i]))
                opened.append((i, image))
            except BadSample as error:
                bad.append(self._condemn(shard, ordinal, str(error)))
        kept = [i for i, _ in opened]
        widths, heights = np.array([image.size for _, image in opened], dtype=np.int64).reshape(-1, 2).T
        augmentation = self._settings.augmentation
        for view in random_views(widths, heights, numbers[kept], augmentation):
            i, image = opened.popleft()  # so that its pixels are freed before the next are decoded
            shard, ordinal = int(found.shards[i]), int(found.ordinals[i])
            if (shard, ordinal) in self._bad:
                continue
            try:
                images[i] = render(image, view, images.shape[-1], augmentation.interpolation)
            except BadSample as error:
                bad.append(self._condemn(shard, ordinal, str(error)))
        return bad

    def _open(self, shard: int, ordinal: int, position: int) -> tuple[str, Image]:
        member = self._source.member(shard, ordinal)
        caption = self._captions.caption(shard, ordinal, position)
        data = self._source.bytes(shard, int(member["image"]), int(member["image_bytes"]))
        return caption, open_image(data, self._settings.max_image_pixels)

    def _condemn(self, shard: int, ordinal: int, reason: str) -> BadRecord:
        self._bad.add((shard, ordinal))
        path = self._source.index.shards[shard].path
        return BadRecord(shard, ordinal, path, self._source.key(shard, ordinal), reason)

    def _replace(self, found: Samples, place: int, position: np.ndarray, attempt: int) -> None:
        """Put the window's next sample in the place of a bad one."""
        if attempt == self._lanes.window_size(int(position[0])):
            self._refuse_window(position)
        other = self._lanes.locate(position, attempt)
        found.shards[place], found.ordinals[place] = other.shards[0], other.ordinals[0]

    def _refuse_window(self, position: np.ndarray) -> NoReturn:
        """Say what is wrong with the sample at a position (1,) whose whole window is unusable."""
        here = self._lanes.locate(position)
        images = np.empty((1, 3, self._settings.image_size, self._settings.image_size), dtype=np.uint8)
        self._bad.discard((int(here.shards[0]), int(here.ordinals[0])))
        numbers = order.uniforms(self._lanes.seed, position, DRAWS)
        (record,) = self._show([0], position, here, numbers, images, [""])
        raise UserError(
            f"all {self._lanes.window_size(int(position[0]))} samples of a window in {record.path} are "
            f"unusable (one of them, {record.key}: {record.reason}); look at them with `flipscale data "
            "check`, mend or leave out the shard, and start a new run"
        )
