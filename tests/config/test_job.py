"""Job files: what is accepted, what is refused in which words, and that a dump keeps everything."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from support.job_texts import BASE, PAPER

from flipscale.config import Cadence, dump_job, load_job
from flipscale.errors import UserError


def problem(path: Path, *overrides: str) -> str:
    """Return the one sentence with which a job is refused."""
    with pytest.raises(UserError) as refusal:
        load_job(path, overrides)
    sentence = str(refusal.value)
    assert "\n" not in sentence
    return sentence


def test_units_and_defaults_are_read(write):
    job = load_job(write(BASE))
    phase = job.phases[0]

    assert (phase.samples, phase.batch_size, phase.warmup) == (12_800_000_000, 65_536, 51_200_000)
    assert phase.base_lr == 4e-6  # YAML reads 4e-6 as text
    assert job.model.preset == "vit_b16"
    assert job.data.tokenizer.kind == "wordpiece"
    assert (job.data.lanes, job.data.window, job.data.workers) == (64, 2048, None)
    assert job.checkpoint.every == (Cadence(1800, "seconds"),)
    assert job.cluster.timeout == 86_400
    assert job.optimizer.betas == (0.9, 0.95)
    assert job.optimizer.weight_decay == 0.2
    assert job.data.augmentation.crop_area == (0.5, 1.0)


def test_every_part_of_a_job_is_read(write):
    job = load_job(write(PAPER))

    assert (job.model.preset, job.model.image_size, job.model.patch_size) == ("vit_h14", 224, 14)
    assert job.checkpoint.every == (
        Cadence(20_000_000, "samples"),
        Cadence(1800, "seconds"),
        Cadence(1000, "steps"),
    )
    assert job.checkpoint.keep_every == 1_280_000_000
    assert job.logging.every == Cadence(100_000, "samples")
    assert job.optimizer.eps == 1e-6
    assert job.phases[1].fresh_optimizer
    assert job.evaluation.zero_shot["imagenet"].templates == "openai80"


@pytest.mark.parametrize("text", [BASE, PAPER])
def test_dumped_job_loads_as_the_same_job(write, text):
    job = load_job(write(text))
    assert load_job(write(dump_job(job), "dumped.yaml")) == job


def test_dump_keeps_overrides(write):
    job = load_job(write(BASE), ["checkpoint.every=[7 steps, 90s]", "seed=9223372036854775807", "name='123'"])
    again = load_job(write(dump_job(job), "dumped.yaml"))
    assert again.checkpoint.every == (Cadence(7, "steps"), Cadence(90, "seconds"))
    assert (again.name, again.seed) == ("123", 2**63 - 1)


def test_prefix_of_a_directory_of_weights_is_dropped(write):
    """OpenCLIP writes it; a run records the path, and compares it with that of its later starts."""
    for name in ("local-dir:out/model", "out/model"):
        assert load_job(write(BASE), [f"model.weights={name}"]).model.weights == "out/model"


def test_single_cadence_stands_for_a_list(write):
    job = load_job(write(BASE + "checkpoint: {every: 90s}\n"))
    assert job.checkpoint.every == (Cadence(90, "seconds"),)


def test_job_is_frozen(write):
    job = load_job(write(BASE))
    with pytest.raises(ValueError, match="frozen"):
        job.seed = 1  # pyrefly: ignore[read-only]: the test shows that it is


# Every wrong value: the override that makes it, and what the sentence must name.
WRONG = [
    ("phases.0.samples=0", "phases.0.samples"),
    ("phases.0.samples=-5", "phases.0.samples"),
    ("phases.0.samples=1e30", "too large"),
    ("phases.0.samples=30min", "unknown unit 'min'"),
    ("phases.0.samples=1.5", "not a whole number"),
    ("phases.0.samples=", "phases.0.samples"),
    ("phases.0.batch_size=0", "phases.0.batch_size"),
    ("phases.0.batch_size=true", "phases.0.batch_size"),
    ("phases.0.warmup=12.8B", "warmup (12800000000) must be shorter than samples (12800000000)"),
    ("phases.0.schedule=linear", "phases.0.schedule"),
    ("phases.0.schedule=constant_cooldown", "constant_cooldown needs cooldown"),
    ("phases.0.cooldown=640M", "cooldown belongs to schedule constant_cooldown"),
    (
        "phases.0={name: a, samples: 12.8B, mask_ratio: 0, batch_size: 64, base_lr: 1, warmup: 51.2M, "
        "schedule: constant_cooldown, cooldown: 12.8B}",
        "(51200000) and cooldown (12800000000) must fit",
    ),
    ("phases.0.mask_ratio=1.0", "phases.0.mask_ratio"),
    ("phases.0.mask_ratio=-0.1", "phases.0.mask_ratio"),
    ("phases.0.mask_ratio=.nan", "phases.0.mask_ratio"),
    ("phases.0.mask_ratio=half", "phases.0.mask_ratio"),
    ("phases.0.base_lr=0", "phases.0.base_lr"),
    ("phases.0.base_lr=.inf", "phases.0.base_lr"),
    ("phases.0.name=a b", "phases.0.name"),
    ("phases.0=5", "phases.0"),
    ("phases=[]", "phases"),
    ("phases={}", "phases"),
    ("name=", "name"),
    ("name=5", "name"),
    ("name=..", "name"),
    ("name=../other", "name"),
    ("name=2026-11-23", "name"),
    ("seed=-1", "seed"),
    ("seed=1e30", "too large"),
    ("data.lanes=0", "data.lanes"),
    ("data.window=-1", "data.window"),
    ("data.workers=-1", "data.workers"),
    ("data.max_image_pixels=0", "data.max_image_pixels"),
    ("data.augmentation.crop_area=[0.5]", "data.augmentation.crop_area"),
    ("data.augmentation.crop_area=[0.9, 0.5]", "not a range of shares"),
    ("data.augmentation.crop_area=[0, 1]", "not a range of shares"),
    ("data.augmentation.crop_area=[0.5, 1.5]", "data.augmentation.crop_area.1"),
    ("data.augmentation.interpolation=nearest", "'bicubic' or 'bilinear'"),
    ("data.tokenizer.kind=bpe", "data.tokenizer.kind"),
    ("data.tokenizer={}", "tokenizer.vocab is missing"),
    ("data.tokenizer.context_length=0", "data.tokenizer.context_length"),
    ("optimizer.betas=[0.9, 1.0]", "optimizer.betas.1"),
    ("optimizer.eps=0", "optimizer.eps"),
    ("optimizer.clip_grad_norm=0", "optimizer.clip_grad_norm"),
    ("optimizer.weight_decay=-0.1", "optimizer.weight_decay"),
    ("sharding.precision=fp16", "sharding.precision"),
    ("checkpoint.keep_last=1", "checkpoint.keep_last"),
    ("checkpoint.keep_every=0", "checkpoint.keep_every"),
    ("checkpoint.every=0", "checkpoint.every"),
    ("checkpoint.every=[20M]", "ambiguous"),
    ("checkpoint.every=[5 epochs]", "not a cadence"),
    ("logging.every=30min", "samples or steps, not time"),
    ("logging.every=0 steps", "must be above zero"),
    ("cluster.timeout=30", "has no unit"),
    ("cluster.timeout=0s", "cluster.timeout"),
    ("cluster.nodes=0", "cluster.nodes"),
    ("model=", "model"),
    ("model=7", "model"),
    ("model.image_size=-224", "model.image_size"),
]


@pytest.mark.parametrize(("override", "named"), WRONG)
def test_wrong_value_is_refused_in_one_sentence(write, override, named):
    path = write(BASE)
    sentence = problem(path, override)
    assert sentence.startswith(f"{path}: ")
    assert named in sentence


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("sed=1", "unknown key sed; did you mean seed?"),
        ("data.lane=8", "unknown key data.lane; did you mean lanes?"),
        ("phases.0.sample=8", "unknown key phases.0.sample; did you mean samples?"),
        ("data.augmentation.crop=8", "unknown key data.augmentation.crop; did you mean crop_area?"),
        ("evaluation.zero_shot.x.dat=y", "unknown key evaluation.zero_shot.x.dat; did you mean data?"),
        ("model.imagesize=32", "unknown key model.imagesize; did you mean image_size?"),
        (
            "optimizer.zzz=1",
            "unknown key optimizer.zzz; known keys here: betas, clip_grad_norm, eps, name, weight_decay",
        ),
    ],
)
def test_unknown_key_names_the_nearest(write, override, sentence):
    path = write(BASE)
    assert problem(path, override) == f"{path}: {sentence}"


def test_misspelt_key_is_reported_before_the_missing_one(write):
    path = write(BASE.replace("samples:", "sampels:"))
    assert problem(path) == f"{path}: unknown key phases.0.sampels; did you mean samples?"


@pytest.mark.parametrize("key", ["name", "model", "data", "phases"])
def test_missing_key_is_named(write, key):
    document = yaml.safe_load(BASE)
    del document[key]
    path = write(yaml.safe_dump(document))
    assert problem(path) == f"{path}: the key {key} is missing"


def test_two_phases_of_one_name_are_refused(write):
    document = yaml.safe_load(BASE)
    document["phases"] *= 2
    assert "two phases are called 'masked'" in problem(write(yaml.safe_dump(document)))


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("data.captions=txt", "data.captions: give keys and values, such as {name: value} (given: 'txt')"),
        ("data.captions={}", "data.captions: it is empty; give at least one value"),
        ("data=1", "data: give keys and values, such as {name: value} (given: 1)"),
        (
            "data.train=pipe:get -H 'A: b'",
            "data.train: give a text, in quotes if YAML",
        ),
        ("data.images=jpg", "data.images: give a list, such as [a, b] (given: 'jpg')"),
    ],
)
def test_values_of_another_type_are_refused_with_what_to_write(tmp_path: Path, override: str, sentence: str):
    path = tmp_path / "job.yaml"
    path.write_text(BASE)
    assert sentence in problem(path, override)
