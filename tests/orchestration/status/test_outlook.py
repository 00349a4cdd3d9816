"""The state of a run in one word, and what comes next, from files in any state."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest
from support.run_in_files import RunInFiles
from support.status_times import ago, status_of, two_hours, utc


def odd(prepare: Callable[[RunInFiles], object], *answer: str, state: str, line: str) -> Any:
    return pytest.param(prepare, answer, state, line, id=f"{state}: {line}")


@pytest.mark.parametrize(
    ("prepare", "answer", "state", "line"),
    [
        odd(lambda run: run, state="new", line="not started yet"),
        odd(lambda run: run.submitted("7"), "7|PENDING|Resources|", state="queued", line="(Resources)"),
        odd(lambda run: run.submitted("7_2"), "7_[0,2-5%1]|PENDING|JobArrayTaskLimit|", state="queued",
            line="waiting in the queue (JobArrayTaskLimit)"),
        odd(lambda run: run.submitted("7"), "7|PENDING|JobHeldUser|", state="queued",
            line="`scontrol release 7`"),
        odd(lambda run: run.submitted("7"), "7|PENDING|DependencyNeverSatisfied|", state="queued",
            line="can never start"),
        odd(lambda run: run.submitted("7"), "7|PENDING|BeginTime|", state="queued", line="requeued"),
        odd(lambda run: run.submitted("7"), "7|RUNNING|None|n[1-2]", state="starting", line="it is starting"),
        odd(lambda run: run.submitted("7"), "7|FAILED|None|n[1-2]", state="interrupted",
            line="its job ended (FAILED) before training began; read "),
        odd(lambda run: run.submitted("7"), state="interrupted", line="its job ended (GONE)"),
        odd(two_hours, state="failed",
            line="it ended with an error: ValueError: a tar of tars; fix it, and `flipscale submit JOB`"),
        odd(lambda run: run.segment(reason="preempted", samples_to=400).submitted("7"), state="interrupted",
            line="its last segment ended (preempted) and no job of the run is in the queue; `flipscale sub"),
        odd(lambda run: run.segment(reason="stopped", samples_to=400), state="stopped",
            line="it was stopped; `flipscale train JOB` resumes it"),
        odd(lambda run: (run.segment(reason="stopped"), (run.path / "STOP").touch()), state="stopped",
            line="STOP` and `flipscale train JOB` resumes it"),
        odd(lambda run: run.segment(reason="done", samples_to=1000).checkpoint(1000), state="done",
            line="`flipscale export "),
        odd(lambda run: run.segment(reason="done", samples_to=600).checkpoint(600), state="interrupted",
            line="more phases were added"),
        odd(lambda run: run.segment(reason="done", samples_to=1000), state="interrupted",
            line="its checkpoints are lost: bring them back, or `flipscale train JOB` with --from-zero"),
        odd(lambda run: run.open_segment(started=utc(ago(0)), attempt="7.0").submitted("7")
            .beat(0, "training", at=ago(0), samples_seen=80).beat(1, "saving", at=ago(0)),
            "7|RUNNING|None|n[1-2]", state="saving", line="nothing to do"),
        odd(lambda run: run.open_segment(started=utc(ago(0)), attempt="7.0").submitted("7")
            .beat(0, "training", at=ago(0)).beat(1, "training", at=ago(240)),
            "7|RUNNING|None|n[1-2]", state="training", line="rank 1 (n2) gave no sign of life for 4min"),
        odd(lambda run: run.open_segment(started=utc(ago(0)), attempt="7.0").submitted("7")
            .beat(0, "training", at=ago(900)).beat(1, "training", at=ago(900)),
            "7|RUNNING|None|n[1-2]", state="silent", line="ranks 0 (n1), 1 (n2) gave no sign of life for 15"),
        odd(lambda run: run.open_segment(started=utc(ago(0)), attempt="7.0").submitted("7")
            .beat(0, "failed", at=ago(0), kind="lost_process", message="another process is gone")
            .beat(1, "failed", at=ago(0), kind="code", message="ValueError: that one"),
            "7|RUNNING|None|n[1-2]", state="failing", line="(ValueError: that one)"),
        odd(lambda run: (run.open_segment(started=utc(ago(0)), attempt="7.0").beat(0, "saving", at=ago(0)),
                         (run.path / "STOP").touch()), state="stopping", line="it saves and ends"),
        odd(lambda run: run.open_segment(started=utc(ago(999)), attempt="7.0").submitted("7")
            .beat(0, "training", at=ago(500)),
            "7|NODE_FAIL|None|n1", state="lost", line="ended without a message"),
    ],
)  # fmt: skip
def test_every_state_and_what_comes_next(run, slurm, prepare, answer, state, line):
    prepare(run)
    slurm.answers(*answer)
    status = status_of(run)
    assert status.state == state
    assert line in status.next
    assert len(slurm.calls()) <= 1


def stamp(seconds: float) -> str:
    """Return seconds since 1970 as squeue shows them."""
    return datetime.fromtimestamp(seconds).isoformat(timespec="seconds")


@pytest.mark.parametrize(
    ("answer", "states", "state"),
    [
        ("7|RUNNING|None|n[1-2]|BEFORE", ("training", "training"), "training"),
        ("7|RUNNING|None|n[1-2]|BEFORE", ("failed", "training"), "failing"),
        ("7|RUNNING|None|n[1-2]|BEFORE", ("stopped", "stopped"), "ending"),
        ("7|RUNNING|None|n[1-2]|AFTER", ("training", "training"), "starting"),  # again
        ("7|RUNNING|None|n[1-2]|AFTER", ("failed", "training"), "starting"),
        ("7|COMPLETING|None|n[1-2]|BEFORE", ("training", "training"), "ending"),
        ("7|PENDING|BeginTime||N/A", ("training", "training"), "queued"),
        ("7|PENDING|BeginTime||N/A", ("failed", "training"), "queued"),
        ("7|FAILED|None|n[1-2]|BEFORE", ("training", "training"), "lost"),
        ("7|CANCELLED|None|n[1-2]|BEFORE", ("saving", "training"), "lost"),
        ("7|NODE_FAIL|None|n[1-2]|BEFORE", ("starting", "starting"), "lost"),
        ("7|TIMEOUT|None|n[1-2]|BEFORE", (), "lost"),  # without any heartbeat
        ("", ("training", "training"), "training"),  # of another user: Slurm does not list it
    ],
)
def test_slurms_answer_outranks_a_fresh_heartbeat(run, slurm, answer, states, state):
    run.submitted("7").open_segment(started=utc(ago(90)), attempt="7.0", job_id="7")
    for rank, word in enumerate(states):
        run.beat(rank, word, at=ago(1), kind="code" if word == "failed" else "")
    for word, seconds in (("BEFORE", 100), ("AFTER", -2)):
        answer = answer.replace(word, stamp(ago(seconds)))
    slurm.answers(*([answer] if answer else []))
    status = status_of(run)
    assert status.state == state
    if state in ("lost", "queued", "starting"):
        assert [segment.reason for segment in status.segments] == ["lost"]
        assert not any(process.alive for process in status.processes)


def test_successor_of_an_ended_job_is_what_happens_next(run, slurm):
    run.submitted("7").submitted("8", dependency="7")
    run.open_segment(started=utc(ago(90)), attempt="7.0", job_id="7").beat(0, "training", at=ago(1))
    slurm.answers("7|FAILED|None|n1|N/A", "8|PENDING|Dependency||N/A")
    assert status_of(run).state == "queued"
    slurm.answers("7|FAILED|None|n1|N/A", f"8|RUNNING|None|n1|{stamp(ago(3))}")
    assert status_of(run).state == "starting"


def test_a_job_that_a_person_submitted_by_hand_is_asked_about(run, slurm):
    run.submitted("7").segment(reason="preempted", job_id="7", samples_to=80)
    run.open_segment(started=utc(ago(90)), attempt="9.0", job_id="9").beat(
        0, "training", at=ago(1), attempt="9.0"
    )
    slurm.answers("7|COMPLETED|None|n1|N/A", "9|FAILED|None|n1|N/A")
    assert status_of(run).state == "lost"


def test_segment_that_found_the_disk_full_has_failed(run):
    run.open_segment(
        started=utc(ago(90)), ended=utc(ago(5)), attempt="7.0", reason="disk", detail="no space is left"
    )
    run.beat(0, "failed", at=ago(5), kind="disk", message="no space is left")
    status = status_of(run)
    assert status.state == "failed"
    assert "no space is left" in status.next


def test_start_up_counts_from_the_start(run):
    run.open_segment(started=utc(ago(90)), attempt="7.0").beat(0, "starting", at=ago(1))
    status = status_of(run)
    assert status.state == "starting"
    assert status.segments[-1].startup_seconds == pytest.approx(90, abs=5)
    assert status.lost.startup_seconds == pytest.approx(90, abs=5)

    run.open_segment(started=utc(ago(90)), attempt="7.0", startup_seconds=40.0)
    run.beat(0, "training", at=ago(1)).metrics(samples=16, time=ago(1))
    assert status_of(run).lost.startup_seconds == 40


def test_slow_step_does_not_count_as_silence(run):
    run.open_segment(started=utc(ago(600)), attempt="7.0")
    run.beat(0, "training", at=ago(240), step_seconds=60.0)
    assert [process.silent for process in status_of(run).processes] == [False]
