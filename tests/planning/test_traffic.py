"""The collectives of a step against those that torch, DeepSpeed and fairscale start, and their arithmetic."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.counted_step import PAIRS, SPEC, WORLD

from flipscale.config import Sharding
from flipscale.models.presets import preset
from flipscale.planning.flops import parameter_count
from flipscale.planning.traffic import Collective, Layout, Weights, loss_traffic, weight_traffic, weights_of

SCRIPT = Path(__file__).resolve().parents[1] / "support" / "counted_step.py"
LAYOUT = Layout(WORLD, 4)
SHARDINGS: list[dict[str, Any]] = [
    {"strategy": "fsdp"},
    {"strategy": "fsdp", "precision": "bf16"},
    {"strategy": "fsdp", "precision": "bf16", "activation_checkpointing": "full"},
    {"strategy": "fsdp", "precision": "bf16", "reshard_after_forward": False, "micro_batch": 2},
    {"strategy": "fsdp", "precision": "bf16", "micro_batch": 1},
    {"strategy": "hsdp", "shard_size": 4, "precision": "bf16"},
    {"strategy": "fairscale_oss"},
    {"strategy": "fairscale_oss", "micro_batch": 2},
    {"strategy": "zero1", "micro_batch": 2},
    {"strategy": "zero2"},
    {"strategy": "zero2", "micro_batch": 2},
    {"strategy": "zero3"},
    {"strategy": "zero3", "activation_checkpointing": "full"},
    {"strategy": "zero3", "micro_batch": 2},
]


def total(collectives: tuple[Collective, ...]) -> dict[str, list[int]]:
    """Return the number and the bytes of collectives by kind."""
    found: dict[str, list[int]] = {}
    for one in collectives:
        count, size = found.get(one.kind, (0, 0))
        found[one.kind] = [count + one.count, size + one.count * one.size]
    return found


def planned(sharding: Sharding) -> dict[str, list[int]]:
    parts = PAIRS // (sharding.micro_batch or PAIRS)
    weights = weight_traffic(sharding, weights_of(SPEC), LAYOUT, parts)
    return total((*weights, *loss_traffic(PAIRS, SPEC.embed_dim, "contrastive", LAYOUT)))


@pytest.mark.slow
def test_collectives_are_those_that_the_libraries_start() -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), json.dumps(SHARDINGS)],
        capture_output=True,
        text=True,
        timeout=300,
        env=environment,
    )
    assert done.returncode == 0, done.stderr[-3000:]

    for sharding, counted in zip(SHARDINGS, json.loads(done.stdout.splitlines()[-1]), strict=True):
        expected = planned(Sharding.model_validate(sharding))
        # DeepSpeed sends some scalars more: the norm once for each group, and flags.
        assert counted.keys() >= expected.keys(), sharding
        for kind, (count, size) in expected.items():
            most = count + (3 if kind == "all_reduce" else 0)
            assert count <= counted[kind][0] <= most, (sharding, kind)
            assert counted[kind][1] == pytest.approx(size, rel=0.005, abs=1500), (sharding, kind)


def test_ddp_reduces_all_gradients_in_buckets_of_25_mib() -> None:
    weights = Weights(blocks=(), outer=966_400_000)
    sent = weight_traffic(Sharding(strategy="ddp"), weights, Layout(256, 8))
    assert total(sent)["all_reduce"] == pytest.approx([148, 4 * 966.4e6], rel=0.001)
    hidden, last = sent
    assert (hidden.window, last.window, last.count) == (1, 0, 1)


def test_h14_under_fsdp_sends_what_was_counted_on_256_fake_processes() -> None:
    """112 + 2 all-gathers, 65 reduce-scatters, 4 small all-reduces, 8.3 GB: counted on fake CUDA tensors."""
    spec = preset("vit_h14")
    weights = weight_traffic(Sharding(strategy="fsdp", precision="bf16"), weights_of(spec), Layout(256, 8))
    everything = total((*weights, *loss_traffic(256, 1024, "contrastive", Layout(256, 8))))
    assert {kind: count for kind, (count, _) in everything.items()} == {
        "all_gather": 114,
        "reduce_scatter": 65,
        "all_reduce": 4,
    }
    gathered, reduced = (everything[kind][1] for kind in ("all_gather", "reduce_scatter"))
    assert gathered + reduced == pytest.approx(8.3e9, rel=0.01)


def test_blocks_and_the_rest_are_the_whole_model() -> None:
    for name in ("vit_h14", "clip_b16"):
        weights = weights_of(preset(name))
        assert weights.total == sum(weights.tensors) == parameter_count(preset(name)).total
    assert len(weights_of(preset("vit_h14")).blocks) == 32 + 24


def test_hsdp_gathers_inside_a_node_and_sums_between_nodes() -> None:
    sharding = Sharding(strategy="hsdp", shard_size=8, precision="bf16")
    sent = weight_traffic(sharding, weights_of(SPEC), Layout(64, 8))
    assert {(one.kind, one.ranks, one.ranks_per_node) for one in sent if one.size > 8} == {
        ("all_gather", 8, 8),
        ("reduce_scatter", 8, 8),
        ("all_reduce", 8, 1),
    }
    smaller = weight_traffic(Sharding(strategy="hsdp", shard_size=4), weights_of(SPEC), Layout(64, 8))
    assert {
        (one.ranks, one.ranks_per_node) for one in smaller if one.kind == "all_reduce" and one.size > 8
    } == {(16, 2)}


def test_zero3_drops_and_gathers_again_what_is_not_used_soon() -> None:
    """Of 2e9 elements, those of the last 0.5e9 of the forward are used again within 1e9."""
    large = Weights(blocks=(), outer=2_000_000_000)
    sent = weight_traffic(Sharding(strategy="zero3"), large, Layout(64, 8))
    gathered = {one.part: one.count for one in sent if one.kind == "all_gather"}
    assert gathered == {"forward": 40, "backward": 30}


@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "zero1", "zero3", "fairscale_oss", "fairscale_fsdp"])
def test_one_process_sends_nothing(strategy: Any) -> None:
    assert weight_traffic(Sharding(strategy=strategy), weights_of(SPEC), Layout(1, 8)) == ()
    assert loss_traffic(64, 128, "contrastive", Layout(1, 8)) == ()


def test_sigmoid_loss_sends_no_softmax_statistics() -> None:
    infonce, sigmoid = (total(loss_traffic(256, 1024, kind, LAYOUT)) for kind in ("contrastive", "sigmoid"))
    assert infonce["all_gather"] == sigmoid["all_gather"] == [1, 4 * 256 * WORLD * 1024]
    assert infonce["all_reduce"][0] - sigmoid["all_reduce"][0] == 2
