"""`flipscale plan`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from flipscale.commands.table import print_table
from flipscale.config import load_job
from flipscale.planning.plan import plan_job
from flipscale.training.display import human


def show_plan(path: Path, overrides: list[str], as_json: bool) -> None:
    plan = plan_job(load_job(path, overrides))
    if as_json:
        print(json.dumps(asdict(plan), indent=2))
        return
    print_table(
        ("phase", "samples", "steps", "batch", "masked", "peak lr", "warm-up", "FLOPs a sample", "FLOPs"),
        [
            (
                phase.name,
                human(phase.samples),
                f"{phase.steps:,}",
                f"{phase.batch_size:,}",
                f"{phase.mask_ratio:.0%}",
                f"{phase.peak_lr:.4g}",
                human(phase.warmup),
                f"{phase.flops_per_sample:.3g}",
                f"{phase.flops:.3g}",
            )
            for phase in plan.phases
        ],
    )
    print(
        f"{plan.model}: {plan.parameters / 1e6:.1f} M parameters "
        f"({plan.vision_parameters / 1e6:.1f} M image, {plan.text_parameters / 1e6:.1f} M text); "
        f"{plan.state_bytes / 2**30:.2f} GiB of fp32 weights and AdamW moments"
    )
    print(f"{human(plan.samples)} samples, {plan.steps:,} steps, {plan.flops:.3g} FLOPs in all")
