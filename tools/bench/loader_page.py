"""The page of the loader's benchmark."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from loader_settings import (
    BATCH,
    BUFFER,
    DECODER_ROUNDS,
    LANES,
    OUTPUT,
    PROFILED,
    RESUME_SAMPLES,
    RESUME_SHARDS,
    RESUME_TURNS,
    SHARDS,
    SIDE,
    VIEWS,
)
from photographs import QUALITY

PAGE = """# Loader: images per second per core, compared with OpenCLIP's webdataset pipeline

Commit {commit}, {date}. {processor}, one core, torch {torch}, Pillow {pillow} (libjpeg-turbo {turbo}),
simplejpeg {simplejpeg}, cykooz-resizer {cykooz}, open_clip 3.3.0 with webdataset {webdataset}.
Made by `tools/bench/loader.py`; raw numbers: `{raw}`.

{samples} samples in {shards} tars: JPEG of {side} x {side} pixels, quality {quality}, 4:2:0,
with captions of {words:.0f} words. The pictures are synthetic (`tools/bench/photographs.py`: dead leaves,
fractal texture, shading, grain) and have the entropy of a photograph: {kilobytes:.0f} kB on average,
{smallest:.0f} to {largest:.0f}. Views of {output} pixels, area {low} to {high} of the image.

## Both loaders
In one process on one core, a batch of {batch} each in turn, {rounds} rounds, every second one in reverse
order. Seconds are of the processor: the machine is shared. OpenCLIP's pipeline is its own
`get_wds_dataset` (`--dataset-resampled`) with its train transform, `scale=({low}, {high})`, and
its tokenizer. Its shuffle buffer is cut from 5,000 samples to {buffer}, which only saves memory.
It returns normalised floats; flipscale returns bytes, which the model normalises on the device.

| loader | images/s per core | times OpenCLIP's, median (lowest to highest) |
|---|---|---|
{loaders}

PSNR of flipscale's crops against an exact decode (Pillow, whole image, same boxes), over {compared} crops:
mean {psnr:.1f} dB, lowest {lowest:.1f} dB; {scaled:.0%} of them were decoded at half size.
Equal pixels count as 60 dB.

## Where the time goes
Milliseconds of the processor per image, by `cProfile` over {profiled} images each. Profiling itself slows
Python code, and absolute times on a shared machine vary: compare the shares.

{profiles}

## Decoders
From bytes to pixels of a view, in turns over the same views; the header is read by Pillow in each.
Speed-up over the first line: median (lowest to highest) of {turns} rounds. A view that keeps at least
{output} pixels per side at 1/2, 1/4 or 1/8 is decoded at that scale; other views whole.

{decoders}

PyTurboJPEG (which can also decode a region) has no libjpeg-turbo in its wheel and needs the system's.
torchvision's decoder does not scale, and loads only with the torch build that it was compiled for. At every
scale libjpeg reads the entropy-coded data to its end: that finds damage, and is most of what is left.

## Resuming
{resume_shards:,} shards of {resume_samples} samples, {lanes} lanes, a batch of {batch}. A fresh index,
reader and stream each time, at the start and in the middle of an epoch in turn, {resume_turns} rounds.

| | start | middle of the epoch |
|---|---|---|
| samples read before the first batch | {start_samples} | {middle_samples} |
| bytes read before the first batch | {start_bytes:,} | {middle_bytes:,} |
| processor seconds to the first batch | {start_seconds:.3f} | {middle_seconds:.3f} |

Ratio of the times: {resume_ratio:.2f} ({resume_low:.2f} to {resume_high:.2f}).
"""


def page(raw: dict[str, Any], raw_name: str) -> str:
    """Return the page as Markdown.

    Args:
        raw: The measurements.
        raw_name: Name of the file that has them.
    """
    kilobytes = [size / 1000 for size in raw["image_bytes"]]
    return PAGE.format(
        **{key: raw[key] for key in ("commit", "date", "processor", "versions", "scaled", "words")},
        **raw["versions"],
        **raw["resume"],
        raw=raw_name,
        samples=len(kilobytes),
        shards=SHARDS,
        side=SIDE,
        quality=QUALITY,
        kilobytes=statistics.mean(kilobytes),
        smallest=min(kilobytes),
        largest=max(kilobytes),
        output=OUTPUT,
        low=VIEWS.crop_area[0],
        high=VIEWS.crop_area[1],
        batch=BATCH,
        rounds=len(raw["seconds"]["OpenCLIP"]),
        buffer=BUFFER,
        loaders="\n".join(_loader_rows(raw["seconds"])),
        compared=len(raw["psnr"]),
        psnr=statistics.mean(raw["psnr"]),
        lowest=min(raw["psnr"]),
        profiled=PROFILED * BATCH,
        profiles="\n".join(_profile_tables(raw["profiles"])).strip(),
        turns=DECODER_ROUNDS,
        decoders="\n".join(_decoder_tables(raw["decoders"])).strip(),
        resume_shards=RESUME_SHARDS,
        resume_samples=RESUME_SAMPLES,
        resume_turns=RESUME_TURNS,
        lanes=LANES,
    )


def _loader_rows(seconds_of: Mapping[str, list[float]]) -> list[str]:
    rows: list[str] = []
    for name, seconds in seconds_of.items():
        ratios = [theirs / ours for theirs, ours in zip(seconds_of["OpenCLIP"], seconds, strict=True)]
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        rows.append(f"| {name} | {BATCH / statistics.median(seconds):.0f} | {spread} |")

    return rows


def _profile_tables(profiles: Mapping[str, list[tuple[str, float]]]) -> list[str]:
    lines: list[str] = []
    for name, functions in profiles.items():
        lines += [f"| {name} | ms |", "|---|---|", *(f"| {f} | {ms:.3f} |" for f, ms in functions), ""]

    return lines


def _decoder_tables(decoders: Mapping[str, list[dict[str, Any]]]) -> list[str]:
    lines: list[str] = []
    for side, candidates in decoders.items():
        lines += [
            f"| {side} x {side} pixels | ms | speed-up | mean PSNR | lowest |",
            "|---|---|---|---|---|",
        ]
        for row in candidates:
            speedup = f"{row['speedup']:.2f} ({row['speedups'][0]:.2f} to {row['speedups'][1]:.2f})"
            quality = f"{row['psnr']:.1f} | {row['lowest_psnr']:.1f}"
            lines.append(f"| {row['name']} | {row['milliseconds']:.2f} | {speedup} | {quality} |")
        lines.append("")

    return lines
