"""The scores of a model on one image-caption set."""

from __future__ import annotations

import torch

from flipscale.evaluation.bootstrap import document_intervals
from flipscale.evaluation.document import DirectionScores, Interval, RetrievalScores
from flipscale.evaluation.outcomes import DIRECTIONS, RECALLS, Ranked
from flipscale.evaluation.retrieval import rank, summarise
from flipscale.evaluation.retrieval_sets import captioned_set
from flipscale.evaluation.samples import captions_of
from flipscale.evaluation.set_features import SetReading, encode_images


def score_retrieval(reading: SetReading, data: str) -> tuple[RetrievalScores, Ranked]:
    """Score a model on a set; all processes call this function together.

    Args:
        reading: The encoder, and how samples are decoded.
        data: Path or shard pattern of the set.

    Returns:
        The part of the document that describes the set, and the outcome it was computed from.

    Raises:
        UserError: If the set is missing or damaged, or a feature is not finite.
    """
    pairs = reading.encoder.world.together(lambda: captioned_set(data).samples())
    images = encode_images(reading, data, pairs, captions_of)

    texts = [caption for captions in images.targets for caption in captions]
    image_of_text = torch.repeat_interleave(torch.tensor([len(captions) for captions in images.targets]))
    to_text, to_image = rank(images.features, reading.encoder.texts(texts), image_of_text)
    outcome = Ranked(
        tuple(images.names),
        tuple(texts),
        image_of_text.numpy(),
        to_text.cpu().numpy(),
        to_image.cpu().numpy(),
    )

    intervals = document_intervals(outcome, [f"{way}_R@{k}" for way in DIRECTIONS for k in RECALLS])
    scores: RetrievalScores = {
        "image_to_text": _direction_scores(outcome, "image_to_text", intervals),
        "text_to_image": _direction_scores(outcome, "text_to_image", intervals),
        "images": len(images.names),
        "texts": len(texts),
        "distinct_texts": len(set(texts)),
        "skipped": images.skipped.count,
        "skipped_examples": images.skipped.examples,
    }
    return scores, outcome


def _direction_scores(outcome: Ranked, direction: str, intervals: dict[str, Interval]) -> DirectionScores:
    summary = summarise(outcome.wrong_answers(direction))
    return {
        "R@1": summary.recall[1],
        "R@5": summary.recall[5],
        "R@10": summary.recall[10],
        "mean_rank": summary.mean_rank,
        "median_rank": summary.median_rank,
        "intervals": {f"R@{k}": intervals[f"{direction}_R@{k}"] for k in RECALLS},
    }
