"""Retrieval against open_clip's metrics on pairs, and a direct count for several captions and ties."""

import math
import statistics
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from flipscale.evaluation import retrieval
from flipscale.evaluation.retrieval import RankSummary, rank, summarise
from flipscale.third_party import import_open_clip


def retrieve(
    images: torch.Tensor, texts: torch.Tensor, image_of_text: torch.Tensor
) -> tuple[RankSummary, RankSummary]:
    """Image to text, and text to image."""
    to_text, to_image = rank(images, texts, image_of_text)
    assert (to_text.shape, to_image.shape) == ((len(images),), (len(texts),))
    return summarise(to_text.numpy()), summarise(to_image.numpy())


def unit(rows: int, seed: int, width: int = 16) -> torch.Tensor:
    return functional.normalize(
        torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)), dim=1
    )


def correlated(rows: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    images = unit(rows, seed)
    return images, functional.normalize(images + 1.2 * unit(rows, seed + 1000), dim=1)


@pytest.mark.parametrize("rows", [1, 7, 64, 257])
def test_pairs_score_as_open_clips_metrics(rows):
    import_open_clip()
    from open_clip_train.train import get_clip_metrics

    images, texts = correlated(rows, rows)
    theirs = get_clip_metrics(images, texts, 100.0)
    ours = retrieve(images, texts, torch.arange(rows))
    for name, summary in zip(("image_to_text", "text_to_image"), ours, strict=True):
        for k in (1, 5, 10):
            assert summary.recall[k] == pytest.approx(float(theirs[f"{name}_R@{k}"]), abs=1e-12)
        assert summary.mean_rank == pytest.approx(float(theirs[f"{name}_mean_rank"]), abs=1e-9)
        assert summary.median_rank == float(theirs[f"{name}_median_rank"])
    if rows == 257:  # the recalls are neither all 0 nor all 1
        assert 0.1 < ours[0].recall[1] < ours[0].recall[10] < 1


def direct(images: torch.Tensor, texts: torch.Tensor, image_of_text: list[int]):
    """Ranks one by one, from the definition: wrong answers that score at least as high as the right one."""
    scores = (images @ texts.T).tolist()
    to_text, to_image = [], []
    for image, row in enumerate(scores):
        best = max(score for score, owner in zip(row, image_of_text, strict=True) if owner == image)
        to_text.append(
            1 + sum(s >= best for s, owner in zip(row, image_of_text, strict=True) if owner != image)
        )
    for text, owner in enumerate(image_of_text):
        column = [row[text] for row in scores]
        to_image.append(1 + sum(s >= column[owner] for image, s in enumerate(column) if image != owner))
    return to_text, to_image


@given(st.lists(st.integers(1, 4), min_size=1, max_size=9), st.integers(0, 10**6), st.integers(1, 60))
def test_several_captions_and_ties_equal_a_count_one_by_one(captions, seed, at_once):
    """Features are small whole numbers, so that products are exact and ties are many."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(-2, 3, (len(captions), 3), generator=generator).float()
    image_of_text = torch.repeat_interleave(torch.tensor(captions))
    image_of_text = image_of_text[torch.randperm(len(image_of_text), generator=generator)]
    texts = torch.randint(-2, 3, (len(image_of_text), 3), generator=generator).float()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retrieval, "_SCORES_AT_ONCE", at_once)
        result = retrieve(images, texts, image_of_text)
    expected = direct(images, texts, image_of_text.tolist())
    for summary, ranks in zip(result, expected, strict=True):
        assert summary.recall == {
            k: pytest.approx(sum(r <= k for r in ranks) / len(ranks)) for k in (1, 5, 10)
        }
        assert summary.mean_rank == pytest.approx(statistics.mean(ranks))
        assert summary.median_rank == math.floor(statistics.median(ranks))


@pytest.mark.parametrize("seed", range(3))
def test_recalls_of_several_captions_are_those_of_the_best_ranked_lists(seed):
    """As CLIP_benchmark counts: a query is answered when any of its own is among its k best."""
    image_of_text = torch.repeat_interleave(torch.tensor([5] * 30 + [6] * 10))
    images = unit(40, seed)
    texts = functional.normalize(images[image_of_text] + 4.0 * unit(len(image_of_text), seed + 50), dim=1)
    own = image_of_text[None, :] == torch.arange(40)[:, None]
    to_text, to_image = retrieve(images, texts, image_of_text)
    for k in (1, 5, 10):
        best = (images @ texts.T).topk(k, dim=1).indices
        assert to_text.recall[k] == float(own.gather(1, best).any(dim=1).double().mean())
        best = (texts @ images.T).topk(k, dim=1).indices
        assert to_image.recall[k] == float(own.T.gather(1, best).any(dim=1).double().mean())
    assert 0 < to_image.recall[1] < to_image.recall[10] < 1


def test_collapsed_model_scores_zero():
    same = torch.ones(20, 4) / 2
    result = retrieve(same, same, torch.arange(20))
    for summary in result:
        assert summary.recall == {1: 0.0, 5: 0.0, 10: 0.0}
        assert summary.mean_rank == summary.median_rank == 20


def test_perfect_model_scores_one(monkeypatch):
    """In pieces of a few rows, so that equal products may come out of different kernels."""
    monkeypatch.setattr(retrieval, "_SCORES_AT_ONCE", 1000)
    features = unit(300, 0, width=97)
    order = torch.randperm(300, generator=torch.Generator().manual_seed(3))
    result = retrieve(features, features[order], order)
    for summary in result:
        assert summary.recall == {1: 1.0, 5: 1.0, 10: 1.0}
        assert summary.mean_rank == 1


MEMORY = """
import resource, torch
from flipscale.evaluation.retrieval import rank
torch.set_num_threads(1)
features = torch.randn(8000, 16)
rank(features[:50], features[:50], torch.arange(50))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
rank(features, features, torch.arange(8000))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
def test_the_score_matrix_is_never_held_whole():
    """Peak memory, in KiB, compared with the 250,000 of the 8,000 x 8,000 matrix in fp32."""
    run = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    assert int(run.stdout) < 125_000
