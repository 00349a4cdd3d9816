"""Making an index: a killed command resumes, and statistics replace the scan of tars."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
from support.shards import caption, good, write_shards, write_tar

from flipscale.data.quarantine import BadSample
from flipscale.data.shards import indexing
from flipscale.data.shards.index import Damage, Index, Shard
from flipscale.data.shards.index_document import load_index, write_index
from flipscale.data.shards.indexing import build_index
from flipscale.data.shards.journal import IndexKind
from flipscale.data.shards.source import ShardSource
from flipscale.errors import UserError


def _build_until_killed(pattern: str, directory: Path, shards: int, members: bool) -> None:
    indexing._RECORDED_AT_ONCE = 4  # pyrefly: ignore[bad-assignment]: the constant of this process

    def progress(done: int, total: int) -> None:
        if done == shards:
            os.kill(os.getpid(), signal.SIGKILL)

    build_index(pattern, directory, kind=IndexKind(members=members), progress=progress)


def kill_after(shards: int, pattern: str, directory: Path, members: bool = True) -> None:
    arguments = (pattern, directory, shards, members)
    process = multiprocessing.get_context("fork").Process(target=_build_until_killed, args=arguments)
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL


@pytest.mark.parametrize("members", [True, False])
def test_killed_index_resumes_where_it_stopped(tmp_path, members):
    pattern = write_shards(tmp_path / "shards", [1, 2, 0, 1, 2, 1, 1, 3, 1, 2])
    os.truncate(tmp_path / "shards" / "00001.tar", 9000)
    whole = build_index(pattern, tmp_path / "straight", kind=IndexKind(members=members))
    kill_after(6, pattern, tmp_path / "index", members)
    with pytest.raises(UserError, match="there is no index"):
        load_index(tmp_path / "index")
    kill_after(9, pattern, tmp_path / "index", members)
    seen: list[tuple[int, int]] = []
    again = build_index(
        pattern,
        tmp_path / "index",
        kind=IndexKind(members=members),
        progress=lambda done, total: seen.append((done, total)),
        workers=2,
    )
    assert seen == [(8, 10), (9, 10), (10, 10)]
    assert (again.shards, again.damaged) == (whole.shards, whole.damaged)
    if members:
        assert again.members.tolist() == whole.members.tolist()
    assert not (tmp_path / "index" / "journal.jsonl").exists()


@pytest.mark.parametrize("change", ["shard", "order", "kind", "table", "journal"])
def test_what_changed_since_the_kill_is_scanned_again(tmp_path, change):
    pattern = write_shards(tmp_path / "shards", [1, 2, 1, 1, 2, 1])
    kill_after(5, pattern, tmp_path / "index")
    members = change != "kind"
    if change == "shard":
        write_tar(tmp_path / "shards" / "00001.tar", good(5) + good(6) + good(7))
    elif change == "order":
        pattern = pattern.replace("{00000..00005}", "{00000,00002,00001}")
    elif change == "table":
        os.truncate(tmp_path / "index" / "members.bin", 50)
    elif change == "journal":
        path = tmp_path / "index" / "journal.jsonl"
        path.write_bytes(path.read_bytes()[:-30])
    again = build_index(pattern, tmp_path / "index", kind=IndexKind(members=members))
    fresh = build_index(pattern, tmp_path / "fresh", kind=IndexKind(members=members))
    assert again.shards == fresh.shards
    if members:
        assert again.members.tolist() == fresh.members.tolist()


def stats(path: Path, successes: object) -> None:
    path.with_name(path.stem + "_stats.json").write_text(json.dumps({"count": 10, "successes": successes}))


def test_counts_are_taken_from_statistics(tmp_path):
    """The counts are those of img2dataset. Offsets are found on the first read of a shard, and kept."""
    pattern = write_shards(tmp_path / "shards", [3, 2])
    for number, count in enumerate([3, 2]):
        stats(tmp_path / "shards" / f"{number:05d}.tar", count)
    index = build_index(pattern, tmp_path / "index", kind=IndexKind(from_stats=True), workers=2)
    scanned = build_index(pattern, tmp_path / "scanned")
    assert (index.shards, index.fingerprint) == (scanned.shards, scanned.fingerprint)
    assert {path.name for path in (tmp_path / "index").iterdir()} == {"index.json"}
    source, known = ShardSource(load_index(tmp_path / "index")), ShardSource(scanned)
    for shard, ordinal in [(1, 1), (0, 0), (0, 2)]:
        assert source.member(shard, ordinal) == known.member(shard, ordinal)
        assert source.key(shard, ordinal) == known.key(shard, ordinal)
    kept = sorted((tmp_path / "index").rglob("*.npz"))
    assert [path.name for path in kept] == ["0000000.npz", "0000001.npz"]
    # The stored offsets are used; damaged ones are found again.
    (tmp_path / "shards" / "00001.tar").write_bytes(b"no tar")
    kept[0].write_bytes(b"PK damaged")
    again = ShardSource(load_index(tmp_path / "index"))
    assert again.member(1, 1) == known.member(1, 1)
    assert again.member(0, 2) == known.member(0, 2)
    # A new index discards the offsets of the old shards.
    write_shards(tmp_path / "shards", [3, 2])
    build_index(pattern, tmp_path / "index", kind=IndexKind(from_stats=True))
    assert not list((tmp_path / "index").rglob("*.npz"))


def test_read_only_index_is_used(tmp_path):
    pattern = write_shards(tmp_path / "shards", [2])
    index = build_index(pattern, tmp_path / "index", kind=IndexKind(members=False))
    (tmp_path / "index" / "members").write_text("in the way")
    row = ShardSource(index).member(0, 1)
    text = (tmp_path / "shards" / "00000.tar").read_bytes()[int(row["text"]) :][: int(row["text_bytes"])]
    assert text.decode() == caption(1)


def test_shards_that_hold_fewer_or_more_than_their_statistics(tmp_path, caplog):
    pattern = write_shards(tmp_path, [3, 4, 3])
    for number, count in enumerate([5, 2, 3]):
        stats(tmp_path / f"{number:05d}.tar", count)
    path = tmp_path / "00002.tar"
    os.truncate(path, path.stat().st_size - 9000)
    source = ShardSource(build_index(pattern, tmp_path / "index", kind=IndexKind(from_stats=True)))
    assert source.index.counts.tolist() == [5, 2, 3]
    with pytest.raises(BadSample, match="ends before this sample: it holds 3 samples and not 5"):
        source.member(0, 4)
    with pytest.raises(BadSample, match=r"ends before this sample: .* after [01] samples"):
        source.member(2, 2)
    assert source.key(0, 4) == "?"
    source.member(1, 1)
    assert "00001.tar holds 4 samples, but the index counts 2; the others are left out" in caplog.text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "does not exist; make the index without --from-stats"),
        ("{}", "holds no statistics of img2dataset"),
        ("[", "holds no statistics of img2dataset"),
        ('{"successes": "many"}', "successes is 'many'"),
        ('{"successes": -1}', "successes is -1"),
    ],
)
def test_unusable_statistics_are_refused(tmp_path, text, said):
    pattern = write_shards(tmp_path / "shards", [1])
    if text is not None:
        (tmp_path / "shards" / "00000_stats.json").write_text(text)
    with pytest.raises(UserError) as refusal:
        build_index(pattern, tmp_path / "index", kind=IndexKind(from_stats=True))
    assert said in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_find_returns_shard_and_ordinal(tmp_path):
    index = Index(tmp_path, tuple(Shard(f"{n}.tar", n, 9, "") for n in (0, 3, 0, 2)), ())
    found = [index.find(number) for number in range(5)]
    assert [(shard.path, ordinal) for shard, ordinal in found] == [
        ("3.tar", 0),
        ("3.tar", 1),
        ("3.tar", 2),
        ("2.tar", 0),
        ("2.tar", 1),
    ]
    for number in (-1, 5):
        with pytest.raises(IndexError, match="the set has 5"):
            index.find(number)


def test_a_large_index_comes_back_whole(tmp_path):
    counts = np.random.default_rng(0).integers(7000, 10_000, 5000).tolist()
    shards = tuple(
        Shard(f"s3://b/laion/{n:06d}.tar", c, c * 30_000, f'"{n:032x}"') for n, c in enumerate(counts)
    )
    index = Index(tmp_path, shards, (Damage("s3://b/laion/000007.tar", 12, "cut"),), has_members=False)
    write_index(index)
    assert load_index(tmp_path) == index
    assert sys.getsizeof((tmp_path / "index.json").read_bytes()) < 120 * len(shards)
