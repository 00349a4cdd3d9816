"""A start resumes from what is committed, and never begins at zero without being asked."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.run_in_files import RunInFiles
from support.saved_checkpoints import SINGLE, load, save, state_at

from flipscale.errors import StoppedEarly, UserError
from flipscale.progress import Progress
from flipscale.runs import checkpoint
from flipscale.runs.directory import RunDirectory, recorded_job
from flipscale.runs.ledger_writer import LedgerWriter
from flipscale.runs.manifest import directory_name, read_manifest
from flipscale.runs.resume_point import find_resume_point, find_trained

TRANSIENT = (
    errno.EIO,
    errno.ESTALE,
    errno.ETIMEDOUT,
    errno.EACCES,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOTCONN,
)


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flipscale.runs.storage.PAUSES", (0.0, 0.0))


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """A run with checkpoints at 8 and 16 samples, and a ledger that ends there."""
    run = RunDirectory(RunInFiles.new(tmp_path / "run").segment(samples_to=16, reason="stopped").path)
    save(run.checkpoints, 8, 16)
    return run


class Storage:
    """A file system whose reads fail; real ones cannot be had in a test, and root may read everything."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, below: Path, code: int, times: int) -> None:
        self.failures = 0
        self._below = str(below)
        self._code = code
        self._times = times
        for module, name in ((os, "listdir"), (os, "open"), ("builtins", "open"), ("io", "open")):
            self._wrap(monkeypatch, module, name)

    def _wrap(self, monkeypatch: pytest.MonkeyPatch, module: Any, name: str) -> None:
        target = f"{module}.{name}" if isinstance(module, str) else f"{module.__name__}.{name}"
        real = getattr(__import__(target.split(".")[0]), name)

        def failing(path: Any, *arguments: Any, **options: Any) -> Any:
            below = isinstance(path, (str, os.PathLike)) and os.fspath(path).startswith(self._below)
            if below and self.failures < self._times:
                self.failures += 1
                raise OSError(self._code, os.strerror(self._code), os.fspath(path))
            return real(path, *arguments, **options)

        monkeypatch.setattr(target, failing)


@pytest.mark.parametrize("code", TRANSIENT, ids=errno.errorcode.get)
@pytest.mark.parametrize("name", ["", "/samples_000000000016/manifest.json", "/samples_000000000016/shard"])
def test_error_that_passes_is_not_damage(run: RunDirectory, monkeypatch, caplog, code: int, name: str):
    storage = Storage(monkeypatch, Path(f"{run.checkpoints}{name}"), code, times=1)
    newest = find_resume_point(run)
    assert newest is not None
    assert newest.progress.samples_seen == 16
    assert storage.failures == 1
    assert f"cannot be read ({os.strerror(code)})" in caplog.text
    assert "damaged" not in caplog.text


@pytest.mark.parametrize("code", TRANSIENT, ids=errno.errorcode.get)
@pytest.mark.parametrize("name", ["", "/samples_000000000016/manifest.json", "/samples_000000000016/shard"])
def test_storage_that_stays_away_ends_the_start(run: RunDirectory, monkeypatch, code: int, name: str):
    with monkeypatch.context() as patch:
        storage = Storage(patch, Path(f"{run.checkpoints}{name}"), code, times=10**6)
        with pytest.raises(StoppedEarly, match="bring its storage back and run the same command") as stopped:
            find_resume_point(run)
    assert storage.failures == 3
    assert (stopped.value.reason, stopped.value.agreed) == ("storage", True)
    assert os.strerror(code) in str(stopped.value)
    newest = find_resume_point(run)
    assert newest is not None


def test_weights_are_read_patiently(run: RunDirectory, monkeypatch):
    newest = find_resume_point(run)
    assert newest is not None
    real = checkpoint.Checkpoint._load
    calls: list[int] = []

    def failing(self: checkpoint.Checkpoint, state: Any) -> None:
        calls.append(1)
        if len(calls) == 1:
            raise OSError(errno.EIO, "Input/output error")
        real(self, state)

    monkeypatch.setattr(checkpoint.Checkpoint, "_load", failing)
    assert load(newest)["model.a"].equal(state_at(16)["model.a"])
    assert len(calls) == 2


def lose_all(run: RunDirectory) -> None:
    shutil.rmtree(run.checkpoints)


def lose_contents(run: RunDirectory) -> None:
    shutil.rmtree(run.checkpoints)
    run.checkpoints.mkdir()


def damage_all(run: RunDirectory) -> None:
    for file in run.checkpoints.rglob("*.safetensors"):
        os.truncate(file, 10)


def lose_manifests(run: RunDirectory) -> None:
    for file in run.checkpoints.rglob("manifest.json"):
        file.unlink()


def replace_by_a_dangling_link(run: RunDirectory) -> None:
    shutil.rmtree(run.checkpoints)
    run.checkpoints.symlink_to("/mnt/that/is/away")


def replace_by_dangling_links(run: RunDirectory) -> None:
    for path in list(run.checkpoints.glob("samples_*")):
        shutil.rmtree(path)
        path.symlink_to("/mnt/that/is/away")


LOSSES = [
    lose_all,
    lose_contents,
    damage_all,
    lose_manifests,
    replace_by_a_dangling_link,
    replace_by_dangling_links,
]


@pytest.mark.parametrize("lose", LOSSES)
def test_lost_checkpoints_are_not_an_empty_run(run: RunDirectory, lose: Callable[[RunDirectory], None]):
    lose(run)
    left = sorted(run.path.rglob("*"))
    with pytest.raises(UserError) as refusal:
        find_resume_point(run)
    sentence = str(refusal.value)
    assert sentence.startswith(f"{run.ledger} says that 16 samples were trained, and no checkpoint in")
    assert "bring the checkpoints back" in sentence
    assert "--from-zero" in sentence
    assert "\n" not in sentence
    assert sorted(run.path.rglob("*")) == left


@pytest.mark.parametrize("lose", [lose_all, damage_all, lose_manifests, replace_by_dangling_links])
def test_first_segment_that_was_killed_has_no_line_yet(
    run: RunDirectory, lose: Callable[[RunDirectory], None]
):
    run.ledger.unlink()
    RunInFiles(run.path).open_segment()
    lose(run)
    with pytest.raises(UserError, match=r"no checkpoint in .* can be read"):
        find_resume_point(run)


@pytest.mark.parametrize("lose", LOSSES)
def test_first_segment_that_was_killed_notes_its_checkpoints(
    run: RunDirectory, lose: Callable[[RunDirectory], None]
):
    run.ledger.unlink()
    LedgerWriter(run.path, Progress(), SINGLE, "here.1").committed(16)
    lose(run)
    with pytest.raises(UserError, match=r"segment\.json says that 16 samples were .*, and no checkpoint"):
        find_resume_point(run)


def test_latest_alone_shows_that_there_was_a_checkpoint(run: RunDirectory):
    run.ledger.unlink()
    for path in run.checkpoints.glob("samples_*"):
        shutil.rmtree(path)
    with pytest.raises(UserError, match="LATEST names 'samples_000000000016', and no checkpoint"):
        find_resume_point(run)


@pytest.mark.parametrize("lose", LOSSES)
def test_person_may_begin_at_zero(run: RunDirectory, lose: Callable[[RunDirectory], None], caplog):
    lose(run)
    before = sorted(path.name for path in run.checkpoints.glob("samples_*"))
    assert find_resume_point(run, from_zero=True) is None

    # What is left neither counts nor is lost.
    after = sorted(path.name for path in run.checkpoints.glob("*samples_*"))
    assert after == [f"lost_{name}" for name in before]
    assert not (run.checkpoints / "LATEST").exists()
    RunInFiles(run.path).segment(samples_to=0, samples_from=16, reason="rolled_back")
    assert find_resume_point(run) is None


def test_second_loss_is_set_aside_as_well(run: RunDirectory):
    for _ in range(2):
        save(run.checkpoints, 8)
        damage_all(run)
        assert find_resume_point(run, from_zero=True) is None
    assert (run.checkpoints / "lost_samples_000000000008").is_dir()
    assert (run.checkpoints / "lost_samples_000000000008.2").is_dir()


def test_whole_checkpoint_is_not_given_up(run: RunDirectory):
    with pytest.raises(UserError, match=r"--from-zero is for runs .* is whole"):
        find_resume_point(run, from_zero=True)


def test_request_of_a_submission_counts_only_while_checkpoints_are_lost(run: RunDirectory, caplog):
    run.zero_file.touch()
    newest = find_resume_point(run)
    assert newest is not None
    assert "FROM_ZERO does not count" in caplog.text

    lose_contents(run)
    assert find_resume_point(run) is None
    run.forget_zero_request()
    with pytest.raises(UserError, match="--from-zero"):
        find_resume_point(run)


@pytest.mark.parametrize("from_zero", [False, True])
def test_new_run_begins_at_zero(tmp_path: Path, from_zero: bool):
    assert find_resume_point(RunDirectory(tmp_path / "none"), from_zero=from_zero) is None
    begun = RunInFiles.new(tmp_path / "begun").open_segment().segment(samples_to=0, reason="killed")
    assert find_resume_point(RunDirectory(begun.path), from_zero=from_zero) is None


def test_checkpoint_of_another_run_is_not_evaluated(run: RunDirectory):
    job = recorded_job(run).model_dump(mode="json", exclude_none=True)
    path = run.checkpoints / directory_name(16)
    manifest = read_manifest(path)
    (path / "manifest.json").write_text(replace(manifest, job=job).to_json())
    newest = find_trained(run)
    assert newest is not None

    for changes, message in (
        ({"name": "second"}, "holds the run of the job 'second', not 'first'"),
        ({"seed": 5}, "seed was 5, now 0; change it back"),
        ({"sed": 5}, "unknown key sed; did you mean seed"),
    ):
        (path / "manifest.json").write_text(replace(manifest, job=job | changes).to_json())
        with pytest.raises(UserError, match=message):
            find_trained(run)
