"""`flipscale checkpoints`: what it lists agrees with what training keeps, finds and refuses."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pty
import shutil
import subprocess
import sys
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from support.broken_files import flipscale
from support.run_in_files import RunInFiles
from support.saved_checkpoints import save

from flipscale.cli.checkpoints import checkpoints
from flipscale.errors import StoppedEarly, UserError
from flipscale.formatting import format_bytes
from flipscale.runs import checkpoint
from flipscale.runs.checkpoint_list import list_checkpoints, verify_checkpoints
from flipscale.runs.directory import RunDirectory, existing_run, recorded_job
from flipscale.runs.manifest import directory_name
from flipscale.runs.verification import DamagedCheckpoint


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """A run of 800 + 200 samples that keeps the last three of its checkpoints, and has none yet."""
    return existing_run(RunInFiles.new(tmp_path / "run").path)


def document(run: RunDirectory) -> dict[str, Any]:
    return recorded_job(run).model_dump(mode="json", exclude_none=True)


def saved(run: RunDirectory, *samples: int, permanent: bool = False, keep_last: int = 9) -> None:
    save(run.checkpoints, *samples, permanent=permanent, keep_last=keep_last, job=document(run))


def change_a_byte(run: RunDirectory, samples: int) -> None:
    file = next((run.checkpoints / directory_name(samples)).glob("*.safetensors"))
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def printed(run: RunDirectory, capsys: pytest.CaptureFixture[str], *, verify: bool = False) -> dict[str, Any]:
    checkpoints(run.path, verify=verify, as_json=True)
    return json.loads(capsys.readouterr().out)


def contents(path: Path) -> Mapping[str, tuple[int, bytes]]:
    files = (file for file in path.rglob("*") if file.is_file())
    return {str(file): (file.stat().st_mtime_ns, file.read_bytes()) for file in files}


def test_order_is_that_of_the_commits(run: RunDirectory) -> None:
    saved(run, 8, permanent=True)
    saved(run, 16, 24, 32)
    change_a_byte(run, 32)
    saved(run, 28)
    saved(run, 800, permanent=True)
    saved(run, 808)

    listed = list_checkpoints(run).checkpoints
    assert [(entry.samples, entry.phase, entry.kept) for entry in listed] == [
        (8, "masked", "keep_every"),
        (16, "masked", None),
        (24, "masked", None),
        (32, "masked", None),
        (28, "masked", "keep_last"),
        (800, "masked", "phase_end"),
        (808, "unmasked", "keep_last"),
    ]
    assert [entry.name for entry in listed if entry.latest] == [directory_name(808)]
    assert {entry.problem for entry in listed} == {None}  # no file was read


@pytest.mark.parametrize("keep_last", [2, 3])
def test_after_a_save_exactly_the_kept_ones_are_left(run: RunDirectory, keep_last: int) -> None:
    job = run.job.read_text().replace("keep_last: 3", f"keep_last: {keep_last}")
    run.job.write_text(job)
    for samples in (8, 16, 24, 32, 40):
        saved(run, samples, permanent=samples == 16)
    before = {entry.samples: entry.kept for entry in list_checkpoints(run).checkpoints}
    assert list(before.values()).count("keep_last") == keep_last

    saved(run, 48, keep_last=keep_last)
    after = list_checkpoints(run).checkpoints
    assert [entry.samples for entry in after] == [16, *[8, 16, 24, 32, 40, 48][-keep_last:]]
    assert None not in {entry.kept for entry in after}


def test_sizes_and_times_are_those_of_the_files(
    run: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    saved(run, 8)
    path = run.checkpoints / directory_name(8)
    os.utime(path / "manifest.json", (1_700_000_000, 1_700_000_000))

    (entry,) = printed(run, capsys)["checkpoints"]
    assert entry["bytes"] == sum(file.stat().st_size for file in path.iterdir())
    assert entry["saved"] == "2023-11-14T22:13:20+00:00"
    assert datetime.fromisoformat(entry["saved"]) == datetime.fromtimestamp(1_700_000_000, timezone.utc)


@pytest.mark.parametrize("damage", ["content", "size", "missing", "unknown", "manifest", "no manifest"])
def test_verify_finds_what_training_skips(run: RunDirectory, damage: str) -> None:
    saved(run, 8, 16, 24)
    broken = run.checkpoints / directory_name(24)
    file = next(broken.glob("*.safetensors"))
    if damage == "content":
        change_a_byte(run, 24)
    elif damage == "size":
        os.truncate(file, 5)
    elif damage == "missing":
        file.unlink()
    elif damage == "unknown":
        shutil.copy(file, broken / "copy.safetensors")
    elif damage == "manifest":
        (broken / "manifest.json").write_text("{}")
    else:
        (broken / "manifest.json").unlink()
    before = contents(run.path)

    outcome = flipscale("checkpoints", run.path, "--verify")
    assert (outcome.code, outcome.fault) == (1, "")
    assert all(directory_name(samples) in outcome.output for samples in (8, 16, 24))
    assert f"\n{directory_name(24)} is damaged: " in outcome.output
    (sentence,) = outcome.errors.splitlines()
    assert sentence.startswith(f"error: 1 of 3 checkpoints are not whole: {directory_name(24)}; ")

    listed = json.loads(flipscale("checkpoints", run.path, "--verify", "--json").output)
    problems = [entry["problem"] for entry in listed["checkpoints"]]
    assert problems[:2] == [None, None]
    newest = checkpoint.find(run.checkpoints)
    assert newest is not None
    assert newest.path.name == directory_name(16)
    with pytest.raises(DamagedCheckpoint) as found:
        checkpoint.read(broken)
    assert problems[2] == str(found.value)
    assert contents(run.path) == before


def test_whole_checkpoints_are_verified_quickly_and_without_torch(run: RunDirectory) -> None:
    saved(run, 8, 16)
    before = contents(run.path)
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "flipscale", "checkpoints", str(run.path), "--verify"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "COLUMNS": "200"},
    )
    assert "every file has the size and the SHA-256 of its manifest" in done.stdout
    assert "damaged" not in done.stdout
    imported = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}
    assert "pydantic" in imported
    assert not {"torch", "numpy"} & imported
    assert contents(run.path) == before


def test_progress_is_shown_on_a_terminal_only(run: RunDirectory) -> None:
    saved(run, 8)
    command = [sys.executable, "-m", "flipscale", "checkpoints", str(run.path), "--verify"]
    quiet = subprocess.run(command, capture_output=True, text=True, check=True)
    assert quiet.stderr == ""

    ours, theirs = pty.openpty()
    try:
        shown = subprocess.run(command, stdout=subprocess.PIPE, stderr=theirs, text=True, check=True)
        assert shown.stdout == quiet.stdout
        assert b"verifying" in os.read(ours, 1 << 16)
    finally:
        os.close(ours)
        os.close(theirs)


def test_what_is_not_a_checkpoint_of_the_run_is_named(
    run: RunDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved(run, 8)
    whole = run.checkpoints / directory_name(8)
    shutil.copytree(whole, run.checkpoints / "samples_good")
    (run.checkpoints / "notes").mkdir()
    (run.checkpoints / "a_file").touch()
    save(run.checkpoints, 16, job={**document(run), "seed": 5})
    shutil.copytree(whole, run.checkpoints / "saving_000000000016.0123abcd")

    found = printed(run, capsys, verify=True)
    assert [entry["samples"] for entry in found["checkpoints"]] == [8]
    reasons = {other["name"]: other["reason"] for other in found["others"]}
    assert list(reasons) == ["notes", directory_name(16), "samples_good", "saving_000000000016.0123abcd"]
    assert reasons["samples_good"] == reasons["notes"]
    assert reasons["notes"] == "its name is not samples_ and the samples seen in 12 digits"
    assert "the job in its manifest, called 'first', is not that" in reasons[directory_name(16)]
    assert "was interrupted" in reasons["saving_000000000016.0123abcd"]

    checkpoints(run.path)
    lines = capsys.readouterr().out.splitlines()
    size = sum(file.stat().st_size for file in whole.iterdir())
    (line,) = [line for line in lines if line.startswith("samples_good")]
    assert line == (
        f"samples_good ({format_bytes(size)}) is not a checkpoint of this run: {reasons['samples_good']}"
    )
    assert len([line for line in lines if "is not a checkpoint of this run: " in line]) == 4


def test_manifest_of_a_newer_version_is_a_line_of_the_table(run: RunDirectory) -> None:
    saved(run, 8, 16)
    manifest = run.checkpoints / directory_name(8) / "manifest.json"
    newer = json.loads(manifest.read_text()) | {"version": 99}
    del newer["sha256"]
    text = json.dumps(newer, sort_keys=True, separators=(",", ":"))
    manifest.write_text(json.dumps(newer | {"sha256": hashlib.sha256(text.encode()).hexdigest()}))
    first, second = list_checkpoints(run).checkpoints
    assert first.problem == "a newer flipscale wrote this checkpoint (version 99); update flipscale"
    assert second.problem is None
    with pytest.raises(UserError, match="version 99"):  # training refuses the whole directory
        checkpoint.find(run.checkpoints)


def test_checkpoint_that_training_deletes_meanwhile_is_left_out(run: RunDirectory) -> None:
    saved(run, 8, 16)
    listed = list_checkpoints(run)
    shutil.rmtree(run.checkpoints / directory_name(8))
    verified = verify_checkpoints(run, listed, lambda size: None)
    assert [entry.samples for entry in verified.checkpoints] == [16]
    assert verified.damaged == []


def test_storage_that_does_not_answer_is_not_damage(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    saved(run, 8, 16)

    def away(file: Path, report: Any) -> str:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(file))

    monkeypatch.setattr("flipscale.runs.storage.PAUSES", (0.0,))
    monkeypatch.setattr("flipscale.runs.verification.sha256", away)
    with pytest.raises(StoppedEarly, match=r"cannot be read .*bring its storage back"):
        checkpoints(run.path, verify=True)
    shown = capsys.readouterr().out
    assert all(directory_name(samples) in shown for samples in (8, 16))
    assert "damaged" not in shown


def test_table_fits_a_terminal_of_80_columns(run: RunDirectory) -> None:
    saved(run, 8, 16, permanent=True)
    change_a_byte(run, 16)
    table = [
        line for line in flipscale("checkpoints", run.path, "--verify").output.splitlines() if "│" in line
    ]
    assert max(map(len, table)) <= 80
    assert [line.split("│")[1].strip() for line in table] == [
        directory_name(8),
        directory_name(16),
        "LATEST",
        "damaged",
    ]


def test_start_is_refused_if_none_is_whole(run: RunDirectory) -> None:
    saved(run, 8)
    change_a_byte(run, 8)
    errors = flipscale("checkpoints", run.path, "--verify").errors
    assert "a start is refused; restore one, or begin again with `flipscale train --from-zero`" in errors


def test_latest_that_names_nothing_is_a_warning(run: RunDirectory) -> None:
    saved(run, 8)
    (run.checkpoints / "LATEST").write_text("samples_000000000099\n")
    outcome = flipscale("checkpoints", run.path)
    assert outcome.code == 0
    assert outcome.errors == "warning: LATEST names 'samples_000000000099', which is not among them\n"


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("nowhere", "is not a run directory"),
        ("run/job.yaml", "is not a run directory"),
        ("run/checkpoints", "is not a run directory"),
        ("run", "has no checkpoints"),
        ("file", "checkpoints cannot be read (Not a directory)"),
    ],
)
def test_bad_input_is_one_sentence(run: RunDirectory, tmp_path: Path, place: str, message: str) -> None:
    if place == "file":
        run.checkpoints.rmdir()
        run.checkpoints.touch()
        place = "run"
    outcome = flipscale("checkpoints", tmp_path / place)
    assert (outcome.code, outcome.output) == (2, "")
    (sentence,) = outcome.errors.splitlines()
    assert sentence.startswith("error: ")
    assert message in sentence
