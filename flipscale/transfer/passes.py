"""How the passes over a training set are cut into batches, and how batches are cut into pieces."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from torch.utils.data import Sampler

from flipscale.errors import UserError

ViewKeys = list[tuple[int, int]]
"""(epoch, place of the image in the set) of each view of a piece."""


@dataclass(frozen=True)
class Passes:
    """How often a training set is passed through, in which batches, and in which order."""

    epochs: int
    batch_size: int
    """Images per optimizer step, of all processes together; an epoch leaves out a last, smaller batch."""
    micro_batch: int = 64
    """Images that a process holds on its device at once."""
    seed: int = 0

    def steps(self, images: int) -> int:
        """Return the optimizer steps per epoch over a set of this many images."""
        return images // self.batch_size

    def check(self, images: int, processes: int, multiple: int = 1) -> None:
        """Check that the processes can share batches of this many images evenly.

        Args:
            images: Images of the training set.
            processes: Processes that train together.
            multiple: Number that divides the images per process and the micro-batch; 2 if images are mixed
                in pairs.

        Raises:
            UserError: If they cannot.
        """
        if min(self.epochs, self.micro_batch, self.batch_size - 1) < 1:
            raise UserError("epochs and micro-batch must be 1 or more and the batch 2 or more; correct them")

        whole = processes * multiple
        if self.batch_size > images:
            raise UserError(
                f"the training set has {images:,} images, fewer than a batch of {self.batch_size:,}; give a "
                f"smaller --batch-size, {images // whole * whole:,} at most"
            )
        if self.batch_size % whole:
            raise UserError(
                f"a batch of {self.batch_size:,} is not a multiple of {whole}; give a --batch-size that "
                f"{processes} processes can share in {'pairs' if multiple == 2 else 'equal parts'}"
            )
        if self.micro_batch % multiple:
            raise UserError(
                f"a micro-batch of {self.micro_batch} cannot be mixed in pairs; give an even --micro-batch"
            )


@dataclass(frozen=True)
class PieceSampler(Sampler[ViewKeys]):
    """The keys of the views in each piece of one process, in the order of training."""

    passes: Passes
    images: int
    """Images of the set."""
    rank: int
    size: int
    first_epoch: int

    @property
    def pieces_per_batch(self) -> int:
        """The number of pieces in this process's share of a batch."""
        return -(-self.passes.batch_size // self.size // self.passes.micro_batch)

    def __iter__(self) -> Iterator[ViewKeys]:
        """Yield the keys of each piece; the order of an epoch depends only on the seed and the epoch."""
        batch_size = self.passes.batch_size
        micro_batch = self.passes.micro_batch

        for epoch in range(self.first_epoch, self.passes.epochs):
            order = np.random.default_rng([self.passes.seed, epoch]).permutation(self.images)

            for step in range(self.passes.steps(self.images)):
                batch = order[step * batch_size : (step + 1) * batch_size]
                own: list[int] = np.split(batch, self.size)[self.rank].tolist()
                for start in range(0, len(own), micro_batch):
                    yield [(epoch, place) for place in own[start : start + micro_batch]]
