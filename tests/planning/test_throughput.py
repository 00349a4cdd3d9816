"""Times from FLOPs and from a measured speed, and what `flipscale plan` prints and refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flipscale.cli.app import app
from flipscale.config import load_job
from flipscale.errors import UserError
from flipscale.models.presets import preset
from flipscale.planning.plan import plan_job
from flipscale.planning.throughput import count_segments, find_gpu, make_speed, training_seconds

JOBS = Path(__file__).resolve().parents[2] / "jobs"
H14 = JOBS / "vith14_model_data_schedule.yaml"
PLAN = CliRunner()


@pytest.mark.parametrize(
    ("gpu", "mask_ratio", "samples", "mfu", "gpu_hours"),
    [  # calculated by hand for H/14 with 32 text tokens, 3 forward passes per step, dense bf16 peaks
        ("h100-80gb", 0.0, 12.8e9, 0.4, 9.5e3),
        ("h100-80gb", 0.5, 25.6e9, 0.4, 9.9e3),
        ("h100-80gb", 0.75, 12.8e9, 0.5, 2.2e3),
        ("a100-80gb", 0.5, 12.8e9, 0.2, 31.5e3),
        ("a100-80gb", 0.5, 25.6e9, 0.3, 42e3),
    ],
)
def test_h14_takes_the_gpu_hours_calculated_by_hand(
    gpu: str, mask_ratio: float, samples: float, mfu: float, gpu_hours: float
) -> None:
    on = make_speed(gpu, 64, mfu)
    seconds = training_seconds(on, preset("vit_h14"), int(samples), mask_ratio)
    assert seconds * 64 / 3600 == pytest.approx(gpu_hours, rel=0.02)


def test_time_of_a_published_run_is_reproduced() -> None:
    """OpenCLIP's H/14 ran at 42 samples/s on an A100, which is 15.4 % of its peak (LAION, large-openclip)."""
    spec = preset("clip_h14")
    second = training_seconds(make_speed("a100-40gb", 1, 0.154), spec, 42, 0.0)
    assert second == pytest.approx(1.0, rel=0.02)


def test_measured_speed_replaces_flops() -> None:
    on = make_speed("h100-80gb", 8, images_per_second=1000.0)
    assert training_seconds(on, preset("vit_h14"), 5_000, 0.0) == 5.0
    assert training_seconds(on, preset("vit_b16"), 5_000, 0.75) == 5.0


def test_micro_batches_cost_a_second_forward_pass() -> None:
    on = make_speed("h100-80gb", 8)
    spec = preset("vit_b16")
    once, twice = (training_seconds(on, spec, 1000, 0.5, forward_twice=twice) for twice in (False, True))
    assert twice == pytest.approx(once * 4 / 3)


def test_time_limit_divides_training_into_segments() -> None:
    assert [count_segments(seconds, 3600) for seconds in (0.0, 3600.0, 3601.0, 86_400.0)] == [1, 1, 2, 24]


def test_unknown_gpu_names_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean h100-80gb"):
        find_gpu("H100")
    with pytest.raises(UserError, match="All: a100-40gb"):
        find_gpu("tpu")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--gpu", "h100"], "there is no GPU 'h100'"),
        (["--gpus", "0"], "not a number of GPUs"),
        (["--gpus", "48"], "48 processes cannot share data.lanes = 1024"),
        (["--mfu", "40"], "not a share of the peak"),
        (["--mfu", "nan"], "not a share of the peak"),
        (["--mfu", "0.4", "--images-per-second", "9"], "exclude each other"),
        (["--images-per-second", "-1"], "not a speed"),
        (["--images-per-second", "inf"], "not a speed"),
        (["--images-per-core", "nan"], "--images-per-core is nan; give more than 0"),
        (["--images-per-core", "inf"], "--images-per-core is inf; give more than 0"),
    ],
)
def test_wrong_options_are_refused_in_one_sentence(options: list[str], said: str) -> None:
    done = PLAN.invoke(app, ["plan", str(H14), *options])
    assert isinstance(done.exception, UserError)
    assert said in str(done.exception)
    assert "\n" not in str(done.exception)


def test_table_shows_fit_time_and_cost() -> None:
    done = PLAN.invoke(app, ["plan", str(H14), "--gpu", "a100-40gb", "--gpus", "64", "--mfu", "0.3"])
    assert done.exit_code == 0, done.exception
    assert "NO" in done.stdout
    assert "it would fit with sharding." in done.stdout
    assert "64 x a100-40gb at 30% of their peak" in done.stdout
    plan = plan_job(load_job(H14), make_speed("a100-40gb", 64, 0.3))
    assert f"{plan.gpu_hours:,.0f} GPU-hours, in {plan.segments} segments of at most 24 h" in done.stdout


def test_json_has_the_whole_plan() -> None:
    done = PLAN.invoke(app, ["plan", str(H14), "--json"])
    plan = json.loads(done.stdout)
    assert plan["fits"]
    assert plan["advice"] == []
    assert plan["speed"]["gpus"] == 32 * 8  # the job's own cluster
    assert plan["speed"]["gpu"]["name"] == "h100-80gb"

    assert plan["gpu_hours"] == pytest.approx(sum(phase["gpu_hours"] for phase in plan["phases"]))
    for phase in plan["phases"]:
        parts = {key: size for key, size in phase["memory"].items() if key != "host"}
        assert sum(parts.values()) == phase["memory_bytes"]
