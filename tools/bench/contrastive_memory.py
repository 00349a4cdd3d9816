"""Memory and time of the contrastive losses, forward and backward, compared with OpenCLIP's ClipLoss.

    python tools/bench/contrastive_memory.py all --out docs/benchmarks/contrastive_memory_cpu_DATE.md

The tool writes a page and, next to it, the raw numbers (.json). The other commands make one measurement
each and print it as JSON; `all` starts them in fresh processes, so that every peak is of one measurement.
The tool reads /proc, which only Linux has.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from contrastive_memory_page import DENSE_BYTES, page
from torch import Tensor
from torch.nn.functional import normalize

from flipscale.losses.contrastive import contrastive_loss
from flipscale.losses.sigmoid import sigmoid_loss
from flipscale.third_party import import_open_clip

WIDTH = 512
BATCHES = (8192, 16384, 32768, 65536)
TIMED = ((8192, 2, 7), (16384, 2, 5), (8192, 1, 5))  # batch, threads, repeats of each loss
SHARE_BATCH, SHARE_RANKS = 65536, 8


def loss_named(name: str) -> Callable[..., Tensor]:
    """Return the loss of this name: flipscale, flipscale_sigmoid or open_clip."""
    if name == "flipscale":
        return contrastive_loss
    if name == "flipscale_sigmoid":
        bias = torch.tensor(-10.0, requires_grad=True)
        return partial(sigmoid_loss, logit_bias=bias)
    return import_open_clip().loss.ClipLoss()


def features(batch: int, width: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Return random normalised features of images and texts, (batch, width) each, and the logit scale."""
    generator = torch.Generator().manual_seed(seed)
    images, texts = (normalize(torch.randn(batch, width, generator=generator)) for _ in range(2))
    return images.requires_grad_(), texts.requires_grad_(), torch.tensor(100.0, requires_grad=True)


def held_bytes(field: str, source: str = "/proc/self/status") -> int:
    """Return VmRSS (memory in use) or VmHWM (the peak since the last reset) of this process, in bytes."""
    lines = dict(line.split(":", 1) for line in Path(source).read_text().splitlines())
    return int(lines[field].split()[0]) * 1024


def run(loss: Callable[..., Tensor], inputs: tuple[Tensor, Tensor, Tensor]) -> dict[str, Any]:
    """Run forward and backward once; return the loss, the seconds, and the growth of the peak memory."""
    ctypes.CDLL(None).malloc_trim(0)  # otherwise memory that was freed earlier would be used again, uncounted
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak to the memory in use
    before = held_bytes("VmRSS")

    start = time.perf_counter()
    processor_start = time.process_time()
    value = loss(*inputs)
    value.backward()

    return {
        "loss": value.item(),
        "seconds": time.perf_counter() - start,
        "processor_seconds": time.process_time() - processor_start,
        "peak_growth_bytes": held_bytes("VmHWM") - before,
    }


def measure(name: str, batch: int, width: int) -> dict[str, Any]:
    """Measure one loss at one batch, after a small warm-up."""
    loss = loss_named(name)
    inputs = features(batch, width)
    run(loss, features(64, width, seed=1))  # starts the threads and library buffers, uncounted for every loss
    return run(loss, inputs)


def take_turns(batch: int, repeats: int) -> dict[str, list[dict[str, Any]]]:
    """Run both losses in turns in one process; the first turn warms up and is left out."""
    losses = {name: loss_named(name) for name in ("flipscale", "open_clip")}
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in losses}
    for _ in range(repeats + 1):
        for name, loss in losses.items():
            runs[name].append(run(loss, features(batch, WIDTH)))
    return {name: values[1:] for name, values in runs.items()}


def share(batch: int, ranks: int) -> dict[str, Any]:
    """Measure the distributed loss: each rank is a process with batch / ranks pairs and one thread."""
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
    """Measure one rank, and put the measurement into `answers`."""
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
    """Run a command of this tool in a process of its own, and return what it prints."""
    command = [sys.executable, __file__, *map(str, arguments)]
    environment = {**os.environ, "OMP_WAIT_POLICY": "passive"}
    print("measuring:", *arguments, file=sys.stderr, flush=True)
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    return json.loads(done.stdout)


def measure_all(threads: int) -> dict[str, Any]:
    """Make all measurements."""
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
    """Return what the page says about commit, machine and libraries."""
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


def main() -> None:
    """Run the command of the command line."""
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
        "--out", type=Path, required=True, help="the page (.md); its numbers are written next to it"
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
