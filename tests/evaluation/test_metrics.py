"""Every metric against scikit-learn or a slow direct reference, and the bootstrap against a loop."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, roc_auc_score, top_k_accuracy_score

from flipscale.errors import UserError
from flipscale.evaluation import bootstrap
from flipscale.evaluation.bootstrap import difference, interval, intervals
from flipscale.evaluation.metrics import METRICS, measure, per_class
from flipscale.evaluation.outcomes import Classified, Labelled, Outcome, Ranked


def names(count: int) -> tuple[str, ...]:
    return tuple(f"{n}.jpg" for n in range(count))


def random_scores(samples: int, classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels in which every class occurs, and scores that favour them."""
    generator = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(classes), generator.integers(0, classes, samples - classes)])
    scores = generator.normal(size=(samples, classes)) + 1.2 * np.eye(classes)[labels]
    return labels, scores


def classified(labels: np.ndarray, scores: np.ndarray) -> Classified:
    own = np.take_along_axis(scores, labels[:, None], axis=1)
    places = np.minimum((scores > own).sum(axis=1), 5)
    margins = scores[:, 1] - scores[:, 0] if scores.shape[1] == 2 else None
    return Classified(names(len(labels)), labels, places, scores.shape[1], margins)


def labelled(samples: int, classes: int, seed: int, step: float = 0.0) -> Labelled:
    """Random outcome; `step` rounds the scores to its multiples, so that many are equal."""
    generator = np.random.default_rng(seed)
    labels = generator.random((samples, classes)) < 0.3
    labels[0] = True
    scores = generator.normal(size=labels.shape) + labels
    return Labelled(names(samples), labels, np.round(scores / step) * step if step else scores)


def ranked(seed: int, images: int = 30, texts: int = 70) -> Ranked:
    generator = np.random.default_rng(seed)
    owner = np.concatenate([np.arange(images), generator.integers(0, images, texts - images)])
    ranks = [generator.geometric(0.3, size) - 1 for size in (images, texts)]
    return Ranked(names(images), tuple(f"text {n}" for n in range(texts)), owner, *ranks)


@settings(max_examples=30, deadline=None)
@given(st.integers(6, 9), st.integers(10, 60), st.integers(0, 10**6))
def test_accuracies_are_scikit_learns(classes, samples, seed):
    labels, scores = random_scores(samples, classes, seed)
    outcome = classified(labels, scores)
    top1, top5 = (top_k_accuracy_score(labels, scores, k=k) for k in (1, 5))
    assert measure(outcome, "top1") == pytest.approx(top1, abs=1e-15)
    assert measure(outcome, "top5") == pytest.approx(top5, abs=1e-15)
    assert measure(outcome, "top1_top5_mean") == pytest.approx((top1 + top5) / 2, abs=1e-15)
    balanced = balanced_accuracy_score(labels, scores.argmax(axis=1))
    assert measure(outcome, "mean_per_class") == pytest.approx(balanced, abs=1e-12)


@settings(max_examples=30, deadline=None)
@given(st.integers(3, 80), st.integers(0, 10**6), st.sampled_from([0, 1]))
def test_roc_auc_is_scikit_learns_with_ties(samples, seed, decimals):
    labels, scores = random_scores(samples, 2, seed)
    outcome = classified(labels, scores.round(decimals))
    assert measure(outcome, "roc_auc") == pytest.approx(roc_auc_score(labels, outcome.margins), abs=1e-12)


def slow_average_precision(scores: list[float], shown: list[bool]) -> float:
    """The definition: for each recall, the best precision of all thresholds that reach it."""
    reached = []
    for threshold in sorted(set(scores)):
        retrieved = [s for score, s in zip(scores, shown, strict=True) if score >= threshold]
        reached.append((sum(retrieved), sum(retrieved) / len(retrieved)))
    points = []
    for tenth in range(11):
        points.append(max(precision for right, precision in reached if 10 * right >= tenth * sum(shown)))
    return sum(points) / 11


def slow_map(outcome: Labelled, drawn: np.ndarray) -> float:
    known = []
    for column in range(outcome.labels.shape[1]):
        scores, shown = (part[drawn, column].tolist() for part in (outcome.scores, outcome.labels))
        if any(shown):
            known.append(slow_average_precision(scores, shown))
    return sum(known) / len(known)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(1, 4), st.integers(0, 10**6), st.sampled_from([0.0, 0.5]))
def test_11_point_map_equals_a_slow_loop(samples, classes, seed, step):
    outcome = labelled(samples, classes, seed, step)
    assert measure(outcome, "map_11_point") == pytest.approx(slow_map(outcome, np.arange(samples)), abs=1e-12)


def test_class_without_images_does_not_count_in_the_map():
    outcome = labelled(20, 3, 1)
    outcome.labels[:, 1] = False
    others = Labelled(outcome.samples, outcome.labels[:, ::2], outcome.scores[:, ::2])
    assert measure(outcome, "map_11_point") == measure(others, "map_11_point")


def test_per_class_accuracies_are_none_for_absent_classes():
    labels, places = np.array([0, 0, 3, 3, 3]), np.array([0, 1, 0, 0, 5])
    outcome = Classified(names(5), labels, places, 5)
    assert per_class(outcome) == [1 / 2, None, None, 2 / 3, None]
    assert measure(outcome, "mean_per_class") == pytest.approx((1 / 2 + 2 / 3) / 2)


def drawn_sets(queries: int, resamples: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, queries, (resamples, queries))


def slow_values(outcome: Outcome, metric: str, resamples: int, seed: int) -> list[float]:
    """The values of sets that are drawn and measured one by one."""
    figures = []
    if isinstance(outcome, Ranked):
        direction, k = metric.split("_R@")[0], int(metric.split("@")[1])
        for drawn in drawn_sets(len(outcome.samples), resamples, seed):
            queries = list(drawn)
            if direction == "text_to_image":  # all texts of an image, each time that it is drawn
                queries = [text for image in drawn for text in np.flatnonzero(outcome.image_of_text == image)]
            figures.append(float(np.mean([getattr(outcome, direction)[query] < k for query in queries])))
    elif isinstance(outcome, Labelled):
        figures = [slow_map(outcome, drawn) for drawn in drawn_sets(len(outcome.samples), resamples, seed)]
    else:
        assert isinstance(outcome, Classified)
        for drawn in drawn_sets(len(outcome.samples), resamples, seed):
            labels, places = outcome.labels[drawn], outcome.places[drawn]
            if metric == "roc_auc":
                assert outcome.margins is not None
                both = len(set(labels.tolist())) == 2
                figures.append(roc_auc_score(labels, outcome.margins[drawn]) if both else np.nan)
            elif metric == "mean_per_class":
                predicted = np.where(places == 0, labels, -1)
                figures.append(
                    float(np.mean([np.mean(predicted[labels == n] == n) for n in sorted(set(labels))]))
                )
            else:
                top1, top5 = np.mean(places < 1), np.mean(places < 5)
                figures.append({"top1": top1, "top5": top5, "top1_top5_mean": (top1 + top5) / 2}[metric])
    return figures


def outcome_for(metric: str, seed: int) -> Outcome:
    if metric == "map_11_point":
        return labelled(25, 3, seed, 0.5)
    if "R@" in metric:
        return ranked(seed)
    return classified(*random_scores(40, 2 if metric == "roc_auc" else 9, seed))


@pytest.mark.parametrize("metric", METRICS)
def test_intervals_equal_a_loop_over_drawn_sets(metric, monkeypatch):
    outcome = outcome_for(metric, 3)
    expected = np.nanquantile(slow_values(outcome, metric, 60, 5), [0.05, 0.95])
    ends = interval(outcome, metric, resamples=60, seed=5, level=0.9)
    assert ends == pytest.approx(tuple(expected), abs=1e-12)
    assert ends[0] < measure(outcome, metric) < ends[1] or measure(outcome, metric) == 1.0
    monkeypatch.setattr(bootstrap, "_DRAWS_AT_ONCE", 7 * 40)  # in pieces
    assert interval(outcome, metric, resamples=60, seed=5, level=0.9) == ends
    others = {interval(outcome, metric, resamples=60, seed=seed, level=0.9) for seed in range(6, 9)}
    assert others != {ends}


@pytest.mark.parametrize("metric", METRICS)
def test_differences_are_drawn_in_pairs(metric):
    if metric == "map_11_point":
        ours = outcome_for(metric, 3)
        other = outcome_for(metric, 4)
        assert isinstance(ours, Labelled)
        assert isinstance(other, Labelled)
        theirs: Outcome = Labelled(ours.samples, ours.labels, other.scores)
    elif "R@" in metric:
        ours, other = ranked(3), ranked(4)
        theirs = Ranked(
            ours.samples, ours.texts, ours.image_of_text, other.image_to_text, other.text_to_image
        )
    else:
        labels, scores = random_scores(40, 2 if metric == "roc_auc" else 9, 3)
        noise = np.random.default_rng(9).normal(size=scores.shape)
        ours, theirs = classified(labels, scores), classified(labels, scores + noise)
    apart = np.array(slow_values(ours, metric, 60, 5)) - np.array(slow_values(theirs, metric, 60, 5))
    result = difference(ours, theirs, metric, resamples=60, seed=5)
    assert result.value == measure(ours, metric) - measure(theirs, metric)
    assert (result.low, result.high) == pytest.approx(tuple(np.nanquantile(apart, [0.025, 0.975])), abs=1e-12)
    assert difference(ours, ours, metric, resamples=20) == bootstrap.Difference(0.0, 0.0, 0.0)


def test_intervals_cover_the_truth_as_often_as_their_level():
    """There are 200 sets of 150 coin throws, which come up right 7 times out of 10."""
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        places = (generator.random(150) >= 0.7).astype(np.int64)
        outcome = Classified(names(150), np.zeros(150, np.int64), places, 10)
        low, high = interval(outcome, "top1", resamples=400)
        covered += low <= 0.7 <= high
    assert 0.9 <= covered / 200 <= 0.99  # 95 % within three standard errors


def test_several_metrics_share_their_draws():
    outcome = ranked(1)
    several = ["image_to_text_R@1", "text_to_image_R@1", "image_to_text_R@5"]
    assert intervals(outcome, several, resamples=50) == {
        name: interval(outcome, name, resamples=50) for name in several
    }


@pytest.mark.parametrize(
    ("outcome", "metric", "message"),
    [
        (ranked(0), "top1", r"top1 does not fit this set, since it needs one label .*image_to_text_R@1"),
        (labelled(5, 2, 0), "top5", "needs one label for each image; choose one of map_11_point$"),
        (classified(*random_scores(9, 3, 0)), "roc_auc", "needs images of two classes; choose one of top1"),
        (classified(*random_scores(9, 3, 0)), "map_11_point", "any number of labels each"),
        (classified(*random_scores(9, 3, 0)), "text_to_image_R@5", "ranks images and texts"),
        (classified(*random_scores(9, 3, 0)), "top3", "no metric 'top3'; choose one of top1, top5"),
        (classified(np.zeros(4, int), np.ones((4, 2))), "roc_auc", "are all of one kind"),
    ],
)
def test_metric_that_does_not_fit_is_refused(outcome, metric, message):
    with pytest.raises(UserError, match=message):
        measure(outcome, metric)


def test_models_on_other_samples_are_not_compared():
    labels, scores = random_scores(20, 6, 0)
    ours = classified(labels, scores)
    others = [
        classified(labels[:-1], scores[:-1]),
        classified(labels[::-1], scores[::-1]),
        Classified(tuple("x" * 20), ours.labels, ours.places, ours.classes),
        Classified(ours.samples, ours.labels, ours.places, 7),
        ranked(0),
    ]
    for theirs in others:
        with pytest.raises(UserError, match="not scored on the same samples"):
            difference(ours, theirs, "top1")
    pairs = ranked(0)
    other = Ranked(
        pairs.samples, pairs.texts[::-1], pairs.image_of_text, pairs.image_to_text, pairs.text_to_image
    )
    with pytest.raises(UserError, match="not scored on the same samples"):
        difference(pairs, other, "image_to_text_R@1")
    several = labelled(20, 3, 0)
    with pytest.raises(UserError, match="not scored on the same samples"):
        difference(several, Labelled(several.samples, ~several.labels, several.scores), "map_11_point")
