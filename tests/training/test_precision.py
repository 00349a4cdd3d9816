"""The warnings about a precision that is slow on a device."""

from __future__ import annotations

import pytest
import torch

from flipscale.training.precision import slow_precision


@pytest.mark.parametrize(
    ("precision", "device", "capability", "warned"),
    [
        ("fp32", "cuda", (9, 0), True),
        ("bf16", "cuda", (9, 0), False),
        ("fp64", "cuda", (9, 0), False),
        ("fp32", "cuda", (7, 5), False),  # it has no bf16 units
        ("fp32", "cpu", (0, 0), False),
    ],
)
def test_fp32_on_a_gpu_is_reported(
    precision: str,
    device: str,
    capability: tuple[int, int],
    warned: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    warning = slow_precision(precision, torch.device(device))
    assert ("set sharding.precision to bf16" in str(warning)) == warned
