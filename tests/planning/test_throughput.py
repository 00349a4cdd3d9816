"""Times from FLOPs and from a measured speed, and what `flipscale plan` prints and refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from flipscale.cli.app import app
from flipscale.config import Job, Site, load_job
from flipscale.errors import UserError
from flipscale.models.presets import preset
from flipscale.planning.flops import CAPTION_TOKENS, training_flops
from flipscale.planning.gpus import find_gpu, gpu_of_device
from flipscale.planning.network import find_network
from flipscale.planning.phase_time import phase_step
from flipscale.planning.plan import plan_job
from flipscale.planning.step_time import StepTime
from flipscale.planning.throughput import IMAGES_PER_CORE, Speed, count_segments, make_speed

JOBS = Path(__file__).resolve().parents[2] / "jobs"
H14 = JOBS / "vith14_model_data_schedule.yaml"
PLAN = CliRunner()


def job_of(model: str, batch: int, mask_ratio: float = 0.5, **sharding: Any) -> Job:
    return Job.model_validate(
        {
            "name": "planned",
            "model": model,
            "data": {"train": "none.tar", "tokenizer": {"vocab": "none.txt"}, "lanes": 8},
            "phases": [
                {
                    "name": "p",
                    "samples": 1000 * batch,
                    "mask_ratio": mask_ratio,
                    "batch_size": batch,
                    "base_lr": 1e-6,
                }
            ],
            "sharding": {"precision": "bf16", **sharding},
        }
    )


def step_of(job: Job, on: Speed) -> StepTime:
    """Return the time of a step of the job's only phase."""
    (phase,) = job.phases
    step = phase_step(job, phase, preset(job.model.preset), on, IMAGES_PER_CORE)
    assert step is not None
    return step


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
def test_towers_of_h14_take_the_gpu_hours_calculated_by_hand(
    gpu: str, mask_ratio: float, samples: float, mfu: float, gpu_hours: float
) -> None:
    """On one node: the MFU is measured there, and many GPUs wait for the slowest."""
    step = step_of(job_of("vit_h14", 2048, mask_ratio), make_speed(gpu, 8, mfu))
    assert samples / 2048 * step.computation * 8 / 3600 == pytest.approx(gpu_hours, rel=0.02)


def test_speed_of_a_published_run_is_reproduced() -> None:
    """OpenCLIP's H/14 ran at 42 samples/s on an A100, which is 15.4 % of its peak (LAION, large-openclip)."""
    seconds = step_of(job_of("clip_h14", 8 * 42, 0.0), make_speed("a100-40gb", 8, 0.154)).computation
    spec = preset("clip_h14")
    ours, whole = (training_flops(spec, 1, 0.0, caption_tokens=tokens) for tokens in (CAPTION_TOKENS, None))
    assert seconds * whole / ours == pytest.approx(1.0, rel=0.02)  # OpenCLIP computes the padding, too


def test_measured_speed_replaces_flops() -> None:
    on = make_speed("h100-80gb", 8, images_per_second=1000.0)
    for job in (job_of("vit_h14", 4096), job_of("vit_b16", 4096, 0.75)):
        (phase,) = plan_job(job, on).phases
        assert (phase.seconds, phase.step, phase.bound) == (4096.0, None, None)
        assert phase.step_seconds == pytest.approx(4.096)


def test_micro_batches_cost_a_second_forward_pass() -> None:
    on = make_speed("h100-80gb", 8)
    once, twice = (
        step_of(job_of("vit_b16", 1024, micro_batch=micro_batch), on).computation
        for micro_batch in (None, 64)
    )
    assert twice == pytest.approx(once * 4 / 3)


@pytest.mark.parametrize(("mode", "share"), [("full", 1 / 3), ("every 2", 1 / 6), ("selective", 0.2 / 3)])
def test_recomputation_costs_its_share_of_a_forward_pass(mode: str, share: float) -> None:
    on = make_speed("h100-80gb", 8)
    kept = step_of(job_of("vit_b16", 1024), on).computation
    again = step_of(job_of("vit_b16", 1024, activation_checkpointing=mode), on).computation
    assert again == pytest.approx(kept * (1 + share))


def test_full_sharding_over_many_nodes_is_bound_by_the_network_where_a_copy_per_node_is_not() -> None:
    """A ring over 1,024 GPUs has 1,023 steps: 112 all-gathers of H/14 take longer than its 64 pairs."""
    on = make_speed("h100-80gb", 1024, 0.5)
    full = step_of(job_of("vit_h14", 65_536, strategy="fsdp"), on)
    hybrid = step_of(job_of("vit_h14", 65_536, strategy="hsdp", shard_size=8), on)
    assert full.bound == "communication"
    assert hybrid.bound == "computation"
    assert full.exposed > 5 * hybrid.exposed


def test_site_replaces_network_and_gives_cores() -> None:
    site = Site.model_validate(
        {"cores_per_node": 32, "network": {"fabric_bandwidth": "1.25GB", "fabric_latency_us": 25}}
    )
    job = job_of("vit_h14", 65_536)
    quick = make_speed("h100-80gb", 64)
    slow = make_speed("h100-80gb", 64, site=site)
    assert slow.network == find_network("h100-80gb", fabric_bandwidth=1.25e9, fabric_latency=25 * 1e-6)
    assert slow.cores_per_gpu == 4
    assert step_of(job, quick).bound == "computation"
    assert step_of(job, slow).communication > 5 * step_of(job, quick).communication


def test_few_cores_bound_a_small_model() -> None:
    """B/16 at 75 % and half of the peak wants 33 cores per GPU at 450 images/s."""
    job = job_of("vit_b16", 8192, 0.75)
    site = Site.model_validate({"cores_per_node": 96})
    step = step_of(job, make_speed("h100-80gb", 8, 0.5, site=site))
    assert step.bound == "input"
    assert step.input == pytest.approx(1024 / (12 * 450))
    assert step.total == step.input
    assert step_of(job, make_speed("h100-80gb", 8, 0.5)).input is None


def test_time_limit_divides_training_into_segments() -> None:
    assert [count_segments(seconds, 3600) for seconds in (0.0, 3600.0, 3601.0, 86_400.0)] == [1, 1, 2, 24]


def test_unknown_gpu_names_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean h100-80gb"):
        find_gpu("H100")
    with pytest.raises(UserError, match="no GPU 'tpu' in the table; it has a100-40gb, "):
        find_gpu("tpu")


@pytest.mark.parametrize(
    ("device", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "h100-80gb"),
        ("NVIDIA A100-SXM4-40GB", "a100-40gb"),
        ("NVIDIA A100-SXM4-80GB", "a100-80gb"),
        ("NVIDIA A100 80GB PCIe", "a100-80gb"),
        ("NVIDIA H200", "h200-141gb"),
        ("NVIDIA GH200 480GB", "gh200-96gb"),
        ("NVIDIA H100 PCIe", None),  # 756 TFLOP/s, not 989
        ("NVIDIA H100 NVL", None),
        ("NVIDIA H200 NVL", None),
        ("NVIDIA GeForce RTX 4090", None),
    ],
)
def test_device_is_recognised_by_its_name(device: str, name: str | None) -> None:
    gpu = gpu_of_device(device)
    assert (None if gpu is None else gpu.name) == name


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
        (["--price-per-gpu-hour", "-1"], "--price-per-gpu-hour is -1.0; give 0 to 1,000,000"),
        (["--price-per-gpu-hour", "nan"], "--price-per-gpu-hour is nan; give 0 to 1,000,000"),
        (["--price-per-gpu-hour", "1e308"], "--price-per-gpu-hour is 1e+308; give 0 to 1,000,000"),
        (["--price-per-gpu-hour", "1000001"], "--price-per-gpu-hour is 1000001.0; give 0 to 1,000,000"),
        (["--images-per-second", "1e-300"], "not a speed"),
        (["--mfu", "1e-300"], "not a share of the peak"),
        (["cluster.nodes=200000"], "1600000 is not a number of GPUs"),
        (["--gpus", "0"], "give 1 to 1,000,000"),
        (["--gpus", "9" * 20], "give 1 to 1,000,000"),
        (["--gpus", "12"], "12 GPUs do not fill nodes of 8; give 8 or 16 GPUs"),
        (["--sweep", "--images-per-second", "9"], "leave out --images-per-second"),
        (["--sweep", "phases.0.batch_size=67108864"], "no change of sharding makes vit_h14 fit"),
        (
            ["phases.0.batch_size=16777216"],
            "no change of sharding makes vit_h14 fit 256 x h100-80gb; it fits",
        ),
        (["phases.0.batch_size=67108864"], "no number of them holds it: take a smaller model or batch"),
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
    assert f"{plan.gpu_hours:,.0f} GPU-hours, in {plan.segments} segments of at most 24.0 h" in done.stdout


@pytest.mark.parametrize("job", [H14, JOBS / "dev/tiny.yaml"], ids=["vit_h14", "tiny"])
def test_tables_fit_narrow_terminals_in_units_of_the_job(job: Path) -> None:
    done = PLAN.invoke(app, ["plan", str(job), "--price-per-gpu-hour", "2"])
    assert done.exit_code == 0, done.exception
    lines = done.stdout.splitlines()
    assert max(len(line) for line in lines if line[:1] in "┃│┏└┡├") <= 80
    assert not re.search(r"\b0\.0 (min|h|s)\b", done.stdout)
    for name in ("step", "towers", "loss", "network", "GPU-hours"):
        *_, row = (line.split("│") for line in lines if line.startswith(f"│ {name} "))
        assert all(float(cell.replace(",", "")) > 0 for cell in row[2:-1])


def test_captions_that_end_early_are_said() -> None:
    job = ["model=clip_h14", "data.tokenizer={kind: clip_bpe}"]
    shown = PLAN.invoke(app, ["plan", str(H14), *job]).stdout
    assert "FLOPs and times count 25 of 77 tokens" in shown
    masked = [*job, "phases.0.text_mask_ratio=0.5", "phases.1.text_mask_ratio=0.5"]
    assert "25 of 77" not in PLAN.invoke(app, ["plan", str(H14), *masked]).stdout


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
        step = phase["step"]
        spent = step["computation"] + step["loss"] + step["exposed"]
        assert phase["step_seconds"] == pytest.approx(spent)
        assert (phase["bound"], step["input"]) == ("computation", None)


def test_price_gives_the_cost_and_the_bound_is_shown() -> None:
    done = PLAN.invoke(app, ["plan", str(H14), "--price-per-gpu-hour", "2.5"])
    plan = plan_job(load_job(H14), price_per_gpu_hour=2.5)
    assert plan.cost == pytest.approx(2.5 * plan.gpu_hours)
    assert f"cost: {plan.cost:,.0f} (--price-per-gpu-hour)" in done.stdout
    assert "computation" in done.stdout
    assert "370 GB/s per GPU inside nodes of 8, 50 GB/s between them" in done.stdout
    assert plan_job(load_job(H14)).cost is None
