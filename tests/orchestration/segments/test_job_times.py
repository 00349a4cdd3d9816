"""The starts of a job by Slurm, as the ledger books them."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime

from support.fake_slurm import FakeSlurm
from support.run_in_files import RunInFiles
from support.submitting import WriteSite, submit
from support.tiny_run import TinyRun

from flipscale.distributed.placement import Placement
from flipscale.orchestration.segments.job_times import query_starts, slurm_times
from flipscale.progress import Progress
from flipscale.runs.directory import RunDirectory
from flipscale.runs.ledger import read_ledger, utc
from flipscale.runs.past_segments import account_for_the_past


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


def test_without_accounting_the_notes_of_batch_scripts_tell_of_starts(
    fake: FakeSlurm, site: WriteSite, tiny_run: Callable[..., TinyRun]
) -> None:
    """The first start trained; the second failed before its segment, and the third was killed there."""
    tiny = tiny_run(cluster={"gpus_per_node": 1})
    submit(tiny.job, site=site())
    run = RunInFiles(tiny.output).segment(
        attempt="7.0", job_id="7", started=utc(990), ended=utc(1095), seconds=105.0, samples_to=64
    )
    notes = [("7.0", 1000, 1100), ("7.1", 1220, 1250), ("7.2", 1370, None), ("7.3", 1490, None)]
    with open(run.path / "starts.jsonl", "w") as file:
        for attempt, began, left in notes:
            file.write(json.dumps({"attempt": attempt, "began": began}) + "\n")
            if left:
                file.write(json.dumps({"attempt": attempt, "left": left}) + "\n")

    place = Placement(0, 2, 0, 1, "n1", ("n1", "n2"), "7", 3)
    directory = RunDirectory(run.path)
    for _ in range(2):  # the second time, nothing is booked twice
        times = slurm_times(directory, place, accounting=False)
        account_for_the_past(directory, Progress(64), "7.3", times.past)
    lines = read_ledger(run.path)
    assert [line.reason for line in lines[1:]] == ["failed_start", "failed_start"]
    assert [line.seconds for line in lines] == [110.0, 30.0, 0.0]
    assert lines[1].detail == "it ended before its segment began"


def test_no_text_of_a_run_is_passed_on_as_an_option(slurm) -> None:
    assert query_starts(["--help", "7;id"], accounting=True) == []
    assert query_starts(["--help", "7;id"], accounting=False) == []
    assert slurm.calls() == []
