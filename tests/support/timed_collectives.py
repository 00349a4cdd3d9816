"""Time collectives over gloo, from the last process's start to the last one's end.

    torchrun --nproc-per-node=4 timed_collectives.py 5 '[["all_reduce", 1024], ...]'

The script repeats each collective, given by its kind and the bytes of its whole tensor. It prints the seconds
of every repetition and the bytes that the first process sends, as JSON. The largest ones run once before, so
that connections have opened their windows.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from support.emulated_network import INTERFACE

from flipscale.distributed.placement import read_placement
from flipscale.distributed.ranks import Ranks
from flipscale.distributed.world import World, join_world, leave_world

_NOTICE = 0.1
"""Seconds from an agreement to the start, in which all processes hear of it."""


def seconds_together(world: World, work: Callable[[], object]) -> float:
    """Let all processes do some work at the same time, and return the seconds that it takes.

    All processes are on this machine, so that they have one clock. They agree on a time to start, since they
    would leave a barrier one after the other: up to the delay of the network later.
    """
    start = max(world.gather(time.monotonic())) + _NOTICE
    time.sleep(max(0.0, start - time.monotonic()))
    began = time.monotonic()
    work()
    times = world.gather((began, time.monotonic()))
    return max(end for _, end in times) - max(start for start, _ in times)


def collective(kind: str, size: int) -> Callable[[], object]:
    """Return a function that runs a collective of the trainer over fp32 numbers.

    Args:
        kind: all_reduce, all_gather or reduce_scatter.
        size: Bytes of the whole tensor.
    """
    ranks = Ranks.of()
    whole = torch.ones(ranks.size, size // 4 // ranks.size)
    return {
        "all_reduce": lambda: ranks.sum_(whole),
        "all_gather": lambda: ranks.gather(whole[0]),
        "reduce_scatter": lambda: ranks.start_scatter_sum(whole).wait(),
    }[kind]


def measure(world: World, kind: str, size: int, repetitions: int) -> dict[str, Any]:
    """Return the seconds of every repetition, and the bytes that one sends."""
    run = collective(kind, size)
    seconds = [seconds_together(world, run) for _ in range(repetitions)]

    world.gather(None)
    before = sent_bytes()
    run()
    return {"seconds": seconds, "sent": sent_bytes() - before}


def sent_bytes() -> int:
    """Return the bytes that this node has sent, with the headers of Ethernet, IP and TCP."""
    (line,) = (line for line in Path("/proc/net/dev").read_text().splitlines() if INTERFACE in line)
    return int(line.split(":")[1].split()[8])


def main() -> None:
    repetitions, collectives = int(sys.argv[1]), json.loads(sys.argv[2])
    torch.set_num_threads(1)
    world = join_world(read_placement())
    largest = max(size for _, size in collectives)
    for kind, size in collectives:
        if size == largest:
            collective(kind, size)()

    results = [measure(world, kind, size, repetitions) for kind, size in collectives]
    if world.leads:
        print(json.dumps(results), flush=True)
    leave_world()


if __name__ == "__main__":
    main()
