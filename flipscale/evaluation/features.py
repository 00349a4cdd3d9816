"""Image and text features of a whole evaluation set, made by all processes together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from flipscale.distributed.world import World
from flipscale.errors import UserError
from flipscale.evaluation.decoding import DecodedBatch, Reader
from flipscale.evaluation.masked_views import MaskedEncoder
from flipscale.evaluation.samples import Skipped

Target = TypeVar("Target")

_TEXTS_AT_ONCE = 256


class DualEncoder(Protocol):
    """What evaluation asks of a model. All processes call it equally often, as sharded models need it."""

    def encode_image(self, images: Tensor) -> Tensor:
        """L2-normalised features (B, D) of uint8 (B, 3, S, S) on the device."""
        ...

    def encode_text(self, texts: Tensor) -> Tensor:
        """L2-normalised features (B, D) of int64 (B, context_length) on the device."""
        ...


@dataclass(frozen=True)
class Encoder:
    """A model, with the processes that share a set's batches; all of them get all features.

    The batches are those that one process would make, so that the features are the same to the bit.
    """

    model: DualEncoder
    tokenizer: Callable[[Sequence[str]], Tensor]
    image_size: int
    """Side in pixels of the squares that the model takes; it normalises colours itself."""
    world: World
    masked_views: MaskedEncoder | None = None
    """Encodes the images with patches hidden, in place of the model."""

    def images(
        self, reader: Reader[Target], progress: Callable[[int], None]
    ) -> tuple[Tensor, list[Target], Skipped]:
        """Features (N, D), fp32, of the usable samples in their order, their targets, and what was skipped.

        Args:
            progress: called with the number of samples that this process has read so far.

        Raises UserError, on every process, where one meets it, and for features that are not finite.
        """

        def own() -> Iterator[DecodedBatch[Target]]:
            read = 0
            for batch in reader.batches(self.world.rank, self.world.size):
                yield batch
                read += len(batch.targets)
                progress(read)

        blank = torch.zeros(1, 3, self.image_size, self.image_size, dtype=torch.uint8)
        features, targets = self._encode(self._images, own(), DecodedBatch(-1, blank, [], [0]), "image")
        return features, targets, Skipped.joined(self.world.gather(reader.skipped))

    def texts(self, captions: Sequence[str]) -> Tensor:
        """Features (len(captions), D), fp32; there is at least one caption, and equal ones are encoded once.

        Raises UserError if a feature is not finite.
        """
        place = {caption: number for number, caption in enumerate(dict.fromkeys(captions))}
        distinct = list(place)
        own = (
            DecodedBatch(start, self.tokenizer(part), part, list(range(start, start + len(part))))
            for start in range(
                self.world.rank * _TEXTS_AT_ONCE, len(distinct), self.world.size * _TEXTS_AT_ONCE
            )
            for part in [distinct[start : start + _TEXTS_AT_ONCE]]
        )
        surplus = DecodedBatch(-1, self.tokenizer([""]), [""], [0])
        features, _ = self._encode(self._texts, own, surplus, "text")
        order = torch.tensor([place[caption] for caption in captions], device=features.device)
        return features[order]

    def _images(self, batch: DecodedBatch[Any]) -> Tensor:
        images = batch.inputs.to(self.world.device)
        if self.masked_views is None:
            return self.model.encode_image(images)
        return self.masked_views.features(images, torch.tensor(batch.places, device=self.world.device))

    def _texts(self, batch: DecodedBatch[Any]) -> Tensor:
        return self.model.encode_text(batch.inputs.to(self.world.device))

    def _encode(
        self,
        encode: Callable[[DecodedBatch[Target]], Tensor],
        own: Iterator[DecodedBatch[Target]],
        surplus: DecodedBatch[Target],
        kind: str,
    ) -> tuple[Tensor, list[Target]]:
        """Features and targets of all processes' batches, by their numbers.

        Args:
            surplus: encoded, for nothing, where other processes have one batch more than this one.
        """
        done: list[tuple[int, Tensor, list[Target]]] = []
        # Without compiled blocks: other shapes than training's would compile them anew, and might change
        # what training itself runs.
        with (
            torch.no_grad(),
            torch.autocast(self.world.device.type, enabled=False),
            torch.compiler.set_stance("force_eager"),
        ):
            for batch in self._rounds(own):
                features = encode(surplus if batch is None else batch).float()
                if batch is not None:
                    done.append((batch.number, features.cpu(), batch.targets))
        parts = sorted(chain.from_iterable(self.world.gather(done)), key=lambda part: part[0])
        if not parts:
            return torch.empty(0, 0), []
        features = torch.cat([features for _, features, _ in parts]).to(self.world.device)
        return _finite(features, kind), [target for _, _, targets in parts for target in targets]

    def _rounds(self, own: Iterator[DecodedBatch[Target]]) -> Iterator[DecodedBatch[Target] | None]:
        """This process's batches, then None as long as another process still has one."""
        while True:
            batch, problem = None, None
            try:
                batch = next(own, None)
            except UserError as error:
                problem = error
            others = self.world.gather((batch is not None, problem))
            for _, problem in others:
                if problem is not None:
                    raise problem
            if not any(more for more, _ in others):
                return
            yield batch


def _finite(features: Tensor, kind: str) -> Tensor:
    bad = int((~torch.isfinite(features).all(dim=1)).sum())
    if bad:
        raise UserError(
            f"{bad} of {len(features)} {kind} features are NaN or infinite: the model diverged or "
            "its weights are damaged; evaluate an earlier checkpoint"
        )
    return features
