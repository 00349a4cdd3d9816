"""`flipscale eval`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from flipscale.config import Evaluation
from flipscale.config.job import ZeroShot
from flipscale.errors import UserError
from flipscale.evaluation.evaluate import evaluate
from flipscale.trained import load_trained


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
    trained = load_trained(checkpoint)
    sets = trained.job.evaluation if trained.job is not None else Evaluation()
    if zero_shot is not None or retrieval is not None:
        chosen = ZeroShot(data=zero_shot, classnames=classnames, templates=templates) if zero_shot else None
        sets = Evaluation(
            zero_shot={"zero_shot": chosen} if chosen else {},
            retrieval={"retrieval": retrieval} if retrieval else {},
        )
    if not sets.zero_shot and not sets.retrieval:
        raise UserError(f"the job of {checkpoint} names no evaluation sets; give --zero-shot or --retrieval")
    with Progress(
        TextColumn("evaluating {task.description}: {task.completed:.0f} images"),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        disable=not sys.stderr.isatty(),
    ) as progress:
        tasks = {name: progress.add_task(name, total=None) for name in (*sets.zero_shot, *sets.retrieval)}
        results = evaluate(
            trained.model,
            trained.tokenizer,
            trained.model.spec.vision.image_size,
            sets,
            samples_seen=trained.samples_seen,
            batch_size=batch_size,
            progress=lambda name, images: progress.update(tasks[name], completed=images),
        )
    if out is not None:
        out.write_text(json.dumps(results, indent=2) + "\n")
    if as_json:
        print(json.dumps(results, indent=2))
    else:
        show_results(results, Console())


def show_results(results: dict[str, Any], console: Console) -> None:
    """Print the document of `evaluate` as tables."""
    if results["zero_shot"]:
        table = Table(
            "zero-shot", "images", "classes", "top-1", "top-5", "mean per class", "chance", "skipped"
        )
        for name, scores in results["zero_shot"].items():
            shares = (scores["top1"], scores["top5"], scores["mean_per_class"], 1 / scores["classes"])
            counts = (str(scores["samples"]), str(scores["classes"]))
            table.add_row(name, *counts, *(f"{share:.1%}" for share in shares), str(scores["skipped"]))
        console.print(table)
    if results["retrieval"]:
        table = Table(
            "retrieval", "direction", "images", "texts", "R@1", "R@5", "R@10", "median rank", "skipped"
        )
        for name, scores in results["retrieval"].items():
            for direction in ("image_to_text", "text_to_image"):
                ranks = scores[direction]
                table.add_row(
                    name,
                    direction.replace("_", " "),
                    str(scores["images"]),
                    str(scores["texts"]),
                    *(f"{ranks[key]:.1%}" for key in ("R@1", "R@5", "R@10")),
                    f"{ranks['median_rank']:g}",
                    str(scores["skipped"]),
                )
        console.print(table)
