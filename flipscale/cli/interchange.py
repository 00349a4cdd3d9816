"""`flipscale export` and `flipscale import`."""

from __future__ import annotations

from pathlib import Path

from flipscale.distributed.placement import Placement
from flipscale.distributed.world import join_world
from flipscale.errors import UserError
from flipscale.interop.import_source import find_import_source
from flipscale.interop.load_model import build_with_tokenizer, load_model
from flipscale.interop.openclip import VerifyReport, export_openclip, verify_against, verify_export
from flipscale.interop.weights import WEIGHTS
from flipscale.runs.checkpoint import sha256


def export_run(checkpoint: Path, out: Path, *, only_verify: bool) -> None:
    """Export a run's newest checkpoint (or the one named) to OUT and verify it; or verify what lies there."""
    trained = load_model(checkpoint, join_world(Placement()))
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
            **({"weights": job.model.weights} if job.model.weights else {}),
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
    print(f"{out} {done} with {_figures(report)}")
    _say_how_to_load(out)


def import_model(
    source: str, out: Path, *, weights: Path | None, pretrained: str | None, random: bool
) -> None:
    """Write OpenCLIP's model SOURCE to OUT, and verify it against stock OpenCLIP loading SOURCE and OUT."""
    published = find_import_source(source, weights, pretrained, random)
    if published.directory is not None and published.directory.resolve() == out.resolve():
        raise UserError(f"{out} is the source itself; name another directory to import into")
    spec, state = published.read()
    trained = build_with_tokenizer(spec, state, published.directory)
    provenance = {"imported from": f"{source}, {pretrained}" if pretrained else source}
    if published.weights is None:
        provenance["weights"] = "initial (seed 0)"
    else:
        provenance |= {"weights": published.weights.name, "SHA-256 of the weights": sha256(published.weights)}
    export_openclip(state, spec, out, tokenizer=trained.tokenizer, provenance=provenance)
    if published.directory is None or published.weights is not None:
        # OpenCLIP makes random weights of its own: it compares its builtin model with those written.
        given = pretrained or str(published.weights or out / WEIGHTS)
        theirs = verify_against(
            published.stock,
            trained.model,
            trained.tokenizer,
            pretrained=given if published.directory is None else None,
            clip_scale="flipscale" not in published.config,  # an export holds it clipped
        )
        print(f"{source} computes here as in {_figures(theirs)}")
    print(
        f"{out} imported and verified with {_figures(verify_export(out, trained.model, trained.tokenizer))}"
    )
    _say_how_to_load(out)


def _figures(report: VerifyReport) -> str:
    return (
        f"stock open_clip {report.open_clip_version}: largest difference {report.image_difference:.1e} "
        f"(image) and {report.text_difference:.1e} (text), token ids of {report.captions} captions equal"
    )


def _say_how_to_load(out: Path) -> None:
    print(f'load it with open_clip.create_model_and_transforms("local-dir:{out.resolve()}")')
