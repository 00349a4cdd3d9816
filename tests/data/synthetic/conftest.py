"""A synthetic data set that the tests of this folder share."""

from __future__ import annotations

from typing import Any

import pytest
from support.scenes import samples_of

from flipscale.data.synthetic.dataset import SyntheticOptions, SyntheticSummary, synthesize


@pytest.fixture(scope="session")
def synthetic_set(tmp_path_factory: pytest.TempPathFactory) -> SyntheticSummary:
    """A small data set of every split, only to be read."""
    out = tmp_path_factory.mktemp("synth") / "set"
    done: list[int] = []
    options = SyntheticOptions(train=600, val=100, test=150, shard_size=250, seed=3)
    summary = synthesize(out, options, progress=done.append)
    assert sum(done) == summary.samples
    return summary


@pytest.fixture(scope="session")
def splits(synthetic_set: SyntheticSummary) -> dict[str, list[dict[str, Any]]]:
    """The samples of each split of `synthetic_set`."""
    return {split.name: samples_of(synthetic_set, split.name) for split in synthetic_set.splits}
