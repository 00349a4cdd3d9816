"""The conversions between dtypes in a step on a fake GPU."""

from __future__ import annotations

import shutil

import pytest
from support.simulated_steps import SimulatedStep, run_simulated

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="the fake GPU needs a C++ compiler")


@pytest.mark.slow
def test_blocks_that_fsdp_gathers_in_bf16_convert_nothing():
    """Two more blocks bring no conversion: their norms read and write bf16, as their products do.

    The time of a conversion this small is that of one kernel, whatever its size.
    """
    few, many = run_simulated(
        [
            SimulatedStep(model=model, sharding={"strategy": "fsdp"})
            for model in ("vit_micro_p8", "vit_tiny_p8")
        ]
    )
    assert many["seconds"]["norms"] > few["seconds"]["norms"]
    assert many["seconds"]["casts"] == pytest.approx(few["seconds"]["casts"])
