"""Checkpoints are committed or do not count, and damage is detected and never costs the older ones."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from support.saved_checkpoints import SINGLE, load, save, state_at

from flipscale.distributed.world import World
from flipscale.errors import RunError, UserError
from flipscale.files import too_many_files
from flipscale.order_digest import OrderDigest
from flipscale.progress import Progress
from flipscale.runs import checkpoint, checkpoint_writer
from flipscale.runs.checkpoint_writer import FILE_BYTES, CheckpointWriter, file_numbers
from flipscale.runs.manifest import directory_name, read_manifest
from flipscale.runs.verification import DamagedCheckpoint


def test_saved_state_is_loaded_bit_for_bit(tmp_path: Path) -> None:
    save(tmp_path / "c", 8)
    save(tmp_path / "c", 16)
    newest = checkpoint.find(tmp_path / "c")
    assert newest is not None
    assert newest.progress == Progress(samples_seen=16, digest=OrderDigest(48), optimizer_steps=2)
    assert (tmp_path / "c" / "LATEST").read_text().strip() == newest.path.name
    for name, tensor in load(newest).items():
        assert torch.equal(tensor, state_at(16)[name])


@pytest.mark.parametrize(("device", "expected"), [("cuda:3", torch.device("cuda", 3)), ("cpu", None)])
def test_background_thread_uses_the_device_of_its_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, expected: torch.device | None
) -> None:
    """A fake `set_device`: this machine may have no GPU. A new thread begins on device 0, as CUDA's do."""
    current = threading.local()
    seen: list[torch.device | None] = []
    write = checkpoint_writer.save_distributed

    def watched(*args: Any, **kwargs: Any) -> Any:
        assert threading.current_thread() is not threading.main_thread()
        seen.append(getattr(current, "device", None))
        return write(*args, **kwargs)

    monkeypatch.setattr(torch.cuda, "set_device", lambda device: setattr(current, "device", device))
    monkeypatch.setattr(checkpoint_writer, "save_distributed", watched)
    world = World(0, 1, 3, 8, torch.device(device))
    writer = CheckpointWriter(tmp_path, {}, 2, Progress(), world)
    writer.save(state_at(8).items(), Progress(samples_seen=8), permanent=False)
    writer.close()
    assert seen == [expected]
    assert not hasattr(current, "device")  # the thread of training keeps its own


def truncate(path: Path) -> None:
    file = next(path.glob("*.safetensors"))
    os.truncate(file, file.stat().st_size - 1)


def flip_a_byte(path: Path) -> None:
    file = next(path.glob("*.safetensors"))
    data = bytearray(file.read_bytes())
    data[-1000] ^= 1
    file.write_bytes(bytes(data))


def lose_a_file(path: Path) -> None:
    next(path.glob("*.safetensors")).unlink()


def lose_the_manifest(path: Path) -> None:
    (path / "manifest.json").unlink()


def garble_the_manifest(path: Path) -> None:
    (path / "manifest.json").write_text('{"version": 1, "progress":')


@pytest.mark.parametrize(
    "damage", [truncate, flip_a_byte, lose_a_file, lose_the_manifest, garble_the_manifest]
)
def test_damaged_checkpoint_is_named_and_the_one_before_is_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[Path], None]
) -> None:
    for samples in (8, 16, 24):
        save(tmp_path, samples)
    expected = 24
    for samples in (24, 16, 8):
        newest = checkpoint.find(tmp_path)
        assert newest is not None
        assert newest.progress.samples_seen == expected
        assert torch.equal(load(newest)["model.a"], state_at(expected)["model.a"])
        damage(tmp_path / directory_name(samples))
        expected -= 8
        with caplog.at_level(logging.WARNING):
            caplog.clear()
            after = checkpoint.find(tmp_path)
        assert directory_name(samples) in caplog.text
        assert (after.progress.samples_seen if after else 0) == expected


def test_latest_with_a_missing_checkpoint_is_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path, 8)
    (tmp_path / "LATEST").write_text("samples_000000000099\n")
    newest = checkpoint.find(tmp_path)
    assert newest is not None
    assert newest.progress.samples_seen == 8
    assert "samples_000000000099" in caplog.text


def test_missing_checkpoints_give_no_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert checkpoint.find(tmp_path / "missing") is None
    assert checkpoint.find(tmp_path) is None
    save(tmp_path, 8)
    assert checkpoint.find(tmp_path) is not None
    (tmp_path / "LATEST").unlink()
    assert checkpoint.find(tmp_path) is not None
    assert [record for record in caplog.records if record.name.startswith("flipscale")] == []


def test_hidden_files_of_file_servers_do_no_harm(tmp_path: Path) -> None:
    path = save(tmp_path, 8)
    (path / ".nfs000000000001").write_bytes(b"deleted, and still open somewhere")
    assert torch.equal(load(checkpoint.read(path))["model.a"], state_at(8)["model.a"])
    (path / "nfs000000000001").write_bytes(b"whatever")
    with pytest.raises(DamagedCheckpoint, match="it holds 'nfs000000000001', which is not of it"):
        checkpoint.read(path)


def test_next_phase_begins_only_from_a_whole_checkpoint(tmp_path: Path) -> None:
    path = save(tmp_path, 8, 16)
    assert checkpoint.read_phase_end(tmp_path, 16).progress.samples_seen == 16
    truncate(path)
    with pytest.raises(RunError, match=r"the next phase cannot begin from .*16: .* has \d+ bytes") as failed:
        checkpoint.read_phase_end(tmp_path, 16)
    assert failed.value.kind == "disk"


def test_start_corrects_latest(tmp_path: Path) -> None:
    """The start before may have been killed after it committed a checkpoint."""
    CheckpointWriter(tmp_path, {"name": "x"}, 9, Progress(), SINGLE).close()
    assert not (tmp_path / "LATEST").exists()
    save(tmp_path, 8, 16)
    (tmp_path / "LATEST").write_text(directory_name(8) + "\n")
    CheckpointWriter(tmp_path, {"name": "x"}, 9, Progress(samples_seen=16), SINGLE).close()
    assert (tmp_path / "LATEST").read_text() == directory_name(16) + "\n"

    (tmp_path / "LATEST").unlink()
    (tmp_path / "LATEST").mkdir()
    with pytest.raises(RunError, match="LATEST cannot be written"):
        CheckpointWriter(tmp_path, {"name": "x"}, 9, Progress(samples_seen=16), SINGLE)


def test_commits_are_numbered_and_noted(tmp_path: Path) -> None:
    noted: list[int] = []
    writer = CheckpointWriter(tmp_path, {"name": "x"}, 9, Progress(), SINGLE, noted.append)
    for samples in (8, 16):
        writer.save(state_at(samples).items(), Progress(samples_seen=samples), permanent=False)
    writer.close()
    assert noted == [8, 16]
    assert [read_manifest(tmp_path / directory_name(samples)).commit for samples in noted] == [1, 2]


def test_next_save_reports_one_that_failed(tmp_path: Path) -> None:
    writer = CheckpointWriter(tmp_path, {"name": "x"}, 9, Progress(), SINGLE)
    (tmp_path / "LATEST").mkdir()
    writer.save(state_at(8).items(), Progress(samples_seen=8), permanent=False)
    with pytest.raises(RunError, match=r"could not be written: .* fix the cause and run the same command"):
        writer.save(state_at(16).items(), Progress(samples_seen=16), permanent=False)
    writer.close()


def test_failures_are_named_by_their_reason() -> None:
    assert checkpoint.reason_of(OSError(errno.ENOSPC, "x")) == "no space is left on the file system"
    assert checkpoint.reason_of(OSError(errno.EMFILE, "x")) == too_many_files()
    assert checkpoint.reason_of(OSError(errno.EIO, "x")) == f"[Errno {errno.EIO}] x"
    assert checkpoint.reason_of(ValueError("x")) == "x"


def test_tensors_are_spread_over_files() -> None:
    """A file takes tensors until it has FILE_BYTES; the first has number 1."""
    sizes = {"a": FILE_BYTES - 1, "b": 1, "c": FILE_BYTES - 1, "d": FILE_BYTES, "e": 0}
    assert file_numbers(sizes) == {"a": 1, "b": 2, "c": 2, "d": 3, "e": 3}


def test_save_replaces_the_files_of_an_interrupted_save(tmp_path: Path) -> None:
    left = tmp_path / directory_name(8)
    left.mkdir()
    (left / "shard-00007-model-00001-of-00001.safetensors").write_bytes(b"half")
    save(tmp_path, 8)
    assert torch.equal(load(checkpoint.find(tmp_path))["model.a"], state_at(8)["model.a"])
    assert not (left / "shard-00007-model-00001-of-00001.safetensors").exists()


def test_state_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    save(tmp_path, 8)
    newest = checkpoint.find(tmp_path)
    assert newest is not None
    with pytest.raises(UserError, match="does not fit"):
        newest.load({"model.a": torch.zeros(5)})
    with pytest.raises(UserError, match="does not fit"):
        newest.load({"model.other": torch.zeros(5)})


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_full_disk_leaves_the_old_checkpoint(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.system(f"mount -t tmpfs -o size=300k tmpfs '{disk}' 2>/dev/null"):
        pytest.skip("this machine does not let root mount a tmpfs")
    try:
        save(disk / "c", 8)
        with pytest.raises(RunError, match="no space is left"):
            save(disk / "c", 16)
        assert torch.equal(load(checkpoint.find(disk / "c"))["model.a"], state_at(8)["model.a"])
        assert [path.name for path in (disk / "c").glob("s*")] == [directory_name(8)]
    finally:
        os.system(f"umount '{disk}'")


def test_changes_after_the_copy_are_not_in_the_checkpoint(tmp_path: Path) -> None:
    writer = CheckpointWriter(tmp_path, {"name": "x"}, 2, Progress(), SINGLE)
    state = state_at(8)
    writer.save(state.items(), Progress(samples_seen=8), permanent=False)
    for tensor in state.values():  # training continues during the save
        tensor.zero_()
    writer.close()
    for name, tensor in load(checkpoint.find(tmp_path)).items():
        assert torch.equal(tensor, state_at(8)[name])


@dataclass(frozen=True)
class Deserted(World):
    """The other processes die as soon as a checkpoint in `root` has its name."""

    root: Path = Path()

    def gather(self, value: Any, group: dist.ProcessGroup | None = None) -> list[Any]:
        if checkpoint.find(self.root) is not None:
            raise RuntimeError("gloo/transport/tcp/pair.cc: Connection closed by peer")
        return super().gather(value, group)


def test_checkpoint_counts_as_soon_as_it_has_its_name(tmp_path: Path) -> None:
    """Otherwise the ledger ends the segment at the one before, and the next start resumes from this one."""
    world = Deserted(0, 1, 0, 1, torch.device("cpu"), root=tmp_path)
    writer = CheckpointWriter(tmp_path, {"name": "x"}, 2, Progress(), world)
    writer.save(state_at(8).items(), Progress(samples_seen=8), permanent=False)
    with pytest.raises(RuntimeError, match="gloo"):
        writer.close()
    newest = checkpoint.find(tmp_path)
    assert newest is not None
    assert newest.progress == writer.committed == Progress(samples_seen=8)


def test_checkpoint_contains_no_pickle(tmp_path: Path) -> None:
    path = save(tmp_path, 8)
    assert {file.suffix for file in path.iterdir()} == {".safetensors", ".json"}
    json.loads((path / "manifest.json").read_text())
    shutil.rmtree(path)
