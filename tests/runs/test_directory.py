"""The run directory belongs to one job, allows only some changes, and has one writing process at a time."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from flipscale.config import Job, load_job
from flipscale.errors import UserError
from flipscale.runs.directory import (
    RunDirectory,
    existing_run,
    prepare,
    recorded_job,
    run_directory,
)
from flipscale.runs.identity import DataIdentity, check_identity, recorded_data
from flipscale.runs.job_changes import CHANGEABLE
from flipscale.runs.lock import lock_run

DOCUMENT: dict[str, Any] = {
    "name": "first",
    "model": "vit_micro_p8",
    "data": {"train": "/data/{0..9}.tar", "tokenizer": {"vocab": "vocab.txt"}, "lanes": 8},
    "phases": [
        {"name": "a", "samples": 640, "mask_ratio": 0.5, "batch_size": 32, "base_lr": 1e-3},
        {"name": "b", "samples": 320, "mask_ratio": 0.0, "batch_size": 32, "base_lr": 1e-4},
    ],
}
IDENTITY = DataIdentity(fingerprint="f", tokenizer="t", samples=5, shards=(("0.tar", 5),))


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    run = RunDirectory(tmp_path / "runs" / "first")
    prepare(run, job(tmp_path), 0)
    return run


def job(tmp_path: Path, *overrides: str) -> Job:
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(DOCUMENT))
    return load_job(path, overrides)


def refused(run: RunDirectory, changed: Job, samples_seen: int) -> str:
    with pytest.raises(UserError) as refusal:
        prepare(run, changed, samples_seen)
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


def test_job_writes_to_its_output_or_below_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run_directory(job(tmp_path)).path == tmp_path / "runs" / "first"
    assert run_directory(job(tmp_path, "output=elsewhere/x")).path == tmp_path / "elsewhere" / "x"


def test_checkpoint_outside_its_run_is_refused(tmp_path):
    """It may be at the top of a file system, as a container's mounts are."""
    assert RunDirectory.of_checkpoint(Path("/samples_000000000640")).path == Path("/")

    source = Job.model_validate(DOCUMENT).data.tokenizer
    with pytest.raises(UserError, match=r"index.json; restore it, or name a checkpoint within its run$"):
        recorded_data(RunDirectory.of_checkpoint(tmp_path / "samples_000000000640"), source)


def test_new_run_records_its_job(run, tmp_path):
    assert recorded_job(run) == job(tmp_path)
    assert run.checkpoints.is_dir()
    assert sorted(path.name for path in run.path.iterdir()) == ["checkpoints", "job.yaml"]
    assert existing_run(run.path) == run


def test_directory_without_a_run_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "empty", tmp_path / "none", tmp_path / "file"):
        if path.name == "file":
            path.write_text("")
        with pytest.raises(UserError, match="is not a run directory"):
            existing_run(path)


@pytest.mark.parametrize(
    "override",
    [
        "output=/elsewhere",
        "data.train=/moved/{0..9}.tar",
        "data.index=/index",
        "data.workers=7",
        "data.tokenizer.vocab=/moved/vocab.txt",
        "sharding.strategy=fsdp",
        "sharding.activation_checkpointing=full",
        "sharding.micro_batch=8",
        "phases.0.micro_batch=8",
        "checkpoint.every=[5 steps]",
        "checkpoint.keep_last=9",
        "logging.every=5 steps",
        "logging.tensorboard=false",
        "evaluation.zero_shot.x={data: a, classnames: b}",
        "evaluation.retrieval.y=c",
        "cluster.nodes=9",
        "phases.1.samples=3200",
        "phases.1.base_lr=1",
        "phases.1.warmup=32",
        "phases.1.fresh_optimizer=true",
    ],
)
def test_changeable_keys_may_change(run, tmp_path, override):
    changed = job(tmp_path, override)
    prepare(run, changed, 320)
    assert recorded_job(run) == changed


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed=1", "seed was 0, now 1"),
        ("model=vit_tiny_p8", "model.preset was vit_micro_p8, now vit_tiny_p8"),
        ("model.image_size=64", "model.image_size was not set, now 64"),
        ("data.lanes=16", "data.lanes was 8, now 16"),
        ("data.window=5", "data.window was 2048, now 5"),
        ("data.tokenizer.context_length=16", "data.tokenizer.context_length was not set, now 16"),
        ("data.augmentation.flip=false", "data.augmentation.flip was True, now False"),
        ("data.augmentation.crop_area=[0.6, 1.0]", "data.augmentation.crop_area.0 was 0.5, now 0.6"),
        ("data.max_image_pixels=5M", "data.max_image_pixels was 100000000, now 5000000"),
        ("optimizer.weight_decay=0.1", "optimizer.weight_decay was 0.2, now 0.1"),
        ("sharding.precision=bf16", "sharding.precision was fp32, now bf16"),
        ("phases.0.samples=960", "phases.0.samples was 640, now 960"),
        ("phases.0.batch_size=64", "phases.0.batch_size was 32, now 64"),
        ("phases.0.base_lr=1", "phases.0.base_lr was 0.001, now 1.0"),
        ("phases.0.name=z", "phases.0.name was a, now z"),
    ],
)
def test_other_keys_may_not_change(run, tmp_path, override, message):
    before = run.job.read_text()
    sentence = refused(run, job(tmp_path, override), 320)
    assert f"the job file changed since {run.path} began: {message}; change it back" in sentence
    assert all(key in sentence for key in CHANGEABLE)
    assert run.job.read_text() == before


def test_every_change_is_named(run, tmp_path):
    sentence = refused(run, job(tmp_path, "seed=1", "data.window=5", "data.workers=3"), 320)
    assert "data.window was 2048, now 5; seed was 0, now 1; change it back" in sentence


def test_phase_may_change_until_it_begins(run, tmp_path):
    # At 640 samples the second phase has not begun: its first step would start there.
    prepare(run, job(tmp_path, "phases.1.batch_size=64"), 640)
    assert "phases.1.batch_size was 64, now 32" in refused(run, job(tmp_path), 704)
    # Before the first step of the run, all phases may change.
    prepare(RunDirectory(run.path), job(tmp_path, "phases.1.batch_size=64", "phases.0.samples=320"), 0)


def test_future_phases_may_be_added_and_removed(run, tmp_path):
    shorter = job(tmp_path)
    shorter = shorter.model_copy(update={"phases": shorter.phases[:1]})
    longer = job(tmp_path)
    extra = longer.phases[1].model_copy(update={"name": "c"})
    longer = longer.model_copy(update={"phases": (*longer.phases, extra)})
    for changed in (shorter, longer, job(tmp_path)):
        prepare(run, changed, 640)
        assert recorded_job(run) == changed
    prepare(run, longer, 960)  # a finished run is extended
    assert "phases.1.name was b, now not set" in refused(run, shorter, 700)


def test_run_of_another_job_is_refused(run, tmp_path):
    sentence = refused(run, job(tmp_path, "name=second"), 0)
    assert sentence == f"{run.path} holds the run of the job 'first', not 'second'; set another `output`"


def test_directory_with_other_files_is_refused(tmp_path):
    run = RunDirectory(tmp_path / "thesis")
    run.path.mkdir()
    (run.path / "thesis.tex").write_text("precious")
    assert "is not empty and holds no run" in refused(run, job(tmp_path), 0)
    with pytest.raises(UserError, match="is not empty and holds no run"), lock_run(run):
        pass
    assert [path.name for path in run.path.iterdir()] == ["thesis.tex"]


def test_unwritable_directory_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        assert "cannot be written" in refused(RunDirectory(path), job(tmp_path), 0)
        with pytest.raises(UserError, match="cannot be written"), lock_run(RunDirectory(path)):
            pass


def test_pipe_in_the_place_of_the_lock_is_refused(tmp_path: Path):
    run = RunDirectory(tmp_path)
    os.mkfifo(run.lock)
    with pytest.raises(UserError, match="lock is not a regular file; remove it"), lock_run(run):
        pass


@pytest.mark.parametrize("left", [[], ["lock"], ["lock", "job.yaml.partial"], ["lock", "heartbeats"]])
def test_killed_start_can_be_repeated(tmp_path, left):
    run = RunDirectory(tmp_path / "run")
    run.path.mkdir()
    for name in left:
        (run.path / name).write_text("")
    with lock_run(run):
        prepare(run, job(tmp_path), 0)
    assert recorded_job(run) == job(tmp_path)


def test_edited_job_record_is_named(run, tmp_path):
    run.job.write_text("name: first\nsed: 1\n")
    assert f"{run.job}: unknown key sed; did you mean seed?" in refused(run, job(tmp_path), 0)


def test_changed_data_or_vocabulary_is_refused(run):
    def save(directory: Path) -> None:
        (directory / "tokenizer.json").write_text("pieces")

    check_identity(run, IDENTITY, save)
    recorded = {"fingerprint": "f", "tokenizer": "t", "samples": 5, "shards": [["0.tar", 5]]}
    assert json.loads(run.index.read_text()) == recorded
    assert (run.tokenizer / "tokenizer.json").read_text() == "pieces"
    with pytest.raises(UserError, match=r"not those that .* began with \(5 samples then, 6 now"):
        check_identity(run, replace(IDENTITY, fingerprint="g", samples=6), save)
    with pytest.raises(
        UserError, match=f"vocabulary is not the one .* copy is in {re.escape(str(run.tokenizer))}"
    ):
        check_identity(run, replace(IDENTITY, tokenizer="u"), save)
    record = run.index.read_text()
    run.index.unlink()
    with pytest.raises(UserError, match=r"there is no .*index\.json, .* restore it, or set another `output`"):
        check_identity(run, IDENTITY, save, samples_seen=5)
    run.index.write_text(record)
    for damaged in ("", "{}", "[]"):
        run.index.write_text(damaged)
        with pytest.raises(UserError, match=r"index\.json is damaged"):
            check_identity(run, IDENTITY, save)


@pytest.mark.parametrize("content", [None, b"", b"piec", b"\xff"])
def test_damaged_copy_of_the_tokenizer_is_written_again(run, caplog, content):
    def save(directory: Path) -> None:
        (directory / "tokenizer.json").write_text("pieces")

    check_identity(run, IDENTITY, save)
    copy = run.tokenizer / "tokenizer.json"
    copy.unlink()
    if content is not None:
        copy.write_bytes(content)
    check_identity(run, IDENTITY, save)
    assert copy.read_text() == "pieces"
    assert (str(copy) in caplog.text) == (content is not None)
    written = copy.stat().st_mtime_ns
    check_identity(run, IDENTITY, save)
    assert copy.stat().st_mtime_ns == written


def test_stop_file_of_any_shape_is_removed_or_named(run, caplog):
    run.forget_stop_request()
    run.stop_file.mkdir()
    run.forget_stop_request()
    assert not run.stop_file.exists()
    run.stop_file.symlink_to("nowhere")
    run.forget_stop_request()
    assert not run.stop_file.is_symlink()
    assert caplog.text == ""
    (run.stop_file / "of_somebody").mkdir(parents=True)
    run.forget_stop_request()
    assert f"{run.stop_file} cannot be removed (Directory not empty)" in caplog.text


LOCK_AND_WAIT = """
import sys, time
from pathlib import Path
from flipscale.runs.directory import RunDirectory
from flipscale.runs.lock import lock_run
with lock_run(RunDirectory(Path(sys.argv[1]))):
    print("locked", flush=True)
    time.sleep(60)
"""


def test_second_process_is_refused_until_the_first_has_ended(run):
    first = subprocess.Popen(
        [sys.executable, "-c", LOCK_AND_WAIT, str(run.path)], stdout=subprocess.PIPE, text=True
    )
    assert first.stdout is not None
    assert first.stdout.readline() == "locked\n"
    with pytest.raises(UserError, match="another process is training in"), lock_run(run):
        pass
    first.send_signal(signal.SIGKILL)
    first.wait()
    with lock_run(run):
        pass
    with lock_run(run):
        pass
