"""The placement of a process, from the variables that launchers set."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist

from flipscale.distributed import placement as module
from flipscale.distributed.placement import Placement, read_placement, rendezvous_port
from flipscale.distributed.world import join_world, leave_world

SRUN = {
    "SLURM_JOB_ID": "41",
    "SLURM_JOB_NODELIST": "gpu[07-09],big1",
    "SLURM_PROCID": "17",
    "SLURM_STEP_NUM_TASKS": "26",
    "SLURM_NODEID": "2",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "8(x2),2,8",
    "SLURMD_NODENAME": "gpu09",
}
LAUNCHERS = ("SLURM", "SUBMITIT", "RANK", "WORLD_SIZE", "LOCAL_", "MASTER_")


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in list(os.environ):
        if name.startswith(LAUNCHERS):
            monkeypatch.delenv(name)


def started_with(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> Placement:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return read_placement()


def test_without_a_launcher_there_is_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    place = read_placement()
    assert (place.rank, place.size, place.attempt, place.rendezvous) == (0, 1, "", "")
    assert not place.under_slurm


def test_srun_gives_ranks_and_rendezvous(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_resolves", lambda name: name == "gpu07")
    place = started_with(monkeypatch, SRUN)
    assert (place.rank, place.size, place.local_rank, place.local_size) == (17, 26, 1, 2)
    assert place.nodes == ("gpu07", "gpu08", "gpu09", "big1")
    assert (place.node, place.attempt) == ("gpu09", "41.0")
    assert place.rendezvous == f"gpu07:{rendezvous_port('41', 0)}"
    assert place.under_slurm


def test_every_start_of_a_job_has_another_rendezvous(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_resolves", lambda name: True)
    first = started_with(monkeypatch, SRUN)
    third = started_with(monkeypatch, {"SLURM_RESTART_COUNT": "2"})
    assert third.attempt == "41.2"
    assert third.rendezvous != first.rendezvous


def test_rendezvous_ports_are_below_those_of_outgoing_connections() -> None:
    ports = {rendezvous_port(job, restarts) for job in map(str, range(1000)) for restarts in range(5)}
    assert min(ports) > 1023
    assert max(ports) < 32_768  # ip_local_port_range, Linux's default
    assert len(ports) > 3000


def test_element_of_an_array_has_its_own_id(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_resolves", lambda name: True)
    place = started_with(monkeypatch, SRUN | {"SLURM_ARRAY_JOB_ID": "40", "SLURM_ARRAY_TASK_ID": "3"})
    assert place.job_id == "40_3"


def test_unresolvable_node_is_replaced_by_the_address_of_srun(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_resolves", lambda name: False)
    monkeypatch.setenv("PATH", "")  # no scontrol to ask
    place = started_with(monkeypatch, SRUN | {"SLURM_LAUNCH_NODE_IPADDR": "10.1.2.3"})
    assert place.rendezvous.startswith("10.1.2.3:")


def test_torchrun_comes_before_srun_and_has_its_own_rendezvous(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = {"RANK": "5", "WORLD_SIZE": "16", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
    place = started_with(monkeypatch, SRUN | ranks)
    assert (place.rank, place.size, place.local_rank, place.local_size) == (5, 16, 1, 4)
    assert (place.rendezvous, place.attempt) == ("", "41.0")


@pytest.mark.parametrize(("given", "expected"), [(timedelta(hours=2), 2.0), (timedelta(minutes=10), 0.5)])
def test_collectives_have_the_given_timeout(
    monkeypatch: pytest.MonkeyPatch, given: timedelta, expected: float
) -> None:
    """The expected hours are those of real groups, in a process that believes in a second one."""
    store = dist.HashStore()
    monkeypatch.setattr(dist, "init_process_group", partial(_init_single, dist.init_process_group, store))
    monkeypatch.setattr(dist, "all_gather_object", _gather_copies)
    world = join_world(Placement(rank=0, size=2), given)
    try:
        assert world.lead(lambda: "done") == "done"  # makes the control group
        control = world._control_group()
        own = world.new_group()
        assert control is not own
        for group in (control, own):
            assert group is not None
            # Torch offers no other way to read the timeout.
            options = group._get_backend(torch.device("cpu")).options
            assert options._timeout / timedelta(hours=1) == expected
    finally:
        leave_world()


def _gather_copies(values: list[Any], value: Any, group: dist.ProcessGroup) -> None:
    values[:] = [value] * len(values)


def _init_single(init: Callable[..., None], store: dist.Store, backend: str, **options: Any) -> None:
    init(backend, **{**options, "store": store, "world_size": 1})


def test_local_executor_gives_ranks_and_rendezvous(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = {"SUBMITIT_LOCAL_GLOBALID": "1", "SUBMITIT_LOCAL_LOCALID": "1", "SUBMITIT_LOCAL_NTASKS": "2"}
    place = started_with(monkeypatch, {"SUBMITIT_LOCAL_JOB_ID": "900", **ranks})
    assert (place.rank, place.size, place.local_rank, place.local_size) == (1, 2, 1, 2)
    assert place.rendezvous.startswith("127.0.0.1:")
    assert not place.under_slurm
