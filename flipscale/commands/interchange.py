"""`flipscale export`."""

from __future__ import annotations

from pathlib import Path

from flipscale.errors import UserError
from flipscale.interop.openclip import export_openclip, verify_export
from flipscale.placement import Placement
from flipscale.trained import load_trained
from flipscale.world import join_world


def export_run(checkpoint: Path, out: Path, *, only_verify: bool) -> None:
    """Export a run's newest checkpoint (or the one named) to OUT and verify it; or verify what lies there."""
    trained = load_trained(checkpoint, join_world(Placement()))
    job = trained.job
    if job is None:
        raise UserError(
            f"{checkpoint} is an OpenCLIP directory already; name a run or one of its checkpoints"
        )
    if not only_verify:
        provenance = {
            "job": job.name,
            "samples_seen": trained.samples_seen,
            "order_digest": trained.digest,
            "data": trained.data,
            "phases": [phase.model_dump() for phase in job.phases],
            "seed": job.seed,
            "loss": job.loss.kind,
            "optimizer": job.optimizer.model_dump(),
            "precision": job.sharding.precision,
        }
        export_openclip(
            trained.model, trained.model.spec, out, tokenizer=trained.tokenizer, provenance=provenance
        )
    report = verify_export(out, trained.model, trained.tokenizer)
    done = "verified" if only_verify else "exported and verified"
    print(
        f"{out} {done} with stock open_clip {report.open_clip_version}: largest difference "
        f"{report.image_difference:.1e} (image) and {report.text_difference:.1e} (text), "
        f"token ids of {report.captions} captions equal"
    )
    print(f'load it with open_clip.create_model_and_transforms("local-dir:{out.resolve()}")')
