"""The options of `flipscale probe` and `flipscale finetune`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from flipscale.cli.options import (
    AsJson,
    BaseLr,
    BatchSize,
    Checkpoint,
    Epochs,
    MicroBatch,
    Results,
    Seed,
    TestSet,
    TrainSet,
)


@dataclass(frozen=True, kw_only=True)
class ProbeOptions:
    """The arguments and options of `flipscale probe`."""

    checkpoint: Checkpoint
    train: TrainSet
    test: TestSet
    method: Annotated[str, typer.Option(help="lbfgs, as CLIP, or lars, as the FLIP paper.")] = "lbfgs"
    features: Annotated[
        str, typer.Option(help="pooled: before the projection; embedding: what zero-shot compares.")
    ] = "pooled"
    c: Annotated[
        str | None,
        typer.Option(
            help="lbfgs: inverse strength of the L2 penalty, or `sweep`; default: 0.316.",
            show_default=False,
        ),
    ] = None
    epochs: Epochs = None
    batch_size: BatchSize = None
    base_lr: BaseLr = None
    micro_batch: MicroBatch = 64
    seed: Seed = 0
    out: Results = None
    as_json: AsJson = False


@dataclass(frozen=True, kw_only=True)
class FinetuneOptions:
    """The arguments and options of `flipscale finetune`."""

    checkpoint: Checkpoint
    train: TrainSet
    test: TestSet
    out: Annotated[
        Path,
        typer.Option(help="Directory for weights and results; the same command resumes.", show_default=False),
    ]
    epochs: Epochs = None
    batch_size: BatchSize = None
    base_lr: BaseLr = None
    drop_path: Annotated[
        float | None,
        typer.Option(help="Drop rate of the last block; default: the recipe's.", show_default=False),
    ] = None
    micro_batch: MicroBatch = 64
    seed: Seed = 0
    as_json: AsJson = False
