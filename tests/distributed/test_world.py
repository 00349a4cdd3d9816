"""The process itself, as it joins the others of a run."""

from __future__ import annotations

import resource
from collections.abc import Iterator

import pytest

from flipscale.distributed.placement import Placement
from flipscale.distributed.world import join_world


@pytest.fixture
def few_open_files() -> Iterator[int]:
    """A low soft limit of open files; the hard limit."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(512, before[1] - 1), before[1]))
    yield before[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_joining_process_may_open_as_many_files_as_it_can(few_open_files: int) -> None:
    join_world(Placement())
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (few_open_files, few_open_files)
