"""What libraries print while processes meet, which must not reach standard output."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest

from flipscale.distributed.quiet_start import native_output_to_stderr


def test_standard_output_holds_only_the_own_words(capfd: pytest.CaptureFixture[str]) -> None:
    print("before")
    with native_output_to_stderr():
        ctypes.CDLL(None).puts(b"a library's")  # C buffers it, unlike the next line
        os.write(1, b"a thread's\n")
    print("after")

    output, errors = capfd.readouterr()
    assert output == "before\nafter\n"
    assert sorted(errors.splitlines()) == ["a library's", "a thread's"]


def test_another_file_at_the_place_of_standard_output_stays(tmp_path: Path) -> None:
    """A program that was started without standard output may have another file there."""
    program = (
        "import os; from flipscale.distributed.quiet_start import native_output_to_stderr as quiet\n"
        "os.dup2(os.open('kept', os.O_CREAT | os.O_WRONLY), 1)\n"
        "with quiet(): os.write(1, b'own')\n"
    )
    command = ["bash", "-c", 'exec "$0" -c "$1" >&-', sys.executable, program]
    subprocess.run(command, cwd=tmp_path, timeout=120, check=True)
    assert (tmp_path / "kept").read_bytes() == b"own"
