"""What a person sees of a run: a progress bar on a terminal, and lines elsewhere."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable

import pytest
from support.tiny_run import TinyRun


@pytest.mark.slow
def test_a_terminal_shows_a_progress_bar(tiny_run: Callable[..., TinyRun]) -> None:
    run = tiny_run()
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    process = subprocess.Popen(
        [sys.executable, "-m", "flipscale", "train", str(run.job)], env=environment, stderr=theirs
    )
    os.close(theirs)

    shown = b""
    while True:
        try:
            shown += os.read(ours, 65536)
        except OSError:  # the other end is closed
            break
    os.close(ours)

    assert process.wait(timeout=60) == 0
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.decode())
    assert re.search(r"unmasked\s+━+ 792 of 792 +100% [0-9,]+ images/s loss \d+\.\d{4} 0:00:00", text), text[
        -500:
    ]


@pytest.mark.slow
def test_lines_name_the_phase_the_samples_and_the_loss(tiny_run: Callable[..., TinyRun]) -> None:
    done = tiny_run().train()
    assert done.returncode == 0, done.stderr
    last = r"^unmasked: 792 of 792 samples, [0-9,]+ images/s, loss \d+\.\d{4}, 0:00:00 left$"
    assert re.search(last, done.stderr, re.MULTILINE), done.stderr
