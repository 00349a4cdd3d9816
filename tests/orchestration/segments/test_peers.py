"""Processes at the end of a start: which of them they wait for, and which one asks Slurm."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from support.replaced_time import replace_time

from flipscale.distributed.placement import Placement
from flipscale.orchestration.segments import peers
from flipscale.orchestration.segments.peers import await_reports, give_up
from flipscale.processes import ProcessMark, mark_of, own_mark
from flipscale.runs.heartbeat import Heartbeat, ProcessState, write_heartbeat

ELSEWHERE = ProcessMark(1, "another machine", 1, "")
PLACE = Placement(rank=1, size=3, local_rank=0, node="n2", job_id="7", nodes=("n1", "n2"))


@pytest.fixture(autouse=True)
def endless(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a wait for reports last longer than any test may."""
    monkeypatch.setattr(peers, "SECONDS_TO_REPORT", 1e6)


@pytest.fixture
def gone() -> ProcessMark:
    """Return the mark of a process that has ended."""
    with subprocess.Popen(["sleep", "60"]) as process:
        mark = mark_of(process.pid)
        process.kill()
    assert mark is not None
    return mark


@pytest.fixture
def zombie() -> Iterator[ProcessMark]:
    """Return the mark of a process that has ended, but for which nobody has waited."""
    process = subprocess.Popen(["sleep", "60"])
    mark = mark_of(process.pid)
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert mark is not None
    yield mark
    process.wait()


def beat(run: Path, rank: int, state: ProcessState, mark: ProcessMark = ELSEWHERE) -> None:
    sign = Heartbeat("7.0", rank, 3, f"n{rank}", 1, state, 0, 0.0, time.time())
    write_heartbeat(run, replace(sign, **asdict(mark)))


def test_wait_is_over_when_all_have_reported(tmp_path: Path) -> None:
    beat(tmp_path, 0, "failed")
    beat(tmp_path, 1, "training")  # its own, still to come
    beat(tmp_path, 2, "stopped")
    await_reports(tmp_path, "7.0", PLACE)


def test_process_of_this_machine_that_is_gone_needs_no_report(
    tmp_path: Path, gone: ProcessMark, zombie: ProcessMark
) -> None:
    beat(tmp_path, 0, "training", gone)
    beat(tmp_path, 1, "failed")
    beat(tmp_path, 2, "training", zombie)
    await_reports(tmp_path, "7.0", PLACE)


@pytest.mark.parametrize("absent", ["lives", "elsewhere", "never reported"])
def test_wait_has_an_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gone: ProcessMark, absent: str
) -> None:
    beat(tmp_path, 0, "failed")
    beat(tmp_path, 1, "failed")
    if absent == "lives":
        beat(tmp_path, 2, "training", own_mark())
    elif absent == "elsewhere":
        beat(tmp_path, 2, "training", replace(gone, boot="another"))

    looks: list[float] = []
    clock = iter(range(1000))
    monkeypatch.setattr(peers, "SECONDS_TO_REPORT", 10)
    replace_time(monkeypatch, peers, monotonic=lambda: next(clock), sleep=looks.append)
    await_reports(tmp_path, "7.0", PLACE)
    assert len(looks) == 9


@pytest.mark.parametrize(
    ("leader", "local_rank", "acts"),
    [
        ("training", 0, ["ask", "exit"]),
        ("training", 1, ["ask", "exit"]),
        ("failed", 0, ["wait", "ask", "exit"]),
        ("failed", 1, ["wait", "exit"]),
    ],
)
def test_lowest_rank_that_reported_asks_first(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    leader: ProcessState,
    local_rank: int,
    acts: list[str],
) -> None:
    """If the leading process did not report, nobody waits. One process of each other node asks later."""
    done: list[str] = []

    def leave(code: int) -> None:
        done.append("exit")
        raise SystemExit(code)

    def ask() -> bool:
        done.append("ask")
        return True

    replace_time(monkeypatch, peers, sleep=lambda seconds: done.append("wait"))
    monkeypatch.setattr(peers, "exit_now", leave)
    beat(tmp_path, 0, leader)
    beat(tmp_path, 1, "failed")

    with pytest.raises(SystemExit):
        give_up(tmp_path, replace(PLACE, local_rank=local_rank), ask)
    assert done == acts
