"""TFLOP/s and MFU: against the published figures of a run, and in the metrics of one."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.tiny_run import TinyRun

from flipscale.config import Phase, load_job
from flipscale.distributed.world import World
from flipscale.models.presets import preset
from flipscale.planning.flops import forward_macs, training_flops
from flipscale.planning.gpus import find_gpu
from flipscale.planning.plan import model_shape
from flipscale.training.utilisation import Utilisation


def phase_of(mask_ratio: float) -> Phase:
    return Phase(name="p", samples=1024, mask_ratio=mask_ratio, batch_size=1024, base_lr=1e-6)


def test_published_speed_of_h14_is_its_published_share_of_the_peak() -> None:
    """LAION's large-openclip: 42 samples/s on each of 824 A100, which are 15.4 % of 312 TFLOP/s."""
    of_run = Utilisation((phase_of(0.0),), (preset("clip_h14"),), 824, find_gpu("a100-40gb"))
    fields = of_run.fields(0, 824 * 42.0, caption_tokens=77)  # OpenCLIP computes the padding, too
    assert fields == {"tflops": pytest.approx(48, rel=0.02), "mfu": pytest.approx(0.154, rel=0.02)}


def test_unknown_device_has_operations_but_no_share() -> None:
    world = World(0, 4, 0, 4, torch.device("cpu"))
    of_run = Utilisation.of([phase_of(0.5), phase_of(0.0)], [preset("vit_b16")] * 2, world)
    masked, unmasked = of_run.fields(0, 100.0, 32), of_run.fields(1, 100.0, 32)
    assert masked.keys() == unmasked.keys() == {"tflops"}
    assert masked["tflops"] * 4e12 / 100 == training_flops(preset("vit_b16"), 1, 0.5)
    assert masked["tflops"] < unmasked["tflops"]


def test_tokens_behind_the_ends_of_captions_do_not_count() -> None:
    spec = preset("clip_b16")
    of_run = Utilisation((phase_of(0.75),), (spec,), 1, None)
    half, whole = (of_run.fields(0, 1.0, tokens)["tflops"] for tokens in (77 / 2, 77))
    assert whole * 1e12 == training_flops(spec, 1, 0.75)
    image = 6 * forward_macs(spec, 0.75).image / 1e12
    assert 0.45 < (half - image) / (whole - image) < 0.5  # attention grows with the square of the tokens

    # FLIP's captions are computed with their padding.
    both = Utilisation((phase_of(0.5),), (preset("vit_b16"),), 1, None)
    assert both.fields(0, 1.0, 8) == both.fields(0, 1.0, 32)


@pytest.mark.slow
def test_metrics_of_a_run_have_the_operations_of_its_speed(tiny_run: Callable[..., TinyRun]) -> None:
    run = tiny_run()
    run.train()
    lines = [json.loads(line) for line in Path(run.output / "metrics.jsonl").read_text().splitlines()]
    job = load_job(run.job)
    phases = {phase.name: phase for phase in job.phases}
    assert lines
    for line in lines:
        flops = training_flops(model_shape(job), 1, phases[line["phase"]].mask_ratio)
        # The vocabulary of the tiny tokenizer changes no FLOPs: an embedding is looked up.
        assert line["tflops"] * 1e12 == pytest.approx(flops * line["images_per_second"], rel=1e-6)
        assert math.isfinite(line["tflops"])
        assert "mfu" not in line
