"""`flipscale eval`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import Progress, TextColumn, TimeElapsedColumn

from flipscale.commands.table import print_table
from flipscale.config import Evaluation
from flipscale.config.job import ZeroShot
from flipscale.errors import UserError
from flipscale.evaluation.document import EvaluationDocument
from flipscale.evaluation.evaluate import evaluate
from flipscale.evaluation.features import Encoder
from flipscale.placement import placement
from flipscale.trained import Trained, load_trained
from flipscale.world import World, join_world, leave_world


def evaluate_checkpoint(
    checkpoint: Path,
    zero_shot: str | None,
    classnames: str,
    templates: str,
    retrieval: str | None,
    batch_size: int,
    out: Path | None,
    as_json: bool,
) -> None:
    world = join_world(placement())
    try:
        trained = load_trained(checkpoint, world)
        sets = trained.job.evaluation if trained.job is not None else Evaluation()
        if zero_shot is not None or retrieval is not None:
            chosen = (
                ZeroShot(data=zero_shot, classnames=classnames, templates=templates) if zero_shot else None
            )
            sets = Evaluation(
                zero_shot={"zero_shot": chosen} if chosen else {},
                retrieval={"retrieval": retrieval} if retrieval else {},
            )
        if not sets.zero_shot and not sets.retrieval:
            raise UserError(
                f"the job of {checkpoint} names no evaluation sets; give --zero-shot or --retrieval"
            )
        results = _evaluated(trained, sets, batch_size, world)
    finally:
        leave_world()
    if not world.leads:
        return
    if out is not None:
        out.write_text(json.dumps(results, indent=2) + "\n")
    if as_json:
        print(json.dumps(results, indent=2))
    else:
        show_results(results)


def _evaluated(trained: Trained, sets: Evaluation, batch_size: int, world: World) -> EvaluationDocument:
    """The document of `evaluate`, with progress on the leading process's terminal."""
    encoder = Encoder(trained.model, trained.tokenizer, trained.model.spec.vision.image_size, world)
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
        shares = (scores["top1"], scores["top5"], scores["mean_per_class"], 1 / scores["classes"])
        counts = [str(scores["samples"]), str(scores["classes"])]
        zero_shot.append([name, *counts, *(f"{share:.1%}" for share in shares), str(scores["skipped"])])
    retrieval: list[list[str]] = []
    for name, scores in results["retrieval"].items():
        for direction in ("image_to_text", "text_to_image"):
            recalls = [f"{scores[direction][key]:.1%}" for key in ("R@1", "R@5", "R@10")]
            counts = [str(scores["images"]), str(scores["texts"])]
            median = f"{scores[direction]['median_rank']:g}"
            retrieval.append(
                [name, direction.replace("_", " "), *counts, *recalls, median, str(scores["skipped"])]
            )
    if zero_shot:
        print_table(
            ["zero-shot", "images", "classes", "top-1", "top-5", "mean per class", "chance", "skipped"],
            zero_shot,
        )
    if retrieval:
        print_table(
            ["retrieval", "direction", "images", "texts", "R@1", "R@5", "R@10", "median rank", "skipped"],
            retrieval,
        )
