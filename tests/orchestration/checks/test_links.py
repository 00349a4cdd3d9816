"""The limit of the all-reduce between GPUs: above what a fallback to TCP reaches, far below the links."""

from __future__ import annotations

import pytest

from flipscale.errors import UserError
from flipscale.orchestration.checks.links import least_all_reduce

GB = 1e9
SIZE = 2**28
# GPU, what one node's cards and what NVLink carry by the sheets of the DGX systems, in GB/s.
SYSTEMS = [
    ("NVIDIA A100-SXM4-80GB", 200, 300),
    ("NVIDIA H100 80GB HBM3", 400, 450),
    ("NVIDIA H200", 400, 450),
]
TCP = 12.5  # GB/s of a card of 100 Gb/s


@pytest.mark.parametrize(("gpu", "cards", "nvlink"), SYSTEMS)
@pytest.mark.parametrize("nodes", [1, 2, 8, 128])
def test_nodes_on_their_links_pass_and_nodes_on_tcp_do_not(
    gpu: str, cards: float, nvlink: float, nodes: int
) -> None:
    least = least_all_reduce(gpu, SIZE, 8 * nodes, 8) / GB
    assert TCP < least < 0.25 * (nvlink if nodes == 1 else min(cards, nvlink))


def test_other_gpus_have_a_limit_that_holds_for_any_links() -> None:
    assert least_all_reduce("NVIDIA L40S", SIZE, 16, 8) == GB
    assert least_all_reduce("NVIDIA H100 PCIe", SIZE, 16, 8) == GB


def test_links_of_a_site_replace_those_of_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLIPSCALE_FABRIC_BANDWIDTH", str(1.5 * GB))  # 100 Gb/s for 8 GPUs
    assert 1.0 < least_all_reduce("NVIDIA A100-SXM4-40GB", SIZE, 16, 8) / GB < 0.1 * TCP
    assert least_all_reduce("NVIDIA L40S", SIZE, 16, 8) == GB

    monkeypatch.setenv("FLIPSCALE_NODE_BANDWIDTH", str(20 * GB))
    assert least_all_reduce("NVIDIA L40S", SIZE, 8, 8) == pytest.approx(2 * GB, rel=0.05)


@pytest.mark.parametrize("text", ["fast", "0", "-1", "nan"])
def test_bandwidth_that_is_not_one_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLIPSCALE_NODE_BANDWIDTH", text)
    with pytest.raises(UserError, match=f"FLIPSCALE_NODE_BANDWIDTH is '{text}'; give a positive number"):
        least_all_reduce("NVIDIA H200", SIZE, 8, 8)
