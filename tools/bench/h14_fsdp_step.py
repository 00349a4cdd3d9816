"""ViT-H/14 in little memory: a step and a checkpoint with FSDP on two processes, and an export by one.

    python tools/bench/h14_fsdp_step.py all --work DIRECTORY [--out docs/benchmarks/h14_fsdp_cpu_DATE.md]

DIRECTORY needs 24 GB for vit_h14; its files are not deleted afterwards. `step` (under torchrun) and
`export` are the two halves; each prints its measurements as JSON. Peaks are resident memory (VmHWM), which
only Linux reports. In `step`, the weights of the blocks are gathered in bf16, all activations are
recomputed, and half of the patches are masked.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import HuggingFaceStorageWriter

from flipscale.config import Job
from flipscale.distributed.placement import read_placement
from flipscale.distributed.world import join_world, leave_world
from flipscale.interop.openclip_export import export_openclip
from flipscale.interop.weights import WEIGHTS
from flipscale.models.flip import build_model
from flipscale.models.inputs import Inputs
from flipscale.models.masking import visible_patches
from flipscale.models.presets import preset
from flipscale.progress import Progress
from flipscale.runs.checkpoint import Checkpoint
from flipscale.runs.checkpoint_writer import file_numbers
from flipscale.sharding.shard import shard
from flipscale.training.gradients import accumulate_gradients

PROCESSES, BATCH = 2, 2  # BATCH: pairs of each process

PAGE = """# {model}: one FSDP step and one checkpoint in little memory

Commit {commit}, {date}. {processor}, {cores} shared cores, {memory_gib:.0f} GiB, torch {torch}.
Made by `tools/bench/h14_fsdp_step.py all`; raw numbers: `{raw}`.

{parameters:.0f} M parameters: {weights_gib:.2f} GiB of fp32 weights. fsdp on {processes} processes of one
thread, batch {batch} each, bf16, full activation checkpointing, AdamW in fp32.

| peak resident memory, GiB | {ranks} |
|---|{rule}
| after building | {built} |
| after one step | {stepped} |
| after saving | {saved} |

Both processes together: {step_total:.1f} GiB after the step (of 24), {total:.1f} GiB with the save.
Seconds: building {build_s:.0f}, step {step_s:.0f}, save {save_s:.0f} ({checkpoint_gib:.1f} GiB).

One process: loading {load_s:.0f} s, exporting {export_s:.0f} s, peak {export_gib:.2f} GiB
= {export_ratio:.2f} times the fp32 weights, {start_gib:.2f} GiB of it in use before loading.
"""


def memory_gib(field: str) -> float:
    """Return VmHWM (peak) or VmRSS (now) of this process, in GiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 2**20
    raise AssertionError(field)


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """Return the result of some work, and its seconds."""
    began = time.perf_counter()
    return work(), time.perf_counter() - began


def job_of(model: str) -> Job:
    """Return the job of the step, whose data are never read."""
    return Job.model_validate(
        {
            "name": "bench",
            "model": model,
            "data": {"train": "none.tar", "tokenizer": {"vocab": "none.txt"}, "lanes": 1},
            "phases": [{"name": "p", "samples": 4, "mask_ratio": 0.5, "batch_size": 4, "base_lr": 4e-6}],
            "sharding": {"strategy": "fsdp", "precision": "bf16", "activation_checkpointing": "full"},
        }
    )


def step(model_name: str, work: Path) -> None:
    """Build the model, run a step and save a checkpoint; the leading process prints the measurements."""
    world = join_world(read_placement())
    torch.set_num_threads(1)
    job, spec = job_of(model_name), preset(model_name)
    model, build_s = timed(
        lambda: shard(build_model(spec, device="meta"), job.sharding, job.optimizer, job.seed, world)
    )
    measured: dict[str, Any] = {"rank": world.rank, "build_s": build_s, "built_gib": memory_gib("VmHWM")}

    random = torch.Generator().manual_seed(world.rank)
    side = spec.vision.image_size
    pairs = Inputs(
        torch.randint(256, (BATCH, 3, side, side), dtype=torch.uint8, generator=random),
        torch.randint(spec.text.vocab_size, (BATCH, spec.text.context_length), generator=random),
        visible_patches(torch.arange(BATCH) + BATCH * world.rank, spec.vision.patches, 0.5, job.seed),
    )

    def train() -> tuple[float, float]:
        loss = accumulate_gradients(model, pairs, job.loss, job.sharding.micro_batch)["loss"]
        norm = model.gradient_norm(None)
        model.update(1e-6, torch.isfinite(loss) & torch.isfinite(norm))
        return float(loss), float(norm)

    (measured["loss"], measured["norm"]), measured["step_s"] = timed(train)
    measured["stepped_gib"] = memory_gib("VmHWM")

    state = dict(model.state())
    writer = HuggingFaceStorageWriter(
        str(work / "checkpoint"),
        file_numbers({name: tensor.nbytes for name, tensor in state.items()}),
        save_distributed=True,
    )
    _, measured["save_s"] = timed(lambda: dcp.save(state, storage_writer=writer))
    measured["saved_gib"] = memory_gib("VmHWM")

    everyone = world.gather(measured)
    if world.leads:
        print(json.dumps(everyone), flush=True)
    leave_world()


def export(model_name: str, work: Path) -> None:
    """Load the checkpoint in one process and export it; print the measurements."""
    torch.set_num_threads(1)
    spec = preset(model_name)
    start_gib = memory_gib("VmRSS")
    model = build_model(spec, device="meta").to_empty(device="cpu")
    checkpoint = Checkpoint(work / "checkpoint", Progress(), True, {})
    state = {f"model.{name}": parameter.detach() for name, parameter in model.named_parameters()}
    _, load_s = timed(lambda: checkpoint.load(state))
    loaded_gib = memory_gib("VmHWM")
    _, export_s = timed(lambda: export_openclip(model, spec, work / "export"))
    weights = sum(parameter.numel() for parameter in model.parameters()) * 4 / 2**30
    measured = {
        "start_gib": start_gib,
        "load_s": load_s,
        "loaded_gib": loaded_gib,
        "export_s": export_s,
        "export_gib": memory_gib("VmHWM"),
        "weights_gib": weights,
        "export_file_gib": (work / "export" / WEIGHTS).stat().st_size / 2**30,
    }
    print(json.dumps(measured), flush=True)


def output_of(command: list[str]) -> Any:
    """Run a command with one thread, and return the JSON in its last line."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def everything(model: str, work: Path, out: Path | None) -> None:
    """Make both measurements in fresh processes, and write the page if its path is given."""
    for name in ("checkpoint", "export"):
        shutil.rmtree(work / name, ignore_errors=True)
    work.mkdir(parents=True, exist_ok=True)

    arguments = ["--work", str(work), "--model", model]
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={PROCESSES}"]
    ranks = output_of([sys.executable, *launcher, __file__, "step", *arguments])
    single = output_of([sys.executable, __file__, "export", *arguments])
    print(json.dumps({"step": ranks, "export": single}, indent=1))
    if out is None:
        return

    raw = out.with_suffix(".json")
    raw.write_text(json.dumps({"step": ranks, "export": single}, indent=1) + "\n")
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    column = {key: " | ".join(f"{rank[key]:.2f}" for rank in ranks) for key in ranks[0] if "gib" in key}
    files = sum(file.stat().st_size for file in (work / "checkpoint").iterdir())
    page = PAGE.format(
        model=model,
        commit=commit.stdout.strip() or "none",
        date=date.today().isoformat(),
        processor=platform.processor() or platform.machine(),
        cores=os.cpu_count(),
        memory_gib=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30,
        torch=torch.__version__,
        raw=raw.name,
        parameters=single["weights_gib"] * 2**30 / 4e6,
        processes=PROCESSES,
        batch=BATCH,
        ranks=" | ".join(f"process {rank['rank']}" for rank in ranks),
        rule="---|" * len(ranks),
        built=column["built_gib"],
        stepped=column["stepped_gib"],
        saved=column["saved_gib"],
        step_total=sum(rank["stepped_gib"] for rank in ranks),
        total=sum(rank["saved_gib"] for rank in ranks),
        checkpoint_gib=files / 2**30,
        export_ratio=single["export_gib"] / single["weights_gib"],
        **{key: max(rank[key] for rank in ranks) for key in ("build_s", "step_s", "save_s")},
        **{key: single[key] for key in ("load_s", "export_s", "export_gib", "weights_gib", "start_gib")},
    )
    out.write_text(page)


def main() -> None:
    """Run the command of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("command", choices=("all", "step", "export"))
    parser.add_argument("--work", type=Path, required=True, help="directory for checkpoint and export")
    parser.add_argument("--model", default="vit_h14")
    parser.add_argument("--out", type=Path, help="the page to write, with its raw numbers next to it")
    options = parser.parse_args()
    if options.command == "all":
        everything(options.model, options.work, options.out)
    else:
        (step if options.command == "step" else export)(options.model, options.work)


if __name__ == "__main__":
    main()
