"""Checksums: content that changed in place is noticed, and content that did not is accepted."""

from __future__ import annotations

import os
import zlib
from pathlib import Path

import numpy as np
import pytest
from support.shards import write_shards

from flipscale.data.shards.checksumming import can_have_checksums, write_checksums
from flipscale.data.shards.index import Index
from flipscale.data.shards.index_document import load_index
from flipscale.data.shards.indexing import build_index
from flipscale.data.shards.journal import IndexKind
from flipscale.data.shards.source import ShardSource
from flipscale.errors import UserError


def summed(tmp_path: Path) -> Index:
    """Return an index with checksums of two shards, with samples that lack a member."""
    pattern = write_shards(tmp_path, [3, 2], {(0, 1): "missing caption", (1, 0): "missing image"})
    write_checksums(build_index(pattern, tmp_path / "index"), 2, lambda done, total: None)
    return load_index(tmp_path / "index")


def change(path: Path, offset: int) -> None:
    """Flip a bit, and leave size and modification time as they were."""
    status = path.stat()
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_checksums_are_those_of_the_contents(tmp_path):
    index = summed(tmp_path)
    assert index.checksums is not None
    source = ShardSource(index)
    for number in range(index.samples):
        shard, ordinal = index.find(number)
        place = index.shards.index(shard)
        sums = index.checksums[number]
        assert sums["image"] == zlib.crc32(source.content(place, ordinal, "image"))
        assert sums["text"] == zlib.crc32(source.content(place, ordinal, "text"))
    assert index.checksums["text"][1] == index.checksums["image"][3] == 0


@pytest.mark.parametrize(("column", "noun"), [("image", "image"), ("text", "caption")])
def test_content_that_changed_in_place_is_refused_on_reading(tmp_path, column, noun):
    index = summed(tmp_path)
    change(tmp_path / "00000.tar", int(index.members[2][column]) + 3)
    index.verify()  # size and modification time are the same
    source = ShardSource(index)
    with pytest.raises(
        UserError, match=rf"the {noun} of sample 2 of .*00000\.tar is not the one that was indexed"
    ):
        source.content(0, 2, column)
    assert source.content(1, 1, column)


def test_shards_that_were_staged_again_are_accepted_by_their_content(tmp_path):
    index = summed(tmp_path)
    path = tmp_path / "00001.tar"
    os.utime(path, ns=(1, 1))
    index.verify()
    change(path, int(index.members[4]["text"]))
    with pytest.raises(UserError, match=r"00001\.tar changed since the index was made"):
        index.verify()
    index.verify(only=index.shards[:1])
    # Without checksums nothing proves that the content is the same.
    (tmp_path / "index" / "checksums.bin").unlink()
    os.utime(tmp_path / "00000.tar", ns=(1, 1))
    with pytest.raises(UserError, match="changed since the index was made"):
        load_index(tmp_path / "index").verify()


def test_an_index_that_is_made_again_loses_its_checksums_first(tmp_path):
    summed(tmp_path)
    again = build_index(str(tmp_path / "{00000..00001}.tar"), tmp_path / "index")
    assert again.checksums is None
    lazy = build_index(
        str(tmp_path / "{00000..00001}.tar"), tmp_path / "index", kind=IndexKind(members=False)
    )
    assert not can_have_checksums(lazy)
    assert lazy.checksums is None


@pytest.mark.parametrize("damage", ["of another index", "cut", "fifo"])
def test_other_checksums_are_refused(tmp_path, damage):
    summed(tmp_path)
    path = tmp_path / "index" / "checksums.bin"
    if damage == "cut":
        os.truncate(path, path.stat().st_size - 1)
    elif damage == "fifo":
        path.unlink()
        os.mkfifo(path)
    else:
        path.write_bytes(b"0" * 64 + path.read_bytes()[64:])
    with pytest.raises(UserError, match="remove it, or make the index again"):
        np.asarray(load_index(tmp_path / "index").checksums)
