"""Zero-shot classification against open_clip's classifier, and accuracy against a direct count."""

import pytest
import torch
from evaluation_samples import encoder_of, noise
from hypothesis import given
from hypothesis import strategies as st

from flipscale.evaluation import zeroshot
from flipscale.evaluation.templates import load_templates
from flipscale.evaluation.zeroshot import classifier_weights, classify
from flipscale.interop.torchvision_fix import import_open_clip

NAMES = ["red fox", "grey wolf", "tabby cat", "school bus", "acorn", "pizza", "volcano", "great white shark"]


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


def test_top1_and_top5_counts_are_open_clips(stock, bpe):
    """Counted as its accuracy() does, which fails beside numpy 2.4 when it turns the counts into floats."""
    open_clip = import_open_clip()
    images = torch.stack([torch.from_numpy(noise(n)).permute(2, 0, 1) for n in range(150)])
    labels = torch.randint(0, 8, (150,), generator=torch.Generator().manual_seed(1))
    classifier = open_clip.build_zero_shot_classifier(
        stock.clip, bpe, NAMES, list(open_clip.SIMPLE_IMAGENET_TEMPLATES)
    )
    with torch.no_grad():
        pixels = (images.float() / 255 - stock.mean) / stock.std
        logits = 100.0 * stock.clip.encode_image(pixels, normalize=True) @ classifier
    correct = logits.topk(5, 1, True, True)[1].t().eq(labels.view(1, -1).expand(5, -1))

    weights = classifier_weights(encoder_of(stock, bpe), NAMES, load_templates("openai7"))
    result = classify(stock.encode_image(images).detach(), weights, labels)
    assert result.top1 * 150 == pytest.approx(int(correct[:1].sum()))
    assert result.top5 * 150 == pytest.approx(int(correct.sum()))
    assert 0 < result.top1 < result.top5 < 1
    assert (result.samples, result.classes) == (150, 8)


@given(st.integers(1, 40), st.integers(1, 9), st.integers(0, 10**6))
def test_accuracies_are_those_of_a_direct_count(samples, classes, seed):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(samples, 6, generator=generator)
    weights = torch.randn(6, classes, generator=generator)
    labels = torch.randint(0, classes, (samples,), generator=generator)
    result = classify(features, weights, labels)

    ranks = []
    for feature, label in zip(features, labels.tolist(), strict=True):
        scores = (feature[None] @ weights)[0].tolist()
        ranks.append(sum(score > scores[label] for score in scores))
    assert result.top1 == sum(rank == 0 for rank in ranks) / samples
    assert result.top5 == sum(rank < 5 for rank in ranks) / samples
    for number, accuracy in enumerate(result.per_class):
        own = [rank == 0 for rank, label in zip(ranks, labels.tolist(), strict=True) if label == number]
        assert accuracy == (sum(own) / len(own) if own else None)
    present = [accuracy for accuracy in result.per_class if accuracy is not None]
    assert result.mean_per_class == pytest.approx(sum(present) / len(present))


def test_logits_in_pieces_give_the_same_result(monkeypatch):
    features, weights = torch.randn(50, 6), torch.randn(6, 9)
    labels = torch.randint(0, 9, (50,))
    whole = classify(features, weights, labels)
    monkeypatch.setattr(zeroshot, "_ROWS_AT_ONCE", 7)
    assert classify(features, weights, labels) == whole


def test_every_prompt_counts_alike_whatever_its_class(colour_model, words):
    """Averaged over templates of which one says nothing, the classes are still told apart."""
    weights = classifier_weights(
        encoder_of(colour_model, words), ["red", "green", "blue"], ["a {}.", "the photo {}"]
    )
    features = torch.eye(3)
    result = classify(features, weights, torch.tensor([0, 1, 1]))
    assert result.top1 == 2 / 3
    assert result.per_class == [1.0, 0.5, None]
    assert result.mean_per_class == 0.75
    assert result.top5 == 1.0
