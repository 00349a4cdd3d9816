"""A resolved job: it loads to the same job, and exactly the values that somebody set have an origin."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import pytest
from pydantic import BaseModel
from support.job_texts import BASE, PAPER

from flipscale.config import Job, load_job
from flipscale.config.loading import load_job_with_origins
from flipscale.config.resolved import ResolvedJob, resolved_job

JOBS = Path(__file__).resolve().parents[2] / "jobs"
FILES = sorted(path for path in JOBS.rglob("*.yaml") if path.parent.name not in ("base", "evaluation"))

Write = Callable[..., Path]


def resolved(path: Path, *overrides: str) -> ResolvedJob:
    return resolved_job(*load_job_with_origins(path, overrides))


def origins(path: Path, *overrides: str) -> dict[str, str]:
    """Return the origins with the bare names of files."""
    found = resolved(path, *overrides).origins
    return {key: origin.rpartition("/")[2] for key, origin in found.items()}


def given(value: object, place: str = "", *, by_somebody: bool = False) -> Iterator[str]:
    """Yield the dotted keys of the values that a job was made from, as pydantic has noted them."""
    if isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from given(
                getattr(value, name), f"{place}.{name}", by_somebody=name in value.model_fields_set
            )
    elif isinstance(value, Mapping) and value:
        for name, item in cast("Mapping[str, object]", value).items():
            yield from given(item, f"{place}.{name}", by_somebody=by_somebody)
    elif isinstance(value, tuple) and value:
        for number, item in enumerate(cast("tuple[object, ...]", value)):
            yield from given(item, f"{place}.{number}", by_somebody=by_somebody)
    elif by_somebody and value is not None:
        yield place[1:]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(JOBS)))
def test_every_job_is_shown_as_it_is(path: Path, tmp_path: Path) -> None:
    job = load_job(path)
    shown = resolved(path)
    (tmp_path / "shown.yaml").write_text(shown.text)
    assert load_job(tmp_path / "shown.yaml") == job
    assert Job.model_validate(shown.document) == job
    assert set(shown.origins) == set(given(job))

    for key, origin in shown.origins.items():
        file, _, line = origin.rpartition(":")
        text = Path(file).read_text().splitlines()[int(line) - 1]
        names = [part for part in key.removesuffix(".preset").split(".") if not part.isdecimal()]
        assert re.search(rf"\b{names[-1]}\b", text), (key, origin)


def test_comments_say_where_a_value_is_set(write: Write) -> None:
    path = write(BASE)
    text = resolved(path, "seed=3").text
    lines = text.splitlines()
    assert lines[0] == f"name: run  # {path}:1"
    assert "seed: 3  # the command line" in lines
    assert "  lanes: 64" in lines  # a default


def test_file_overlays_its_base_value_by_value(write: Write) -> None:
    write(PAPER, "base.yaml")
    path = write(
        "extends: base.yaml\n"
        "data:\n"
        "  augmentation: {flip: true}\n"
        "  workers:\n"
        "model: vit_h14\n"
        "phases:\n"
        "  - {name: only, samples: 1024, mask_ratio: 0,\n"
        "     batch_size: 1024, base_lr: 1}\n"
        "checkpoint: {every: 30min}\n"
    )
    found = origins(path)
    assert found["name"] == "base.yaml:1"
    assert found["model.preset"] == "job.yaml:5"
    assert found["data.augmentation.flip"] == "job.yaml:3"
    assert found["data.augmentation.interpolation"] == "base.yaml:12"
    assert found["phases.0.samples"] == "job.yaml:7"
    assert found["phases.0.batch_size"] == "job.yaml:8"
    assert not any(key.startswith("phases.1") or key == "phases.0.warmup" for key in found)
    assert found["checkpoint.every.0"] == "job.yaml:9"
    assert found["checkpoint.keep_last"].startswith("base.yaml:")
    assert set(found) == set(given(load_job(path)))


def test_overrides_take_the_place_of_what_they_replace(write: Write) -> None:
    path = write(PAPER)
    overrides = [
        "phases.1.samples=64M",
        "data.augmentation={flip: true}",
        "checkpoint.every.1=45min",
        "optimizer.betas=[0.8, 0.9]",
        "output=",
        "evaluation.retrieval.flickr=/data/f.tar",
    ]
    found = origins(path, *overrides)
    assert {key for key, origin in found.items() if origin == "the command line"} == {
        *("phases.1.samples", "data.augmentation.flip", "checkpoint.every.1"),
        *("optimizer.betas.0", "optimizer.betas.1", "evaluation.retrieval.flickr"),
    }
    assert found["phases.0.samples"] == "job.yaml:15"
    assert set(found) == set(given(load_job(path, overrides)))


def test_short_form_of_the_model_stays_the_origin_of_the_preset(write: Write) -> None:
    found = origins(write(BASE), "model.image_size=112")
    assert (found["model.preset"], found["model.image_size"]) == ("job.yaml:2", "the command line")


def test_anchors_and_merge_keys_have_the_lines_that_they_refer_to(write: Write) -> None:
    phase = "{name: b, samples: 640, mask_ratio: 0, batch_size: 64, base_lr: 1}"
    text = BASE.replace("  - {name: masked", "  - &first {name: masked")
    found = origins(write(f"{text}  - {{<<: *first, name: again}}\n  - {phase}\n"))
    line = text.splitlines().index(next(line for line in text.splitlines() if "&first" in line)) + 1
    assert found["phases.1.samples"] == f"job.yaml:{line}"
    assert found["phases.1.name"] == f"job.yaml:{line + 1}"


SECRETS = (
    "https://user:hunter2hunter2@host/{0..9}.tar",
    "https://host/{0..9}.tar?X-Amz-Signature=hunter2hunter2",
    "pipe:curl -H 'Authorization: Bearer hunter2hunter2' https://host/{0..9}.tar",
    "pipe:curl -u user:hunter2hunter2 https://host/{0..9}.tar",
    "pipe:curl -uuser:hunter2hunter2 https://host/{0..9}.tar",
    "https://host/{0..9}.tar;sig=hunter2hunter2",
)


@pytest.mark.parametrize("address", SECRETS)
def test_secrets_are_not_shown(write: Write, address: str) -> None:
    harmless = "https://host/a.tar?versionId=7&sig=${SIGNATURE}"
    piped = "  allow_pipe: [curl]\n  cache: {directory: /cache, size: 1GB}\n"
    path = write(BASE.replace("/data/{000..009}.tar\n", f'"{address}::{harmless}"\n{piped}'))
    shown = resolved(path)
    assert "hunter2" not in f"{shown.text}{shown.document}{shown.origins}"
    assert shown.document["data"]["train"].endswith(f"::{harmless}")


@pytest.mark.parametrize(
    "value",
    [
        "/data/a b # c/{0..9}.tar",
        "/data/" + "long directory/" * 40 + "{0..9}.tar",
        "'quoted' \"twice\": yes",
        "größe/☃/{0..9}.tar",
        "007",
        "%YAML",
    ],
)
def test_texts_that_yaml_takes_for_something_else_stay(write: Write, value: str, tmp_path: Path) -> None:
    job = load_job(write(BASE), [f"data.train={json.dumps(value)}"])
    assert job.data.train == value
    path = tmp_path / "resolved.yaml"
    path.write_text(resolved_job(job, {("data", "train"): "a file\nname: other: 1 # x"}).text)
    assert load_job(path) == job


def test_origin_of_an_empty_list_is_that_of_the_list(write: Write) -> None:
    write(BASE + "checkpoint: {every: [30min, 20M samples]}\n", "base.yaml")
    found = origins(write("extends: base.yaml\ndata: {allow_pipe: []}\ncheckpoint:\n  every: [10min]\n"))
    assert found["data.allow_pipe"] == "job.yaml:2"
    assert found["checkpoint.every.0"] == "job.yaml:4"
    assert "checkpoint.every.1" not in found


def test_values_of_an_empty_block_are_defaults(write: Write) -> None:
    write(BASE + "loss:\n  reconstruction:\n", "base.yaml")
    path = write("extends: base.yaml\nloss: {reconstruction: {}}\n")
    assert load_job(path).loss.reconstruction is not None
    assert not any(key.startswith("loss") for key in origins(path))
    assert origins(path, "loss.reconstruction.weight=2")["loss.reconstruction.weight"] == "the command line"

    write(BASE + "loss: {reconstruction: {weight: 2}}\n", "base.yaml")
    found = {key: origin for key, origin in origins(path).items() if key.startswith("loss")}
    assert found == {"loss.reconstruction.weight": f"base.yaml:{len(BASE.splitlines()) + 1}"}
    assert not any(key.startswith("loss") for key in origins(path, "loss.reconstruction={}"))


def test_job_of_no_file_has_no_origins() -> None:
    document: Any = {"name": "x", "model": "vit_b16", "data": {"train": "a.tar", "tokenizer": {"vocab": "v"}}}
    document["phases"] = [{"name": "p", "samples": 64, "mask_ratio": 0, "batch_size": 64, "base_lr": 1}]
    shown = resolved_job(Job.model_validate(document), {})
    assert shown.origins == {}
    assert "#" not in shown.text
