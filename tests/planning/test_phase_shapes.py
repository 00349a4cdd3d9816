"""A plan counts every phase in its own image and patch size."""

from __future__ import annotations

from typing import Any

import pytest

from flipscale.cli.plan_tables import print_budget
from flipscale.config import Job
from flipscale.errors import UserError
from flipscale.models.presets import preset
from flipscale.planning.flops import parameter_count, training_flops
from flipscale.planning.memory import estimate_memory
from flipscale.planning.plan import model_shape, plan_job, state_bytes


def job_of(*phases: dict[str, Any]) -> Job:
    common = {"samples": 1024, "mask_ratio": 0.5, "batch_size": 1024, "base_lr": 1e-6}
    return Job.model_validate(
        {
            "name": "shapes",
            "model": "vit_l16",
            "data": {"train": "none.tar", "tokenizer": {"vocab": "none.txt"}},
            "phases": [{"name": f"p{n}", **common, **phase} for n, phase in enumerate(phases)],
            "cluster": {"gpus_per_node": 1},
        }
    )


def test_phase_costs_what_a_job_of_its_shape_costs() -> None:
    both = job_of({"image_size": 112}, {"patch_size": 14})
    small, fine = plan_job(both).phases
    for phase, spec in (
        (small, preset("vit_l16", image_size=112)),
        (fine, preset("vit_l16", patch_size=14)),
    ):
        assert phase.flops_per_sample == training_flops(spec, 1, 0.5)
        (memory,) = estimate_memory(job_of({}), spec, 1)
        of_phase = {**vars(phase.memory), "host": 0}
        assert of_phase == {**vars(memory), "host": 0}

    # Batches of either phase may wait in host memory: those of the larger images count.
    (larger,) = estimate_memory(job_of({}), preset("vit_l16"), 1)
    assert small.memory.host - fine.memory.host == 12 * (parameters(small) - parameters(fine))
    assert small.memory.host == larger.host


def parameters(phase: Any) -> int:
    return parameter_count(preset("vit_l16", image_size=phase.image_size, patch_size=phase.patch_size)).total


def test_plan_shows_a_cooldown_if_there_is_one(capsys: pytest.CaptureFixture[str]) -> None:
    print_budget(plan_job(job_of({})))
    assert "cooldown" not in capsys.readouterr().out
    print_budget(plan_job(job_of({}, {"schedule": "constant_cooldown", "cooldown": 32})))
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "cooldown" in line]
    assert [cell.strip() for cell in line.split("│")[2:4]] == ["cosine", "32"]


def test_plan_gives_the_last_model_and_the_largest_checkpoint() -> None:
    job = job_of({"image_size": 112}, {"patch_size": 14})
    plan = plan_job(job)
    assert plan.parameters == parameter_count(preset("vit_l14")).total
    assert plan.state_bytes == state_bytes(job) == 12 * parameter_count(model_shape(job)).total


def test_sizes_are_shown_if_they_differ(capsys: pytest.CaptureFixture[str]) -> None:
    print_budget(plan_job(job_of({}, {"mask_ratio": 0.0})))
    assert "patch" not in capsys.readouterr().out
    print_budget(plan_job(job_of({"image_size": 112}, {"patch_size": 14})))
    shown = capsys.readouterr().out
    assert "112 / 16" in shown
    assert "224 / 14" in shown


def test_phase_whose_sizes_do_not_fit_is_named() -> None:
    with pytest.raises(
        UserError, match=r"phases\.1 \(p1\): image size 224 is not a multiple of the patch size 15"
    ):
        plan_job(job_of({}, {"patch_size": 15}))
