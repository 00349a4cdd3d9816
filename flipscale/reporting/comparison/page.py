"""The page and the document of `flipscale compare`."""

from __future__ import annotations

from dataclasses import asdict

import flipscale
from flipscale.formatting import format_percent, format_quantity
from flipscale.reporting.comparison.classes import class_section
from flipscale.reporting.comparison.costs import cost_section
from flipscale.reporting.comparison.examples import example_section
from flipscale.reporting.comparison.published import paper_section, published_section
from flipscale.reporting.comparison.results import Comparison, PairedDifference, Result
from flipscale.reporting.comparison.scores import difference_section, score_section
from flipscale.reporting.page.blocks import Headline, Page

_MOST_NAMES = 4  # models that the title names
_MOST_HEADLINES = 6


def compare_page(comparison: Comparison) -> Page:
    """Return the page of a comparison."""
    results = comparison.results
    title = " · ".join(result.model.label for result in results[:_MOST_NAMES])
    if len(results) > _MOST_NAMES:
        title += f" and {len(results) - _MOST_NAMES} more"

    return Page(
        title=title,
        subtitle=(
            f"{format_quantity(len(results), 'model')}, evaluated on the same data by the same code "
            f"(flipscale {flipscale.__version__}). Intervals hold the middle 95 % of 1,000 bootstrap "
            "resamples of the images; differences are taken on the same resamples."
        ),
        headlines=_headlines(comparison),
        sections=[
            score_section(comparison),
            difference_section(comparison),
            cost_section(comparison),
            class_section(comparison),
            example_section(comparison),
            published_section(comparison),
            paper_section(),
        ],
    )


def _headlines(comparison: Comparison) -> list[Headline]:
    """Return the best score of each metric."""
    headlines: list[Headline] = []
    for metric in comparison.metrics[:_MOST_HEADLINES]:
        best = max(comparison.results, key=lambda result: result.scores[metric].value)
        value = best.scores[metric].value
        headlines.append(Headline(format_percent(value), f"best {metric.name}", best.model.label))

    return headlines


def compare_document(comparison: Comparison) -> dict[str, object]:
    """Return the results of a comparison as a JSON document, for programs."""
    return {
        "flipscale": flipscale.__version__,
        "sets": comparison.sets.model_dump(mode="json", exclude_none=True),
        "models": [_model_document(result) for result in comparison.results],
        "differences": [_difference_document(difference) for difference in comparison.differences],
    }


def _model_document(result: Result) -> dict[str, object]:
    model = result.model
    return {
        "label": model.label,
        "source": model.source,
        "kind": model.kind,
        "architecture": model.architecture,
        "parameters": model.parameters,
        "image_size": model.image_size,
        "samples_seen": model.samples_seen,
        "batch": model.batch,
        "training_flops": model.training_flops,
        "gpu_hours": model.gpu_hours,
        "remark": model.remark,
        "scores": [
            {"set": metric.set, "metric": metric.metric, **asdict(score)}
            for metric, score in result.scores.items()
        ],
        "document": result.evaluated.document,
        "examples": [asdict(nearest) for nearest in result.nearest],
    }


def _difference_document(difference: PairedDifference) -> dict[str, object]:
    return {
        "set": difference.metric.set,
        "metric": difference.metric.metric,
        "ours": difference.ours,
        "theirs": difference.theirs,
        "value": difference.value,
        "low": difference.low,
        "high": difference.high,
        "clear": difference.clear,
    }
