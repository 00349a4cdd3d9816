"""Trained models in Python: load, score, export."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flipscale.config import Evaluation
    from flipscale.evaluation.document import EvaluationDocument
    from flipscale.interop.loaded_model import LoadedModel
    from flipscale.interop.verification import VerifyReport


def load(path: str | PathLike[str]) -> LoadedModel:
    """Load a trained model, with the tokenizer that it was trained with.

    Args:
        path: A run (its newest whole checkpoint is taken), a checkpoint, or an OpenCLIP directory.

    Returns:
        `model` in fp32, on the GPU if there is one; `tokenizer`; and for a run `job` and `samples_seen`.
        `model.encode_image(images)` takes bytes, (n, 3, side, side), or floats that are normalised.
        `model.encode_text(tokenizer(captions))` takes token ids. Both return normalised features, (n, width).

    Raises:
        UserError: If there is no model at `path`, or its checkpoint is damaged.
    """
    from flipscale.distributed.placement import Placement
    from flipscale.distributed.world import join_world
    from flipscale.interop.load_model import load_model

    return load_model(Path(path), join_world(Placement()))


def evaluate(
    model: LoadedModel, sets: Evaluation, *, mask_ratio: float | None = None, batch_size: int = 64
) -> EvaluationDocument:
    """Score a model on zero-shot and retrieval sets.

    Args:
        model: The model, from `load`.
        sets: The sets, such as `model.job.evaluation`.
        mask_ratio: The share of each image's patches to hide; None for whole images.
        batch_size: Images that are encoded at once.

    Returns:
        The document of `flipscale eval --json`; shares are of 1.

    Raises:
        UserError: If a set cannot be used.
    """
    from flipscale.cli.evaluation_progress import make_encoder
    from flipscale.distributed.placement import Placement
    from flipscale.distributed.world import join_world
    from flipscale.evaluation.evaluate import check_sets
    from flipscale.evaluation.evaluate import evaluate as score

    check_sets(sets)
    encoder = make_encoder(model, join_world(Placement()), mask_ratio, ensemble=False)
    return score(encoder, sets, samples_seen=model.samples_seen, batch_size=batch_size)


def export(checkpoint: str | PathLike[str], out: str | PathLike[str]) -> VerifyReport:
    """Write an OpenCLIP directory, and prove that stock OpenCLIP loads it and gives the same features.

    Args:
        checkpoint: A run, or one of its checkpoints.
        out: A new directory, or an earlier export, which is replaced.

    Returns:
        The largest differences between OpenCLIP and flipscale.

    Raises:
        UserError: If `checkpoint` is not of a run, or `out` holds something else.
        RunError: If OpenCLIP computes something else.
    """
    from flipscale.interop.run_export import export_run

    return export_run(Path(checkpoint), Path(out))
