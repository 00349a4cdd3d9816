"""The names of the models to compare: looked up before anything is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from flipscale.config import Evaluation
from flipscale.errors import UserError
from flipscale.interop.openclip_directory import LOCAL, finished_config
from flipscale.interop.stock import find_stock
from flipscale.runs.directory import RunDirectory, recorded_job
from flipscale.runs.manifest import MANIFEST, committed_checkpoints, read_progress

ModelKind = Literal["run", "checkpoint", "export", "OpenCLIP"]
"""What a name refers to; an export is an OpenCLIP directory that flipscale wrote."""


@dataclass(frozen=True)
class NamedModel:
    """A model that was looked up but not loaded."""

    source: str
    """The name as the user wrote it."""
    kind: ModelKind
    label: str
    """The name on the page; different for each model."""
    identity: str
    """A text that is equal for two names of the same model."""
    run: RunDirectory | None = None
    """The run that trained the model, if it is here."""


def resolve_models(sources: Sequence[str]) -> list[NamedModel]:
    """Look up all names, and give each model a label of its own.

    Args:
        sources: Paths of runs, checkpoints or OpenCLIP directories, or models of open_clip as NAME:WEIGHTS.

    Raises:
        UserError: If a name refers to nothing, if two names refer to the same model, or if a run has no
            checkpoint yet.
    """
    models = [_resolve(source) for source in sources]

    for place, model in enumerate(models):
        same = next((other for other in models[:place] if other.identity == model.identity), None)
        if same is not None:
            raise UserError(f"{same.source} and {model.source} are the same model; give each model once")

    # Two runs may have the same name: their paths differ.
    labels = [model.label for model in models]
    return [
        model if labels.count(model.label) == 1 else replace(model, label=model.source) for model in models
    ]


def sets_of(models: Sequence[NamedModel]) -> Evaluation:
    """Return the evaluation sets of the first run whose job names any.

    Raises:
        UserError: If no job names evaluation sets.
    """
    for model in models:
        if model.run is not None and model.run.job.is_file():
            sets = recorded_job(model.run).evaluation
            if sets.zero_shot or sets.retrieval:
                return sets

    raise UserError(
        "none of the models' jobs names evaluation sets; give --zero-shot, --retrieval or --sets with the "
        "data to compare on"
    )


def _resolve(source: str) -> NamedModel:
    path = Path(source)
    if source.startswith(LOCAL) or not path.exists():
        return _resolve_stock(source)

    resolved = path.resolve()
    if (path / "open_clip_config.json").is_file():
        if "flipscale" not in finished_config(path):
            return _resolve(f"{LOCAL}{source}")
        return NamedModel(source, "export", resolved.name, f"export {resolved}")

    if (path / "job.yaml").is_file():
        run = RunDirectory(resolved)
        checkpoints = committed_checkpoints(run)
        if not checkpoints:
            raise UserError(f"{path} has no checkpoint yet; train it first, or leave it out")
        return NamedModel(source, "run", recorded_job(run).name, str(checkpoints[-1].path), run)

    if (path / MANIFEST).is_file():
        run = RunDirectory.of_checkpoint(resolved)
        name = recorded_job(run).name if run.job.is_file() else run.path.name
        return NamedModel(source, "checkpoint", f"{name} at {_samples_seen(path):,}", str(resolved), run)

    raise UserError(
        f"{source} is neither a run, nor a checkpoint, nor an OpenCLIP directory; name one of these, or an "
        "OpenCLIP model as NAME:WEIGHTS"
    )


def _resolve_stock(source: str) -> NamedModel:
    """Look up a model that stock open_clip loads."""
    stock = find_stock(source)
    weights = str(stock.weights.resolve()) if stock.weights else stock.stock

    if stock.directory is not None:
        label = stock.directory.resolve().name
    else:
        label = f"{stock.stock} {stock.pretrained or Path(weights).stem}"

    return NamedModel(source, "OpenCLIP", label, f"OpenCLIP {stock.stock} {weights}")


def _samples_seen(checkpoint: Path) -> int:
    """Return the samples seen by a checkpoint's manifest, whatever the name of the directory."""
    try:
        return read_progress(checkpoint).samples_seen
    except (OSError, ValueError):
        raise UserError(f"{checkpoint / MANIFEST} is damaged; name another checkpoint of the run") from None
