"""`flipscale eval`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import cast, get_args

from rich.console import Console
from rich.progress import Progress, TextColumn, TimeElapsedColumn

from flipscale.cli.console import print_table
from flipscale.cli.results import write_results
from flipscale.config import Evaluation, ZeroShot, ZeroShotMetric, load_evaluation
from flipscale.distributed.placement import read_placement
from flipscale.distributed.world import World, join_world, leave_world
from flipscale.errors import UserError
from flipscale.evaluation.document import EvaluationDocument, Interval
from flipscale.evaluation.evaluate import check_sets, evaluate
from flipscale.evaluation.features import Encoder
from flipscale.evaluation.masked_views import Views
from flipscale.files import check_writable
from flipscale.formatting import format_interval, format_percent
from flipscale.interop.load_model import LoadedModel, load_model

_OF_ZERO_SHOT = {"classnames": "folders", "templates": "openai7", "metric": "top1", "subset": None}
"""What the options of that set are where they are not given."""


def given_sets(
    file: Path | None,
    zero_shot: str | None,
    classnames: str,
    templates: str,
    metric: str,
    subset: str | None,
    retrieval: str | None,
) -> Evaluation | None:
    """The sets that the command line names; None where it names none."""
    if zero_shot is None:
        _no_options_of_zero_shot(classnames=classnames, templates=templates, metric=metric, subset=subset)
    if file is not None and (zero_shot is not None or retrieval is not None):
        raise UserError("--sets comes without --zero-shot and --retrieval; put these sets into the file")
    if file is not None:
        return load_evaluation(file)
    if zero_shot is None and retrieval is None:
        return None
    if metric not in get_args(ZeroShotMetric):
        raise UserError(f"--metric {metric} is none; choose one of {', '.join(get_args(ZeroShotMetric))}")
    chosen = ZeroShot(
        data=zero_shot or "",
        classnames=classnames,
        templates=templates,
        metric=cast("ZeroShotMetric", metric),
        subset=subset,
    )
    return Evaluation(
        zero_shot={"zero_shot": chosen} if zero_shot else {},
        retrieval={"retrieval": retrieval} if retrieval else {},
    )


def _no_options_of_zero_shot(**given: str | None) -> None:
    """Raise UserError for an option of the set that --zero-shot names, where it names none."""
    for name, value in given.items():
        if value != _OF_ZERO_SHOT[name]:
            raise UserError(
                f"--{name} {value} belongs to the set that --zero-shot names; give that too, or set `{name}` "
                "in the job's evaluation block or the file of --sets"
            )


def evaluate_checkpoint(
    checkpoint: Path,
    given: Evaluation | None,
    root: str | None,
    mask_ratio: float | None,
    ensemble: bool,
    batch_size: int,
    out: Path | None,
    as_json: bool,
) -> None:
    world = join_world(read_placement())
    try:
        if out is not None:
            world.lead(lambda: check_writable(out))
        trained = load_model(checkpoint, world)
        sets = given or (trained.job.evaluation if trained.job is not None else Evaluation())
        if root is not None:
            sets = sets.model_copy(update={"root": root})
        if not sets.zero_shot and not sets.retrieval:
            raise UserError(
                f"the job of {checkpoint} names no evaluation sets; give --zero-shot, --retrieval or --sets"
            )
        world.lead(lambda: check_sets(sets))
        views = _views(trained, mask_ratio, ensemble)
        results = _evaluated(trained, sets, views, batch_size, world)
    finally:
        leave_world()
    if not world.leads:
        return
    if as_json:
        print(json.dumps(results, indent=2))
    else:
        show_results(results)
    if out is not None:
        write_results(results, out)


def _views(trained: LoadedModel, mask_ratio: float | None, ensemble: bool) -> Views | None:
    if mask_ratio is None:
        if ensemble:
            raise UserError("--ensemble averages masked views; say with --mask-ratio how much each one hides")
        return None
    return Views(trained.model.encode_image, mask_ratio, trained.model.spec.vision.patches, ensemble)


def _evaluated(
    trained: LoadedModel, sets: Evaluation, views: Views | None, batch_size: int, world: World
) -> EvaluationDocument:
    """The document of `evaluate`, with progress on the leading process's terminal."""
    encoder = Encoder(trained.model, trained.tokenizer, trained.model.spec.vision.image_size, world, views)
    with Progress(
        TextColumn("evaluating {task.description}: {task.completed:.0f} images"),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        disable=not (world.leads and sys.stderr.isatty()),
    ) as progress:
        tasks = {name: progress.add_task(name, total=None) for name in (*sets.zero_shot, *sets.retrieval)}
        return evaluate(
            encoder,
            sets,
            samples_seen=trained.samples_seen,
            batch_size=batch_size,
            progress=lambda name, images: progress.update(tasks[name], completed=images * world.size),
        )


def show_results(results: EvaluationDocument) -> None:
    """Print the document of `evaluate` as tables."""
    zero_shot: list[list[str]] = []
    for name, scores in results["zero_shot"].items():
        absent = (scores["per_class"] or []).count(None)
        zero_shot.append(
            [
                name,
                str(scores["samples"]),
                str(scores["classes"]) + (f" ({absent} without images)" if absent else ""),
                scores["metric"],
                format_percent(scores["value"]),
                _range(scores["interval"]),
                *(_share(scores[figure]) for figure in ("top1", "top5", "mean_per_class")),
                "" if scores["top1"] is None else format_percent(1 / scores["classes"]),
                str(scores["skipped"]),
            ]
        )
    retrieval: list[list[str]] = []
    for name, scores in results["retrieval"].items():
        for way, found in (
            ("image to text", scores["image_to_text"]),
            ("text to image", scores["text_to_image"]),
        ):
            counts = [str(scores["images"]), str(scores["texts"])]
            recalls = [format_percent(recall) for recall in (found["R@1"], found["R@5"], found["R@10"])]
            recalls.insert(1, _range(found["intervals"]["R@1"]))
            median = f"{found['median_rank']:g}"
            retrieval.append([name, way, *counts, *recalls, median, str(scores["skipped"])])
    if results["views"] is not None:
        kind = "averaged over views" if results["views"]["ensemble"] else "one view"
        print(f"with {results['views']['mask_ratio']:.0%} of the patches hidden, {kind}")
    if zero_shot:
        figures = ["top-1", "top-5", "mean per class", "chance", "skipped"]
        print_table(["zero-shot", "images", "classes", "metric", "value", "95 %", *figures], zero_shot)
    if retrieval:
        figures = ["R@1", "95 %", "R@5", "R@10", "median rank", "skipped"]
        print_table(["retrieval", "direction", "images", "texts", *figures], retrieval)


def _share(figure: float | None) -> str:
    return "" if figure is None else format_percent(figure)


def _range(interval: Interval) -> str:
    return "" if interval is None else format_interval(interval)
