"""Memory and time of the contrastive losses, forward and backward, beside OpenCLIP's ClipLoss.

    python tools/bench/contrastive_memory.py all --out docs/benchmarks/contrastive_memory_cpu_DATE.md

writes a page and, beside it, its raw numbers (.json). The other commands make one measurement each and print
it as JSON; `all` starts them in fresh processes, so that every peak is a process's own. Linux only (/proc).
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from torch.nn.functional import normalize

from flipscale.losses.contrastive import contrastive_loss
from flipscale.losses.sigmoid import sigmoid_loss
from flipscale.third_party import import_open_clip

WIDTH = 512
BATCHES = (8192, 16384, 32768, 65536)
TIMED = ((8192, 2, 7), (16384, 2, 5), (8192, 1, 5))  # batch, threads, repeats of each loss
SHARE_BATCH, SHARE_RANKS = 65536, 8
DENSE_BYTES = 16  # of OpenCLIP's peak, an entry of the batch x batch matrix: four fp32 matrices

PAGE = """# Memory and time of the contrastive loss

Commit {commit}, {date}. {processor}, {threads} threads, torch {torch}, open_clip {open_clip}.
Features 512 wide, fp32, logit scale 100, forward and backward.
Made by `tools/bench/contrastive_memory.py all`; raw numbers: `{raw}`.

## One process: growth of the peak resident memory
Over what is held once the inputs are made, in a fresh process; the gradients of the features are part of it.
Seconds are of that one run. Where OpenCLIP's loss does not fit the free memory, its figure is calculated:
four fp32 matrices of batch x batch, which is what it takes at the other sizes.

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


def loss_named(name: str) -> Callable[..., Tensor]:
    if name == "flipscale":
        return contrastive_loss
    if name == "flipscale_sigmoid":
        bias = torch.tensor(-10.0, requires_grad=True)
        return lambda images, texts, scale: sigmoid_loss(images, texts, scale, bias)
    return import_open_clip().loss.ClipLoss()


def features(batch: int, width: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images, texts = (normalize(torch.randn(batch, width, generator=generator)) for _ in range(2))
    return images.requires_grad_(), texts.requires_grad_(), torch.tensor(100.0, requires_grad=True)


def held_bytes(field: str, source: str = "/proc/self/status") -> int:
    """VmRSS (held now) or VmHWM (the most held since the last reset) of this process, in bytes."""
    lines = dict(line.split(":", 1) for line in Path(source).read_text().splitlines())
    return int(lines[field].split()[0]) * 1024


def run(loss: Callable[..., Tensor], inputs: tuple[Tensor, Tensor, Tensor]) -> dict[str, Any]:
    """One forward and backward pass: its value, its seconds, and the growth of the peak over the inputs."""
    ctypes.CDLL(None).malloc_trim(0)  # else memory freed earlier would be used again, uncounted
    Path("/proc/self/clear_refs").write_text("5")  # sets the peak back to what is held now
    before = held_bytes("VmRSS")
    start, processor_start = time.perf_counter(), time.process_time()
    value = loss(*inputs)
    value.backward()
    return {
        "loss": value.item(),
        "seconds": time.perf_counter() - start,
        "processor_seconds": time.process_time() - processor_start,
        "peak_growth_bytes": held_bytes("VmHWM") - before,
    }


def measure(name: str, batch: int, width: int) -> dict[str, Any]:
    loss = loss_named(name)
    inputs = features(batch, width)
    run(loss, features(64, width, seed=1))  # starts the threads and library buffers, uncounted for every loss
    return run(loss, inputs)


def take_turns(batch: int, repeats: int) -> dict[str, list[dict[str, Any]]]:
    """Both losses, one after the other in one process; the first pair warms up and is dropped."""
    losses = {name: loss_named(name) for name in ("flipscale", "open_clip")}
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in losses}
    for _ in range(repeats + 1):
        for name, loss in losses.items():
            runs[name].append(run(loss, features(batch, WIDTH)))
    return {name: values[1:] for name, values in runs.items()}


def share(batch: int, ranks: int) -> dict[str, Any]:
    """The distributed loss on this machine: each rank a process with batch / ranks pairs and one thread."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    with mp.get_context("spawn").Manager() as manager:
        answers = manager.dict()
        mp.spawn(_one_rank, (batch, ranks, store.port, answers), nprocs=ranks)
        results = [answers[rank] for rank in range(ranks)]
    return {
        "loss": results[0]["loss"],
        "seconds": max(result["seconds"] for result in results),
        "peak_growth_bytes": [result["peak_growth_bytes"] for result in results],
    }


def _one_rank(rank: int, batch: int, ranks: int, port: int, answers: Any) -> None:
    torch.set_num_threads(1)
    store = dist.TCPStore("127.0.0.1", port)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks)
    inputs = features(batch // ranks, WIDTH, seed=rank)
    run(contrastive_loss, features(64, WIDTH, seed=rank))  # opens the connections too
    dist.barrier()
    answers[rank] = run(contrastive_loss, inputs)
    dist.barrier()
    dist.destroy_process_group()


def in_fresh_process(*arguments: object) -> dict[str, Any]:
    command = [sys.executable, __file__, *map(str, arguments)]
    environment = {**os.environ, "OMP_WAIT_POLICY": "passive"}
    print("measuring:", *arguments, file=sys.stderr, flush=True)
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    return json.loads(done.stdout)


def measure_all(threads: int) -> dict[str, Any]:
    option = f"--threads={threads}"
    memory: dict[str, dict[str, Any]] = {}
    for batch in BATCHES:
        fits = 1.1 * DENSE_BYTES * batch**2 < held_bytes("MemAvailable", "/proc/meminfo")
        names = ["flipscale", "flipscale_sigmoid", *(["open_clip"] if fits else [])]
        memory[str(batch)] = {name: in_fresh_process("measure", name, batch, option) for name in names}
    return {
        "about": about(threads),
        "memory": memory,
        "turns": [
            {
                "batch": batch,
                "threads": count,
                **in_fresh_process("turns", batch, repeats, f"--threads={count}"),
            }
            for batch, count, repeats in TIMED
        ],
        "share": in_fresh_process("share", SHARE_BATCH, SHARE_RANKS),
    }


def about(threads: int) -> dict[str, Any]:
    git = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return {
        "date": date.today().isoformat(),
        "commit": git.stdout.strip() if git.returncode == 0 else "(the first)",
        "processor": names[0] if names else platform.machine(),
        "threads": threads,
        "torch": torch.__version__,
        "open_clip": import_open_clip().__version__,
    }


def page(results: dict[str, Any], raw: str) -> str:
    return PAGE.format(
        **results["about"],
        raw=raw,
        memory="\n".join(memory_row(int(batch), row) for batch, row in results["memory"].items()),
        turns="\n".join(turns_row(row) for row in results["turns"]),
        share=max(results["share"]["peak_growth_bytes"]) / 1e9,
        share_seconds=results["share"]["seconds"],
    )


def memory_row(batch: int, row: dict[str, Any]) -> str:
    ours, dense, sigmoid = row["flipscale"], row.get("open_clip"), row["flipscale_sigmoid"]
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
    ours, dense = row["flipscale"], row["open_clip"]

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


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("measure", help="peak growth of one loss at one batch")
    one.add_argument("loss", choices=["flipscale", "flipscale_sigmoid", "open_clip"])
    one.add_argument("batch", type=int)
    one.add_argument("--width", type=int, default=WIDTH)
    turns = commands.add_parser("turns", help="seconds of both losses, in turns")
    turns.add_argument("batch", type=int)
    turns.add_argument("repeats", type=int)
    ranks = commands.add_parser("share", help="peak growth of each rank of the distributed loss")
    ranks.add_argument("batch", type=int)
    ranks.add_argument("ranks", type=int)
    everything = commands.add_parser("all", help="all of it, to a page")
    everything.add_argument(
        "--out", type=Path, required=True, help="the page (.md); its numbers go beside it"
    )
    for command in (one, turns, everything):
        command.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()

    torch.set_num_threads(getattr(arguments, "threads", 1))
    if arguments.command == "measure":
        print(json.dumps(measure(arguments.loss, arguments.batch, arguments.width)))
    elif arguments.command == "turns":
        print(json.dumps(take_turns(arguments.batch, arguments.repeats)))
    elif arguments.command == "share":
        print(json.dumps(share(arguments.batch, arguments.ranks)))
    else:
        results = measure_all(arguments.threads)
        raw = arguments.out.with_suffix(".json")
        raw.write_text(json.dumps(results, indent=1) + "\n")
        arguments.out.write_text(page(results, raw.name))


if __name__ == "__main__":
    main()
