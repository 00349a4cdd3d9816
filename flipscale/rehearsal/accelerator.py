"""Builds and loads the library that lets torch hold fake tensors of the device "cuda" without a GPU.

The library is compiled for the torch that is installed, in a few seconds. It has a device guard and hooks for
CUDA. A CPU build of torch has neither; those of a CUDA build would ask the driver. The hooks must be there
before torch is imported, and the guard is entered after it. A rehearsal therefore runs in a process of its
own, and this module imports torch only then.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil

from flipscale.errors import words_of

_SOURCE = Path(__file__).with_name("fake_accelerator.cpp")
_STANDARDS = (
    "-std=c++20",
    "-std=c++17",
)  # torch 2.13's headers need 20; the compilers of older systems lack it


class NoAccelerator(Exception):
    """The library cannot be built here; the message says why."""


def build_accelerator(directory: Path) -> Path:
    """Compile the library into a directory, and return its path.

    Args:
        directory: An existing directory that only this user can write to.

    Raises:
        NoAccelerator: If there is no C++ compiler, or it cannot compile against torch's headers.
    """
    compiler = _compiler()
    torch = _torch_directory()
    library = directory / "fake_accelerator.so"
    command = [*compiler, "-O0", "-fPIC", "-shared", f"-I{torch / 'include'}", str(_SOURCE)]
    command += ["-o", str(library), f"-L{torch / 'lib'}", "-lc10", "-ltorch_cpu"]

    output = ""
    for standard in _STANDARDS:
        status, errors = _run_compiler([*command, standard], directory)
        if status == 0:
            return library
        output = output or errors
    if "No space left on device" in output:
        raise NoAccelerator(
            f"{directory.parent} is full; free some space, or set TMPDIR to another directory"
        )
    words = " ".join(compiler)
    raise NoAccelerator(f"`{words}` cannot compile against torch's headers: {_first_error(output)}")


def _run_compiler(command: list[str], directory: Path) -> tuple[int, str]:
    """Run a compiler, and return its exit code and messages.

    Its temporary files are in the directory, which the caller removes. If SIGTERM or SIGINT ends this process
    meanwhile, the programs that the compiler has started end with it.

    Raises:
        NoAccelerator: If it cannot be started.
    """
    environment = {**os.environ, "TMPDIR": str(directory)}
    this = psutil.Process()
    before = set(this.children(recursive=True))
    try:
        compiler = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment
        )
        _, errors = compiler.communicate()
    except OSError as error:
        raise NoAccelerator(f"`{command[0]}` cannot be started ({words_of(error)})") from None
    except BaseException:
        # A signal that comes while Popen starts the compiler leaves it as a child that has no name here.
        with suppress(psutil.Error):
            for process in set(this.children(recursive=True)) - before:
                process.kill()
        raise
    return compiler.returncode, errors.decode(errors="replace")


def _compiler() -> list[str]:
    """Return the words of CXX, or a compiler that is installed.

    Raises:
        NoAccelerator: If there is none.
    """
    try:
        named = shlex.split(os.environ.get("CXX", ""))
    except ValueError as error:
        raise NoAccelerator(f"CXX cannot be read as a command ({error})") from None
    if named and shutil.which(named[0]) is None:
        raise NoAccelerator(f"CXX names {named[0]}, which is not installed")
    found = shutil.which("g++") or shutil.which("clang++")
    if not named and found is None:
        raise NoAccelerator("no C++ compiler is installed (g++ or clang++, or the one that CXX names)")
    return named or [str(found)]


def load_accelerator(library: Path) -> None:
    """Load the library that `build_accelerator` made, and import torch.

    Args:
        library: The library.

    Raises:
        RuntimeError: If torch was imported before.
    """
    if "torch" in sys.modules:
        raise RuntimeError("the fake accelerator must be loaded before torch is imported")

    # torch's symbols first, and visible to all: the library enters its hooks into torch's table.
    ctypes.CDLL(str(_torch_directory() / "lib" / "libtorch_cpu.so"), ctypes.RTLD_GLOBAL)
    accelerator = ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)
    importlib.import_module("torch")
    accelerator.take_the_guard()


def _torch_directory() -> Path:
    found = importlib.util.find_spec("torch")
    assert found is not None
    assert found.submodule_search_locations
    return Path(found.submodule_search_locations[0])


def _first_error(output: str) -> str:
    lines = [line for line in output.splitlines() if "error" in line]
    return (lines or output.splitlines() or ["it said nothing"])[0][:200]
