"""Images per second per core of the loader, beside OpenCLIP's webdataset pipeline on the same shards.

    pip install --no-deps --target /tmp/openclip_data webdataset==0.2.86 pandas python-dateutil six
    python tools/bench/loader.py --openclip /tmp/openclip_data --out docs/benchmarks/loader_cpu_DATE.md

writes a page and, beside it, its raw numbers (.json). OpenCLIP 3.3.0 needs webdataset <= 0.2.86 and pandas,
which flipscale does not: `--openclip` is where they lie. Both loaders run in this one process, on one core,
a batch of each in turn; seconds are those of the processor, which leave out the time taken by others.
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
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import asdict
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from decoders import compare, psnr, scale_of, whole_by_pillow
from photographs import QUALITY, caption, make_shards
from PIL import features

from flipscale.budget import Budget
from flipscale.config import Augmentation, Phase
from flipscale.data.order.lanes import uniforms
from flipscale.data.order.mixture import Mixture
from flipscale.data.samples import decode
from flipscale.data.samples.augment import DRAWS, random_views
from flipscale.data.samples.reader import ReaderSettings, SampleReader
from flipscale.data.samples.stream import LaneShare, Stream
from flipscale.data.shards.index import Index, load_index
from flipscale.data.shards.indexing import build_index
from flipscale.data.shards.source import ShardSource
from flipscale.data.text.tokenizer import load_tokenizer
from flipscale.data.text.vocabulary import learn_vocab
from flipscale.third_party import import_open_clip

SHARDS, SHARD_SAMPLES = 6, 64
SIDE, OUTPUT = 512, 224  # pixels
VIEWS = Augmentation()  # area 0.5 to 1
BATCH, LANES, LIMIT = 64, 64, 100_000_000
BUFFER = 200  # samples that OpenCLIP shuffles among
WARM_UP, PROFILED, PROFILE_ROWS, DECODER_ROUNDS = 3, 3, 8, 7
RESUME_SHARDS, RESUME_SAMPLES, RESUME_TURNS = 1000, 8, 9

PAGE = """# Loader: images per second per core, beside OpenCLIP's webdataset pipeline

Commit {commit}, {date}. {processor}, one core, torch {torch}, Pillow {pillow} (libjpeg-turbo {turbo}),
simplejpeg {simplejpeg}, cykooz-resizer {cykooz}, open_clip 3.3.0 with webdataset {webdataset}.
Made by `tools/bench/loader.py`; raw numbers: `{raw}`.

{samples} samples in {shards} tars: JPEG of {side} x {side} pixels, quality {quality}, 4:2:0,
with captions of {words:.0f} words. The pictures are made (`tools/bench/photographs.py`: dead leaves, fractal
texture, shading, grain) so that their entropy is a photograph's: {kilobytes:.0f} kB on average,
{smallest:.0f} to {largest:.0f}. Views of {output} pixels, area {low} to {high} of the image.

## Both loaders
In one process on one core, a batch of {batch} each in turn, {rounds} rounds, every second one in reverse
order. Seconds are of the processor: the machine is shared. OpenCLIP's pipeline is its own
`get_wds_dataset` (`--dataset-resampled`) with its train transform, `scale=({low}, {high})`, and
its tokenizer; its shuffle buffer is cut from 5,000 samples to {buffer}, which only spares it memory.
It gives normalised floats, flipscale bytes, which the model normalises on the device.

| loader | images/s a core | times OpenCLIP's, median (lowest to highest) |
|---|---|---|
{loaders}

PSNR of flipscale's crops against an exact decode (Pillow, whole image, same boxes), over {compared} crops:
mean {psnr:.1f} dB, lowest {lowest:.1f} dB; {scaled:.0%} of them were decoded at half size.
Equal pixels count as 60 dB.

## Where the time goes
Milliseconds of the processor an image, by `cProfile` over {profiled} images each. Profiling itself slows
Python code, and absolute times on a shared machine vary: compare the shares.

{profiles}

## Decoders
From bytes to pixels of a view, in turns over the same views; the header is read by Pillow in each.
Speed-up over the first line: median (lowest to highest) of {turns} rounds. A view that keeps at least
{output} pixels a side at 1/2, 1/4 or 1/8 is decoded so; other views whole.

{decoders}

PyTurboJPEG (decodes a region, too) has no libjpeg-turbo in its wheel and needs the system's; torchvision's
decoder does not scale, and loads only beside the torch build that it was compiled for. At every scale libjpeg
reads the entropy-coded data to its end: that finds damage, and is most of what is left.

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


def openclip_batches(pattern: str, path: Path) -> Iterator[Any]:
    sys.path.insert(0, str(path))
    open_clip = import_open_clip()
    from open_clip_train import data

    data._SAMPLE_SHUFFLE_SIZE = data._SAMPLE_SHUFFLE_INITIAL = BUFFER
    transform = open_clip.transform.image_transform(
        OUTPUT, is_train=True, aug_cfg=open_clip.transform.AugmentationCfg(scale=VIEWS.crop_area)
    )
    arguments = Namespace(
        train_data=pattern,
        train_num_samples=10**9,
        dataset_resampled=True,
        train_data_upsampling_factors=None,
        seed=0,
        workers=0,
        world_size=1,
        batch_size=BATCH,
    )
    info = data.get_wds_dataset(arguments, transform, True, tokenizer=open_clip.get_tokenizer("ViT-B-16"))
    return iter(info.dataloader)


class CountingSource(ShardSource):
    """Shards that know how much was read of them."""

    def __init__(self, index: Index) -> None:
        super().__init__(index)
        self.sizes: list[int] = []

    def bytes(self, shard: int, offset: int, size: int) -> bytes:
        self.sizes.append(size)
        return super().bytes(shard, offset, size)


def open_reader(source: ShardSource, lanes: int, vocab: Path) -> SampleReader:
    tokenizer = load_tokenizer("wordpiece", str(vocab))
    order = Mixture(source.index.counts, lanes, 2048, seed=0)
    return SampleReader(source, order, tokenizer, ReaderSettings(OUTPUT, VIEWS, LIMIT))


def stream(reader: SampleReader, lanes: int, samples: int) -> Stream:
    phase = Phase(name="bench", samples=samples, mask_ratio=0.0, batch_size=BATCH, base_lr=1.0)
    return Stream(reader, Budget.of([phase], lanes), LaneShare(lanes), workers=0)


def use(libraries: dict[str, Any]) -> None:
    """Decode with these; None stands for one that is not installed."""
    for name, library in libraries.items():
        setattr(decode, name, library)


def flipscale_batches(index: Index, vocab: Path, libraries: dict[str, Any]) -> Iterator[Any]:
    """Batches decoded with these libraries, whatever the other loaders have set."""
    batches = stream(open_reader(ShardSource(index), LANES, vocab), LANES, 10**7 // BATCH * BATCH).batches(0)
    while True:
        use(libraries)
        yield next(batches)


def take_turns(loaders: dict[str, Iterator[Any]], rounds: int) -> dict[str, list[float]]:
    """Processor seconds of every batch."""
    seconds: dict[str, list[float]] = {name: [] for name in loaders}
    for turn in range(-WARM_UP, rounds):
        for name in list(loaders) if turn % 2 else reversed(list(loaders)):
            began = time.process_time()
            next(loaders[name])
            if turn >= 0:
                seconds[name].append(time.process_time() - began)
    return seconds


def crops_psnr(index: Index, vocab: Path, count: int) -> tuple[list[float], float]:
    """PSNR of the first `count` crops, and the share of them that was decoded at a smaller scale."""
    source = ShardSource(index)
    reader = open_reader(source, LANES, vocab)
    order = Mixture(index.counts, LANES, 2048, seed=0)
    positions = np.arange(count)
    images = reader.read(positions).images.numpy()
    views = random_views(np.full(count, SIDE), np.full(count, SIDE), uniforms(0, positions, DRAWS), VIEWS)
    quality: list[float] = []
    for image, view, shard, ordinal in zip(images, views, *order.locate(positions), strict=True):
        member = index.members[index.first_rows[shard] + ordinal]
        data = source.bytes(int(shard), int(member["image"]), int(member["image_bytes"]))
        expected = whole_by_pillow(data, view)
        quality.append(psnr(image.transpose(1, 2, 0), expected[:, ::-1] if view.flip else expected))
    return quality, sum(scale_of(view) > 1 for view in views) / count


def profile(batches: Iterator[Any], count: int) -> list[tuple[str, float]]:
    """The costliest functions: name, milliseconds an image."""
    profiler = cProfile.Profile(time.process_time)
    profiler.enable()
    for _ in range(count):
        next(batches)
    profiler.disable()
    rows: list[tuple[str, float]] = []
    for (file, _, function), (_, _, own, _, _) in pstats.Stats(profiler).stats.items():  # type: ignore[attr-defined]
        place = "" if file == "~" else f" ({Path(file).parent.name}/{Path(file).name})"
        rows.append((f"{function}{place}".replace("|", ""), 1000 * own / (count * BATCH)))
    rows.sort(key=lambda row: -row[1])
    return [*rows[:PROFILE_ROWS], ("everything else", sum(row[1] for row in rows[PROFILE_ROWS:]))]


def resuming(root: Path, vocab: Path) -> dict[str, Any]:
    """Time and reads from opening the index to the first batch, at the start and mid-epoch in turn."""
    index = root / "index"
    build_index(make_shards(root, RESUME_SHARDS, RESUME_SAMPLES, 64), index)
    middle = RESUME_SHARDS * RESUME_SAMPLES // 2 // BATCH * BATCH
    seconds: dict[int, list[float]] = {0: [], middle: []}
    reads: dict[int, tuple[int, int]] = {}
    for turn in range(RESUME_TURNS + 1):
        for start in (0, middle) if turn % 2 else (middle, 0):
            began = time.process_time()
            source = CountingSource(load_index(index))
            reader = open_reader(source, LANES, vocab)
            batches = stream(reader, LANES, RESUME_SHARDS * RESUME_SAMPLES).batches(start)
            next(batches)
            if turn:
                seconds[start].append(time.process_time() - began)
            batches.close()
            reads[start] = len(source.sizes) // 2, sum(source.sizes)  # two members a sample
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
        "flipscale, Pillow alone": flipscale_batches(index, vocab, dict.fromkeys(libraries)),
    }
    seconds = take_turns(loaders, rounds)
    profiles = {name: profile(batches, PROFILED) for name, batches in loaders.items()}
    use(libraries)
    quality, scaled = crops_psnr(index, vocab, 4 * BATCH)
    sizes = [int(size) for size in index.members["image_bytes"]]
    (root / "many").mkdir()
    return {
        "seconds": seconds,
        "profiles": profiles,
        "psnr": quality,
        "scaled": scaled,
        "image_bytes": sizes,
        "words": statistics.mean(len(caption(number).split()) for number in range(1000)),
        "decoders": {
            str(side): [asdict(row) for row in compare(side, images, DECODER_ROUNDS)]
            for side, images in ((512, 32), (1024, 8))
        },
        "resume": resuming(root / "many", vocab),
    }


def page(raw: dict[str, Any], raw_name: str) -> str:
    openclip = raw["seconds"]["OpenCLIP"]
    rows: list[str] = []
    for name, seconds in raw["seconds"].items():
        ratios = [theirs / ours for theirs, ours in zip(openclip, seconds, strict=True)]
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        rows.append(f"| {name} | {BATCH / statistics.median(seconds):.0f} | {spread} |")
    profiles: list[str] = []
    for name, functions in raw["profiles"].items():
        profiles += [f"| {name} | ms |", "|---|---|", *(f"| {f} | {ms:.3f} |" for f, ms in functions), ""]
    decoders: list[str] = []
    for side, candidates in raw["decoders"].items():
        decoders += [
            f"| {side} x {side} pixels | ms | speed-up | mean PSNR | lowest |",
            "|---|---|---|---|---|",
        ]
        for row in candidates:
            speedup = f"{row['speedup']:.2f} ({row['speedups'][0]:.2f} to {row['speedups'][1]:.2f})"
            quality = f"{row['psnr']:.1f} | {row['lowest_psnr']:.1f}"
            decoders.append(f"| {row['name']} | {row['milliseconds']:.2f} | {speedup} | {quality} |")
        decoders.append("")
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
        rounds=len(openclip),
        buffer=BUFFER,
        loaders="\n".join(rows),
        compared=len(raw["psnr"]),
        psnr=statistics.mean(raw["psnr"]),
        lowest=min(raw["psnr"]),
        profiled=PROFILED * BATCH,
        profiles="\n".join(profiles).strip(),
        turns=DECODER_ROUNDS,
        decoders="\n".join(decoders).strip(),
        resume_shards=RESUME_SHARDS,
        resume_samples=RESUME_SAMPLES,
        resume_turns=RESUME_TURNS,
        lanes=LANES,
    )


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--openclip", type=Path, required=True, help="where webdataset 0.2.86 and pandas lie")
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
