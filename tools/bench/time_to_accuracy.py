"""Time to the same zero-shot accuracy, half of the patches masked against none, beside OpenCLIP's trainer.

    pip install --no-deps --target /tmp/openclip_data webdataset==0.2.86 pandas python-dateutil six
    python tools/bench/time_to_accuracy.py --openclip /tmp/openclip_data --out docs/benchmarks/PAGE.md

writes a page and, beside it, its raw numbers (.json). OpenCLIP 3.3.0's `open_clip_train` needs webdataset
<= 0.2.86 and pandas, which flipscale does not: `--openclip` is where they lie. All runs have the same shards,
initial weights, shape, batch, learning rates and budget; one trains at a time, on all cores. Its checkpoints
are scored afterwards by the same code, and only training counts as time.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import date
from importlib.metadata import distributions, version
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # tools/, for the package below

from reproduction import toy
from reproduction.curves import REACHED, Curve, Ratio, common_target, crossing, time_ratio
from reproduction.machine import cores, precision, processor
from reproduction.scores import seconds_at, training_clock

from flipscale.config import Job, load_job
from flipscale.data.text.tokenizer import Tokenizer, load_tokenizer
from flipscale.distributed.placement import Placement
from flipscale.distributed.world import World, join_world
from flipscale.errors import UserError
from flipscale.evaluation.evaluate import evaluate
from flipscale.evaluation.features import Encoder
from flipscale.interop.load_model import load_model
from flipscale.interop.mapping import flipscale_state, spec_of_open_clip
from flipscale.interop.openclip_directory import CONFIG
from flipscale.interop.openclip_export import export_openclip
from flipscale.models.flip import FLIP, build_model
from flipscale.models.of_job import model_spec
from flipscale.runs.checkpoint import directory_name
from flipscale.runs.metrics import read_metrics

ROOT = Path(__file__).resolve().parents[2]
TRAINERS = ("flipscale", "open_clip")
RATIOS = (0.0, 0.5)
BATCH, BASE_LR = 64, 4e-3
CHECKPOINTS = 5  # of a run, evenly spaced

PAGE = """# Time to the same zero-shot accuracy: half of the patches masked against none

Commit {commit}, {date}. {cores} cores of {processor}, torch {torch}, open_clip {open_clip} with webdataset
{webdataset}. Made by `tools/bench/time_to_accuracy.py`; raw numbers: `{raw}`.

Both trainers have the same shards ({protocol}), the same initial weights (flipscale's, exported), the
model `vit_tiny_p8` (64 patches, 32 text tokens), {samples:,} samples in batches of {batch}, AdamW (0.9,
0.95, decay 0.2), the same warm-up and cosine from a peak of {lr:g}, {precision}, random crops of area
0.5 to 1, and one loader process. OpenCLIP's trainer is its own `open_clip_train`, which masks by
`--force-patch-dropout` and draws shards with replacement (`--dataset-resampled`), while flipscale reads
every sample once an epoch; each keeps its own choice of what decays, and OpenCLIP's patch embedding has
no bias. {seeds} seeds; one run trains at a time, on all cores. Checkpoints every {every:,} samples are
scored afterwards, both trainers' by flipscale's zero-shot (fp32, whole images) over {test:,} unseen
images of 72 classes. Time is of training alone, as each trainer's loop takes it, from its first batch
on (OpenCLIP's waits for its shuffle buffer there).

## Masking 50 % against none
Times to the same accuracy, which every run of the trainer reaches ({share:.0%} of the lowest best one),
on the line between two checkpoints: ratio of the time without a mask to that with one, geometric mean
over seeds and its 95 % interval.

| trainer | accuracy | seconds, no mask | seconds, 50 % masked | ratio | of the whole budget |
|---|---|---|---|---|---|
{masking}

## Both trainers
To {joint:.1%}, which every run of both reaches: seconds, and how many times sooner flipscale is there.

| mask | open_clip | flipscale | ratio |
|---|---|---|---|
{trainers}

## Accuracy over training time
Top-1 after so many seconds of training, mean over seeds.

{curves}
"""


def overrides(data: Path, output: Path, ratio: float, seed: int, samples: int, every: int) -> list[str]:
    """Of `jobs/toy.yaml`, for one run of flipscale."""
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
    variables = {"OMP_NUM_THREADS": str(cores()), "OMP_WAIT_POLICY": "passive"}
    python_path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return {**os.environ, **variables, "PYTHONPATH": python_path, **more}


def train_flipscale(job: Job, changes: Sequence[str], every: int) -> list[tuple[int, float]]:
    """Train; return (samples, seconds of training) at every checkpoint."""
    command = [sys.executable, "-m", "flipscale", "train", str(ROOT / "jobs" / toy.JOB), *changes]
    subprocess.run(command, env=environment(), check=True)
    assert job.output is not None
    clock = training_clock(read_metrics(Path(job.output)))
    return [(at, seconds_at(clock, at)) for at in range(every, clock[-1][0] + 1, every)]


def train_open_clip(job: Job, start: Path, logs: Path, needs: Path, every: int) -> list[tuple[int, float]]:
    """Train from `start` with OpenCLIP's own trainer; return the same."""
    (phase,) = job.phases
    low, high = job.data.augmentation.crop_area
    settings = {
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
    given = [str(word) for setting in settings.items() for word in setting]
    command = [sys.executable, str(Path(__file__).with_name("openclip_trainer.py")), str(needs)]
    command += [str(_marks(logs)), str(every // phase.batch_size)]
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    subprocess.run([*command, *given, "--dataset-resampled"], env=environment(**offline), check=True)
    seconds = json.loads((_marks(logs) / "seconds.json").read_text())
    return [(int(steps) * phase.batch_size, at) for steps, at in seconds.items()]


def _marks(logs: Path) -> Path:
    return logs.with_name(f"{logs.name}_marks")


def open_clip_model(start: Path, logs: Path, samples: int) -> FLIP:
    """The model after so many samples, in flipscale's terms."""
    saved = torch.load(_marks(logs) / f"step_{samples // BATCH}.pt", weights_only=True)
    spec = spec_of_open_clip(json.loads((start / CONFIG).read_text()), saved, None, "open_clip")
    model = build_model(spec, device="meta").to_empty(device="cpu")
    model.load_state_dict(flipscale_state(saved, spec, None))
    return model


def accuracy(model: FLIP, tokenizer: Tokenizer, job: Job, world: World) -> float:
    encoder = Encoder(model, tokenizer, model.spec.vision.image_size, world)
    (result,) = evaluate(encoder, job.evaluation, batch_size=256)["zero_shot"].values()
    assert result["top1"] is not None, "single labels have a top-1"
    return result["top1"]


def measure(scratch: Path, data: Path, needs: Path, seeds: int, samples: int) -> dict[str, Any]:
    """(seconds, accuracy) of every checkpoint of every run, by trainer and mask, a list for each seed."""
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
            source = job.data.tokenizer
            tokenizer = load_tokenizer(source.kind, source.vocab, source.context_length)
            if trainer == "flipscale":
                times = train_flipscale(job, changes, every)
                models = (
                    load_model(place / "checkpoints" / directory_name(at), world).model for at, _ in times
                )
            else:
                start = scratch / f"start_{seed}"
                spec = model_spec(job, tokenizer)
                export_openclip(build_model(spec, seed), spec, start, tokenizer=tokenizer)
                times = train_open_clip(job, start, place, needs, every)
                models = (open_clip_model(start, place, at) for at, _ in times)
            curve = [
                (seconds, accuracy(model, tokenizer, job, world))
                for (_, seconds), model in zip(times, models, strict=True)
            ]
            curves[trainer][f"{ratio:.0%}"].append(curve)
            print(f"{trainer}, {ratio:.0%} masked, seed {seed}: {curve}", flush=True)
    return {"curves": curves, "samples": samples, "every": every, "seeds": seeds}


def analysis(curves: Mapping[str, Mapping[str, Sequence[Curve]]]) -> dict[str, Any]:
    """What the page says: times and ratios, from the curves by trainer and mask."""
    joint = common_target(
        [curve for of_mask in curves.values() for group in of_mask.values() for curve in group]
    )
    if joint <= 0:
        raise UserError("a run never scored, so that no time can be told; give more --samples")
    masking: dict[str, Any] = {}
    for trainer in TRAINERS:
        plain, masked = (curves[trainer][f"{ratio:.0%}"] for ratio in RATIOS)
        target = common_target([*plain, *masked])
        masking[trainer] = {
            "accuracy": target,
            "seconds": [_mean_time(plain, target), _mean_time(masked, target)],
            "ratio": asdict(time_ratio(plain, masked, target)),
            "budget": statistics.fmean(curve[-1][0] for curve in plain)
            / statistics.fmean(curve[-1][0] for curve in masked),
        }
    trainers = {
        mask: {
            "seconds": [_mean_time(curves[trainer][mask], joint) for trainer in reversed(TRAINERS)],
            "ratio": asdict(time_ratio(curves["open_clip"][mask], curves["flipscale"][mask], joint)),
        }
        for mask in (f"{ratio:.0%}" for ratio in RATIOS)
    }
    return {"masking": masking, "joint": joint, "trainers": trainers}


def _mean_time(curves: Sequence[Curve], target: float) -> float:
    times = [crossing(curve, target) for curve in curves]
    return statistics.fmean(time for time in times if time is not None)


def page(raw: Mapping[str, Any], raw_name: str) -> str:
    """Markdown of what was measured."""
    found = analysis(raw["curves"])
    masking = [
        f"| {trainer} | {row['accuracy']:.1%} | {row['seconds'][0]:.1f} | {row['seconds'][1]:.1f} | "
        f"{_told(Ratio(**row['ratio']))} | {row['budget']:.2f} |"
        for trainer, row in found["masking"].items()
    ]
    trainers = [
        f"| {mask} | {row['seconds'][0]:.1f} | {row['seconds'][1]:.1f} | {_told(Ratio(**row['ratio']))} |"
        for mask, row in found["trainers"].items()
    ]
    places = range(raw["every"], raw["samples"] + 1, raw["every"])
    curves = [
        "| trainer, mask | " + " | ".join(f"{place:,} samples" for place in places) + " |",
        "|---" * (len(places) + 1) + "|",
    ]
    for trainer, by_mask in raw["curves"].items():
        for mask, group in by_mask.items():
            points = zip(*group, strict=True)  # one place of all seeds at a time
            texts = [
                f"{statistics.fmean(share for _, share in point):.1%} after "
                f"{statistics.fmean(seconds for seconds, _ in point):.1f} s"
                for point in points
            ]
            curves.append(f"| {trainer}, {mask} | " + " | ".join(texts) + " |")
    return PAGE.format(
        **{key: raw[key] for key in ("commit", "date", "cores", "processor", "samples", "every", "seeds")},
        **raw["versions"],
        raw=raw_name,
        protocol=f"{toy.SHARDS * toy.SHARD:,} rendered scenes of {toy.IMAGE_SIZE} px",
        batch=BATCH,
        lr=BASE_LR * BATCH / 256,
        precision=precision(),
        test=toy.SHARD,
        share=REACHED,
        masking="\n".join(masking),
        joint=found["joint"],
        trainers="\n".join(trainers),
        curves="\n".join(curves),
    )


def _told(ratio: Ratio) -> str:
    return f"{ratio.mean:.2f}" + ("" if ratio.low is None else f" ({ratio.low:.2f} to {ratio.high:.2f})")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--openclip", type=Path, required=True, help="where webdataset 0.2.86 and pandas lie")
    parser.add_argument("--out", type=Path, required=True, help="page to write (.md)")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=12_800, help="of every run, a multiple of 5 x 64")
    parser.add_argument("--data", type=Path, help="keep the toy data set here, or use the one that is")
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
    (found,) = distributions(name=name, path=[str(packages)])
    return found.version


if __name__ == "__main__":
    main()
