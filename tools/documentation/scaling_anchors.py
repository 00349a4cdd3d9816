"""Hold the step time of `flipscale plan` to published scaling of CLIP training, and make the table of it.

    python tools/documentation/scaling_anchors.py [--write]

Each anchor is a training of another program. Its speed on the fewest GPUs gives the MFU, and the plan's model
then computes the speed on more of them from what was published of the model, the batch and the machine. No
constant is adjusted to an anchor. The command prints the table; with `--write` it replaces the table in
docs/planning.md. tests/planning/test_scaling_anchors.py holds the model to the table.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flipscale.config import Sharding
from flipscale.errors import UserError
from flipscale.planning.gpus import Gpu, find_gpu
from flipscale.planning.network import Network, find_network
from flipscale.planning.step_time import Pace, StepTime, Work, step_time
from flipscale.planning.traffic import Collective, Layout, Weights, weight_traffic

PAGE = Path(__file__).parents[2] / "docs" / "planning.md"
BEGIN = "<!-- Anchors: made by `make docs-tables` from tools/documentation/scaling_anchors.py. -->"
END = "<!-- End of the anchors. -->"
TOLERANCE = 0.1


@dataclass(frozen=True)
class Point:
    """A published speed on one number of GPUs."""

    gpus: int
    batch: int
    """Samples per GPU and step."""
    rate: float
    """Samples per second and GPU."""


@dataclass(frozen=True)
class Anchor:
    """A published training on several numbers of GPUs, with DistributedDataParallel and OpenCLIP's loss."""

    name: str
    source: str
    gpu: Gpu
    network: Network
    gpus_per_node: int
    forward_flops: float
    """FLOPs of the forward of one sample."""
    parameters: int
    embed_dim: int
    points: tuple[Point, ...]
    """The fewest GPUs first."""

    def step(self, point: Point, mfu: float) -> StepTime:
        """Return the time of a step by the plan's model."""
        layout = Layout(point.gpus, self.gpus_per_node)
        weights = Weights(blocks=(), outer=self.parameters)
        forward = self.forward_flops * point.batch

        # OpenCLIP (local_loss, gather_with_grad): 6 products of own rows with the features of all processes.
        loss = 6 * 2 * point.batch**2 * point.gpus * self.embed_dim
        sent = (
            *weight_traffic(Sharding(strategy="ddp"), weights, layout),
            *self._loss_traffic(point, layout),
        )
        pace = Pace(self.gpu.peak_flops * mfu, self.gpu.fp32_flops, point.gpus, self.network)
        return step_time(Work(forward, 2 * forward, loss), sent, pace)

    def _loss_traffic(self, point: Point, layout: Layout) -> tuple[Collective, ...]:
        """Return the traffic of OpenCLIP's loss: both features are gathered, and so are their gradients."""
        features = 4 * point.batch * point.gpus * self.embed_dim
        ranks = layout.everyone
        return (
            Collective("all_gather", features, *ranks, 2, "loss", 0),
            Collective("reduce_scatter", features, *ranks, 2, "loss", 0),
        )

    @property
    def mfu(self) -> float:
        """The MFU with which the model gives the published speed on the fewest GPUs."""
        first = self.points[0]
        low, high = 0.0, 1.0
        for _ in range(60):
            middle = (low + high) / 2
            too_slow = self.step(first, middle).total > first.batch / first.rate
            low, high = (middle, high) if too_slow else (low, middle)
        return high

    def published(self, point: Point) -> float:
        """Return the published scaling efficiency: the speed per GPU relative to that on the fewest."""
        return point.rate / self.points[0].rate

    def computed(self, point: Point) -> float:
        """Return the scaling efficiency by the plan's model."""
        return point.batch / self.step(point, self.mfu).total / self.points[0].rate

    def deviation(self, point: Point) -> float:
        """Return by how much the computed efficiency is above the published one, relative to it."""
        return self.computed(point) / self.published(point) - 1


def _nemo(name: str, gpu: str, source: str, speeds: Sequence[float]) -> Anchor:
    """Return CLIP g/14 of NeMo: 80 samples per GPU (its configuration vit_g_14); speeds of whole jobs."""
    nodes = (1, 2, 4, 8, 16)
    return Anchor(
        name=name,
        source=source,
        gpu=find_gpu(gpu),
        network=find_network(gpu),
        gpus_per_node=8,
        forward_flops=581.2e9,
        parameters=1_366_000_000,
        embed_dim=1024,
        points=tuple(Point(8 * n, 80, speed / (8 * n)) for n, speed in zip(nodes, speeds, strict=True)),
    )


def _clap(name: str, batch: int, flops: float, parameters: int, rates: Sequence[float]) -> Anchor:
    """Return CLAP on JUPITER: nodes of 4 GH200 with one NDR200 card each."""
    gpus = (4, 8, 16, 32, 64, 128, 256, 512)
    return Anchor(
        name=name,
        source="LAION, open-clap-scaling, README",
        gpu=find_gpu("gh200-96gb"),
        network=find_network("gh200-96gb"),
        gpus_per_node=4,
        forward_flops=flops,
        parameters=parameters,
        embed_dim=512,
        points=tuple(Point(n, batch, rate) for n, rate in zip(gpus, rates, strict=True)),
    )


_GUIDE = "NVIDIA, NeMo Framework User Guide, CLIP, Performance"
_LAUNCHER = "NVIDIA, NeMo-Framework-Launcher, README (another version)"

ANCHORS = (
    _nemo("NeMo g/14, A100", "a100-80gb", _GUIDE, (559, 1115, 2190, 4407, 8633)),
    _nemo("NeMo g/14, A100, other", "a100-80gb", _LAUNCHER, (621.90, 1230.88, 2446.72, 4863.68, 9650.36)),
    _nemo("NeMo g/14, H100", "h100-80gb", _GUIDE, (935, 1795, 3502, 6771, 13829)),
    _nemo("NeMo g/14, H100, other", "h100-80gb", _LAUNCHER, (1039.81, 2005.48, 4013.33, 7627.56, 14913.53)),
    _clap(
        "CLAP HTSAT-tiny, GH200",
        616,
        111.20e9,
        154_000_000,
        (623.7, 620.7, 616.5, 611.6, 601.8, 586.0, 573.3, 544.6),
    ),
    _clap(
        "CLAP HTSAT-base, GH200",
        416,
        130.09e9,
        194_000_000,
        (538.2, 530.5, 523.7, 521.9, 507.8, 505.4, 485.3, 454.8),
    ),
    Anchor(
        name="OpenCLIP bigG/14, half of the patches, A100",
        source="LAION, giant-openclip (Stability's cluster: p4de, 400 Gb/s per node)",
        gpu=find_gpu("a100-80gb"),
        network=find_network("a100-80gb", fabric_bandwidth=6.25e9),
        gpus_per_node=8,
        forward_flops=1065.4e9 / 1.92,
        parameters=2_540_000_000,
        embed_dim=1280,
        points=(Point(512, 313, 46.9), Point(760, 211, 43.4)),
    ),
    Anchor(
        name="OpenCLIP L/14, A100",
        source="LAION, scaling-laws-openclip (JUWELS Booster), the fastest run of each size",
        gpu=find_gpu("a100-40gb"),
        network=find_network("a100-40gb"),
        gpus_per_node=4,
        forward_flops=175.3e9,
        parameters=428_000_000,
        embed_dim=768,
        points=(Point(400, 224, 104.9), Point(768, 112, 78.6), Point(1024, 84, 77.3)),
    ),
)
UNMET = frozenset({"OpenCLIP L/14, A100"})
"""Anchors that the model does not meet; docs/planning.md says why."""


def table() -> str:
    """Return the table of all anchors, in Markdown."""
    lines = [
        "| training | MFU | GPUs | published | computed | deviation | source |",
        "|---|---|---|---|---|---|---|",
    ]
    for anchor in ANCHORS:
        for point in _shown(anchor):
            lines.append(
                f"| {anchor.name} | {anchor.mfu:.1%} | {anchor.points[0].gpus} to {point.gpus} "
                f"| {anchor.published(point):.1%} | {anchor.computed(point):.1%} "
                f"| {anchor.deviation(point):+.1%} | {anchor.source} |"
            )
    return "\n".join(lines)


def _shown(anchor: Anchor) -> tuple[Point, ...]:
    """Return the points of the table: the largest, and one in the middle if there are many."""
    more = anchor.points[1:]
    return (more[len(more) // 2], more[-1]) if len(more) > 2 else more


def page_with_table(page: str) -> str:
    """Return a page with the table between its marker comments.

    Raises:
        UserError: If the page lacks a marker.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise UserError(f"{PAGE} lacks the comment {END if begin else BEGIN!r}; put it around the table")
    return f"{before}{BEGIN}\n\n{table()}\n\n{END}{after}"


def main(arguments: Sequence[str]) -> None:
    """Print the table, or write it into the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="replace the table in docs/planning.md")
    if parser.parse_args(arguments).write:
        PAGE.write_text(page_with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        print(table())


if __name__ == "__main__":
    main(sys.argv[1:])
