"""An index of LAION-2B's size: 231,350 shards, whose counts are made up."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from support.time_limits import time_limit

from flipscale.data.order.mixture import Mixture
from flipscale.data.shards.index import Index, Shard
from flipscale.data.shards.index_document import load_index, write_index

SHARDS = 231_350


@pytest.mark.slow
def test_an_index_of_a_web_scale_set_is_small_and_answers_at_once(tmp_path: Path) -> None:
    counts = np.random.default_rng(0).integers(7_000, 10_001, SHARDS)
    # Names, sizes and nanoseconds as long as real ones.
    shards = (
        Shard(
            f"/datasets/laion2b/{number:06d}.tar",
            int(count),
            700_000_000 + number,
            str(1_700_000_000 * 10**9),
        )
        for number, count in enumerate(counts)
    )
    write_index(Index(tmp_path, tuple(shards), (), has_members=False))
    assert (tmp_path / "index.json").stat().st_size < 25e6

    began = time.process_time()
    index = load_index(tmp_path)
    assert time.process_time() - began < time_limit(5)
    assert (len(index.shards), index.samples) == (SHARDS, counts.sum())

    began = time.process_time()
    shard, ordinal = index.find(1_234_567_890)
    before = int(counts[: index.shards.index(shard)].sum())
    assert before + ordinal == 1_234_567_890
    order = Mixture(index.counts, 1024, 2048, seed=0)
    found = order.locate(np.array([1_234_567_890]))
    assert 0 <= int(found.ordinals[0]) < counts[int(found.shards[0])]
    assert time.process_time() - began < time_limit(1)
