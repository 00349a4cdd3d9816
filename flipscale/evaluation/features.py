"""Image and text features of a whole evaluation set, computed by all processes together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Protocol, TypeVar

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
    """What evaluation needs of a model.

    All processes call it equally often, as sharded models require.
    """

    def encode_image(self, images: Tensor) -> Tensor:
        """Return L2-normalised features (B, D) of uint8 images (B, 3, S, S) on the device."""
        ...

    def encode_text(self, texts: Tensor) -> Tensor:
        """Return L2-normalised features (B, D) of int64 tokens (B, context_length) on the device."""
        ...


@dataclass(frozen=True)
class Encoder:
    """A model, with the processes that share the batches of a set; each of them gets all features.

    The batches are those that a single process would form, so that the features are the same to the bit.
    """

    model: DualEncoder
    tokenizer: Callable[[Sequence[str]], Tensor]
    """Returns int64 tokens (B, context_length) of B texts."""
    image_size: int
    """Side of the squares that the model takes, in pixels; the model normalises colours itself."""
    world: World
    masked_views: MaskedEncoder | None = None
    """Encodes the images with patches hidden, in place of the model."""

    def images(
        self, reader: Reader[Target], progress: Callable[[int], None]
    ) -> tuple[Tensor, list[Target], Skipped]:
        """Encode the usable samples of a set.

        Args:
            reader: The set.
            progress: Receives the number of samples that this process has read so far.

        Returns:
            Features (N, D) in fp32, in the order of the samples, their targets, and what was skipped.

        Raises:
            UserError: On every process, if one of them meets it in its samples, or if a feature is not
                finite.
        """

        def own_batches() -> Iterator[DecodedBatch[Target]]:
            read = 0
            for batch in reader.batches(self.world.rank, self.world.size):
                yield batch
                read += len(batch.targets)
                progress(read)

        blank = torch.zeros(1, 3, self.image_size, self.image_size, dtype=torch.uint8)
        surplus: DecodedBatch[Target] = DecodedBatch(-1, blank, [], [0])
        features, targets = self._encode(self._image_features, own_batches(), surplus, "image")
        return features, targets, Skipped.joined(self.world.gather(reader.skipped))

    def texts(self, captions: Sequence[str]) -> Tensor:
        """Encode captions; equal ones are encoded once.

        Args:
            captions: At least one caption.

        Returns:
            Features (len(captions), D), fp32.

        Raises:
            UserError: If a feature is not finite.
        """
        place = {caption: number for number, caption in enumerate(dict.fromkeys(captions))}
        distinct = list(place)

        def own_batches() -> Iterator[DecodedBatch[str]]:
            first = self.world.rank * _TEXTS_AT_ONCE
            for start in range(first, len(distinct), self.world.size * _TEXTS_AT_ONCE):
                part = distinct[start : start + _TEXTS_AT_ONCE]
                yield DecodedBatch(start, self.tokenizer(part), part, list(range(start, start + len(part))))

        surplus = DecodedBatch(-1, self.tokenizer([""]), [""], [0])
        features, _ = self._encode(self._text_features, own_batches(), surplus, "text")
        order = torch.tensor([place[caption] for caption in captions], device=features.device)
        return features[order]

    def _image_features(self, batch: DecodedBatch[Target]) -> Tensor:
        images = batch.inputs.to(self.world.device)
        if self.masked_views is None:
            return self.model.encode_image(images)
        return self.masked_views.features(images, torch.tensor(batch.places, device=self.world.device))

    def _text_features(self, batch: DecodedBatch[str]) -> Tensor:
        return self.model.encode_text(batch.inputs.to(self.world.device))

    def _encode(
        self,
        encode: Callable[[DecodedBatch[Target]], Tensor],
        own: Iterator[DecodedBatch[Target]],
        surplus: DecodedBatch[Target],
        kind: str,
    ) -> tuple[Tensor, list[Target]]:
        """Return features and targets of the batches of all processes, in the order of the batches.

        Args:
            encode: Returns the features of a batch.
            own: The batches of this process.
            surplus: Batch to encode, without use, if other processes have one batch more than this one.
            kind: `image` or `text`, for messages.
        """
        parts: list[tuple[int, Tensor, list[Target]]] = []
        # Without compiled blocks: other shapes than those of training would compile them again, and might
        # change what training itself runs.
        with (
            torch.no_grad(),
            torch.autocast(self.world.device.type, enabled=False),
            torch.compiler.set_stance("force_eager"),
        ):
            for batch in self._rounds(own):
                features = encode(surplus if batch is None else batch).float()
                if batch is not None:
                    parts.append((batch.number, features.cpu(), batch.targets))

        all_parts = sorted(chain.from_iterable(self.world.gather(parts)), key=lambda part: part[0])
        if not all_parts:
            return torch.empty(0, 0), []
        features = torch.cat([features for _, features, _ in all_parts]).to(self.world.device)
        return _finite(features, kind), [target for _, _, targets in all_parts for target in targets]

    def _rounds(self, own: Iterator[DecodedBatch[Target]]) -> Iterator[DecodedBatch[Target] | None]:
        """Yield this process's batches, then None as long as another process still has one."""
        while True:
            batch: DecodedBatch[Target] | None = None
            problem: UserError | None = None
            try:
                batch = next(own, None)
            except UserError as error:
                problem = error

            # Agree before encoding: a process that raised by itself would leave the others waiting.
            others = self.world.gather((batch is not None, problem))
            for _, problem in others:
                if problem is not None:
                    raise problem
            if not any(has_batch for has_batch, _ in others):
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
