"""A process whose steps stop writes the stacks of its threads and a last heartbeat, and ends."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest
import torch
from support.replaced_time import replace_time

from flipscale.config import Hang
from flipscale.distributed.world import World
from flipscale.orchestration.segments import watchdog
from flipscale.orchestration.segments.watchdog import Watchdog
from flipscale.runs.failures import Failure
from flipscale.runs.heartbeat import Heartbeat, read_heartbeats, write_heartbeat

ALONE = World(0, 1, 0, 1, torch.device("cpu"))

STUCK = """
import sys, threading, time
from pathlib import Path
import torch
from flipscale.config import Hang
from flipscale.orchestration.segments.watchdog import Watchdog
from flipscale.distributed.world import World

def stuck_in_a_collective():
    threading.Event().wait()

run = Path(sys.argv[1])
world = World(0, 2, 0, 2, torch.device("cpu"))
limits = Hang.model_validate({"factor": 2, "least": "1s", "start": "60s"})
dog = Watchdog(run, world, "5.1", limits, lambda failure: print("give up:", failure.kind, flush=True))
dog.start(0)
for step in range(3):
    dog.step(step * 16)
stuck_in_a_collective()
"""


_opened: list[Path] = []


@cache
def _note_opened_files() -> None:
    """Note the files that this process opens from now on: Python keeps such a hook for ever."""

    def note(event: str, arguments: tuple[object, ...]) -> None:
        if event == "open" and isinstance(arguments[0], (str, Path)):
            _opened.append(Path(arguments[0]))

    sys.addaudithook(note)


@contextmanager
def opened_files() -> Generator[list[Path]]:
    """Return the files that this process opens within the context."""
    _note_opened_files()
    before = len(_opened)
    opened: list[Path] = []
    yield opened
    opened += _opened[before:]


def run(script: str, directory: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", script, str(directory)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.slow
def test_a_stuck_process_dumps_its_stacks_and_ends(tmp_path: Path) -> None:
    # The other process of this start last gave a sign a minute ago.
    silent = Heartbeat("5.1", 1, 2, "n2", 1, "training", 32, 0.1, time.time() - 60)
    write_heartbeat(tmp_path, silent)
    ended = run(STUCK, tmp_path)
    assert ended.returncode == 1, ended.stderr
    assert "stuck_in_a_collective" in ended.stderr
    assert "give up: hang" in ended.stdout
    own, peer = read_heartbeats(tmp_path, "5.1")
    assert (own.state, own.kind, own.samples_seen) == ("failed", "hang", 32)
    assert "no sign of rank 1 on n2" in own.message
    assert own.suspects == ("n2",)
    assert peer == silent


def test_the_limit_follows_the_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    replace_time(monkeypatch, watchdog, monotonic=lambda: now[0])
    limits = Hang.model_validate({"factor": 10, "least": "20s", "start": "600s"})
    dog = Watchdog(tmp_path, ALONE, "x", limits, lambda failure: None)
    assert dog.limit == 600  # until the first step has ended
    for seconds in (90.0, 1.0, 5.0):
        now[0] += seconds
        dog.step(16)
    assert dog.limit == 50  # the first step, which compiles and warms up, does not count
    with dog.long_operation():
        assert dog.limit == 600
        now[0] += 300
    dog.step(32)
    assert dog.limit == 50
    for _ in range(20):
        now[0] += 0.5
        dog.step(48)
    assert dog.limit == 20


@pytest.mark.slow
def test_work_that_gives_signs_may_take_longer_than_the_limit(tmp_path: Path) -> None:
    script = STUCK.replace('"start": "60s"', '"start": "2s"').replace(
        "stuck_in_a_collective()\n",
        """
with dog.long_operation():
    for batch in range(12):
        time.sleep(0.5)
        dog.alive()
    print("evaluated", flush=True)
    stuck_in_a_collective()
""",
    )
    assert script.count("dog.alive()") == 1
    ended = run(script, tmp_path)
    assert ended.stdout.splitlines() == ["evaluated", "give up: hang"], ended.stderr


@pytest.mark.slow
def test_a_peer_that_failed_ends_a_process_that_does_not_notice(tmp_path: Path) -> None:
    """As on GPUs, whose collectives wait for a dead peer."""
    failed = Heartbeat("5.1", 1, 2, "n2", 1, "failed", 32, 0.1, time.time() - 60, "code", "KeyError: 'x'")
    write_heartbeat(tmp_path, failed)
    script = STUCK.replace('"least": "1s"', '"least": "1h"')
    ended = run(script, tmp_path)
    assert ended.returncode == 1, ended.stderr
    assert "ending this process: rank 1 on n2: KeyError: 'x'" in ended.stderr
    assert "give up: code" in ended.stdout


@pytest.mark.parametrize("failed", [[], [3], [3, 200]])
def test_a_look_at_the_peers_opens_only_what_those_wrote_that_failed(
    tmp_path: Path, failed: list[int]
) -> None:
    """A run of 1,024 processes would otherwise open 200,000 files per second while its steps are slow."""
    for rank in range(1, 256):
        state = "failed" if rank in failed else "training"
        write_heartbeat(tmp_path, Heartbeat("5.1", rank, 256, "n2", 1, state, 32, 0.1, time.time()))
    dog = Watchdog(tmp_path, World(0, 256, 0, 8, torch.device("cpu")), "5.1", Hang(), lambda failure: None)

    with opened_files() as opened:
        dog._look_at_peers()

    names = sorted(path.name for path in opened if path.is_relative_to(tmp_path))
    assert names == [f"rank_{rank:05d}.json" for rank in failed]


def test_the_last_sign_says_how_it_ended(tmp_path: Path) -> None:
    dog = Watchdog(tmp_path, ALONE, "here.1", Hang(), lambda failure: None)
    dog.start(640)
    (beat,) = read_heartbeats(tmp_path)
    assert (beat.state, beat.samples_seen, beat.kind) == ("starting", 640, "")
    dog.close("failed", Failure("code", "KeyError: 'x'"))
    (beat,) = read_heartbeats(tmp_path)
    assert (beat.state, beat.kind, beat.message) == ("failed", "code", "KeyError: 'x'")
