"""GPUs that only tests marked `gpu` see: the others start more processes than most machines have GPUs."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager

import pytest

_VISIBLE = "CUDA_VISIBLE_DEVICES"
_given = os.environ.get(_VISIBLE)

# torch then asks NVML, which heeds the variable at every look; CUDA does so at its first call only.
os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"


@contextmanager
def hidden_gpus(present: bool) -> Generator[None]:
    """Hide the GPUs from what starts within the context; without GPUs the environment stays as it is.

    Args:
        present: Whether the machine has GPUs.
    """
    with pytest.MonkeyPatch.context() as patch:
        if present:
            patch.setenv(_VISIBLE, "")
        yield


def show_gpus(patch: pytest.MonkeyPatch) -> None:
    """Let a test and what it starts see the GPUs that this run of pytest was given."""
    if _given is None:
        patch.delenv(_VISIBLE, raising=False)
    else:
        patch.setenv(_VISIBLE, _given)
