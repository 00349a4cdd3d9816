"""The number of cores that each process of a run uses, bound to some of them by its launcher or not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from flipscale.distributed.cores import UsableCores, share_of_cores

# The affinities are not those of the machine, which may have two cores. Each process makes an own world.
SCRIPT = """
import json, os, sys
bound = json.loads(sys.argv[1])[int(os.environ["RANK"])]
os.sched_getaffinity = lambda pid: set(range(*bound))

from flipscale.data.samples.stream import default_workers
from flipscale.distributed.placement import read_placement
from flipscale.distributed.world import join_world, leave_world

world = join_world(read_placement())
for line in world.gather([world.cores, default_workers(world.cores)]):
    if world.leads:
        print(*line, flush=True)
leave_world()
"""


def shares(*processes: UsableCores) -> list[int]:
    return [share_of_cores(rank, processes) for rank in range(len(processes))]


def on(machine: str, *numbers: range) -> list[UsableCores]:
    return [UsableCores(machine, frozenset(cores)) for cores in numbers]


def test_bound_processes_use_all_their_cores() -> None:
    assert shares(*on("n1", *(range(12 * rank, 12 * rank + 12) for rank in range(8)))) == [12] * 8


def test_unbound_processes_share_the_cores_of_their_machine() -> None:
    assert shares(*on("n1", *[range(96)] * 8)) == [12] * 8
    assert shares(*on("n1", *[range(14)] * 4)) == [3] * 4
    assert shares(*on("n1", *[range(2)] * 4)) == [1] * 4


def test_core_of_several_processes_is_shared_by_those_only() -> None:
    assert shares(*on("n1", range(8), range(4, 12))) == [6, 6]
    assert shares(*on("n1", range(16), range(8))) == [12, 4]


def test_other_machines_do_not_count() -> None:
    assert shares(*on("n1", range(8), range(8)), *on("n2", range(6)), *on("n3", range(4))) == [4, 4, 6, 4]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("affinities", "expected"),
    [
        ("[[0, 12], [12, 24]]", ["12 11", "12 11"]),  # as srun binds with task/affinity
        ("[[0, 24], [0, 24]]", ["12 11", "12 11"]),
    ],
    ids=["bound", "unbound"],
)
def test_processes_of_a_run_divide_their_cores(tmp_path: Path, affinities: str, expected: list[str]) -> None:
    script = tmp_path / "cores.py"
    script.write_text(SCRIPT)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*launch, str(script), affinities], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.stdout.splitlines() == expected, done.stderr
