"""Files of prompts and class names in the forms in which they are published; Python is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flipscale.errors import UserError
from flipscale.evaluation.templates import load_class_names, load_templates


@pytest.mark.parametrize("name", ["names.json", "names.txt"])
def test_lists_in_json_are_read(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text(json.dumps(["red fox", " jack-o'-lantern "], indent=1), encoding="utf-8-sig")
    assert load_class_names(str(path)) == ["red fox", "jack-o'-lantern"]
    path.write_text(json.dumps(["a photo of a {c}.", "a {}"]))
    assert load_templates(str(path)) == ["a photo of a {}.", "a {}"]


def test_numbered_names_in_json_are_read_by_their_numbers(tmp_path: Path) -> None:
    path = tmp_path / "names.json"
    path.write_text(json.dumps({"1": "one", "0": "zero", "2": "two"}))
    assert load_class_names(str(path)) == ["zero", "one", "two"]


@pytest.mark.parametrize(
    "content", ["{", '{"imagenet": ["a"]}', '{"0": ["n1", "tench"]}', "[1]", "3", "[" * 100_000, '{"1": "a"}']
)
def test_other_json_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "names.json"
    path.write_text(content)
    with pytest.raises(
        UserError, match=r"class names .*names\.json is (not JSON|neither a list of texts nor)"
    ):
        load_class_names(str(path))


def test_empty_and_endless_entries_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "names.json"
    path.write_text("[]")
    with pytest.raises(UserError, match="is empty"):
        load_class_names(str(path))
    path.write_text('["a", " "]')
    with pytest.raises(UserError, match="entry 2 is empty"):
        load_class_names(str(path))
    path.write_text(json.dumps(["a", "x" * 5000]))
    with pytest.raises(UserError, match="entry 2 has more than 4096 bytes"):
        load_class_names(str(path))


@pytest.mark.parametrize(
    "line",
    [
        "'a bad photo of a {}.',",
        '"a photo of a {}."',
        "lambda c: f'a bad photo of a {c}.',",
        "imagenet_templates = [",
        "['a photo of a {}.', 'a drawing of a {}.']",
        "f'a {}',",
        "]",
    ],
)
def test_lines_of_python_are_refused(tmp_path: Path, line: str) -> None:
    """They were prompts with quotes and commas, which cost accuracy without a word."""
    path = tmp_path / "templates.txt"
    path.write_text(f"a {{}} photo\n    {line}\n")
    with pytest.raises(UserError, match=r"line 2 .* is Python; write the bare text"):
        load_templates(str(path))


@pytest.mark.parametrize(
    "name", ["jack-o'-lantern", "'s-Hertogenbosch", "crane (bird)", "a = b", "C++ [language]"]
)
def test_names_with_marks_are_kept(tmp_path: Path, name: str) -> None:
    path = tmp_path / "names.txt"
    path.write_text(f"{name}\nfox\n")
    assert load_class_names(str(path)) == [name, "fox"]
