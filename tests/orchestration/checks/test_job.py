"""The checks of a job before its submission: data, tokenizer, weights and disk; they write nothing."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from support.tiny_run import TinyRun

from flipscale.config import Site, load_job
from flipscale.data.shards.indexing import build_index
from flipscale.orchestration.checks.finding import Finding
from flipscale.orchestration.checks.job import preflight
from flipscale.planning.plan import state_bytes
from flipscale.runs.directory import run_directory


def findings(run: TinyRun, *overrides: str) -> dict[str, Finding]:
    job = load_job(run.job, overrides)
    results = preflight(run_directory(job), job, Site(gpus_per_node=0))

    assert not run.output.exists() or (run.output / "index").exists()  # it writes nothing
    return {finding.name: finding for finding in results}


@pytest.fixture
def run(tiny_run: Callable[..., TinyRun]) -> TinyRun:
    return tiny_run(cluster={"gpus_per_node": 1})


def test_a_whole_job_passes(run: TinyRun):
    levels = {name: finding.level for name, finding in findings(run).items() if name != "run directory"}
    assert set(levels.values()) == {"ok"}


def test_index_is_compared_with_the_shards(run: TinyRun, data_set: Path, tmp_path: Path):
    shards = [shutil.copy(path, tmp_path) for path in sorted((data_set / "train").glob("*.tar"))]
    pattern = str(tmp_path / "{00000..00002}.tar")
    build_index(pattern, tmp_path / "index")
    overrides = (f"data.train={pattern}", f"data.index={tmp_path / 'index'}")
    assert findings(run, *overrides)["data"].text.startswith("300 samples in 3 shards")

    other = findings(run, f"data.index={tmp_path / 'index'}")["data"]
    assert (other.level, "make it for these" in other.text) == ("error", True)

    Path(shards[1]).write_bytes(b"short")
    changed = findings(run, *overrides)["data"]
    assert (changed.level, f"{shards[1]} changed" in changed.text) == ("error", True)


def test_outdated_index_of_the_run_is_not_an_error(run: TinyRun, data_set: Path):
    build_index(str(data_set / "train/{00000..00001}.tar"), run.output / "index")
    assert findings(run)["data"] == Finding("data", "ok", "3 shards; the first segment indexes them")

    index = run.output / "index/index.json"
    index.write_text('{"version": 0}')
    assert findings(run)["data"].level == "ok"


def test_shards_are_looked_for_at_their_address(run: TinyRun, data_set: Path):
    address = f"file://{data_set}"  # fsspec reads it, as it does s3://
    finding = findings(run, f"data.train={address}/train/{{00000..00002}}.tar")["data"]
    assert finding == Finding("data", "ok", "3 shards; the first segment indexes them")

    missing = findings(run, f"data.train={address}/train/{{00000..00007}}.tar")["data"]
    assert (missing.level, f"{address}/train/00003.tar cannot be read" in missing.text) == ("error", True)


def test_source_of_captions_that_holds_none_is_a_warning(run: TinyRun, data_set: Path):
    shard = data_set / "train" / "00000.tar"
    finding = findings(run, "data.captions={txt: 1, json.captoin: 3}")["captions"]
    assert finding.level == "warning"
    assert finding.text.startswith(
        f"data.captions names json.captoin, but the first 100 samples of {shard} have no caption there "
        "(100 in txt, 0 in json.captoin); correct the name"
    )
    assert findings(run)["captions"] == Finding("captions", "ok", "of 100 samples, 100 in txt")

    away = findings(run, f"data.train=file://{data_set}/train/{{00000..00002}}.tar")["captions"]
    assert away == Finding("captions", "ok", "txt; no shard is on this machine to look into")


@pytest.mark.parametrize(
    ("change", "check", "sentence"),
    [
        ("data.tokenizer.vocab=/nowhere/vocab.txt", "tokenizer", "/nowhere/vocab.txt does not exist"),
        ("model.weights=/nowhere", "weights", "model.weights /nowhere is neither a run, nor a checkpoint"),
        ("data.train=/nowhere/{0..2}.tar", "data", "the shard /nowhere/0.tar cannot be read here"),
        ("output=/proc/run", "run directory", "/proc cannot be written"),
    ],
)
def test_missing_files_are_named(run: TinyRun, change: str, check: str, sentence: str):
    finding = findings(run, change)[check]
    assert (finding.level, sentence in finding.text) == ("error", True)


def test_unknown_optimizer_is_an_error(run: TinyRun):
    finding = findings(run, "optimizer.name=adam")["processes"]
    assert (finding.level, finding.text) == ("error", "there is no optimizer.name 'adam'; use adamw")


def test_disk_without_space_for_a_checkpoint_is_an_error(run: TinyRun, monkeypatch: pytest.MonkeyPatch):
    # A full file system needs root: the test replaces the free space of the real one.
    real = shutil.disk_usage
    size = state_bytes(load_job(run.job))

    for free, level in ((size - 1, "error"), (size, "warning"), (3 * size, "ok")):  # keep_last is 2
        monkeypatch.setattr(shutil, "disk_usage", lambda path, free=free: real(path)._replace(free=free))
        finding = findings(run)["disk"]
        assert finding.level == level
        assert ("has no space for one checkpoint" in finding.text) == (level == "error")
