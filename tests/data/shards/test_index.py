"""The index of real tars, in all the forms that writers of shards produce."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from support.indices import indexed, refused
from support.shards import caption, encoded, good, picture, write_shards, write_tar

from flipscale.data.checks.scan import Checking, check_shards
from flipscale.data.checks.summary import summarize
from flipscale.data.shards.index import Index, expand_shards
from flipscale.data.shards.index_document import load_index
from flipscale.data.shards.indexing import build_index
from flipscale.data.shards.journal import IndexKind
from flipscale.data.shards.source import ShardSource
from flipscale.data.shards.tar import split_name
from flipscale.errors import UserError

JPEG, TEXT = encoded(picture(0)), b"a cat"


def contents(index: Index, row: int) -> dict[str, bytes]:
    """Return the bytes that the index gives for sample number `row`."""
    shard = int(np.searchsorted(np.cumsum(index.counts), row, side="right"))
    data = Path(index.shards[shard].path).read_bytes()
    member = index.members[row]
    return {
        name: data[int(member[name]) : int(member[name]) + int(member[f"{name}_bytes"])]
        for name in ("image", "text", "cls")
        if member[f"{name}_bytes"]
    }


def test_shards_of_img2dataset_are_indexed(tmp_path):
    members = []
    for number, kind in enumerate(["jpg", "jpeg", "png", "webp", "JPG", "PNG"]):
        key = f"{number:09d}"
        image = encoded(picture(number), {"jpg": "JPEG", "jpeg": "JPEG"}.get(kind.lower(), kind.upper()))
        details = json.dumps({"key": key, "status": "success"}).encode()
        members += [
            (f"{key}.{kind}", image),
            (f"{key}.json", details),
            (f"{key}.txt", caption(number).encode()),
        ]
    index = indexed(write_tar(tmp_path / "0.tar", members))
    assert index.samples == 6
    assert index.damaged == ()
    for row in range(6):
        assert contents(index, row) == {"image": members[3 * row][1], "text": members[3 * row + 2][1]}
        assert ShardSource(index).key(0, row) == f"{row:09d}"


@pytest.mark.parametrize("layout", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_directories_in_names_are_kept_in_every_tar_layout(tmp_path, layout):
    long = "" if layout == tarfile.USTAR_FORMAT else "very/" * 40 + "long" * 30
    keys = ["000", "a/b.c/000", "./d/001", "café/ключ", f"{long}x"]
    members = [
        (f"{key}.{kind}", data) for key in keys for kind, data in (("jpg", JPEG), ("txt", key.encode()))
    ]
    path = write_tar(tmp_path / "0.tar", members, layout)
    index = indexed(path)
    assert [contents(index, row)["text"].decode() for row in range(index.samples)] == keys
    assert [ShardSource(index).key(0, row) for row in range(len(keys))] == keys


def test_names_other_than_utf8_are_escaped(tmp_path):
    path = tmp_path / "0.tar"
    with tarfile.open(path, "w", encoding="latin-1", format=tarfile.GNU_FORMAT) as tar:
        for name, data in (("café.jpg", JPEG), ("café.txt", TEXT)):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    index = indexed(path)
    assert index.samples == 1
    assert ShardSource(index).key(0, 0) == "caf\\xe9"  # printable on every terminal, and valid in every file


def test_group_with_an_image_or_a_caption_is_a_sample(tmp_path):
    members = [
        ("0.jpg", JPEG),
        ("0.txt", TEXT),
        ("1.jpg", JPEG),  # no caption
        ("2.txt", TEXT),  # no image
        ("3.json", b"{}"),  # neither: no sample
        ("README", b"hello"),
        ("4.cls", b"7"),  # only a label: no sample
        ("5.jpg", b""),  # empty
        ("5.txt", TEXT),
        ("6.cls", b"3"),
        ("6.jpg", JPEG),
        ("6.txt", TEXT),
    ]
    index = indexed(write_tar(tmp_path / "0.tar", members))
    assert [sorted(contents(index, row)) for row in range(index.samples)] == [
        ["image", "text"],
        ["image"],
        ["text"],
        ["text"],
        ["cls", "image", "text"],
    ]
    assert [ShardSource(index).key(0, row) for row in range(5)] == ["0", "1", "2", "5", "6"]
    assert contents(index, 4) == {"cls": b"3", "image": JPEG, "text": TEXT}


def test_members_of_no_sample_are_named(tmp_path, caplog):
    """Keys with dots dropped out of index, check and quarantine without a word."""
    members = [
        ("0.early.json", b"{}"),
        *good(0, "0"),
        ("0.json", b"{}"),
        ("README", b"a word"),
        ("1.json", b"{}"),  # before its sample
        *good(1, "1"),
        ("photo 2.0 4.jpg", JPEG),
        ("photo 2.0 4.txt", TEXT),
        ("b.x.PNG", JPEG),
        ("b.x.json", b""),
        ("3.cls", b"7"),
    ]
    path = write_tar(tmp_path / "0.tar", members)
    assert indexed(path).samples == 2
    images, others = (record.getMessage() for record in caplog.records)
    assert images.startswith(f"2 images belong to no sample, such as photo 2.0 4.jpg in {path}: a key ends")
    assert others == f"4 other members belong to no sample, such as README in {path}"
    summary = summarize(list(check_shards([str(path)], Checking(10**6), 1)))
    assert summary.images_of_no_sample == {f"photo 2.0 4.jpg in {path}": 2}
    assert summary.members_of_no_sample == {f"README in {path}": 4}


@pytest.mark.parametrize("members_table", [True, False])
def test_images_have_the_extensions_that_are_named(tmp_path, members_table):
    members = [
        *(("0.input.jpg", JPEG), ("0.txt", TEXT), ("0.output.jpg", b"another")),
        *(("1.INPUT.JPG", JPEG), ("1.txt", TEXT)),
        *(("2.jpg", JPEG), ("2.txt", TEXT)),
    ]
    path = str(write_tar(tmp_path / "0.tar", members))
    kind = IndexKind(members=members_table, images=("input.jpg",))
    build_index(path, tmp_path / "index", kind=kind)
    index = load_index(tmp_path / "index")
    assert index.images == ("input.jpg",)
    source = ShardSource(index)
    assert [source.content(0, row, "image") for row in range(index.samples)] == [JPEG, JPEG, b""]
    assert [source.key(0, row) for row in range(index.samples)] == ["0", "1", "2"]
    usual = build_index(path, tmp_path / "usual")
    assert usual.fingerprint != index.fingerprint
    index.check_images(["input.jpg"])
    with pytest.raises(UserError, match=r"jpg, jpeg, png, webp, not of data.images = input.jpg; make it"):
        usual.check_images(["input.jpg"])

    (report,) = check_shards([path], Checking(10**6, images=("input.jpg",)), 1)
    assert [(record.key, record.reason) for record in report.bad] == [("2", "the image is missing or empty")]


def test_a_key_that_comes_twice_makes_two_samples(tmp_path):
    first, second = encoded(picture(1)), encoded(picture(2), "PNG")
    members = [("0.jpg", first), ("0.txt", b"one"), ("0.jpg", second), ("0.txt", b"two"), ("1.jpg", first)]
    index = indexed(write_tar(tmp_path / "0.tar", [*members, ("1.png", second), ("1.txt", b"three")]))
    assert [contents(index, row) for row in range(index.samples)] == [
        {"image": first, "text": b"one"},
        {"image": second, "text": b"two"},
        {"image": first},
        {"image": second, "text": b"three"},
    ]


def test_members_other_than_files_are_left_out(tmp_path):
    path = tmp_path / "0.tar"
    with tarfile.open(path, "w") as tar:
        for kind, name in ((tarfile.DIRTYPE, "d"), (tarfile.SYMTYPE, "0.png"), (tarfile.LNKTYPE, "0.txt")):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
        for name, data in good(5, "0"):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    index = indexed(path)
    assert [contents(index, row) for row in range(index.samples)] == [
        {"image": good(5)[0][1], "text": caption(5).encode()}
    ]


def test_missing_shards_are_named(tmp_path):
    write_shards(tmp_path, [1, 1])
    pattern = str(tmp_path / "{00000..00004}.tar")
    assert f"the shard {tmp_path / '00002.tar'} and 2 more of the pattern" in refused(pattern, tmp_path / "i")
    assert refused(str(tmp_path), tmp_path / "i").endswith("(in a job: data.train)")
    assert refused("", tmp_path / "i").endswith("(in a job: data.train)")
    assert not (tmp_path / "i").exists()


def test_pattern_expands_in_order():
    assert expand_shards("/a/{000..002}.tar") == ["/a/000.tar", "/a/001.tar", "/a/002.tar"]
    assert expand_shards("/a/{0..1}.tar::/b/x.tar") == ["/a/0.tar", "/a/1.tar", "/b/x.tar"]
    for empty in ("", "::", "/a/0.tar::", "{,a}"):
        with pytest.raises(UserError, match="has an empty part; name shards"):
            expand_shards(empty)
    for unbalanced in ("/a/{000..002.tar", "/a/0}.tar::/b{", "/a/{{0..1}.tar"):
        with pytest.raises(UserError, match="unbalanced braces"):
            expand_shards(unbalanced)
    with pytest.raises(UserError, match=r"names /a/1\.tar more than once"):
        expand_shards("/a/{0..1}.tar::/a/1.tar")


def test_two_sources_keep_their_order(tmp_path):
    first, second = write_shards(tmp_path / "one", [2, 3]), write_shards(tmp_path / "two", [4])
    index = build_index(f"{second}::{first}", tmp_path / "index")
    assert index.counts.tolist() == [4, 2, 3]
    assert index.first_rows.tolist() == [0, 4, 6]


def test_workers_and_places_make_no_difference(tmp_path):
    pattern = write_shards(tmp_path / "shards", [3, 0, 5, 1, 2])
    indices = [build_index(pattern, tmp_path / f"index{workers}", workers=workers) for workers in (1, 2)]
    assert indices[0].shards == indices[1].shards
    assert indices[0].fingerprint == indices[1].fingerprint
    files = [(tmp_path / f"index{workers}" / "members.bin").read_bytes() for workers in (1, 2)]
    assert files[0] == files[1]
    (tmp_path / "shards").rename(tmp_path / "moved")
    moved = build_index(pattern.replace("shards", "moved"), tmp_path / "index3")
    assert moved.fingerprint == indices[0].fingerprint


def test_fingerprint_depends_on_the_data(tmp_path):
    def fingerprint(counts: list[int], name: str) -> str:
        return build_index(write_shards(tmp_path / name, counts), tmp_path / name / "index").fingerprint

    prints = [fingerprint(counts, str(n)) for n, counts in enumerate([[2, 3], [3, 2], [2, 4], [2, 3, 1]])]
    assert len(set(prints)) == 4


def test_progress_counts_shards(tmp_path):
    seen: list[tuple[int, int]] = []
    pattern = write_shards(tmp_path, [1, 1, 1])
    build_index(pattern, tmp_path / "index", progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize(
    ("name", "key", "extension"),
    [
        ("000.jpg", "000", "jpg"),
        ("a.b/000.JPG", "a.b/000", "jpg"),
        ("a/000.seg.png", "a/000", "seg.png"),
        ("a/000", "a/000", ""),
        ("./000.txt", "./000", "txt"),
    ],
)
def test_names_split_as_in_webdataset(name, key, extension):
    from webdataset.tariterators import base_plus_ext

    assert split_name(name) == (key, extension)
    assert base_plus_ext(name) in ((key, extension), (key, extension.upper()), (None, None))
