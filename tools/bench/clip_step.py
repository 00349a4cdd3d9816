"""A training step of a CLIP model next to stock OpenCLIP's, with captions as long as those of the web.

    python tools/bench/clip_step.py [--model clip_b16] [--batch 16] [--rounds 12] [--out PAGE.md]

Three steps take turns on this machine: stock OpenCLIP (its model, its loss, patch dropout for the mask,
AdamW), flipscale with whole captions, and flipscale with captions up to their ends. Each round runs each of
them once, and gives one ratio. Times depend on the machine, and so do ratios; the page has their spread.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flipscale.config import Job
from flipscale.distributed.world import World
from flipscale.models.flip import build_model
from flipscale.models.initialization import initial_value
from flipscale.models.inputs import Inputs
from flipscale.models.presets import ModelSpec, preset
from flipscale.sharding.shard import shard
from flipscale.third_party import import_open_clip
from flipscale.training.gradients import accumulate_gradients

MASK_RATIOS = (0.0, 0.5, 0.75)
MEDIAN_TOKENS, SPREAD = 21, 0.6  # of a log-normal distribution with a mean of about 25 tokens
STOCK, WHOLE, PACKED = "OpenCLIP", "whole captions", "up to their ends"

PAGE = """# A step of {model} next to stock OpenCLIP's

Commit {commit}, {date}. {processor}, {threads} threads, torch {torch}, open_clip {open_clip}.
Made by `tools/bench/clip_step.py`; raw numbers: `{raw}`.

{batch} pairs in {precision}; forward, loss, backward and AdamW. Captions have {tokens:.1f} tokens on average,
drawn from a log-normal distribution of median {median} (this repository holds no captions of the web). Each
of the {rounds} rounds runs each step once, in turns; a ratio is the time of OpenCLIP's step over that of
flipscale's in the same round: median, and smallest to largest.

| masked | whole captions | captions up to their ends | whole captions over their ends |
| --- | --- | --- | --- |
{rows}
"""


@dataclass
class Batch:
    """One batch of images, and of captions that end where those of the web do."""

    images: Tensor
    """uint8, which flipscale normalises within its step."""
    normalized: Tensor
    """The same as floats, which OpenCLIP's loader hands to its step."""
    texts: Tensor
    lengths: tuple[int, ...]

    @classmethod
    def draw(cls, spec: ModelSpec, pairs: int, seed: int) -> Batch:
        """Draw a batch."""
        random = np.random.default_rng(seed)
        lengths = np.clip(random.lognormal(np.log(MEDIAN_TOKENS), SPREAD, pairs), 3, spec.text.context_length)
        generator = torch.Generator().manual_seed(seed)
        side, end = spec.vision.image_size, spec.text.vocab_size - 1
        texts = torch.randint(1, end, (pairs, spec.text.context_length), generator=generator)
        for row, length in zip(texts, lengths.astype(int), strict=True):
            row[length - 1] = end
            row[length:] = 0
        images = torch.randint(256, (pairs, 3, side, side), dtype=torch.uint8, generator=generator)
        mean, std = (torch.tensor(three).view(3, 1, 1) for three in (spec.mean, spec.std))
        return cls(images, (images / 255 - mean) / std, texts, tuple(map(int, lengths)))


def our_step(
    spec: ModelSpec, mask_ratio: float, precision: str, *, packed: bool
) -> Callable[[Batch, int], float]:
    """Return a function that trains flipscale's model by a step, and returns the loss."""
    job = Job.model_validate(
        {
            "name": "bench",
            "model": spec.name,
            "data": {"train": "none.tar", "tokenizer": {"kind": "clip_bpe"}},
            "phases": [
                {"name": "p", "samples": 8, "mask_ratio": mask_ratio, "batch_size": 8, "base_lr": 1e-6}
            ],
            "sharding": {"strategy": "ddp", "precision": precision},
        }
    )
    world = World(0, 1, 0, 1, torch.device("cpu"))
    model = shard(build_model(spec, device="meta"), job.sharding, job.optimizer, job.seed, world)

    def step(batch: Batch, number: int) -> float:
        positions = torch.arange(len(batch.texts)) + number * len(batch.texts)
        pairs = Inputs(batch.images, batch.texts, lengths=batch.lengths if packed else None)
        inputs = pairs.masked(positions, job.phases[0], spec, padding_id=0, seed=0)
        loss = accumulate_gradients(model, inputs, job.loss, None)["loss"]
        norm = model.gradient_norm(None)
        model.update(1e-6, torch.isfinite(loss) & torch.isfinite(norm))
        return float(loss.detach())

    return step


def stock_step(spec: ModelSpec, mask_ratio: float, precision: str) -> Callable[[Batch, int], float]:
    """Return a function that trains OpenCLIP's model by a step, and returns the loss.

    The model has the shape and the initial weights of ours.
    """
    library: Any = import_open_clip()
    vision, text = spec.vision, spec.text
    model = library.CLIP(
        embed_dim=spec.embed_dim,
        vision_cfg={
            "image_size": vision.image_size,
            "patch_size": vision.patch_size,
            "width": vision.width,
            "layers": vision.layers,
            "head_width": vision.width // vision.heads,
            "patch_dropout": mask_ratio,
        },
        text_cfg={
            "context_length": text.context_length,
            "vocab_size": text.vocab_size,
            "width": text.width,
            "heads": text.heads,
            "layers": text.layers,
        },
    ).train()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(initial_value(name, parameter.shape, spec, seed=0))
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=1e-6, betas=(0.9, 0.98), weight_decay=0.2, fused=True
    )
    criterion = library.loss.ClipLoss()

    def step(batch: Batch, number: int) -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            images, texts, scale = model(batch.normalized, batch.texts)
            loss = criterion(images, texts, scale)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    return step


def measure(
    spec: ModelSpec, mask_ratio: float, pairs: int, rounds: int, precision: str
) -> dict[str, list[float]]:
    """Return the seconds of each contestant's steps, one per round."""
    contestants = {
        STOCK: stock_step(spec, mask_ratio, precision),
        WHOLE: our_step(spec, mask_ratio, precision, packed=False),
        PACKED: our_step(spec, mask_ratio, precision, packed=True),
    }
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds + 1):
        batch = Batch.draw(spec, pairs, number)
        names = list(contestants)
        for name in names[number % 3 :] + names[: number % 3]:
            began = time.perf_counter()
            contestants[name](batch, number)
            if number:  # the first round allocates the moments
                seconds[name].append(time.perf_counter() - began)
        print(f"masked {mask_ratio:.0%}: round {number} of {rounds}", file=sys.stderr)
    return seconds


def ratio(slower: Sequence[float], faster: Sequence[float]) -> str:
    """Return the ratio of times in the same rounds: its median, smallest and largest."""
    ratios = [one / other for one, other in zip(slower, faster, strict=True)]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def main() -> None:
    """Measure, and print or write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="clip_b16")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="bf16")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()

    spec = preset(options.model)
    if not spec.text.causal:
        parser.error(f"--model {options.model}: captions have ends in clip_* models only")
    seconds = {
        mask: measure(spec, mask, options.batch, options.rounds, options.precision) for mask in MASK_RATIOS
    }
    rows = [
        f"| {mask:.0%} | {ratio(of[STOCK], of[WHOLE])} | {ratio(of[STOCK], of[PACKED])} "
        f"| {ratio(of[WHOLE], of[PACKED])} |"
        for mask, of in seconds.items()
    ]
    lengths = [
        length
        for seed in range(options.rounds + 1)
        for length in Batch.draw(spec, options.batch, seed).lengths
    ]
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    page = PAGE.format(
        model=options.model,
        commit=commit.stdout.strip() or "none",
        date=date.today().isoformat(),
        processor=platform.processor() or platform.machine(),
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        open_clip=import_open_clip().__version__,
        raw="none" if options.out is None else options.out.with_suffix(".json").name,
        batch=options.batch,
        precision=options.precision,
        tokens=statistics.mean(lengths),
        median=MEDIAN_TOKENS,
        rounds=options.rounds,
        rows="\n".join(rows),
    )
    if options.out is None:
        print(page)
        return
    options.out.write_text(page)
    raw = {f"{mask}": of for mask, of in seconds.items()}
    options.out.with_suffix(".json").write_text(json.dumps(raw, indent=1) + os.linesep)


if __name__ == "__main__":
    main()
