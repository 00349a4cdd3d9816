"""Loader workers that are killed, that are stopped, and that lose the process which they work for."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
from support.time_limits import wait_until
from support.tiny_run import TinyRun

from flipscale.runs.heartbeat import read_heartbeats
from flipscale.runs.ledger import read_ledger

MakeRun = Callable[..., TinyRun]
pytestmark = pytest.mark.slow
SECONDS = 120.0


@contextmanager
def training(run: TinyRun, processes: int = 1, segments: int = 0) -> Generator[subprocess.Popen[str]]:
    """Start a run and wait for its first metrics; kill what is left of it in the end.

    Args:
        run: The run.
        processes: Number of processes.
        segments: Number of segments that the ledger shows as soon as this start has opened its own.
    """
    process = run.start(processes=processes)
    try:
        wait_until(
            lambda: (
                process.poll() is not None
                or (len(run.metrics()) > 1 and len(read_ledger(run.output)) == segments)
            )
        )
        assert process.poll() is None
        yield process
    finally:
        # torchrun's processes have groups of their own.
        for pid in [process.pid, *(beat.pid for beat in read_heartbeats(run.output))]:
            with suppress(psutil.NoSuchProcess):
                psutil.Process(pid).kill()
        process.communicate()


def workers_of(run: TinyRun, rank: int = 0) -> list[psutil.Process]:
    return psutil.Process(read_heartbeats(run.output)[rank].pid).children()


def open_files(pid: int) -> set[Path]:
    return {link.resolve() for link in Path(f"/proc/{pid}/fd").iterdir()}


def endless(make: MakeRun, **changes: object) -> TinyRun:
    phase = dict(name="long", samples=160_000, mask_ratio=0.5, batch_size=16, base_lr=0.02)
    return make(phases=[phase], data={"workers": 2}, **changes)


def test_workers_of_a_killed_process_end_with_it_and_release_the_run(tiny_run: MakeRun) -> None:
    run = endless(tiny_run)
    with training(run) as process:
        workers = workers_of(run)
        assert len(workers) == 2
        workers[0].suspend()
        process.kill()
        process.wait()
        wait_until(lambda: not any(worker.is_running() for worker in workers))

    # The next start finds the run free.
    with training(run, segments=1):
        pass
    assert [line.reason for line in read_ledger(run.output)] == ["killed"]


def test_workers_hold_neither_the_lock_nor_a_connection(tiny_run: MakeRun) -> None:
    run = endless(tiny_run)
    with training(run, processes=2):
        for rank in (0, 1):
            trainer = psutil.Process(read_heartbeats(run.output)[rank].pid)
            assert trainer.net_connections("tcp")
            for worker in workers_of(run, rank):
                assert worker.net_connections("tcp") == []
                assert run.output / "lock" not in open_files(worker.pid)


def test_killed_worker_does_not_count_as_an_error_of_the_code(tiny_run: MakeRun) -> None:
    run = endless(tiny_run)
    with training(run) as process:
        workers_of(run)[1].kill()
        _, errors = process.communicate(timeout=SECONDS)

    assert process.returncode == 1
    (line,) = read_ledger(run.output)
    assert line.reason == "killed", line.detail
    assert line.detail.startswith("a loader worker was killed, perhaps for its memory: DataLoader worker")
    assert "Killed" in line.detail
    assert f"error: {line.detail}" in errors
    assert "Traceback" not in errors


def test_stopped_workers_are_a_hang_and_do_not_outlive_the_run(tiny_run: MakeRun) -> None:
    run = endless(tiny_run, hang={"factor": 3, "least": "8s", "start": "2min"})
    with training(run) as process:
        workers = workers_of(run)
        for worker in workers:
            worker.suspend()
        _, errors = process.communicate(timeout=SECONDS)
        assert process.returncode == 1
        assert "no step for" in errors
        wait_until(lambda: not any(worker.is_running() for worker in workers))

    with training(run, segments=1):
        pass
    assert [line.reason for line in read_ledger(run.output)] == ["hang"]
