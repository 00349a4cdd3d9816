"""The speed of every sharding strategy on this machine's GPUs: images/s, peak memory and MFU over 20 steps.

    python tools/bench/strategies_gpu.py all --models vit_l16 vit_h14 --processes 1 --out PAGE.md
    torchrun --nproc-per-node 8 tools/bench/strategies_gpu.py one --model vit_l16 --strategy fsdp

`all` starts each measurement in fresh processes: nothing is left of the previous one, and one that runs out
of memory is a line of the table. `one` is a single measurement, under any launcher. Images and texts are
random tensors on the device: there is no loader and no checkpoint. On a CPU (`--device cpu`) the numbers
show only that the script runs.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any, get_args

import torch

from flipscale.config import Job, Sharding
from flipscale.distributed.placement import read_placement
from flipscale.distributed.world import World, join_world, leave_world
from flipscale.errors import UserError
from flipscale.models.flip import build_model
from flipscale.models.inputs import Inputs
from flipscale.models.masking import visible_patches
from flipscale.models.presets import ModelSpec, preset
from flipscale.planning.flops import training_flops
from flipscale.sharding.limits import check_sharding
from flipscale.sharding.shard import shard
from flipscale.training.gradients import accumulate_gradients

STRATEGIES: tuple[str, ...] = get_args(Sharding.model_fields["strategy"].annotation)
MASK_RATIO = 0.5
WARM_UP = 3  # steps before the clock starts: allocation, autotuning, compilation

# Dense bf16 FLOP/s of a GPU by a part of its name, from NVIDIA's data sheets (SXM if there are several).
PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "B200": 2250e12}


def job_of(options: argparse.Namespace, world: World) -> Job:
    """Return the job of a measurement, whose data are never read."""
    batch = options.batch * world.size
    sharding = {
        "strategy": options.strategy,
        "precision": "bf16",
        "activation_checkpointing": options.activation_checkpointing,
        "compile": options.compile,
    }
    if options.strategy == "hsdp":
        sharding["shard_size"] = max(1, world.size // 2)
    return Job.model_validate(
        {
            "name": "bench",
            "model": options.model,
            "data": {"train": "none.tar", "tokenizer": {"vocab": "none.txt"}, "lanes": 1},
            "phases": [
                {
                    "name": "p",
                    "samples": batch,
                    "mask_ratio": MASK_RATIO,
                    "batch_size": batch,
                    "base_lr": 1e-6,
                }
            ],
            "sharding": sharding,
        }
    )


def random_pairs(spec: ModelSpec, batch: int, world: World) -> Inputs:
    """Return random images and texts of one process, on its device, with the mask of their positions."""
    random = torch.Generator().manual_seed(world.rank)
    side = spec.vision.image_size
    images = torch.randint(256, (batch, 3, side, side), dtype=torch.uint8, generator=random)
    texts = torch.randint(spec.text.vocab_size, (batch, spec.text.context_length), generator=random)
    positions = (torch.arange(batch) + batch * world.rank).to(world.device)
    keep = visible_patches(positions, spec.vision.patches, MASK_RATIO, seed=0)
    return Inputs(images.to(world.device), texts.to(world.device), keep)


def one(options: argparse.Namespace) -> None:
    """Measure one strategy; the leading process prints the measurement as a line of JSON."""
    world = join_world(read_placement())
    try:
        measured = measure(options, world)
    finally:
        leave_world()
    if world.leads:
        print(json.dumps(measured), flush=True)


def measure(options: argparse.Namespace, world: World) -> dict[str, Any]:
    """Train some steps with one strategy, and return the measurement; all processes call it."""
    job = job_of(options, world)
    spec = preset(options.model)
    check_sharding(job.sharding, world.size, world.device.type)
    model = shard(build_model(spec, device="meta"), job.sharding, job.optimizer, job.seed, world)
    pairs = random_pairs(spec, options.batch, world)

    seconds: list[float] = []
    loss = torch.zeros(())
    for number in range(WARM_UP + options.steps):
        if number == WARM_UP and world.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        began = time.perf_counter()
        loss = accumulate_gradients(model, pairs, job.loss, job.sharding.micro_batch)["loss"]
        norm = model.gradient_norm(1.0)
        model.update(1e-6, torch.isfinite(loss) & torch.isfinite(norm))
        if world.device.type == "cuda":
            torch.cuda.synchronize()
        if number >= WARM_UP:
            seconds.append(time.perf_counter() - began)

    assert torch.isfinite(loss), "the loss is not finite: the numbers would mean nothing"

    median = statistics.median(seconds)
    images_per_second = options.batch * world.size / median
    peak = options.peak_tflops * 1e12 if options.peak_tflops else peak_flops(world)
    flops = training_flops(spec, 1, MASK_RATIO) * images_per_second / world.size
    return {
        "model": options.model,
        "strategy": options.strategy,
        "processes": world.size,
        "batch": options.batch,
        "steps": options.steps,
        "device": torch.cuda.get_device_name() if world.device.type == "cuda" else "CPU",
        "images_per_second": images_per_second,
        "step_seconds": [min(seconds), median, max(seconds)],
        "peak_memory_gb": max(world.gather(peak_memory_gb(world))),
        "tflops": flops / 1e12,
        "mfu": flops / peak if peak else None,
        "loss": float(loss),
    }


def peak_flops(world: World) -> float | None:
    """Return the dense bf16 FLOP/s of the GPU, or None if it is not known."""
    if world.device.type != "cuda":
        return None
    name = torch.cuda.get_device_name()
    return next((flops for part, flops in PEAK_FLOPS.items() if part in name), None)


def peak_memory_gb(world: World) -> float:
    """Return the peak memory: on a GPU, of the measured steps; on a CPU (Linux), of the whole process."""
    if world.device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e9
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line)
    return int(peak.split()[1]) * 1024 / 1e9


def in_fresh_processes(options: argparse.Namespace, model: str, strategy: str) -> dict[str, Any]:
    """Return the measurement, or under "error" the reason why there is none."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={options.processes}", __file__, "one"]
    command += ["--model", model, "--strategy", strategy, "--batch", str(options.batch)]
    command += ["--steps", str(options.steps), "--peak-tflops", str(options.peak_tflops)]
    command += ["--activation-checkpointing", options.activation_checkpointing]
    command += ["--compile"] if options.compile else []
    environment = {**os.environ, **({"CUDA_VISIBLE_DEVICES": ""} if options.device == "cpu" else {})}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode == 0 and lines:
        return json.loads(lines[-1])
    sys.stderr.write(done.stderr)
    problems = [line for line in done.stderr.splitlines() if "Error: " in line and "ChildFailed" not in line]
    return {"model": model, "strategy": strategy, "error": problems[-1] if problems else "no message"}


def measure_all(options: argparse.Namespace) -> None:
    """Measure every strategy with every model, and write the page if its path is given."""
    results: list[dict[str, Any]] = []
    for model in options.models:
        for strategy in options.strategies:
            results.append(in_fresh_processes(options, model, strategy))
            print(row(results[-1]), flush=True)
    if options.out is not None:
        options.out.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
        options.out.write_text(page(results, options))


def row(result: dict[str, Any]) -> str:
    """Return the row of one measurement."""
    if "error" in result:
        return f"| {result['model']} | {result['strategy']} | not run: {result['error']} | | | | |"
    least, median, most = result["step_seconds"]
    mfu = f"{result['mfu']:.1%}" if result["mfu"] is not None else ""
    return (
        f"| {result['model']} | {result['strategy']} | {result['images_per_second']:,.0f} | "
        f"{median * 1e3:,.0f} ({least * 1e3:,.0f} to {most * 1e3:,.0f}) | {result['peak_memory_gb']:.1f} | "
        f"{result['tflops']:.1f} | {mfu} |"
    )


def page(results: list[dict[str, Any]], options: argparse.Namespace) -> str:
    """Return the page as Markdown."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    device = next((result["device"] for result in results if "device" in result), "no device")
    compiled = "compiled blocks" if options.compile else "no compilation"
    lines = [
        f"# Sharding strategies on {options.processes} x {device}",
        "",
        f"Commit {commit.stdout.strip() or 'none'}, {date.today().isoformat()}, torch {torch.__version__}. "
        f"Made by `tools/bench/strategies_gpu.py all`; raw numbers next to this page (.json).",
        "",
        f"Batch {options.batch} per process, bf16, {MASK_RATIO:.0%} masked, activation checkpointing "
        f"{options.activation_checkpointing}, {compiled}; {options.steps} steps after {WARM_UP}, on random "
        "tensors. Throughput is the median's; FLOP/s are per GPU and count only forward and backward.",
        "",
        "| model | strategy | images/s | ms per step (least to most) | peak memory, GB | TFLOP/s | MFU |",
        "|---|---|---|---|---|---|---|",
        *(row(result) for result in results),
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    """Run the command of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    single = commands.add_parser("one", help="one strategy, in the processes that a launcher started")
    single.add_argument("--model", default="vit_l16")
    single.add_argument("--strategy", choices=STRATEGIES, required=True)
    everything = commands.add_parser("all", help="a table of several models and strategies")
    everything.add_argument("--models", nargs="+", default=["vit_l16", "vit_h14"])
    everything.add_argument("--strategies", nargs="+", choices=STRATEGIES, default=STRATEGIES)
    everything.add_argument("--processes", type=int, default=1, help="one per GPU of this machine")
    everything.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    everything.add_argument("--out", type=Path, help="the page (.md) to write, with its numbers next to it")
    for command in (single, everything):
        command.add_argument("--batch", type=int, default=64, help="pairs of each process")
        command.add_argument("--steps", type=int, default=20)
        command.add_argument("--activation-checkpointing", default="none")
        command.add_argument("--compile", action="store_true")
        command.add_argument("--peak-tflops", type=float, default=0.0, help="of a GPU that PEAK_FLOPS lacks")
    options = parser.parse_args()
    try:
        one(options) if options.command == "one" else measure_all(options)
    except UserError as error:
        sys.exit(f"UserError: {error}")


if __name__ == "__main__":
    main()
