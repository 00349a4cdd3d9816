"""The content digest: other bytes at the same places change it, and how they are read does not."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from support.readers import open_reader
from support.shards import good, write_tar

from flipscale.data.order.lanes import content_digest
from flipscale.data.samples.captions import CaptionFields, Captions
from flipscale.data.samples.reader import Chunk
from flipscale.data.shards.indexing import build_index
from flipscale.data.shards.source import ShardSource
from flipscale.order_digest import ContentDigest, OrderDigest

POSITIONS = np.arange(24, dtype=np.int64)


def read(path: Path, directory: Path) -> Chunk:
    reader, _ = open_reader(build_index(str(path), directory))
    return reader.read(POSITIONS)


def test_frozen_vector():
    """A change of this value makes the audit of every run in progress fail."""
    checksums = np.array([[0, 1], [2**32 - 1, 7], [5, 5]], np.uint32)
    assert content_digest(np.array([0, 1, 2**40]), checksums).hex() == "30ac1823607feffe"


def test_shifted_captions_have_the_same_order_and_another_content(tmp_path: Path):
    members = [member for number in range(10, 22) for member in good(number)]
    names = [name for name, _ in members]
    images, captions = [data for _, data in members[::2]], [data for _, data in members[1::2]]
    shifted = [data for pair in zip(images, [*captions[1:], captions[0]], strict=True) for data in pair]
    write_tar(tmp_path / "0.tar", members)
    write_tar(tmp_path / "1.tar", list(zip(names, shifted, strict=True)))
    assert (tmp_path / "0.tar").stat().st_size == (tmp_path / "1.tar").stat().st_size

    right, wrong = (read(tmp_path / f"{n}.tar", tmp_path / f"index{n}") for n in range(2))
    assert right.digest == wrong.digest
    assert right.content != wrong.content


def test_parts_of_a_batch_add_up(tmp_path: Path):
    write_tar(tmp_path / "0.tar", [member for number in range(12) for member in good(number)])
    reader, _ = open_reader(build_index(str(tmp_path / "0.tar"), tmp_path / "index"))
    parts = [reader.read(part, size) for part, size in zip(np.split(POSITIONS, 3), (8, 16, 32), strict=True)]
    whole = reader.read(POSITIONS)
    assert sum((part.content for part in parts), ContentDigest()) == whole.content
    assert sum((part.digest for part in parts), OrderDigest()) == whole.digest


@pytest.mark.parametrize("field", ["json.caption", "alt.txt"])
def test_captions_of_other_members_count_by_their_text(tmp_path: Path, field: str):
    extension = field.partition(".")[0] if field.startswith("json") else field
    for number, caption in enumerate(("a cat", "a dog", "a cat")):
        text = json.dumps({"caption": caption, "other": number}) if extension == "json" else caption
        write_tar(tmp_path / f"{number}.tar", [*good(1)[:1], ("000000001." + extension, text.encode())])
        with tarfile.open(tmp_path / f"{number}.tar") as tar:
            assert len(tar.getnames()) == 2

    checksums: list[int] = []
    for number in range(3):
        index = build_index(str(tmp_path / f"{number}.tar"), tmp_path / f"index{number}")
        captions = Captions(CaptionFields({field: 1.0}), ShardSource(index))
        checksums.append(captions.caption(0, 0, 0).checksum)
    assert checksums[0] == checksums[2] != checksums[1]
