"""The state of a run in one word, and what comes next, from files in any state."""

from __future__ import annotations

from collections.abc import Callable
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


def test_slow_step_does_not_count_as_silence(run):
    run.open_segment(started=utc(ago(600)), attempt="7.0")
    run.beat(0, "training", at=ago(240), step_seconds=60.0)
    assert [process.silent for process in status_of(run).processes] == [False]
