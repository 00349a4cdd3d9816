"""Making an index of shards that are good, or that are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from flipscale.data.shards.index import Index
from flipscale.data.shards.indexing import build_index
from flipscale.errors import UserError


def indexed(path: Path) -> Index:
    """Return the index of one shard, which is written next to it."""
    return build_index(str(path), path.parent / "index")


def refused(pattern: str, directory: Path) -> str:
    """Return the sentence with which an index of the shards is refused."""
    with pytest.raises(UserError) as refusal:
        build_index(pattern, directory)
    assert "\n" not in str(refusal.value)
    return str(refusal.value)
