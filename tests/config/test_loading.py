"""Files, their bases and overrides: what is merged, and which file or override an error names."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.job_texts import BASE, PAPER

from flipscale.config import Cadence, load_job
from flipscale.errors import UserError


def problem(path: Path, *overrides: str) -> str:
    """Return the one sentence with which a job is refused."""
    with pytest.raises(UserError) as refusal:
        load_job(path, overrides)
    sentence = str(refusal.value)
    assert "\n" not in sentence
    return sentence


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

    (tmp_path / ".none.yaml").write_text("")  # a hidden file is not a suggestion
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
