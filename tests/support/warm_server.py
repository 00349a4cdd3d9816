"""The server of warm_start.py: imports what commands import, and forks a process per request."""

from __future__ import annotations

import atexit
import gc
import importlib
import inspect
import os
import pkgutil
import random
import runpy
import signal
import socket
import sys
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parents[1])
from support.warm_start import WarmPopen, WarmServer, receive, send  # noqa: E402


def _serve(connection: socket.socket) -> dict[str, Any]:
    """Fork a child per request. Returns only in a child, with its request."""
    while True:
        request, streams = receive(connection)
        if request is None:
            os._exit(0)
        reader, writer = os.pipe()
        between = os.fork()
        if between == 0:
            parent = os.getpid()
            if os.fork() != 0:
                os._exit(0)
            os.close(reader)
            connection.close()
            _become(request, streams, parent, writer)
            return request

        os.close(writer)
        for stream in streams:
            os.close(stream)
        os.waitpid(between, 0)
        pid = int(os.read(reader, 32))
        os.close(reader)
        send(connection, {"pid": pid}, [])


def _become(request: Mapping[str, Any], streams: list[int], parent: int, writer: int) -> None:
    """Turn this process, a grandchild of the server, into the requested one."""
    for standard, stream in enumerate(streams):
        os.dup2(stream, standard)
    for stream in set(streams) - {0, 1, 2}:
        os.close(stream)
    if request["new_session"]:
        os.setsid()
    os.umask(request["umask"])
    os.chdir(request["directory"])
    os.environ.clear()
    os.environ.update(request["environment"])
    for number in request["ignored"]:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, request["blocked"])

    for option in filter(None, request["environment"].get("PYTHONWARNINGS", "").split(",")):
        warnings._setoption(option)  # pyrefly: ignore[missing-attribute]: private to warnings

    # A new interpreter would have seeded these from the operating system.
    random.seed()
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()

    # Announce the pid only when the caller is the parent, so that it can wait for the pid at once.
    while os.getppid() == parent:
        time.sleep(0.0005)
    os.write(writer, str(os.getpid()).encode())
    os.close(writer)


def _run(request: dict[str, Any]) -> None:
    """Run the program of a request as the interpreter would; its end is this interpreter's end."""
    launches = request["program"][:2] == ["-m", "torch.distributed.run"]
    if launches or request["with_server"]:
        asked = _fork_server()
        if asked is not None:  # this process is a child of that server
            _run(asked)
            return
    if launches:
        _warm_workers()
    _know_own_frames()

    kind, *rest = request["program"]
    if kind == "-m":
        sys.path[0] = os.getcwd()
        sys.argv = rest
        sys.modules.pop(rest[0], None)  # runpy warns of a module that was imported before it is run
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif kind == "-c":
        sys.path[0] = ""
        sys.argv = ["-c", *rest[1:]]
        exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__", "__builtins__": __builtins__})
    else:
        sys.argv = request["program"]
        sys.path[0] = os.path.dirname(os.path.abspath(kind))
        runpy.run_path(kind, run_name="__main__")


def _fork_server() -> dict[str, Any] | None:
    """Give this process a server of its own, which is forked before the process has threads.

    Returns:
        None in this process; the request in a child that the server has forked for it later.
    """
    ours, theirs = socket.socketpair()
    if os.fork() == 0:
        ours.close()
        return _serve(theirs)

    theirs.close()
    WarmPopen.server = WarmServer(ours, os.environ)
    return None


def _know_own_frames() -> None:
    """Say to which modules the outermost frames of this process belong.

    torch's launcher asks that of its whole stack again and again, and `inspect` then looks through thousands
    of modules for each frame that belongs to none: a second of processor time per launch.
    """
    inspect.modulesbyfile[os.path.realpath(__file__)] = "support.warm_start"
    inspect.modulesbyfile[os.path.realpath("<frozen runpy>")] = "runpy"


def _warm_workers() -> None:
    """Let torch.distributed.run, in this process, start its workers from this process's server."""
    from torch.distributed.elastic.multiprocessing.subprocess_handler import subprocess_handler

    WarmPopen.only_commands = False
    subprocess_handler.Popen = WarmPopen


_LIBRARIES = (
    *(
        "torch",
        "torch._dynamo",
        "torch.distributed.checkpoint",
        "torch.distributed.fsdp",
        "torch.distributed.run",
    ),
    *("torch.utils.tensorboard", "fairscale.nn.data_parallel", "fairscale.optim.oss"),
    *("sklearn.linear_model", "sklearn.metrics"),
)
"""What commands or tests import later than the package itself does."""


def _import_everything() -> None:
    """Import what commands import, and make sure that nothing of it started a thread."""
    for library in _LIBRARIES:
        importlib.import_module(library)
    if not os.path.exists("/dev/nvidiactl"):  # DeepSpeed's import decides which device it uses
        os.environ["DS_ACCELERATOR"] = "cpu"  # the processes have environments of their own
        importlib.import_module("deepspeed")

    import torch
    from PIL import Image

    import flipscale
    from flipscale.third_party import import_open_clip

    Image.init()
    import_open_clip()
    for module in pkgutil.walk_packages(flipscale.__path__, "flipscale."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)

    threads = len(os.listdir("/proc/self/task"))
    if threads != 1:
        raise RuntimeError(f"{threads} threads after the imports: a fork would not be faithful")
    if torch.distributed.is_initialized() or torch.cuda.is_initialized():
        raise RuntimeError("the imports made a process group or a CUDA context")


class _Exit:
    """The end of a process, after the functions that it has registered for its exit, and before all others.

    An interpreter then deletes its modules one by one. In a fork, this would copy every page of the imports.
    """

    def __init__(self) -> None:
        self.status: int | None = None
        atexit.register(self._leave)  # what is registered first is called last

    def note(self, error: BaseException | None) -> None:
        """Note how the program has ended."""
        if error is None:
            self.status = 0
        elif isinstance(error, SystemExit):
            code = error.code
            self.status = 0 if code is None else code & 0xFF if isinstance(code, int) else 1
        elif not isinstance(error, KeyboardInterrupt):  # which ends the interpreter by its signal
            self.status = 1

    def _leave(self) -> None:
        if self.status is None:
            return
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        except (OSError, ValueError):
            self.status = self.status or 120  # as in the interpreter
        os._exit(self.status)


def _main(descriptor: int) -> None:
    leave = _Exit()
    connection = socket.socket(fileno=descriptor)
    os.set_inheritable(descriptor, False)
    _import_everything()
    gc.collect()
    gc.freeze()  # a collection in a child would copy every page of the imports
    send(connection, {"ready": True}, [])

    request = _serve(connection)
    try:
        _run(request)
        leave.note(None)
    except BaseException as error:
        leave.note(error)
        raise


if __name__ == "__main__":
    _main(int(sys.argv[1]))
