"""The toy scale: how a run differs from `jobs/toy.yaml`, and the data set that all runs share."""

from __future__ import annotations

import shutil
from pathlib import Path

from flipscale.cli.data.vocab import vocab
from flipscale.data.synthetic.dataset import SyntheticOptions, synthesize
from reproduction.cells import TrainingRun
from reproduction.machine import precision

JOB = "toy.yaml"
SAMPLES = 32_000
BATCHES = {"16k": 32, "32k": 64, "64k": 128}
"""The batch of the toy for each batch of the paper."""
SHARDS = 16
SHARD = 1_000  # samples
IMAGE_SIZE = 64  # pixels
TEST_IMAGES = 2_000
VOCABULARY = 1_000  # word pieces

PROTOCOL = (
    f"Rendered scenes of coloured shapes (`flipscale data synth`, {IMAGE_SIZE} px): {SHARDS * SHARD:,} "
    f"training pairs. Accuracy: zero-shot top-1 over {TEST_IMAGES:,} unseen images of single objects, 81 "
    "classes (colour and shape) of which 72 occur, 7 prompts, chance 1.2 %. Model: `vit_tiny_p8`, an image "
    "tower of 4 layers, width 128, 64 patches, and a text tower of 2 layers, 32 tokens. AdamW as in the "
    "paper, lr = base_lr x batch / 256 with base_lr 4e-3, warm-up over a tenth of the samples, cosine to 0. "
    "The batches 16k, 32k and 64k of the paper are 32, 64 and 128 here."
)


def masked_run(
    name: str,
    mask_ratio: float,
    batch: str,
    *overrides: str,
    samples: int = SAMPLES,
    tuned: bool = False,
    text: tuple[float, str] | None = None,
    shards: int = SHARDS,
) -> TrainingRun:
    """Return a run of `jobs/toy.yaml` with a mask.

    Args:
        name: Name of the run.
        mask_ratio: Share of the patches that is hidden.
        batch: The paper's batch, a key of `BATCHES`.
        overrides: More overrides of the job.
        samples: Samples of the masked phase.
        tuned: Whether unmasked tuning follows: a tenth of the samples at a tenth of the learning rate.
        text: Share of the text tokens that is masked, and how.
        shards: Shards of the training set that the run reads.
    """
    size = BATCHES[batch]
    phase = f"samples: {samples}, mask_ratio: {mask_ratio}, batch_size: {size}, base_lr: 4.0e-3"
    if text is not None:
        phase += f", text_mask_ratio: {text[0]}, text_mask: {text[1]}"

    phases = [f"{{name: masked, {phase}, warmup: {samples // 10}}}"]
    if tuned:
        phases.append(
            f"{{name: unmasked, samples: {samples // 10}, mask_ratio: 0.0, batch_size: {BATCHES['32k']}, "
            f"base_lr: 4.0e-4, warmup: {samples // 100 // 32 * 32}, fresh_optimizer: true}}"
        )

    return TrainingRun(name, JOB, (f"phases=[{', '.join(phases)}]", *overrides), shards)


def local_overrides(data: Path, shards: int) -> tuple[str, ...]:
    """Return the overrides for this machine: the paths of the data, and the precision in which it is fast."""
    seen = "evaluation.zero_shot.seen_pairs"
    return (
        f"sharding.precision={precision()}",
        f"data.train={data}/train/{{00000..{shards - 1:05d}}}.tar",
        f"data.tokenizer.vocab={data}/vocab.txt",
        f"{seen}.data={data}/test/{{00000..00001}}.tar",
        f"{seen}.classnames={data}/classnames.txt",
        f"{seen}.templates={data}/templates.txt",
    )


def make_data(data: Path, *, workers: int) -> None:
    """Make the data set and its vocabulary, if they are not complete."""
    if not (data / "README.md").exists():  # written last, so that it marks a complete set
        shutil.rmtree(data, ignore_errors=True)
        contents = SyntheticOptions(
            image_size=IMAGE_SIZE, train=SHARDS * SHARD, val=0, test=TEST_IMAGES, shard_size=SHARD
        )
        synthesize(data, contents, workers=workers)

    if not (data / "vocab.txt").exists():
        vocab(f"{data}/train/{{00000..{SHARDS - 1:05d}}}.tar", data / "vocab.txt", VOCABULARY)
