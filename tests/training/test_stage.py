"""Phases of another image or patch size: the same end whatever the stops, and what is saved and exported."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from stop_at import StopAt
from tiny_run import TinyRun

from flipscale.config import load_job
from flipscale.errors import StoppedEarly
from flipscale.orchestration.segment import Segment
from flipscale.progress import Progress
from flipscale.run_directory import RunDirectory, run_directory
from flipscale.training import trainer
from flipscale.training.setup import check_job
from flipscale.training.stop import StopRequests
from flipscale.world import World

MakeRun = Callable[..., TinyRun]
ALONE = World(0, 1, 0, 1, torch.device("cpu"))


def phases(*, fresh: bool = False) -> list[dict[str, object]]:
    """Low resolution, then twice the side, then a patch of 4/3; 6, 4 and 3 steps."""
    common = {"batch_size": 16, "base_lr": 0.02}
    return [
        {"name": "small", "samples": 96, "mask_ratio": 0.5, "image_size": 24, **common},
        {"name": "large", "samples": 64, "mask_ratio": 0.5, "image_size": 48, **common},
        {
            "name": "patch12",
            "samples": 40,
            "mask_ratio": 0.0,
            "image_size": 48,
            "patch_size": 12,
            "fresh_optimizer": fresh,
            **common,
        },
    ]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def train(run: TinyRun, *overrides: str, stop: StopRequests | None = None) -> Progress:
    job = load_job(run.job, overrides)
    directory = run_directory(job)
    budget = check_job(job, 1)
    segment = Segment(job, directory, ALONE, stop or StopRequests(directory.stop_file))
    with segment.held():
        return trainer.train(job, budget, segment)


@pytest.mark.parametrize("model", ["vit_micro_p8", "clip_micro_p8"])
def test_stops_around_the_boundaries_leave_no_trace(tiny_run: MakeRun, model: str) -> None:
    changes = {"model": model, "phases": phases(), "logging": {"every": "1 steps", "tensorboard": False}}
    if model.startswith("clip"):
        changes["data"] = {"tokenizer": {"kind": "clip_bpe"}}
    straight = tiny_run("straight", **changes)
    train(straight)
    for steps in (5, 6, 7, 9, 10, 11):
        run = tiny_run(f"stopped{steps}", **changes)
        with pytest.raises(StoppedEarly):
            train(run, stop=StopAt(RunDirectory(run.output), steps))
        train(run)
        assert run.weights() == straight.weights()
        assert run.metrics() == straight.metrics()
