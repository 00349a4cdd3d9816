"""Forked children that die with their parent, and hold neither its locks nor its connections.

A lock or a connection lasts until the last process that inherited it has ended. The peers of a killed process
would otherwise wait for its children.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
from collections.abc import Generator
from contextlib import contextmanager, suppress

_PR_SET_PDEATHSIG = 1  # of <linux/prctl.h>

_kept: set[int] = set()
"""Descriptors of this process that its forked children close."""
_keeps_connections = False


@contextmanager
def kept_from_children(descriptor: int) -> Generator[None]:
    """Keep a descriptor of this process from the children that it forks within the context."""
    _kept.add(descriptor)
    try:
        yield
    finally:
        _kept.discard(descriptor)


def keep_connections_from_children() -> None:
    """Keep every TCP connection and listening port of this process from the children that it forks later."""
    global _keeps_connections
    _keeps_connections = True


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent ends, however that ends, even if this one is stopped.

    The parent is the thread that started this process. On systems other than Linux nothing happens.

    Args:
        parent: Process id of the parent, which may have ended already.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))

    if os.getppid() != parent:
        os._exit(1)


def _release_in_child() -> None:
    for descriptor in _kept:
        os.close(descriptor)
    _kept.clear()

    if _keeps_connections:
        for descriptor in _connections():
            _replace(descriptor)


def _connections() -> list[int]:
    """Return the descriptors of this process that are sockets of an internet protocol."""
    found: list[int] = []
    for name in os.listdir("/dev/fd"):
        # The directory's own descriptor is closed already.
        with suppress(OSError), socket.socket(fileno=os.dup(int(name))) as copy:
            if copy.family in (socket.AF_INET, socket.AF_INET6):
                found.append(int(name))
    return found


def _replace(descriptor: int) -> None:
    """Close a socket without freeing its number, which objects of the parent's libraries still hold."""
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, descriptor, inheritable=False)
    os.close(nothing)


os.register_at_fork(after_in_child=_release_in_child)
