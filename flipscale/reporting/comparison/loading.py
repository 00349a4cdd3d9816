"""Load the models of a comparison for evaluation."""

from __future__ import annotations

from pathlib import Path

from flipscale.distributed.world import World
from flipscale.evaluation.features import Encoder
from flipscale.interop.load_model import load_model
from flipscale.interop.stock import load_stock
from flipscale.models.of_job import model_spec, phase_specs
from flipscale.planning.flops import parameter_count
from flipscale.reporting.comparison.export_provenance import read_provenance
from flipscale.reporting.comparison.model_names import NamedModel
from flipscale.reporting.comparison.models import ComparedModel
from flipscale.reporting.comparison.reference import published_models
from flipscale.reporting.comparison.training_cost import flops_at, gpu_hours_at


def load_compared_model(named: NamedModel, world: World) -> tuple[ComparedModel, Encoder]:
    """Load a model for evaluation.

    Args:
        named: The model, as `resolve_models` found it.
        world: The processes, all of which call this function.

    Returns:
        What is known about the model, and the model itself.

    Raises:
        UserError: If the model cannot be loaded.
    """
    if named.kind == "OpenCLIP":
        return _load_stock(named, world)
    return _load_trained(named, world)


def _load_trained(named: NamedModel, world: World) -> tuple[ComparedModel, Encoder]:
    """Load a run, a checkpoint or an export of flipscale."""
    trained = load_model(Path(named.source), world)
    spec = trained.model.spec
    job = trained.job

    if job is not None:
        samples = trained.samples_seen
        phases = job.phases
        shapes = phase_specs(model_spec(job, trained.tokenizer), job)
        weights = job.model.weights
    else:
        provenance = read_provenance(Path(named.source))
        samples = provenance.samples_seen
        phases = provenance.phases
        shapes = (spec,) * len(phases)
        weights = provenance.weights

    remark = f"it started from {weights}; samples, FLOPs and GPU-hours are of its own training only"
    model = ComparedModel(
        label=named.label,
        source=named.source,
        kind=named.kind,
        architecture=spec.name,
        parameters=parameter_count(spec).total,
        image_size=spec.vision.image_size,
        samples_seen=samples,
        batch=phases[0].batch_size if phases else None,
        training_flops=flops_at(phases, shapes, samples) if phases and samples is not None else None,
        gpu_hours=gpu_hours_at(named.run, samples) if named.run is not None and samples else None,
        remark=remark if weights else "",
        from_weights=weights is not None,
        job=job,
        run=named.run,
        spec=spec,
        shapes=shapes,
    )
    return model, Encoder(trained.model, trained.tokenizer, spec.vision.image_size, world)


def _load_stock(named: NamedModel, world: World) -> tuple[ComparedModel, Encoder]:
    """Load a model with stock open_clip's code; its training is known if it is a published model."""
    stock = load_stock(named.source, world.device)
    source = stock.source
    known = next(
        (
            model
            for model in published_models()
            if (model.model, model.weights) == (source.stock, source.pretrained)
        ),
        None,
    )

    model = ComparedModel(
        label=named.label,
        source=named.source,
        kind=named.kind,
        architecture=source.stock if source.directory is None else "OpenCLIP",
        parameters=stock.model.parameters,
        image_size=stock.image_size,
        samples_seen=known.samples_seen if known else None,
        batch=known.batch if known else None,
        training_flops=known.training_flops if known else None,
        gpu_hours=known.gpu_hours if known else None,
        remark=f"its own preprocessing differs: {stock.resizing}" if stock.resizing else "",
    )
    return model, Encoder(stock.model, stock.tokenizer, stock.image_size, world)
