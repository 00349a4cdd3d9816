"""A run that is killed and started again by the same command ends as if nothing had happened."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import pytest
from support.time_limits import wait_until
from support.tiny_run import TinyRun

from flipscale.runs.ledger import read_ledger

MakeRun = Callable[..., TinyRun]


def kill_at_random_moments(run: TinyRun, kills: int, seed: int) -> None:
    """SIGKILL the run and its workers `kills` times, each time some steps and a random moment later."""
    rng = random.Random(seed)
    for number in range(kills):
        process = run.start()
        wanted = 1 + number * 3 + rng.randrange(3)  # lines of metrics, one for 3 steps
        wait_until(lambda: len(run.metrics()) >= wanted or process.poll() is not None, interval=0.005)  # noqa: B023
        time.sleep(rng.random() * 0.1)  # the random moment
        assert process.poll() is None, "the run ended before it could be killed"
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.communicate()


@pytest.mark.slow
def test_five_kills_leave_no_trace(tiny_run: MakeRun, straight: TinyRun) -> None:
    killed = tiny_run("killed")
    kill_at_random_moments(killed, 5, seed=1)
    assert killed.train().returncode == 0
    assert killed.weights() == straight.weights()
    assert killed.metrics() == straight.metrics()
    assert killed.last_manifest()["progress"] == straight.last_manifest()["progress"]
    reasons = [line.reason for line in read_ledger(killed.output)]
    assert reasons == ["killed"] * 5 + ["done"]
    assert sum(line.samples_to - line.samples_from for line in read_ledger(killed.output)) == 792


def kill_in_a_save(run: TinyRun, rng: random.Random) -> None:
    """SIGKILL the run at a random moment while it writes a checkpoint that is not yet committed."""
    process = run.start("checkpoint.every=1 steps")
    committed = set((run.output / "checkpoints").glob("samples_*/manifest.json"))

    def saves_further_than_before() -> bool:
        assert process.poll() is None, "the run ended before it could be killed"
        manifests = set((run.output / "checkpoints").glob("samples_*/manifest.json"))
        return bool(manifests - committed) and any((run.output / "checkpoints").glob("saving_*"))

    wait_until(saves_further_than_before, interval=0)
    time.sleep(rng.random() * 0.02)  # the random moment
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(900)
def test_twenty_kills_in_the_middle_of_a_save(tiny_run: MakeRun, straight: TinyRun) -> None:
    killed = tiny_run("killed")
    rng = random.Random(7)
    unfinished = 0
    for _ in range(20):
        kill_in_a_save(killed, rng)
        unfinished += any((killed.output / "checkpoints").glob("saving_*"))
    assert unfinished >= 10, "most kills came after the save"
    assert killed.train().returncode == 0
    assert killed.weights() == straight.weights()
    assert killed.metrics() == straight.metrics()
    assert killed.last_manifest()["progress"] == straight.last_manifest()["progress"]
    assert flipscale_audit(killed).returncode == 0


def flipscale_audit(run: TinyRun) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "flipscale", "data", "audit", str(run.output)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_loader_workers_change_nothing(tiny_run: MakeRun, straight: TinyRun) -> None:
    run = tiny_run(data={"workers": 3})
    kill_at_random_moments(run, 2, seed=3)
    assert run.train().returncode == 0
    assert run.weights() == straight.weights()
    assert run.metrics() == straight.metrics()


@pytest.mark.slow
@pytest.mark.executes  # torchrun, as a user starts it
@pytest.mark.parametrize(
    ("precision", "tolerance"), [("fp64", 1e-9), pytest.param("fp32", 1e-4, marks=pytest.mark.long)]
)
def test_two_processes_train_as_one(tiny_run: MakeRun, precision: str, tolerance: float) -> None:
    """fp32 differs by rounding that training amplifies; fp64 shows that nothing else differs."""
    masked = dict(name="masked", samples=400, mask_ratio=0.5, batch_size=16, base_lr=0.02, warmup=64)
    unmasked = dict(name="unmasked", samples=72, mask_ratio=0.0, batch_size=16, base_lr=0.002)
    changes = {"sharding": {"precision": precision}, "logging": {"every": "1 steps", "tensorboard": False}}
    one, two = (tiny_run(name, phases=[masked, unmasked], **changes) for name in ("one", "two"))
    assert one.train().returncode == 0
    done = two.train(processes=2)
    assert done.returncode == 0, done.stderr
    assert [m["digest"] for m in two.metrics()] == [m["digest"] for m in one.metrics()]
    pairs = list(zip(one.metrics(), two.metrics(), strict=True))
    assert len(pairs) == 30
    assert max(abs(a["loss"] - b["loss"]) for a, b in pairs) <= tolerance


@pytest.mark.slow
def test_four_processes_resume_to_the_bit(tiny_run: MakeRun) -> None:
    """With more than two, sums depend on where in a message a gradient is, and so on DDP's buckets."""
    straight, stopped = tiny_run("straight"), tiny_run("stopped")
    assert straight.train(processes=4).returncode == 0

    process = stopped.start(processes=4)
    wait_until(lambda: len(stopped.metrics()) >= 3 or process.poll() is not None, interval=0.005)
    (stopped.output / "STOP").touch()
    process.communicate()
    assert process.returncode != 0
    assert 0 < stopped.last_manifest()["progress"]["samples_seen"] < 640

    (stopped.output / "STOP").unlink(missing_ok=True)
    assert stopped.train(processes=4).returncode == 0
    assert stopped.weights() == straight.weights()
    assert stopped.metrics() == straight.metrics()


@pytest.mark.slow
def test_the_world_size_may_change_between_starts(tiny_run: MakeRun, straight: TinyRun) -> None:
    moved = tiny_run("moved")
    assert moved.train("phases.1.samples=152", "--time-limit", "1s").returncode in (0, 75)
    assert moved.train(processes=2).returncode == 0
    assert moved.last_manifest()["progress"]["digest"] == straight.last_manifest()["progress"]["digest"]


@pytest.mark.slow
@pytest.mark.parametrize("request_name", ["SIGTERM", "SIGINT", "SIGUSR2", "STOP"])
def test_a_request_to_stop_saves_and_exits_75(tiny_run: MakeRun, request_name: str) -> None:
    run = tiny_run(
        "stopped", phases=[dict(name="long", samples=160000, mask_ratio=0.5, batch_size=16, base_lr=0.01)]
    )
    process = run.start("checkpoint.every=1h")
    wait_until(lambda: run.metrics() or process.poll() is not None)
    assert process.poll() is None, "the run ended before it could be stopped"
    if request_name == "STOP":
        (run.output / "STOP").touch()
    else:
        process.send_signal(getattr(signal, request_name))
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 75, errors
    assert "same command again" in errors
    assert "Traceback" not in errors
    assert not (run.output / "STOP").exists()
    line = read_ledger(run.output)[-1]
    assert line.reason == "stopped"
    assert line.samples_to == run.last_manifest()["progress"]["samples_seen"] > 0
