"""`data check` decodes everything and counts what training could not use."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter

import pytest
from support.readers import MAX_PIXELS
from support.shards import BAD, Member, encoded, good, picture, write_shards, write_tar

from flipscale.data.checks.scan import Checking, check_shards
from flipscale.data.quarantine import BadSample
from flipscale.data.samples import decode
from flipscale.data.samples.captions import CaptionFields, Captions
from flipscale.data.samples.isolation import IsolatedDecoder
from flipscale.data.shards.index import Index, expand_shards
from flipscale.data.shards.indexing import build_index
from flipscale.data.shards.source import ShardSource
from flipscale.errors import RunError, UserError

IMAGE = encoded(picture(0))


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    """Three shards with every kind of damage; the last one is cut in its last sample."""
    root = tmp_path_factory.mktemp("check")
    bad_at = {(n % 2, n): kind for n, kind in enumerate(BAD)}
    pattern = write_shards(root, [16, 16, 3], bad_at)
    os.truncate(root / "00002.tar", (root / "00002.tar").stat().st_size - 9000)
    return build_index(pattern, root / "index")


@pytest.mark.parametrize("workers", [1, 2])
def test_every_damage_is_found_with_its_reason(index, workers):
    paths = [shard.path for shard in index.shards]
    reports = list(check_shards(paths, Checking(MAX_PIXELS), workers))
    assert [report.shard for report in reports] == [0, 1, 2]
    assert [report.samples for report in reports] == index.counts.tolist()
    assert [report.damage is not None for report in reports] == [False, False, True]
    found = {(record.shard, record.ordinal): record for report in reports for record in report.bad}
    assert sorted(found) == sorted((n % 2, n) for n in range(len(BAD)))
    for n, (_, _, reason) in enumerate(BAD.values()):
        record = found[n % 2, n]
        assert reason in record.reason
        assert record.key == f"{n % 2 * 10_000 + n:09d}"
        assert record.path == index.shards[n % 2].path
    good = index.samples - len(BAD)
    assert sum((report.sides for report in reports), Counter()) == {30: good}
    assert sum((report.caption_words for report in reports), Counter()) == {4: good}


def test_the_limit_on_pixels_is_the_callers(index):
    paths = [shard.path for shard in index.shards]
    reports = list(check_shards(paths, Checking(40 * 30 - 1), 1))
    assert all(not report.sides for report in reports)
    assert sum(len(report.bad) for report in reports) == index.samples


@pytest.mark.parametrize("place", range(4))
def test_clean_shards_hold_a_second_image_of_a_key(tmp_path, place):
    """In a set with KEY.jpg and KEY.png, the captions belong to one of them; its json may be anywhere."""
    image, other = encoded(picture(0)), encoded(picture(1), "PNG")
    members: list[Member] = []
    for n in range(8):
        sample = [(f"{n}.jpg", image), (f"{n}.png", other), (f"{n}.txt", b"a cat")]
        sample.insert(place, (f"{n}.json", json.dumps({"a": f"caption {n}"}).encode()))
        members += sample
    path = str(write_tar(tmp_path / "0.tar", members))

    for captions in ({"txt": 1.0}, {"json.a": 1.0}, {"txt": 1.0, "json.a": 1.0}):
        clean = tmp_path / "-".join(captions)
        clean.mkdir()
        checking = Checking(MAX_PIXELS, clean, captions=captions)
        (report,) = check_shards([path], checking, 1)
        assert report.written == 8
        (again,) = check_shards([str(clean / "000000.tar")], checking, 1)
        assert (again.samples, again.bad, again.repeated_keys) == (8, [], [])


def test_captions_are_those_that_training_reads(tmp_path):
    """A check of txt would call all of them unusable."""
    samples = [
        [("0.jpg", IMAGE), ("0.json", b'{"caption": "a red cat"}')],
        [("1.jpg", IMAGE), ("1.json", b'{"caption": ""}'), ("1.alt.txt", b"a cat")],
        [("2.jpg", IMAGE), ("2.json", b"{}")],
        [("3.syn.json", b'{"texts": ["", "a blue dog", "a dog"]}'), ("3.jpg", IMAGE)],
    ]
    path = write_tar(tmp_path / "0.tar", [member for sample in samples for member in sample])
    captions = {"json.caption": 1.0, "alt.txt": 1.0, "syn.json.texts": 1.0, "json.captoin": 1.0}
    (report,) = check_shards([str(path)], Checking(MAX_PIXELS, captions=captions), 1)
    assert report.captions == {"json.caption": 1, "alt.txt": 1, "syn.json.texts": 1, "json.captoin": 0}
    assert [record.ordinal for record in report.bad] == [2]

    source = ShardSource(build_index(str(path), tmp_path / "index"))
    reader = Captions(CaptionFields(captions), source)
    for ordinal in range(4):
        if ordinal == 2:
            with pytest.raises(BadSample) as caught:
                reader.caption(0, ordinal, 0)
            assert report.bad[0].reason == str(caught.value)
        else:
            assert reader.caption(0, ordinal, 0).text in ("a red cat", "a cat", "a blue dog", "a dog")


@pytest.mark.parametrize("workers", [1, 2])
def test_a_sample_that_crashes_the_decoder_is_named(tmp_path, monkeypatch, workers):
    """The signal stands in for a fault of a library: no installed one crashes on cue."""
    culprit = encoded(picture(3), "PNG")

    def turbo(image, scale):
        if image.data == culprit:
            os.kill(os.getpid(), signal.SIGSEGV)

    pattern = write_shards(tmp_path, [6, 6])
    members = [member for number in range(6) for member in good(number)]
    members[2 * 4] = ("000000004.png", culprit)
    write_tar(tmp_path / "00001.tar", members)
    monkeypatch.setattr(decode, "_turbo_decoded", turbo)
    first, second = check_shards(expand_shards(pattern), Checking(MAX_PIXELS), workers)
    assert first.bad == []
    (record,) = second.bad
    assert (record.ordinal, record.key) == (4, "000000004")
    assert record.reason == "the image crashes the decoder (Segmentation fault)"
    assert second.sides == {30: 5}


def test_a_decoder_that_was_killed_is_not_a_verdict():
    reason = "ended with -9; if the memory of this machine is full"
    killed = IsolatedDecoder(lambda data: os.kill(os.getpid(), signal.SIGKILL) or 0)
    with killed, pytest.raises(RunError, match=reason):
        killed(b"an image")


def test_a_decoder_answers_in_order_with_numbers_and_errors():
    def work(data: bytes) -> int:
        if data == b"bad":
            raise BadSample("no image")
        if data == b"wrong":
            raise UserError("install it")
        if data == b"crash":
            os.abort()
        return len(data)

    with IsolatedDecoder(work) as decoder:
        assert decoder(b"x" * 10_000_000) == 10_000_000
        for data, error in ((b"bad", "no image"), (b"crash", r"crashes the decoder \(Aborted\)")):
            with pytest.raises(BadSample, match=error):
                decoder(data)
            assert decoder(b"") == 0
        with pytest.raises(UserError, match="install it"):
            decoder(b"wrong")


def test_what_is_not_a_tar_is_reported_with_all_sources_and_without_waiting(tmp_path):
    (tmp_path / "page.tar").write_text("<html>404</html>")
    (report,) = check_shards([str(tmp_path / "page.tar")], Checking(MAX_PIXELS), 1)
    assert report.damage is not None
    assert report.captions == {"txt": 0}

    os.mkfifo(tmp_path / "pipe.tar")
    with pytest.raises(UserError, match=r"pipe.tar cannot be read \(it is not a regular file\)"):
        list(check_shards([str(tmp_path / "pipe.tar")], Checking(MAX_PIXELS), 1))
