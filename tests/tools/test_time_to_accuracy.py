"""The time-to-accuracy benchmark: the page shows the raw numbers, and both trainers get the same settings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from openclip_trainer import Watch
from time_to_accuracy_page import TRAINERS, page
from toy_trainers import ROOT, overrides, toy

from flipscale.config import load_job

# Accuracy rises linearly to 50 %. Seconds per checkpoint by trainer and mask; seed 1 takes a tenth more.
PACE = {
    ("flipscale", "0%"): 8.0,
    ("flipscale", "50%"): 4.0,
    ("open_clip", "0%"): 12.0,
    ("open_clip", "50%"): 10.0,
}


def raw() -> dict[str, object]:
    curves: dict[str, dict[str, list[list[tuple[float, float]]]]] = {name: {} for name in TRAINERS}
    for (trainer, mask), pace in PACE.items():
        curves[trainer][mask] = [
            [(pace * (1 + seed / 10) * step, step / 10) for step in range(1, 6)] for seed in range(2)
        ]
    return {
        "curves": curves,
        "samples": 1600,
        "every": 320,
        "seeds": 2,
        "commit": "abc",
        "date": "2026-01-01",
        "cores": 2,
        "processor": "a processor",
        "versions": {"torch": "2.13", "open_clip": "3.3.0", "webdataset": "0.2.86"},
    }


def test_page_shows_measurements() -> None:
    text = page(raw(), "raw.json")
    # 90 % of 50 %, at 4.5 checkpoints; both seeds have the same ratio, so the interval has no width.
    assert "| flipscale | 45.0% | 37.8 | 18.9 | 2.00 (2.00 to 2.00) | 2.00 |" in text
    assert "| open_clip | 45.0% | 56.7 | 47.2 | 1.20 (1.20 to 1.20) | 1.20 |" in text
    assert "| 0% | 56.7 | 37.8 | 1.50 (1.50 to 1.50) |" in text
    assert "| 50% | 47.2 | 18.9 | 2.50 (2.50 to 2.50) |" in text
    assert "| open_clip, 50% | 10.0% after 10.5 s |" in text


def test_openclip_trainer_is_saved_at_every_mark_and_at_the_end(tmp_path: Path) -> None:
    model = torch.nn.Linear(1, 1, bias=False)
    seen: list[int] = []
    watch = Watch(model, seen.append, tmp_path, every=2)
    for step in range(5):
        watch(step)  # the trainer asks for the rate, then takes the step
        torch.nn.init.constant_(model.weight, step + 1)
    watch.end()
    assert seen == [0, 1, 2, 3, 4]
    seconds = json.loads((tmp_path / "seconds.json").read_text())
    assert list(seconds) == ["2", "4", "5"]
    assert list(seconds.values()) == sorted(seconds.values())
    for steps in (2, 4, 5):
        saved = torch.load(tmp_path / f"step_{steps}.pt", weights_only=True)
        assert saved["weight"].item() == steps


def test_run_keeps_checkpoint_for_every_point_of_its_curve(tmp_path: Path) -> None:
    changes = overrides(tmp_path / "data", tmp_path / "run", 0.5, 3, 1600, 320)
    job = load_job(ROOT / "jobs" / toy.JOB, changes)
    (phase,) = job.phases
    assert (phase.samples, phase.mask_ratio, phase.batch_size, job.seed) == (1600, 0.5, 64, 3)
    assert job.checkpoint.keep_every == 320
    assert phase.base_lr * phase.batch_size / 256 == pytest.approx(1e-3)
