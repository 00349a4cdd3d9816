"""The scores of a finished run: the accuracy of its cells, and its accuracy over its training time."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from flipscale.distributed.world import World
from flipscale.errors import UserError
from flipscale.evaluation.evaluate import evaluate
from flipscale.evaluation.features import Encoder
from flipscale.evaluation.masked_views import MaskedEncoder
from flipscale.files import write_durably
from flipscale.interop.load_model import load_model
from flipscale.runs.evaluations import RecordedEvaluation, read_evaluations
from flipscale.runs.manifest import MANIFEST
from flipscale.runs.metrics import MetricsLine, read_metrics
from reproduction.cells import Cell, View
from reproduction.planned import PlannedRun


@dataclass(frozen=True)
class Point:
    """The accuracy at one point of a run."""

    samples: int
    seconds: float
    """Seconds of training until there, without evaluations, saves and start-ups."""
    accuracy: float
    """Zero-shot top-1, a share of 1."""


@dataclass(frozen=True)
class Scores:
    """The scores of one run. The field names are the keys of its file."""

    run: str
    seed: int
    seconds: dict[str, float]
    """Seconds of training until the end of each phase, by its name."""
    accuracies: dict[str, float]
    """Zero-shot top-1 as a share of 1, by `score_key`."""
    curve: tuple[Point, ...]
    of_what: str = ""
    """Hash of what was scored: the checkpoints, and the set that they were scored on."""

    def of(self, key: str) -> float | None:
        """Return the accuracy of a key; None if it is not scored."""
        return self.accuracies.get(key)


def score_key(run: PlannedRun, cell: Cell) -> str:
    """Return a key for the model and the view of a cell; cells with equal keys are scored once."""
    return f"{run.checkpoint_of(cell).name}, {_describe(cell.view)}"


def _describe(view: View) -> str:
    if not view.mask_ratio:
        return "whole images"
    return f"{view.mask_ratio:.0%} masked" + (", ensemble" if view.ensemble else "")


def score_run(run: PlannedRun, file: Path, world: World) -> Scores:
    """Score the cells of a run that are not in its file yet, and write the file.

    Raises:
        UserError: If the file is damaged.
    """
    known = read_scores(file)
    of_what = _of_what(run)
    accuracies = dict(known.accuracies) if known and known.of_what == of_what else {}
    for cell in run.cells:
        if (key := score_key(run, cell)) not in accuracies:
            accuracies[key] = _accuracy(run, cell, world)

    clock = training_clock(read_metrics(run.directory.path))
    scores = Scores(
        run=run.training.name,
        seed=run.seed,
        seconds={span.phase.name: seconds_at(clock, span.stop) for span in run.budget.spans},
        accuracies=accuracies,
        curve=_curve(read_evaluations(run.directory.path), clock),
        of_what=of_what,
    )
    if scores != known:
        write_durably(file, json.dumps(asdict(scores), indent=1) + "\n")

    return scores


def _of_what(run: PlannedRun) -> str:
    paths = {run.checkpoint_of(cell) / MANIFEST for cell in run.cells}
    manifests = [path.read_text() if path.is_file() else "" for path in sorted(paths)]
    return hashlib.sha256("\n".join([run.job.evaluation.model_dump_json(), *manifests]).encode()).hexdigest()


def read_scores(file: Path) -> Scores | None:
    """Return the scores of a file; None if it does not exist.

    Raises:
        UserError: If the file is damaged.
    """
    try:
        document = json.loads(file.read_text())
        curve = tuple(Point(**point) for point in document.pop("curve"))
        scores = Scores(**document, curve=curve)
        values = [*scores.accuracies.values(), *scores.seconds.values()]
        if not all(isinstance(value, float) for value in values):
            raise TypeError
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        raise UserError(f"{file} is damaged; delete it, and the run is scored again") from None

    return scores


def training_clock(metrics: Sequence[MetricsLine]) -> list[tuple[int, float]]:
    """Return the training time at every line of the metrics.

    Returns:
        Pairs of (samples, seconds of training until there), from (0, 0) on.
    """
    clock = [(0, 0.0)]
    for line in metrics:
        samples, seconds = clock[-1]
        more = (line.samples - samples) / line.column("images_per_second")
        clock.append((line.samples, seconds + more))

    return clock


def seconds_at(clock: Sequence[tuple[int, float]], samples: int) -> float:
    """Return the seconds of training until `samples`, interpolated between two lines."""
    places, seconds = zip(*clock, strict=True)
    return float(np.interp(samples, places, seconds))


def _curve(
    evaluations: Sequence[RecordedEvaluation], clock: Sequence[tuple[int, float]]
) -> tuple[Point, ...]:
    points: list[Point] = []
    for document in (evaluation.document for evaluation in evaluations):
        if document.get("zero_shot"):  # an evaluation that failed has none
            (result,) = document["zero_shot"].values()
            samples = document["samples_seen"]
            points.append(Point(samples, seconds_at(clock, samples), result["top1"]))

    return tuple(points)


def _accuracy(run: PlannedRun, cell: Cell, world: World) -> float:
    trained = load_model(run.checkpoint_of(cell), world)
    vision = trained.model.spec.vision
    view = cell.view
    views = None
    if view.mask_ratio:
        views = MaskedEncoder(trained.model.encode_image, view.mask_ratio, vision.patches, view.ensemble)

    encoder = Encoder(trained.model, trained.tokenizer, vision.image_size, world, views)
    (result,) = evaluate(encoder, run.job.evaluation, batch_size=256)["zero_shot"].values()
    assert result["top1"] is not None, "single labels have a top-1"
    return result["top1"]
