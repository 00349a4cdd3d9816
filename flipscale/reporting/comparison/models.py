"""The models of a comparison: what a name means, what its training took, and the model itself."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from flipscale.config import Job, Phase
from flipscale.distributed.world import World
from flipscale.errors import UserError
from flipscale.evaluation.features import Encoder
from flipscale.interop.load_model import load_model
from flipscale.interop.openclip_directory import finished_config
from flipscale.interop.stock import LOCAL, find_stock, load_stock
from flipscale.jsonl import number
from flipscale.models.of_job import model_spec, phase_specs
from flipscale.models.presets import ModelSpec
from flipscale.planning.flops import parameter_count, training_flops
from flipscale.reporting.comparison.reference import PublishedModel, published_models
from flipscale.runs.checkpoint import MANIFEST, directory_name
from flipscale.runs.directory import RunDirectory, committed_samples, recorded_job
from flipscale.runs.ledger import read_ledger


@dataclass(frozen=True)
class Entrant:
    """A name as it was given, looked up but not loaded."""

    source: str
    kind: str
    """run, checkpoint, export (an OpenCLIP directory that flipscale wrote), or OpenCLIP."""
    label: str
    identity: str
    """Equal for two names of one model."""
    run: RunDirectory | None = None


@dataclass(frozen=True)
class Contestant:
    """A model with what is known of its training; None where it is not known."""

    label: str
    source: str
    kind: str
    architecture: str
    parameters: int
    image_size: int
    samples_seen: int | None
    batch: int | None
    training_flops: float | None
    gpu_hours: float | None
    remark: str = ""
    from_weights: bool = False
    """Others trained it before: what its own training took says little about its scores."""
    job: Job | None = None
    run: RunDirectory | None = None
    spec: ModelSpec | None = None
    shapes: tuple[ModelSpec, ...] = ()
    """Of the job's phases."""
    published: PublishedModel | None = None


def enter(sources: Sequence[str]) -> list[Entrant]:
    """Look up all names before anything is loaded, and give each a label of its own.

    Raises UserError for a name that is nothing, and for two names of one model.
    """
    entrants = [_entrant(source) for source in sources]
    for place, entrant in enumerate(entrants):
        same = next((e for e in entrants[:place] if e.identity == entrant.identity), None)
        if same is not None:
            raise UserError(f"{same.source} and {entrant.source} are the same model; give each model once")
    labels = [entrant.label for entrant in entrants]
    return [
        entrant if labels.count(entrant.label) == 1 else _relabelled(entrant, entrant.source)
        for entrant in entrants
    ]


def load(entrant: Entrant, world: World) -> tuple[Contestant, Encoder]:
    """Load a model for evaluation. Raises UserError where it cannot be."""
    if entrant.kind == "OpenCLIP":
        return _load_stock(entrant, world)
    trained = load_model(Path(entrant.source), world)
    spec, job, samples = trained.model.spec, trained.job, trained.samples_seen
    if job is not None:
        phases, shapes = job.phases, phase_specs(model_spec(job, trained.tokenizer), job)
        start = job.model.weights
    else:
        samples, phases, start = _provenance(Path(entrant.source))
        shapes = (spec,) * len(phases)
    remark = f"it started from {start}; samples, FLOPs and GPU-hours are of its own training alone"
    contestant = Contestant(
        label=entrant.label,
        source=entrant.source,
        kind=entrant.kind,
        architecture=spec.name,
        parameters=parameter_count(spec).total,
        image_size=spec.vision.image_size,
        samples_seen=samples,
        batch=phases[0].batch_size if phases else None,
        training_flops=flops_at(phases, shapes, samples) if phases and samples is not None else None,
        gpu_hours=gpu_hours_at(entrant.run, samples) if entrant.run is not None and samples else None,
        remark=remark if start else "",
        from_weights=start is not None,
        job=job,
        run=entrant.run,
        spec=spec,
        shapes=shapes,
    )
    return contestant, Encoder(trained.model, trained.tokenizer, spec.vision.image_size, world)


def flops_at(phases: Sequence[Phase], shapes: Sequence[ModelSpec], samples: int) -> float:
    """FLOPs of the first `samples` samples of the phases, forward and backward; each has its shape."""
    total, left = 0, samples
    for phase, spec in zip(phases, shapes, strict=True):
        seen = min(left, phase.samples)
        total += training_flops(spec, seen, phase.mask_ratio, phase.text_mask_ratio)
        left = max(0, left - phase.samples)
    return float(total)


def gpu_hours_at(run: RunDirectory, samples: int) -> float | None:
    """Processes x hours that the run took to `samples`; None where no segment of its ledger comes so far.

    Within a segment the time is divided by samples. What was trained twice counts twice. The segment under
    way is not in the ledger yet, nor is one that was killed before the run has started again.
    """
    lines = read_ledger(run.path)
    spans = [(number(line, "samples_from"), number(line, "samples_to")) for line in lines]
    reached = [place for place, (start, stop) in enumerate(spans) if start < samples <= stop]
    if not reached:
        return None
    last = reached[-1]  # after damage, a run may pass here again
    start, stop = spans[last]
    seconds = [number(line, "gpu_seconds") for line in lines]
    return (sum(seconds[:last]) + seconds[last] * (samples - start) / (stop - start)) / 3600


def _entrant(source: str) -> Entrant:
    path = Path(source)
    if source.startswith(LOCAL) or not path.exists():
        found = find_stock(source)
        weights = str(found.weights.resolve()) if found.weights else found.stock
        if found.directory is not None:
            label = found.directory.resolve().name
        else:
            label = f"{found.stock} {found.pretrained or Path(weights).stem}"
        return Entrant(source, "OpenCLIP", label, f"OpenCLIP {found.stock} {weights}")
    resolved = path.resolve()
    if (path / "open_clip_config.json").is_file():
        if "flipscale" not in finished_config(path):
            return _entrant(f"{LOCAL}{source}")
        return Entrant(source, "export", resolved.name, f"export {resolved}")
    if (path / "job.yaml").is_file():
        run = RunDirectory(resolved)
        newest = run.checkpoints / directory_name(committed_samples(run))
        if not (newest / MANIFEST).is_file():
            raise UserError(f"{path} has no checkpoint yet; train it first, or leave it out")
        return Entrant(source, "run", recorded_job(run).name, str(newest), run)
    if (path / MANIFEST).is_file():
        run = RunDirectory(resolved.parents[1])
        name = recorded_job(run).name if run.job.is_file() else run.path.name
        return Entrant(source, "checkpoint", f"{name} at {_samples_of(path):,}", str(resolved), run)
    raise UserError(
        f"{source} is neither a run, nor a checkpoint, nor an OpenCLIP directory; name one of these, or an "
        "OpenCLIP model as NAME:WEIGHTS"
    )


def _samples_of(checkpoint: Path) -> int:
    """Samples seen by its manifest, whatever the directory's name."""
    try:
        return int(json.loads((checkpoint / MANIFEST).read_text())["progress"]["samples_seen"])
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{checkpoint / MANIFEST} is damaged; name another checkpoint of the run") from None


def _relabelled(entrant: Entrant, label: str) -> Entrant:
    return Entrant(entrant.source, entrant.kind, label, entrant.identity, entrant.run)


def _load_stock(entrant: Entrant, world: World) -> tuple[Contestant, Encoder]:
    stock = load_stock(entrant.source, world.device)
    found = stock.source
    known = next(
        (m for m in published_models() if (m.model, m.weights) == (found.stock, found.pretrained)), None
    )
    remark = f"its own preprocessing differs: {stock.resizing}" if stock.resizing else ""
    contestant = Contestant(
        label=entrant.label,
        source=entrant.source,
        kind=entrant.kind,
        architecture=found.stock if found.directory is None else "OpenCLIP",
        parameters=stock.model.parameters,
        image_size=stock.image_size,
        samples_seen=known.samples_seen if known else None,
        batch=known.batch if known else None,
        training_flops=known.training_flops if known else None,
        gpu_hours=known.gpu_hours if known else None,
        remark=remark,
        published=known,
    )
    return contestant, Encoder(stock.model, stock.tokenizer, stock.image_size, world)


def _provenance(directory: Path) -> tuple[int | None, tuple[Phase, ...], str | None]:
    """Samples seen, phases and the weights that it started from, as an export tells; no phases where their
    shapes are not the export's."""
    stamp = finished_config(directory).get("flipscale")
    told = stamp.get("provenance") if isinstance(stamp, dict) else None
    if not isinstance(told, dict):
        return None, (), None
    samples = told.get("samples_seen")
    try:
        phases = tuple(Phase.model_validate(phase) for phase in told.get("phases", ()))
    except (TypeError, ValidationError):  # of another version
        phases = ()
    if any(phase.image_size is not None or phase.patch_size is not None for phase in phases):
        phases = ()
    start = told.get("weights") if isinstance(samples, int) else None
    return samples if isinstance(samples, int) else None, phases, str(start) if start else None
