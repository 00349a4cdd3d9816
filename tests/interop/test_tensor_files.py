"""Files of tensors on a disk that takes only a part of them."""

from __future__ import annotations

import resource
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from flipscale.interop.tensor_files import save_archive, save_tensors

TENSORS = {"a": torch.randn(50, 50), "b": torch.randn(3000)}


@contextmanager
def largest_file(size: int) -> Generator[None]:
    """Let no file of this process grow beyond a size: the kernel refuses the write (EFBIG)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("save", [save_archive, save_tensors])
def test_disk_that_is_full_at_any_place_is_an_error_of_the_file(save, tmp_path: Path) -> None:
    path = tmp_path / "file"
    save(TENSORS, path)
    for size in range(0, path.stat().st_size - 1, 1000):
        with pytest.raises(OSError, match="File too large") as raised, largest_file(size):
            save(TENSORS, path)
        assert raised.value.filename == str(path)
