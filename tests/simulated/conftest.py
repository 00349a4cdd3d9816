"""One compilation of the fake GPU for all tests on it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.made_once import made_once

from flipscale.rehearsal.accelerator import build_accelerator

# Finds the path behind `-o`, and copies the library to it.
_COPIES = """#!/bin/sh
for word; do [ "$before" = -o ] && exec cp '{library}' "$word"; before=$word; done
"""


def _make(directory: Path) -> None:
    directory.mkdir()
    build_accelerator(directory)


@pytest.fixture(scope="session", autouse=True)
def compiled_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Name a compiler that copies the library, unless a test names another."""
    if shutil.which("g++") is None:
        yield
        return
    library = made_once("fake_accelerator", _make, tmp_path_factory) / "fake_accelerator.so"
    compiler = tmp_path_factory.mktemp("compiler") / "copies"
    compiler.write_text(_COPIES.format(library=library))
    compiler.chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(os.environ, "CXX", str(compiler))
        yield
