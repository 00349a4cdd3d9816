"""The ledger accounts for every segment, also for those that were killed."""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from support.broken_files import SHAPES
from support.replaced_time import replace_time

from flipscale import processes
from flipscale.distributed.placement import Placement
from flipscale.distributed.world import World
from flipscale.errors import UserError
from flipscale.order_digest import ContentDigest, OrderDigest
from flipscale.processes import own_age
from flipscale.progress import Progress
from flipscale.runs import ledger_writer
from flipscale.runs.failures import Failure
from flipscale.runs.heartbeat import Heartbeat, write_heartbeat
from flipscale.runs.ledger import LedgerLine, fruitless_segments, read_ledger, tail_ledger, timestamp, utc
from flipscale.runs.ledger_writer import LedgerWriter
from flipscale.runs.past_starts import PastStart, SlurmTimes


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


def killed(
    run: Path, *beats: dict[str, Any], startup: float = 0.0, launch: float = 0.0, resumed: int = 128
) -> LedgerLine:
    """The line of a segment from sample 0 that was killed."""
    LedgerWriter(run, Progress(), world(), "7.0")
    opened = json.loads((run / "segment.json").read_text())
    opened |= {"startup_seconds": startup, "launch_seconds": launch}
    (run / "segment.json").write_text(json.dumps(opened))
    for rank, fields in enumerate(beats):
        beat = Heartbeat("7.0", rank, 2, f"n{rank + 1}", 1, "training", 0, 0.1, time.time())
        write_heartbeat(run, replace(beat, **fields))
    LedgerWriter(run, Progress(resumed), world(1), "7.1")
    return read_ledger(run)[0]


def test_time_of_a_killed_segment_is_divided(tmp_path: Path) -> None:
    """40 s until the job's process began, 60 s of start-up, 200 s of training; killed 5 s later."""
    line = killed(
        tmp_path,
        {"samples_seen": 640, "seconds": 265.0, "seconds_to_step": 260.0},
        {"samples_seen": 624, "seconds": 262.0, "seconds_to_step": 258.0},
        startup=100.0,
        launch=40.0,
    )
    assert (line.seconds, line.gpu_seconds, line.startup_seconds) == (305.0, 610.0, 100.0)
    assert (line.samples_to, line.lost_samples) == (128, 512)
    assert line.lost_seconds == 200.0 * 512 / 640


def test_start_up_of_a_hang_is_not_replay(tmp_path: Path) -> None:
    hang = {"state": "failed", "kind": "hang", "message": "no step", "seconds": 3600.0}
    line = killed(tmp_path, hang, hang, resumed=0)
    assert (line.reason, line.seconds, line.startup_seconds) == ("hang", 3600.0, 3600.0)
    assert (line.lost_samples, line.lost_seconds) == (0, 0.0)


def test_metrics_say_more_than_heartbeats(tmp_path: Path) -> None:
    """The only heartbeat was written at the start; training was killed within the next seconds."""
    (tmp_path / "metrics.jsonl").write_text('{"samples": 640, "step": 40, "time": 0.0}\n')
    line = killed(tmp_path, {"state": "starting", "seconds": 3.0}, startup=4.0)
    assert (line.lost_samples, line.startup_seconds) == (512, 4.0)


def test_metrics_of_the_segment_before_do_not_count(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"samples": 640, "step": 40, "time": 0.0}\n')
    assert killed(tmp_path, {"state": "starting", "seconds": 3.0}, resumed=0).lost_samples == 0


def test_wall_clock_that_is_set_back_changes_no_duration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wall, steady = [2e9], [1e4]
    clocks = {"time": lambda: wall[0], "monotonic": lambda: steady[0]}
    replace_time(monkeypatch, ledger_writer, processes, **clocks)
    ledger = LedgerWriter(tmp_path, Progress(), world(), "7.0")
    age = own_age()
    for seconds, act in ((20, ledger.training), (60, lambda: None)):
        wall[0] += seconds - 3600
        steady[0] += seconds
        act()
    ledger.close(Progress(64), Progress(128), Failure("preempted", ""), seconds_since_step=10)
    (line,) = read_ledger(tmp_path)
    assert line.seconds == pytest.approx(80 + age, abs=1)
    assert line.gpu_seconds == pytest.approx(2 * line.seconds, abs=0.2)
    assert line.startup_seconds == pytest.approx(20 + age, abs=1)
    assert line.lost_seconds == pytest.approx(50 / 2, abs=0.1)
    assert timestamp(line.ended) - timestamp(line.started) == pytest.approx(line.seconds, abs=0.1)

    LedgerWriter(tmp_path, Progress(64), world(1), "7.1")
    opened = json.loads((tmp_path / "segment.json").read_text())
    assert opened["queue_seconds"] == 0.0
    wall[0] -= 7200
    beat = Heartbeat("7.1", 0, 2, "n1", 1, "training", 192, 0.1, wall[0], seconds=33.0)
    write_heartbeat(tmp_path, beat)
    LedgerWriter(tmp_path, Progress(64), world(2), "7.2")
    assert read_ledger(tmp_path)[1].seconds == 33.0


def closed(samples_from: int, samples_to: int, **fields: Any) -> dict[str, Any]:
    return {"samples_from": samples_from, "samples_to": samples_to, "reason": "preempted", **fields}


def write_lines(run: Path, *records: dict[str, Any]) -> None:
    started = {"job_id": "7", "world_size": 2, "started": utc(1e9), "ended": utc(1e9)}
    lines = [{"segment": number, **started, **record} for number, record in enumerate(records)]
    (run / "ledger.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_samples_that_are_rolled_back_are_lost(tmp_path: Path) -> None:
    write_lines(
        tmp_path,
        closed(0, 10_000, seconds=1_050, startup_seconds=50),
        closed(10_000, 18_000, seconds=900, startup_seconds=60, lost_seconds=40),
        closed(18_000, 9_000, reason="rolled_back"),
        closed(9_000, 20_000, seconds=1_100),
    )
    LedgerWriter(tmp_path, Progress(2_272), world(), "8.0")
    line = read_ledger(tmp_path)[-1]
    assert (line.reason, line.lost_samples) == ("rolled_back", 17_728)
    assert (line.seconds, line.gpu_seconds) == (0.0, 0.0)
    # 11,000 samples of the last segment, and 6,728 of the 10,000 of the first, which took 0.1 s each.
    assert line.lost_seconds == pytest.approx(1_100 + 672.8, abs=0.1)


def test_killed_segment_that_is_rolled_back_beyond_its_start(tmp_path: Path) -> None:
    write_lines(tmp_path, closed(0, 640, seconds=64))
    LedgerWriter(tmp_path, Progress(640), world(), "7.1")
    beat = Heartbeat("7.1", 0, 2, "n1", 1, "training", 960, 0.1, time.time(), seconds=10.0)
    write_heartbeat(tmp_path, beat)
    LedgerWriter(tmp_path, Progress(320), world(2), "7.2")
    _, killed, back = read_ledger(tmp_path)
    assert (killed.samples_from, killed.samples_to, killed.lost_samples) == (640, 640, 320)
    assert (back.reason, back.samples_from, back.samples_to, back.lost_samples) == (
        "rolled_back",
        640,
        320,
        320,
    )
    assert back.lost_seconds == 32.0


def at(second: float) -> str:
    return utc(1e9 + second)


def past(started: float, ended: float, job_id: str = "7") -> PastStart:
    return PastStart(job_id, 1e9 + started, 1e9 + ended, "FAILED", 2)


def test_slurm_says_how_long_a_job_held_its_nodes(tmp_path: Path) -> None:
    """The second start ended before its segment began; the first one took 45 s to leave its nodes."""
    write_lines(
        tmp_path,
        closed(0, 640, started=at(2), ended=at(100), seconds=98.0, gpu_seconds=196.0),
        closed(640, 960, started=at(400), ended=at(500), seconds=100.0, gpu_seconds=200.0, restarts=2),
    )
    times = SlurmTimes((past(0, 145), past(265, 325), past(399, 500.4)), seconds_of_job=None)
    LedgerWriter(tmp_path, Progress(960), world(3), "7.3", times)
    first, second, failed = read_ledger(tmp_path)
    assert (first.seconds, first.gpu_seconds, first.ended) == (143.0, 286.0, utc(1e9 + 145))
    assert second.seconds == pytest.approx(100.4)
    assert (failed.reason, failed.seconds, failed.gpu_seconds) == ("failed_start", 60.0, 120.0)
    assert (failed.samples_from, failed.samples_to, failed.startup_seconds) == (960, 960, 60.0)
    assert failed.detail == "it ended before its segment began (Slurm: FAILED)"
    opened = json.loads((tmp_path / "segment.json").read_text())
    assert opened["segment"] == 3

    # Slurm says the same at the next start: nothing is booked twice.
    LedgerWriter(tmp_path, Progress(960), world(4), "7.4", times)
    assert [line.reason for line in read_ledger(tmp_path)].count("failed_start") == 1


@pytest.mark.parametrize(("left", "seconds"), [(103, 101.0), (99, 98.0), (None, 98.0)])
def test_last_line_lasts_until_its_batch_script_left(
    tmp_path: Path, left: float | None, seconds: float
) -> None:
    """No later start corrects it."""
    write_lines(tmp_path, closed(0, 640, attempt="7.0", started=at(2), ended=at(100), seconds=98.0))
    notes = [{"attempt": "7.0", "began": 1e9}]
    notes += [{"attempt": "7.0", "left": 1e9 + left}] if left else []
    (tmp_path / "starts.jsonl").write_text("".join(json.dumps(note) + "\n" for note in notes))
    for lines in (read_ledger(tmp_path), tail_ledger(tmp_path, 10**6)):
        assert lines[-1].seconds == seconds
        assert lines[-1].gpu_seconds == (2 * seconds if seconds != 98.0 else 0.0)


def test_time_of_leaving_is_written_by_the_next_start(tmp_path: Path) -> None:
    """Readers correct only the last line, so the correction must be in the file before another line is."""
    write_lines(tmp_path, closed(0, 640, attempt="7.0", started=at(2), ended=at(100), seconds=98.0))
    notes = [{"attempt": "7.0", "began": 1e9}, {"attempt": "7.0", "left": 1e9 + 103}]
    (tmp_path / "starts.jsonl").write_text("".join(json.dumps(note) + "\n" for note in notes))
    LedgerWriter(tmp_path, Progress(640), world(1), "7.1", SlurmTimes((past(0, 103),)))
    assert json.loads((tmp_path / "ledger.jsonl").read_text())["seconds"] == 101.0


def test_clocks_that_differ_book_nothing_twice(tmp_path: Path) -> None:
    write_lines(tmp_path, closed(0, 640, started=at(300), ended=at(400), seconds=100.0))
    LedgerWriter(tmp_path, Progress(640), world(1), "7.1", SlurmTimes((past(0, 100),)))
    (line,) = read_ledger(tmp_path)
    assert line.seconds == 100.0


def test_segment_begins_with_its_job(tmp_path: Path) -> None:
    age = own_age()
    LedgerWriter(tmp_path, Progress(), world(), "7.0", SlurmTimes((), seconds_of_job=age + 90)).close(
        Progress(64), Progress(64), Failure("preempted", "")
    )
    (line,) = read_ledger(tmp_path)
    assert line.launch_seconds == pytest.approx(90, abs=1)
    assert line.seconds == pytest.approx(age + 90, abs=1)


def test_failed_starts_and_roll_backs_do_not_hide_fruitless_segments() -> None:
    lines = [
        line("hang", 0),
        line("failed_start", 0),
        line("hang", 0),
        line("rolled_back", -64),
        line("hang", 0),
    ]
    assert len(fruitless_segments(lines, 0.0)) == 3


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
    # psutil knows the time of the boot in whole seconds, to which it adds the start of the process.
    waited = psutil.Process().create_time() - ended
    assert read_ledger(tmp_path)[1].queue_seconds == pytest.approx(max(0.0, waited), abs=1.1)


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
    SHAPES[shape](path, path.read_bytes().rstrip())  # without the room for its end
    LedgerWriter(tmp_path, Progress(128), world(2), "7.2")

    before, line = read_ledger(tmp_path)
    assert before.reason == "preempted"
    assert (line.segment, line.attempt, line.job_id, line.restarts) == (1, "7.1", "7", 1)
    assert (line.samples_from, line.samples_to, line.lost_samples) == (64, 128, 64)
    assert (line.reason, line.nodes, line.seconds) == ("killed", ("n1",), 0.0)
    assert json.loads(path.read_text())["segment"] == 2
    assert ("is now segment.json.damaged1" in caplog.text) == (shape != "missing")


def test_start_that_opened_no_segment_keeps_the_digests_though_the_run_is_rolled_back(tmp_path: Path) -> None:
    """It was refused because all checkpoints were lost; after that, a person allowed to begin at zero."""
    end = Progress(64, OrderDigest(5), content=ContentDigest(6))
    LedgerWriter(tmp_path, Progress.of_new_run(), world(), "7.0").close(end, end, Failure("preempted", ""))
    write_heartbeat(tmp_path, Heartbeat("7.1", 0, 2, "n1", 1, "failed", 0, 0.1, time.time(), kind="input"))
    LedgerWriter(tmp_path, Progress.of_new_run(), world(2), "7.2")

    _, refused, rolled_back = read_ledger(tmp_path)
    assert (refused.reason, refused.samples_from, refused.samples_to) == ("input", 64, 64)
    assert (refused.digest, refused.content) == (end.digest.hex(), end.content_hex)
    assert (rolled_back.reason, rolled_back.samples_to, rolled_back.lost_samples) == ("rolled_back", 0, 64)
    assert (rolled_back.digest, rolled_back.content) == ("0" * 16, "0" * 16)


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
