"""The network model against real processes: gloo over nodes with a rate and a delay.

A plan promises the time of communication within 25 %. All times are those of slow links, which take far
longer than the processes' own work on busy cores.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from support.emulated_measurements import measure_collectives, measure_steps, measure_stream
from support.emulated_network import Link, NoEmulationError, emulated_network

TESTS = Path(__file__).resolve().parents[1]
PROMISED = 0.25
HELD = """
import sys
from support.emulated_network import Link, emulated_network

with emulated_network(2, Link(1e6, 0.001)) as network:
    print(*(path.parts[2] for path in network.namespaces), flush=True)
    sys.stdin.read()
"""

pytestmark = [pytest.mark.slow, pytest.mark.executes]


@pytest.fixture(autouse=True, scope="module")
def _needs_emulation() -> None:
    """Skip on machines that cannot emulate a network, and say why."""
    try:
        with emulated_network(1, Link(1e6, 0.001)):
            pass
    except NoEmulationError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize(
    "link",
    [
        pytest.param(Link(2.5e6, 0.001), id="slow"),
        pytest.param(Link(12.5e6, 0.01), id="fast", marks=pytest.mark.long),
    ],
)
def test_stream_has_the_rate_and_the_delay_of_its_link(link: Link) -> None:
    with emulated_network(2, link) as network:
        stream = measure_stream(network)
    assert stream.rate == pytest.approx(link.rate, rel=0.05)  # headers are 0.8 %
    assert stream.round_trip == pytest.approx(2 * link.delay, rel=PROMISED)
    assert stream.round_trip >= 2 * link.delay


@pytest.mark.parametrize(
    ("nodes", "sizes"),
    [
        pytest.param(2, (2**10, 2**20), id="some"),
        pytest.param(2, (2**16, 2**22, 2**23), id="two nodes", marks=pytest.mark.long),
        pytest.param(4, (2**10, 2**16, 2**20, 2**22, 2**23), id="four nodes", marks=pytest.mark.long),
    ],
)
def test_model_agrees_with_collectives_of_gloo(nodes: int, sizes: tuple[int, ...]) -> None:
    measured = measure_collectives(nodes, sizes=sizes, repetitions=5)
    ratios = {(one.kind, one.size): one.shortest_ratio for one in measured}
    assert ratios == {name: pytest.approx(1, rel=PROMISED) for name in ratios}


@pytest.mark.long
def test_gloo_sends_the_bytes_of_the_model() -> None:
    """This shows that torch reduces and scatters by an all-reduce: half of the bytes would do."""
    measured = measure_collectives(4, sizes=(2**22,), repetitions=1)
    assert [one.sent / one.predicted_bytes for one in measured] == pytest.approx([1, 1, 1], rel=0.03)


@pytest.mark.long
def test_model_agrees_with_the_communication_of_a_training_step() -> None:
    steps = measure_steps(3)
    assert all(step.communication > 3 * min(step.without) for step in steps), "computation hides the network"
    assert {str(step.sharding): step.ratio for step in steps} == {
        str(step.sharding): pytest.approx(1, rel=PROMISED) for step in steps
    }


def test_network_ends_with_its_context_and_with_its_process() -> None:
    with emulated_network(2, Link(1e6, 0.001)) as network:
        assert all(path.exists() for path in network.namespaces)
        with pytest.raises(RuntimeError, match="failed on node 1: no such thing"):
            network.run(1, ["sh", "-c", "echo no such thing >&2; exit 1"])
    assert not any(path.exists() for path in network.namespaces)

    process = subprocess.Popen(
        [sys.executable, "-c", HELD],
        cwd=TESTS,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        holders = [psutil.Process(int(pid)) for pid in process.stdout.readline().split()]
        assert len(holders) == 2
        process.kill()
    _, alive = psutil.wait_procs(holders, timeout=60)
    assert not alive
