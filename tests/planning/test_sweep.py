"""The sweep: what it tries, what it marks, and that a candidate is the plan of the job with its overrides."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flipscale.cli.app import app
from flipscale.config import load_job
from flipscale.planning.fit import remedy
from flipscale.planning.gpus import Gpu
from flipscale.planning.plan import model_shape, plan_job
from flipscale.planning.sweep import Candidate, sweep_job
from flipscale.planning.throughput import IMAGES_PER_CORE, make_speed

H14 = Path(__file__).resolve().parents[2] / "jobs" / "vith14_model_data_schedule.yaml"
PLAN = CliRunner()


@pytest.fixture(scope="module")
def candidates() -> tuple[Candidate, ...]:
    return sweep_job(load_job(H14), make_speed("h100-80gb", 256), IMAGES_PER_CORE, 2.0)


def test_every_strategy_recomputation_and_number_of_gpus_is_tried(candidates: tuple[Candidate, ...]) -> None:
    assert {one.gpus for one in candidates} == {64, 128, 256, 512, 1024}
    assert {one.strategy for one in candidates} == {
        *("ddp", "fsdp", "hsdp", "zero1", "zero2", "zero3", "fairscale_oss", "fairscale_fsdp")
    }
    assert {one.activation_checkpointing for one in candidates} == {"none", "selective", "full"}
    assert any(one.micro_batch for one in candidates)
    assert len(candidates) == 5 * 10 * 3


def test_cheapest_that_fits_is_first_and_marked(candidates: tuple[Candidate, ...]) -> None:
    first, *rest = candidates
    assert first.cheapest
    assert first.fits
    assert not any(one.cheapest for one in rest)
    fitting = [one for one in candidates if one.fits]
    assert first.gpu_hours == min(one.gpu_hours for one in fitting)
    assert candidates[: len(fitting)] == tuple(fitting)
    assert all(one.cost == pytest.approx(2 * one.gpu_hours) for one in candidates)


def test_candidate_is_the_plan_of_the_job_with_its_overrides(candidates: tuple[Candidate, ...]) -> None:
    hybrid = next(one for one in candidates if one.strategy == "hsdp" and one.gpus == 512)
    for one in (candidates[0], candidates[40], hybrid):
        job = load_job(H14, list(one.overrides))
        plan = plan_job(job, make_speed("h100-80gb", job.cluster.gpus))
        assert plan.seconds == pytest.approx(one.seconds)
        assert plan.gpu_hours == pytest.approx(one.gpu_hours)
        assert (plan.fits, max(phase.memory_bytes for phase in plan.phases)) == (one.fits, one.memory_bytes)


def test_smaller_gpus_need_recomputation_or_micro_batches() -> None:
    on = make_speed("a100-40gb", 64)
    fitting = [one for one in sweep_job(load_job(H14), on, IMAGES_PER_CORE) if one.fits and one.gpus == 64]
    assert fitting
    assert all(one.micro_batch or one.activation_checkpointing != "none" for one in fitting)


def test_table_and_json_of_the_command() -> None:
    options = ["plan", str(H14), "--sweep", "--gpu", "a100-80gb"]
    table = PLAN.invoke(app, options).stdout
    assert table.count("cheapest") == 2  # the mark, and the sentence below with the overrides
    assert "the cheapest: cluster.nodes=" in table

    found = json.loads(PLAN.invoke(app, [*options, "--json"]).stdout)["candidates"]
    (cheapest,) = [one for one in found if one["cheapest"]]
    assert found[0] == cheapest
    assert " ".join(cheapest["overrides"]) in table


def test_remedy_names_a_larger_gpu_or_more_of_them() -> None:
    whole = ("sharding.strategy=fsdp", "sharding.shard_size=null", "sharding.reshard_after_forward=true")
    job = load_job(H14, list(whole))
    tiny = Gpu("tiny", 9 * 2**30, 1e12, 1e12, 1e12, 0.2)
    sentence = remedy(job, model_shape(job), 1, tiny)
    assert sentence.startswith("no change of sharding makes vit_h14 fit 1 x tiny; it fits 1 x a100-40gb with")
    assert ", and it fits 16 x tiny with sharding.activation_checkpointing=full" in sentence
    assert "\n" not in sentence
    nothing = remedy(job, model_shape(job), 1024, Gpu("none", 2**30, 1e12, 1e12, 1e12, 0.2))
    assert "it fits 1024 x a100-40gb" in nothing
