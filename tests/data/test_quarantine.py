"""The quarantine list: every bad sample once, whatever crashes."""

from __future__ import annotations

import pytest

from flipscale.data.quarantine import BadRecord, Quarantine, read_quarantine
from flipscale.errors import UserError


def record(shard: int, ordinal: int, reason: str = "the caption is blank") -> BadRecord:
    return BadRecord(shard, ordinal, f"/data/{shard}.tar", f"{ordinal:09d} café", reason)


def test_each_sample_is_listed_once(tmp_path):
    path = tmp_path / "quarantine.jsonl"
    quarantine = Quarantine(path)
    assert len(quarantine) == 0
    assert quarantine.add([record(0, 1), record(0, 2), record(0, 1, "found again by another worker")]) == 2
    assert quarantine.add([record(0, 2), record(1, 1)]) == 1
    assert quarantine.add([]) == 0
    assert len(quarantine) == 3
    assert read_quarantine(path) == [record(0, 1), record(0, 2), record(1, 1)]


def test_a_restart_knows_what_is_listed(tmp_path):
    path = tmp_path / "quarantine.jsonl"
    Quarantine(path).add([record(0, 1)])
    again = Quarantine(path)
    assert len(again) == 1
    assert again.add([record(0, 1), record(5, 5)]) == 1
    assert read_quarantine(path) == [record(0, 1), record(5, 5)]


def test_a_line_that_a_crash_cut_is_found_again(tmp_path):
    path = tmp_path / "quarantine.jsonl"
    Quarantine(path).add([record(0, 1), record(0, 2)])
    path.write_bytes(path.read_bytes()[:-7])
    assert read_quarantine(path) == [record(0, 1)]
    again = Quarantine(path)
    assert again.add([record(0, 2)]) == 1
    assert read_quarantine(path) == [record(0, 1), record(0, 2)]


@pytest.mark.parametrize("text", ["{}\n", '{"shard": 1, "ordinal": 2}\n', "5\n", "cut\n"])
def test_another_file_is_refused(tmp_path, text):
    path = tmp_path / "quarantine.jsonl"
    path.write_text(text)
    with pytest.raises(UserError, match=r"quarantine\.jsonl"):
        Quarantine(path)
    assert path.read_text() == text
