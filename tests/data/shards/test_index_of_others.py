"""Indices that somebody else made, or damaged: one sentence, and never a huge read, a pipe or a traceback."""

from __future__ import annotations

import io
import json
import os
import random
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.shards import write_shards

from flipscale.data.quarantine import BadSample
from flipscale.data.shards.index_directory import table_of_shard
from flipscale.data.shards.index_document import is_current, load_index
from flipscale.data.shards.indexing import build_index
from flipscale.data.shards.journal import IndexKind
from flipscale.data.shards.source import ShardSource
from flipscale.data.shards.storage import DataReadError, Patience, Storage
from flipscale.data.shards.tar import MEMBER
from flipscale.errors import UserError


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    build_index(write_shards(tmp_path / "shards", [3, 2]), tmp_path / "index")
    return tmp_path / "index"


CHANGES: dict[str, dict[str, Any]] = {
    "counts as text": {"samples": ["3", "2"]},
    "counts as fractions": {"samples": [3.0, 2.0]},
    "counts as truth": {"samples": [True, True]},
    "negative counts": {"samples": [7, -2]},
    "huge counts": {"samples": [2**70, 2]},
    "other counts": {"samples": [2, 3]},
    "no shards": {"paths": [], "samples": [], "bytes": [], "versions": []},
    "a shard less": {"paths": ["x"]},
    "paths that are numbers": {"paths": [1, 2]},
    "paths with NUL": {"paths": ["a\0", "b"]},
    "other paths": {"paths": ["/etc/passwd", "pipe:touch x"]},
    "null": {"versions": None},
    "negative sizes": {"bytes": [-1, 5]},
    "damage of a shard that is not there": {"damaged": [["x", 1, "cut"]]},
    "damage of another shape": {"damaged": [["x"]]},
    "members as text": {"members": "yes"},
    "another fingerprint": {"fingerprint": "0" * 64},
    "version as text": {"version": "2" * 10_000},
}


@pytest.mark.parametrize("change", CHANGES)
def test_other_columns_are_refused(directory, change):
    path = directory / "index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **CHANGES[change]}))
    with pytest.raises(UserError, match="make it again with `flipscale data index`") as refusal:
        load_index(directory)
    assert str(directory) in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 500


@pytest.mark.parametrize("shape", ["fifo", "directory", "nested", "NUL", "empty", "list", "latin-1"])
def test_other_files_in_the_place_of_index_json_are_refused(directory, shape):
    path = directory / "index.json"
    path.unlink()
    texts = {
        "nested": b"[" * 100_000,
        "NUL": b"\0" * 100,
        "empty": b"",
        "list": b"[]",
        "latin-1": b'{"\xe9": 1}',
    }
    if shape in texts:
        path.write_bytes(texts[shape])
    else:
        {"fifo": os.mkfifo, "directory": os.mkdir}[shape](path)
    with pytest.raises(UserError, match="make it again"):
        load_index(directory)
    assert not is_current(directory)


ROWS = {
    "beyond 2**63": {"image": 2**63},
    "beyond the shard": {"image": 10**6},
    "the largest size": {"image_bytes": 2**32 - 1},
    "before the first header": {"text": 8},
    "nothing": dict.fromkeys(MEMBER.names or (), 0),
    "a size without a place": {"image": 0},
}


@pytest.mark.parametrize("kind", ROWS)
def test_rows_outside_of_the_shard_are_refused(directory, kind):
    path = directory / "members.bin"
    rows = np.fromfile(path, MEMBER)
    for name, value in ROWS[kind].items():
        rows[1][name] = value
    rows.tofile(path)
    source = ShardSource(load_index(directory))
    for read in (lambda: source.content(0, 1, "image"), lambda: source.members(0, 1)):
        with pytest.raises(UserError, match=r"sample 1 of .* is not within the shard; make it again"):
            read()
    assert source.key(0, 1) == "?"
    assert source.content(0, 0, "text")


def archive(members: bytes, damage: bytes, compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as file:
        file.writestr("members.npy", members)
        file.writestr("damage.npy", damage)
    return stream.getvalue()


def saved(array: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


def header(shape: str, descr: str = repr(MEMBER.descr)) -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


GOOD_TEXT = saved(np.array(""))
TABLES = {
    "numbers": archive(saved(np.arange(3)), GOOD_TEXT),
    "a pickle": archive(saved(np.array([print, print])), GOOD_TEXT),
    "two dimensions": archive(saved(np.zeros((3, 3), MEMBER)), GOOD_TEXT),
    "74 GiB": archive(header("(2200000000,)"), GOOD_TEXT),
    "a negative shape": archive(header("(-1,)"), GOOD_TEXT),
    "a long text": archive(saved(np.zeros(3, MEMBER)), saved(np.array("x" * 10**6))),
    "a text of 2 GiB": archive(saved(np.zeros(3, MEMBER)), header("()", "'<U500000000'")),
    "code as a header": archive(header("(__import__('os').system('true'),)"), GOOD_TEXT),
    "empty rows": archive(saved(np.zeros(3, MEMBER)), GOOD_TEXT),
    "rows beyond": archive(saved(np.full(3, 2**31, np.uint32).astype(MEMBER)), GOOD_TEXT),
    "no zip": b"PK no zip",
    "nothing": b"",
}


@pytest.mark.parametrize("kind", [*TABLES, "fifo", "directory"])
def test_other_tables_of_shards_are_found_again(tmp_path, kind):
    built = build_index(
        write_shards(tmp_path / "shards", [3]), tmp_path / "index", kind=IndexKind(members=False)
    )
    known = ShardSource(build_index(str(tmp_path / "shards" / "00000.tar"), tmp_path / "known"))
    path = table_of_shard(tmp_path / "index", 0)
    path.parent.mkdir(parents=True)
    if kind in TABLES:
        path.write_bytes(TABLES[kind])
    else:
        {"fifo": os.mkfifo, "directory": os.mkdir}[kind](path)
    tracemalloc.start()
    assert ShardSource(built).member(0, 2) == known.member(0, 2)
    assert tracemalloc.get_traced_memory()[1] < 50 << 20
    tracemalloc.stop()


@pytest.mark.parametrize(
    "line",
    [
        "[]",
        "{}",
        '{"shard": 1, "damage": null}',
        '{"shard": ["a", "b", 1, "c"], "damage": null}',
        '{"shard": null}',
    ],
)
def test_other_journals_are_scanned_again(tmp_path, line):
    pattern = write_shards(tmp_path / "shards", [3])
    (tmp_path / "index").mkdir()
    kind = json.dumps({"members": True, "from_stats": False})
    (tmp_path / "index" / "journal.jsonl").write_text(f"{kind}\n{line}\n")
    assert build_index(pattern, tmp_path / "index").samples == 3


def test_random_damage_is_refused_or_changes_nothing(directory):
    """Every byte counts: what is read is what was written, or the index is refused."""
    draw = random.Random(0)
    impatient = Storage(patience=Patience(pauses=()))
    good = ShardSource(load_index(directory), impatient)
    expected = [good.content(0, ordinal, "text") for ordinal in range(3)]
    for name in ("index.json", "members.bin"):
        whole = (directory / name).read_bytes()
        for _ in range(150):
            content = bytearray(whole)
            content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
            (directory / name).write_bytes(content)
            try:
                source = ShardSource(load_index(directory), impatient)
                texts = [source.content(0, ordinal, "text") for ordinal in range(3)]
            except (UserError, BadSample, DataReadError):
                continue
            assert name == "members.bin" or texts == expected
        (directory / name).write_bytes(whole)
