"""A model's scores on the evaluation sets of a job: one JSON document."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch

from flipscale.config.job import Evaluation, ZeroShot
from flipscale.errors import UserError
from flipscale.evaluation.datasets import (
    Decoding,
    RawSample,
    Reader,
    Skipped,
    captions_of,
    class_folders,
    existing_shards,
    label_of,
    read_folder,
    read_shards,
)
from flipscale.evaluation.features import Encoder
from flipscale.evaluation.retrieval import RankSummary, retrieve
from flipscale.evaluation.templates import load_class_names, load_templates
from flipscale.evaluation.zeroshot import classifier_weights, classify

Target = TypeVar("Target")
_Progress = Callable[[int], None]

FOLDER_NAMES = "folders"  # as a set's `classnames`: the names of its class folders


def evaluate(
    encoder: Encoder,
    sets: Evaluation,
    *,
    samples_seen: int | None = None,
    batch_size: int = 64,
    workers: int = 4,
    progress: Callable[[str, int], None] = lambda name, images: None,
) -> dict[str, Any]:
    """Score the model on every set; accuracies and recalls are shares of 1.

    All processes of `encoder.world` call it and get the same document.

    Args:
        samples_seen: how far training had come, copied into the document.
        batch_size: images that a process encodes at a time.
        progress: called with the name of a set and its images that this process has encoded so far.

    Returns {"samples_seen": n | None, "skipped": n, "zero_shot": {name: {"top1", "top5", "mean_per_class",
    "per_class", "samples", "classes", "templates", "skipped", "skipped_examples"}}, "retrieval": {name:
    {"image_to_text": {"R@1", "R@5", "R@10", "mean_rank", "median_rank"}, "text_to_image": the same, "images",
    "texts", "distinct_texts", "skipped", "skipped_examples"}}}.
    Raises UserError for sets that are missing, damaged, empty or at odds with their class names, and for
    features that are not finite.
    """
    decoding = Decoding(encoder.image_size, batch_size, workers)
    zero_shot = {
        name: _zero_shot(encoder, chosen, decoding, partial(progress, name))
        for name, chosen in sets.zero_shot.items()
    }
    retrieval = {
        name: _retrieval(encoder, shards, decoding, partial(progress, name))
        for name, shards in sets.retrieval.items()
    }
    return {
        "samples_seen": samples_seen,
        "skipped": sum(result["skipped"] for result in (*zero_shot.values(), *retrieval.values())),
        "zero_shot": zero_shot,
        "retrieval": retrieval,
    }


def check_sets(sets: Evaluation) -> None:
    """Raise UserError for what is wrong with the sets and can be seen without reading their samples."""
    for chosen in sets.zero_shot.values():
        if not Path(chosen.data).is_dir():
            existing_shards(chosen.data)
        _labelled_samples(chosen)
        load_templates(chosen.templates)
    for shards in sets.retrieval.values():
        existing_shards(shards)


def _zero_shot(encoder: Encoder, chosen: ZeroShot, decoding: Decoding, progress: _Progress) -> dict[str, Any]:
    samples, names = _labelled_samples(chosen)
    templates = load_templates(chosen.templates)
    reader = Reader(samples, label_of(len(names)), decoding)
    features, labels, skipped = _images(encoder, chosen.data, reader, progress)
    weights = classifier_weights(encoder, names, templates)
    result = classify(features, weights, torch.tensor(labels))
    return {**asdict(result), "templates": len(templates), **_skips(skipped)}


def _labelled_samples(chosen: ZeroShot) -> tuple[Iterator[RawSample], list[str]]:
    """The samples of a classification set, and its class names."""
    root = Path(chosen.data)
    if not root.is_dir():
        if chosen.classnames == FOLDER_NAMES:
            raise UserError(f"classnames: {FOLDER_NAMES} needs a folder of class folders, and {root} is none")
        return read_shards(chosen.data), load_class_names(chosen.classnames)
    folders = class_folders(root)
    if chosen.classnames == FOLDER_NAMES:
        return read_folder(root, folders), [folder.name.replace("_", " ") for folder in folders]
    names = load_class_names(chosen.classnames)
    if len(names) != len(folders):
        raise UserError(
            f"{chosen.classnames} has {len(names)} class names, but {root} has {len(folders)} class folders; "
            f"give each folder one name, in sorted order, or say `classnames: {FOLDER_NAMES}`"
        )
    return read_folder(root, folders), names


def _retrieval(encoder: Encoder, shards: str, decoding: Decoding, progress: _Progress) -> dict[str, Any]:
    reader = Reader(read_shards(shards), captions_of, decoding)
    image_features, captions, skipped = _images(encoder, shards, reader, progress)
    texts = [caption for of_image in captions for caption in of_image]
    image_of_text = torch.repeat_interleave(torch.tensor([len(of_image) for of_image in captions]))
    result = retrieve(image_features, encoder.texts(texts), image_of_text)
    return {
        "image_to_text": _ranks(result.image_to_text),
        "text_to_image": _ranks(result.text_to_image),
        "images": result.images,
        "texts": result.texts,
        "distinct_texts": len(set(texts)),
        **_skips(skipped),
    }


def _images(
    encoder: Encoder, data: str, reader: Reader[Target], progress: _Progress
) -> tuple[torch.Tensor, list[Target], Skipped]:
    features, targets, skipped = encoder.images(reader, progress)
    if not targets:
        first = f", the first being {skipped.examples[0]}" if skipped.count else ""
        raise UserError(f"the evaluation set {data} holds no usable sample ({skipped.count} skipped{first})")
    return features, targets, skipped


def _ranks(summary: RankSummary) -> dict[str, float]:
    recalls = {f"R@{k}": recall for k, recall in summary.recall.items()}
    return {**recalls, "mean_rank": summary.mean_rank, "median_rank": summary.median_rank}


def _skips(skipped: Skipped) -> dict[str, Any]:
    return {"skipped": skipped.count, "skipped_examples": skipped.examples}
