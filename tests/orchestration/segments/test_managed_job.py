"""A job that has itself started again while Slurm's controller is too busy to answer."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from support.fake_slurm import FakeSlurm
from support.submitting import WriteSite, submit
from support.tiny_run import TinyRun

from flipscale.config import Site
from flipscale.distributed.placement import Placement
from flipscale.orchestration.segments import managed_job as requeue
from flipscale.orchestration.segments.managed_job import ManagedJob
from flipscale.runs.directory import RunDirectory
from flipscale.runs.submissions import Submission, read_submissions
from flipscale.slurm import SlurmError


class WithoutSuccessor(ManagedJob):
    def _successor(self) -> None:
        return None


@pytest.fixture
def managed(tmp_path: Path) -> ManagedJob:
    place = Placement(job_id="7", restarts=2, nodes=("n1",))
    submission = Submission(0.0, "slurm", "7", 1, 1, "", 600, False, None, Site(gpus_per_node=0))
    return WithoutSuccessor(RunDirectory(tmp_path), place, submission, 0.0)


def scontrol(directory: Path, monkeypatch: pytest.MonkeyPatch, *, silent: int) -> Path:
    """A script in place of scontrol that answers all but its first questions; returns the file of these."""
    asked, script = directory / "asked", directory / "scontrol"
    script.write_text(
        f"#!/bin/sh\necho $* >> {asked}\n"
        f"test $(grep -c . {asked}) -gt {silent} || {{ echo Socket timed out >&2; exit 1; }}\n"
        "test $1 = requeue || echo JobId=7 JobState=RUNNING Restarts=2\n"
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{directory}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(requeue, "_PAUSE", 0.0)
    return asked


def test_a_busy_controller_is_asked_again(
    managed: ManagedJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = scontrol(tmp_path, monkeypatch, silent=2)
    assert managed.start_again() == "job 7 is requeued"
    assert asked.read_text().splitlines() == ["show job -o 7"] * 3 + ["requeue 7"]


def test_a_fourth_start_without_a_segment_asks_for_no_other(
    managed: ManagedJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A storage that stays away ends each start before its ledger opens, so that no ledger counts them."""
    asked = scontrol(tmp_path, monkeypatch, silent=0)
    assert managed.try_start_again()
    asked.unlink()

    fourth = replace(managed, place=replace(managed.place, restarts=3))
    assert not fourth.try_start_again()
    managed.run.ledger.mkdir()  # nor if the ledger cannot be read
    assert not fourth.try_start_again()
    assert not asked.exists()


@pytest.mark.parametrize("end", ["echo Socket timed out >&2; exit 1", "kill -TERM $$"])
def test_request_without_an_answer_does_not_count_as_refused(
    managed: ManagedJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    """No job that follows is submitted: the request came through. Slurm, which ends the processes of the job
    then, may end scontrol among them.
    """
    asked = scontrol(tmp_path, monkeypatch, silent=0)
    script = tmp_path / "scontrol"
    script.write_text(
        script.read_text().replace("Restarts=2", "Restarts=$((2 + $(grep -c requeue " + str(asked) + ")))")
        + f"test $1 != requeue || {{ {end}; }}\n"
    )
    assert managed.start_again() == "Slurm has requeued the job already"
    assert asked.read_text().splitlines() == ["show job -o 7", "requeue 7", "show job -o 7"]


@pytest.mark.parametrize(
    ("run", "left", "reason"), [("00:05:00", 900, "cancelled"), ("00:19:00", 60, "timeout")]
)
def test_the_clock_of_the_node_does_not_move_the_deadline(
    managed: ManagedJob,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    run: str,
    left: int,
    reason: str,
) -> None:
    """The job's times are a year before those of this machine."""
    record = "JobId=7 JobState=CANCELLED Restarts=2 StartTime=2025-01-01T10:00:00 TimeLimit=00:20:00"
    (tmp_path / "scontrol").write_text(f"#!/bin/sh\necho {record} RunTime={run}\n")
    (tmp_path / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")

    before = time.monotonic()
    deadline = managed.deadline()
    assert deadline is not None
    stop_before = managed.site.stop_before
    assert before <= deadline - left + stop_before <= time.monotonic()
    assert managed.reason_of_stop("sigterm") == reason


def test_a_dead_controller_is_given_up(
    managed: ManagedJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = scontrol(tmp_path, monkeypatch, silent=99)
    with pytest.raises(SlurmError, match="Socket timed out"):
        managed.start_again()
    assert asked.read_text().splitlines() == ["show job -o 7"] * 4


def test_without_scontrol_a_job_follows(
    fake: FakeSlurm, site: WriteSite, tiny_run: Callable[..., TinyRun]
) -> None:
    run = RunDirectory(submitted(fake, site, tiny_run))
    (fake.root / "bin/scontrol").unlink()
    fake.answers(queue="7|RUNNING|None|n1\n")
    (submission,) = read_submissions(run)
    managed = ManagedJob(run, Placement(job_id="7", nodes=("n1",), node="n1"), submission, time.time())

    fake.answers(queue="")  # the job that follows is not refused for the one that it follows
    assert managed.start_again() == "job 7 was submitted to follow this one"
    assert fake.submitted().count("#SBATCH --dependency=afterany:7\n") == 1
    assert managed.start_again() == "job 7 is waiting for this one to end"


def test_without_scontrol_a_cancelled_job_stays_cancelled(
    fake: FakeSlurm, site: WriteSite, tiny_run: Callable[..., TinyRun]
) -> None:
    run = RunDirectory(submitted(fake, site, tiny_run))
    (fake.root / "bin/scontrol").unlink()
    fake.answers(queue="7|COMPLETING|None|n1\n")
    (submission,) = read_submissions(run)
    managed = ManagedJob(run, Placement(job_id="7", nodes=("n1",), node="n1"), submission, time.time())
    assert managed.start_again() == "the job was cancelled; it does not start again"
    assert "--dependency" not in fake.submitted()


def submitted(fake: FakeSlurm, site: WriteSite, tiny_run: Callable[..., TinyRun]) -> Path:
    """Submit a job, which gets the id 7, and return its run directory."""
    run = tiny_run(cluster={"gpus_per_node": 1})
    submit(run.job, site=site())
    assert "--dependency" not in fake.submitted()
    return run.output
