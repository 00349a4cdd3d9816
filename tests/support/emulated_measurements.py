"""What is measured on an emulated network, for the test and for the page of the benchmark."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.emulated_network import EmulatedNetwork, Link, emulated_network
from support.gloo_prediction import predicted_bytes, predicted_communication, predicted_seconds

from flipscale.planning.network import Kind

KINDS: tuple[Kind, ...] = ("all_reduce", "all_gather", "reduce_scatter")
SIZES = (2**10, 2**16, 2**18, 2**20, 2**21, 2**22, 2**23)
"""Bytes of the whole tensor: from some that the latency bounds to some that the bandwidth bounds."""
COLLECTIVES_LINK = Link(rate=12.5e6, delay=0.02)
"""At this link every latency and every transfer is far longer than what two busy cores add."""
SHARDINGS: tuple[dict[str, Any], ...] = (
    {"strategy": "ddp", "precision": "fp32"},
    {"strategy": "fsdp", "precision": "fp32"},
    {"strategy": "fsdp", "precision": "bf16"},
)
STEP_LINK = Link(rate=2.5e6, delay=0.001)
"""At this link the communication of a step takes several times as long as its computation."""
STEP_NODES = 4

_SUPPORT = Path(__file__).parent
_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}


@dataclass(frozen=True)
class MeasuredStream:
    """One TCP connection between two nodes."""

    rate: float
    """Bytes/s."""
    round_trip: float
    """The shortest one, in seconds."""


@dataclass(frozen=True)
class MeasuredCollective:
    """A collective of one process per node, and what the model says."""

    kind: Kind
    size: int
    """Bytes of the whole tensor."""
    nodes: int
    seconds: tuple[float, ...]
    """Of each repetition."""
    sent: int
    """Bytes that one node sent, with all headers."""
    predicted: float
    """Seconds."""
    predicted_bytes: float

    @property
    def ratio(self) -> float:
        """The median of the measured seconds, relative to the model's."""
        return statistics.median(self.seconds) / self.predicted

    @property
    def shortest_ratio(self) -> float:
        """The shortest of the measured seconds, relative to the model's: a busy machine adds least to it."""
        return min(self.seconds) / self.predicted


@dataclass(frozen=True)
class MeasuredStep:
    """The training steps of a sharding, and what the model says."""

    sharding: dict[str, Any]
    seconds: tuple[float, ...]
    """Of each step over the emulated network."""
    without: tuple[float, ...]
    """Of each step of as many processes without it."""
    predicted: float
    """Seconds of all collectives."""

    @property
    def communication(self) -> float:
        """What the network adds to a step, in seconds."""
        return statistics.median(self.seconds) - statistics.median(self.without)

    @property
    def ratio(self) -> float:
        """The measured communication, relative to the model's."""
        return self.communication / self.predicted


def measure_stream(network: EmulatedNetwork) -> MeasuredStream:
    """Send two seconds' worth of bytes from one node to another."""
    script = [sys.executable, _SUPPORT / "one_stream.py"]
    size = int(2 * network.link.rate)
    receiver = network.start(0, [*script, "receive", size], stdout=subprocess.PIPE)
    with receiver:
        assert receiver.stdout is not None
        receiver.stdout.readline()
        round_trip = float(network.run(1, [*script, "send", size, network.address(0)]))
        return MeasuredStream(float(receiver.stdout.read()), round_trip)


def measure_collectives(
    nodes: int, sizes: Sequence[int], repetitions: int, link: Link = COLLECTIVES_LINK
) -> list[MeasuredCollective]:
    """Return every kind and size, each repeated.

    Raises:
        NoEmulationError: If this machine cannot emulate a network.
    """
    wanted = [(kind, size) for kind in KINDS for size in sizes]
    command = [sys.executable, _SUPPORT / "timed_collectives.py", repetitions, json.dumps(wanted)]
    with emulated_network(nodes, link) as network:
        results = json.loads(network.run_ranks(command, _ENVIRONMENT))
    return [
        MeasuredCollective(
            kind,
            size,
            nodes,
            tuple(result["seconds"]),
            result["sent"],
            predicted_seconds(kind, size, nodes, link),
            predicted_bytes(kind, size, nodes),
        )
        for (kind, size), result in zip(wanted, results, strict=True)
    ]


def measure_steps(steps: int) -> list[MeasuredStep]:
    """Return so many steps of every sharding, with and without the emulated network.

    Raises:
        NoEmulationError: If this machine cannot emulate a network.
    """
    script = [str(_SUPPORT / "timed_step.py"), str(steps), json.dumps(SHARDINGS)]
    with emulated_network(STEP_NODES, STEP_LINK) as network:
        over_network = json.loads(network.run_ranks([sys.executable, *script], _ENVIRONMENT))

    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    printed = subprocess.run(
        [*launcher, f"--nproc-per-node={STEP_NODES}", *script],
        env={**os.environ, **_ENVIRONMENT},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout
    without = json.loads(printed.splitlines()[-1])

    return [
        MeasuredStep(
            sharding, tuple(taken), tuple(alone), predicted_communication(sharding, STEP_NODES, STEP_LINK)
        )
        for sharding, taken, alone in zip(SHARDINGS, over_network, without, strict=True)
    ]
