"""Random views of a labelled set, epoch after epoch, shared by the processes that train a classifier.

What a view shows is a function of (seed, epoch, place of the image in the set). The numbers of processes and
of loader workers do not change it, and neither does an interruption.
"""

from __future__ import annotations

import logging
import os
import random
import signal
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from flipscale.child_process import FORK, die_with_parent
from flipscale.config import Augmentation
from flipscale.data.quarantine import BadSample
from flipscale.data.samples.augment import DRAWS, random_views
from flipscale.data.samples.decode import open_image, render
from flipscale.distributed.world import World
from flipscale.errors import UserError
from flipscale.evaluation.samples import MAX_IMAGE_PIXELS, RawSample, image_bytes
from flipscale.transfer.labelled_images import LabelledImages
from flipscale.transfer.passes import Passes, PieceSampler, ViewKeys

_log = logging.getLogger(__name__)

_AUGMENTATION = Augmentation(crop_area=(0.08, 1.0), flip=True)  # as MAE's code, the paper's starting point

Piece = tuple[Tensor, Tensor]
"""Images uint8 (b, 3, S, S) and labels int64 (b,)."""
ImageTransform = Callable[[Image.Image], Image.Image]
"""A random change of a view, which draws only from `random` and `numpy.random`."""


class AugmentedBatches:
    """This process's share of every batch of augmented images.

    Attributes:
        steps: Batches per epoch.
    """

    def __init__(
        self,
        images: LabelledImages,
        passes: Passes,
        image_size: int,
        world: World,
        workers: int,
        transform: ImageTransform | None = None,
    ) -> None:
        """Prepare the batches; nothing is read yet.

        Args:
            images: The training set.
            passes: Epochs, batch size, micro-batch and seed.
            image_size: Side of the views, in pixels.
            world: The processes that share each batch.
            workers: Loader processes; 0 decodes in this process.
            transform: Change of a view after its crop and flip.
        """
        self.steps = passes.steps(len(images.samples))
        self._views = _Views(images, image_size, passes.seed, transform)
        self._passes = passes
        self._world = world
        self._workers = workers

    def pieces(self, first_epoch: int = 0) -> Iterator[Iterator[Piece]]:
        """Yield the pieces of each batch from `first_epoch` on, at most `micro_batch` images per piece.

        The caller takes all pieces of a batch, which are on the device, before it takes the next batch.

        Raises:
            UserError: If the set can no longer be read.
        """
        keys = PieceSampler(
            self._passes, len(self._views.samples), self._world.rank, self._world.size, first_epoch
        )
        loader = DataLoader(
            self._views,
            batch_size=None,
            sampler=keys,
            num_workers=self._workers,
            multiprocessing_context=FORK if self._workers else None,
            pin_memory=self._world.device.type == "cuda",
            worker_init_fn=partial(_start_worker, os.getpid()) if self._workers else None,
        )

        pieces = map(self._on_device, loader)
        for _ in range((self._passes.epochs - first_epoch) * self.steps):
            yield islice(pieces, keys.pieces_per_batch)

    def _on_device(self, piece: Piece | UserError) -> Piece:
        if isinstance(piece, UserError):
            raise piece
        images, labels = piece
        device = self._world.device
        return images.to(device, non_blocking=True), labels.to(device, non_blocking=True)


class _Views(Dataset[Piece | UserError]):
    """Pieces by the keys of their views.

    An error is returned as a value: if a loader worker raised it, the training process would receive its
    traceback as the message.
    """

    def __init__(
        self, images: LabelledImages, size: int, seed: int, transform: ImageTransform | None
    ) -> None:
        self.samples = images.samples
        self._images = images
        self._size = size
        self._seed = seed
        self._transform = transform

    def __getitem__(self, index: ViewKeys) -> Piece | UserError:
        try:
            views = [self._usable(epoch, place) for epoch, place in index]
        except UserError as error:
            return error

        pixels, labels = zip(*views, strict=True)
        return torch.as_tensor(np.stack(pixels)), torch.tensor(labels)

    def _usable(self, epoch: int, place: int) -> tuple[NDArray[np.uint8], int]:
        """Return view and label of an image, or of the next one that can be used."""
        for further in range(len(self.samples)):
            sample = self.samples[(place + further) % len(self.samples)]
            try:
                draws = np.random.default_rng([self._seed, epoch, place])
                return self._view(sample, draws), self._images.label(sample)
            except BadSample as bad:
                if epoch == 0:
                    _log.warning("%s: %s; the next image takes its place", sample.name, bad)

        raise UserError(f"{self._images.data} holds no usable image; see the warnings, and restore it")

    def _view(self, sample: RawSample, draws: np.random.Generator) -> NDArray[np.uint8]:
        """Return a random view, (3, S, S)."""
        image = open_image(image_bytes(sample), MAX_IMAGE_PIXELS)
        numbers = draws.random((1, DRAWS))
        width, height = image.size
        (view,) = random_views(np.array([width]), np.array([height]), numbers, _AUGMENTATION)
        pixels = render(image, view, self._size, _AUGMENTATION.interpolation)
        if self._transform is None:
            return pixels

        # The transform draws from the global generators: seed them for this view.
        seed = int(draws.integers(2**32))
        random.seed(seed)
        np.random.seed(seed)
        changed = self._transform(Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0))))
        return np.asarray(changed).transpose(2, 0, 1)


def _start_worker(parent: int, _: int) -> None:
    die_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the training process ends its workers
    torch.set_num_threads(1)
