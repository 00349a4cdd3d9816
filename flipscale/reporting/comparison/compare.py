"""Evaluate several models on the same data with the same code: scores, paired differences and examples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

from flipscale.config import Evaluation
from flipscale.distributed.world import World
from flipscale.errors import UserError
from flipscale.evaluation.bootstrap import difference, interval
from flipscale.evaluation.class_sets import rooted
from flipscale.evaluation.evaluate import EvaluationOutcomes, check_sets, evaluate_outcomes
from flipscale.evaluation.metrics import measure
from flipscale.evaluation.nearest_captions import ExampleImage, examples, nearest_captions
from flipscale.reporting.comparison.loading import load_compared_model
from flipscale.reporting.comparison.model_names import NamedModel
from flipscale.reporting.comparison.results import (
    Comparison,
    Estimate,
    Metric,
    PairedDifference,
    Result,
    outcome_of,
)
from flipscale.runs.evaluations import scan_evaluations

EXAMPLES = 6
PICTURE_SIDE = 224  # pixels


@dataclass(frozen=True)
class _Questions:
    """What each model is asked."""

    sets: Evaluation
    metrics: list[Metric]
    shards: str | None
    """The retrieval set of the examples, or None if there are none."""
    batch_size: int


def compare(
    models: Sequence[NamedModel],
    sets: Evaluation,
    batch_size: int,
    world: World,
    report: Callable[[str], None],
) -> Comparison:
    """Evaluate the models one after another.

    Args:
        models: The models to compare.
        sets: The evaluation sets.
        batch_size: Number of images or texts that each process encodes at a time.
        world: The processes, all of which call this function.
        report: A function that is called with a short description of each step.

    Raises:
        UserError: If a set or a model cannot be used.
    """
    sets = rooted(sets)
    check_sets(sets)

    metrics = [Metric(name, chosen.metric) for name, chosen in sets.zero_shot.items()]
    directions = ("image_to_text_R@1", "text_to_image_R@1")
    metrics += [Metric(name, direction) for name in sets.retrieval for direction in directions]

    shards = next(iter(sets.retrieval.values()), None)
    shown = _examples(shards)
    questions = _Questions(sets, metrics, None if isinstance(shown, str) else shards, batch_size)

    results = [_result(model, questions, world, report) for model in models]
    report("comparing")
    return Comparison(sets, metrics, results, _differences(results, metrics), shown)


def _result(named: NamedModel, questions: _Questions, world: World, report: Callable[[str], None]) -> Result:
    """Load and evaluate one model."""
    report(f"loading {named.label}")
    model, encoder = load_compared_model(named, world)

    evaluated = evaluate_outcomes(
        encoder,
        questions.sets,
        samples_seen=model.samples_seen,
        batch_size=questions.batch_size,
        progress=lambda name, images: report(
            f"evaluating {named.label} on {name}: {images * world.size} images"
        ),
    )
    nearest = nearest_captions(encoder, questions.shards, EXAMPLES) if questions.shards is not None else []

    scores = {metric: _estimate(evaluated, metric) for metric in questions.metrics}
    history = [] if model.run is None else list(scan_evaluations(model.run.path))
    succeeded = [evaluation for evaluation in history if evaluation.error is None]

    return Result(model, evaluated, scores, succeeded, nearest)


def _estimate(evaluated: EvaluationOutcomes, metric: Metric) -> Estimate:
    outcome = outcome_of(evaluated, metric)
    low, high = interval(outcome, metric.metric)
    return Estimate(measure(outcome, metric.metric), low, high)


def _differences(results: Sequence[Result], metrics: Sequence[Metric]) -> list[PairedDifference]:
    """Return the differences of every two models, the later one against the earlier one."""
    differences: list[PairedDifference] = []
    for theirs, ours in combinations(results, 2):
        for metric in metrics:
            paired = difference(ours.outcome(metric), theirs.outcome(metric), metric.metric)
            differences.append(
                PairedDifference(
                    metric, ours.model.label, theirs.model.label, paired.value, paired.low, paired.high
                )
            )
    return differences


def _examples(shards: str | None) -> list[ExampleImage] | str:
    """Return the first images of a retrieval set, or the reason why there are none."""
    if shards is None:
        return "no retrieval set was given: add --retrieval"
    try:
        return examples(shards, EXAMPLES, PICTURE_SIDE)
    except UserError as error:
        return str(error)
