"""`flipscale bench loader`, and the plan that uses its rate."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from flipscale.cli.bench_loader import bench_loader
from flipscale.cli.plan import PlanOptions, plan
from flipscale.errors import UserError


def test_loader_is_measured_on_the_data_of_a_job(tiny_run):
    run = tiny_run()
    command = [sys.executable, "-m", "flipscale", "bench", "loader", str(run.job)]
    command += ["--seconds", "0.3", "--workers", "1", "--json"]

    done = subprocess.run(command, capture_output=True, text=True, check=True)

    rate = json.loads(done.stdout)
    assert rate["seconds"] >= 0.3
    assert rate["images"] % 64 == 0
    assert rate["images_per_second"] == pytest.approx(rate["images"] / rate["seconds"])
    assert rate["images_per_second_per_core"] == rate["images_per_second"]
    assert not Path(run.output).exists(), "only `train` writes into a run directory"


def test_command_says_how_to_use_the_rate(tiny_run, capsys):
    job = tiny_run().job
    bench_loader(job, [], 0.1, 0, as_json=False)

    printed = capsys.readouterr().out
    assert "by this process; 0 samples could not be used" in printed
    rate = printed.split(" images/s per core", 1)[0]
    assert printed.endswith(f"flipscale plan {job} --images-per-core {rate}\n")


def test_plan_says_how_many_cores_feed_a_gpu(tiny_run, capsys):
    job = tiny_run().job
    plan(PlanOptions(job=job, as_json=True, images_per_core=250.0))
    planned = json.loads(capsys.readouterr().out)
    masked, unmasked = planned["phases"]
    per_gpu = masked["samples"] / masked["seconds"] / planned["speed"]["gpus"]
    assert masked["loader_cores"] == pytest.approx(per_gpu / 250)
    assert masked["loader_cores"] > unmasked["loader_cores"]

    plan(PlanOptions(job=job, as_json=False))
    assert "450 images/s per core (--images-per-core; measure it with" in capsys.readouterr().out


def test_wrong_input_is_one_sentence(tiny_run):
    job = tiny_run().job
    for seconds in (0.0, math.nan, math.inf):
        with pytest.raises(UserError, match=f"--seconds is {seconds:g}; give a number above 0"):
            bench_loader(job, [], seconds, None, as_json=False)
    with pytest.raises(UserError, match="--workers is -1"):
        bench_loader(job, [], 1.0, -1, as_json=False)
    with pytest.raises(UserError, match=r"/no/such/0\.tar"):
        bench_loader(job, ["data.train=/no/such/{0..1}.tar"], 1.0, 0, as_json=False)
    with pytest.raises(UserError, match="--images-per-core is 0"):
        plan(PlanOptions(job=job, as_json=False, images_per_core=0.0))
