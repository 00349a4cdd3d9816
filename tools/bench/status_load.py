"""Whether `flipscale status` slows a run: the images/s while it is called, and while it is not.

    python tools/bench/status_load.py JOB [KEY=VALUE ...] --out docs/benchmarks/PAGE.md

The tool trains JOB with one thread and no loader workers. A second core is then free for `flipscale status`,
which runs on another machine on a cluster. Spans with and without calls take turns in the same run.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

ROUNDS, LOOKS = 10, 5  # LOOKS: calls of `flipscale status` per round, one after the other
FLIPSCALE = (sys.executable, "-m", "flipscale")


def main() -> None:
    """Train, measure, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("job", type=Path)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--out", type=Path, required=True, help="Markdown page to write")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        run = Path(directory) / "run"
        overrides = (*arguments.overrides, f"output={run}", "data.workers=0", "logging.every=1 steps")
        training = subprocess.Popen(
            [*FLIPSCALE, "train", str(arguments.job), *overrides],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stderr=subprocess.DEVNULL,
        )
        try:
            ratios = [measure(run, training) for _ in range(ROUNDS)]
        finally:
            training.terminate()
            training.wait()
    write_page(arguments.out, arguments.job, ratios)


def measure(run: Path, training: subprocess.Popen[bytes]) -> float:
    """Return the images/s of a span with calls divided by those of a span of equal length without.

    The first steps of the run are awaited before.
    """
    while len(lines(run)) < 20:
        assert training.poll() is None, "the run ended before it was measured"
        time.sleep(0.5)

    began = time.time()
    for _ in range(LOOKS):
        subprocess.run([*FLIPSCALE, "status", str(run)], stdout=subprocess.DEVNULL, check=True)

    watched = time.time()
    time.sleep(watched - began)
    assert training.poll() is None, "the budget is too small for the measurement; give more samples"
    return rate(run, began, watched) / rate(run, watched, time.time())


def lines(run: Path) -> list[dict[str, float]]:
    """Return the complete log lines of the run."""
    try:
        text = (run / "metrics.jsonl").read_text()
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def rate(run: Path, start: float, stop: float) -> float:
    """Return the images/s of the steps that ended in this span of time."""
    inside = [line for line in lines(run) if start <= line["time"] < stop]
    return (inside[-1]["samples"] - inside[0]["samples"]) / (inside[-1]["time"] - inside[0]["time"])


def write_page(out: Path, job: Path, ratios: list[float]) -> None:
    """Write the page.

    Args:
        out: Path of the page.
        job: The job that was trained.
        ratios: The ratio of every round.
    """
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    out.write_text(
        f"# Training while `flipscale status` is called\n\n"
        f"{job}, one process of one thread on a CPU ({platform.machine()}, {os.cpu_count()} cores), torch "
        f"{torch.__version__}, commit {commit}.\n"
        f"Command: `python tools/bench/status_load.py {' '.join(sys.argv[1:])}`.\n\n"
        f"{ROUNDS} rounds of {LOOKS} calls, one after the other, and equal times without any.\n"
        "images/s with calls divided by images/s without:\n\n"
        f"median {statistics.median(ratios):.3f} (lowest {min(ratios):.3f}, highest {max(ratios):.3f})\n"
    )


if __name__ == "__main__":
    main()
