"""Read and write safetensors files, with the types that the library does not declare."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import safetensors
import torch
from safetensors import torch as safetensors_torch
from torch import Tensor

from flipscale.files import naming

_torch: Any = safetensors_torch  # its signatures are partially unknown
_open: Any = safetensors.safe_open


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Load all tensors of a file on the CPU.

    Raises:
        SafetensorError: If the file is damaged.
    """
    return cast("dict[str, Tensor]", _torch.load_file(path))


def save_tensors(tensors: Mapping[str, Tensor], path: Path, header: Mapping[str, str] | None = None) -> None:
    """Write tensors to a file; `header` holds strings that are stored next to them.

    Raises:
        OSError: If the file cannot be written.
    """
    try:
        _torch.save_file(dict(tensors), path, metadata=None if header is None else dict(header))
    except safetensors.SafetensorError as error:
        code = re.search(r"(?:os error |Os \{ code: )(\d+)", str(error))  # safetensors 0.5 writes the latter
        if code is None:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1])), str(path)) from None


def save_archive(document: Mapping[str, object], path: Path) -> None:
    """Write a document with tensors as `torch.save` does.

    Raises:
        OSError: If the file cannot be written.
    """
    with naming(path), open(path, "wb") as file:
        try:
            torch.save(document, file)
        except RuntimeError as error:
            # After a write that failed, torch closes its archive and fails again, with words of its own.
            cause = error.__context__
            while cause is not None and not isinstance(cause, OSError):
                cause = cause.__context__
            raise cause or error from None


def read_header(path: Path) -> dict[str, str]:
    """Return the strings that are stored next to the tensors of a file."""
    with _open(path, "pt") as file:
        return cast("dict[str, str] | None", file.metadata()) or {}


def tensor_names(path: Path) -> set[str]:
    """Return the names of the tensors of a file."""
    with _open(path, "pt") as file:
        return set(cast("list[str]", file.keys()))
