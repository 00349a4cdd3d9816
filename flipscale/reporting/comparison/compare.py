"""Several models on the same data by the same code: scores, paired differences, and examples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from flipscale import jsonl
from flipscale.config import Evaluation
from flipscale.distributed.world import World
from flipscale.errors import UserError
from flipscale.evaluation.bootstrap import difference, interval
from flipscale.evaluation.class_sets import rooted
from flipscale.evaluation.evaluate import EvaluationOutcomes, check_sets, evaluate_outcomes
from flipscale.evaluation.metrics import measure
from flipscale.evaluation.nearest_captions import ExampleImage, NearestCaptions, examples, nearest_captions
from flipscale.evaluation.outcomes import Classified, Outcome
from flipscale.evaluation.scores import NAMES
from flipscale.reporting.comparison.models import Contestant, Entrant, load
from flipscale.runs.directory import RunDirectory, recorded_job

EXAMPLES = 6
PICTURE_SIDE = 224  # pixels


@dataclass(frozen=True)
class Figure:
    """A number that the models are compared by."""

    set: str
    metric: str

    @property
    def of_retrieval(self) -> bool:
        return "_R@" in self.metric

    @property
    def name(self) -> str:
        return f"{self.set}, {NAMES.get(self.metric, self.metric)}"


@dataclass(frozen=True)
class Value:
    value: float
    low: float  # of the middle 95 % of a bootstrap
    high: float


@dataclass(frozen=True)
class Paired:
    """By how much `ours` lies above `theirs` on the same samples."""

    figure: Figure
    ours: str
    theirs: str
    value: float
    low: float
    high: float

    @property
    def clear(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Result:
    contestant: Contestant
    evaluated: EvaluationOutcomes
    values: dict[Figure, Value]
    history: list[dict[str, Any]]
    """Evaluations that the run recorded, oldest first."""
    neighbours: list[NearestCaptions]

    def outcome(self, figure: Figure) -> Outcome:
        return outcome_of(self.evaluated, figure)


@dataclass(frozen=True)
class Comparison:
    sets: Evaluation
    figures: list[Figure]
    results: list[Result]
    differences: list[Paired]
    examples: list[ExampleImage] | str
    """Or why there are none."""


def outcome_of(evaluated: EvaluationOutcomes, figure: Figure) -> Outcome:
    """What a model did on the set of a figure."""
    return (evaluated.retrieval if figure.of_retrieval else evaluated.zero_shot)[figure.set]


def sets_of(entrants: Sequence[Entrant]) -> Evaluation:
    """The evaluation sets of the first run whose job names any. Raises UserError where none does."""
    for entrant in entrants:
        if entrant.run is not None and entrant.run.job.is_file():
            sets = recorded_job(entrant.run).evaluation
            if sets.zero_shot or sets.retrieval:
                return sets
    raise UserError(
        "none of the models' jobs names evaluation sets; give --zero-shot, --retrieval or --sets with the "
        "data to compare on"
    )


def compare(
    entrants: Sequence[Entrant], sets: Evaluation, batch_size: int, world: World, say: Callable[[str], None]
) -> Comparison:
    """Evaluate the models one after another; `say` is told how far it is. All processes call it.

    Raises UserError for sets and models that cannot be used.
    """
    sets = rooted(sets)
    check_sets(sets)
    figures = [Figure(name, chosen.metric) for name, chosen in sets.zero_shot.items()]
    ways = ("image_to_text_R@1", "text_to_image_R@1")
    figures += [Figure(name, way) for name in sets.retrieval for way in ways]
    shards = next(iter(sets.retrieval.values()), None)
    shown = _examples(shards)
    results = [
        _result(
            entrant, sets, figures, shards if not isinstance(shown, str) else None, batch_size, world, say
        )
        for entrant in entrants
    ]
    say("comparing")
    differences: list[Paired] = []
    for theirs, ours in combinations(results, 2):
        for figure in figures:
            found = difference(ours.outcome(figure), theirs.outcome(figure), figure.metric)
            names = ours.contestant.label, theirs.contestant.label
            differences.append(Paired(figure, *names, found.value, found.low, found.high))
    return Comparison(sets, figures, results, differences, shown)


def _result(
    entrant: Entrant,
    sets: Evaluation,
    figures: Sequence[Figure],
    shards: str | None,
    batch_size: int,
    world: World,
    say: Callable[[str], None],
) -> Result:
    say(f"loading {entrant.label}")
    contestant, encoder = load(entrant, world)
    evaluated = evaluate_outcomes(
        encoder,
        sets,
        samples_seen=contestant.samples_seen,
        batch_size=batch_size,
        progress=lambda name, images: say(
            f"evaluating {entrant.label} on {name}: {images * world.size} images"
        ),
    )
    near = nearest_captions(encoder, shards, EXAMPLES) if shards is not None else []
    values: dict[Figure, Value] = {}
    for figure in figures:
        outcome = outcome_of(evaluated, figure)
        values[figure] = Value(measure(outcome, figure.metric), *interval(outcome, figure.metric))
    return Result(contestant, evaluated, values, _history(contestant.run), near)


def _history(run: RunDirectory | None) -> list[dict[str, Any]]:
    if run is None:
        return []
    records = jsonl.scan(run.path / "evaluations.jsonl")
    return [r for r in records if isinstance(r.get("samples_seen"), int) and "error" not in r]


def _examples(shards: str | None) -> list[ExampleImage] | str:
    if shards is None:
        return "no retrieval set was given: add --retrieval"
    try:
        return examples(shards, EXAMPLES, PICTURE_SIDE)
    except UserError as error:
        return str(error)


def class_changes(ours: Result, theirs: Result, name: str, least: int) -> list[tuple[int, float, float, int]]:
    """Of a classification set, (class number, our top-1, theirs, images), by our gain, largest first.

    Classes with fewer than `least` images are left out.
    """
    a, b = ours.evaluated.zero_shot[name], theirs.evaluated.zero_shot[name]
    if not isinstance(a, Classified) or not isinstance(b, Classified):
        return []
    found: list[tuple[int, float, float, int]] = []
    for number in range(a.classes):
        chosen = a.labels == number
        count = int(chosen.sum())
        if count >= least:
            found.append(
                (number, float((a.places[chosen] == 0).mean()), float((b.places[chosen] == 0).mean()), count)
            )
    return sorted(found, key=lambda change: change[2] - change[1])
