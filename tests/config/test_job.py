"""Job files: what is accepted, what is refused in which words, and that a dump keeps everything."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from flipscale.config import Cadence, dump_job, load_job
from flipscale.errors import UserError

BASE = """\
name: run
model: vit_b16
data:
  train: /data/{000..009}.tar
  tokenizer: {vocab: vocab.txt}
phases:
  - {name: masked, samples: 12.8B, mask_ratio: 0.5, batch_size: 65536, base_lr: 4e-6, warmup: 51.2M}
"""
PAPER = """\
name: vith14
output: /runs/vith14
model: {preset: vit_h14, image_size: 224, patch_size: 14}
seed: 3
data:
  train: /data/{000000..231349}.tar::/more/{0..9}.tar
  tokenizer: {kind: wordpiece, vocab: bert-base-uncased, context_length: 32}
  lanes: 1024
  window: 4k
  index: /data/index
  workers: 8
  augmentation: {crop_area: [0.5, 1.0], flip: false, interpolation: bilinear}
  max_image_pixels: 50M
phases:
  - {name: masked, samples: 25.6B, mask_ratio: 0.5, batch_size: 65536, base_lr: 2.0e-6, warmup: 256M}
  - {name: unmasked, samples: 128M, mask_ratio: 0.0, batch_size: 32768, base_lr: 4.0e-8, warmup: 25.6M,
     fresh_optimizer: true}
optimizer: {betas: [0.9, 0.95], eps: 1e-6, weight_decay: 0.1, clip_grad_norm: 1.0}
sharding: {strategy: ddp, precision: bf16}
checkpoint: {every: [20M samples, 30min, 1k steps], keep_last: 3, keep_every: 1.28B}
logging: {every: 100k samples, tensorboard: false}
evaluation:
  zero_shot:
    imagenet: {data: /data/val, classnames: imagenet, templates: openai80}
  retrieval: {coco: "/data/coco/{0..4}.tar"}
cluster: {nodes: 32, gpus_per_node: 8, timeout: 24h}
"""


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def write(text: str, name: str = "job.yaml") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    return write


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


def test_single_cadence_stands_for_a_list(write):
    job = load_job(write(BASE + "checkpoint: {every: 90s}\n"))
    assert job.checkpoint.every == (Cadence(90, "seconds"),)


def test_job_is_frozen(write):
    job = load_job(write(BASE))
    with pytest.raises(ValueError, match="frozen"):
        job.seed = 1


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
            "unknown key optimizer.zzz; known keys here: betas, clip_grad_norm, eps, weight_decay",
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
    ("text", "expected"),
    [
        ("seed: 1\nseed: 2\n", "the key 'seed' is given twice (line 2)"),
        ("data: {lanes: 1, lanes: 2}\n", "the key 'lanes' is given twice (line 1)"),
        ("phases:\n- samples: 1\n  samples: 2\n", "the key 'samples' is given twice (line 3)"),
        ("a: [1\n", "not valid YAML"),
        ("a: b: c\n", "not valid YAML"),
        ("name: 2026-13-45\n", "not valid YAML"),
        ("? [a]\n: 1\n", "not valid YAML"),
        ("!!map [a]\n", "not valid YAML"),
        ("a: !!python/object/apply:os.system [exit]\n", "not valid YAML"),
        ("a: " + "[" * 2000, "not valid YAML"),
        ("a: \x07\n", "not valid YAML"),
        ("", "must hold keys and values"),
        ("- a\n", "must hold keys and values"),
        ("just words\n", "must hold keys and values"),
        ("1: 2\n" + BASE, "1"),
    ],
)
def test_content_other_than_a_job_is_refused(write, text, expected):
    path = write(text)
    sentence = problem(path)
    assert str(path) in sentence
    assert expected in sentence


def test_unreadable_file_is_named(tmp_path):
    message = problem(tmp_path / "none.yaml")
    assert message == f"there is no job file at {tmp_path / 'none.yaml'}; {tmp_path} has no YAML files"
    (tmp_path / "nine.yaml").touch()
    assert problem(tmp_path / "none.yaml").endswith("none.yaml; nearest names there: nine.yaml")
    assert "does not exist either, as seen from" in problem(tmp_path / "nowhere" / "none.yaml")
    assert str(tmp_path) in problem(tmp_path)
    path = tmp_path / "latin.yaml"
    path.write_bytes(b"name: caf\xe9\n")
    assert f"{path} cannot be read" in problem(path)


def test_extends_merges_a_chain(write):
    write(BASE, "base/flip.yaml")
    write("extends: ../base/flip.yaml\nseed: 5\ndata: {lanes: 128}\n", "middle/wide.yaml")
    path = write("extends: middle/wide.yaml\nname: top\ndata: {window: 9, tokenizer: {context_length: 16}}\n")
    job = load_job(path)
    assert (job.name, job.seed) == ("top", 5)
    assert (job.data.lanes, job.data.window) == (128, 9)
    assert (job.data.tokenizer.vocab, job.data.tokenizer.context_length) == ("vocab.txt", 16)
    assert job.phases[0].name == "masked"


def test_extends_replaces_lists(write):
    write(BASE, "base.yaml")
    path = write(
        "extends: base.yaml\nphases: [{name: only, samples: 8, mask_ratio: 0, batch_size: 8, base_lr: 1}]\n"
    )
    assert [phase.name for phase in load_job(path).phases] == ["only"]


def test_cycle_of_extends_is_named(write):
    write("extends: b.yaml\n", "a.yaml")
    write("extends: c.yaml\n", "b.yaml")
    write("extends: a.yaml\n", "c.yaml")
    sentence = problem(write("extends: a.yaml\n", "top.yaml"))
    assert "extends itself" in sentence
    assert "a.yaml -> b.yaml -> c.yaml -> a.yaml" in sentence
    assert "extends itself" in problem(write("extends: self.yaml\n", "self.yaml"))


def test_missing_base_is_named(write, tmp_path):
    path = write("extends: gone.yaml\n")
    assert problem(path).startswith(
        f"there is no job file at {tmp_path / 'gone.yaml'} (extended by {path}); "
    )
    assert "extends must be the path of one job file" in problem(write("extends: [a, b]\n"))
    write("a: [\n", "broken.yaml")
    assert f"{tmp_path / 'broken.yaml'} is not valid YAML" in problem(write("extends: broken.yaml\n"))


def test_overrides_reach_everywhere(write):
    job = load_job(
        write(PAPER),
        [
            "name=other",
            "data.lanes=512",
            "phases.1.samples=64M",
            "phases.0.warmup=0",
            "checkpoint.every.1=45min",
            "evaluation.retrieval.flickr=/data/f.tar",
            "data.augmentation.crop_area=[0.3, 0.9]",
            "output=",
            "data.train=/a=b/{0..1}.tar",
        ],
    )
    assert (job.name, job.data.lanes, job.output) == ("other", 512, None)
    assert (job.phases[1].samples, job.phases[0].warmup) == (64_000_000, 0)
    assert job.checkpoint.every[1] == Cadence(2700, "seconds")
    assert job.checkpoint.every[2] == Cadence(1000, "steps")
    assert set(job.evaluation.retrieval) == {"coco", "flickr"}
    assert job.data.augmentation.crop_area == (0.3, 0.9)
    assert job.data.train == "/a=b/{0..1}.tar"


def test_override_expands_the_short_form_of_the_model(write):
    job = load_job(write(BASE), ["model.image_size=112"])
    assert (job.model.preset, job.model.image_size) == ("vit_b16", 112)


@pytest.mark.parametrize(
    "override",
    [
        "seed",
        "=5",
        "seed=[",
        "seed=2026-13-45",
        "phases.1.samples=5",
        "phases.-1.samples=5",
        "phases.²=5",
        "phases.first.samples=5",
        "phases.7=5",
        "phases.0.name.x=5",
        "checkpoint.every.0.x=5",
        "name.x=5",
    ],
)
def test_override_that_fits_nowhere_is_refused(write, override):
    path = write(BASE + "checkpoint: {every: [30min]}\n")
    assert repr(override) in problem(path, override)
