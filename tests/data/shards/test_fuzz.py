"""Tars that nobody should make: no crash, nothing written outside, and everything odd is reported."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.readers import MAX_PIXELS
from support.shards import BAD, bad, encoded, good, picture, write_shards, write_tar
from webdataset.compat import WebDataset

from flipscale.data.checks.cleaning import inside
from flipscale.data.checks.scan import Checking, ShardReport, check_shards, duplicates
from flipscale.data.shards.indexing import build_index
from flipscale.data.shards.source import ShardSource
from flipscale.errors import UserError

JPEG = encoded(picture(0))


def checked(path: Path, clean: Path | None = None) -> ShardReport:
    if clean is not None:
        clean.mkdir()
    (report,) = check_shards([str(path)], Checking(MAX_PIXELS, clean), 1)
    return report


def loaded(path: Path) -> list[str]:
    """The keys that webdataset itself loads from a tar, which refuses repeated ones."""
    return [sample["__key__"] for sample in WebDataset(str(path), shardshuffle=False)]


SHARD = [member for number in range(4) for member in good(number)]


@pytest.mark.slow
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_random_bytes_in_headers(tmp_path, data):
    """A shard whose headers are overwritten gives what is whole, or is refused in one sentence."""
    path = write_tar(tmp_path / "0.tar", SHARD)
    content = bytearray(path.read_bytes())
    with tarfile.open(path) as tar:
        headers = [member.offset for member in tar]
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.sampled_from(headers)) + data.draw(st.integers(0, 511))
        junk = data.draw(st.binary(min_size=1, max_size=40))
        content[at : at + len(junk)] = junk
    if data.draw(st.booleans()):  # with a right checksum, so that the header is believed
        start = data.draw(st.sampled_from(headers))
        content[start + 148 : start + 156] = b" " * 8
        content[start + 148 : start + 156] = b"%06o\0 " % sum(content[start : start + 512])
    path.write_bytes(content)
    clean = tmp_path / "clean"
    clean.mkdir(exist_ok=True)
    (report,) = check_shards([str(path)], Checking(MAX_PIXELS, clean), 1)
    assert report.damage or report.bad or report.samples >= 3
    try:
        index = build_index(str(path), tmp_path / "index")
    except UserError as error:
        refusal = str(error)
    else:
        refusal = ""
        source = ShardSource(index)
        assert index.samples == report.samples
        for ordinal in range(index.samples):
            source.key(0, ordinal)
            source.members(0, ordinal)
    assert "\n" not in refusal
    if report.written:
        assert len(loaded(clean / "000000.tar")) == report.written
    assert {entry.name for entry in tmp_path.iterdir()} <= {"0.tar", "clean", "index"}


def raw(path: Path, entries: list[tuple[str, bytes, bytes]], layout: int = tarfile.GNU_FORMAT) -> Path:
    """Write a tar of (name, type, content)."""
    with tarfile.open(path, "w", format=layout) as tar:
        for name, kind, content in entries:
            info = tarfile.TarInfo(name)
            info.type, info.size = kind, len(content)
            info.linkname = "../../etc/passwd" if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE) else ""
            tar.addfile(info, io.BytesIO(content))
    return path


FILE = tarfile.REGTYPE
LONG = "directory/" * 15 + "0"
ODD = {
    "names that lead outside": [("../../evil.jpg", FILE, JPEG), ("../../evil.txt", FILE, b"a cat")],
    "absolute names": [("/tmp/evil.jpg", FILE, JPEG), ("/tmp/evil.txt", FILE, b"a cat")],
    "links": [("0.jpg", tarfile.SYMTYPE, b""), ("0.png", tarfile.LNKTYPE, b""), ("0.txt", FILE, b"a")],
    "special files": [("0.jpg", tarfile.CHRTYPE, b""), ("0.txt", tarfile.FIFOTYPE, b"")],
    "long names (pax or GNU)": [(f"{LONG}.jpg", FILE, JPEG), (f"{LONG}.txt", FILE, b"a cat")],
    "archives inside": [("0.tar", FILE, b"x" * 600), ("0.jpg", FILE, JPEG), ("0.txt", FILE, b"a cat")],
    "empty members": [("0.jpg", FILE, b""), ("0.txt", FILE, b"")],
}


@pytest.mark.parametrize("layout", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("kind", ODD)
def test_every_oddity_is_reported_and_goes_nowhere(tmp_path, kind, layout):
    (tmp_path / "deep" / "er").mkdir(parents=True)
    entries = [(name, FILE, content) for name, content in good(5)]
    path = raw(tmp_path / "deep" / "er" / "0.tar", [*ODD[kind], *entries], layout)
    before = path.read_bytes()
    report = checked(path, tmp_path / "deep" / "er" / "clean")
    assert report.oddities["names that lead outside" if kind == "absolute names" else kind] >= 1
    assert path.read_bytes() == before
    files = {str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*") if file.is_file()}
    assert files == {"deep/er/0.tar", "deep/er/clean/000000.tar"}
    assert not Path("/tmp/evil.jpg").exists()
    keys = loaded(tmp_path / "deep" / "er" / "clean" / "000000.tar")
    assert len(keys) == report.written == report.samples - len(report.bad)
    assert not any(key.startswith("/") or ".." in key.split("/") for key in keys)


def test_keys_stay_inside():
    assert [inside(key) for key in ("../../a", "/etc/x", "a/./b/../c", "..", "./d/0")] == [
        "a",
        "etc/x",
        "a/b/c",
        "",
        "d/0",
    ]


def test_clean_shards_hold_the_good_samples_with_all_their_members(tmp_path):
    kinds = list(BAD)
    members = [("before.json", b"{}")]
    for number, kind in enumerate(kinds):
        members += [*bad(kind, f"bad{number}"), *good(number), (f"{number:09d}.json", b'{"n": %d}' % number)]
    members += [("x.json", b"7"), ("x.jpg", JPEG), ("x.txt", b"a cat"), ("x.cls", b"3")]
    members += [*good(0, "x"), *good(1, "../x")]  # the key again, and what would become it
    path = write_tar(tmp_path / "0.tar", members)
    report = checked(path, tmp_path / "clean")
    assert report.samples == 2 * len(kinds) + 3
    assert len(report.bad) == len(kinds)
    assert report.repeated_keys == ["x"]
    clean = tmp_path / "clean" / "000000.tar"
    assert loaded(clean) == [*(f"{number:09d}" for number in range(len(kinds))), "x"]
    with tarfile.open(clean) as tar:
        # pyrefly: ignore[missing-attribute]: all are files
        contents = {member.name: tar.extractfile(member).read() for member in tar}
    assert contents["000000003.json"] == b'{"n": 3}'
    assert contents["x.jpg"] == JPEG
    assert (contents["x.json"], contents["x.cls"]) == (b"7", b"3")
    again = checked(clean)
    assert (again.samples, again.bad, again.damage, again.repeated_keys) == (len(kinds) + 1, [], None, [])


def test_a_cut_shard_gives_its_whole_samples(tmp_path):
    path = write_tar(tmp_path / "0.tar", SHARD)
    os.truncate(path, path.stat().st_size - 10_000)
    report = checked(path, tmp_path / "clean")
    assert report.damage is not None
    assert 0 < report.written == report.samples < 4
    assert len(loaded(tmp_path / "clean" / "000000.tar")) == report.written
    (tmp_path / "none.tar").write_text("no tar" * 1000)
    nothing = checked(tmp_path / "none.tar")
    assert (nothing.samples, nothing.damage is not None) == (0, True)


def test_duplicates_over_all_shards(tmp_path):
    pattern = write_shards(tmp_path, [4, 3])
    write_tar(tmp_path / "00001.tar", [*good(2), *good(9), ("new.jpg", good(1)[0][1]), ("new.txt", b"a")])
    paths = [str(tmp_path / "00000.tar"), str(tmp_path / "00001.tar")]
    reports = list(check_shards(paths, Checking(MAX_PIXELS), 2))
    hashes = np.concatenate([report.hashes for report in reports])
    assert duplicates(hashes[:, 0]).tolist() == [4]  # the key of sample 2 of the first shard
    assert duplicates(hashes[:, 1]).tolist() == [4, 6]
    assert duplicates(np.array([0, 0, 5, 0, 5, 5], np.uint64)).tolist() == [4, 5]
    assert pattern.endswith("{00000..00001}.tar")
