"""The compiler of the fake GPU: nothing is left of it if a signal ends the program meanwhile."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from support.time_limits import wait_until

from flipscale.rehearsal.accelerator import NoAccelerator, build_accelerator

_BUILD = """
from flipscale.rehearsal.accelerator import build_accelerator
from flipscale.scratch import scratch_directory
with scratch_directory() as directory:
    build_accelerator(directory)
"""
# Like g++: a driver with a temporary file, which starts the compiler proper and waits for it.
_COMPILER = """#!/bin/sh
sleep 600 &
echo $! > "$TMPDIR/unfinished"
mv "$TMPDIR/unfinished" "$TMPDIR/cc1plus"
wait
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_during_the_compilation_leaves_nothing_behind(tmp_path: Path, number: signal.Signals) -> None:
    compiler = tmp_path / "compiler"
    compiler.write_text(_COMPILER)
    compiler.chmod(0o755)
    place = tmp_path / "tmp"
    place.mkdir()
    environment = {**os.environ, "TMPDIR": str(place), "CXX": str(compiler)}
    program = subprocess.Popen(
        [sys.executable, "-c", _BUILD], env=environment, stderr=subprocess.DEVNULL, start_new_session=True
    )
    (note,) = wait_until(lambda: list(place.rglob("cc1plus")))
    child = psutil.Process(int(note.read_text()))

    program.send_signal(number)
    assert program.wait(timeout=60) == -number
    assert list(place.iterdir()) == []
    wait_until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)


@pytest.mark.parametrize(
    ("compiler", "said"),
    [
        ("'unclosed", "CXX cannot be read as a command"),
        ("{directory}/no_program", "cannot be started (Exec format error)"),
        ("{directory}/latin", "cannot compile against torch's headers: error: "),
    ],
)
def test_odd_compiler_is_named_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiler: str, said: str
) -> None:
    for name, text in (("no_program", b"echo"), ("latin", b"#!/bin/sh\nprintf 'error: \\351' >&2\nexit 1\n")):
        (tmp_path / name).write_bytes(text)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("CXX", compiler.format(directory=tmp_path))
    with pytest.raises(NoAccelerator) as caught:
        build_accelerator(tmp_path)
    assert said in str(caught.value)


def test_output_of_the_compiler_stays_out_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    talkative = tmp_path / "compiler"
    talkative.write_text("#!/bin/sh\necho hello\nexit 0\n")
    talkative.chmod(0o755)
    monkeypatch.setenv("CXX", str(talkative))
    build_accelerator(tmp_path)
    assert capfd.readouterr() == ("", "")
