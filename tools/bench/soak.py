"""Read a large set with every kind of damage: memory must stay flat, and every sample must be counted once.

    python tools/bench/soak.py --samples 200k --out docs/benchmarks/PAGE.md

Each kind of damage in tests/support/shards.py gets its share of the samples. The tool reads more than one
epoch, so that every sample is read. Then the quarantine list must have every damaged sample once. The order
digest must be the one that the audit computes from only the index and the list. Images are tiny: the tool
tests the loader's bookkeeping, not its speed.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from flipscale.budget import Budget
from flipscale.config import Augmentation, Phase, parse_count
from flipscale.data.order.mixture import Mixture
from flipscale.data.quarantine import Quarantine, read_quarantine
from flipscale.data.samples.reader import ReaderSettings, SampleReader
from flipscale.data.samples.stream import LaneShare, Stream
from flipscale.data.shards.indexing import build_index
from flipscale.data.shards.source import ShardSource
from flipscale.order_digest import OrderDigest
from flipscale.runs.expected_order import expected_order, sample_keys

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
from support.shards import BAD, Member, bad, encoded, picture, tiny_tokenizer, write_tar

LANES, WINDOW, BATCH = 64, 256, 1024
SHARD = 10_000  # samples
WARM_UP = 0.2  # share of the run after which memory must stay flat


def main() -> None:
    """Run the soak, and print the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=parse_count, default=200_000)
    parser.add_argument("--share", type=float, default=0.02, help="of each kind of damage")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, help="Markdown page to write")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        page = soak(Path(directory), arguments.samples, arguments.share, arguments.workers)
    print(page)
    if arguments.out is not None:
        arguments.out.write_text(page)


def soak(directory: Path, samples: int, share: float, workers: int) -> str:
    """Write the set, read it, and check the result.

    Args:
        directory: Directory of the set.
        samples: Number of samples.
        share: Share of the samples that each kind of damage gets.
        workers: Number of loader workers.

    Returns:
        The page as Markdown.

    Raises:
        SystemExit: If a check fails, with the page as its message.
    """
    damaged = write_set(directory, samples, share)
    index = build_index(str(directory / f"{{0..{-(-samples // SHARD) - 1}}}.tar"), directory / "index")
    order = Mixture(index.counts, LANES, WINDOW, 0)
    settings = ReaderSettings(16, Augmentation(), 100_000_000)
    reader = SampleReader(ShardSource(index), order, tiny_tokenizer(), settings)

    total = int(1.2 * samples) // BATCH * BATCH
    phase = Phase(name="soak", samples=total, mask_ratio=0.5, batch_size=BATCH, base_lr=1e-3)
    quarantine = Quarantine(directory / "quarantine.jsonl")
    digest = OrderDigest()
    memory: list[int] = []
    began = time.monotonic()
    for batch in Stream(reader, Budget.of([phase], LANES), LaneShare(LANES), workers).batches(0):
        quarantine.add(batch.bad)
        digest += batch.digest
        memory.append(resident())
    seconds = time.monotonic() - began

    listed = sorted(
        (record.shard, record.ordinal) for record in read_quarantine(directory / "quarantine.jsonl")
    )
    expected = expected_order(order, sample_keys(listed), 0, total)

    warm = memory[int(len(memory) * WARM_UP) :]
    growth = max(warm[-len(warm) // 4 :]) / max(warm[: len(warm) // 4]) - 1
    checks = {
        f"the quarantine list has each of the {len(damaged)} damaged samples once": listed == sorted(damaged),
        "the order digest is the audit's": digest == expected.digest,
        f"resident memory grew by {growth:.1%} after warm-up (below 5 %)": growth < 0.05,
    }

    lines = [
        f"# Soak: {samples:,} samples, {len(BAD)} kinds of damage, {share:.0%} each",
        "",
        f"`python tools/bench/soak.py --samples {samples} --share {share} --workers {workers}`",
        "",
        f"{total:,} positions in {seconds:.0f} s with {workers} loader workers; {expected.replaced:,} "
        "positions show another sample of their window.",
        f"Resident memory of all processes: {memory[0] / 1e6:.0f} MB at the first batch, "
        f"{warm[0] / 1e6:.0f} MB after {WARM_UP:.0%} of the run, {memory[-1] / 1e6:.0f} MB at its end.",
        "",
        *(f"- {'yes' if holds else 'NO'}: {what}" for what, holds in checks.items()),
    ]

    if not all(checks.values()):
        raise SystemExit("\n".join(lines))
    return "\n".join(lines) + "\n"


def write_set(directory: Path, samples: int, share: float) -> set[tuple[int, int]]:
    """Write the shards, and return shard and ordinal of every damaged sample."""
    images = [encoded(picture(number, 24, 20)) for number in range(64)]
    draws = np.random.default_rng(0).random(samples)
    kinds = list(BAD)
    damaged: set[tuple[int, int]] = set()
    for shard in range(-(-samples // SHARD)):
        members: list[Member] = []
        for ordinal in range(min(SHARD, samples - shard * SHARD)):
            number = shard * SHARD + ordinal
            kind = int(draws[number] / share)
            if kind < len(kinds):
                damaged.add((shard, ordinal))
                members += bad(kinds[kind], f"{number:09d}")
            else:
                members += [(f"{number:09d}.jpg", images[number % 64]), (f"{number:09d}.txt", b"a red cat")]
        write_tar(directory / f"{shard}.tar", members)
    return damaged


def resident() -> int:
    """Return the bytes in use by this process and its loader workers; shared pages count once (PSS)."""
    processes = ["self", *(str(child.pid) for child in multiprocessing.active_children())]
    texts = (Path(f"/proc/{process}/smaps_rollup").read_text() for process in processes)
    return sum(int(text.split("Pss:")[1].split()[0]) * 1024 for text in texts)


if __name__ == "__main__":
    main()
