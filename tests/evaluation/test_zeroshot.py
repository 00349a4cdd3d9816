"""Zero-shot classification against open_clip's classifier, and accuracy against a direct count."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.evaluation_samples import encoder_of, noise

from flipscale.evaluation import zeroshot
from flipscale.evaluation.metrics import measure, per_class
from flipscale.evaluation.templates import load_templates
from flipscale.evaluation.zeroshot import classifier_weights, classify, score_labels
from flipscale.third_party import import_open_clip

NAMES = ["red fox", "grey wolf", "tabby cat", "school bus", "acorn", "pizza", "volcano", "great white shark"]


def names(count: int) -> list[str]:
    return [str(n) for n in range(count)]


@pytest.mark.parametrize("prompts_at_once", [8192, 15, 1])
def test_weights_are_open_clips(stock, bpe, monkeypatch, prompts_at_once):
    monkeypatch.setattr(zeroshot, "_PROMPTS_AT_ONCE", prompts_at_once)
    open_clip = import_open_clip()
    ours = classifier_weights(encoder_of(stock, bpe), NAMES, load_templates("openai7"))
    theirs = open_clip.build_zero_shot_classifier(
        stock.clip, bpe, NAMES, list(open_clip.SIMPLE_IMAGENET_TEMPLATES), num_classes_per_batch=3
    )
    assert ours.shape == theirs.shape == (32, 8)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    torch.testing.assert_close(ours.norm(dim=0), torch.ones(8))


def test_top1_and_top5_counts_are_open_clips(stock, bpe, monkeypatch):
    """Counted by its accuracy(), whose float() of an array with one element numpy 2.4 refuses."""
    open_clip = import_open_clip()
    from open_clip_train import zero_shot

    monkeypatch.setattr(zero_shot, "float", lambda array: array.item(), raising=False)
    images = torch.stack([torch.from_numpy(noise(n)).permute(2, 0, 1) for n in range(150)])
    labels = torch.randint(0, 8, (150,), generator=torch.Generator().manual_seed(1))
    classifier = open_clip.build_zero_shot_classifier(
        stock.clip, bpe, NAMES, list(open_clip.SIMPLE_IMAGENET_TEMPLATES)
    )
    with torch.no_grad():
        pixels = (images.float() / 255 - stock.mean) / stock.std
        logits = 100.0 * stock.clip.encode_image(pixels, normalize=True) @ classifier
    theirs = zero_shot.accuracy(logits, labels, topk=(1, 5))

    weights = classifier_weights(encoder_of(stock, bpe), NAMES, load_templates("openai7"))
    outcome = classify(stock.encode_image(images).detach(), weights, labels, names(150))
    assert [int((outcome.places < k).sum()) for k in (1, 5)] == theirs
    assert measure(outcome, "top1") == theirs[0] / 150
    assert 0 < theirs[0] < theirs[1] < 150
    assert (len(outcome.samples), outcome.classes) == (150, 8)


@given(st.integers(1, 40), st.integers(1, 9), st.integers(0, 10**6))
def test_accuracies_are_those_of_a_direct_count(samples, classes, seed):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(samples, 6, generator=generator)
    weights = torch.randn(6, classes, generator=generator)
    labels = torch.randint(0, classes, (samples,), generator=generator)
    outcome = classify(features, weights, labels, names(samples))

    ranks = []
    for feature, label in zip(features, labels.tolist(), strict=True):
        scores = (feature[None] @ weights)[0].tolist()
        ranks.append(sum(score > scores[label] for score in scores))
    assert outcome.places.tolist() == [min(rank, 5) for rank in ranks]
    assert measure(outcome, "top1") == sum(rank == 0 for rank in ranks) / samples
    assert measure(outcome, "top5") == sum(rank < 5 for rank in ranks) / samples
    for number, accuracy in enumerate(per_class(outcome)):
        own = [rank == 0 for rank, label in zip(ranks, labels.tolist(), strict=True) if label == number]
        assert accuracy == (sum(own) / len(own) if own else None)
    present = [accuracy for accuracy in per_class(outcome) if accuracy is not None]
    assert measure(outcome, "mean_per_class") == pytest.approx(sum(present) / len(present))
    assert (outcome.margins is None) == (classes != 2)
    if outcome.margins is not None:
        expected = features.double() @ (weights[:, 1] - weights[:, 0]).double()
        torch.testing.assert_close(torch.from_numpy(outcome.margins), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("classes", [2, 9])
def test_splitting_the_logits_does_not_change_the_result(monkeypatch, classes):
    features, weights = torch.randn(50, 6), torch.randn(6, classes)
    labels = torch.randint(0, classes, (50,))
    shown = torch.rand(50, classes).numpy() < 0.5
    whole = classify(features, weights, labels, names(50))
    scores = score_labels(features, weights, shown, names(50)).scores
    assert np.allclose(scores, (features @ weights).numpy(), rtol=0, atol=1e-5)
    monkeypatch.setattr(zeroshot, "_ROWS_AT_ONCE", 7)
    pieces = classify(features, weights, labels, names(50))
    assert whole.places.tolist() == pieces.places.tolist()
    assert np.allclose(score_labels(features, weights, shown, names(50)).scores, scores, rtol=0, atol=1e-6)


def test_all_prompts_of_a_class_have_the_same_weight(colour_model, words):
    """Averaged over templates of which one says nothing, the classes are still distinguished."""
    weights = classifier_weights(
        encoder_of(colour_model, words), ["red", "green", "blue"], ["a {}.", "the photo {}"]
    )
    outcome = classify(torch.eye(3), weights, torch.tensor([0, 1, 1]), names(3))
    assert per_class(outcome) == [1.0, 0.5, None]
    figures = {name: measure(outcome, name) for name in ("top1", "mean_per_class", "top5")}
    assert figures == {"top1": 2 / 3, "mean_per_class": 0.75, "top5": 1.0}
