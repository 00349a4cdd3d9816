"""Directories that appear whole or not at all, whatever ends their writer."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from flipscale.errors import UserError
from flipscale.staging import check_new, staged_directory

WRITE_AND_WAIT = """
import sys, time
from pathlib import Path
from flipscale.staging import staged_directory
with staged_directory(Path(sys.argv[1])) as work:
    (work / "half").touch()
    print(work, flush=True)
    time.sleep(600)
"""


def entries(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir())


def start(out: Path) -> tuple[subprocess.Popen[str], Path]:
    """Start a writer, and return it with the directory that it has begun."""
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITE_AND_WAIT, str(out)], stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout is not None
    return writer, Path(writer.stdout.readline().strip())


@pytest.mark.parametrize("exists", [False, True])
def test_directory_appears_whole(tmp_path: Path, exists: bool) -> None:
    out = tmp_path / "some" / "out[1]"
    if exists:
        out.mkdir(parents=True)
    with staged_directory(out) as work:
        assert not out.exists() or entries(out) == []
        (work / "a").mkdir()
        (work / "a" / "b").write_text("content")
    assert entries(out) == ["a"]
    assert entries(out.parent) == ["out[1]"]


def test_error_leaves_nothing(tmp_path: Path) -> None:
    def fail(error: type[BaseException]) -> None:
        with staged_directory(tmp_path / "out") as work:
            (work / "half").touch()
            raise error

    for error in (ValueError, KeyboardInterrupt):
        with pytest.raises(error):
            fail(error)
    assert entries(tmp_path) == []


def test_what_a_killed_writer_left_is_removed_by_the_next(tmp_path: Path) -> None:
    out = tmp_path / "out"
    writer, left = start(out)
    writer.send_signal(signal.SIGKILL)
    writer.communicate()
    assert entries(tmp_path) == [left.name, f"{left.name}.lock"]
    with staged_directory(out) as work:
        (work / "whole").touch()
    assert entries(tmp_path) == ["out"]
    assert entries(out) == ["whole"]


def test_nothing_of_others_is_removed(tmp_path: Path) -> None:
    out = tmp_path / "out"
    writer, living = start(out)
    foreign = tmp_path / ".out.unfinished.thesis"
    foreign.mkdir()
    (foreign / "chapter").touch()
    (tmp_path / ".out.unfinished.linked").symlink_to(foreign)
    (tmp_path / ".out.unfinished.linked.lock").symlink_to(foreign / "chapter")
    with staged_directory(out) as work:
        (work / "whole").touch()
    assert entries(living) == ["half"]
    assert entries(foreign) == ["chapter"]
    writer.kill()
    writer.communicate()

    # Whoever ends second does not replace what the first one wrote.
    with pytest.raises(OSError, match="not empty"), staged_directory(out):
        pass
    assert entries(out) == ["whole"]


def test_place_is_checked_before_the_work(tmp_path: Path) -> None:
    check_new(tmp_path / "deep" / "out", "--fix")
    assert not (tmp_path / "deep").exists()  # the work may be refused after the check
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "out"):
        with pytest.raises(UserError, match=r"--fix: the directory .* cannot be made: (Not a|File exists)"):
            check_new(path, "--fix")
    with pytest.raises(UserError, match="is not empty; name a new directory"):
        check_new(tmp_path, "--fix")
    if os.geteuid():
        tmp_path.chmod(0o500)
        with pytest.raises(UserError, match="cannot be made: Permission denied"):
            check_new(tmp_path / "out", "--fix")


def test_the_check_keeps_the_directories_that_were_there(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    check_new(tmp_path / "kept" / "new" / "out", "--fix")
    assert list((tmp_path / "kept").iterdir()) == []
