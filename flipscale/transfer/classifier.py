"""What classifiers on top of the image tower have in common: what they see, and how they are scored."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from flipscale.distributed.world import World
from flipscale.errors import UserError
from flipscale.evaluation.datasets import Decoding, RawSample, Reader, Skipped
from flipscale.evaluation.features import Encoder
from flipscale.evaluation.metrics import Classified, intervals, measure, per_class
from flipscale.models.flip import FLIP
from flipscale.transfer.labelled_images import LabelledImages

FeatureKind = Literal["pooled", "embedding"]
FEATURES: tuple[FeatureKind, ...] = ("pooled", "embedding")

_METRICS = ("top1", "top5", "mean_per_class")

_NO_TEXTS: Any = None  # a tokenizer: none is needed where no text is read

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""


def quiet(what: str, done: int, total: int) -> None:
    """No progress is shown."""


class ImageFeatures(nn.Module):
    """Frozen image features (B, D), fp32: `pooled` before the projection, or the normalised `embedding`.

    On a GPU the tower computes in bf16.
    """

    def __init__(self, model: FLIP, kind: FeatureKind) -> None:
        super().__init__()
        self.model, self.kind = model.eval().requires_grad_(False), kind
        spec = model.spec
        self.width = spec.vision.width if kind == "pooled" else spec.embed_dim

    def forward(self, images: Tensor) -> Tensor:
        with half_precision(images.device):
            if self.kind == "embedding":
                return self.model.encode_image(images).float()
            return self.model.visual.pooled(self.model.visual.tokens(images)).float()


def half_precision(device: torch.device) -> torch.autocast:
    """bf16 on a GPU; as they are, in fp32, on a CPU."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


@dataclass(frozen=True)
class LabelledOutputs:
    """What a network gave for the usable images of a set, on every process."""

    names: tuple[str, ...]
    labels: Tensor  # (N,) int64
    outputs: Tensor  # (N, D) fp32, on the device
    skipped: Skipped


def encode_set(
    network: nn.Module,
    images: LabelledImages,
    decoding: Decoding,
    world: World,
    progress: Progress = quiet,
) -> LabelledOutputs:
    """Outputs of a network for the centre crops of a set; all processes share the work.

    Raises UserError for a class whose images are all unusable, and for outputs that are not finite.
    """

    def named(sample: RawSample) -> tuple[str, int]:
        return sample.name, images.label(sample)

    reader = Reader(images.samples, named, decoding)
    encoder = Encoder(_ImagesAlone(network), _NO_TEXTS, decoding.image_size, world)
    total = len(images.samples)
    outputs, targets, skipped = encoder.images(
        reader, lambda own: progress(f"reading {images.data}", own * world.size, total)
    )
    labels = torch.tensor([number for _, number in targets], dtype=torch.int64)
    gone = set(range(images.classes)) - set(labels.tolist())
    if gone:
        raise UserError(
            f"{images.data} holds no usable image of {len(gone):,} of its {images.classes:,} classes, the "
            f"first being {images.names[min(gone)]}; mend what was skipped, such as {skipped.examples[0]}"
        )
    return LabelledOutputs(tuple(name for name, _ in targets), labels, outputs, skipped)


@dataclass(frozen=True)
class _ImagesAlone:
    """A network as the encoder takes it."""

    network: nn.Module

    def encode_image(self, images: Tensor) -> Tensor:
        return self.network(images)

    def encode_text(self, texts: Tensor) -> Tensor:
        raise NotImplementedError("a classifier reads no texts")


def score(logits: Tensor, test: LabelledOutputs) -> dict[str, Any]:
    """Accuracies of logits (N, C) on the test images, as shares of 1, with 95 % bootstrap intervals."""
    classes = logits.shape[1]
    best = logits.cpu().topk(min(5, classes), dim=1).indices
    hit = best == test.labels[:, None]
    places = torch.where(hit.any(dim=1), hit.int().argmax(dim=1), 5)
    outcome = Classified(test.names, test.labels.numpy(), places.numpy().astype(np.int64), classes)
    return {
        **{name: measure(outcome, name) for name in _METRICS},
        "intervals": {name: list(ends) for name, ends in intervals(outcome, _METRICS).items()},
        "per_class": per_class(outcome),
        "samples": len(test.names),
        "classes": classes,
        "skipped": test.skipped.count,
        "skipped_examples": test.skipped.examples,
    }
