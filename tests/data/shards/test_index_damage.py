"""The index of damaged tars: whole samples are used, and every loss is reported."""

from __future__ import annotations

import gzip
import os
import tarfile
from pathlib import Path

import pytest
from support.indices import indexed, refused
from support.shards import good, write_tar

from flipscale.data.shards.index import Index
from flipscale.data.shards.index_document import load_index
from flipscale.data.shards.indexing import build_index
from flipscale.errors import UserError


def captions(index: Index) -> list[bytes]:
    """Return the captions that the index gives, in order."""
    data = {shard.path: Path(shard.path).read_bytes() for shard in index.shards}
    paths = [shard.path for shard in index.shards for _ in range(shard.samples)]
    rows = [(int(row["text"]), int(row["text_bytes"])) for row in index.members]
    return [data[path][start : start + size] for path, (start, size) in zip(paths, rows, strict=True)]


def offsets(path: Path) -> list[tuple[str, int, int]]:
    """Return the name, offset of the header and offset of the data of every member."""
    with tarfile.open(path) as tar:
        return [(member.name, member.offset, member.offset_data) for member in tar]


# The place of the cut in a tar of four samples, as (member, bytes after its header's offset), and the whole
# samples before it.
CUTS = {
    "in the data of the first image": (("0.jpg", 600), 0),
    "in the data of an image": (("2.jpg", 600), 2),
    "in the data of a caption": (("2.txt", 514), 2),
    "in the padding of a caption": (("2.txt", 800), 2),
    "in a header": (("2.jpg", 100), 1),
    "between image and caption": (("2.txt", 0), 2),
    "between samples": (("2.jpg", 0), 1),
    "before the end mark": (("end", 0), 3),
    "in the end mark": (("end", 100), 3),
}


@pytest.mark.parametrize("cut", CUTS)
def test_whole_samples_of_a_cut_tar_are_used(tmp_path, cut):
    """Samples that are known to be whole are used; the one at the cut is not, and the cut is reported."""
    (member, further), whole = CUTS[cut]
    path = write_tar(tmp_path / "cut.tar", [m for n in range(4) for m in good(n, str(n))])
    write_tar(tmp_path / "whole.tar", good(9, "9"))
    size = max(start for _, _, start in offsets(path))
    starts = {name: header for name, header, _ in offsets(path)}
    starts["end"] = size + 512
    os.truncate(path, starts[member] + further)
    index = build_index(str(tmp_path / "{cut,whole}.tar"), tmp_path / "index")
    assert index.counts.tolist() == [whole, 1]
    assert captions(index) == [good(n)[1][1] for n in (*range(whole), 9)]
    (damage,) = index.damaged
    assert (damage.path, damage.samples) == (str(path), whole)
    assert damage.reason.endswith(f"after {whole} samples")
    assert load_index(tmp_path / "index") == index


@pytest.mark.parametrize("change", ["garbage", "zeros", "one bit"])
def test_a_header_overwritten_in_the_middle_is_not_the_end(tmp_path, change):
    """Python's tarfile takes an unreadable header for the end of the archive, and loses the rest silently."""
    path = write_tar(tmp_path / "0.tar", [m for n in range(4) for m in good(n, str(n))])
    data = bytearray(path.read_bytes())
    start = {name: header for name, header, _ in offsets(path)}["2.jpg"]
    if change == "one bit":
        data[start + 3] ^= 1
    else:
        data[start : start + 512] = (b"\xff" if change == "garbage" else b"\0") * 512
    path.write_bytes(data)
    index = indexed(path)
    assert index.samples == 1
    assert [damage.samples for damage in index.damaged] == [1]


def test_a_tar_appended_to_another_is_reported(tmp_path):
    path, other = write_tar(tmp_path / "0.tar", good(0) + good(1)), write_tar(tmp_path / "1.tar", good(2))
    path.write_bytes(path.read_bytes() + other.read_bytes())
    assert "more data behind the end mark" in indexed(path).damaged[0].reason


@pytest.mark.parametrize(
    "field", [(b"\xff" * 12, b"0"), (b"\x80" + b"\x7f" * 11, b"0"), (b"\xff" * 12, b"x")]
)
def test_absurd_sizes_in_a_header_are_reported(tmp_path, field):
    """The sizes are negative or huge, in the header of a file or of pax; the checksum is right."""
    path = write_tar(tmp_path / "0.tar", [m for n in range(3) for m in good(n, str(n))])
    data = bytearray(path.read_bytes())
    start = {name: header for name, header, _ in offsets(path)}["2.jpg"]
    data[start + 124 : start + 136], data[start + 156 : start + 157] = field
    data[start + 148 : start + 156] = b" " * 8
    data[start + 148 : start + 156] = b"%06o\0 " % sum(data[start : start + 512])
    path.write_bytes(data)
    index = indexed(path)
    assert index.samples == (1 if field[1] == b"x" else 2)
    assert [damage.samples for damage in index.damaged] == [index.samples]


def test_files_other_than_tar_are_refused(tmp_path):
    whole = write_tar(tmp_path / "whole.tar", good(0))
    (tmp_path / "text.tar").write_text("not a tar\n" * 1000)
    (tmp_path / "empty.tar").write_bytes(b"")
    (tmp_path / "gz.tar").write_bytes(gzip.compress(whole.read_bytes()))
    for name in ("text", "empty", "gz"):
        path = tmp_path / f"{name}.tar"
        assert f"{path} is not an uncompressed tar file" in refused(str(path), tmp_path / "index")
        # A worker process raises the same sentence.
        with pytest.raises(UserError, match="is not an uncompressed tar file") as refusal:
            build_index(str(tmp_path / f"{{whole,{name}}}.tar"), tmp_path / "index", workers=2)
        assert "\n" not in str(refusal.value)
    with pytest.raises(UserError, match="there is no index"):
        load_index(tmp_path / "index")


def test_set_without_a_sample_is_refused(tmp_path):
    write_tar(tmp_path / "0.tar", [])
    write_tar(tmp_path / "1.tar", [("0.json", b"{}")])
    assert "holds image-caption pairs" in refused(str(tmp_path / "{0..1}.tar"), tmp_path / "index")
    os.truncate(write_tar(tmp_path / "2.tar", good(0)), 600)
    sentence = refused(str(tmp_path / "{0..2}.tar"), tmp_path / "index")
    assert f"{tmp_path / '2.tar'} is damaged" in sentence
    # An empty shard among others is allowed.
    write_tar(tmp_path / "3.tar", good(1))
    assert build_index(str(tmp_path / "{0..3}.tar"), tmp_path / "index").counts.tolist() == [0, 0, 0, 1]
