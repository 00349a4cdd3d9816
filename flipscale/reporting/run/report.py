"""`flipscale report`: the page of one run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import flipscale
from flipscale.evaluation.scores import Score, scores_of
from flipscale.formatting import format_count, format_duration, format_percent, format_quantity
from flipscale.orchestration.status.history import needs_a_person, unix_time
from flipscale.reporting.page import plots
from flipscale.reporting.page.blocks import (
    Block,
    Card,
    Cell,
    Code,
    Column,
    Gallery,
    Headline,
    Line,
    Note,
    Page,
    Plot,
    Plots,
    Section,
    Table,
)
from flipscale.reporting.page.cells import count, duration, moment, share, size
from flipscale.reporting.page.pictures import picture, without_hidden
from flipscale.reporting.run.curves import speed_section, training_section
from flipscale.reporting.run.facts import RunMaterial, last
from flipscale.reporting.run.seen_samples import TrainingView

_INTERRUPTED, _FAILED, _ENDED = "#c29a1c", "#d1495b", "#7d8690"


def run_page(material: RunMaterial) -> Page:
    """The page of a run in whatever state it is; parts that cannot be shown say why."""
    status = material.status
    total = status.samples_total
    return Page(
        title=f"Run {status.name}",
        subtitle=(
            f"{material.job.model.preset}, {format_quantity(len(material.job.phases), 'phase')}, "
            f"{format_count(total)} samples; {status.state} at {moment(status.time).text} UTC."
            + ("" if status.state == "done" else f" Next: {status.next}")
        ),
        headlines=_headlines(material),
        sections=[
            training_section(material, _segment_marks(material)),
            _evaluation_section(material),
            speed_section(material, _segment_marks(material)),
            _segment_section(material),
            _checkpoint_section(material),
            _quarantine_section(material),
            _view_section(material),
            _retrieval_section(material),
            Section("Job", [Code("job.yaml, as of the last start", material.job_text)]),
        ],
    )


def run_document(material: RunMaterial) -> dict[str, Any]:
    """What the page shows, for programs: the status document, the newest scores, and lists in full."""
    return {
        "flipscale": flipscale.__version__,
        "status": asdict(material.status),
        "last": {name: last(values) for name, values in material.series.values.items()},
        "log_lines": len(material.series),
        "evaluations": material.evaluations,
        "failed_evaluations": material.failed_evaluations,
        "checkpoints": [asdict(checkpoint) for checkpoint in material.checkpoints],
        "quarantine": asdict(material.quarantine),
        "retrieval_examples": material.retrieved
        if isinstance(material.retrieved, str)
        else [asdict(found) for _, found in material.retrieved],
    }


def _headlines(material: RunMaterial) -> list[Headline]:
    status, series = material.status, material.series
    done = format_percent(status.samples / status.samples_total)
    lines = [
        Headline(
            format_count(status.samples),
            "samples seen",
            f"{done} of {format_count(status.samples_total)}",
        ),
    ]
    loss = last(series.values["loss"])
    if loss is not None:
        lines.append(Headline(f"{loss:.3f}", "loss of the last log line"))
    if material.evaluations:
        lines += [
            Headline(
                format_percent(score.value),
                f"{score.set}, {score.measure}",
                "" if score.chance is None else f"chance {format_percent(score.chance)}",
            )
            for score in scores_of(material.evaluations[-1])
            if score.kind == "zero_shot" and score.leading
        ][:2]
    speed = status.speed.effective_images_per_second
    if speed:
        lines.append(Headline(f"{speed:,.0f}", "images/s over all wall time", "queues and replays included"))
    lines.append(
        Headline(f"{status.gpu_hours:,.2f}", "GPU-hours", format_quantity(len(status.segments), "segment"))
    )
    lines.append(Headline(format_duration(status.lost.total_seconds), "lost time", "start-up, replay, queue"))
    bad = f"{'about ' if status.quarantined_is_estimate else ''}{status.quarantined:,}"
    lines.append(Headline(bad, "unusable samples"))
    return lines


def _segment_marks(material: RunMaterial) -> list[tuple[float, str]]:
    """Where segments ended, by samples, with the colour of the reason."""
    ended = [segment for segment in material.status.segments if segment.ended and segment.reason != "done"]
    return [(segment.samples_to, _shade(segment.reason)) for segment in ended[-60:]]


def _shade(reason: str) -> str:
    if reason in ("done", "stopped", "running"):
        return _ENDED
    return _FAILED if needs_a_person(reason) or reason not in ("preempted", "timeout") else _INTERRUPTED


def _evaluation_section(material: RunMaterial) -> Section:
    blocks: list[Block] = [
        Note(
            f"The evaluation at {record['samples_seen']:,} samples failed: {record.get('error', '')}",
            missing=True,
        )
        for record in material.failed_evaluations[-3:]
    ]
    if not material.evaluations:
        hint = (
            "no evaluation was recorded yet; the first comes after evaluation.every"
            if material.job.evaluation.every
            else "no evaluation was recorded: set evaluation.every in the job, or use `flipscale eval`"
        )
        return Section("Evaluations", [*blocks, Note(hint[0].upper() + hint[1:] + ".", missing=True)])
    scores = [score for record in material.evaluations for score in scores_of(record)]
    blocks.append(
        Plots(
            [
                plot
                for title, kind in (("Zero-shot accuracy", "zero_shot"), ("Retrieval", "retrieval"))
                if (plot := _scores_plot(title, [score for score in scores if score.kind == kind]))
            ]
        )
    )
    newest = scores_of(material.evaluations[-1])
    rows = [
        [
            Cell(score.set),
            Cell(score.measure),
            share(score.value),
            share(score.chance),
            count(score.images),
        ]
        for score in newest
    ]
    seen = material.evaluations[-1]["samples_seen"]
    columns = [Column("set", False), Column("measure", False), *map(Column, ("score", "chance", "images"))]
    blocks.append(Table(columns, rows, f"The newest evaluation, at {seen:,} samples"))
    return Section("Evaluations", blocks)


def _scores_plot(title: str, scores: Sequence[Score]) -> Plot | None:
    """Scores over samples; of the measures only those that stand for the set."""
    curves: dict[str, list[Score]] = {}
    for score in scores:
        if score.leading:
            curves.setdefault(f"{score.set}, {score.measure}", []).append(score)
    if not curves:
        return None
    figure = plots.figure("samples seen", "share", percent=True)
    for number, (name, points) in enumerate(curves.items()):
        plots.line(
            figure,
            name,
            [point.samples or 0 for point in points],
            [point.value for point in points],
            plots.colour(number),
            hover="%{y:.1%} at %{x:,} samples",
            markers=True,
        )
    figure.update_yaxes(rangemode="tozero")
    return Plot(title, plots.document(figure))


def _segment_section(material: RunMaterial) -> Section:
    segments = material.status.segments
    if not segments:
        return Section(
            "Segments", [Note("No segment was recorded: the run was never started.", missing=True)]
        )
    lost = material.status.lost
    summary = Note(
        f"{format_quantity(len(segments), 'start')}; "
        f"lost: {format_duration(lost.startup_seconds)} of start-up, "
        f"{format_duration(lost.replay_seconds)} of training that was done again, "
        f"{format_duration(lost.queue_seconds)} in the queue."
    )
    times = [time for s in segments if (time := unix_time(s.started)) is not None]
    first = min(times, default=0.0)
    unit, seconds = _time_unit(max([*times, *(unix_time(s.ended or "") or first for s in segments)]) - first)
    figure = plots.figure(f"{unit} since the first start", "samples at checkpoints")
    ends: dict[str, list[tuple[float, float, str]]] = {}
    for segment in segments:
        began = unix_time(segment.started)
        ended = unix_time(segment.ended) if segment.ended else material.status.time
        if began is None or ended is None:
            continue
        x = [(began - first) / seconds, (ended - first) / seconds]
        plots.line(
            figure,
            "",
            x,
            [segment.samples_from, segment.samples_to],
            plots.colour(0),
            hover=f"segment {segment.segment}: %{{y:,}} samples",
        )
        ends.setdefault(segment.reason, []).append(
            (x[1], segment.samples_to, f"segment {segment.segment}: {segment.reason}")
        )
    for reason, places in ends.items():
        x, y, texts = (list(column) for column in zip(*places, strict=True))
        plots.points(figure, reason, x, y, _shade(reason), texts, hover="%{y:,} samples", size=10)
    rows = [
        [
            Cell(str(s.segment), s.segment),
            Cell(s.reason, tone=_tone(s.reason)),
            Cell(s.started[:19].replace("T", " ")),
            duration(s.seconds),
            count(s.samples_from),
            count(s.samples_to),
            Cell(f"{s.gpu_hours:.2f}", s.gpu_hours),
            Cell(str(s.world_size), s.world_size),
            duration(s.startup_seconds),
            duration(s.queue_seconds),
            count(s.lost_samples),
            duration(s.lost_seconds),
            duration(s.stop_seconds),
            Cell(s.job_id or "–"),
            Cell(", ".join(s.nodes) or "–"),
            Cell(s.detail or "–"),
        ]
        for s in segments
    ]
    columns = [
        Column("segment"),
        Column("ended by", False),
        Column("started (UTC)", False),
        *(Column(n) for n in ("wall time", "samples from", "to", "GPU-hours", "processes", "start-up")),
        Column("queue", hint="since the segment before"),
        Column("lost samples", hint="trained after the last checkpoint; the next segment trains them again"),
        Column("lost time"),
        Column("stop", hint="from the request to stop to the end"),
        *(Column(name, False) for name in ("job", "nodes", "detail")),
    ]
    caption = "A mark is where a segment ended; a gap is time without a process."
    progress = Plot("Progress over time", plots.document(figure), caption)
    return Section("Segments", [summary, Plots([progress]), Table(columns, rows, "The ledger")])


def _time_unit(span: float) -> tuple[str, float]:
    """The unit for a span of seconds, and its length in seconds."""
    return next((u for u in (("minutes", 60.0), ("hours", 3600.0)) if span <= 120 * u[1]), ("days", 86400.0))


def _tone(reason: str) -> str:
    return {_FAILED: "bad", _INTERRUPTED: "strong"}.get(_shade(reason), "")


def _checkpoint_section(material: RunMaterial) -> Section:
    if not material.checkpoints:
        return Section("Checkpoints", [Note("There is no committed checkpoint yet.", missing=True)])
    rows = [
        [
            Cell(c.name + (" (latest)" if c.latest else ""), tone="strong" if c.latest else ""),
            count(c.samples),
            moment(c.written),
            size(c.bytes),
            Cell("for good" if c.permanent else "until newer ones"),
            Cell(c.digest),
        ]
        for c in material.checkpoints
    ]
    columns = [
        Column("checkpoint", False),
        Column("samples"),
        Column("written (UTC)"),
        Column("size"),
        Column("kept", False),
        Column("order digest", False),
    ]
    return Section("Checkpoints", [Table(columns, rows)])


def _quarantine_section(material: RunMaterial) -> Section:
    facts = material.quarantine
    if not facts.count:
        return Section("Unusable samples", [Note("No sample was unusable so far.")])
    kinds = Table(
        [Column("reason", False), Column("samples"), Column("share of them")],
        [[Cell(reason), count(number), share(number / facts.count)] for reason, number in facts.kinds[:50]],
        f"{format_quantity(facts.count, 'sample')} could not be used; N stands for a number",
    )
    rows = [
        [Cell(str(record.get(name, "–"))) for name in ("path", "key", "reason")] for record in facts.examples
    ]
    examples = Table(
        [Column(name, False) for name in ("shard", "sample", "reason")],
        rows,
        f"The first {len(rows)} of them",
    )
    return Section("Unusable samples", [kinds, examples])


def _view_section(material: RunMaterial) -> Section:
    title = "What the model saw"
    if isinstance(material.views, str):
        reason = f"No training samples can be shown: {material.views}."
        return Section(title, [Note(reason, missing=True)])
    note = Note(
        "Training samples at their places in the run's order, cropped as in training; hatched patches were "
        "hidden from the image encoder."
    )
    return Section(title, [note, Gallery([_view_card(view) for view in material.views])])


def _view_card(view: TrainingView) -> Card:
    if view.visible is None:
        pictures = [picture(view.pixels, "whole")]
    else:
        hidden = without_hidden(view.pixels, view.visible, view.grid)
        seen = f"seen: {len(view.visible)} of {view.grid**2} patches"
        pictures = [picture(hidden, seen), picture(view.pixels, "whole view")]
    return Card(pictures, view.caption, [Line(f"phase {view.phase}, position {view.position:,}")])


def _retrieval_section(material: RunMaterial) -> Section:
    title = "Retrieval examples"
    if isinstance(material.retrieved, str):
        reason = f"No retrieval examples can be shown: {material.retrieved}."
        return Section(title, [Note(reason, missing=True)])
    if not material.retrieved:
        return Section(title, [Note("The retrieval set holds no usable sample.", missing=True)])
    pool = material.retrieved[0][1].pool
    cards = [
        Card(
            [picture(example.pixels, f"own caption ranks {found.rank} of {found.pool}")],
            example.captions[0] if example.captions else "",
            [
                Line(f"{near.similarity:.2f}  {near.caption}", "good" if near.own else "")
                for near in found.nearest
            ],
        )
        for example, found in material.retrieved
    ]
    note = Note(
        f"Validation images, and what the newest checkpoint puts nearest among {pool} captions (cosine "
        "similarity); an image's own captions are green."
    )
    return Section(title, [note, Gallery(cards)])
