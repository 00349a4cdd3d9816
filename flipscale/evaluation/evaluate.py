"""A model's scores on the evaluation sets of a job: one JSON document, and the outcomes it comes from."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
import torch

from flipscale.config import Evaluation, ZeroShot
from flipscale.errors import UserError
from flipscale.evaluation.class_sets import check_class_set, class_set, rooted, set_templates
from flipscale.evaluation.datasets import (
    Decoding,
    RawSample,
    Reader,
    Skipped,
    captions_of,
)
from flipscale.evaluation.document import (
    FORMAT,
    SMALL,
    DirectionScores,
    EvaluationDocument,
    Interval,
    MaskedViews,
    RetrievalScores,
    ZeroShotScores,
)
from flipscale.evaluation.features import Encoder
from flipscale.evaluation.labels import label_of, labels_of
from flipscale.evaluation.masked_views import Views
from flipscale.evaluation.metrics import (
    DIRECTIONS,
    RECALLS,
    Classified,
    Labelled,
    Outcome,
    Ranked,
    intervals,
    measure,
    per_class,
)
from flipscale.evaluation.retrieval import rank, summarise
from flipscale.evaluation.retrieval_sets import check_retrieval_set, retrieval_set
from flipscale.evaluation.zeroshot import classifier_weights, classify, score_labels

Target = TypeVar("Target")
_Progress = Callable[[int], None]

_SEVERAL_LABELS = "map_11_point"
_ALWAYS = ("top1", "top5", "mean_per_class")  # figures of every set with one label an image


@dataclass(frozen=True)
class Evaluated:
    """What `evaluate_outcomes` finds; sets by their names."""

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
    """The document of `evaluate_outcomes`, whose arguments and errors it has."""
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
) -> Evaluated:
    """Score the model on every set; accuracies and recalls are shares of 1.

    All processes of `encoder.world` call it and get the same. Two models that were scored on the same sets
    are compared by `metrics.difference(ours.zero_shot[name], theirs.zero_shot[name], metric)`, and so for
    retrieval.

    Args:
        samples_seen: how far training had come, copied into the document.
        batch_size: images that a process encodes at a time.
        progress: called with the name of a set and its images that this process has encoded so far.

    Raises UserError for sets that are missing, damaged, empty or at odds with their class names or metric,
    and for features that are not finite.
    """
    decoding = Decoding(encoder.image_size, batch_size, workers)
    sets = rooted(sets)
    zero_shot = {
        name: _zero_shot(encoder, chosen, decoding, partial(progress, name))
        for name, chosen in sets.zero_shot.items()
    }
    retrieval = {
        name: _retrieval(encoder, data, decoding, partial(progress, name))
        for name, data in sets.retrieval.items()
    }
    document: EvaluationDocument = {
        "format": FORMAT,
        "samples_seen": samples_seen,
        "views": _views(encoder.views),
        "skipped": sum(scores["skipped"] for scores, _ in (*zero_shot.values(), *retrieval.values())),
        "zero_shot": {name: scores for name, (scores, _) in zero_shot.items()},
        "retrieval": {name: scores for name, (scores, _) in retrieval.items()},
    }
    return Evaluated(
        document,
        {name: outcome for name, (_, outcome) in zero_shot.items()},
        {name: outcome for name, (_, outcome) in retrieval.items()},
    )


def check_sets(sets: Evaluation) -> None:
    """Raise UserError for what is wrong with the sets and can be seen without reading their samples."""
    sets = rooted(sets)
    for chosen in sets.zero_shot.values():
        check_class_set(chosen)
    for data in sets.retrieval.values():
        check_retrieval_set(data)


def _zero_shot(
    encoder: Encoder, chosen: ZeroShot, decoding: Decoding, progress: _Progress
) -> tuple[ZeroShotScores, Classified | Labelled]:
    found, templates = encoder.world.together(lambda: (class_set(chosen), set_templates(chosen)))
    classes = len(found.all_names)
    images = partial(
        _images, encoder, data=chosen.data, samples=found.samples, decoding=decoding, progress=progress
    )
    outcome: Classified | Labelled
    if chosen.metric == _SEVERAL_LABELS:
        features, samples, shown, skipped = images(labels_of(classes))
        weights = classifier_weights(encoder, found.names, templates)
        outcome = score_labels(features, weights, np.stack(shown), samples)
    else:
        features, samples, numbers, skipped = images(label_of(classes))
        weights = classifier_weights(encoder, found.names, templates)
        place = {number: place for place, number in enumerate(found.numbers)}
        labels = torch.tensor([place[number] for number in numbers])
        outcome = classify(features, weights, labels, samples)
    single = isinstance(outcome, Classified)
    figures = {name: measure(outcome, name) for name in (_ALWAYS if single else ())}
    value = measure(outcome, chosen.metric)
    ranges = _small_intervals(outcome, dict.fromkeys((chosen.metric, *figures)))
    return {
        "metric": chosen.metric,
        "value": value,
        "interval": ranges[chosen.metric],
        "top1": figures.get("top1"),
        "top5": figures.get("top5"),
        "mean_per_class": figures.get("mean_per_class"),
        "intervals": ranges,
        "per_class": per_class(outcome) if single else None,
        "samples": len(samples),
        "classes": len(found.names),
        "templates": len(templates),
        "skipped": skipped.count,
        "skipped_examples": skipped.examples,
    }, outcome


def _retrieval(
    encoder: Encoder, data: str, decoding: Decoding, progress: _Progress
) -> tuple[RetrievalScores, Ranked]:
    pairs = encoder.world.together(lambda: retrieval_set(data))
    features, samples, captions, skipped = _images(encoder, captions_of, data, pairs, decoding, progress)
    texts = [caption for of_image in captions for caption in of_image]
    image_of_text = torch.repeat_interleave(torch.tensor([len(of_image) for of_image in captions]))
    to_text, to_image = rank(features, encoder.texts(texts), image_of_text)
    outcome = Ranked(
        tuple(samples), tuple(texts), image_of_text.numpy(), to_text.cpu().numpy(), to_image.cpu().numpy()
    )
    ranges = _small_intervals(outcome, [f"{way}_R@{k}" for way in DIRECTIONS for k in RECALLS])
    return {
        "image_to_text": _direction(outcome, "image_to_text", ranges),
        "text_to_image": _direction(outcome, "text_to_image", ranges),
        "images": len(samples),
        "texts": len(texts),
        "distinct_texts": len(set(texts)),
        "skipped": skipped.count,
        "skipped_examples": skipped.examples,
    }, outcome


def _images(
    encoder: Encoder,
    read: Callable[[RawSample], Target],
    data: str,
    samples: Iterable[RawSample],
    decoding: Decoding,
    progress: _Progress,
) -> tuple[torch.Tensor, list[str], list[Target], Skipped]:
    """Features, names and targets of the usable samples, and what was skipped."""
    reader = Reader(samples, lambda sample: (sample.name, read(sample)), decoding)
    features, found, skipped = encoder.images(reader, progress)
    if not found:
        first = f", the first being {skipped.examples[0]}" if skipped.count else ""
        raise UserError(
            f"the evaluation set {data} holds no usable sample ({skipped.count} skipped{first}); check that "
            "its images are JPEG, PNG or WebP, with what belongs to them beside"
        )
    return features, [name for name, _ in found], [target for _, target in found], skipped


def _small_intervals(outcome: Outcome, metrics: Iterable[str]) -> dict[str, Interval]:
    """None for sets so large that the interval says little beside what it costs."""
    if len(outcome.samples) > SMALL:
        return dict.fromkeys(metrics)
    return {name: [low, high] for name, (low, high) in intervals(outcome, metrics).items()}


def _direction(outcome: Ranked, way: str, ranges: dict[str, Interval]) -> DirectionScores:
    summary = summarise(getattr(outcome, way))
    return {
        "R@1": summary.recall[1],
        "R@5": summary.recall[5],
        "R@10": summary.recall[10],
        "mean_rank": summary.mean_rank,
        "median_rank": summary.median_rank,
        "intervals": {f"R@{k}": ranges[f"{way}_R@{k}"] for k in RECALLS},
    }


def _views(views: Views | None) -> MaskedViews | None:
    if views is None:
        return None
    return {"mask_ratio": views.mask_ratio, "ensemble": views.ensemble, "seed": views.seed}
