"""A process that is asked to stop while it waits for its peers leaves by itself."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping

import pytest
from support.time_limits import wait_until
from support.tiny_run import TinyRun

MakeRun = Callable[..., TinyRun]
pytestmark = pytest.mark.slow


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def start(run: TinyRun, rank: int, port: int) -> subprocess.Popen[str]:
    """Start one of two processes, as torchrun would."""
    place: Mapping[str, str] = {
        "RANK": str(rank),
        "WORLD_SIZE": "2",
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    return subprocess.Popen(
        [sys.executable, "-m", "flipscale", "train", str(run.job)],
        env={**os.environ, **place, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
def test_stop_before_the_processes_have_met_ends_the_process(
    tiny_run: MakeRun, number: signal.Signals
) -> None:
    run = tiny_run()
    port = free_port()
    process = start(run, 0, port)
    try:
        wait_until(lambda: listens(port))
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
        process.communicate()

    assert process.returncode == 75
    assert "a stop was requested before the processes of this start had found each other" in errors
    assert "Traceback" not in errors
