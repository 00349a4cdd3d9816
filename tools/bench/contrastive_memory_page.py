"""The page of the benchmark of contrastive losses."""

from __future__ import annotations

import statistics
from typing import Any

DENSE_BYTES = 16  # OpenCLIP's peak per entry of the batch x batch matrix: four fp32 matrices

PAGE = """# Memory and time of the contrastive loss

Commit {commit}, {date}. {processor}, {threads} threads, torch {torch}, open_clip {open_clip}.
Features 512 wide, fp32, logit scale 100, forward and backward.
Made by `tools/bench/contrastive_memory.py all`; raw numbers: `{raw}`.

## One process: growth of the peak resident memory
Growth over the memory in use once the inputs exist, in a fresh process; it includes the gradients of the
features. Seconds are of that one run. If OpenCLIP's loss does not fit into the free memory, its number is
calculated: four fp32 matrices of batch x batch, as at the other sizes.

| batch | flipscale MiB | OpenCLIP MiB | ratio | flipscale s | OpenCLIP s | sigmoid MiB | sigmoid s |
|---|---|---|---|---|---|---|---|
{memory}

## Time: the two losses in turns in one process
Ratios are flipscale : OpenCLIP, of each pair of neighbouring runs: median (lowest to highest). The machine
is shared: processor seconds leave out the time taken by others, and OMP_WAIT_POLICY=passive keeps waiting
threads from spinning, for both losses.

| batch | threads | repeats | flipscale s | OpenCLIP s | ratio of seconds | ratio of processor seconds |
|---|---|---|---|---|---|---|
{turns}

## Share of one rank: global batch 65,536 on 8 ranks
Eight real processes over gloo, 8,192 pairs and one thread each; gathered texts, gradients, tiles and the
buffers of gloo are counted. The published figures are of 8 GPUs (Inf-CLIP README).

| flipscale, largest of 8 ranks | OpenCLIP local loss (published) | Inf-CL (published) | flipscale s |
|---|---|---|---|
| {share:.3f} GB | 8.63 GB | 0.36 GB | {share_seconds:.0f} |
"""


def page(results: dict[str, Any], raw: str) -> str:
    """Return the page as Markdown.

    Args:
        results: The measurements.
        raw: Name of the file that has them.
    """
    return PAGE.format(
        **results["about"],
        raw=raw,
        memory="\n".join(memory_row(int(batch), row) for batch, row in results["memory"].items()),
        turns="\n".join(turns_row(row) for row in results["turns"]),
        share=max(results["share"]["peak_growth_bytes"]) / 1e9,
        share_seconds=results["share"]["seconds"],
    )


def memory_row(batch: int, row: dict[str, Any]) -> str:
    """Return the row of one batch in the table of memory."""
    ours = row["flipscale"]
    dense = row.get("open_clip")
    sigmoid = row["flipscale_sigmoid"]
    dense_bytes = dense["peak_growth_bytes"] if dense else DENSE_BYTES * batch**2
    cells = [
        f"{batch:,}",
        f"{ours['peak_growth_bytes'] / 2**20:,.0f}",
        f"{dense_bytes / 2**20:,.0f}" + ("" if dense else " (calculated)"),
        f"{dense_bytes / ours['peak_growth_bytes']:.0f}",
        f"{ours['seconds']:.1f}",
        f"{dense['seconds']:.1f}" if dense else "does not fit",
        f"{sigmoid['peak_growth_bytes'] / 2**20:,.0f}",
        f"{sigmoid['seconds']:.1f}",
    ]
    return f"| {' | '.join(cells)} |"


def turns_row(row: dict[str, Any]) -> str:
    """Return the row of one batch in the table of times."""
    ours = row["flipscale"]
    dense = row["open_clip"]

    def ratio(field: str) -> str:
        ratios = [a[field] / b[field] for a, b in zip(ours, dense, strict=True)]
        return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"

    cells = [
        f"{row['batch']:,}",
        str(row["threads"]),
        str(len(ours)),
        f"{statistics.median(run['seconds'] for run in ours):.2f}",
        f"{statistics.median(run['seconds'] for run in dense):.2f}",
        ratio("seconds"),
        ratio("processor_seconds"),
    ]
    return f"| {' | '.join(cells)} |"
