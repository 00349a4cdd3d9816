"""Evaluation shards that are damaged, hostile or of another tar dialect: no half sets, no links followed."""

import io
import tarfile

import pytest
from support.evaluation_samples import encoded, noise, swatch, write_tar

from flipscale.errors import UserError
from flipscale.evaluation.shards import read_shards


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> bytes:
    members = []
    for n in range(4):
        members += [(f"{n}.png", encoded(noise(n, 24, 24))), (f"{n}.cls", b"1")]
    return write_tar(tmp_path_factory.mktemp("whole") / "a.tar", members).read_bytes()


def member_ends(data: bytes) -> list[int]:
    """The offsets at which the blocks of the members end."""
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return [m.offset_data + -(-m.size // 512) * 512 for m in tar]


def test_truncated_shard_is_reported_wherever_it_is_cut(tmp_path, whole):
    """A cut between two members is reported too, which tarfile itself takes for the end."""
    end = member_ends(whole)[-1]
    cuts = sorted({*range(0, end, 97), *range(0, end + 1, 512), end - 1})
    path = tmp_path / "a.tar"
    for cut in cuts:
        path.write_bytes(whole[:cut])
        with pytest.raises(UserError, match=r"the evaluation shard .*a\.tar cannot be read whole"):
            list(read_shards(str(path)))


def test_damaged_header_is_reported(tmp_path, whole):
    path = tmp_path / "a.tar"
    for start in [0, *member_ends(whole)[:-1]]:
        data = bytearray(whole)
        data[start + 150] ^= 0xFF  # in the checksum field
        path.write_bytes(data)
        with pytest.raises(UserError, match="cannot be read whole"):
            list(read_shards(str(path)))


def test_member_that_claims_a_terabyte_is_refused_before_it_is_read(tmp_path):
    info = tarfile.TarInfo("1.png")
    info.size = 2**40
    (tmp_path / "a.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(2048))
    with pytest.raises(UserError, match="unexpected end of data"):
        list(read_shards(str(tmp_path / "a.tar")))


def test_file_that_cannot_be_a_shard_is_reported(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"hello " * 1000)
    with tarfile.open(tmp_path / "b.tar", "w:gz"):
        pass
    for name in ("a.tar", "b.tar"):
        with pytest.raises(UserError, match="cannot be read whole"):
            list(read_shards(str(tmp_path / name)))
    with pytest.raises(UserError, match=r"shard .*02\.tar is not a file"):
        list(read_shards(str(tmp_path / "{02..03}.tar")))
    with pytest.raises(UserError, match="unbalanced braces"):
        list(read_shards(str(tmp_path / "{02..03.tar")))
    (tmp_path / "c.tar").mkdir()
    with pytest.raises(UserError, match="is not a file"):
        list(read_shards(str(tmp_path / "c.tar")))


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_other_tar_dialects_and_folders_in_tars_are_read(tmp_path, format):
    with tarfile.open(tmp_path / "a.tar", "w", format=format) as tar:
        folder = tarfile.TarInfo("folder.png")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for name, data in [
            ("folder/" + "n" * 90 + ".png", swatch("red")),
            ("folder/" + "n" * 90 + ".cls", b"4"),
        ]:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    assert [sample.label for sample in read_shards(str(tmp_path / "a.tar"))] == [b"4"]


def test_links_in_a_tar_are_not_followed(tmp_path):
    (tmp_path / "secret.txt").write_text("secret")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        info = tarfile.TarInfo("1.png")
        info.size = len(swatch("red"))
        tar.addfile(info, io.BytesIO(swatch("red")))
        link = tarfile.TarInfo("1.txt")
        link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path / "secret.txt")
        tar.addfile(link)
    assert [sample.caption for sample in read_shards(str(tmp_path / "a.tar"))] == [None]
