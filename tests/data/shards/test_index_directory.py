"""The directory of an index: written, loaded, made again, and refused if it does not fit."""

from __future__ import annotations

import os

import pytest
from support.indices import refused
from support.shards import write_shards

from flipscale.data.shards.index_document import load_index
from flipscale.data.shards.indexing import build_index
from flipscale.data.shards.journal import IndexKind
from flipscale.data.shards.source import ShardSource
from flipscale.errors import UserError


def test_only_the_index_directory_is_written(tmp_path):
    pattern = write_shards(tmp_path / "shards", [2, 2])
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    build_index(pattern, tmp_path / "new" / "index", workers=2)
    after = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    made = {tmp_path / "new" / "index" / name for name in ("index.json", "members.bin")}
    assert after.keys() - before.keys() == made
    assert {path: after[path] for path in before} == before


def test_a_loaded_index_is_the_built_one(tmp_path):
    built = build_index(write_shards(tmp_path / "shards", [3, 2]), tmp_path / "index")
    loaded = load_index(tmp_path / "index")
    assert loaded == built
    assert loaded.members.tolist() == built.members.tolist()
    assert loaded.fingerprint == built.fingerprint
    loaded.verify()


def test_an_index_is_made_again_in_place(tmp_path):
    build_index(write_shards(tmp_path / "shards", [3]), tmp_path / "index")
    again = build_index(write_shards(tmp_path / "shards", [3, 4]), tmp_path / "index")
    assert load_index(tmp_path / "index") == again
    # After a failure, there is no index.
    (tmp_path / "shards" / "00001.tar").write_text("no tar")
    refused(str(tmp_path / "shards" / "{00000..00001}.tar"), tmp_path / "index")
    with pytest.raises(UserError, match="there is no index"):
        load_index(tmp_path / "index")


def test_directory_that_holds_something_else_is_refused(tmp_path):
    pattern = write_shards(tmp_path / "shards", [1])
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("precious")
    assert "is not empty and holds no index" in refused(pattern, tmp_path / "full")
    assert "is not empty and holds no index" in refused(pattern, tmp_path / "shards")
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["thesis.tex"]
    assert "cannot be made" in refused(pattern, tmp_path / "full" / "thesis.tex")
    assert "cannot be made" in refused(pattern, tmp_path / "full" / "thesis.tex" / "index")


OTHERS = {
    "a folder called members": ("members/chapter1.txt", "precious"),
    "a folder as deep as ours": ("members/0000/0000000.npz.txt", "precious"),
    "an index of something else": ("index.json", '{"name": "a web site", "version": 3}'),
    "a list": ("index.json", "[]"),
    "no JSON": ("index.json", "precious"),
    "nested JSON": ("index.json", "[" * 100_000),
    "a binary file": ("members.bin", "precious"),
    "a journal": ("journal.jsonl", '{"dear": "diary"}\n'),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_files_of_others_with_our_names_are_refused(tmp_path, kind):
    pattern = write_shards(tmp_path / "shards", [1])
    name, content = OTHERS[kind]
    path = tmp_path / "out" / name
    path.parent.mkdir(parents=True)
    path.write_text(content)
    assert "is not empty and holds no index" in refused(pattern, tmp_path / "out")
    assert [file for file in (tmp_path / "out").rglob("*") if file.is_file()] == [path]
    assert path.read_text() == content


@pytest.mark.parametrize("name", ["journal.jsonl", "journal.jsonl.partial"])
@pytest.mark.parametrize("content", ["", '{"mem', '{"members": true, "from_st'])
def test_index_that_was_killed_in_its_first_write_is_made(tmp_path, name, content):
    pattern = write_shards(tmp_path / "shards", [1])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text(content)
    build_index(pattern, tmp_path / "out")
    assert load_index(tmp_path / "out").samples == 1


def test_only_our_own_files_of_an_index_are_removed(tmp_path):
    pattern = write_shards(tmp_path / "shards", [2, 1])
    index = build_index(pattern, tmp_path / "index", kind=IndexKind(members=False))
    ShardSource(index).member(1, 0)
    (own,) = (tmp_path / "index").rglob("*.npz")
    other = own.with_name("chapter.npz")
    other.write_text("precious")
    (tmp_path / "index" / "members" / "letters").mkdir()
    build_index(pattern, tmp_path / "index", kind=IndexKind(members=False))
    assert not own.exists()
    assert other.read_text() == "precious"
    assert (tmp_path / "index" / "members" / "letters").is_dir()


def test_links_and_fifos_in_the_place_of_our_files_are_refused(tmp_path):
    pattern = write_shards(tmp_path / "shards", [1])
    build_index(pattern, tmp_path / "index")
    (tmp_path / "index" / "members.bin").unlink()
    (tmp_path / "index" / "members.bin").symlink_to(tmp_path / "shards" / "00000.tar")
    assert "is not a plain file" in refused(pattern, tmp_path / "index")
    (tmp_path / "index" / "members.bin").unlink()
    os.mkfifo(tmp_path / "index" / "members.bin")
    assert "is not a plain file" in refused(pattern, tmp_path / "index")
    assert (tmp_path / "shards" / "00000.tar").stat().st_size > 1000


@pytest.mark.parametrize("change", ["longer", "touched", "gone"])
def test_stale_shards_are_named(tmp_path, change):
    index = build_index(write_shards(tmp_path, [1, 1, 1]), tmp_path / "index")
    path = tmp_path / "00001.tar"
    status = path.stat()
    if change == "longer":
        path.write_bytes(path.read_bytes() + bytes(512))
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    elif change == "touched":
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    else:
        path.unlink()
    with pytest.raises(UserError, match="flipscale data index") as refusal:
        index.verify()
    assert str(path) in str(refusal.value)
    assert "more shards" not in str(refusal.value)
    (tmp_path / "00000.tar").unlink()
    with pytest.raises(UserError, match=r"\(and 1 more shards\)"):
        index.verify()


def test_damaged_index_is_refused(tmp_path):
    directory = tmp_path / "index"
    build_index(write_shards(tmp_path / "shards", [3]), directory)
    text = (directory / "index.json").read_text()

    def loading(document: str) -> str:
        (directory / "index.json").write_text(document)
        with pytest.raises(UserError) as refusal:
            load_index(directory)
        assert str(directory) in str(refusal.value)
        return str(refusal.value)

    for broken in (
        text[:-20],
        "",
        "[]",
        "{}",
        '{"version": 2}',
        '{"version": 2, "paths": [1], "samples": [], "bytes": [], "versions": [], "damaged": []}',
    ):
        assert "make it again" in loading(broken)
    assert "has version 99, not" in loading(text.replace('"version": 2', '"version": 99'))
    (directory / "index.json").write_text(text)
    os.truncate(directory / "members.bin", 40)
    assert "members.bin has the wrong size" in loading(text)
    (directory / "members.bin").unlink()
    assert "there is no index" in loading(text)
