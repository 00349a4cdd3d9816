"""Random views of a labelled set, epoch after epoch, dealt to the processes that train a classifier.

What is shown is a function of (seed, epoch, place of the image in the set): neither the number of processes
nor that of the loader workers changes it, nor an interruption.
"""

from __future__ import annotations

import logging
import random
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from flipscale.config import Augmentation
from flipscale.data.quarantine import BadSample
from flipscale.data.samples.augment import DRAWS, random_views
from flipscale.data.samples.decode import open_image, render
from flipscale.distributed.world import World
from flipscale.errors import UserError
from flipscale.evaluation.datasets import Member, RawSample
from flipscale.transfer.labelled_images import LabelledImages

_log = logging.getLogger(__name__)

_AUGMENTATION = Augmentation(crop_area=(0.08, 1.0), flip=True)  # as MAE, whose code the paper starts from
_MAX_PIXELS = 100_000_000  # as in evaluation: larger images are not decoded

Piece = tuple[Tensor, Tensor]
"""Images uint8 (b, 3, S, S) and labels int64 (b,), on the device."""
_Keys = list[tuple[int, int]]  # (epoch, place)


@dataclass(frozen=True)
class Passes:
    """How often, in which batches, and how mixed a set is gone through."""

    epochs: int
    batch_size: int
    """Images of one update, of all processes together; those of a last, smaller batch are left out."""
    micro_batch: int = 64
    """Images that a process holds on its device at once."""
    seed: int = 0

    def steps(self, images: int) -> int:
        """Updates an epoch."""
        return images // self.batch_size

    def check(self, images: int, processes: int, multiple: int = 1) -> None:
        """Raise UserError where the processes cannot share batches of this many images evenly.

        Args:
            multiple: what every process's images must come in.
        """
        whole = processes * multiple
        if min(self.epochs, self.micro_batch, self.batch_size - 1) < 1:
            raise UserError("epochs and micro-batch must be 1 or more and the batch 2 or more; correct them")
        if self.batch_size > images:
            raise UserError(
                f"the training set has {images:,} images, fewer than a batch of {self.batch_size:,}; give a "
                f"smaller --batch-size, {images // whole * whole:,} at most"
            )
        if self.batch_size % whole:
            raise UserError(
                f"a batch of {self.batch_size:,} is no multiple of {whole}; give a --batch-size that "
                f"{processes} processes can share in {'pairs' if multiple == 2 else 'equal parts'}"
            )
        if self.micro_batch % multiple:
            raise UserError(
                f"a micro-batch of {self.micro_batch} cannot be mixed in pairs; give an even --micro-batch"
            )


class TrainingViews:
    """This process's share of every batch."""

    def __init__(
        self,
        images: LabelledImages,
        passes: Passes,
        image_size: int,
        world: World,
        workers: int,
        change: Callable[[Image.Image], Image.Image] | None = None,
    ) -> None:
        """
        Args:
            image_size: side of the views in pixels.
            workers: loader processes; 0 decodes in this one.
            change: of a view after its crop and flip; draws from `random` and `numpy.random` alone.
        """
        self.steps = passes.steps(len(images.samples))
        self._views = _Views(images, image_size, passes.seed, change)
        self._passes, self._world, self._workers = passes, world, workers

    def batches(self, epoch: int = 0) -> Iterator[Iterator[Piece]]:
        """From `epoch` on, the pieces of each batch, at most `micro_batch` images each; take them all.

        Raises UserError where the set cannot be read any more.
        """
        keys = _KeySampler(self._passes, len(self._views.samples), self._world.rank, self._world.size, epoch)
        cuda = self._world.device.type == "cuda"
        loader = DataLoader(
            self._views,
            batch_size=None,
            sampler=keys,
            num_workers=self._workers,
            pin_memory=cuda,
            worker_init_fn=_start_worker if self._workers else None,
        )
        pieces = map(self._on_device, loader)
        for _ in range((self._passes.epochs - epoch) * self.steps):
            yield islice(pieces, keys.pieces)

    def _on_device(self, piece: Piece | UserError) -> Piece:
        if isinstance(piece, UserError):
            raise piece
        images, labels = piece
        device = self._world.device
        return images.to(device, non_blocking=True), labels.to(device, non_blocking=True)


@dataclass(frozen=True)
class _KeySampler(Sampler[_Keys]):
    """Which views are in each piece of this process."""

    passes: Passes
    images: int
    rank: int
    size: int
    epoch: int

    @property
    def pieces(self) -> int:
        """Of a batch."""
        return -(-self.passes.batch_size // self.size // self.passes.micro_batch)

    def __iter__(self) -> Iterator[_Keys]:
        batch, piece = self.passes.batch_size, self.passes.micro_batch
        for epoch in range(self.epoch, self.passes.epochs):
            order = np.random.default_rng([self.passes.seed, epoch]).permutation(self.images)
            for step in range(self.passes.steps(self.images)):
                own = np.split(order[step * batch : (step + 1) * batch], self.size)[self.rank].tolist()
                for start in range(0, len(own), piece):
                    yield [(epoch, place) for place in own[start : start + piece]]


class _Views(Dataset[Piece | UserError]):
    """Pieces by the keys of their views; an error is handed over as a value, since a loader worker's own
    would reach the training process with its traceback as the message."""

    def __init__(
        self,
        images: LabelledImages,
        size: int,
        seed: int,
        change: Callable[[Image.Image], Image.Image] | None,
    ) -> None:
        self.samples, self._images = images.samples, images
        self._size, self._seed, self._change = size, seed, change

    def __getitem__(self, keys: _Keys) -> Piece | UserError:
        try:
            views = [self._usable(epoch, place) for epoch, place in keys]
        except UserError as error:
            return error
        pixels, labels = zip(*views, strict=True)
        return torch.from_numpy(np.stack(pixels)), torch.tensor(labels)

    def _usable(self, epoch: int, place: int) -> tuple[np.ndarray, int]:
        """The view of an image, or of the next one that can be used."""
        for further in range(len(self.samples)):
            sample = self.samples[(place + further) % len(self.samples)]
            try:
                draws = np.random.default_rng([self._seed, epoch, place])
                return self._view(sample, draws), self._images.label(sample)
            except BadSample as bad:
                if epoch == 0:
                    _log.warning("%s: %s; the next image takes its place", sample.name, bad)
        raise UserError(f"{self._images.data} holds no usable image; see the warnings, and restore it")

    def _view(self, sample: RawSample, draws: np.random.Generator) -> np.ndarray:
        """(3, S, S) uint8."""
        image = open_image(_bytes_of(sample), _MAX_PIXELS)
        numbers = draws.random((1, DRAWS))
        (view,) = random_views(np.array([image.width]), np.array([image.height]), numbers, _AUGMENTATION)
        pixels = render(image, view, self._size, _AUGMENTATION.interpolation)
        if self._change is None:
            return pixels
        own = int(draws.integers(2**32))
        random.seed(own)
        np.random.seed(own)
        changed = self._change(Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0))))
        return np.asarray(changed).transpose(2, 0, 1)


def _bytes_of(sample: RawSample) -> bytes:
    try:
        held = sample.image
        return (held.read_bytes() if isinstance(held, (Path, Member)) else held) or b""
    except OSError as error:
        raise BadSample(f"the image cannot be read ({error.strerror})") from None


def _start_worker(_: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the training process ends its workers
    torch.set_num_threads(1)
