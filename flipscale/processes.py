"""A process of this machine that is the one which was written down, and not a later owner of its number.

Linux gives a process number to another process once the first one has ended. A machine's name and a number do
not identify a process either: two containers of one machine have processes of the same number.
"""

from __future__ import annotations

import hashlib
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

_BOOT = Path("/proc/sys/kernel/random/boot_id")
_STARTED = 19  # place of the start in /proc/PID/stat, counted from the state, which follows the name
_ENDED = ("Z", "X")  # states of a process that has ended, but for which its parent has not waited


@dataclass(frozen=True)
class ProcessMark:
    """What identifies one process among all that its machine ever ran.

    Attributes:
        pid: Its number.
        boot: Id of the boot of the machine; empty if the mark was written without one.
        ticks: Its start, in clock ticks since the boot.
        command: Digest of its command line, which may hold secrets.
    """

    pid: int
    boot: str
    ticks: int
    command: str

    @property
    def lives(self) -> bool:
        """Whether the process runs on this machine, with the same start and the same command."""
        return bool(self.boot) and mark_of(self.pid) == self

    def holds(self, path: Path) -> bool:
        """Return whether the process has this file or directory open."""
        try:
            wanted = path.stat()
            for link in Path(f"/proc/{self.pid}/fd").iterdir():
                with suppress(FileNotFoundError):  # closed since the directory was read
                    if os.path.samestat(link.stat(), wanted):
                        return True
        except OSError:  # the path or the process is gone, or the process belongs to another user
            pass

        return False

    def send(self, number: signal.Signals, holds: Path) -> bool:
        """Send a signal to the process if it still runs.

        Args:
            number: The signal.
            holds: A file or directory that the process must have open.

        Returns:
            Whether the signal was sent; False if no such process runs here.

        Raises:
            PermissionError: If the process belongs to another user.
        """
        return send_if(lambda: self.lives and self.holds(holds), self.pid, number)


def send_if(is_meant: Callable[[], bool], pid: int, number: signal.Signals) -> bool:
    """Send a signal to a process that has been recognised, and never to a later owner of its number.

    Args:
        is_meant: Whether the process that now has the number is the one that is meant.
        pid: The number.
        number: The signal.

    Returns:
        Whether the signal was sent.

    Raises:
        PermissionError: If the process belongs to another user.
    """
    try:
        descriptor = os.pidfd_open(pid)
    except (OSError, OverflowError):  # gone, or a number that no process can have
        return False

    # Recognise the process after the opening: the descriptor stays with the process that was looked at.
    try:
        if not is_meant():
            return False
        signal.pidfd_send_signal(descriptor, number)
    except ProcessLookupError:
        return False
    finally:
        os.close(descriptor)

    return True


def mark_of(pid: int) -> ProcessMark | None:
    """Return the mark of a process of this machine; None if it has ended."""
    try:
        boot = _BOOT.read_text().strip()
        state, *fields = _after_name(pid)
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (OSError, ValueError):
        return None

    if state in _ENDED or len(fields) < _STARTED:
        return None
    return ProcessMark(pid, boot, int(fields[_STARTED - 1]), hashlib.sha256(command).hexdigest()[:16])


def own_mark() -> ProcessMark:
    """Return the mark of this process; without an id of the boot if this system has no /proc."""
    return mark_of(os.getpid()) or ProcessMark(os.getpid(), "", 0, "")


def own_age() -> float:
    """Return for how many seconds this process has existed, by a clock that nobody sets."""
    mark = own_mark()
    if not mark.boot:
        return max(0.0, time.time() - psutil.Process().create_time())

    return time.clock_gettime(time.CLOCK_BOOTTIME) - mark.ticks / os.sysconf("SC_CLK_TCK")


def _after_name(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat from the state on; the name before may hold any character."""
    return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
