"""What a comparison finds: the scores of each model, and the differences between models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flipscale.config import Evaluation
from flipscale.evaluation.evaluate import EvaluationOutcomes
from flipscale.evaluation.nearest_captions import ExampleImage, NearestCaptions
from flipscale.evaluation.outcomes import Outcome
from flipscale.evaluation.scores import NAMES
from flipscale.reporting.comparison.models import ComparedModel
from flipscale.runs.evaluations import RecordedEvaluation


@dataclass(frozen=True)
class Metric:
    """A metric of a set by which the models are compared."""

    set: str
    metric: str

    @property
    def of_retrieval(self) -> bool:
        """Whether the set is a retrieval set."""
        return "_R@" in self.metric

    @property
    def name(self) -> str:
        """The name on the page."""
        return f"{self.set}, {NAMES.get(self.metric, self.metric)}"


@dataclass(frozen=True)
class Estimate:
    """A score with its interval: the middle 95 % of a bootstrap."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class PairedDifference:
    """The amount by which one model is above another on the same samples, with its interval."""

    metric: Metric
    ours: str
    """The label of the model whose advantage is measured."""
    theirs: str
    """The label of the other model."""
    value: float
    low: float
    high: float

    @property
    def clear(self) -> bool:
        """Whether the interval excludes 0."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Result:
    """A model with its scores."""

    model: ComparedModel
    evaluated: EvaluationOutcomes
    scores: dict[Metric, Estimate]
    history: Sequence[RecordedEvaluation]
    """The evaluations that its run recorded while it trained, oldest first."""
    nearest: Sequence[NearestCaptions]
    """The nearest captions of each example; empty without examples."""

    def outcome(self, metric: Metric) -> Outcome:
        """Return the answers of the model on the set of a metric."""
        return outcome_of(self.evaluated, metric)


@dataclass(frozen=True)
class Comparison:
    """All that the page of a comparison shows."""

    sets: Evaluation
    metrics: list[Metric]
    results: list[Result]
    differences: list[PairedDifference]
    examples: list[ExampleImage] | str
    """The images of the examples, or the reason why there are none."""


def outcome_of(evaluated: EvaluationOutcomes, metric: Metric) -> Outcome:
    """Return the answers of a model on the set of a metric."""
    answers = evaluated.retrieval if metric.of_retrieval else evaluated.zero_shot
    return answers[metric.set]
