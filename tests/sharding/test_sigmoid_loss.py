"""The sigmoid loss in a job: its logit bias is trained, saved and sharded as any other parameter."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.tiny_run import TinyRun

MakeRun = Callable[..., TinyRun]
SIGMOID: dict[str, Any] = {
    "loss": {"kind": "sigmoid", "tile": 3},
    "logging": {"every": "1 steps", "tensorboard": False},
    "checkpoint": {"every": ["6 steps"]},
}
PHASE = {"name": "p", "samples": 192, "mask_ratio": 0.5, "batch_size": 16, "base_lr": 0.02, "warmup": 32}

pytestmark = pytest.mark.slow


def trained(run: TinyRun, processes: int = 1) -> TinyRun:
    done = run.train(processes=processes)
    assert done.returncode == 0, done.stderr
    return run


def test_the_bias_is_trained_resumed_and_exported(tiny_run: MakeRun) -> None:
    straight = trained(tiny_run("straight", phases=[PHASE], **SIGMOID))
    first = straight.metrics()[0]
    assert first["logit_bias"] == -10
    assert first["logit_scale"] == pytest.approx(10, rel=1e-6)
    # At a bias of -10 a pair that does not match costs next to nothing, and one that does 10 minus its logit.
    assert 0 < first["loss"] < 10 + 10
    bias = straight.tensors()["model.logit_bias"]
    assert bias.shape == (1,)
    assert bias != -10
    assert straight.tensors()["exp_avg_sq.logit_bias"] > 0

    command = [sys.executable, "-m", "flipscale", "export", str(straight.output), str(straight.output / "x")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    config = json.loads((straight.output / "x" / "open_clip_config.json").read_text())
    assert config["model_cfg"]["init_logit_bias"] == -10
    exported = load_file(straight.output / "x" / "open_clip_model.safetensors")["logit_bias"]
    assert torch.equal(exported, bias.squeeze(0))


CASES = [
    pytest.param(2, {"strategy": "fsdp", "micro_batch": 3}, id="fsdp_gradcache"),
    pytest.param(2, {"strategy": "ddp"}, id="ddp"),
    pytest.param(4, {"strategy": "hsdp", "shard_size": 2}, id="hsdp"),
    pytest.param(2, {"strategy": "zero1", "micro_batch": 3}, id="zero1_gradcache"),
    pytest.param(2, {"strategy": "zero2"}, id="zero2"),
    pytest.param(2, {"strategy": "zero3", "micro_batch": 3}, id="zero3_gradcache"),
    pytest.param(2, {"strategy": "fairscale_oss"}, id="fairscale_oss"),
]


@pytest.mark.long
@pytest.mark.parametrize(("processes", "sharding"), CASES)
def test_every_strategy_trains_it_as_one_process(
    tiny_run: MakeRun, processes: int, sharding: dict[str, Any]
) -> None:
    """Half of the run is the first segment, so that the sharded bias and its moments are restored, too."""
    phases = [PHASE, {**PHASE, "name": "q"}]
    one = trained(tiny_run("one", phases=phases, **SIGMOID))
    trained(tiny_run("many", phases=phases[:1], sharding=sharding, **SIGMOID), processes)
    many = trained(tiny_run("many", phases=phases, sharding=sharding, **SIGMOID), processes)
    for mine, alone in zip(many.metrics(), one.metrics(), strict=True):
        assert mine["digest"] == alone["digest"]
        assert mine["loss"] == pytest.approx(alone["loss"], rel=1e-5)
        assert mine["logit_bias"] == pytest.approx(alone["logit_bias"], abs=1e-5)
    expected = one.tensors()
    for kind in ("model", "exp_avg", "exp_avg_sq"):
        torch.testing.assert_close(
            many.tensors()[f"{kind}.logit_bias"], expected[f"{kind}.logit_bias"], rtol=1e-3, atol=1e-6
        )
