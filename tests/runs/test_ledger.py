"""The ledger accounts for every segment, also for those that were killed."""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path

import psutil
import pytest
import torch
from support.broken_files import SHAPES

from flipscale.distributed.placement import Placement
from flipscale.distributed.world import World
from flipscale.errors import UserError
from flipscale.order_digest import OrderDigest
from flipscale.progress import Progress
from flipscale.runs.failures import Failure
from flipscale.runs.heartbeat import Heartbeat, write_heartbeat
from flipscale.runs.ledger import LedgerLine, fruitless_segments, read_ledger
from flipscale.runs.ledger_writer import LedgerWriter


def world(restarts: int = 0) -> World:
    place = Placement(0, 2, 0, 1, "n1", ("n1", "n2"), "7", restarts)
    return World(0, 2, 0, 1, torch.device("cpu"), place)


def test_line_of_a_spent_budget_holds_its_cost(tmp_path: Path) -> None:
    ledger = LedgerWriter(tmp_path, Progress(), world(), "7.0")
    ledger.training()
    assert (tmp_path / "segment.json").exists()
    ledger.close(Progress(640, OrderDigest(5)), Progress(640, OrderDigest(5)), Failure("done", ""))
    (line,) = read_ledger(tmp_path)
    assert (line.samples_from, line.samples_to, line.reason) == (0, 640, "done")
    assert (line.nodes, line.attempt, line.world_size) == (("n1", "n2"), "7.0", 2)
    assert line.gpu_seconds == pytest.approx(2 * line.seconds, abs=0.2)
    assert 0 < line.startup_seconds <= line.seconds
    assert not (tmp_path / "segment.json").exists()


def test_samples_after_the_last_checkpoint_are_counted_as_lost(tmp_path: Path) -> None:
    ledger = LedgerWriter(tmp_path, Progress(128), world(), "7.0")
    ledger.training()
    ledger.close(Progress(256), Progress(320), Failure("lost_process", "rank 1", ("n2",)))
    (line,) = read_ledger(tmp_path)
    assert (line.lost_samples, line.suspects) == (64, ("n2",))


@pytest.mark.parametrize(
    ("log", "kind"),
    [
        ("", "killed"),
        ("*** JOB 7 ON n1 CANCELLED AT {now} DUE TO NODE FAILURE, SEE SLURMCTLD LOG ***\n", "node_failure"),
        ("slurmstepd: error: Detected 1 oom_kill event in StepId=7.0\n", "out_of_memory"),
    ],
)
def test_killed_segment_is_explained_by_slurms_log(tmp_path: Path, log: str, kind: str) -> None:
    LedgerWriter(tmp_path, Progress(), world(), "7.0")  # and then it was killed
    for rank in range(2):
        beat = Heartbeat("7.0", rank, 2, f"n{rank + 1}", 1, "training", 192, 0.1, time.time() + 10)
        write_heartbeat(tmp_path, beat)
    (tmp_path / "logs").mkdir()
    now = datetime.fromtimestamp(time.time() + 1).isoformat(timespec="seconds")
    (tmp_path / "logs" / "7_0_log.err").write_text(log.format(now=now))
    LedgerWriter(tmp_path, Progress(128), world(1), "7.1")
    (line,) = read_ledger(tmp_path)
    assert line.reason == kind
    assert (line.samples_to, line.lost_samples) == (128, 64)
    assert line.seconds >= 10
    assert json.loads((tmp_path / "segment.json").read_text())["segment"] == 1


def test_cause_of_a_killed_segment_comes_before_its_consequences(tmp_path: Path) -> None:
    LedgerWriter(tmp_path, Progress(), world(), "7.0")
    now = time.time()
    write_heartbeat(tmp_path, Heartbeat("7.0", 0, 2, "n1", 1, "failed", 64, 0.1, now, "lost_process", "gone"))
    code = Heartbeat("7.0", 1, 2, "n2", 1, "failed", 64, 0.1, now + 1, "code", "KeyError: 'x'")
    write_heartbeat(tmp_path, code)
    LedgerWriter(tmp_path, Progress(), world(1), "7.1")
    (line,) = read_ledger(tmp_path)
    assert (line.reason, line.detail) == ("code", "rank 1 on n2: KeyError: 'x'")
    assert line.suspects == ()


def test_suspect_of_a_hang_is_kept_without_the_killed_nodes(tmp_path: Path) -> None:
    LedgerWriter(tmp_path, Progress(), world(), "7.0")
    now = time.time()
    hang = Heartbeat("7.0", 0, 3, "n1", 1, "failed", 64, 0.1, now, "hang", "no step", ("n2",))
    write_heartbeat(tmp_path, hang)
    write_heartbeat(tmp_path, Heartbeat("7.0", 1, 3, "n2", 1, "training", 64, 0.1, now + 1))  # woken by CONT
    write_heartbeat(tmp_path, Heartbeat("7.0", 2, 3, "n3", 1, "training", 64, 0.1, now - 1))
    LedgerWriter(tmp_path, Progress(), world(1), "7.1")
    (line,) = read_ledger(tmp_path)
    assert (line.reason, line.suspects) == ("hang", ("n2",))


def test_queue_time_is_counted(tmp_path: Path) -> None:
    LedgerWriter(tmp_path, Progress(), world(), "7.0").close(
        Progress(64), Progress(64), Failure("preempted", "")
    )
    (line,) = read_ledger(tmp_path)
    ended = datetime.fromisoformat(line.ended).timestamp() - 500
    line = replace(line, ended=datetime.fromtimestamp(ended).astimezone().isoformat())
    (tmp_path / "ledger.jsonl").write_text(json.dumps(asdict(line)) + "\n")
    LedgerWriter(tmp_path, Progress(64), world(1), "7.1").close(
        Progress(128), Progress(128), Failure("done", "")
    )
    waited = psutil.Process().create_time() - ended
    assert read_ledger(tmp_path)[1].queue_seconds == pytest.approx(max(0.0, waited), abs=0.1)


def line(reason: str, gained: int, started: str = "2026-11-25T03:00:00+00:00") -> LedgerLine:
    record = {"reason": reason, "samples_from": 64, "samples_to": 64 + gained, "started": started}
    return LedgerLine.from_record(record)


def test_fruitless_segments_are_counted_since_a_given_time() -> None:
    lines = [line("hang", 0), line("timeout", 16), line("hang", 0), line("preempted", 0), line("timeout", 0)]
    assert [entry.reason for entry in fruitless_segments(lines, 0.0)] == ["hang", "timeout"]
    assert fruitless_segments(lines, time.time() + 1e9) == []
    assert fruitless_segments([line("hang", 0), line("code", 0)], 0.0) == []


@pytest.mark.parametrize("shape", sorted(set(SHAPES) - {"cut in the last line"}))
def test_segment_whose_record_is_damaged_is_booked_from_its_heartbeats(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, shape: str
) -> None:
    LedgerWriter(tmp_path, Progress(), world(), "7.0").close(
        Progress(64), Progress(64), Failure("preempted", "")
    )
    LedgerWriter(tmp_path, Progress(64), world(1), "7.1")  # and then it was killed
    at = time.time()
    write_heartbeat(tmp_path, Heartbeat("7.1", 0, 2, "n1", 1, "training", 192, 0.1, at))
    write_heartbeat(tmp_path, Heartbeat("7.2", 0, 2, "n3", 1, "starting", 128, 0.1, at + 1))
    os.utime(tmp_path / "heartbeats" / "7.1", (at - 9, at - 9))
    path = tmp_path / "segment.json"
    SHAPES[shape](path, path.read_bytes())
    LedgerWriter(tmp_path, Progress(128), world(2), "7.2")

    before, line = read_ledger(tmp_path)
    assert before.reason == "preempted"
    assert (line.segment, line.attempt, line.job_id, line.restarts) == (1, "7.1", "7", 1)
    assert (line.samples_from, line.samples_to, line.lost_samples) == (64, 128, 64)
    assert (line.reason, line.nodes, line.seconds) == ("killed", ("n1",), 0.0)
    assert json.loads(path.read_text())["segment"] == 2
    assert ("is now segment.json.damaged1" in caplog.text) == (shape != "missing")


def test_closed_segment_is_not_booked_again_if_its_record_is_damaged(tmp_path: Path) -> None:
    LedgerWriter(tmp_path, Progress(), world(), "7.0").close(
        Progress(64), Progress(64), Failure("preempted", "")
    )
    write_heartbeat(tmp_path, Heartbeat("7.0", 0, 2, "n1", 1, "stopped", 64, 0.1, time.time()))
    (tmp_path / "segment.json").write_text("")
    LedgerWriter(tmp_path, Progress(64), world(1), "7.1")
    assert len(read_ledger(tmp_path)) == 1


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *[("samples_to", value) for value in ("64", [64], 1e999, 1 << 80, 6.5, True)],
        *[("started", value) for value in ("yesterday", 5, "2026-11-25T03:00:00")],
        *[("suspects", value) for value in ("n1", [1], {})],
        *[("reason", 5), ("job_id", 7), ("nodes", None), ("stop_seconds", "1")],
    ],
)
def test_field_of_another_type_is_named(tmp_path: Path, key: str, value: object) -> None:
    record = asdict(line("killed", 64)) | {"later": "field"}
    (tmp_path / "ledger.jsonl").write_text(json.dumps(record) + "\n")
    assert read_ledger(tmp_path) == [line("killed", 64)]
    with open(tmp_path / "ledger.jsonl", "a") as file:
        file.write(json.dumps(record | {key: value}) + "\n")
    with pytest.raises(UserError, match=f"line 2 is damaged: its {key} is not that of a segment"):
        read_ledger(tmp_path)
