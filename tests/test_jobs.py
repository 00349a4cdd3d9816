"""Every job file loads and plans, and its phases are those of the paper or of OpenCLIP's table of runs.

The figures here are those of the sources: epochs of 400M or 2B pairs, peak learning rates, warm-up samples.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from flipscale.config import Job, load_job
from flipscale.data.shards.index import expand_shards
from flipscale.models.masking import visible_count
from flipscale.models.presets import preset
from flipscale.planning.flops import training_flops
from flipscale.planning.plan import plan_job

JOBS = Path(__file__).resolve().parents[1] / "jobs"
FILES = sorted(path for path in JOBS.rglob("*.yaml") if path.parent.name not in ("base", "evaluation"))
NAMES = [str(path.relative_to(JOBS)) for path in FILES]
LAION_400M = 400_000_000
LAION_2B = 2_000_000_000
TUNED_SAMPLES = 128_000_000  # 0.32 epoch of 400M: figure 3, table 1e


def job_of(name: str) -> Job:
    return load_job(JOBS / name)


@pytest.mark.parametrize("name", NAMES)
def test_every_job_plans(name: str) -> None:
    job = job_of(name)
    plan = plan_job(job)
    assert plan.fits
    assert plan.samples == sum(phase.samples for phase in job.phases)
    assert expand_shards(job.data.train)
    # The processes of its own cluster block share the lanes.
    assert job.data.lanes % (job.cluster.gpus) == 0


def test_example_of_the_readme_fits(tmp_path: Path) -> None:
    _, _, rest = (JOBS.parent / "README.md").read_text().partition("```yaml\n")
    job = tmp_path / "my_job.yaml"
    job.write_text(rest.partition("```")[0])
    assert plan_job(load_job(job)).fits
    assert load_job(job).phases == job_of("vitl16_baseline.yaml").phases


def test_jobs_for_gpus_are_compiled_and_those_for_cpus_are_not() -> None:
    on_cpus = {name for name in NAMES if not job_of(name).sharding.compile}
    assert on_cpus == {"quickstart.yaml", "toy.yaml", "dev/tiny.yaml"}


def test_no_two_jobs_share_a_run_directory() -> None:
    outputs = [job.output or job.name for job in map(job_of, NAMES)]
    assert len(set(outputs)) == len(outputs)


def test_readme_lists_every_job() -> None:
    readme = (JOBS / "README.md").read_text()
    assert [name for name in NAMES if f"`{name.removesuffix('.yaml')}`" not in readme] == []


@pytest.mark.parametrize(
    ("name", "model", "pairs", "epochs", "peak_lr", "warmup"),
    [  # tables 2 and 8, section 4.3; peak lr (A.1) = base lr x 65,536 / 256; base lr of the 2x configs
        ("vitl16_baseline", "vit_l16", LAION_400M, 32, 1.024e-3, 51_200_000),
        ("vith14_model", "vit_h14", LAION_400M, 32, 1.024e-3, 256_000_000),
        ("vitl16_data", "vit_l16", LAION_2B, 6.4, 1.024e-3, 51_200_000),
        ("vitl16_schedule", "vit_l16", LAION_400M, 64, 1.024e-3, 51_200_000),
        ("vith14_model_data", "vit_h14", LAION_2B, 6.4, 1.024e-3, 256_000_000),
        ("vith14_model_data_schedule", "vit_h14", LAION_2B, 12.8, 5.12e-4, 256_000_000),
        ("vitl16_data_schedule", "vit_l16", LAION_2B, 12.8, 5.12e-4, 51_200_000),
        ("table2/flip_b16", "vit_b16", LAION_400M, 32, 1.024e-3, 51_200_000),
        ("table2/flip_l16", "vit_l16", LAION_400M, 32, 1.024e-3, 51_200_000),
        ("table2/flip_h14", "vit_h14", LAION_400M, 32, 1.024e-3, 256_000_000),
    ],
)
def test_scaled_runs_are_those_of_the_paper(
    name: str, model: str, pairs: int, epochs: float, peak_lr: float, warmup: int
) -> None:
    job = job_of(f"{name}.yaml")
    masked, tuned = plan_job(job).phases

    assert job.model.preset == model
    assert ("laion2b" in job.data.train) == (pairs == LAION_2B)
    assert masked.samples == pytest.approx(pairs * epochs)
    assert (masked.batch_size, masked.mask_ratio, masked.warmup) == (65_536, 0.5, warmup)
    assert masked.peak_lr == pytest.approx(peak_lr)
    assert masked.steps == -(-masked.samples // 65_536)
    assert (tuned.samples, tuned.mask_ratio, tuned.warmup) == (TUNED_SAMPLES, 0.0, 25_600_000)
    assert tuned.batch_size == 65_536  # released README, "Unmasked tuning": the same configs
    assert tuned.peak_lr == pytest.approx(1.024e-5)  # base lr 4e-8 (A.1)
    assert job.phases[1].fresh_optimizer  # the released code restores only the weights


def test_budgets_are_the_steps_of_table_8() -> None:
    """12.8B samples at 65,536 are 195,312.5 steps, and 25.6B are twice as many (calculated from table 8)."""
    assert plan_job(job_of("vitl16_baseline.yaml")).phases[0].steps == 195_313
    assert plan_job(job_of("vitl16_schedule.yaml")).phases[0].steps == 390_625


@pytest.mark.parametrize(
    ("name", "mask", "batch", "peak_lr"),
    [  # tables 1a to 1c, 1e and 1f; peak lr by A.1's rule
        ("a_mask00_batch16k", 0.0, 16_384, 2.56e-4),
        ("a_mask50_batch32k", 0.5, 32_768, 5.12e-4),
        ("a_mask75_batch64k", 0.75, 65_536, 1.024e-3),
        ("b_mask50_batch16k", 0.5, 16_384, 2.56e-4),
        ("b_mask50_batch64k", 0.5, 65_536, 1.024e-3),
        ("b_mask75_batch16k", 0.75, 16_384, 2.56e-4),
        ("b_mask75_batch32k", 0.75, 32_768, 5.12e-4),
        ("c_text_random50", 0.75, 65_536, 1.024e-3),
        ("c_text_prioritised50", 0.75, 65_536, 1.024e-3),
        ("e_mask50_tuned", 0.5, 32_768, 5.12e-4),
        ("e_mask75_tuned", 0.75, 65_536, 1.024e-3),
        ("f_mask50_reconstruction", 0.5, 32_768, 5.12e-4),
        ("f_mask75_reconstruction", 0.75, 65_536, 1.024e-3),
    ],
)
def test_cells_of_table_1(name: str, mask: float, batch: int, peak_lr: float) -> None:
    job = job_of(f"table1/{name}.yaml")
    masked, *tuned = plan_job(job).phases
    assert job.model.preset == "vit_l16"
    assert masked.samples == 2_560_000_000  # 6.4 epochs of 400M
    assert (masked.mask_ratio, masked.batch_size) == (mask, batch)
    assert masked.peak_lr == pytest.approx(peak_lr)
    assert [phase.samples for phase in tuned] == ([TUNED_SAMPLES] if name.startswith("e_") else [])
    assert all(phase.batch_size == batch for phase in tuned)  # released README, "Unmasked tuning"


def test_masking_costs_what_table_1a_gives() -> None:
    """Table 1a gives 0.52 and 0.28; flipscale embeds only visible patches, which saves a little more."""
    names = ("a_mask00_batch16k", "a_mask50_batch32k", "a_mask75_batch64k")
    whole, half, quarter = (plan_job(job_of(f"table1/{name}.yaml")).flops for name in names)
    assert half / whole == pytest.approx(0.52, abs=0.005)
    assert quarter / whole == pytest.approx(0.28, abs=0.005)


@pytest.mark.parametrize(
    ("name", "samples", "mask", "batch", "peak_lr"),
    [  # table 2 and footnote 3: L/16 as in the line of L/16, tuned at patch 14
        ("table2/flip_l14", 32 * LAION_400M, 0.5, 65_536, 1.024e-3),
        ("clip/reproduction_l14", 32 * LAION_400M, 0.0, 16_384, 2.56e-4),
    ],
)
def test_l14_is_l16_tuned_at_patch_14(
    name: str, samples: int, mask: float, batch: int, peak_lr: float
) -> None:
    job = job_of(f"{name}.yaml")
    long, tuned = plan_job(job).phases

    assert job.model.preset == "vit_l16"
    assert (long.image_size, long.patch_size, tuned.image_size, tuned.patch_size) == (224, 16, 224, 14)
    assert (long.samples, long.mask_ratio, long.batch_size) == (samples, mask, batch)
    assert long.peak_lr == pytest.approx(peak_lr)
    assert (tuned.samples, tuned.mask_ratio, tuned.warmup) == (TUNED_SAMPLES, 0.0, 25_600_000)
    assert tuned.batch_size == batch  # released README, "Unmasked tuning"
    assert tuned.peak_lr * 256 / tuned.batch_size == pytest.approx(4e-8)  # A.1
    assert job.phases[1].fresh_optimizer
    # The tuned model is L/14 in all but its name.
    assert tuned.flops_per_sample == training_flops(preset("vit_l14"), 1, 0.0)


def test_schedule_of_clipa() -> None:
    """UCSC-VLAA/CLIPA, clipa_jax/configs/model_l: 84 px, then 224; peak lr there = base lr x batch / 256."""
    job = job_of("clipa/flip_l14.yaml")
    small, full = plan_job(job).phases
    assert [(phase.image_size, phase.patch_size) for phase in (small, full)] == [(84, 14), (224, 14)]
    assert (small.samples, small.batch_size, small.warmup) == (12_800_000_000, 65_536, 52_428_800)
    assert (full.samples, full.batch_size, full.warmup) == (131_072_000, 32_768, 26_214_400)
    assert (small.peak_lr, full.peak_lr) == (pytest.approx(8e-6 * 256), pytest.approx(8e-7 * 128))


@pytest.mark.parametrize("kind", ["random", "prioritised"])
def test_masked_text_costs_what_table_1c_gives(kind: str) -> None:
    """With 16 of 32 slots, table 1c gives 0.92 of the time; the share of FLOPs happens to be the same."""
    job = job_of(f"table1/c_text_{kind}50.yaml")
    (phase,) = job.phases
    assert phase.text_mask == kind
    assert visible_count(job.data.tokenizer.context_length or 0, phase.text_mask_ratio) == 16
    without = plan_job(job_of("table1/a_mask75_batch64k.yaml"))
    assert plan_job(job).flops / without.flops == pytest.approx(0.92, abs=0.005)


@pytest.mark.parametrize(("mask", "batch"), [(50, "32k"), (75, "64k")])
def test_jobs_of_table_1f_differ_from_1a_only_by_the_reconstruction(mask: int, batch: str) -> None:
    plain = job_of(f"table1/a_mask{mask}_batch{batch}.yaml")
    job = job_of(f"table1/f_mask{mask}_reconstruction.yaml")
    assert job.loss.reconstruction is not None
    assert job.loss.reconstruction.weight == 1.0  # "simply added"
    same = {"name": plain.name, "loss": plain.loss, "sharding": plain.sharding}
    assert job.model_copy(update=same) == plain
    assert plan_job(job).decoder_parameters > 0


@pytest.mark.parametrize("name", ["clip/reproduction_b16", "clip/reproduction_l16"])
def test_clip_as_the_paper_trained_it(name: str) -> None:
    (only,) = plan_job(job_of(f"{name}.yaml")).phases
    assert (only.samples, only.mask_ratio, only.batch_size) == (32 * LAION_400M, 0.0, 16_384)
    assert only.peak_lr == pytest.approx(2.56e-4)


@pytest.mark.parametrize(
    ("name", "samples", "batch", "lr", "warmup_steps"),
    [  # CLIP paper, tables 18 and 20; LAION-AI/scaling-laws-openclip, trained_models_info.csv
        ("clip/clip_b16", 32 * LAION_400M, 32_768, 5e-4, 2_000),
        ("clip/clip_l14", 32 * LAION_400M, 32_768, 4e-4, 2_000),
        ("openclip/clip_b32_laion2b", 34_725_395_968, 79_104, 1e-3, 2_000),
        ("openclip/clip_b16_laion400m", 13_034_626_688, 33_792, 5e-4, 10_000),
        ("openclip/clip_l14_laion2b", 32_000_000_000, 86_016, 1e-3, 10_000),
        ("openclip/clip_h14_laion2b", 34_725_395_968, 79_104, 5e-4, 2_000),
    ],
)
def test_clip_as_published(name: str, samples: int, batch: int, lr: float, warmup_steps: int) -> None:
    job = job_of(f"{name}.yaml")
    (only,) = plan_job(job).phases
    assert abs(only.samples - samples) < job.data.lanes  # a budget is a multiple of the lanes
    assert (only.batch_size, only.mask_ratio, only.warmup) == (batch, 0.0, warmup_steps * batch)
    assert only.peak_lr == pytest.approx(lr)
    assert (job.optimizer.betas, job.optimizer.eps, job.optimizer.weight_decay) == ((0.9, 0.98), 1e-6, 0.2)
