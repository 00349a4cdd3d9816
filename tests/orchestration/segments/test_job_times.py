"""The starts of a job by Slurm, as the ledger books them."""

from __future__ import annotations

from datetime import datetime

from flipscale.orchestration.segments.job_times import query_starts


def seconds(stamp: str) -> float:
    return datetime.fromisoformat(stamp).timestamp()


def test_starts_that_were_requeued_have_ended(slurm) -> None:
    slurm.answers(
        "7|2026-11-29T00:11:08|2026-11-29T00:13:49|COMPLETED",
        "7|2026-11-29T00:09:13|2026-11-29T00:10:21|REQUEUED",
        "7|2026-11-29T00:10:24|2026-11-29T00:10:24|REQUEUED",
        "7|2026-11-29T00:15:00|Unknown|RUNNING",
        "7|Unknown|Unknown|PENDING",
        "8|2026-11-29T00:15:00|2026-11-29T00:16:00|FAILED",
        program="sacct",
    )
    starts = query_starts(["7"], accounting=True)
    assert [(start.state, start.ended - start.started) for start in starts] == [
        ("REQUEUED", 68.0),
        ("REQUEUED", 0.0),
        ("COMPLETED", 161.0),
    ]
    assert starts[0].started == seconds("2026-11-29T00:09:13")


def test_no_text_of_a_run_is_passed_on_as_an_option(slurm) -> None:
    assert query_starts(["--help", "7;id"], accounting=True) == []
    assert query_starts(["--help", "7;id"], accounting=False) == []
    assert slurm.calls() == []
