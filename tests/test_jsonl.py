"""JSON lines: a line that was half written is never read, and a damaged line is never skipped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flipscale import jsonl
from flipscale.errors import UserError

RECORDS = [{"n": 1}, {"n": 2, "text": "line\nbreak, \u2028 and café"}, {}]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "records.jsonl"
    jsonl.append(path, RECORDS[:1])
    jsonl.append(path, RECORDS[1:], durable=True)
    return path


def test_appended_records_are_read(path):
    assert jsonl.read(path) == RECORDS
    assert len(path.read_bytes().splitlines()) == 3


def test_missing_file_has_no_records(tmp_path):
    assert jsonl.read(tmp_path / "none.jsonl") == []
    jsonl.keep(tmp_path / "none.jsonl")
    assert list(tmp_path.iterdir()) == []


def test_crash_loses_only_the_line_that_it_cut(path):
    data = path.read_bytes()
    for size in range(len(data) + 1):
        path.write_bytes(data[:size])
        assert jsonl.read(path) == RECORDS[: data[:size].count(b"\n")]


def test_appending_after_a_crash_needs_keep(path):
    path.write_bytes(path.read_bytes()[:-2])
    jsonl.keep(path)
    jsonl.append(path, [{"n": 4}])
    assert jsonl.read(path) == [*RECORDS[:2], {"n": 4}]
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_keep_drops_unwanted_records(path):
    jsonl.keep(path, lambda record: record.get("n", 9) > 1)
    assert jsonl.read(path) == RECORDS[1:]


@pytest.mark.parametrize("line", [b"", b"not json", b"[1]", b"5", b"\xff\xfe", b"\0\0", b'{"n": 1} {"n": 2}'])
def test_damaged_line_is_named(path, line):
    damaged = path.read_bytes().replace(b"\n", b"\n" + line + b"\n", 1)
    path.write_bytes(damaged)
    for access in (jsonl.read, jsonl.keep):
        with pytest.raises(UserError) as refusal:
            access(path)
        assert str(refusal.value).startswith(f"{path}, line 2 is damaged")
        assert "\n" not in str(refusal.value)
    assert path.read_bytes() == damaged


def test_records_must_be_json(path):
    before = path.read_bytes()
    with pytest.raises(TypeError):
        jsonl.append(path, [{"path": Path("x")}])
    assert json.loads(before.splitlines()[0]) == RECORDS[0]
