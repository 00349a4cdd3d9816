"""A run whose checkpoints or job were changed by others says so, and changes nothing by itself."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from support.time_limits import wait_until
from support.tiny_run import TinyRun

from flipscale.runs.ledger import read_ledger

MakeRun = Callable[..., TinyRun]

SMALL = ("phases.0.samples=64", "phases.0.warmup=16", "phases.1.samples=32")


def flipscale(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "flipscale", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)


def refusal(*arguments: object) -> str:
    """Return the one sentence with which a command refuses its input."""
    done = flipscale(*arguments)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    (sentence,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    return sentence


def contents(path: Path) -> dict[str, bytes]:
    """Return the files of a run that training continues from, by their paths."""
    files = {str(file.relative_to(path)): file for file in path.rglob("*") if file.is_file()}
    signs_of_life = ("heartbeats/", "lock")
    return {name: file.read_bytes() for name, file in files.items() if not name.startswith(signs_of_life)}


@pytest.fixture
def finished(tiny_run: MakeRun) -> TinyRun:
    run = tiny_run("finished")
    done = run.train(*SMALL)
    assert done.returncode == 0, done.stderr
    return run


@pytest.mark.slow
def test_lost_checkpoints_are_refused_until_a_person_begins_again(finished: TinyRun):
    weights = finished.weights()
    shutil.rmtree(finished.output / "checkpoints")
    before = contents(finished.output)
    assert "metrics.jsonl" in before
    sentence = refusal("train", finished.output)
    assert "ledger.jsonl says that 96 samples were trained, and no checkpoint" in sentence
    assert "bring the checkpoints back" in sentence
    assert contents(finished.output) == before

    (finished.output / "FROM_ZERO").touch()  # as `submit --from-zero` leaves it
    done = flipscale("train", finished.output)
    assert done.returncode == 0, done.stderr
    assert not (finished.output / "FROM_ZERO").exists()
    assert finished.weights() == weights
    lines = read_ledger(finished.output)
    assert [line.reason for line in lines] == ["done", "input", "rolled_back", "done"]
    assert [(line.samples_from, line.samples_to) for line in lines] == [(0, 96), (96, 96), (96, 0), (0, 96)]
    assert "--from-zero is for runs whose checkpoints are lost" in refusal(
        "train", finished.output, "--from-zero"
    )


@pytest.mark.slow
def test_checkpoints_that_are_emptied_after_a_first_segment_was_killed_are_missed(tiny_run: MakeRun):
    run = tiny_run("killed")
    process = run.start("phases.0.samples=80000")
    wait_until(lambda: committed_in(run.output / "segment.json") > 0)
    process.kill()
    process.communicate(timeout=60)
    assert not (run.output / "ledger.jsonl").exists()
    shutil.rmtree(run.output / "checkpoints")
    (run.output / "checkpoints").mkdir()

    samples = committed_in(run.output / "segment.json")
    assert f"segment.json says that {samples} samples were trained" in refusal("train", run.output)


def committed_in(segment: Path) -> int:
    """Return the samples of the newest checkpoint by segment.json; 0 if there is no such file yet."""
    return json.loads(segment.read_text())["samples_to"] if segment.exists() else 0


@pytest.mark.slow
def test_storage_that_does_not_answer_ends_the_start_with_exit_75(finished: TinyRun, tmp_path: Path):
    """A process's own memory at address 0 is a real file whose reads fail with EIO."""
    manifest = finished.newest() / "manifest.json"
    text = manifest.read_text()
    manifest.unlink()
    manifest.symlink_to("/proc/self/mem")
    kept = ("ledger.jsonl", "metrics.jsonl", "job.yaml", "checkpoints/LATEST")
    before = [(finished.output / name).read_bytes() for name in kept]
    for command in ("train", "export"):
        done = flipscale(command, finished.output, *([tmp_path / "new/out"] if command == "export" else []))
        assert done.returncode == 75, done.stderr
        assert "Traceback" not in done.stderr
        assert f"{manifest} cannot be read (Input/output error, 6 times)" in done.stderr
        assert "bring its storage back and run the same command again" in done.stderr
    assert not (tmp_path / "new").exists()
    assert [(finished.output / name).read_bytes() for name in kept] == before
    assert len(list(manifest.parents[1].glob("samples_*"))) == 2

    manifest.unlink()
    manifest.write_text(text)
    assert flipscale("train", finished.output).returncode == 0


@pytest.mark.slow
def test_job_of_a_run_that_was_edited_is_refused(finished: TinyRun):
    record = finished.output / "job.yaml"
    text = record.read_text()
    job = yaml.safe_load(text)
    edits = {
        "seed": "seed was 0, now 1",
        "lanes": "data.lanes was 8, now 16",
        "window": "data.window was 16, now 17",
        "base_lr": "phases.0.base_lr was 0.02, now 0.03",
        "mask_ratio": "phases.0.mask_ratio was 0.5, now 0.75",
        "samples": "phases.1.samples was 32, now 320",
    }
    for key, message in edits.items():
        changed = json.loads(json.dumps(job))
        phase = changed["phases"][1 if key == "samples" else 0]
        block = next(block for block in (changed, changed["data"], phase) if key in block)
        block[key] = json.loads(message.rsplit(" ", 1)[1])
        record.write_text(yaml.safe_dump(changed))
        before = contents(finished.output)
        assert f"the job file changed since {finished.output} began: {message}; change it back" in refusal(
            "train", finished.output
        )
        assert contents(finished.output) == before

    # What may change may be edited, too.
    job["logging"]["every"] = "1 steps"
    record.write_text(yaml.safe_dump(job))
    assert flipscale("train", finished.output).returncode == 0

    # The record of a run may be wrong while the given job is right.
    job["seed"] = 7
    record.write_text(yaml.safe_dump(job))
    assert "seed was 0, now 7" in refusal("export", finished.output, finished.output.parent / "out")
    again = finished.train(*SMALL)
    assert again.returncode == 0, again.stderr
    assert yaml.safe_load(record.read_text())["seed"] == 0


@pytest.mark.slow
def test_swapped_tokenizer_is_noticed(finished: TinyRun):
    saved = finished.output / "tokenizer" / "tokenizer.json"
    document = json.loads(saved.read_text())
    vocabulary = document["model"]["vocab"]
    one, other = list(vocabulary)[-2:]
    vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]
    saved.write_text(json.dumps(document))
    sentence = refusal("export", finished.output, finished.output.parent / "out")
    assert "is not the tokenizer that the run was trained with" in sentence
    assert not os.path.lexists(finished.output.parent / "out")


@pytest.mark.slow
def test_copy_of_an_older_checkpoint_is_not_the_newest(finished: TinyRun):
    newest = finished.newest()
    for name in ("samples_backup", "samples_999999999999"):
        shutil.copytree(newest.with_name("samples_000000000064"), newest.with_name(name))
    done = flipscale("export", finished.output, finished.output.parent / "out")
    assert done.returncode == 0, done.stderr
    report = "".join(path.read_text() for path in (finished.output.parent / "out").glob("*.json"))
    assert "96" in report
    done = flipscale("train", finished.output)
    assert f"resuming from {newest}" in done.stderr
    assert "samples_backup is not named as a checkpoint" in done.stderr
    wrong = "samples_999999999999: its manifest cannot be read (it is the manifest of samples_000000000064)"
    assert wrong in done.stderr
