"""Scores in documents of evaluations, of today and of before sets had a metric of their own."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import pytest

from flipscale.evaluation.scores import scores_of


def scores_by_measure(document: dict[str, Any]) -> dict[str, tuple[float, float | None, bool]]:
    return {f"{s.set}, {s.measure}": (s.value, s.chance, s.leading) for s in scores_of(document)}


def test_leading_score_of_a_set_is_its_own_metric() -> None:
    voc = {"metric": "map_11_point", "value": 0.7, "top1": None, "top5": None, "classes": 20, "samples": 9}
    pets = {"metric": "mean_per_class", "value": 0.5, "mean_per_class": 0.5, "top1": 0.6, "classes": 4}
    assert scores_by_measure({"zero_shot": {"voc": voc, "pets": pets}}) == {
        "voc, 11-point mAP": (0.7, None, True),
        "pets, mean per class": (0.5, 0.25, True),
        "pets, top-1": (0.6, 0.25, False),
    }


def test_leading_score_without_a_metric_is_top_1() -> None:
    old = {"top1": 0.25, "top5": 1.0, "classes": 3, "samples": 8}
    assert scores_by_measure({"zero_shot": {"a": old}}) == {
        "a, top-1": (0.25, 1 / 3, True),
        "a, top-5": (1.0, 1.0, False),
    }


@pytest.mark.slow
def test_chance_of_a_recall_follows_from_the_number_of_candidates() -> None:
    recalls = {"R@1": 0.5, "R@5": 0.75, "R@10": 1.0}
    set_ = {"image_to_text": recalls, "text_to_image": recalls, "images": 8, "texts": 40}
    scores = scores_by_measure({"samples_seen": 1, "retrieval": {"c": set_}})
    # Any of the five captions of an image will do.
    guesses = [set(guess) for guess in combinations(range(40), 5)]
    assert len(guesses) == 658_008
    lucky = sum(not guess.isdisjoint(range(5)) for guess in guesses) / len(guesses)
    assert scores["c, image to text R@5"] == (0.75, pytest.approx(lucky), True)
    assert scores["c, image to text R@1"][1] == pytest.approx(5 / 40)
    assert scores["c, text to image R@5"] == (0.75, 5 / 8, True)
    assert scores["c, text to image R@10"] == (1.0, 1.0, False)


def test_damaged_documents_give_the_scores_that_they_have() -> None:
    assert scores_of({}) == []
    assert scores_of({"zero_shot": 3, "retrieval": {"a": None}}) == []
    assert scores_by_measure({"retrieval": {"a": {"image_to_text": {"R@1": 0.5}, "text_to_image": {}}}}) == {
        "a, image to text R@1": (0.5, None, True)
    }
