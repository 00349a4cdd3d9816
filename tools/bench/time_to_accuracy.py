"""Time to the same zero-shot accuracy, half of the patches masked and none, for both trainers.

    pip install --no-deps --target /tmp/openclip_data webdataset==0.2.86 pandas python-dateutil six
    python tools/bench/time_to_accuracy.py --openclip /tmp/openclip_data --out docs/benchmarks/PAGE.md

The tool writes a page and, next to it, the raw numbers (.json). OpenCLIP 3.3.0's `open_clip_train` needs
webdataset <= 0.2.86 and pandas, which flipscale does not: `--openclip` is the directory that has them. All
runs have the same shards, initial weights, shape, batch, learning rates and budget; one trains at a time,
on all cores. The same code scores the checkpoints of both trainers afterwards, and only training counts as
time.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from datetime import date
from importlib.metadata import distributions, version
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # tools/, for the package below

from reproduction import toy
from reproduction.machine import cores, processor
from time_to_accuracy_page import RATIOS, TRAINERS, page
from toy_trainers import ROOT, open_clip_model, overrides, train_flipscale, train_open_clip

from flipscale.config import Job, load_job
from flipscale.data.text.of_job import load_job_tokenizer
from flipscale.data.text.tokenizer import Tokenizer
from flipscale.distributed.placement import Placement
from flipscale.distributed.world import World, join_world
from flipscale.evaluation.evaluate import evaluate
from flipscale.evaluation.features import Encoder
from flipscale.interop.load_model import load_model
from flipscale.interop.openclip_export import export_openclip
from flipscale.models.flip import FLIP, build_model
from flipscale.models.of_job import model_spec
from flipscale.runs.manifest import directory_name

CHECKPOINTS = 5  # of a run, evenly spaced


def accuracy(model: FLIP, tokenizer: Tokenizer, job: Job, world: World) -> float:
    """Return the zero-shot top-1 of a model on the set of the job."""
    encoder = Encoder(model, tokenizer, model.spec.vision.image_size, world)
    (result,) = evaluate(encoder, job.evaluation, batch_size=256)["zero_shot"].values()
    assert result["top1"] is not None, "single labels have a top-1"
    return result["top1"]


def measure(scratch: Path, data: Path, packages: Path, seeds: int, samples: int) -> dict[str, Any]:
    """Train and score all runs.

    Args:
        scratch: Directory of the runs.
        data: Directory of the toy data set, which is made if it does not exist.
        packages: Directory with webdataset <= 0.2.86 and pandas.
        seeds: Number of seeds.
        samples: Budget of every run.

    Returns:
        Under "curves", (seconds, accuracy) of every checkpoint by trainer and mask, one list per seed.
    """
    toy.make_data(data, workers=cores())
    every = samples // CHECKPOINTS
    world = join_world(Placement())
    curves: dict[str, dict[str, list[list[tuple[float, float]]]]] = {
        trainer: {f"{ratio:.0%}": [] for ratio in RATIOS} for trainer in TRAINERS
    }

    for seed in range(seeds):
        runs = [(trainer, ratio) for trainer in TRAINERS for ratio in RATIOS]
        for trainer, ratio in runs if seed % 2 == 0 else reversed(runs):
            place = scratch / f"{trainer}_{ratio}_{seed}"
            changes = overrides(data, place, ratio, seed, samples, every)
            job = load_job(ROOT / "jobs" / toy.JOB, changes)
            tokenizer = load_job_tokenizer(job.data.tokenizer)

            if trainer == "flipscale":
                times = train_flipscale(job, changes, every)
                models = (
                    load_model(place / "checkpoints" / directory_name(at), world).model for at, _ in times
                )
            else:
                start = scratch / f"start_{seed}"
                spec = model_spec(job, tokenizer)
                export_openclip(build_model(spec, seed), spec, start, tokenizer=tokenizer)
                times = train_open_clip(job, start, place, packages, every)
                models = (open_clip_model(start, place, at) for at, _ in times)

            curve = [
                (seconds, accuracy(model, tokenizer, job, world))
                for (_, seconds), model in zip(times, models, strict=True)
            ]
            curves[trainer][f"{ratio:.0%}"].append(curve)
            print(f"{trainer}, {ratio:.0%} masked, seed {seed}: {curve}", flush=True)

    return {"curves": curves, "samples": samples, "every": every, "seeds": seeds}


def main() -> None:
    """Measure, and write the page with its raw numbers."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--openclip", type=Path, required=True, help="directory with webdataset 0.2.86 and pandas"
    )
    parser.add_argument("--out", type=Path, required=True, help="page to write (.md)")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--samples", type=int, default=12_800, help="budget of every run, a multiple of 5 x 64"
    )
    parser.add_argument("--data", type=Path, help="directory of the toy data set, made if it does not exist")
    arguments = parser.parse_args()

    arguments.out.parent.mkdir(parents=True, exist_ok=True)  # before minutes of measuring
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
    )
    with tempfile.TemporaryDirectory() as scratch:
        raw = measure(
            Path(scratch),
            (arguments.data or Path(scratch) / "data").resolve(),
            arguments.openclip.resolve(),
            arguments.seeds,
            arguments.samples,
        )

    raw |= {
        "commit": commit.stdout.strip(),
        "date": date.today().isoformat(),
        "cores": cores(),
        "processor": processor(),
        "versions": {
            "torch": torch.__version__,
            "open_clip": version("open_clip_torch"),
            "webdataset": _version_in(arguments.openclip, "webdataset"),
        },
    }
    out = arguments.out.with_suffix(".json")
    out.write_text(json.dumps(raw) + "\n")
    arguments.out.write_text(page(raw, out.name))
    print(arguments.out.read_text())


def _version_in(packages: Path, name: str) -> str:
    (distribution,) = distributions(name=name, path=[str(packages)])
    return distribution.version


if __name__ == "__main__":
    main()
