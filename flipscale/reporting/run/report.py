"""The page and the document of `flipscale report`."""

from __future__ import annotations

from dataclasses import asdict

import flipscale
from flipscale.evaluation.scores import scores_of
from flipscale.formatting import format_count, format_duration, format_percent, format_quantity
from flipscale.rehearsal.results import Rehearsal
from flipscale.reporting.page.blocks import Code, Headline, Page, Section
from flipscale.reporting.page.cells import time_cell
from flipscale.reporting.run.curves import speed_section, training_section
from flipscale.reporting.run.evaluations import evaluation_section
from flipscale.reporting.run.examples import retrieval_section, seen_section
from flipscale.reporting.run.facts import RunFacts
from flipscale.reporting.run.files import checkpoint_section, quarantine_section
from flipscale.reporting.run.rehearsal import rehearsal_sections
from flipscale.reporting.run.segments import segment_marks, segment_section

_MOST_SCORES = 2  # zero-shot scores among the headlines


def run_page(facts: RunFacts) -> Page:
    """Return the page of a run, in whatever state the run is; parts that cannot be shown say why."""
    status = facts.status
    phases = format_quantity(len(facts.job.phases), "phase")
    subtitle = (
        f"{facts.job.model.preset}, {phases}, {format_count(status.samples_total)} samples; "
        f"{status.state} at {time_cell(status.time).text} UTC."
    )
    if status.state != "done":
        subtitle += f" Next: {status.next}"

    marks = segment_marks(facts)
    return Page(
        title=f"Run {status.name}",
        subtitle=subtitle,
        headlines=_headlines(facts),
        sections=[
            training_section(facts, marks),
            evaluation_section(facts),
            speed_section(facts, marks),
            segment_section(facts),
            *rehearsal_sections(facts),
            checkpoint_section(facts),
            quarantine_section(facts),
            seen_section(facts),
            retrieval_section(facts),
            Section("Job", [Code("job.yaml, as of the last start", facts.job_text)]),
        ],
    )


def run_document(facts: RunFacts) -> dict[str, object]:
    """Return the content of the page as a JSON document, for programs; lists are complete."""
    examples = facts.retrieval_examples
    return {
        "flipscale": flipscale.__version__,
        "status": asdict(facts.status),
        "last": {name: facts.series.last(name) for name in facts.series.values},
        "log_lines": len(facts.series),
        "evaluations": [evaluation.document for evaluation in facts.evaluations],
        "failed_evaluations": [evaluation.document for evaluation in facts.failed_evaluations],
        "checkpoints": [asdict(checkpoint) for checkpoint in facts.checkpoints],
        "quarantine": asdict(facts.quarantine),
        "rehearsal": asdict(facts.rehearsal) if isinstance(facts.rehearsal, Rehearsal) else facts.rehearsal,
        "retrieval_examples": (
            examples if isinstance(examples, str) else [asdict(retrieved.nearest) for retrieved in examples]
        ),
    }


def _headlines(facts: RunFacts) -> list[Headline]:
    """Return the numbers at the top of the page; those that are not known are left out."""
    status = facts.status
    done = format_percent(status.samples / status.samples_total)
    total = format_count(status.samples_total)
    headlines = [Headline(format_count(status.samples), "samples seen", f"{done} of {total}")]

    loss = facts.series.last("loss")
    if loss is not None:
        headlines.append(Headline(f"{loss:.3f}", "loss of the last log line"))
    headlines += _score_headlines(facts)

    speed = status.speed.effective_images_per_second
    if speed:
        headlines.append(
            Headline(f"{speed:,.0f}", "images/s over all wall time", "queues and replays included")
        )
    segments = format_quantity(len(status.segments), "segment")
    headlines.append(Headline(f"{status.gpu_hours:,.2f}", "GPU-hours", segments))

    lost = format_duration(status.lost.total_seconds)
    headlines.append(Headline(lost, "lost time", "start-up, replay, queue"))

    about = "about " if status.quarantined_is_estimate else ""
    headlines.append(Headline(f"{about}{status.quarantined:,}", "unusable samples"))
    return headlines


def _score_headlines(facts: RunFacts) -> list[Headline]:
    """Return the leading zero-shot scores of the newest evaluation."""
    if not facts.evaluations:
        return []

    scores = [
        score
        for score in scores_of(facts.evaluations[-1].document)
        if score.kind == "zero_shot" and score.leading
    ]
    return [
        Headline(
            format_percent(score.value),
            f"{score.set}, {score.measure}",
            "" if score.chance is None else f"chance {format_percent(score.chance)}",
        )
        for score in scores[:_MOST_SCORES]
    ]
