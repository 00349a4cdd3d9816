"""Both trainers on the toy data set: flipscale's, and OpenCLIP's with the settings of the same job."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # tools/, for the package below

from reproduction import toy
from reproduction.machine import cores
from reproduction.scores import seconds_at, training_clock

from flipscale.config import Job
from flipscale.interop.openclip_config import spec_of_open_clip
from flipscale.interop.openclip_directory import CONFIG
from flipscale.interop.openclip_state import flipscale_state
from flipscale.models.flip import FLIP, build_model
from flipscale.runs.metrics import read_metrics

ROOT = Path(__file__).resolve().parents[2]
BATCH = 64
BASE_LR = 4e-3


def overrides(data: Path, output: Path, ratio: float, seed: int, samples: int, every: int) -> list[str]:
    """Return the overrides of `jobs/toy.yaml` for one run of flipscale.

    Args:
        data: Directory of the toy data set.
        output: Run directory.
        ratio: Mask ratio.
        seed: Seed of the run.
        samples: Budget of the run.
        every: Samples between two checkpoints.
    """
    phase = (
        f"{{name: masked, samples: {samples}, mask_ratio: {ratio}, batch_size: {BATCH}, "
        f"base_lr: {BASE_LR}, warmup: {samples // 10 // BATCH * BATCH}}}"
    )
    return [
        f"phases=[{phase}]",
        f"seed={seed}",
        f"output={output}",
        "data.workers=1",
        f"checkpoint={{every: [{every} samples], keep_every: {every}, keep_last: 2}}",
        *toy.local_overrides(data, toy.SHARDS),
        f"evaluation.zero_shot.seen_pairs.data={data}/test/00000.tar",  # half of it, for half the time
    ]


def environment(**more: str) -> dict[str, str]:
    """Return the environment of a trainer, which uses all cores."""
    variables = {"OMP_NUM_THREADS": str(cores()), "OMP_WAIT_POLICY": "passive"}
    python_path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return {**os.environ, **variables, "PYTHONPATH": python_path, **more}


def train_flipscale(job: Job, changes: Sequence[str], every: int) -> list[tuple[int, float]]:
    """Train with flipscale.

    Args:
        job: The job.
        changes: The overrides of `jobs/toy.yaml` that make it this job.
        every: Samples between two checkpoints.

    Returns:
        Samples and seconds of training at every checkpoint.
    """
    command = [sys.executable, "-m", "flipscale", "train", str(ROOT / "jobs" / toy.JOB), *changes]
    subprocess.run(command, env=environment(), check=True)

    assert job.output is not None
    clock = training_clock(read_metrics(Path(job.output)))
    return [(at, seconds_at(clock, at)) for at in range(every, clock[-1][0] + 1, every)]


def train_open_clip(job: Job, start: Path, logs: Path, packages: Path, every: int) -> list[tuple[int, float]]:
    """Train with OpenCLIP's own trainer.

    Args:
        job: The job whose settings it gets.
        start: OpenCLIP directory with the initial weights.
        logs: Directory of its logs.
        packages: Directory with webdataset <= 0.2.86 and pandas.
        every: Samples between two checkpoints.

    Returns:
        Samples and seconds of training at every checkpoint.
    """
    (phase,) = job.phases
    words = [str(word) for setting in _settings(job, start, logs).items() for word in setting]
    script = str(Path(__file__).with_name("openclip_trainer.py"))
    command = [sys.executable, script, str(packages), str(_marks(logs)), str(every // phase.batch_size)]

    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    subprocess.run([*command, *words, "--dataset-resampled"], env=environment(**offline), check=True)

    seconds = json.loads((_marks(logs) / "seconds.json").read_text())
    return [(int(steps) * phase.batch_size, at) for steps, at in seconds.items()]


def _settings(job: Job, start: Path, logs: Path) -> dict[str, object]:
    """Return the options of OpenCLIP's trainer that stand for a job."""
    (phase,) = job.phases
    low, high = job.data.augmentation.crop_area
    return {
        "--model": f"local-dir:{start}",
        "--train-data": job.data.train,
        "--dataset-type": "webdataset",
        "--train-num-samples": phase.samples,
        "--epochs": 1,
        "--batch-size": phase.batch_size,
        "--lr": phase.base_lr * phase.batch_size / 256,
        "--warmup": phase.warmup // phase.batch_size,
        "--beta1": job.optimizer.betas[0],
        "--beta2": job.optimizer.betas[1],
        "--eps": job.optimizer.eps,
        "--wd": job.optimizer.weight_decay,
        "--precision": job.sharding.precision if job.sharding.precision == "fp32" else "amp_bf16",
        "--workers": job.data.workers,
        "--seed": job.seed,
        "--force-patch-dropout": phase.mask_ratio,
        "--aug-cfg": f"scale=({low},{high})",
        "--logs": logs.parent,
        "--name": logs.name,
        "--save-frequency": 0,
        "--log-every-n-steps": 50,
        "--device": "cpu",
    }


def _marks(logs: Path) -> Path:
    """Return the directory of the weights that OpenCLIP's trainer keeps."""
    return logs.with_name(f"{logs.name}_marks")


def open_clip_model(start: Path, logs: Path, samples: int) -> FLIP:
    """Return OpenCLIP's model after a number of samples, converted to flipscale's."""
    saved = torch.load(_marks(logs) / f"step_{samples // BATCH}.pt", weights_only=True)
    spec = spec_of_open_clip(json.loads((start / CONFIG).read_text()), saved, None, "open_clip")

    model = build_model(spec, device="meta").to_empty(device="cpu")
    model.load_state_dict(flipscale_state(saved, spec, None))
    return model
