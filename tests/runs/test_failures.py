"""The word for every kind of end, and whose fault it was."""

from __future__ import annotations

import time
from datetime import datetime
from pathlib import Path

import pytest
import torch

from flipscale.data.shards.storage import DataReadError
from flipscale.errors import RunError, StoppedEarly, UserError
from flipscale.runs.failures import TRANSIENT, Failure, failure_of, slurm_verdict, verdict
from flipscale.runs.heartbeat import Heartbeat


def beat(rank: int, state: str = "training", kind: str = "", message: str = "", at: float = 0.0) -> Heartbeat:
    return Heartbeat("5.0", rank, 4, f"n{rank}", 1, state, 64, 0.1, at or time.time(), kind, message)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (UserError("no such file"), "input"),
        (RunError("full", kind="disk"), "disk"),
        (StoppedEarly("asked to", "preempted", agreed=True), "preempted"),
        (DataReadError("a shard cannot be read"), "data"),
        (torch.OutOfMemoryError("CUDA out of memory"), "out_of_memory"),
        (MemoryError(), "out_of_memory"),
        (torch.distributed.DistNetworkError("the client socket has timed out"), "lost_process"),
        (
            RuntimeError("[../gloo/transport/tcp/pair.cc:534] Connection closed by peer [::1]:5"),
            "lost_process",
        ),
        (RuntimeError("The size of tensor a (3) must match"), "code"),
        (KeyError("restored"), "code"),
    ],
)
def test_every_error_has_its_word(error: BaseException, kind: str) -> None:
    failure = failure_of(error)
    assert failure.kind == kind
    assert failure.message


def test_a_lost_process_is_explained_by_the_peer_that_failed_first() -> None:
    own = Failure("lost_process", "another process is gone")
    beats = [
        beat(0, "failed", "lost_process"),
        beat(1, "failed", "code", "KeyError: 'x'", at=20.0),
        beat(2, "failed", "out_of_memory", "later", at=30.0),
        beat(3),
    ]
    found = verdict(own, beats)
    assert found == Failure("code", "rank 1 on n1: KeyError: 'x'")
    assert found.kind not in TRANSIENT


def test_a_process_without_a_word_puts_its_node_under_suspicion() -> None:
    own = Failure("lost_process", "another process is gone")
    found = verdict(
        own, [beat(0, "failed", "lost_process"), beat(1), beat(2, "failed", "lost_process"), beat(3)]
    )
    assert found.kind in TRANSIENT
    assert found.suspects == ("n1", "n3")
    assert "rank 1, 3 on n1, n3" in found.message
    assert verdict(Failure("code", "mine"), [beat(0)]) == Failure("code", "mine")


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ("DUE TO NODE FAILURE, SEE SLURMCTLD LOG FOR DETAILS", "node_failure"),
        ("DUE TO PREEMPTION", "preempted"),
        ("DUE TO TIME LIMIT", "timeout"),
        ("DUE TO JOB REQUEUE", None),
    ],
)
def test_slurm_says_why_in_the_log(tmp_path: Path, words: str, kind: str | None) -> None:
    log = tmp_path / "7_0_log.err"
    log.write_text(
        f"noise\nslurmstepd-n1: error: *** JOB 7 ON n1 CANCELLED AT 2026-11-25T03:28:07 {words} ***\n"
    )
    assert slurm_verdict(log, datetime(2026, 11, 25, 3, 0)) == kind
    assert slurm_verdict(log, datetime(2026, 11, 25, 4, 0)) is None  # of an earlier start
    assert slurm_verdict(tmp_path / "none", datetime(2026, 11, 25)) is None
