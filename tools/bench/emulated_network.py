"""Compare the network model of a plan with gloo over emulated nodes, and write a page.

    python tools/bench/emulated_network.py --out docs/benchmarks/emulated_network_gloo_DATE.md

It needs Linux, root, and the programs of util-linux and iproute2, and takes about six minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # tools/, for the packages below

from reproduction.machine import cores, processor
from support.emulated_measurements import (
    COLLECTIVES_LINK,
    SIZES,
    STEP_LINK,
    STEP_NODES,
    MeasuredCollective,
    MeasuredStep,
    MeasuredStream,
    measure_collectives,
    measure_steps,
    measure_stream,
)
from support.emulated_network import Link, NoEmulationError, emulated_network

ROOT = Path(__file__).resolve().parents[2]
NODES = (2, 4)
"""The numbers of nodes between which collectives are measured."""

PAGE = """# The network model of a plan, compared with gloo over emulated nodes

Commit {commit}, {date}. {cores} cores of {processor}, torch {torch}. Made by
`tools/bench/emulated_network.py`; raw numbers: `{raw}`.

Each node is a network namespace of one machine. A program connects them, which passes frames at a rate and
after a delay (`tests/support/emulated_switch.py`). The times are those of slow links, chosen such that the
processors add little. The model (`flipscale/planning/network.py`) is given the rate, the delay, and how gloo
works:

- gloo all-reduces along a ring, so that the model's tree, which NCCL also has, is left out.
- torch reduces and scatters over gloo by an all-reduce of the whole tensor, and so does the model here. The
  bytes that a node sends show it.
- A sender of gloo waits until the receiver is ready for the step, so that a step takes a round trip: the
  latency of the model is twice the delay.

Connections keep their congestion window during pauses (`tcp_slow_start_after_idle` is 0), and it has opened
before the measurement. The model knows no slow start.

## The emulated links

One TCP stream between two nodes, and the shortest of ten round trips, relative to what was asked for.

| rate, MB/s | delay, ms | rate measured | round trip measured |
|---|---|---|---|
{streams}

## Collectives

Links of {rate:g} MB/s and {delay:g} ms, one process per node, {repetitions} repetitions. The processes start
together; a time ends with the last of them. Bytes are those that a node sends with headers, relative to the
model's. The largest deviation of a median from the model is {collective_deviation:.0%}.

| nodes | collective | KiB | bytes | model, ms | measured / model: median (lowest to highest) |
|---|---|---|---|---|---|
{collectives}

The model adds the latency of the steps to the time of the bytes. gloo sends every part in two halves, and
one is on its way while the other is waited for. Between the two regimes this hides a part of the latency, so
that the model is too high there, most if one half takes a round trip.

Processes that do not start together can take longer. Between two nodes, a large all-gather of gloo takes
half as long again if one process starts later than the delay: it sends its first half before it says that
it is ready (gloo/allgather.cc), over the same connection.

## Training steps

Steps of `vit_tiny_p8` with {nodes} processes on {nodes} nodes, links of {step_rate:g} MB/s and {step_delay:g}
ms. What the network adds is the median of {steps} steps less that of steps without the emulated network. The
model is the sum of all collectives that the plan counts. The largest deviation is {step_deviation:.0%}.

| sharding | step, s | without network, s | network adds, s | model, s | measured / model |
|---|---|---|---|---|---|
{training}

All collectives are summed, as if computation hid none of them. It could hide at most the time of a step
without the network.
"""


def main() -> None:
    """Measure, and write the page."""
    parser = argparse.ArgumentParser(description="Compare the network model with gloo over emulated nodes.")
    parser.add_argument("--out", type=Path, required=True, help="the page; its numbers get the suffix .json")
    parser.add_argument("--repetitions", type=int, default=5, help="of each collective")
    parser.add_argument("--steps", type=int, default=3, help="of each sharding")
    options = parser.parse_args()

    try:
        streams = [(link, _stream(link)) for link in (COLLECTIVES_LINK, STEP_LINK)]
        collectives = [
            one for nodes in NODES for one in measure_collectives(nodes, SIZES, options.repetitions)
        ]
        steps = measure_steps(options.steps)
    except NoEmulationError as error:
        parser.error(str(error))

    raw = options.out.with_suffix(".json")
    everything = {
        "streams": [{**asdict(link), "measured": asdict(stream)} for link, stream in streams],
        "collectives_link": asdict(COLLECTIVES_LINK),
        "collectives": [asdict(one) for one in collectives],
        "step_link": asdict(STEP_LINK),
        "steps": [asdict(one) for one in steps],
    }
    raw.write_text(json.dumps(everything, indent=1) + "\n")
    options.out.write_text(
        PAGE.format(
            commit=_commit(),
            date=time.strftime("%Y-%m-%d"),
            cores=cores(),
            processor=processor(),
            torch=torch.__version__,
            raw=raw.name,
            streams="\n".join(_stream_row(*stream) for stream in streams),
            rate=COLLECTIVES_LINK.rate / 1e6,
            delay=COLLECTIVES_LINK.delay * 1e3,
            repetitions=options.repetitions,
            collective_deviation=max(abs(one.ratio - 1) for one in collectives),
            collectives="\n".join(_collective_row(one) for one in collectives),
            nodes=STEP_NODES,
            step_rate=STEP_LINK.rate / 1e6,
            step_delay=STEP_LINK.delay * 1e3,
            steps=options.steps,
            step_deviation=max(abs(one.ratio - 1) for one in steps),
            training="\n".join(_step_row(one) for one in steps),
        )
    )


def _stream(link: Link) -> MeasuredStream:
    with emulated_network(2, link) as network:
        return measure_stream(network)


def _stream_row(link: Link, stream: MeasuredStream) -> str:
    return (
        f"| {link.rate / 1e6:g} | {link.delay * 1e3:g} | {stream.rate / link.rate:.1%} "
        f"| {stream.round_trip / (2 * link.delay):.1%} |"
    )


def _collective_row(one: MeasuredCollective) -> str:
    longest_ratio = max(one.seconds) / one.predicted
    return (
        f"| {one.nodes} | {one.kind} | {one.size // 1024:,} | {one.sent / one.predicted_bytes:.2f} "
        f"| {1e3 * one.predicted:.0f} "
        f"| {one.ratio:.2f} ({one.shortest_ratio:.2f} to {longest_ratio:.2f}) |"
    )


def _step_row(one: MeasuredStep) -> str:
    times = (statistics.median(one.seconds), statistics.median(one.without), one.communication, one.predicted)
    cells = " | ".join(f"{seconds:.2f}" for seconds in times)
    return f"| {', '.join(str(value) for value in one.sharding.values())} | {cells} | {one.ratio:.2f} |"


def _commit() -> str:
    command = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    main()
