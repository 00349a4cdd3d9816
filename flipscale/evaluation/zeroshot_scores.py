"""The scores of a model on one zero-shot classification set."""

from __future__ import annotations

import numpy as np
import torch

from flipscale.config import ZeroShot
from flipscale.evaluation.bootstrap import document_intervals
from flipscale.evaluation.class_sets import ClassSet, class_set, set_templates
from flipscale.evaluation.document import ZeroShotScores
from flipscale.evaluation.labels import label_of, labels_of
from flipscale.evaluation.metrics import measure, per_class
from flipscale.evaluation.outcomes import Classified, Labelled
from flipscale.evaluation.samples import Skipped
from flipscale.evaluation.set_features import SetReading, encode_images
from flipscale.evaluation.zeroshot import classifier_weights, classify, score_labels

_SEVERAL_LABELS = "map_11_point"
_ALWAYS = ("top1", "top5", "mean_per_class")  # metrics of every set with one label per image


def score_zero_shot(reading: SetReading, config: ZeroShot) -> tuple[ZeroShotScores, Classified | Labelled]:
    """Score a model on a set; all processes call this function together.

    Returns:
        The part of the document that describes the set, and the outcome it was computed from.

    Raises:
        UserError: If the set is missing, damaged, or does not fit its class names or its metric, or a feature
            is not finite.
    """
    # Each node looks for itself: all processes raise what one of them does not find.
    opened, templates = reading.encoder.world.together(lambda: (class_set(config), set_templates(config)))
    outcome, skipped = _outcome(reading, config, opened, templates)

    single = isinstance(outcome, Classified)
    values = {name: measure(outcome, name) for name in (_ALWAYS if single else ())}
    value = measure(outcome, config.metric)
    intervals = document_intervals(outcome, dict.fromkeys((config.metric, *values)))

    scores: ZeroShotScores = {
        "metric": config.metric,
        "value": value,
        "interval": intervals[config.metric],
        "top1": values.get("top1"),
        "top5": values.get("top5"),
        "mean_per_class": values.get("mean_per_class"),
        "intervals": intervals,
        "per_class": per_class(outcome) if single else None,
        "samples": len(outcome.samples),
        "classes": len(opened.names),
        "templates": len(templates),
        "skipped": skipped.count,
        "skipped_examples": skipped.examples,
    }
    return scores, outcome


def _outcome(
    reading: SetReading, config: ZeroShot, opened: ClassSet, templates: list[str]
) -> tuple[Classified | Labelled, Skipped]:
    """Classify the images of a set, with one label or several labels per image."""
    classes = len(opened.all_names)
    if config.metric == _SEVERAL_LABELS:
        several = encode_images(reading, config.data, opened.samples, labels_of(classes))
        weights = classifier_weights(reading.encoder, opened.names, templates)
        shown = np.stack(several.targets)
        return score_labels(several.features, weights, shown, several.names), several.skipped

    images = encode_images(reading, config.data, opened.samples, label_of(classes))
    weights = classifier_weights(reading.encoder, opened.names, templates)
    place = {number: place for place, number in enumerate(opened.numbers)}
    labels = torch.tensor([place[number] for number in images.targets])
    return classify(images.features, weights, labels, images.names), images.skipped
