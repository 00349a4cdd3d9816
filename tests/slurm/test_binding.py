"""A cluster on which srun binds each process to cores of its own, as most clusters do."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.cluster_handle import Cluster

pytestmark = pytest.mark.slow

SCRIPT = """
import os

from flipscale.distributed.placement import read_placement
from flipscale.distributed.world import join_world, leave_world

world = join_world(read_placement())
for line in world.gather([len(os.sched_getaffinity(0)), world.cores]):
    if world.leads:
        print(*line, flush=True)
leave_world()
"""


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_bound_processes_use_all_cores_of_their_node(
    new_cluster: Callable[..., Cluster], tmp_path: Path
) -> None:
    script = tmp_path / "cores.py"
    script.write_text(SCRIPT)
    cluster = new_cluster("--nodes=2", "--kill-wait=2", "--bind-cores")

    one_core_each = ("srun", "--nodes=1", "--ntasks=2", "--cpus-per-task=1")
    done = cluster.run(*one_core_each, sys.executable, script)

    assert done.stdout.splitlines() == ["1 1", "1 1"]
