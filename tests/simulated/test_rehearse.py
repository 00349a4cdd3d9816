"""`flipscale rehearse`: what it finds in a job, and what bad input gets."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from support.time_limits import wait_until

JOBS = Path(__file__).resolve().parents[2] / "jobs"
COMMAND = Path(sys.executable).with_name("flipscale")
LAYERS = 12  # of each tower of vit_b16
ONE_PHASE = "phases=[{name: masked, samples: 16000, mask_ratio: 0.5, batch_size: 64, base_lr: 0.004}]"

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="the fake GPU needs a C++ compiler")


def flipscale(
    *arguments: object, command: str = "rehearse", **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a command of flipscale."""
    words = [str(COMMAND), command, *map(str, arguments)]
    return subprocess.run(
        words, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def base() -> dict[str, Any]:
    """ViT-B/16 with fsdp on 16 GPUs, and a batch of 2,048."""
    done = flipscale(
        JOBS / "vitl16_baseline.yaml",
        *("model.preset=vit_b16", "cluster.nodes=2", "sharding.activation_checkpointing=none"),
        *("sharding.strategy=fsdp", "sharding.shard_size=null", "sharding.reshard_after_forward=true"),
        "sharding.compile=false",  # tests/simulated/test_fused_kernels.py compiles
        *("phases.0.batch_size=2048", "phases.1.batch_size=2048", "--json"),
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def calls(found: dict[str, Any], phase: int, kind: str, dtype: str) -> int:
    """Return how often a phase calls a kind of collective."""
    collectives = found["phases"][phase]["collectives"]
    return sum(each["count"] for each in collectives if (each["kind"], each["dtype"]) == (kind, dtype))


@needs_compiler
@pytest.mark.slow
def test_collectives_of_a_step(base: dict[str, Any]):
    """A change of these numbers is a change of what crosses the network."""
    for phase in (0, 1):
        # Each block is gathered for the forward and again for the backward; the rest of the model once.
        assert calls(base, phase, "all_gather", "bfloat16") == 2 * 2 * LAYERS
        assert calls(base, phase, "all_gather", "float32") == 1 + 1  # the outer unit, the loss's texts
        # One column block of the loss, the outer unit, and the blocks.
        assert calls(base, phase, "reduce_scatter", "float32") == 2 * LAYERS + 1 + 1
        assert calls(base, phase, "all_reduce", "float64") == 1  # the norm
        assert calls(base, phase, "all_reduce", "float32") == 3  # the loss and its statistics

    ranks = {(each["ranks"], each["ranks_per_node"]) for each in base["phases"][0]["collectives"]}
    assert ranks == {(16, 8)}


@needs_compiler
@pytest.mark.slow
def test_peak_agrees_with_the_plan(base: dict[str, Any]):
    for phase in base["phases"]:
        assert 0.95 * phase["planned_peak"] <= phase["peak"] <= 1.05 * phase["planned_peak"]
        # Shares are padded to equal sizes, and the allocator rounds each of them up.
        for part in ("weights", "moments"):
            assert phase["planned"][part] <= phase["memory"][part] <= 1.1 * phase["planned"][part]


@needs_compiler
@pytest.mark.slow
def test_executed_operations_are_those_of_the_model_and_the_loss(base: dict[str, Any]):
    for phase in base["phases"]:
        assert phase["model_flops"] < phase["flops"] < 1.05 * phase["model_flops"]
        assert phase["problems"] == {}
        assert phase["time"]["total"] >= phase["time"]["device"] > 0

    # The second phase masks nothing. Its first step clears the moments, which is not what its steps cost.
    masked, unmasked = base["phases"]
    assert unmasked["launches"] < masked["launches"]


@needs_compiler
@pytest.mark.slow
def test_strategies_of_other_libraries_and_recomputation():
    """DeepSpeed's third stage waits for the device; the rehearsal says where."""
    job = (JOBS / "dev/tiny.yaml", ONE_PHASE, "sharding.precision=bf16", "--json")
    zero = flipscale(*job, "sharding.strategy=zero3", "sharding.compile=true", TORCH_COMPILE_DISABLE="1")
    assert zero.returncode == 0, zero.stderr
    problems = json.loads(zero.stdout)["phases"][0]["problems"]
    assert any("item waits for the device (deepspeed/" in problem for problem in problems)
    assert "torch compiled no block; unset TORCH_COMPILE_DISABLE" in json.loads(zero.stdout)["limits"][0]


@pytest.mark.slow
def test_graphs_of_a_job_that_compiles(tmp_path: Path):
    """Two towers, micro-batches of two sizes, each with and without a gradient."""
    job = (JOBS / "dev/tiny.yaml", ONE_PHASE, "sharding.compile=true", "sharding.micro_batch=5", "--json")
    done = flipscale(*job, "sharding.activation_checkpointing=selective", PATH=str(tmp_path), CXX="")
    assert done.returncode == 0, done.stderr
    compiled = json.loads(done.stdout)["compiled"]
    assert compiled["graphs"] == 2 * 2 * 2
    assert (compiled["breaks"], compiled["uncompiled"]) == (0, 0)


@pytest.mark.slow
def test_machine_without_a_compiler_says_what_it_cannot_see(tmp_path: Path):
    done = flipscale(JOBS / "dev/tiny.yaml", ONE_PHASE, PATH=str(tmp_path), CXX="")
    assert done.returncode == 0, done.stderr
    assert "not looked at: no C++ compiler is installed" in done.stdout
    assert "never waits" not in done.stdout

    # Its memory and times would be zeros in the units of large jobs.
    assert max(len(line) for line in done.stdout.splitlines() if line[:1] in "┃│┏└┡├") <= 80
    assert "peak, MiB per GPU" in done.stdout
    total = next(line for line in done.stdout.splitlines() if line.startswith("│ total"))
    assert all(float(cell) > 0 for cell in total.split("│")[2:-1])


def phases_of(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """Return the processes of the phases that a rehearsal has started."""
    assert process.poll() is None
    found: list[psutil.Process] = []
    for child in psutil.Process(process.pid).children():
        with suppress(psutil.Error):  # the compiler ends meanwhile
            if "flipscale.rehearsal.child" in child.cmdline():
                found.append(child)
    return found


@pytest.mark.slow
def test_sigterm_leaves_nothing_behind(tmp_path: Path):
    """Neither the directory nor the processes of the phases, which would compute for minutes."""
    words = [str(COMMAND), "rehearse", JOBS / "vitl16_baseline.yaml"]
    process = subprocess.Popen(words, env={**os.environ, "TMPDIR": str(tmp_path)}, stderr=subprocess.PIPE)
    children = wait_until(lambda: phases_of(process), interval=0.05)

    process.terminate()
    _, errors = process.communicate()
    assert (process.returncode, errors) == (-signal.SIGTERM, b"")
    assert list(tmp_path.iterdir()) == []
    assert psutil.wait_procs(children, timeout=60)[1] == []


@needs_compiler
@pytest.mark.slow
def test_submission_of_a_step_that_does_not_fit_is_refused(tmp_path: Path):
    site = tmp_path / "site.yaml"
    site.write_text("gpu: a100-40gb\n")
    job = (JOBS / "dev/tiny.yaml", ONE_PHASE, f"output={tmp_path / 'run'}", "--dry-run", "--rehearse")
    large = ("model=vit_b16", "phases.0.batch_size=8192", "phases.0.samples=16384")

    done = flipscale(*job, *large, "--site", site, command="submit")
    assert done.returncode == 2
    assert "tiny: the step of phase masked does not fit a a100-40gb" in done.stderr.splitlines()[-1]
    assert not (tmp_path / "run").exists()

    unnamed = flipscale(*job, command="submit", FLIPSCALE_SITE="")
    assert unnamed.returncode == 2
    assert "name it as `gpu` in the site file" in unnamed.stderr


@needs_compiler
@pytest.mark.slow
def test_rehearsal_of_a_dry_run_is_in_its_json(tmp_path: Path):
    """Behind the backward of DeepSpeed's first stage, nothing hides the gather of the updated weights."""
    site = tmp_path / "site.yaml"
    site.write_text("gpu: h100-80gb\n")
    job = (JOBS / "dev/tiny.yaml", ONE_PHASE, f"output={tmp_path / 'run'}", "sharding.strategy=zero1")
    done = flipscale(
        *(*job, "sharding.precision=bf16", "--dry-run", "--rehearse", "--json", "--site", site),
        command="submit",
    )
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(done.stdout)["rehearsals"]
    for phase in found["phases"]:
        gathers = [
            one for one in phase["collectives"] if one["kind"] == "all_gather" and one["bytes"] > 2**20
        ]
        assert gathers
        assert all(one["blocking"] for one in gathers)
        assert phase["time"]["exposed"] >= sum(one["seconds"] for one in gathers)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpu", "h100"], "there is no GPU 'h100' in the table; did you mean"),
        (["--gpus", "0"], "0 is not a number of GPUs"),
        (["--gpus", "3"], "3"),
        (["--sweep", "--rehearse"], "rehearse the candidate that you choose, without --sweep"),
        (["--rank", "2"], "--rank 2 does not exist; the ranks of 2 GPUs are 0 to 1"),
        (["sharding.strategy=hsdp", "sharding.shard_size=4"], "shard_size"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_bad_input_gets_one_sentence(arguments: list[str], message: str):
    command = "plan" if "--sweep" in arguments else "rehearse"
    done = flipscale(JOBS / "dev/tiny.yaml", *arguments, command=command)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stdout == ""
