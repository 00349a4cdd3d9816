"""`flipscale export`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flipscale.errors import UserError
from flipscale.terminal import say

if TYPE_CHECKING:
    from flipscale.config import Job
    from flipscale.interop.loaded_model import LoadedModel


def export(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="RUN", help="Run or checkpoint directory.", show_default=False)
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Directory to write.", show_default=False)],
    verify: Annotated[
        bool, typer.Option("--verify", help="Only verify the export that is stored in OUT.")
    ] = False,
) -> None:
    """Write an OpenCLIP directory, and prove that stock OpenCLIP loads it and gives the same features."""
    from flipscale.cli.openclip_messages import how_to_load, verification
    from flipscale.distributed.placement import Placement
    from flipscale.distributed.world import join_world
    from flipscale.interop.load_model import load_model
    from flipscale.interop.openclip_export import check_place, export_openclip
    from flipscale.interop.verification import verify_export

    if not verify:
        check_place(out)
    trained = load_model(checkpoint, join_world(Placement()))
    job = trained.job
    if job is None:
        raise UserError(
            f"{checkpoint} is already an OpenCLIP directory; give a run or one of its checkpoints"
        )

    if not verify:
        export_openclip(
            trained.model,
            trained.model.spec,
            out,
            tokenizer=trained.tokenizer,
            provenance=_provenance(trained, job),
        )

    report = verify_export(out, trained.model, trained.tokenizer)
    done = "verified" if verify else "exported and verified"
    say(f"{out} {done} with {verification(report)}")
    say(how_to_load(out, report))


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
