"""Pruning follows the order of commits, and touches only checkpoints that this start knows."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from support.saved_checkpoints import is_exact, save

from flipscale.runs import checkpoint
from flipscale.runs.commit_order import in_order_of_commit
from flipscale.runs.manifest import directory_name


def kept(root: Path) -> list[int]:
    return sorted(int(path.name.split("_")[1]) for path in root.glob("samples_0*"))


def damage(root: Path, samples: int) -> None:
    file = next((root / directory_name(samples)).glob("*.safetensors"))
    os.truncate(file, file.stat().st_size - 1)


def newest(root: Path) -> int:
    found = checkpoint.find(root)
    assert found is not None
    assert is_exact(found)
    return found.progress.samples_seen


def test_newest_and_permanent_checkpoints_stay(tmp_path: Path):
    for samples in (8, 16, 24, 32, 40):
        save(tmp_path, samples, permanent=samples == 16, keep_last=2)
    assert kept(tmp_path) == [16, 32, 40]


def test_checkpoint_after_a_roll_back_stays(tmp_path: Path):
    """The three damaged ones have more samples, and were committed before it."""
    save(tmp_path, 8, 16, 24, 32, 40, keep_last=9)
    for samples in (24, 32, 40):
        damage(tmp_path, samples)
    save(tmp_path, 20, keep_last=2)
    assert kept(tmp_path) == [16, 20, 24, 32, 40]
    assert newest(tmp_path) == 20


def test_damaged_checkpoints_before_the_resumed_one_do_not_stay_for_ever(tmp_path: Path):
    save(tmp_path, 8, 16, 24, 32)
    for samples in (24, 32):
        damage(tmp_path, samples)
    save(tmp_path, 20)
    save(tmp_path, 28, keep_last=2)
    assert kept(tmp_path) == [20, 28]


def test_restored_checkpoint_is_not_newer_than_later_commits(tmp_path: Path):
    save(tmp_path, 8, 16, 24)
    shutil.copytree(tmp_path / directory_name(24), tmp_path / "backup")
    damage(tmp_path, 24)
    save(tmp_path, 20)
    shutil.rmtree(tmp_path / directory_name(24))
    (tmp_path / "backup").rename(tmp_path / directory_name(24))
    assert newest(tmp_path) == 20


def test_order_of_commits_outlives_latest(tmp_path: Path):
    save(tmp_path, 8, 16, 24)
    damage(tmp_path, 24)
    save(tmp_path, 20, 22)
    for text in ("", "samples_000000000008\n", "samples_000000000024\n", "samples_000000000099\n"):
        (tmp_path / "LATEST").write_text(text)
        assert newest(tmp_path) == 22
    assert [entry.samples for entry in in_order_of_commit(tmp_path)] == [8, 16, 24, 20, 22]
    save(tmp_path, 30)
    assert (tmp_path / "LATEST").read_text() == "samples_000000000030\n"


def test_start_corrects_latest(tmp_path: Path):
    """A start may be killed between the name of the checkpoint and LATEST."""
    save(tmp_path, 8, 16)
    (tmp_path / "LATEST").write_text("samples_000000000008\n")
    save(tmp_path, 16)
    assert (tmp_path / "LATEST").read_text() == "samples_000000000016\n"


def test_copies_that_a_person_made_neither_count_nor_go(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    save(tmp_path, 8)
    copies = ["samples_a", "samples_b", "samples_backup", "samples_000000000008.old", "samples_999999999999"]
    for name in copies:
        shutil.copytree(tmp_path / directory_name(8), tmp_path / name)

    for samples in (16, 24, 32, 40, 48):
        save(tmp_path, samples, keep_last=2)
        assert newest(tmp_path) == samples
    assert sorted(path.name for path in tmp_path.glob("samples_*")) == sorted(
        [*copies, directory_name(40), directory_name(48)]
    )
    for name in copies:
        assert str(tmp_path / name) in caplog.text


def test_checkpoints_of_another_run_stay(tmp_path: Path):
    save(tmp_path / "other", 4, name="y")
    save(tmp_path / "run", 8)
    shutil.copytree(tmp_path / "other" / directory_name(4), tmp_path / "run" / directory_name(4))
    save(tmp_path / "run", 16, 24, 32, keep_last=1)
    assert kept(tmp_path / "run") == [4, 32]


def test_checkpoint_that_appears_while_the_run_trains_stays(tmp_path: Path):
    save(tmp_path, 8, 16)
    shutil.copytree(tmp_path / directory_name(8), tmp_path / "copy")
    save(tmp_path, 24, keep_last=1)
    assert kept(tmp_path) == [24]
    (tmp_path / "copy").rename(tmp_path / directory_name(8))
    save(tmp_path, 32, keep_last=9)
    assert kept(tmp_path) == [8, 24, 32]


def test_links_to_an_archive_stay_and_so_does_what_they_lead_to(tmp_path: Path):
    root = tmp_path / "run"
    archive = tmp_path / "archive"
    archive.mkdir()
    save(root, 8, 16, 24)
    for samples in (8, 16):
        (root / directory_name(samples)).rename(archive / directory_name(samples))
        (root / directory_name(samples)).symlink_to(archive / directory_name(samples))
    before = {path: path.read_bytes() for path in archive.rglob("*") if path.is_file()}
    assert len(before) == 4

    save(root, 32, 40, keep_last=1)
    assert kept(root) == [8, 16, 40]
    assert {path: path.read_bytes() for path in archive.rglob("*") if path.is_file()} == before


def test_damaged_link_is_replaced_and_not_followed(tmp_path: Path):
    root = tmp_path / "run"
    save(root, 8, 16)
    (root / directory_name(16)).rename(tmp_path / "archived")
    (root / directory_name(16)).symlink_to(tmp_path / "archived")
    damage(root, 16)
    left = sorted(path.name for path in (tmp_path / "archived").iterdir())

    save(root, 16)
    assert newest(root) == 16
    assert not (root / directory_name(16)).is_symlink()
    assert sorted(path.name for path in (tmp_path / "archived").iterdir()) == left


@pytest.mark.parametrize("kind", ["file", "dangling link"])
def test_anything_with_the_name_of_a_checkpoint_is_replaced_by_it(tmp_path: Path, kind: str):
    save(tmp_path, 8)
    place = tmp_path / directory_name(16)
    place.write_text("") if kind == "file" else place.symlink_to(tmp_path / "nothing")
    save(tmp_path, 16)
    assert newest(tmp_path) == 16


def test_what_cannot_be_deleted_does_not_fail_the_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    save(tmp_path, 8, 16)

    # As root every permission is there, so that the refusal of a file server is imitated.
    def refuse(path: Path, samples: int) -> None:
        raise PermissionError(1, "Operation not permitted", str(path))

    with monkeypatch.context() as patch:
        patch.setattr("flipscale.runs.pruning.discard", refuse)
        save(tmp_path, 24, keep_last=1)
    assert kept(tmp_path) == [8, 16, 24]
    assert "stays, because it cannot be deleted" in caplog.text
    save(tmp_path, 32, keep_last=1)
    assert kept(tmp_path) == [32]


def test_killed_deletion_is_finished_by_the_next_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    save(tmp_path, 8, 16)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda *arguments, **options: None)
        save(tmp_path, 24, keep_last=1)
    assert len(list(tmp_path.glob("saving_*"))) == 2
    (tmp_path / "saving_mine").mkdir()
    assert kept(tmp_path) == [24]
    save(tmp_path, 32, keep_last=2)
    assert [path.name for path in tmp_path.glob("saving_*")] == ["saving_mine"]


def test_checkpoints_of_version_1_are_older(tmp_path: Path):
    """An older flipscale does not number its commits; it always resumes from the most samples."""
    save(tmp_path, 8, 16)
    for samples in (8, 16):
        rewrite_as_version_1(tmp_path / directory_name(samples))
    assert newest(tmp_path) == 16
    save(tmp_path, 24, 32, keep_last=2)
    assert kept(tmp_path) == [24, 32]
    save(tmp_path, 40)
    rewrite_as_version_1(tmp_path / directory_name(40))
    assert newest(tmp_path) == 40


def rewrite_as_version_1(path: Path) -> None:
    document = json.loads((path / "manifest.json").read_text())
    del document["sha256"], document["commit"]
    (path / "manifest.json").write_text(json.dumps(document | {"version": 1}))
