"""The server of warm_start.py: imports what commands import, and forks a process per request."""

from __future__ import annotations

import gc
import importlib
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


def _serve(connection: socket.socket) -> list[str]:
    """Fork a child per request. Returns only in a child, with the words of the program that it is to run."""
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
            return list(request["program"])

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
        warnings._setoption(option)  # type: ignore[attr-defined]

    # A new interpreter would have seeded these from the operating system.
    random.seed()
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()

    # Announce the pid only when the caller is the parent, so that it can wait for the pid at once.
    while os.getppid() == parent:
        time.sleep(0.0005)
    os.write(writer, str(os.getpid()).encode())
    os.close(writer)


def _run(program: list[str]) -> None:
    """Run the program as the interpreter would; its end is this interpreter's end."""
    if program[:2] == ["-m", "torch.distributed.run"]:
        program = _warm_workers() or program

    kind, *rest = program
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
        sys.argv = program
        sys.path[0] = os.path.dirname(os.path.abspath(kind))
        runpy.run_path(kind, run_name="__main__")


def _warm_workers() -> list[str] | None:
    """Give this launcher a server of its own, forked before it has threads, and start its workers there.

    Returns:
        The program that this process is to run if it is one of the workers; None in the launcher.
    """
    from torch.distributed.elastic.multiprocessing.subprocess_handler import subprocess_handler

    ours, theirs = socket.socketpair()
    if os.fork() == 0:
        ours.close()
        return _serve(theirs)

    theirs.close()
    WarmPopen.server = WarmServer(ours, os.environ)
    WarmPopen.only_commands = False
    subprocess_handler.Popen = WarmPopen  # type: ignore[misc]
    return None


def _import_everything() -> None:
    """Import what commands import, and make sure that nothing of it started a thread."""
    import torch
    import torch._dynamo  # the first model on the device "meta" imports it
    import torch.distributed.checkpoint
    import torch.distributed.fsdp
    import torch.distributed.run
    import torch.utils.tensorboard
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


def _main(descriptor: int) -> None:
    connection = socket.socket(fileno=descriptor)
    os.set_inheritable(descriptor, False)
    _import_everything()
    gc.collect()
    gc.freeze()  # a collection in a child would copy every page of the imports
    send(connection, {"ready": True}, [])
    _run(_serve(connection))


if __name__ == "__main__":
    _main(int(sys.argv[1]))
