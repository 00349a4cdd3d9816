"""The one reader of tar headers: equal to tarfile on what writers make, bounded on what they do not."""

from __future__ import annotations

import io
import random
import tarfile
from pathlib import Path

import pytest
from support.hostile_tars import END, CountingFile, checked, file, files, header, padded, pax
from support.shards import good, write_tar

from flipscale.data.checks.scan import Checking, check_shards
from flipscale.data.quarantine import BadSample
from flipscale.data.shards.indexing import build_index
from flipscale.data.shards.source import Column, ShardSource
from flipscale.data.shards.tar import NotATar, scan
from flipscale.data.shards.tar_members import MAX_HEADER_BYTES, MAX_HEADERS, TarDamage, read_members
from flipscale.errors import UserError
from flipscale.evaluation.samples import ShardMember
from flipscale.evaluation.shards import read_shards

MIB = 1 << 20
FORMATS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]


def random_tar(draw: random.Random, layout: int) -> bytes:
    """Return a tar of members of all types, with names short, long and not ASCII."""
    stream = io.BytesIO()
    types = [tarfile.REGTYPE] * 6 + [tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE]
    with tarfile.open(fileobj=stream, mode="w", format=layout) as tar:
        for _ in range(draw.randrange(12)):
            folder = draw.choice(["", "a/", "./b.c/", "é/", "d" * 60 + "/"])
            base = draw.choice(["0", "x" * 90, "ключ", "y" * 140 if layout != tarfile.USTAR_FORMAT else "y"])
            info = tarfile.TarInfo(f"{folder}{base}.{draw.choice(['jpg', 'TXT', 'cls', 'json'])}")
            info.type = draw.choice(types)
            info.linkname = "z" * 150 if layout != tarfile.USTAR_FORMAT else "z"
            info.mtime = draw.choice([0, 12.5])
            info.size = draw.choice([0, 1, 511, 512, 513, 3000]) if info.isreg() else 0
            tar.addfile(info, io.BytesIO(draw.randbytes(info.size)))
    return stream.getvalue()


@pytest.mark.parametrize("layout", FORMATS)
def test_members_are_those_that_tarfile_finds(layout):
    draw = random.Random(layout)
    for _ in range(100):
        content = random_tar(draw, layout)
        with tarfile.open(fileobj=io.BytesIO(content), encoding="utf-8") as tar:
            expected = [(m.name.rstrip("/"), m.type, m.offset_data, m.size) for m in tar]
        found = [(m.name, m.type, m.offset, m.size) for m in read_members(io.BytesIO(content))]
        assert found == expected


def test_sparse_files_are_skipped_whole():
    """A GNU sparse file has more headers behind its own; a pax one has its map in front of its content."""
    sparse = bytearray(header("0.jpg", 512, tarfile.GNUTYPE_SPARSE))
    sparse[482] = 1
    more = bytearray(512)
    more[504] = 1
    old = checked(sparse) + bytes(more) + bytes(512) + bytes(512)
    new = file("p", pax("GNU.sparse.major", "1") + pax("GNU.sparse.name", "x"), tarfile.XHDTYPE)
    new += file("1.jpg", b"1\n0\n5\nhello")
    found = list(read_members(io.BytesIO(old + new + file("2.txt", b"a cat") + END)))
    assert [(member.name, member.is_file) for member in found] == [
        ("0.jpg", False),
        ("1.jpg", False),
        ("2.txt", True),
    ]


@pytest.mark.parametrize("name", ["x.json", "x.jpg", "x.txt", "x.cls", "000000001.json"])
@pytest.mark.parametrize("size", [-512, -1, -(2**63), 2**70])
def test_impossible_sizes_end_the_shard_for_every_reader(tmp_path, name, size):
    """A negative size moved the reader backwards, so that training and evaluation read for ever."""
    path = tmp_path / "0.tar"
    path.write_bytes(files(good(0) + good(1)) + header(name, size) + files(good(2)) + END)
    index = build_index(str(path), tmp_path / "index")
    # The sample before the member is used only if the member shows that it is whole.
    assert index.samples == (1 if name.endswith("json") else 2)
    (damage,) = index.damaged
    assert damage.reason.startswith("a member of -" if size < 0 else "unexpected end of data")
    source = ShardSource(index)
    for ordinal in range(index.samples):
        assert set(source.members(0, ordinal)) == {"jpg", "txt"}
    (report,) = check_shards([str(path)], Checking(10**6), 1)
    assert report.damage == damage.reason
    with pytest.raises(UserError, match="cannot be read whole"):
        list(read_shards(str(path)))


def test_members_of_a_sample_end_before_an_impossible_size(tmp_path):
    """An index of an older version, or of statistics, may have samples around such a member."""
    first, second = files(good(0)), files(good(1))
    path = tmp_path / "0.tar"
    path.write_bytes(first + file("x.json", b"") + second + END)
    source = ShardSource(build_index(str(path), tmp_path / "index"))
    path.write_bytes(first + header("x.json", -512) + second + END)
    assert set(source.members(0, 0)) == {"jpg", "txt"}
    assert dict(source.members(0, 1)) == {}


CHAINS = {
    "GNU names": file("././@LongLink", b"0.txt", tarfile.GNUTYPE_LONGNAME),
    "GNU links": file("././@LongLink", b"0.txt", tarfile.GNUTYPE_LONGLINK),
    "pax": file("p", pax("path", "0.txt"), tarfile.XHDTYPE),
    "pax of all": file("p", pax("comment", "no"), tarfile.XGLTYPE),
}


@pytest.mark.parametrize("kind", CHAINS)
def test_chains_of_headers_are_bounded(tmp_path, kind):
    path = tmp_path / "0.tar"
    tail = files(good(1)) + END
    path.write_bytes(files(good(0)) + CHAINS[kind] * 5000 + tail)
    with open(path, "rb") as stream:
        damage = scan(stream).damage
    assert damage is not None
    assert f"more than {MAX_HEADERS} headers for one member" in damage
    with pytest.raises(UserError, match=f"cannot be read whole .more than {MAX_HEADERS} headers"):
        list(read_shards(str(path)))
    (report,) = check_shards([str(path)], Checking(10**6), 1)
    assert report.damage == damage
    # The few that writers make are read. The first one decides, as in tarfile.
    short = CHAINS[kind] + file("q", pax("path", "late.txt"), tarfile.XHDTYPE)
    content = short + file("own.txt", b"a") + END
    (member,) = read_members(io.BytesIO(content))
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        assert [member.name] == tar.getnames()


@pytest.mark.parametrize(
    "type", [tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE]
)
@pytest.mark.parametrize("size", [MAX_HEADER_BYTES + 1, 5 << 30, -512])
def test_headers_of_gigabytes_are_not_read(type, size):
    stream = CountingFile(header("x", size, type) + bytes(1 << 20), declared=8 << 30)
    with pytest.raises(TarDamage, match=rf"a header of {size} bytes at byte 0, more than {MAX_HEADER_BYTES}"):
        list(read_members(stream))
    assert stream.largest == 512


def test_a_map_of_a_sparse_file_without_end_is_damage():
    sparse = bytearray(header("0.jpg", 0, tarfile.GNUTYPE_SPARSE))
    sparse[482] = 1
    more = bytearray(512)
    more[504] = 1
    with pytest.raises(TarDamage, match="unexpected end of data"):
        list(read_members(io.BytesIO(checked(sparse) + bytes(more) * 5000)))


@pytest.mark.parametrize(
    "content",
    [
        b"no records",
        b"9999 path=x\n",
        b"7 path=\n",
        b"0 path=x\n",
        pax("size", "-512"),
        pax("size", "many"),
        pax("size", "9" * 30),
    ],
)
def test_malformed_pax_headers_are_damage(content):
    tar = file("p", content, tarfile.XHDTYPE) + file("0.txt", b"a cat") + END
    with pytest.raises(TarDamage, match="a malformed pax header at byte 0"):
        list(read_members(io.BytesIO(tar)))


def test_a_pax_header_gives_a_size_of_its_own():
    tar = file("p", pax("size", "5") + pax("path", "0.txt"), tarfile.XHDTYPE)
    tar += header("x", 0) + padded(b"a cat") + file("1.txt", b"b") + END
    assert [(member.name, member.size) for member in read_members(io.BytesIO(tar))] == [
        ("0.txt", 5),
        ("1.txt", 1),
    ]


@pytest.mark.parametrize("record", [pax("path", "x"), pax("size", "1"), pax("GNU.sparse.size", "1")])
def test_a_pax_header_that_names_all_members_is_damage(record):
    tar = file("p", record, tarfile.XGLTYPE) + file("0.txt", b"a cat") + END
    with pytest.raises(TarDamage, match="names all members"):
        list(read_members(io.BytesIO(tar)))


def test_names_are_bounded():
    tar = file("././@LongLink", b"x" * 5000, tarfile.GNUTYPE_LONGNAME) + file("0.txt", b"a cat") + END
    with pytest.raises(TarDamage, match="a name of more than 4096 bytes at byte 5632"):
        list(read_members(io.BytesIO(tar)))


@pytest.mark.parametrize(
    ("extension", "kind", "limit"),
    [("jpg", "image", 256 * MIB), ("txt", "caption", MIB), ("cls", "label", MIB), ("json", "json", 16 * MIB)],
)
def test_members_of_gigabytes_are_not_read(tmp_path, extension, kind, limit):
    """The file is sparse: the member has the size that its header declares."""
    size = 3 << 30
    image, text = good(0)
    own = header(f"{image[0][:-4]}.{extension}", size)
    others = [member for member in (image, text) if not member[0].endswith(extension)]
    path = tmp_path / "0.tar"
    with open(path, "wb") as tar:
        tar.write(files(others) + own)
        tar.seek(size, 1)
        tar.write(files(good(1)) + END)
    source = ShardSource(build_index(str(path), tmp_path / "index"))
    assert source.index.samples == 2
    reason = f"the {kind} has {size} bytes, more than {limit}"
    with pytest.raises(BadSample, match=reason):
        source.members(0, 0)[extension]
    if kind != "json":
        columns: dict[str, Column] = {"image": "image", "caption": "text", "label": "cls"}
        with pytest.raises(BadSample, match=reason):
            source.content(0, 0, columns[kind])
        bad = [reason] if kind != "label" else []
        (report,) = check_shards([str(path)], Checking(10**6), 1)
        assert [record.reason for record in report.bad] == bad
    samples = read_shards(str(path))
    if kind == "image":
        image = next(samples).image
        assert isinstance(image, ShardMember)
        with pytest.raises(BadSample, match=reason):
            image.read_bytes()
    elif kind != "json":
        with pytest.raises(UserError, match=reason):
            next(samples)
    assert source.content(0, 1, "text") == good(1)[1][1]


def mutated(draw: random.Random, whole: bytes, headers: list[int]) -> bytes:
    """Return a tar with damaged headers, of which some have right checksums."""
    content = bytearray(whole)
    for _ in range(draw.randrange(1, 5)):
        start = draw.choice(headers)
        at = start + draw.choice([draw.randrange(512), 124 + draw.randrange(12), 156])
        junk = draw.choice([b"L", b"x", b"g", b"S", b"\xff" * 12, b"\x80" + bytes(11), draw.randbytes(4)])
        content[at : at + len(junk)] = junk
        if draw.random() < 0.8:
            content[start : start + 512] = checked(content[start : start + 512])
    if draw.random() < 0.2:
        del content[draw.randrange(len(content)) :]
    return bytes(content)


def mutate_tars(folder: Path, count: int, seed: int) -> None:
    """Read mutations of tars as index, training and evaluation do, and check that their answers agree."""
    draw = random.Random(seed)
    whole: bytes = b""
    headers: list[int] = []
    for number in range(count):
        if number % 100 == 0:
            layout = draw.choice(FORMATS)
            members = [(f"{'k' * draw.choice([1, 120])}/{n}.{e}", draw.randbytes(draw.randrange(900)))
                       for n in range(4) for e in ("jpg", "json", "txt")]  # fmt: skip
            if layout == tarfile.USTAR_FORMAT:
                members = [(name[-9:], content) for name, content in members]
            whole = write_tar(folder / "whole.tar", members, layout).read_bytes()
            with tarfile.open(folder / "whole.tar") as tar:
                headers = [member.offset for member in tar]
        content = mutated(draw, whole, headers)

        stream = CountingFile(content)
        try:
            scanned = scan(stream)
        except NotATar:
            continue
        assert stream.largest <= MAX_HEADER_BYTES
        assert stream.reads <= len(content) / 512 + 4
        for row in scanned.members:
            for column in ("image", "text", "cls"):
                assert int(row[column]) + int(row[f"{column}_bytes"]) <= len(content)

        path = folder / "mutated.tar"
        path.write_bytes(content)
        try:
            evaluated = list(read_shards(str(path)))
        except UserError:
            assert scanned.damage is not None
            continue
        assert scanned.damage is None
        assert len(evaluated) >= len(scanned.keys)


def test_mutated_tars(tmp_path):
    mutate_tars(tmp_path, 400, seed=1)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(10, 20))
def test_many_mutated_tars(tmp_path, seed):
    mutate_tars(tmp_path, 5000, seed)
