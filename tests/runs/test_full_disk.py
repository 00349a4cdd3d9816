"""A run on a disk that is full says so in its ledger, its heartbeats and its status."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from flipscale.distributed.placement import Placement
from flipscale.distributed.world import World
from flipscale.order_digest import OrderDigest
from flipscale.progress import Progress
from flipscale.runs.directory import RunDirectory
from flipscale.runs.failures import Failure
from flipscale.runs.heartbeat import Heartbeat, read_ends, read_heartbeats, write_heartbeat
from flipscale.runs.ledger import read_ledger, read_open_segment
from flipscale.runs.ledger_writer import LedgerWriter

WORLD = World(0, 1, 0, 1, torch.device("cpu"), Placement(node="n1"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    mounted = tmp_path / "disk"
    mounted.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(mounted)]
    if os.geteuid() or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("only root may mount a small file system")
    yield mounted
    subprocess.run(["umount", "-l", str(mounted)], check=True)


def fill(directory: Path) -> None:
    with open(directory / "rest", "wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            return


def test_end_of_a_segment_is_kept_without_any_space(small_disk: Path) -> None:
    ledger = LedgerWriter(small_disk, Progress(), WORLD, "here.1")
    beat = Heartbeat("here.1", 0, 1, "n1", os.getpid(), "training", 0, 0.1, 1e9)
    write_heartbeat(small_disk, beat)
    ledger.training()
    fill(small_disk)

    # The process says why it ends, although the disk has no block for another file.
    failed = Heartbeat("here.1", 0, 1, "n1", os.getpid(), "failed", 640, 0.1, 1e9, "disk", "no space " * 50)
    write_heartbeat(small_disk, failed)
    assert read_heartbeats(small_disk, "here.1") == [failed]
    assert read_ends(small_disk, "here.1") == {0: "failed"}

    reached = Progress(640, OrderDigest(7))
    with pytest.raises(OSError, match="No space"):
        ledger.close(Progress(), reached, Failure("disk", "no space " * 50))
    assert read_ledger(small_disk) == []
    closed = read_open_segment(small_disk)
    assert closed is not None
    assert (closed.reason, closed.lost_samples) == ("disk", 640)

    # With space again, the next start takes the line over as it is.
    (small_disk / "rest").unlink()
    LedgerWriter(small_disk, Progress(), WORLD, "here.2")
    assert read_ledger(small_disk) == [closed]
    assert RunDirectory(small_disk).open_segment.exists()
