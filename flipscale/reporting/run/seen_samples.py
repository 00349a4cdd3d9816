"""Training samples as the model saw them: read, cropped and masked by the functions that training uses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from torch import Tensor

from flipscale.budget import Budget
from flipscale.config import Job
from flipscale.data.samples.of_job import open_reader
from flipscale.data.shards.index_document import load_located
from flipscale.data.shards.source import ShardSource
from flipscale.data.shards.storage import Patience, Storage
from flipscale.data.text.tokenizer import Tokenizer
from flipscale.models.masking import visible_patches
from flipscale.models.of_job import model_spec, phase_specs
from flipscale.runs.directory import RunDirectory
from flipscale.runs.identity import recorded_data

_PATIENCE = Patience(pauses=(0.2,), attempt=10.0)  # a report without images is better than a long wait


@dataclass(frozen=True)
class SeenSample:
    """A training sample with the mask under which the image encoder saw it."""

    position: int
    """The position in the run's order of samples."""
    phase: str
    mask_ratio: float
    caption: str
    pixels: npt.NDArray[np.uint8]
    """The view of the image, uint8 of shape (3, S, S)."""
    visible: tuple[int, ...] | None
    """The numbers of the patches that the encoder saw, or None if it saw all."""
    grid: int
    """The number of patches along one side."""


def read_seen_samples(run: RunDirectory, job: Job, samples_seen: int, each: int) -> list[SeenSample]:
    """Read samples of every phase that has begun, spread over the finished part of the phase.

    Args:
        run: The run.
        job: The job of the run.
        samples_seen: Samples that the run has seen; of a new run, its first samples are read.
        each: Number of samples per phase.

    Raises:
        UserError: If the data or its index cannot be read from here.
        StoppedEarly: If a shard does not become readable in time.
    """
    identity, kept = recorded_data(run, job.data.tokenizer)
    tokenizer = _RecordingTokenizer(kept)
    specs = phase_specs(model_spec(job, tokenizer), job)
    reader = open_reader(
        job.data,
        job.seed,
        _open_source(run, job),
        identity.sources,
        tokenizer,
        specs[0].vision.image_size,
        identity.turns,
    )

    samples: list[SeenSample] = []
    for span in Budget.of(job.phases, job.data.lanes).spans:
        stop = min(span.stop, max(samples_seen, each)) if span.index == 0 else min(span.stop, samples_seen)
        if stop <= span.start:
            break

        positions = np.linspace(span.start, stop - 1, each).astype(np.int64)
        vision = specs[span.index].vision
        chunk = reader.read(positions, vision.image_size)
        keep = visible_patches(chunk.positions, vision.patches, span.phase.mask_ratio, job.seed)

        for number, position in enumerate(positions.tolist()):
            samples.append(
                SeenSample(
                    position=position,
                    phase=span.phase.name,
                    mask_ratio=span.phase.mask_ratio,
                    caption=tokenizer.captions[number],
                    pixels=chunk.images[number].numpy(),
                    visible=None if keep is None else tuple(int(patch) for patch in keep[number]),
                    grid=vision.grid,
                )
            )
    return samples


def _open_source(run: RunDirectory, job: Job) -> ShardSource:
    directory = Path(job.data.index) if job.data.index is not None else run.path / "index"
    index = load_located(directory, job.data.train, job.data.images)

    # A report only reads: it runs no commands of `pipe:` shards, whatever the job allows.
    return ShardSource(index, Storage(patience=_PATIENCE))


class _RecordingTokenizer:
    """A tokenizer that remembers the captions of its last call, since the reader keeps only their ids."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.context_length = tokenizer.context_length
        self.vocab_size = tokenizer.vocab_size
        self.padding_id = tokenizer.padding_id
        self.fingerprint = tokenizer.fingerprint
        self.captions: list[str] = []

    def __call__(self, captions: Sequence[str]) -> Tensor:
        self.captions = list(captions)
        return self._tokenizer(captions)

    def save(self, directory: Path) -> None:
        self._tokenizer.save(directory)
