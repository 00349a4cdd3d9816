"""The export of a run or of one of its checkpoints, with the proof that stock OpenCLIP loads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flipscale.config import Job
from flipscale.distributed.placement import Placement
from flipscale.distributed.world import join_world
from flipscale.errors import UserError
from flipscale.interop.load_model import load_model
from flipscale.interop.loaded_model import LoadedModel
from flipscale.interop.openclip_export import check_place, export_openclip
from flipscale.interop.verification import VerifyReport, verify_export


def export_run(checkpoint: Path, out: Path, *, only_verify: bool = False) -> VerifyReport:
    """Write the model of a run as an OpenCLIP directory, and compare it with what stock OpenCLIP loads.

    Args:
        checkpoint: The run, or one of its checkpoints.
        out: A new or empty directory, or an earlier export, which is replaced.
        only_verify: Whether to write nothing, and to compare the export that is there.

    Returns:
        The largest differences of features, logit scale and token ids.

    Raises:
        UserError: If `checkpoint` is not of a run, or `out` holds something else.
        ExportMismatch: If OpenCLIP computes something else.
    """
    # Before the model is read: a directory that is in use.
    if not only_verify:
        check_place(out)
    trained = load_model(checkpoint, join_world(Placement()))
    job = trained.job
    if job is None:
        raise UserError(
            f"{checkpoint} is already an OpenCLIP directory; give a run or one of its checkpoints"
        )

    if not only_verify:
        export_openclip(
            trained.model,
            trained.model.spec,
            out,
            tokenizer=trained.tokenizer,
            provenance=_provenance(trained, job),
        )
    return verify_export(out, trained.model, trained.tokenizer)


def _provenance(trained: LoadedModel, job: Job) -> dict[str, Any]:
    """Return what the model card says about the training."""
    provenance = {
        "job": job.name,
        "samples_seen": trained.samples_seen,
        "order_digest": trained.digest.hex() if trained.digest is not None else None,
        "data": trained.data,
        "phases": [phase.model_dump() for phase in job.phases],
    }
    if job.model.weights:
        provenance["weights"] = job.model.weights

    return provenance | {
        "seed": job.seed,
        "loss": job.loss.kind,
        "optimizer": job.optimizer.model_dump(),
        "precision": job.sharding.precision,
    }
