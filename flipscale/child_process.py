"""Forked children that die with their parent, and hold neither its locks nor its connections.

A lock or a connection lasts until the last process that inherited it has ended. The peers of a killed process
would otherwise wait for its children.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import socket
import stat
from collections.abc import Generator
from contextlib import contextmanager, suppress

FORK = multiprocessing.get_context("fork")
"""The start method of pools and loaders: their processes share this process's heap, and are its children.

`die_with_parent` ends any other process. Python's default from 3.14 on is forkserver, whose processes are
children of a server, and begin with an empty heap.
"""

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


def keep_connections_from_children(*, keep: bool = True) -> None:
    """Keep every TCP connection and listening port of this process from the children that it forks later.

    Args:
        keep: Whether to do so from now on.
    """
    global _keeps_connections
    _keeps_connections = keep


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
    return [number for number in map(int, os.listdir("/dev/fd")) if _is_connection(number)]


def _is_connection(descriptor: int) -> bool:
    try:
        if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
            return False
    except OSError:  # the directory's own descriptor, which is closed by now
        return False

    view = socket.socket(fileno=descriptor)
    family = view.family
    view.detach()
    return family in (socket.AF_INET, socket.AF_INET6)


def _replace(descriptor: int) -> None:
    """Close a socket without freeing its number, which objects of the parent's libraries still hold."""
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, descriptor, inheritable=False)
    os.close(nothing)


os.register_at_fork(after_in_child=_release_in_child)
