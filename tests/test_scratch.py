"""Temporary directories: nothing is left of them, however the process ends that a signal can ask to end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

BEGIN = """
import os, signal, sys, time
from flipscale.scratch import scratch_directory
"""


def run(script: str, tmp: Path) -> subprocess.CompletedProcess[str]:
    """Run a script whose temporary directories are in `tmp`."""
    words = [sys.executable, "-c", BEGIN + script]
    environment = {**os.environ, "TMPDIR": str(tmp)}
    return subprocess.run(words, env=environment, capture_output=True, text=True, check=False)


def test_sigterm_removes_the_directory_and_ends_the_process_by_the_signal(tmp_path: Path) -> None:
    done = run(
        """
with scratch_directory() as directory:
    (directory / "file").write_text("x")
    print(directory, flush=True)
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
    except Exception:
        print("caught")
""",
        tmp_path,
    )
    assert done.returncode == -signal.SIGTERM
    assert Path(done.stdout.strip()).parent == tmp_path
    assert (list(tmp_path.iterdir()), done.stderr) == ([], "")


def test_forked_child_leaves_the_directory_to_its_parent(tmp_path: Path) -> None:
    done = run(
        """
with scratch_directory() as directory:
    child = os.fork()
    if not child:
        os.kill(os.getpid(), signal.SIGTERM)
        os._exit(1)
    _, status = os.waitpid(child, 0)
    print(os.WTERMSIG(status), directory.exists())
print(directory.exists(), signal.getsignal(signal.SIGTERM) is signal.SIG_DFL)
""",
        tmp_path,
    )
    assert (done.stdout, done.stderr) == (f"{signal.SIGTERM:d} True\nFalse True\n", "")


@pytest.mark.parametrize("where", ["main thread", "another thread"])
def test_handler_of_the_program_stays_in_charge(tmp_path: Path, where: str) -> None:
    """Only the main thread may set a handler."""
    use = "use()" if where == "main thread" else "t = threading.Thread(target=use); t.start(); t.join()"
    done = run(
        f"""
import threading
signal.signal(signal.SIGTERM, lambda number, frame: print("mine", flush=True))
def use():
    with scratch_directory():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.1)
{use}
""",
        tmp_path,
    )
    assert (done.stdout, done.stderr, list(tmp_path.iterdir())) == ("mine\n", "", [])
