"""Outputs of a network for every image of a labelled set; frozen image features are the usual network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from flipscale.distributed.world import World
from flipscale.errors import UserError
from flipscale.evaluation.decoding import Decoding, Reader
from flipscale.evaluation.features import Encoder
from flipscale.evaluation.samples import RawSample, Skipped
from flipscale.models.flip import FLIP
from flipscale.transfer.labelled_images import LabelledImages

FeatureKind = Literal["pooled", "embedding"]
"""The feature before the projection, or the normalised one that zero-shot classification compares."""

FEATURE_KINDS: tuple[FeatureKind, ...] = ("pooled", "embedding")

ProgressCallback = Callable[[str, int, int], None]
"""Receives the name of the work in progress, how much of it is done, and how much there is."""


def no_progress(work: str, done: int, total: int) -> None:
    """Show no progress."""


class ImageFeatures(nn.Module):
    """A frozen image tower that returns features (B, D) in fp32.

    On a GPU, the tower computes in bf16.

    Attributes:
        width: Number of features D.
    """

    def __init__(self, model: FLIP, kind: FeatureKind) -> None:
        """Freeze `model`, in place, and use its features of this kind."""
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        self.kind = kind
        spec = model.spec
        self.width = spec.vision.width if kind == "pooled" else spec.embed_dim

    def forward(self, images: Tensor) -> Tensor:
        """Return the features (B, D), fp32, of uint8 images (B, 3, S, S)."""
        with half_precision(images.device):
            if self.kind == "embedding":
                return self.model.encode_image(images).float()
            return self.model.visual.pooled(self.model.visual.tokens(images)).float()


def half_precision(device: torch.device) -> torch.autocast:
    """Return the context in which towers compute: bf16 on a GPU, unchanged (fp32) on a CPU."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


@dataclass(frozen=True)
class SetOutputs:
    """The outputs of a network for the usable images of a set; every process has all of them."""

    names: tuple[str, ...]
    """Names of the images."""
    labels: Tensor
    """(N,) int64, places of the images' classes."""
    outputs: Tensor
    """(N, D) fp32, on the device."""
    skipped: Skipped


def encode_set(
    network: nn.Module,
    images: LabelledImages,
    decoding: Decoding,
    world: World,
    progress: ProgressCallback = no_progress,
) -> SetOutputs:
    """Return the outputs of a network for the centre crops of a set; all processes share the work.

    Args:
        network: Maps uint8 images (B, 3, S, S) to outputs (B, D).
        images: The set, whose classes must all have a usable image.
        decoding: Side of the crops in pixels, and the images per batch.
        world: The processes; all of them call this function together.
        progress: Receives the images read so far.

    Raises:
        UserError: If all images of a class are unusable, or an output is not finite.
    """

    def name_and_label(sample: RawSample) -> tuple[str, int]:
        return sample.name, images.label(sample)

    def report(own: int) -> None:
        progress(f"reading {images.data}", own * world.size, len(images.samples))

    reader = Reader(images.samples, name_and_label, decoding)
    encoder = Encoder(_ImageEncoder(network), _no_tokens, decoding.image_size, world)
    outputs, targets, skipped = encoder.images(reader, report)

    labels = torch.tensor([label for _, label in targets], dtype=torch.int64)
    absent = set(range(images.classes)) - {label for _, label in targets}
    if absent:
        raise UserError(
            f"{images.data} holds no usable image of {len(absent):,} of its {images.classes:,} classes, the "
            f"first being {images.names[min(absent)]}; fix what was skipped, such as {skipped.examples[0]}"
        )
    return SetOutputs(tuple(name for name, _ in targets), labels, outputs, skipped)


@dataclass(frozen=True)
class _ImageEncoder:
    """A network in the form that `Encoder` takes."""

    network: nn.Module

    def encode_image(self, images: Tensor) -> Tensor:
        return self.network(images)

    def encode_text(self, texts: Tensor) -> Tensor:
        raise NotImplementedError("a classifier reads no texts")


def _no_tokens(texts: Sequence[str]) -> Tensor:
    raise NotImplementedError("a classifier reads no texts")
