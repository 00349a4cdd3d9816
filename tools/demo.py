"""Run all of flipscale on this machine in minutes (`make demo`): data, training, evaluation, export.

It runs the commands that a user would type, prints each, and ends with a table.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]  # all paths below are relative to it
JOB = "jobs/quickstart.yaml"
DATA = "demo/data"
VOCABULARY = "demo/vocab.txt"
TRAIN_SHARDS = "demo/data/train/{00000..00007}.tar"
RUN = "demo/run"
EXPORT = "demo/openclip"
RESULTS = "demo/results.json"


def main() -> None:
    """Run the commands one after another; data that is there already is used again."""
    console = Console()
    began = time.monotonic()

    if not (ROOT / DATA / "README.md").exists():  # written last, so that it marks a complete set
        shutil.rmtree(ROOT / DATA, ignore_errors=True)
        flipscale(console, "data", "synth", DATA, "--train", "8000", "--val", "500", "--test", "1800")
    if not (ROOT / VOCABULARY).exists():
        flipscale(console, "data", "vocab", TRAIN_SHARDS, VOCABULARY, "--size", "1000")

    trained_from = time.monotonic()
    flipscale(console, "train", JOB)
    trained = time.monotonic() - trained_from

    flipscale(console, "data", "audit", RUN)
    flipscale(console, "eval", RUN, "--out", RESULTS)
    flipscale(console, "export", RUN, EXPORT)
    summarize(console, trained, time.monotonic() - began)


def flipscale(console: Console, *arguments: str) -> None:
    """Print a command and run it; exit with its code if it fails."""
    console.print(f"[bold]$ flipscale {' '.join(arguments)}[/bold]", highlight=False, soft_wrap=True)
    # Threads that spin while they wait would take the cores from the loader and from other programs.
    environment = {"OMP_WAIT_POLICY": "passive", **os.environ}
    command = [sys.executable, "-m", "flipscale", *arguments]

    code = subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode
    if code:
        sys.exit(code)


def summarize(console: Console, training_seconds: float, seconds: float) -> None:
    """Print a table: what each phase did, what the model scores, and where the files are."""
    metrics = [json.loads(line) for line in (ROOT / RUN / "metrics.jsonl").read_text().splitlines()]
    results = json.loads((ROOT / RESULTS).read_text())

    table = Table("", "", title="flipscale demo", show_header=False)
    for phase in dict.fromkeys(record["phase"] for record in metrics):
        records = [record for record in metrics if record["phase"] == phase]
        speed = sorted(record["images_per_second"] for record in records)[len(records) // 2]
        table.add_row(
            f"phase {phase}",
            f"to {records[-1]['samples']:,} samples seen, loss {records[0]['loss']:.2f} to "
            f"{records[-1]['loss']:.2f}, {speed:,.0f} images/s",
        )

    for name, scores in results["zero_shot"].items():
        table.add_row(
            f"zero-shot, {name.replace('_', ' ')}",
            f"top-1 {scores['top1']:.1%}, top-5 {scores['top5']:.1%} of {scores['samples']} unseen images "
            f"in {scores['classes']} classes (chance {1 / scores['classes']:.1%})",
        )

    for name, scores in results["retrieval"].items():
        table.add_row(
            f"retrieval, {name}",
            f"image to text R@1 {scores['image_to_text']['R@1']:.1%}, text to image R@1 "
            f"{scores['text_to_image']['R@1']:.1%} of {scores['images']} pairs",
        )

    table.add_row("time", f"{seconds:.0f} s, of which {training_seconds:.0f} s training")
    table.add_row("run", RUN)
    table.add_row("OpenCLIP model", f"{EXPORT} (verified with stock open_clip)")
    console.print(table)


if __name__ == "__main__":
    main()
