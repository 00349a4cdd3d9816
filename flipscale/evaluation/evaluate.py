"""A model's scores on the evaluation sets of a job: one JSON document, and the outcomes behind it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from flipscale.config import Evaluation
from flipscale.evaluation.class_sets import check_class_set, rooted
from flipscale.evaluation.decoding import Decoding
from flipscale.evaluation.document import FORMAT, EvaluationDocument, MaskedViews
from flipscale.evaluation.features import Encoder
from flipscale.evaluation.masked_views import MaskedEncoder
from flipscale.evaluation.outcomes import Classified, Labelled, Ranked
from flipscale.evaluation.retrieval_scores import score_retrieval
from flipscale.evaluation.retrieval_sets import captioned_set
from flipscale.evaluation.set_features import SetReading
from flipscale.evaluation.zeroshot_scores import score_zero_shot


@dataclass(frozen=True)
class EvaluationOutcomes:
    """The document of an evaluation, and the outcomes by the names of their sets."""

    document: EvaluationDocument
    zero_shot: dict[str, Classified | Labelled]
    retrieval: dict[str, Ranked]


def evaluate(
    encoder: Encoder,
    sets: Evaluation,
    *,
    samples_seen: int | None = None,
    batch_size: int = 64,
    workers: int = 4,
    progress: Callable[[str, int], None] = lambda name, images: None,
) -> EvaluationDocument:
    """Return the document of `evaluate_outcomes`, which has the same arguments and errors."""
    return evaluate_outcomes(
        encoder,
        sets,
        samples_seen=samples_seen,
        batch_size=batch_size,
        workers=workers,
        progress=progress,
    ).document


def evaluate_outcomes(
    encoder: Encoder,
    sets: Evaluation,
    *,
    samples_seen: int | None = None,
    batch_size: int = 64,
    workers: int = 4,
    progress: Callable[[str, int], None] = lambda name, images: None,
) -> EvaluationOutcomes:
    """Score the model on every set; accuracies and recalls are shares of 1.

    All processes of `encoder.world` call this function together and get the same. To compare two models that
    were scored on the same sets, call `bootstrap.difference(ours.zero_shot[name], theirs.zero_shot[name],
    metric)`, and likewise for retrieval.

    Args:
        encoder: The model and the processes.
        sets: The evaluation sets of a job.
        samples_seen: Samples that the model has seen in training; copied into the document.
        batch_size: Images that a process encodes at once.
        workers: Threads per process that decode images.
        progress: Receives the name of a set and the images of it that this process has encoded so far.

    Raises:
        UserError: If a set is missing, damaged, empty, or does not fit its class names or its metric, or a
            feature is not finite.
    """
    sets = rooted(sets)

    def reading(name: str) -> SetReading:
        return SetReading(encoder, Decoding(encoder.image_size, batch_size, workers), partial(progress, name))

    zero_shot = {name: score_zero_shot(reading(name), config) for name, config in sets.zero_shot.items()}
    retrieval = {name: score_retrieval(reading(name), data) for name, data in sets.retrieval.items()}

    document: EvaluationDocument = {
        "format": FORMAT,
        "samples_seen": samples_seen,
        "views": _describe(encoder.masked_views),
        "skipped": sum(scores["skipped"] for scores, _ in (*zero_shot.values(), *retrieval.values())),
        "zero_shot": {name: scores for name, (scores, _) in zero_shot.items()},
        "retrieval": {name: scores for name, (scores, _) in retrieval.items()},
    }
    return EvaluationOutcomes(
        document,
        {name: outcome for name, (_, outcome) in zero_shot.items()},
        {name: outcome for name, (_, outcome) in retrieval.items()},
    )


def check_sets(sets: Evaluation) -> None:
    """Check what can be checked without reading the samples of the sets.

    Raises:
        UserError: If a set, its class names or its templates cannot be used.
    """
    sets = rooted(sets)
    for config in sets.zero_shot.values():
        check_class_set(config)
    for data in sets.retrieval.values():
        captioned_set(data).check()


def _describe(views: MaskedEncoder | None) -> MaskedViews | None:
    if views is None:
        return None
    return {"mask_ratio": views.mask_ratio, "ensemble": views.ensemble, "seed": views.seed}
