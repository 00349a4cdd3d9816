"""`data check` decodes everything and counts what training could not use."""

from __future__ import annotations

import os
from collections import Counter

import pytest
from support.readers import MAX_PIXELS
from support.shards import BAD, write_shards

from flipscale.data.checks.scan import Checking, check_shards
from flipscale.data.shards.index import Index
from flipscale.data.shards.indexing import build_index


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
