"""JSON documents: what is whole is read, everything else is named in one sentence, and nothing blocks."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.broken_files import SHAPES

from flipscale import documents, jsonl
from flipscale.errors import UserError
from flipscale.files import naming, set_aside, storage_problem


@dataclass(frozen=True)
class Part:
    number: int
    names: tuple[str, ...] = ()


def test_dataclass_is_read_without_unknown_keys(tmp_path: Path) -> None:
    path = tmp_path / "part.json"
    path.write_text('{"number": 3, "names": ["a", "b"], "of a later version": 1}')
    assert documents.read_as(Part, path) == Part(3, ("a", "b"))
    jsonl.append(tmp_path / "parts.jsonl", [{"number": 1}, {"number": 2}])
    assert jsonl.read_as(Part, tmp_path / "parts.jsonl") == [Part(1), Part(2)]


@pytest.mark.parametrize(
    ("text", "how"),
    [
        ("{}", "its number: Field required"),
        ('{"number": "3"}', "its number: Input should be a valid integer"),
        ('{"number": 3.5}', "its number: Input should be a valid integer"),
        ('{"number": 1, "names": "ab"}', "its names: Input should be a valid"),
        ('{"number": 1, "names": [1]}', "its names.0: Input should be a valid string"),
        ("[]", "it holds no JSON object"),
        ("", "it is empty"),
        ("{", "it holds no JSON"),
        ("[" * 100_000, "it is nested too deeply"),
    ],
)
def test_damage_is_named(tmp_path: Path, text: str, how: str) -> None:
    path = tmp_path / "part.json"
    path.write_text(text)
    with pytest.raises(UserError) as refusal:
        documents.read_as(Part, path, "make it again")
    assert str(refusal.value).startswith(f"{path} is damaged ({how}")
    assert str(refusal.value).endswith("); make it again")
    path.write_text('{"number": 1}\n' + text + "\n")
    with pytest.raises(UserError, match=r"part\.json, line 2 is damaged: it"):
        jsonl.read_as(Part, path)


@pytest.mark.parametrize("shape", sorted(set(SHAPES) - {"missing", "a dangling link"}))
def test_every_broken_shape_is_one_sentence(tmp_path: Path, shape: str) -> None:
    path = tmp_path / "part.json"
    SHAPES[shape](path, b'{"number": 1}\n')
    with pytest.raises(UserError) as refusal:
        documents.read_as(Part, path)
    assert str(path) in str(refusal.value)
    assert "\n" not in str(refusal.value)
    for read in (jsonl.tail, lambda path, limit: list(jsonl.scan(path))):
        assert isinstance(read(path, 1 << 30), list)  # observers wait for nothing and raise nothing


@pytest.mark.parametrize("shape", ["missing", "a dangling link"])
def test_missing_document_is_not_damage(tmp_path: Path, shape: str) -> None:
    SHAPES[shape](tmp_path / "part.json", b"")
    with pytest.raises(FileNotFoundError):
        documents.read_as(Part, tmp_path / "part.json")
    assert jsonl.read(tmp_path / "part.json") == []


def test_damaged_lines_are_left_out_and_kept_aside(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    content = b'{"n": 1}\n\xff\n{"m": 2}\n{"n": 3}\n{"n": 4'
    for number in (1, 2):
        path.write_bytes(content)
        dropped, aside = jsonl.repair(path, lambda record: "n" in record)
        assert (dropped, aside) == (2, tmp_path / f"lines.jsonl.damaged{number}")
        assert aside is not None
        assert aside.read_bytes() == content
        assert jsonl.read(path) == [{"n": 1}, {"n": 3}]
    assert jsonl.repair(path, lambda record: "n" in record) == (0, None)
    assert jsonl.repair(tmp_path / "none.jsonl", lambda record: True) == (0, None)


def test_failed_write_names_its_file(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space") as full, naming(tmp_path / "x"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert storage_problem(full.value) == (
        f"{tmp_path / 'x'} cannot be read or written (No space left on device); fix the cause and run "
        "the same command again"
    )
    assert storage_problem(FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "x")) is None
    assert storage_problem(ValueError()) is None


def test_what_is_set_aside_replaces_nothing(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    assert set_aside(tmp_path / "a") == tmp_path / "a.damaged1"
    (tmp_path / "a").touch()
    assert set_aside(tmp_path / "a") == tmp_path / "a.damaged2"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.damaged1", "a.damaged2"]
