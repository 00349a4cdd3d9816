"""Decoding in a process of its own: if an image crashes a library, only that process ends."""

from __future__ import annotations

import faulthandler
import json
import multiprocessing
import os
import resource
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from types import TracebackType

from flipscale.child_process import FORK, die_with_parent
from flipscale.data.quarantine import BadSample
from flipscale.errors import RunError, UserError

CRASHES = {signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGILL, signal.SIGFPE}
"""The signals by which a fault of a library ends a process."""

_LONGEST = 60  # seconds that decoding one suspected sample may take
_ERRORS = {"BadSample": BadSample, "UserError": UserError}


def crash_reason(ended_by: signal.Signals) -> str:
    """Return why a sample is unusable that ends a process by a signal."""
    return f"the image crashes the decoder ({signal.strsignal(ended_by)})"


def crashes(work: Callable[[], object]) -> bool:
    """Return whether a process of its own that does some work is ended by a crash."""
    pid = os.fork()
    if pid == 0:
        try:
            _die_silently()
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(_LONGEST)
            work()
        finally:
            os._exit(0)  # whatever the work raised: it did not crash

    _, status = os.waitpid(pid, 0)
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) in CRASHES


class IsolatedDecoder:
    """A function of an image that runs in a process of its own. A new process follows one that crashed.

    Only bytes and numbers come back: a library that an image has taken over must not reach this process.

    Args:
        decode: Decodes an image, and returns a number.
    """

    def __init__(self, decode: Callable[[bytes], int]) -> None:
        self._decode = decode
        self._process: BaseProcess | None = None
        self._connection: Connection | None = None

    def __enter__(self) -> IsolatedDecoder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def __call__(self, data: bytes) -> int:
        """Return the number for an image.

        Raises:
            BadSample: If the function raises it, or if the image crashes the process.
            UserError: If the function raises it.
            RunError: If the process was killed.
        """
        connection = self._connection or self._start()
        try:
            connection.send_bytes(data)
            name, answer = json.loads(connection.recv_bytes())
        except (EOFError, OSError, ValueError):
            raise self._verdict() from None

        if name in _ERRORS:
            raise _ERRORS[name](str(answer))
        return int(answer)

    def _start(self) -> Connection:
        self._connection, other = multiprocessing.Pipe()
        self._process = FORK.Process(  # the function need not be importable
            target=_serve, args=(self._decode, other, self._connection, os.getpid()), daemon=True
        )
        self._process.start()
        other.close()

        return self._connection

    def _verdict(self) -> BadSample | RunError:
        """Return what the end of the process says about the image that it had."""
        code = self._end()
        if code is not None and -code in CRASHES:
            return BadSample(crash_reason(signal.Signals(-code)))
        return RunError(
            f"a process that decodes images ended with {code}; if the memory of this machine is full, use "
            "fewer --workers"
        )

    def _end(self) -> int | None:
        """End the process, and return its exit code; None if there was none."""
        if self._process is None or self._connection is None:
            return None

        self._connection.close()
        self._process.join()
        code = self._process.exitcode
        self._process = self._connection = None
        return code


def _serve(decode: Callable[[bytes], int], own: Connection, other: Connection, parent: int) -> None:
    """Answer with a number, or with the name and the message of an error, until the other side closes."""
    other.close()
    die_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _die_silently()

    while True:
        try:
            data = own.recv_bytes()
        except EOFError:
            return
        try:
            answer = ["int", decode(data)]
        except (BadSample, UserError) as error:
            answer = [type(error).__name__, str(error)]
        own.send_bytes(json.dumps(answer).encode())


def _die_silently() -> None:
    """Send what a dying library prints to nowhere, and write no core file of gigabytes."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    faulthandler.disable()  # it has a descriptor of its own
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    os.dup2(nothing, 2)
