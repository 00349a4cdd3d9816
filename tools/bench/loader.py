"""Images per second per core of the loader, compared with OpenCLIP's webdataset pipeline on the same shards.

    pip install --no-deps --target /tmp/openclip_data webdataset==0.2.86 pandas python-dateutil six
    python tools/bench/loader.py --openclip /tmp/openclip_data --out docs/benchmarks/loader_cpu_DATE.md

The tool writes a page and, next to it, the raw numbers (.json). OpenCLIP 3.3.0 needs webdataset <= 0.2.86
and pandas, which flipscale does not: `--openclip` is the directory that has them. Both loaders run in this
process, on one core, a batch of each in turn. Seconds are those of the processor, without time taken by
other programs.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import os
import platform
import pstats
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from decoders import compare, psnr, scale_of, whole_by_pillow
from loader_page import page
from loader_pipelines import (
    CountingSource,
    flipscale_batches,
    open_reader,
    open_stream,
    openclip_batches,
    use_decoders,
)
from loader_settings import (
    BATCH,
    DECODER_ROUNDS,
    LANES,
    PROFILE_ROWS,
    PROFILED,
    RESUME_SAMPLES,
    RESUME_SHARDS,
    RESUME_TURNS,
    SHARD_SAMPLES,
    SHARDS,
    SIDE,
    VIEWS,
    WARM_UP,
)
from photographs import caption, make_shards
from PIL import features

from flipscale.data.order.lanes import uniforms
from flipscale.data.order.mixture import Mixture
from flipscale.data.samples import decode
from flipscale.data.samples.augment import DRAWS, random_views
from flipscale.data.shards.index import Index
from flipscale.data.shards.index_document import load_index
from flipscale.data.shards.indexing import build_index
from flipscale.data.shards.source import ShardSource
from flipscale.data.text.vocabulary import learn_vocab


def take_turns(loaders: dict[str, Iterator[Any]], rounds: int) -> dict[str, list[float]]:
    """Return the processor seconds of every batch, by loader."""
    seconds: dict[str, list[float]] = {name: [] for name in loaders}
    for turn in range(-WARM_UP, rounds):
        for name in list(loaders) if turn % 2 else reversed(list(loaders)):
            began = time.process_time()
            next(loaders[name])
            if turn >= 0:
                seconds[name].append(time.process_time() - began)

    return seconds


def crops_psnr(index: Index, vocab: Path, count: int) -> tuple[list[float], float]:
    """Return the PSNR of the first crops in dB, and the share of them that was decoded at a smaller scale."""
    source = ShardSource(index)
    order = Mixture(index.counts, LANES, 2048, seed=0)
    positions = np.arange(count)
    images = open_reader(source, vocab).read(positions).images.numpy()
    views = random_views(np.full(count, SIDE), np.full(count, SIDE), uniforms(0, positions, DRAWS), VIEWS)

    quality: list[float] = []
    for image, view, shard, ordinal in zip(images, views, *order.locate(positions), strict=True):
        member = index.members[index.first_rows[shard] + ordinal]
        data = source.read(int(shard), int(member["image"]), int(member["image_bytes"]))
        expected = whole_by_pillow(data, view)
        quality.append(psnr(image.transpose(1, 2, 0), expected[:, ::-1] if view.flip else expected))

    return quality, sum(scale_of(view) > 1 for view in views) / count


def profile(batches: Iterator[Any], count: int) -> list[tuple[str, float]]:
    """Return the costliest functions with their milliseconds per image."""
    profiler = cProfile.Profile(time.process_time)
    profiler.enable()
    for _ in range(count):
        next(batches)
    profiler.disable()

    rows: list[tuple[str, float]] = []
    statistics: Any = pstats.Stats(profiler)
    for (file, _, function), (_, _, own, _, _) in statistics.stats.items():
        place = "" if file == "~" else f" ({Path(file).parent.name}/{Path(file).name})"
        rows.append((f"{function}{place}".replace("|", ""), 1000 * own / (count * BATCH)))

    rows.sort(key=lambda row: -row[1])
    return [*rows[:PROFILE_ROWS], ("everything else", sum(row[1] for row in rows[PROFILE_ROWS:]))]


def measure_resuming(root: Path, vocab: Path) -> dict[str, Any]:
    """Return time and reads from opening the index to the first batch, at the start and in mid-epoch."""
    index = root / "index"
    build_index(make_shards(root, RESUME_SHARDS, RESUME_SAMPLES, 64), index)
    middle = RESUME_SHARDS * RESUME_SAMPLES // 2 // BATCH * BATCH

    seconds: dict[int, list[float]] = {0: [], middle: []}
    reads: dict[int, tuple[int, int]] = {}
    for turn in range(RESUME_TURNS + 1):
        for start in (0, middle) if turn % 2 else (middle, 0):
            began = time.process_time()
            source = CountingSource(load_index(index))
            batches = open_stream(open_reader(source, vocab), RESUME_SHARDS * RESUME_SAMPLES).batches(start)
            next(batches)
            if turn:  # the first turn warms up
                seconds[start].append(time.process_time() - began)
            batches.close()
            reads[start] = len(source.sizes) // 2, sum(source.sizes)  # two members per sample

    ratios = [later / first for later, first in zip(seconds[middle], seconds[0], strict=True)]
    return {
        "start_samples": reads[0][0],
        "middle_samples": reads[middle][0],
        "start_bytes": reads[0][1],
        "middle_bytes": reads[middle][1],
        "start_seconds": statistics.median(seconds[0]),
        "middle_seconds": statistics.median(seconds[middle]),
        "resume_ratio": statistics.median(ratios),
        "resume_low": min(ratios),
        "resume_high": max(ratios),
    }


def measure(root: Path, openclip: Path, rounds: int) -> dict[str, Any]:
    """Make the shards in a scratch directory, and return all measurements."""
    pattern = make_shards(root, SHARDS, SHARD_SAMPLES, SIDE)
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    torch.set_num_threads(1)

    index = build_index(pattern, root / "index")
    vocab = root / "vocab.txt"
    learn_vocab([caption(number) for number in range(1000)], 30_522, vocab)

    libraries = {name: getattr(decode, name) for name in ("simplejpeg", "cykooz_resizer")}
    loaders = {
        "OpenCLIP": openclip_batches(pattern, openclip),
        "flipscale": flipscale_batches(index, vocab, libraries),
        "flipscale, only Pillow": flipscale_batches(index, vocab, dict.fromkeys(libraries)),
    }
    seconds = take_turns(loaders, rounds)
    profiles = {name: profile(batches, PROFILED) for name, batches in loaders.items()}

    use_decoders(libraries)
    quality, scaled = crops_psnr(index, vocab, 4 * BATCH)
    (root / "many").mkdir()
    return {
        "seconds": seconds,
        "profiles": profiles,
        "psnr": quality,
        "scaled": scaled,
        "image_bytes": [int(size) for size in index.members["image_bytes"]],
        "words": statistics.mean(len(caption(number).split()) for number in range(1000)),
        "decoders": {
            str(side): [asdict(row) for row in compare(side, images, DECODER_ROUNDS)]
            for side, images in ((512, 32), (1024, 8))
        },
        "resume": measure_resuming(root / "many", vocab),
    }


def processor() -> str:
    """Return the name of the processor."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def main() -> None:
    """Measure, and write the page with its raw numbers."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--openclip", type=Path, required=True, help="directory with webdataset 0.2.86 and pandas"
    )
    parser.add_argument("--out", type=Path, required=True, help="page to write (.md)")
    parser.add_argument("--rounds", type=int, default=20)
    arguments = parser.parse_args()

    arguments.out.parent.mkdir(parents=True, exist_ok=True)  # before minutes of measuring
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
    )
    with tempfile.TemporaryDirectory() as scratch:
        raw = measure(Path(scratch), arguments.openclip, arguments.rounds)

    raw |= {
        "commit": commit.stdout.strip(),
        "date": date.today().isoformat(),
        "processor": processor(),
        "versions": {
            "torch": torch.__version__,
            "pillow": version("pillow"),
            "turbo": features.version("libjpeg_turbo"),
            "simplejpeg": version("simplejpeg"),
            "cykooz": version("cykooz-resizer"),
            "webdataset": sys.modules["webdataset"].__version__,
        },
    }
    out = arguments.out.with_suffix(".json")
    out.write_text(json.dumps(raw) + "\n")
    arguments.out.write_text(page(raw, out.name))
    print(arguments.out.read_text())


if __name__ == "__main__":
    main()
