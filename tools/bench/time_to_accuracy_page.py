"""The page of the time-to-accuracy benchmark, and the ratios that it shows."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # tools/, for the package below

from reproduction import toy
from reproduction.curves import REACHED, Curve, Ratio, common_target, crossing, time_ratio
from reproduction.machine import precision
from toy_trainers import BASE_LR, BATCH

from flipscale.errors import UserError

TRAINERS = ("flipscale", "open_clip")
RATIOS = (0.0, 0.5)

PAGE = """# Time to the same zero-shot accuracy: half of the patches masked, compared with none

Commit {commit}, {date}. {cores} cores of {processor}, torch {torch}, open_clip {open_clip} with webdataset
{webdataset}. Made by `tools/bench/time_to_accuracy.py`; raw numbers: `{raw}`.

Both trainers have the same shards ({protocol}), the same initial weights (flipscale's, exported), the
model `vit_tiny_p8` (64 patches, 32 text tokens), {samples:,} samples in batches of {batch}, AdamW (0.9,
0.95, decay 0.2), the same warm-up and cosine from a peak of {lr:g}, {precision}, random crops of area
0.5 to 1, and one loader process. OpenCLIP's trainer is its own `open_clip_train`, which masks by
`--force-patch-dropout` and draws shards with replacement (`--dataset-resampled`), while flipscale reads
every sample once per epoch. Each keeps its own choice of what decays, and OpenCLIP's patch embedding has
no bias. {seeds} seeds; one run trains at a time, on all cores. Checkpoints every {every:,} samples are
scored afterwards, both trainers' by flipscale's zero-shot (fp32, whole images) over {test:,} unseen
images of 72 classes. Time is only that of training, as each trainer's loop takes it, from its first batch
on (OpenCLIP's waits for its shuffle buffer there).

## Masking 50 % compared with none
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


def analysis(curves: Mapping[str, Mapping[str, Sequence[Curve]]]) -> dict[str, Any]:
    """Return times and ratios.

    Args:
        curves: (seconds, accuracy) of the checkpoints, by trainer and mask, one curve per seed.

    Raises:
        UserError: If a run never scored.
    """
    joint = common_target(
        [curve for of_mask in curves.values() for group in of_mask.values() for curve in group]
    )
    if joint <= 0:
        raise UserError("a run never scored, so that no time can be reported; give more --samples")

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
    """Return the page as Markdown.

    Args:
        raw: The measurements.
        raw_name: Name of the file that has them.
    """
    results = analysis(raw["curves"])
    masking = [
        f"| {trainer} | {row['accuracy']:.1%} | {row['seconds'][0]:.1f} | {row['seconds'][1]:.1f} | "
        f"{_ratio_text(Ratio(**row['ratio']))} | {row['budget']:.2f} |"
        for trainer, row in results["masking"].items()
    ]
    trainers = [
        f"| {mask} | {row['seconds'][0]:.1f} | {row['seconds'][1]:.1f} | "
        f"{_ratio_text(Ratio(**row['ratio']))} |"
        for mask, row in results["trainers"].items()
    ]

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
        joint=results["joint"],
        trainers="\n".join(trainers),
        curves="\n".join(_curve_table(raw)),
    )


def _curve_table(raw: Mapping[str, Any]) -> list[str]:
    """Return the mean accuracy of each trainer and mask at every checkpoint."""
    places = range(raw["every"], raw["samples"] + 1, raw["every"])
    lines = [
        "| trainer, mask | " + " | ".join(f"{place:,} samples" for place in places) + " |",
        "|---" * (len(places) + 1) + "|",
    ]

    for trainer, by_mask in raw["curves"].items():
        for mask, group in by_mask.items():
            points = zip(*group, strict=True)  # one checkpoint of all seeds at a time
            texts = [
                f"{statistics.fmean(share for _, share in point):.1%} after "
                f"{statistics.fmean(seconds for seconds, _ in point):.1f} s"
                for point in points
            ]
            lines.append(f"| {trainer}, {mask} | " + " | ".join(texts) + " |")
    return lines


def _ratio_text(ratio: Ratio) -> str:
    return f"{ratio.mean:.2f}" + ("" if ratio.low is None else f" ({ratio.low:.2f} to {ratio.high:.2f})")
