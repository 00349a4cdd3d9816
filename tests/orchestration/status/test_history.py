"""Where the time of a run went, and how long the rest takes."""

from __future__ import annotations

import pytest
from support.status_times import ago, status_of, two_hours, utc


def test_where_the_time_went(run, slurm):
    status = status_of(two_hours(run))
    assert [segment.queue_seconds for segment in status.segments] == pytest.approx([100, 300], abs=2)
    assert status.lost.startup_seconds == 80
    assert status.lost.replay_seconds == 40
    assert status.lost.queue_seconds == pytest.approx(400, abs=4)
    assert status.lost.total_seconds == pytest.approx(520, abs=4)
    assert status.lost.gpu_hours == pytest.approx(2 * 120 / 3600, abs=1e-4)
    assert status.gpu_hours == pytest.approx(3200 / 3600, abs=1e-4)
    assert status.speed.eta_from == "history"
    assert status.speed.eta_seconds == pytest.approx(400 / (600 / 2000), rel=0.01)


def test_time_until_a_person_fixes_a_run_does_not_count_as_queue(run, slurm):
    two_hours(run).submitted("8", time=ago(1000))
    slurm.answers("8|PENDING|Priority|")
    status = status_of(run)
    assert status.next == "waiting in the queue (Priority)"
    assert status.lost.queue_seconds == pytest.approx(1400, abs=5)  # 400 before, 1000 since


def test_operations_are_the_mean_over_time_and_missing_for_old_lines(run):
    """5 samples at 10/s take four times as long as at 40/s: (4 x 20 + 80) / 5 TFLOP/s."""
    for number, speed in enumerate((10.0, 40.0), start=1):
        run.metrics(
            samples=8 * number, time=ago(0), images_per_second=speed, tflops=2 * speed, mfu=speed / 500
        )
    run.open_segment(started=utc(ago(60)))
    speed = status_of(run).speed
    assert (speed.tflops, speed.mfu) == (pytest.approx(32.0), pytest.approx(0.032))

    run.metrics(samples=24, time=ago(0), images_per_second=10.0)
    speed = status_of(run).speed
    assert (speed.tflops, speed.mfu) == (None, None)


def test_without_history_the_recent_speed_gives_the_time_left(run):
    for number in range(1, 5):
        run.metrics(samples=8 * number, time=ago(0), images_per_second=[10.0, 40.0][number % 2])
    run.open_segment(started=utc(ago(60)))
    status = status_of(run)
    assert status.speed.eta_from == "speed"
    assert status.speed.images_per_second == pytest.approx(16.0)  # 16 samples in 1/10 + 1/40 of 8 s
    assert status.speed.eta_seconds == pytest.approx((1000 - 32) / 16.0, rel=1e-3)
